//! User-defined message types: descriptor sets, their reload by SIGHUP, gRPC reflection
//! as server and as client, and the output of commands.

use std::path::Path;

use serde_json::Value;
use tokio::{fs::OpenOptions, net::UnixListener, process::Command};
use tokio_stream::{iter, wrappers::UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_reflection::{
    pb::{
        v1::{
            self, ExtensionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        },
        v1alpha::{
            self, server_reflection_client::ServerReflectionClient as AlphaClient,
            server_reflection_request::MessageRequest as AlphaRequest,
            server_reflection_response::MessageResponse as AlphaResponse,
        },
    },
    server::Builder,
};

use crate::support::{
    descriptor_sets::{ITEM_MESSAGE, SHOP_SERVICE, shop_descriptor_set},
    serve_process::{ServeProcess, longrunning_command, run_command, stderr, stdout},
};

const ORDER_MESSAGE: &str = "message Order { string id = 1; }";
const ITEM_JSON: &str = r#"{"@type":"type.googleapis.com/shop.v1.Item","title":"bear","cents":"1250",
    "extra":{"@type":"type.googleapis.com/google.protobuf.Empty"}}"#;

/// A directory with a descriptor set, and a configuration file with a queue whose
/// command returns its input.
struct TestFiles(tempfile::TempDir);

impl TestFiles {
    fn new(set: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Self(directory);
        files.write(set);
        let config = format!(
            "descriptor_sets = [{:?}]\n[[queue]]\nname = \"echo\"\ncommand = [\"cat\"]\n",
            files.descriptor_set()
        );
        std::fs::write(files.config(), config).unwrap();
        files
    }

    fn write(&self, set: &[u8]) {
        std::fs::write(self.descriptor_set(), set).unwrap();
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.0.path();
        path.join(name).to_str().unwrap().to_owned()
    }

    fn descriptor_set(&self) -> String {
        self.path("shop.binpb")
    }

    fn config(&self) -> String {
        self.path("config.toml")
    }
}

async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// Returns `true` if both reflection versions at this address know a symbol.
///
/// Panics if they differ.
async fn is_symbol_known(address: &str, symbol: &str) -> bool {
    let channel = connect(address).await;
    let mut v1_client = ServerReflectionClient::new(channel.clone());
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    };
    let responses = v1_client
        .server_reflection_info(iter([request]))
        .await
        .unwrap();
    let response = responses.into_inner().message().await.unwrap().unwrap();
    let known_in_v1 = matches!(
        response.message_response,
        Some(MessageResponse::FileDescriptorResponse(_))
    );

    let mut v1alpha_client = AlphaClient::new(channel);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(AlphaRequest::FileContainingSymbol(symbol.to_owned())),
    };
    let responses = v1alpha_client
        .server_reflection_info(iter([request]))
        .await
        .unwrap();
    let response = responses.into_inner().message().await.unwrap().unwrap();
    let known_in_v1alpha = matches!(
        response.message_response,
        Some(AlphaResponse::FileDescriptorResponse(_))
    );
    assert_eq!(known_in_v1, known_in_v1alpha, "{symbol}");
    known_in_v1
}

async fn wait_for_log(program: &mut ServeProcess, text: &str) -> String {
    loop {
        let line = program.read_log_line().await;
        if line.contains(text) {
            return line;
        }
    }
}

/// Completes an operation with a typed response and returns its name.
async fn create_typed_operation(program: &ServeProcess) -> String {
    let workers = format!("http://{}", program.worker_address);
    let submitted = program
        .run_command(&[
            "submit", "echo", "--type", "shop.v1.Item", "--wait", "--output", "json",
            "--worker-endpoint", &workers, "--input",
            r#"{"title":"bear","cents":1250,"extra":{"@type":"type.googleapis.com/google.protobuf.Empty"}}"#,
        ])
        .await;
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    let operation: Value = serde_json::from_str(stdout(&submitted)).unwrap();
    let expected: Value = serde_json::from_str(ITEM_JSON).unwrap();
    assert_eq!(operation["response"], expected);
    operation["name"].as_str().unwrap().to_owned()
}

// Rules: JSON-5, TYPES-5
#[tokio::test]
async fn commands_use_server_types_without_flags() {
    let files = TestFiles::new(&shop_descriptor_set(ITEM_MESSAGE));
    let program = ServeProcess::serve(&["--config", &files.config()]).await;
    let name = create_typed_operation(&program).await;
    for command in ["get", "wait", "watch", "list"] {
        let name = if command == "list" { "-" } else { &name };
        let printed = program
            .run_command(&[command, name, "--output", "json"])
            .await;
        assert!(
            stdout(&printed).contains("\"1250\""),
            "{command}: {}",
            stdout(&printed)
        );
    }
    let table = program.run_command(&["get", &name]).await;
    assert!(
        stdout(&table).contains("\"cents\":\"1250\""),
        "{}",
        stdout(&table)
    );
}

// Rules: JSON-5, TYPES-5
#[tokio::test]
async fn unknown_type_is_printed_as_base64_unless_descriptor_set_given() {
    let files = TestFiles::new(&shop_descriptor_set(ITEM_MESSAGE));
    let mut program = ServeProcess::serve(&["--config", &files.config()]).await;
    let name = create_typed_operation(&program).await;
    files.write(&shop_descriptor_set(ORDER_MESSAGE));
    program.signal("HUP").await;
    wait_for_log(&mut program, "types loaded").await;
    let output = program
        .run_command(&["get", &name, "--output", "json"])
        .await;
    assert!(
        stdout(&output).contains("\"value\": \"CgRiZWFy"),
        "{}",
        stdout(&output)
    );
    files.write(&shop_descriptor_set(ITEM_MESSAGE));
    let output = program
        .run_command(&[
            "get",
            &name,
            "--output",
            "json",
            "--descriptor-set",
            &files.descriptor_set(),
        ])
        .await;
    assert!(stdout(&output).contains("\"1250\""), "{}", stdout(&output));
    let rejected = program
        .run_command(&["get", &name, "--descriptor-set", "/nowhere"])
        .await;
    assert_eq!(rejected.status.code(), Some(2));
    assert!(stderr(&rejected).contains("/nowhere"));
}

// Rules: SHUTDOWN-1
#[tokio::test]
async fn sigterm_ends_start_that_waits_for_descriptor_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let made = Command::new("mkfifo").arg(&path).status().await.unwrap();
    assert!(made.success());
    let set = path.to_str().unwrap();
    let mut server = longrunning_command(&["serve", "--listen", "127.0.0.1:0"])
        .args(["--worker-listen", "none", "--admin-listen", "none"])
        .args(["--descriptor-set", set])
        .spawn()
        .unwrap();
    // Opens as soon as the server reads, and keeps it waiting.
    let mut options = OpenOptions::new();
    let _writer = options.write(true).open(&path).await.unwrap();
    let pid = server.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(kill.await.unwrap().success());
    assert_eq!(server.wait().await.unwrap().code(), Some(0));
}

// Rules: TYPES-2, TYPES-3
#[tokio::test]
async fn sighup_reloads_descriptor_sets_and_ignores_invalid_ones() {
    let files = TestFiles::new(&shop_descriptor_set(ITEM_MESSAGE));
    let mut program = ServeProcess::serve(&["--descriptor-set", &files.descriptor_set()]).await;
    assert!(is_symbol_known(&program.client_address, "shop.v1.Item").await);
    assert!(!is_symbol_known(&program.client_address, "shop.v1.Order").await);
    files.write(&shop_descriptor_set(&format!(
        "{ITEM_MESSAGE} {ORDER_MESSAGE}"
    )));
    program.signal("HUP").await;
    let line = wait_for_log(&mut program, "types loaded").await;
    assert!(
        line.contains("files=1") && line.contains("messages=2"),
        "{line}"
    );
    for address in [&program.client_address, &program.worker_address] {
        for symbol in ["shop.v1.Order", "shop.v1.Item.cents"] {
            assert!(
                is_symbol_known(address, symbol).await,
                "{symbol} at {address}"
            );
        }
    }
    files.write(b"junk");
    program.signal("HUP").await;
    let line = wait_for_log(&mut program, "rejected").await;
    assert!(
        line.contains(&files.descriptor_set()) && line.contains("buf build"),
        "{line}"
    );
    assert!(is_symbol_known(&program.client_address, "shop.v1.Order").await);
    program.signal("TERM").await;
    assert_eq!(program.wait_for_exit().await, Some(0));
}

// Rules: TYPES-3
#[tokio::test]
async fn sighup_with_nothing_to_reload_does_not_stop_server() {
    let mut program = ServeProcess::serve(&[]).await;
    program.signal("HUP").await;
    wait_for_log(&mut program, "nothing to reload").await;
    assert_eq!(
        program.run_command(&["healthcheck"]).await.status.code(),
        Some(0)
    );
}

// Rules: TYPES-2
#[tokio::test]
async fn invalid_descriptor_set_exits_with_2_and_names_file() {
    let files = TestFiles::new(b"junk");
    let set = files.descriptor_set();
    for (set, expected) in [
        (set.as_str(), "not a descriptor set"),
        ("/nowhere", "failed to read"),
    ] {
        let output =
            run_command(&["serve", "--listen", "127.0.0.1:0", "--descriptor-set", set]).await;
        assert_eq!(output.status.code(), Some(2));
        let stderr = stderr(&output);
        assert!(
            stderr.contains(set) && stderr.contains(expected),
            "{stderr}"
        );
    }
    let output = run_command(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--reflection-upstream",
        "ftp://x",
    ])
    .await;
    assert_eq!(output.status.code(), Some(2));
}

// Rules: TYPES-5
#[tokio::test]
async fn reflection_lists_services_and_continues_after_unknown_symbol() {
    let program = ServeProcess::serve(&[]).await;
    for (address, service) in [
        (&program.client_address, "google.longrunning.Operations"),
        (&program.worker_address, "longrunning.v1.OperationWorker"),
    ] {
        let mut client = ServerReflectionClient::new(connect(address).await);
        let extension = |number| {
            MessageRequest::FileContainingExtension(ExtensionRequest {
                containing_type: "google.protobuf.MethodOptions".into(),
                extension_number: number,
            })
        };
        let message_requests = [
            MessageRequest::FileContainingSymbol("no.Such".into()),
            MessageRequest::FileByFilename("no/such.proto".into()),
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol(service.to_owned()),
            MessageRequest::FileByFilename("google/rpc/status.proto".into()),
            // The number of google.longrunning.operation_info.
            extension(1049),
            extension(7),
            MessageRequest::AllExtensionNumbersOfType("google.protobuf.MethodOptions".into()),
        ];
        let requests = message_requests.map(|message_request| v1::ServerReflectionRequest {
            host: "h".into(),
            message_request: Some(message_request),
        });
        let responses = client.server_reflection_info(iter(requests)).await.unwrap();
        let mut responses = responses.into_inner();
        let mut seen = Vec::new();
        while let Some(response) = responses.message().await.unwrap() {
            assert_eq!(response.valid_host, "h");
            seen.push(match response.message_response.unwrap() {
                MessageResponse::ErrorResponse(error) => format!("error {}", error.error_code),
                MessageResponse::ListServicesResponse(list) => {
                    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
                    for name in [
                        service,
                        "grpc.health.v1.Health",
                        "grpc.reflection.v1.ServerReflection",
                    ] {
                        assert!(names.contains(&name), "{names:?}");
                    }
                    "services".to_owned()
                }
                MessageResponse::FileDescriptorResponse(_) => "file".to_owned(),
                MessageResponse::AllExtensionNumbersResponse(all) => {
                    assert!(all.extension_number.contains(&1049));
                    "numbers".to_owned()
                }
            });
        }
        let expected = [
            "error 5", "error 5", "services", "file", "file", "file", "error 5", "numbers",
        ];
        assert_eq!(seen, expected);
    }
}

/// Serves reflection of the shop service on a Unix socket.
fn serve_reflection(path: &str, is_alpha: bool) {
    let set = shop_descriptor_set(&format!("{ITEM_MESSAGE} {SHOP_SERVICE}"));
    let builder = Builder::configure().register_encoded_file_descriptor_set(&set);
    let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
    let mut server = Server::builder();
    let router = if is_alpha {
        server.add_service(builder.build_v1alpha().unwrap())
    } else {
        server.add_service(builder.build_v1().unwrap())
    };
    tokio::spawn(router.serve_with_incoming(incoming));
}

// Rules: TYPES-4
#[tokio::test]
async fn upstream_types_are_loaded_by_v1_and_v1alpha_reflection() {
    for is_alpha in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("shop.sock");
        let socket = socket.to_str().unwrap();
        serve_reflection(socket, is_alpha);
        let mut program =
            ServeProcess::serve(&["--reflection-upstream", &format!("unix:{socket}")]).await;
        let line = wait_for_log(&mut program, "types loaded").await;
        assert!(
            line.contains("files=1") && line.contains("messages=1"),
            "{line}"
        );
        assert!(is_symbol_known(&program.client_address, "shop.v1.Item").await);
    }
}

// Rules: TYPES-4
#[tokio::test]
async fn unreachable_upstream_is_retried_while_server_serves() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shop.sock");
    let socket = socket.to_str().unwrap();
    let mut program =
        ServeProcess::serve(&["--reflection-upstream", &format!("unix:{socket}")]).await;
    wait_for_log(&mut program, "upstream reflection unavailable").await;
    assert_eq!(
        program.run_command(&["healthcheck"]).await.status.code(),
        Some(0)
    );
    serve_reflection(socket, false);
    wait_for_log(&mut program, "types loaded").await;
    assert!(is_symbol_known(&program.client_address, "shop.v1.Item").await);
}

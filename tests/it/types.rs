//! Message types of the users, in the program: descriptor sets, SIGHUP, gRPC
//! reflection both ways, and what the commands print.

use std::path::Path;

use serde_json::Value;
use tokio::net::UnixListener;
use tokio_stream::{iter, wrappers::UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::Builder,
};

use crate::support::{
    program::{Program, complained, run, said},
    protos::{ITEM, SERVICE, shop},
};

const ORDER: &str = "message Order { string id = 1; }";
const TYPED: &str = r#"{"@type":"type.googleapis.com/shop.v1.Item","title":"bear","cents":"1250",
    "extra":{"@type":"type.googleapis.com/google.protobuf.Empty"}}"#;

/// A directory with a file for a descriptor set, and a config file with a queue
/// that answers with its input.
struct Files(tempfile::TempDir);

impl Files {
    fn new(set: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Self(directory);
        files.write(set);
        let config = format!(
            "descriptor_sets = [{:?}]\n[[queue]]\nname = \"echo\"\ncommand = [\"cat\"]\n",
            files.set()
        );
        std::fs::write(files.config(), config).unwrap();
        files
    }

    fn write(&self, set: &[u8]) {
        std::fs::write(self.set(), set).unwrap();
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.0.path();
        path.join(name).to_str().unwrap().to_owned()
    }

    fn set(&self) -> String {
        self.path("shop.binpb")
    }

    fn config(&self) -> String {
        self.path("config.toml")
    }
}

async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// Whether both versions of the reflection at this address know a symbol.
async fn is_known(address: &str, symbol: &str) -> bool {
    let channel = channel(address).await;
    let mut newer = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let question = v1::server_reflection_request::MessageRequest::FileContainingSymbol;
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question(symbol.to_owned())),
    };
    let answers = newer.server_reflection_info(iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    use v1::server_reflection_response::MessageResponse as Answer;
    let in_newer = matches!(
        answer.message_response,
        Some(Answer::FileDescriptorResponse(_))
    );

    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let question = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol;
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question(symbol.to_owned())),
    };
    let answers = older.server_reflection_info(iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    use v1alpha::server_reflection_response::MessageResponse as AlphaAnswer;
    let in_older = matches!(
        answer.message_response,
        Some(AlphaAnswer::FileDescriptorResponse(_))
    );
    assert_eq!(in_newer, in_older, "{symbol}");
    in_newer
}

async fn until(program: &mut Program, words: &str) -> String {
    loop {
        let line = program.line().await;
        if line.contains(words) {
            return line;
        }
    }
}

/// Has an operation that is done with a typed response; returns its name.
async fn typed_operation(program: &Program) -> String {
    let workers = format!("http://{}", program.workers);
    let submitted = program
        .ask(&[
            "submit", "echo", "--type", "shop.v1.Item", "--wait", "--output", "json",
            "--worker-endpoint", &workers, "--input",
            r#"{"title":"bear","cents":1250,"extra":{"@type":"type.googleapis.com/google.protobuf.Empty"}}"#,
        ])
        .await;
    assert_eq!(
        submitted.status.code(),
        Some(0),
        "{}",
        complained(&submitted)
    );
    let operation: Value = serde_json::from_str(said(&submitted)).unwrap();
    let expected: Value = serde_json::from_str(TYPED).unwrap();
    assert_eq!(operation["response"], expected);
    operation["name"].as_str().unwrap().to_owned()
}

// JSON-5.
#[tokio::test]
async fn commands_print_and_submit_types_of_the_server_without_any_flag() {
    let files = Files::new(&shop(ITEM));
    let program = Program::serve(&["--config", &files.config()]).await;
    let name = typed_operation(&program).await;
    for command in ["get", "wait", "watch", "list"] {
        let name = if command == "list" { "-" } else { &name };
        let printed = program.ask(&[command, name, "--output", "json"]).await;
        assert!(
            said(&printed).contains("\"1250\""),
            "{command}: {}",
            said(&printed)
        );
    }
    let table = program.ask(&["get", &name]).await;
    assert!(
        said(&table).contains("\"cents\":\"1250\""),
        "{}",
        said(&table)
    );
}

#[tokio::test]
async fn a_type_that_nobody_knows_is_printed_as_base64_and_a_descriptor_set_helps() {
    let files = Files::new(&shop(ITEM));
    let mut program = Program::serve(&["--config", &files.config()]).await;
    let name = typed_operation(&program).await;
    files.write(&shop(ORDER));
    program.signal("HUP").await;
    until(&mut program, "types loaded").await;
    let bare = program.ask(&["get", &name, "--output", "json"]).await;
    assert!(
        said(&bare).contains("\"value\": \"CgRiZWFy"),
        "{}",
        said(&bare)
    );
    files.write(&shop(ITEM));
    let known = program
        .ask(&[
            "get",
            &name,
            "--output",
            "json",
            "--descriptor-set",
            &files.set(),
        ])
        .await;
    assert!(said(&known).contains("\"1250\""), "{}", said(&known));
    let refused = program
        .ask(&["get", &name, "--descriptor-set", "/nowhere"])
        .await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(complained(&refused).contains("/nowhere"));
}

#[tokio::test]
async fn sighup_reads_the_sets_again_and_a_broken_one_leaves_the_old_types() {
    let files = Files::new(&shop(ITEM));
    let mut program = Program::serve(&["--descriptor-set", &files.set()]).await;
    assert!(is_known(&program.clients, "shop.v1.Item").await);
    assert!(!is_known(&program.clients, "shop.v1.Order").await);
    files.write(&shop(&format!("{ITEM} {ORDER}")));
    program.signal("HUP").await;
    let line = until(&mut program, "types loaded").await;
    assert!(
        line.contains("files=1") && line.contains("messages=2"),
        "{line}"
    );
    for address in [&program.clients, &program.workers] {
        for symbol in ["shop.v1.Order", "shop.v1.Item.cents"] {
            assert!(is_known(address, symbol).await, "{symbol} at {address}");
        }
    }
    files.write(b"junk");
    program.signal("HUP").await;
    let line = until(&mut program, "refused").await;
    assert!(
        line.contains(&files.set()) && line.contains("buf build"),
        "{line}"
    );
    assert!(is_known(&program.clients, "shop.v1.Order").await);
    program.signal("TERM").await;
    assert_eq!(program.end().await, Some(0));
}

#[tokio::test]
async fn sighup_without_anything_to_reload_does_not_end_the_server() {
    let mut program = Program::serve(&[]).await;
    program.signal("HUP").await;
    until(&mut program, "nothing to reload").await;
    assert_eq!(program.ask(&["healthcheck"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_bad_descriptor_set_ends_the_start_with_2_and_names_the_file() {
    let files = Files::new(b"junk");
    let set = files.set();
    for (set, problem) in [
        (set.as_str(), "no descriptor set"),
        ("/nowhere", "cannot read"),
    ] {
        let output = run(&["serve", "--listen", "127.0.0.1:0", "--descriptor-set", set]).await;
        assert_eq!(output.status.code(), Some(2));
        let complaint = complained(&output);
        assert!(
            complaint.contains(set) && complaint.contains(problem),
            "{complaint}"
        );
    }
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--reflect", "ftp://x"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn reflection_knows_what_serves_and_answers_on_after_something_unknown() {
    let program = Program::serve(&[]).await;
    for (address, own) in [
        (&program.clients, "google.longrunning.Operations"),
        (&program.workers, "longrunning.v1.OperationWorker"),
    ] {
        let mut client =
            v1::server_reflection_client::ServerReflectionClient::new(channel(address).await);
        use v1::{
            ExtensionRequest, server_reflection_request::MessageRequest as Question,
            server_reflection_response::MessageResponse as Answer,
        };
        let extension = |number| {
            Question::FileContainingExtension(ExtensionRequest {
                containing_type: "google.protobuf.MethodOptions".into(),
                extension_number: number,
            })
        };
        let questions = [
            Question::FileContainingSymbol("no.Such".into()),
            Question::FileByFilename("no/such.proto".into()),
            Question::ListServices(String::new()),
            Question::FileContainingSymbol(own.to_owned()),
            Question::FileByFilename("google/rpc/status.proto".into()),
            // google.longrunning.operation_info.
            extension(1049),
            extension(7),
            Question::AllExtensionNumbersOfType("google.protobuf.MethodOptions".into()),
        ];
        let requests = questions.map(|question| v1::ServerReflectionRequest {
            host: "h".into(),
            message_request: Some(question),
        });
        let answers = client.server_reflection_info(iter(requests)).await.unwrap();
        let mut answers = answers.into_inner();
        let mut seen = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            assert_eq!(answer.valid_host, "h");
            seen.push(match answer.message_response.unwrap() {
                Answer::ErrorResponse(error) => format!("error {}", error.error_code),
                Answer::ListServicesResponse(list) => {
                    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
                    for name in [
                        own,
                        "grpc.health.v1.Health",
                        "grpc.reflection.v1.ServerReflection",
                    ] {
                        assert!(names.contains(&name), "{names:?}");
                    }
                    "services".to_owned()
                }
                Answer::FileDescriptorResponse(_) => "file".to_owned(),
                Answer::AllExtensionNumbersResponse(all) => {
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

/// Serves the reflection of a shop on a Unix socket.
fn serve_shop(path: &str, is_alpha: bool) {
    let set = shop(&format!("{ITEM} {SERVICE}"));
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

#[tokio::test]
async fn the_types_of_an_upstream_are_known_in_either_version_of_reflection() {
    for is_alpha in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("shop.sock");
        let socket = socket.to_str().unwrap();
        serve_shop(socket, is_alpha);
        let mut program = Program::serve(&["--reflect", &format!("unix:{socket}")]).await;
        let line = until(&mut program, "types loaded").await;
        assert!(
            line.contains("files=1") && line.contains("messages=1"),
            "{line}"
        );
        assert!(is_known(&program.clients, "shop.v1.Item").await);
    }
}

#[tokio::test]
async fn an_upstream_that_is_away_is_asked_again_while_the_server_serves() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shop.sock");
    let socket = socket.to_str().unwrap();
    let mut program = Program::serve(&["--reflect", &format!("unix:{socket}")]).await;
    until(&mut program, "it is asked again").await;
    assert_eq!(program.ask(&["healthcheck"]).await.status.code(), Some(0));
    serve_shop(socket, false);
    until(&mut program, "types loaded").await;
    assert!(is_known(&program.clients, "shop.v1.Item").await);
}

//! Compiles `proto/` without protoc: protox parses, prost generates messages and
//! clients, tonic-build generates the servers.
//!
//! The servers are declared by hand because their responses are already encoded
//! and need a custom codec.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use tonic_build::manual;

const PROTOS: &[&str] = &[
    "google/longrunning/operations.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "longrunning/demo/v1/checksum.proto",
    "longrunning/v1/admin.proto",
    "longrunning/v1/metadata.proto",
    "longrunning/v1/watch.proto",
    "longrunning/v1/worker.proto",
];

#[expect(
    clippy::disallowed_methods,
    reason = "cargo passes the output directory in the environment"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut descriptors = protox::compile(PROTOS, ["proto"])?;

    // Reflection returns the comments of the services. Those of imported types would
    // only make the binary larger.
    for file in &mut descriptors.file {
        if !is_service_file(file.name()) {
            file.source_code_info = None;
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    // Google's comments contain indented examples, which rustdoc would run.
    for file in &mut descriptors.file {
        if file.name().starts_with("google/") {
            file.source_code_info = None;
        }
    }
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)?;

    manual::Builder::new()
        .build_client(false)
        .build_transport(false)
        .compile(&[
            operations(),
            operation_watch(),
            operation_worker(),
            operation_admin(),
            checksums(),
        ]);
    Ok(())
}

fn is_service_file(name: &str) -> bool {
    name.starts_with("google/longrunning/") || name.starts_with("longrunning/")
}

fn operations() -> manual::Service {
    manual::Service::builder()
        .package("google.longrunning")
        .name("Operations")
        .method(method(
            "ListOperations",
            "google::longrunning::ListOperationsRequest",
        ))
        .method(method(
            "GetOperation",
            "google::longrunning::GetOperationRequest",
        ))
        .method(method(
            "DeleteOperation",
            "google::longrunning::DeleteOperationRequest",
        ))
        .method(method(
            "CancelOperation",
            "google::longrunning::CancelOperationRequest",
        ))
        .method(method(
            "WaitOperation",
            "google::longrunning::WaitOperationRequest",
        ))
        .build()
}

fn operation_watch() -> manual::Service {
    manual::Service::builder()
        .package("longrunning.v1")
        .name("OperationWatch")
        .method(stream(
            "WatchOperation",
            "longrunning::v1::WatchOperationRequest",
        ))
        .build()
}

fn operation_worker() -> manual::Service {
    manual::Service::builder()
        .package("longrunning.v1")
        .name("OperationWorker")
        .method(method(
            "CreateOperation",
            "longrunning::v1::CreateOperationRequest",
        ))
        .method(method(
            "LeaseOperations",
            "longrunning::v1::LeaseOperationsRequest",
        ))
        .method(method("Heartbeat", "longrunning::v1::HeartbeatRequest"))
        .method(method(
            "FinishOperation",
            "longrunning::v1::FinishOperationRequest",
        ))
        .method(stream(
            "WatchDirectives",
            "longrunning::v1::WatchDirectivesRequest",
        ))
        .build()
}

fn operation_admin() -> manual::Service {
    manual::Service::builder()
        .package("longrunning.v1")
        .name("OperationAdmin")
        .method(method(
            "ListOperations",
            "longrunning::v1::ListOperationsRequest",
        ))
        .method(method(
            "CancelOperation",
            "longrunning::v1::CancelOperationRequest",
        ))
        .build()
}

fn checksums() -> manual::Service {
    manual::Service::builder()
        .package("longrunning.demo.v1")
        .name("Checksums")
        .method(method(
            "CreateChecksum",
            "longrunning::demo::v1::CreateChecksumRequest",
        ))
        .build()
}

fn method(route: &str, input: &str) -> manual::Method {
    method_builder(route, input).build()
}

fn stream(route: &str, input: &str) -> manual::Method {
    method_builder(route, input).server_streaming().build()
}

fn method_builder(route: &str, input: &str) -> manual::MethodBuilder {
    let mut name = String::new();
    for character in route.chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_lowercase());
    }
    manual::Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::proto::{input}"))
        .output_type("crate::grpc::codec::EncodedMessage")
        .codec_path("crate::grpc::codec::EncodedCodec")
}

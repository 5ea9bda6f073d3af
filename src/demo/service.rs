//! The service `longrunning.demo.v1.Checksums`, whose method creates an operation
//! and returns it.

use std::path::{Path, PathBuf};

use tonic::{Request, Response};

use super::checksum::QUEUE;
use crate::{
    error::{Error, Result},
    grpc::codec::{EncodedMessage, UnaryResult},
    operation::{name::excerpt, payload::Payload},
    proto::longrunning::demo::v1::CreateChecksumRequest,
    service::new_operation::NewOperation,
    service::operations::Operations,
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    tonic::include_proto!("longrunning.demo.v1.Checksums");
}

pub(crate) use generated::checksums_server::ChecksumsServer;

/// Serves `longrunning.demo.v1.Checksums`.
#[derive(Clone, Debug)]
pub(crate) struct ChecksumService {
    operations: Operations,
    root: PathBuf,
}

/// Creates the service for directories below `root`, a canonical path.
pub(crate) fn checksums_server(
    operations: &Operations,
    root: PathBuf,
) -> ChecksumsServer<ChecksumService> {
    ChecksumsServer::new(ChecksumService {
        operations: operations.clone(),
        root,
    })
}

/// Creates the request for an operation that hashes `directory`.
pub(crate) fn new_checksum_operation(directory: &Path) -> NewOperation {
    let directory = directory.display().to_string();
    let input = Payload::pack(&CreateChecksumRequest { directory });
    NewOperation::queued(QUEUE)
        .input(input.any().clone())
        .label("demo", "checksum")
}

#[tonic::async_trait]
impl generated::checksums_server::Checksums for ChecksumService {
    async fn create_checksum(&self, request: Request<CreateChecksumRequest>) -> UnaryResult {
        let (service, directory) = (self.clone(), request.into_inner().directory);
        // A slow disk must not block the other calls of this thread.
        let resolved =
            tokio::task::spawn_blocking(move || service.resolve_directory(&directory)).await;
        let directory = resolved.map_err(|_| Error::ShuttingDown)??;
        let new_operation = new_checksum_operation(&directory);
        let created = self.operations.create(new_operation).await?;
        Ok(Response::new(EncodedMessage::Operation(created.operation)))
    }
}

// === impl ChecksumService ===

impl ChecksumService {
    /// Resolves a requested directory below the root. A directory that does not
    /// exist is accepted; its operation then fails with `DIRECTORY_NOT_FOUND`.
    ///
    /// # Errors
    /// `DIRECTORY_OUTSIDE_ROOT` if it is not below the root.
    fn resolve_directory(&self, directory: &str) -> Result<PathBuf> {
        let requested = self.root.join(directory);
        let canonical = match requested.canonicalize() {
            Ok(path) => Some(path),
            Err(_) if !directory.split('/').any(|part| part == "..") => Some(requested),
            // `..` cannot be resolved in a path that does not exist.
            Err(_) => None,
        };
        let below_root = canonical.filter(|path| path.starts_with(&self.root));
        below_root.ok_or_else(|| {
            let message = format!(
                "{:?} is not below {:?}, the root directory of this demo",
                excerpt(directory),
                self.root
            );
            Error::invalid("directory", "DIRECTORY_OUTSIDE_ROOT", message)
        })
    }
}

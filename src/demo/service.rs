//! longrunning.demo.v1.Checksums: the method that starts the slow work and
//! returns the operation. The work itself lives in `checksum`.

use std::path::{Path, PathBuf};

use tonic::{Request, Response, Status};

use super::checksum::QUEUE;
use crate::{
    error::{Error, Result},
    grpc::codec::EncodedMessage,
    operation::{name::excerpt, payload::Payload},
    proto::longrunning::demo::v1::CreateChecksumRequest,
    service::new_operation::NewOperation,
    service::operations::Operations,
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    include!(concat!(
        env!("OUT_DIR"),
        "/longrunning.demo.v1.Checksums.rs"
    ));
}

pub(crate) use generated::checksums_server::ChecksumsServer;

/// Serves longrunning.demo.v1.Checksums.
#[derive(Clone, Debug)]
pub(crate) struct ChecksumService {
    operations: Operations,
    root: PathBuf,
}

/// The service for the directories below `root`.
pub(crate) fn checksums_server(
    operations: &Operations,
    root: PathBuf,
) -> ChecksumsServer<ChecksumService> {
    ChecksumsServer::new(ChecksumService {
        operations: operations.clone(),
        root,
    })
}

/// An operation that hashes `directory`.
pub(crate) fn new_checksum_operation(directory: &Path) -> NewOperation {
    let directory = directory.display().to_string();
    let input = Payload::pack(&CreateChecksumRequest { directory });
    NewOperation::queued(QUEUE)
        .input(input.any().clone())
        .label("demo", "checksum")
}

#[tonic::async_trait]
impl generated::checksums_server::Checksums for ChecksumService {
    async fn create_checksum(
        &self,
        request: Request<CreateChecksumRequest>,
    ) -> Result<Response<EncodedMessage>, Status> {
        let (service, directory) = (self.clone(), request.into_inner().directory);
        // A slow disk must not hold up the other calls of the lane.
        let resolved =
            tokio::task::spawn_blocking(move || service.resolve_directory(&directory)).await;
        let directory = resolved.map_err(|_| Error::ShuttingDown)??;
        let created = self
            .operations
            .create(new_checksum_operation(&directory))
            .await?;
        Ok(Response::new(EncodedMessage::Operation(created.operation)))
    }
}

// === impl ChecksumService ===

impl ChecksumService {
    /// The directory that is asked for, if it lies inside the offered one. One
    /// that does not exist is let through: the operation will say so.
    fn resolve_directory(&self, directory: &str) -> Result<PathBuf> {
        let requested = self.root.join(directory);
        let canonical = match requested.canonicalize() {
            Ok(path) => Some(path),
            Err(_) if !directory.split('/').any(|part| part == "..") => Some(requested),
            // Where it would lead cannot be told.
            Err(_) => None,
        };
        if let Some(path) = canonical.filter(|path| path.starts_with(&self.root)) {
            return Ok(path);
        }
        let message = format!(
            "{:?} is not inside of {:?}, the directory that this demo offers",
            excerpt(directory),
            self.root
        );
        Err(Error::invalid(
            "directory",
            "DIRECTORY_OUTSIDE_ROOT",
            message,
        ))
    }
}

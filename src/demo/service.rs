//! longrunning.demo.v1.Checksums: the method that starts the slow work and
//! returns the operation. The work itself lives in `checksum`.

use std::path::{Path, PathBuf};

use tonic::{Request, Response, Status};

use super::checksum::QUEUE;
use crate::{
    error::{Error, Result},
    grpc::codec::Encoded,
    operation::{name::excerpt, payload::Payload},
    operations::creation::NewOperation,
    operations::operations::Operations,
    proto::longrunning::demo::v1::CreateChecksumRequest,
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
pub(crate) fn new_checksum(directory: &Path) -> NewOperation {
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
    ) -> Result<Response<Encoded>, Status> {
        let (service, directory) = (self.clone(), request.into_inner().directory);
        // A slow disk must not hold up the other calls of the lane.
        let inside = tokio::task::spawn_blocking(move || service.inside(&directory)).await;
        let directory = inside.map_err(|_| Error::ShuttingDown)??;
        let created = self.operations.create(new_checksum(&directory)).await?;
        Ok(Response::new(Encoded::Operation(created.operation)))
    }
}

// === impl ChecksumService ===

impl ChecksumService {
    /// The directory that is asked for, if it lies inside the offered one. One
    /// that does not exist is let through: the operation will say so.
    fn inside(&self, directory: &str) -> Result<PathBuf> {
        let asked = self.root.join(directory);
        let real = match asked.canonicalize() {
            Ok(real) => Some(real),
            Err(_) if !directory.split('/').any(|part| part == "..") => Some(asked),
            // Where it would lead cannot be told.
            Err(_) => None,
        };
        if let Some(real) = real.filter(|real| real.starts_with(&self.root)) {
            return Ok(real);
        }
        let rule = format!(
            "{:?} is not inside of {:?}, the directory that this demo offers",
            excerpt(directory),
            self.root
        );
        Err(Error::invalid("directory", "DIRECTORY_OUTSIDE", rule))
    }
}

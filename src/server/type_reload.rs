//! Loads message types into the type registry: from descriptor set files at start
//! and on SIGHUP, and from an upstream server by reflection, with retries.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use prost_reflect::DescriptorPool;
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Endpoint};
use tracing::{debug, error, info, warn};

use super::config::Config;
use crate::{
    client::backoff::{Backoff, root_cause},
    reflection::client::ReflectionClient,
    tasks::run_blocking,
    types::{DescriptorSet, InvalidDescriptorSet, TypeRegistry, TypeSource},
};

/// Time limit for fetching all types of the upstream, with the connect.
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The types of all services of a server.
static BUILT_IN_TYPES: LazyLock<DescriptorPool> = LazyLock::new(|| {
    TypeRegistry::built_in_pool_with(&[
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])
});

/// Keeps the type registry of a server up to date.
#[derive(Debug)]
pub(super) struct TypeReloader {
    types: TypeRegistry,
    files: Vec<PathBuf>,
    upstream: Option<(String, Endpoint)>,
}

/// Error of the configured sources of message types.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypeReloadError {
    /// The URL of the reflection upstream is invalid.
    #[error("invalid reflection upstream {url:?}: {source}")]
    InvalidUpstream {
        /// The configured URL.
        url: String,
        /// The error of the URL.
        source: tonic::transport::Error,
    },
    /// A descriptor set file is unreadable or invalid.
    #[error(transparent)]
    InvalidDescriptorSet(#[from] InvalidDescriptorSet),
}

/// Error of one attempt to fetch the types of the upstream.
#[derive(Debug, thiserror::Error)]
enum ReflectionError {
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error(transparent)]
    InvalidDescriptorSet(#[from] InvalidDescriptorSet),
    #[error("no response within {} s", REFLECTION_TIMEOUT.as_secs())]
    Timeout,
}

// === impl TypeReloader ===

impl TypeReloader {
    /// Reads the descriptor set files. `run` fetches from the upstream, which may start
    /// after this server.
    ///
    /// # Errors
    /// [`TypeReloadError`] if a file or the upstream's URL is invalid.
    pub(super) async fn load(config: &Config) -> Result<Self, TypeReloadError> {
        let endpoint = |url: String| match Endpoint::from_shared(url.clone()) {
            Ok(endpoint) => Ok((url, endpoint.connect_timeout(CONNECT_TIMEOUT))),
            Err(source) => Err(TypeReloadError::InvalidUpstream { url, source }),
        };
        let upstream = config.reflection_upstream.clone();
        let reloader = Self {
            types: TypeRegistry::with_built_in(&BUILT_IN_TYPES),
            files: config.descriptor_sets.clone(),
            upstream: upstream.map(endpoint).transpose()?,
        };
        reloader.read_files().await?;
        Ok(reloader)
    }

    pub(super) fn types(&self) -> &TypeRegistry {
        &self.types
    }

    /// Runs until `stop_token` is cancelled. Fetches from the upstream, with retries
    /// until it succeeds; re-reads the files and fetches again on each reload signal.
    pub(super) async fn run(
        self,
        mut reload_signals: mpsc::Receiver<()>,
        stop_token: CancellationToken,
    ) {
        let mut backoff = Backoff::default();
        let mut needs_fetch = self.upstream.is_some();
        let mut already_warned = false;
        let mut next_attempt = Instant::now();
        loop {
            let fetch = async {
                sleep_until(next_attempt).await;
                self.fetch_from_upstream().await
            };
            select! {
                () = stop_token.cancelled() => return,
                Some(()) = reload_signals.recv() => {
                    self.reload_files().await;
                    needs_fetch = self.upstream.is_some();
                    already_warned = false;
                    next_attempt = Instant::now();
                    backoff.reset();
                }
                fetched = fetch, if needs_fetch => match fetched {
                    Ok(()) => needs_fetch = false,
                    Err(error) if error.is_permanent() => {
                        needs_fetch = false;
                        warn!(%error, "upstream descriptors rejected; send SIGHUP to retry");
                    }
                    Err(error) => {
                        let retry_in = backoff.next_delay();
                        if already_warned {
                            debug!(%error, ?retry_in, "upstream reflection still unavailable");
                        } else {
                            warn!(%error, ?retry_in, "upstream reflection unavailable, retrying");
                        }
                        already_warned = true;
                        next_attempt = Instant::now() + retry_in;
                    }
                },
            }
        }
    }

    async fn reload_files(&self) {
        if self.files.is_empty() && self.upstream.is_none() {
            info!(
                "received SIGHUP, but nothing to reload: no --descriptor-set and no --reflection-upstream"
            );
        }
        if let Err(error) = self.read_files().await {
            error!(%error, "descriptor sets rejected; keeping the previous ones");
        }
    }

    /// Reads the files on a blocking thread: a pipe may have no writer, and large sets take long.
    async fn read_files(&self) -> Result<(), InvalidDescriptorSet> {
        if self.files.is_empty() {
            return Ok(());
        }
        let (types, files) = (self.types.clone(), self.files.clone());
        run_blocking(move || load_files(&types, &files)).await
    }

    async fn fetch_from_upstream(&self) -> Result<(), ReflectionError> {
        let Some((url, endpoint)) = &self.upstream else {
            return Ok(());
        };
        // Fetch the types of the descriptor sets too: a reload may remove them there.
        let known_types = self.types.up_to(TypeSource::Program);
        let fetch = async {
            let channel = endpoint.connect().await;
            let channel = channel.map_err(|error| Status::unavailable(root_cause(&error)))?;
            let mut client = ReflectionClient::new(channel);
            client.fetch_all_files(&known_types).await
        };
        let files = timeout(REFLECTION_TIMEOUT, fetch).await;
        let files = files.map_err(|_| ReflectionError::Timeout)??;
        let sets = vec![DescriptorSet::from_encoded_files(url.clone(), files)?];
        let loaded = self.types.replace_source(TypeSource::Reflection, sets)?;
        info!(
            upstream = url,
            files = loaded.file_count,
            messages = loaded.message_count,
            "types loaded"
        );
        Ok(())
    }
}

/// Replaces the types of the descriptor sets.
fn load_files(
    types: &TypeRegistry,
    files: &[impl AsRef<Path>],
) -> Result<(), InvalidDescriptorSet> {
    let sets = files.iter().map(|path| DescriptorSet::read(path.as_ref()));
    let sets = sets.collect::<Result<Vec<_>, _>>()?;
    let count = sets.len();
    let loaded = types.replace_source(TypeSource::Files, sets)?;
    info!(
        descriptor_sets = count,
        files = loaded.file_count,
        messages = loaded.message_count,
        "types loaded"
    );
    if let Some(error) = loaded.dropped_reflection {
        warn!(%error, "dropped upstream types that conflict with the descriptor sets; fetching them again");
    }
    Ok(())
}

// === impl ReflectionError ===

impl ReflectionError {
    /// Returns `true` if a retry would fail in the same way.
    fn is_permanent(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == Code::Unimplemented,
            Self::InvalidDescriptorSet(_) => true,
            Self::Timeout => false,
        }
    }
}

//! Where the message types of a server come from, beside those built in: files
//! that are read at start and at each SIGHUP, and the reflection of a server
//! upstream, which is asked until it answers.

use std::{path::PathBuf, sync::LazyLock, time::Duration};

use prost_reflect::DescriptorPool;
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Endpoint};
use tracing::{debug, error, info, warn};

use super::{app::AppError, config::Config};
use crate::{
    client::{backoff::Backoff, cause::root_cause},
    reflection::client::ReflectionClient,
    types::{DescriptorSet, InvalidDescriptorSet, TypeRegistry, TypeSource},
};

/// How long the upstream may take to tell all its types.
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection to it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The types that are always there: those of all services of a server.
static BUILT_IN_TYPES: LazyLock<DescriptorPool> = LazyLock::new(|| {
    TypeRegistry::built_in_pool_with(&[
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])
});

/// The types of a server, and where more of them are found.
#[derive(Debug)]
pub(super) struct TypeReloader {
    types: TypeRegistry,
    files: Vec<PathBuf>,
    upstream: Option<(String, Endpoint)>,
}

/// Why the upstream's types are not here.
#[derive(Debug, thiserror::Error)]
enum ReflectionError {
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error(transparent)]
    InvalidDescriptorSet(#[from] InvalidDescriptorSet),
    #[error("no answer within {} s", REFLECTION_TIMEOUT.as_secs())]
    Timeout,
}

// === impl TypeSources ===

impl TypeReloader {
    /// Reads the files. The upstream is asked later, for it may start later.
    pub(super) fn load(config: &Config) -> Result<Self, AppError> {
        let endpoint = |url: &String| {
            let endpoint = Endpoint::from_shared(url.clone());
            let endpoint =
                endpoint.map_err(|error| AppError::ReflectionUpstream(url.clone(), error))?;
            Ok::<_, AppError>((url.clone(), endpoint.connect_timeout(CONNECT_TIMEOUT)))
        };
        let reloader = Self {
            types: TypeRegistry::with_built_in(&BUILT_IN_TYPES),
            files: config.descriptor_sets.clone(),
            upstream: config
                .reflection_upstream
                .as_ref()
                .map(endpoint)
                .transpose()?,
        };
        reloader.read_files()?;
        Ok(reloader)
    }

    pub(super) fn types(&self) -> &TypeRegistry {
        &self.types
    }

    /// Keeps the types up to date until `stop`: with the files at each hangup,
    /// with the upstream until it has answered, and then at each hangup.
    pub(super) async fn run(self, mut reload_signals: mpsc::Receiver<()>, stop: CancellationToken) {
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
                () = stop.cancelled() => return,
                Some(()) = reload_signals.recv() => {
                    self.reload_files();
                    needs_fetch = self.upstream.is_some();
                    already_warned = false;
                    next_attempt = Instant::now();
                    backoff.reset();
                }
                reflected = fetch, if needs_fetch => match reflected {
                    Ok(()) => needs_fetch = false,
                    Err(reason) if reason.is_permanent() => {
                        needs_fetch = false;
                        warn!(%reason, "the types of the upstream are not taken; SIGHUP asks again");
                    }
                    Err(reason) => {
                        if already_warned {
                            debug!(%reason, "the upstream is still away");
                        } else {
                            warn!(%reason, "the upstream tells no types yet; it is asked again");
                        }
                        already_warned = true;
                        next_attempt = Instant::now() + backoff.next_delay();
                    }
                },
            }
        }
    }

    fn reload_files(&self) {
        if self.files.is_empty() && self.upstream.is_none() {
            info!(
                "SIGHUP: no --descriptor-set and no --reflection-upstream, so there is nothing to reload"
            );
        }
        if let Err(error) = self.read_files() {
            error!(%error, "the descriptor sets are refused; those from before stay");
        }
    }

    fn read_files(&self) -> Result<(), InvalidDescriptorSet> {
        let sets = self.files.iter().map(|path| DescriptorSet::read(path));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        if sets.is_empty() {
            return Ok(());
        }
        let count = sets.len();
        let loaded = self.types.replace_source(TypeSource::Files, sets)?;
        info!(
            descriptor_sets = count,
            files = loaded.file_count,
            messages = loaded.message_count,
            "types loaded"
        );
        if let Some(error) = loaded.dropped_reflection {
            warn!(%error, "the types of the upstream do not fit the descriptor sets; it is asked again");
        }
        Ok(())
    }

    async fn fetch_from_upstream(&self) -> Result<(), ReflectionError> {
        let Some((url, endpoint)) = &self.upstream else {
            return Ok(());
        };
        // It tells all that the files know too: they may be others tomorrow.
        let known_types = self.types.up_to(TypeSource::Program);
        let fetch = async {
            let channel = endpoint.connect().await;
            let channel = channel.map_err(|error| Status::unavailable(root_cause(&error)))?;
            ReflectionClient::new(channel)
                .fetch_all_files(&known_types)
                .await
        };
        let files = timeout(REFLECTION_TIMEOUT, fetch)
            .await
            .map_err(|_| ReflectionError::Timeout)??;
        let set = DescriptorSet::from_encoded_files(url.clone(), files)?;
        let loaded = self
            .types
            .replace_source(TypeSource::Reflection, vec![set])?;
        info!(
            upstream = url,
            files = loaded.file_count,
            messages = loaded.message_count,
            "types loaded"
        );
        Ok(())
    }
}

// === impl ReflectError ===

impl ReflectionError {
    /// Whether another try would end in the same way.
    fn is_permanent(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == Code::Unimplemented,
            Self::InvalidDescriptorSet(_) => true,
            Self::Timeout => false,
        }
    }
}

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
    reflection::client::Reflector,
    remote::{backoff::Backoff, cause::cause},
    types::{DescriptorSet, InvalidTypes, Layer, Types},
};

/// How long the upstream may take to tell all its types.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a connection to it may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The types that are always there: those of all services of a server.
static SERVED: LazyLock<DescriptorPool> = LazyLock::new(|| {
    Types::built_in_with(&[
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])
});

/// The types of a server, and where more of them are found.
#[derive(Debug)]
pub(super) struct TypeSources {
    types: Types,
    files: Vec<PathBuf>,
    upstream: Option<(String, Endpoint)>,
}

/// Why the upstream's types are not here.
#[derive(Debug, thiserror::Error)]
enum ReflectError {
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error(transparent)]
    Types(#[from] InvalidTypes),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Slow,
}

// === impl TypeSources ===

impl TypeSources {
    /// Reads the files. The upstream is asked later, for it may start later.
    pub(super) fn load(config: &Config) -> Result<Self, AppError> {
        let endpoint = |url: &String| {
            let endpoint = Endpoint::from_shared(url.clone());
            let endpoint = endpoint.map_err(|error| AppError::Reflect(url.clone(), error))?;
            Ok::<_, AppError>((url.clone(), endpoint.connect_timeout(CONNECT)))
        };
        let sources = Self {
            types: Types::above(&SERVED),
            files: config.descriptor_sets.clone(),
            upstream: config.reflect.as_ref().map(endpoint).transpose()?,
        };
        sources.read_files()?;
        Ok(sources)
    }

    pub(super) fn types(&self) -> &Types {
        &self.types
    }

    /// Keeps the types up to date until `stop`: with the files at each hangup,
    /// with the upstream until it has answered, and then at each hangup.
    pub(super) async fn keep(self, mut hangups: mpsc::Receiver<()>, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut is_wanted = self.upstream.is_some();
        let mut was_away = false;
        let mut next = Instant::now();
        loop {
            let reflected = async {
                sleep_until(next).await;
                self.reflect().await
            };
            select! {
                () = stop.cancelled() => return,
                Some(()) = hangups.recv() => {
                    self.reload();
                    is_wanted = self.upstream.is_some();
                    was_away = false;
                    next = Instant::now();
                    backoff.reset();
                }
                reflected = reflected, if is_wanted => match reflected {
                    Ok(()) => is_wanted = false,
                    Err(reason) if reason.is_final() => {
                        is_wanted = false;
                        warn!(%reason, "the types of the upstream are not taken; SIGHUP asks again");
                    }
                    Err(reason) => {
                        if was_away {
                            debug!(%reason, "the upstream is still away");
                        } else {
                            warn!(%reason, "the upstream tells no types yet; it is asked again");
                        }
                        was_away = true;
                        next = Instant::now() + backoff.pause();
                    }
                },
            }
        }
    }

    fn reload(&self) {
        if self.files.is_empty() && self.upstream.is_none() {
            info!("SIGHUP: no --descriptor-set and no --reflect, so there is nothing to reload");
        }
        if let Err(reason) = self.read_files() {
            error!(%reason, "the descriptor sets are refused; those from before stay");
        }
    }

    fn read_files(&self) -> Result<(), InvalidTypes> {
        let sets = self.files.iter().map(|path| DescriptorSet::read(path));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        if sets.is_empty() {
            return Ok(());
        }
        let count = sets.len();
        let loaded = self.types.replace(Layer::Files, sets)?;
        info!(
            descriptor_sets = count,
            files = loaded.files,
            messages = loaded.messages,
            "types loaded"
        );
        if let Some(reason) = loaded.left_out {
            warn!(%reason, "the types of the upstream do not fit the descriptor sets; it is asked again");
        }
        Ok(())
    }

    async fn reflect(&self) -> Result<(), ReflectError> {
        let Some((url, endpoint)) = &self.upstream else {
            return Ok(());
        };
        // It tells all that the files know too: they may be others tomorrow.
        let own = self.types.down_to(Layer::Program);
        let asked = async {
            let channel = endpoint.connect().await;
            let channel = channel.map_err(|error| Status::unavailable(cause(&error)))?;
            Reflector::new(channel).all(&own).await
        };
        let files = timeout(ANSWER, asked)
            .await
            .map_err(|_| ReflectError::Slow)??;
        let set = DescriptorSet::of_files(url.clone(), files)?;
        let loaded = self.types.replace(Layer::Reflection, vec![set])?;
        info!(
            upstream = url,
            files = loaded.files,
            messages = loaded.messages,
            "types loaded"
        );
        Ok(())
    }
}

// === impl ReflectError ===

impl ReflectError {
    /// Whether another try would end in the same way.
    fn is_final(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == Code::Unimplemented,
            Self::Types(_) => true,
            Self::Slow => false,
        }
    }
}

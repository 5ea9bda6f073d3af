//! Resolves message types for a command: built in, from descriptor set files, or
//! loaded through the server's reflection.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;
use tokio::time::timeout;

use super::client::{CliError, Endpoint};
use crate::{
    proto::google::longrunning::Operation,
    reflection::client::ReflectionClient,
    types::{DescriptorSet, TypeRegistry, TypeSource},
};

/// The timeout of a reflection call.
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum nesting depth of unknown types that is resolved.
const MAX_FETCH_ROUNDS: usize = 4;

/// The descriptor sets of a command.
#[derive(Args, Debug)]
pub(super) struct TypesArgs {
    /// Descriptor set file with additional message types; repeatable
    #[arg(
        long = "descriptor-set",
        env = "LONGRUNNING_DESCRIPTOR_SET",
        value_name = "FILE",
        value_delimiter = ':'
    )]
    descriptor_sets: Vec<OsString>,
}

/// A type registry that loads unknown types from a server, each at most once.
#[derive(Debug)]
pub(super) struct TypeResolver {
    types: TypeRegistry,
    server: Endpoint,
    requested: BTreeSet<String>,
    fetched: Vec<DescriptorSet>,
}

// === impl TypesArgs ===

impl TypesArgs {
    /// Loads the descriptor set files.
    pub(super) fn load(&self) -> Result<TypeRegistry, CliError> {
        let types = TypeRegistry::built_in();
        let files = non_empty_paths(self.descriptor_sets.clone());
        let sets: Result<_, _> = files.iter().map(|path| DescriptorSet::read(path)).collect();
        let loaded = sets.and_then(|sets| types.replace_source(TypeSource::Files, sets));
        loaded.map(|_| types).map_err(CliError::local)
    }

    /// Loads the files and creates a resolver that loads other types from `server`.
    pub(super) fn resolver(&self, server: &Endpoint) -> Result<TypeResolver, CliError> {
        Ok(TypeResolver {
            types: self.load()?,
            server: server.clone(),
            requested: BTreeSet::new(),
            fetched: Vec::new(),
        })
    }
}

/// Drops empty paths: a compose file passes an unset variable as an empty one.
pub(super) fn non_empty_paths(files: Vec<OsString>) -> Vec<PathBuf> {
    let non_empty = files.into_iter().filter(|file| !file.is_empty());
    non_empty.map(PathBuf::from).collect()
}

// === impl TypeResolver ===

impl TypeResolver {
    /// Returns the registry after loading the unknown types of `operations`. Ignores
    /// errors: types that stay unknown are printed as base64.
    pub(super) async fn resolve_for<'a>(
        &mut self,
        operations: impl IntoIterator<Item = &'a Operation> + Clone,
    ) -> &TypeRegistry {
        for _ in 0..MAX_FETCH_ROUNDS {
            let operations = operations.clone().into_iter();
            let unknown = operations.flat_map(|operation| self.types.unknown_types(operation));
            if !self.fetch(unknown.collect()).await {
                break;
            }
        }
        &self.types
    }

    /// Returns the registry after loading the type `name`. Ignores errors.
    pub(super) async fn resolve(&mut self, name: &str) -> &TypeRegistry {
        if self.types.descriptor(name).is_none() {
            self.fetch(BTreeSet::from([name.to_owned()])).await;
        }
        &self.types
    }

    /// Loads types from the server. Returns `true` if types were added.
    async fn fetch(&mut self, names: BTreeSet<String>) -> bool {
        let new: Vec<String> = names.difference(&self.requested).cloned().collect();
        if new.is_empty() {
            return false;
        }
        self.requested.extend(new.iter().cloned());
        let fetched_files = async {
            let channel = self.server.connect(Some(REFLECTION_TIMEOUT)).await.ok()?;
            let mut client = ReflectionClient::new(channel);
            client.fetch_symbol_files(new, &self.types).await.ok()
        };
        let Ok(Some(files)) = timeout(REFLECTION_TIMEOUT, fetched_files).await else {
            return false;
        };
        let Ok(set) = DescriptorSet::from_encoded_files(self.server.to_string(), files) else {
            return false;
        };
        let mut fetched = self.fetched.clone();
        fetched.push(set);
        let replaced = self
            .types
            .replace_source(TypeSource::Reflection, fetched.clone());
        if replaced.is_ok() {
            self.fetched = fetched;
        }
        replaced.is_ok()
    }
}

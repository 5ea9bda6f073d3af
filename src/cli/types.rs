//! The message types that a command knows: those built in, those of the files
//! that the user names, and those that the server tells of by its reflection.
//! How messages look lives in `render`.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;
use tokio::time::timeout;

use super::client::{CallError, Endpoint};
use crate::{
    proto::google::longrunning::Operation,
    reflection::client::Reflector,
    types::{DescriptorSet, Layer, Types},
};

/// How long the server may take to tell of a type.
const ANSWER: Duration = Duration::from_secs(5);
/// An unknown type may hold another one, and that another one.
const ROUNDS: usize = 4;

/// Which types a command knows.
#[derive(Args, Debug)]
pub(super) struct TypesArgs {
    /// A file with message types; repeatable. A server that is asked tells of its own
    #[arg(
        long = "descriptor-set",
        env = "LONGRUNNING_DESCRIPTOR_SET",
        value_name = "FILE",
        value_delimiter = ':'
    )]
    descriptor_sets: Vec<OsString>,
}

/// The types that a command knows. Those that it meets and does not know are
/// asked of a server, each once.
#[derive(Debug)]
pub(super) struct KnownTypes {
    types: Types,
    server: Endpoint,
    asked: BTreeSet<String>,
    told: Vec<DescriptorSet>,
}

// === impl TypesArgs ===

impl TypesArgs {
    /// The types of the files.
    pub(super) fn load(&self) -> Result<Types, CallError> {
        let types = Types::built_in();
        let files = named(self.descriptor_sets.clone());
        let sets = files.iter().map(|path| DescriptorSet::read(path)).collect();
        let sets: Result<Vec<_>, _> = sets;
        let loaded = sets.and_then(|sets| types.replace(Layer::Files, sets));
        match loaded {
            Ok(_) => Ok(types),
            Err(error) => Err(CallError::refused(error)),
        }
    }

    /// The types of the files, and what `server` tells of others.
    pub(super) fn known(&self, server: &Endpoint) -> Result<KnownTypes, CallError> {
        Ok(KnownTypes {
            types: self.load()?,
            server: server.clone(),
            asked: BTreeSet::new(),
            told: Vec::new(),
        })
    }
}

/// The files of a list. A compose file writes an unset variable as an empty one.
pub(super) fn named(files: Vec<OsString>) -> Vec<PathBuf> {
    let named = files.into_iter().filter(|file| !file.is_empty());
    named.map(PathBuf::from).collect()
}

// === impl KnownTypes ===

impl KnownTypes {
    /// The types, with those that are in the operations as far as anybody knows
    /// them. A server that does not tell is no reason to print nothing.
    pub(super) async fn of<'a>(
        &mut self,
        operations: impl IntoIterator<Item = &'a Operation> + Clone,
    ) -> &Types {
        for _ in 0..ROUNDS {
            let operations = operations.clone().into_iter();
            let unknown = operations.flat_map(|operation| self.types.unknown(operation));
            if !self.ask(unknown.collect()).await {
                break;
            }
        }
        &self.types
    }

    /// The types, with this one if anybody knows it.
    pub(super) async fn with(&mut self, name: &str) -> &Types {
        if self.types.descriptor(name).is_none() {
            self.ask(BTreeSet::from([name.to_owned()])).await;
        }
        &self.types
    }

    /// Asks for types; returns whether there is news.
    async fn ask(&mut self, names: BTreeSet<String>) -> bool {
        let new: Vec<String> = names.difference(&self.asked).cloned().collect();
        if new.is_empty() {
            return false;
        }
        self.asked.extend(new.iter().cloned());
        let asked = async {
            let channel = self.server.channel(Some(ANSWER)).await.ok()?;
            Reflector::new(channel).symbols(new, &self.types).await.ok()
        };
        let Ok(Some(files)) = timeout(ANSWER, asked).await else {
            return false;
        };
        let Ok(set) = DescriptorSet::of_files(self.server.to_string(), files) else {
            return false;
        };
        let mut told = self.told.clone();
        told.push(set);
        let is_taken = self.types.replace(Layer::Reflection, told.clone()).is_ok();
        if is_taken {
            self.told = told;
        }
        is_taken
    }
}

//! Descriptor sets as written by `protoc` and `buf`: reads and checks them, and adds them to
//! a descriptor pool.

use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    fs, io,
    path::Path,
};

use prost::Message;
use prost_reflect::{DescriptorError, DescriptorPool};
use prost_types::FileDescriptorProto;

const COMPILE_HINT: &str = "create one with `protoc --include_imports --descriptor_set_out=FILE …` \
    or `buf build -o FILE`";

const UNDECODABLE: &str = "its bytes cannot be decoded";

/// A set of `.proto` files and its origin, for error messages.
#[derive(Clone, Debug)]
pub(crate) struct DescriptorSet {
    origin: String,
    files: Vec<ProtoFile>,
}

/// One `.proto` file. Its bytes contain the custom options that `proto` cannot hold.
#[derive(Clone, Debug)]
struct ProtoFile {
    proto: FileDescriptorProto,
    bytes: Vec<u8>,
}

/// The result of loading descriptor sets.
#[derive(Debug, Default)]
pub(crate) struct LoadSummary {
    pub(crate) file_count: usize,
    pub(crate) message_count: usize,
    /// Why the types from reflection were dropped, if they were.
    pub(crate) dropped_reflection: Option<InvalidDescriptorSet>,
}

/// Why a descriptor set was rejected. The text names its origin and how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDescriptorSet {
    /// The file cannot be read.
    #[error("failed to read descriptor set {path:?}: {source}")]
    Unreadable {
        /// The path of the file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The bytes are not an encoded `google.protobuf.FileDescriptorSet`.
    #[error("{origin:?} is not a descriptor set: {problem}; {COMPILE_HINT}")]
    Malformed {
        /// The origin of the bytes.
        origin: String,
        /// A description of the bytes.
        problem: &'static str,
    },
    /// Two sets contain different files with the same name.
    #[error(
        "{file:?} in {origin:?} differs from {file:?} in {other:?}; create both sets from the same sources"
    )]
    ConflictingFiles {
        /// The `.proto` file.
        file: String,
        /// The origin of its set.
        origin: String,
        /// The origin of the other set.
        other: String,
    },
    /// No set contains a file that another file imports.
    #[error(
        "{file:?} in {origin:?} imports {missing:?}, which no descriptor set contains; {COMPILE_HINT}"
    )]
    MissingImport {
        /// The `.proto` file.
        file: String,
        /// The origin of its set.
        origin: String,
        /// The missing `.proto` file.
        missing: String,
    },
    /// A file is inconsistent, or conflicts with another one.
    #[error("{file:?} in {origin:?} is invalid: {position}{source}; {COMPILE_HINT}")]
    InvalidFile {
        /// The `.proto` file.
        file: String,
        /// The origin of its set.
        origin: String,
        /// `line L, column C: `, or empty if unknown.
        position: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
}

// === impl DescriptorSet ===

impl DescriptorSet {
    /// Reads a set from a file.
    pub(crate) fn read(path: &Path) -> Result<Self, InvalidDescriptorSet> {
        let path_text = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Self::decode(path_text, &bytes),
            Err(source) => Err(InvalidDescriptorSet::Unreadable {
                path: path_text,
                source,
            }),
        }
    }

    /// Decodes a set from `origin`.
    pub(crate) fn decode(origin: String, bytes: &[u8]) -> Result<Self, InvalidDescriptorSet> {
        let problem = match EncodedFileSet::decode(bytes) {
            _ if bytes.is_empty() => "it is empty",
            Ok(files) if files.file.is_empty() => "it contains no files",
            Ok(files) => return Self::from_encoded_files(origin, files.file),
            Err(_) if std::str::from_utf8(bytes).is_ok() => {
                "it is text; a .proto file must be compiled"
            }
            Err(_) => UNDECODABLE,
        };
        Err(InvalidDescriptorSet::Malformed { origin, problem })
    }

    /// Decodes a set of these encoded files from `origin`.
    pub(crate) fn from_encoded_files(
        origin: String,
        files: Vec<Vec<u8>>,
    ) -> Result<Self, InvalidDescriptorSet> {
        let problem = UNDECODABLE;
        match files.into_iter().map(ProtoFile::decode).collect() {
            Some(files) => Ok(Self { origin, files }),
            None => Err(InvalidDescriptorSet::Malformed { origin, problem }),
        }
    }
}

/// A `FileDescriptorSet` with encoded files: decoding and encoding them would lose their
/// custom options.
#[derive(Clone, PartialEq, Message)]
struct EncodedFileSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

// === impl ProtoFile ===

impl ProtoFile {
    fn decode(mut bytes: Vec<u8>) -> Option<Self> {
        let mut proto = FileDescriptorProto::decode(bytes.as_slice()).ok()?;
        if proto.name().is_empty() {
            return None;
        }
        // prost-reflect does not support editions. For JSON and filters they are equivalent to
        // proto2: both have explicit field presence.
        if proto.syntax() == "editions" {
            proto.syntax = Some("proto2".to_owned());
            bytes = proto.encode_to_vec();
        }
        Some(Self { proto, bytes })
    }

    /// Returns whether both files are equal except for comments.
    fn is_equivalent(&self, other: &Self) -> bool {
        let without_source_info = |file: &Self| FileDescriptorProto {
            source_code_info: None,
            ..file.proto.clone()
        };
        self.bytes == other.bytes || without_source_info(self) == without_source_info(other)
    }

    /// Returns the files of the pool that define everything that this file defines, or
    /// `None` if something is missing. Such a file is a copy under another path: Google's
    /// Python package contains operations.proto as operations_proto.proto.
    fn equivalent_files(&self, pool: &DescriptorPool) -> Option<Vec<String>> {
        let file = &self.proto;
        let full_name = |name: &str| match file.package() {
            "" => name.to_owned(),
            package => format!("{package}.{name}"),
        };
        let messages = file.message_type.iter().map(|message| {
            let found = pool.get_message_by_name(&full_name(message.name()))?;
            Some(found.parent_file())
        });
        let enums = file.enum_type.iter().map(|item| {
            let found = pool.get_enum_by_name(&full_name(item.name()))?;
            Some(found.parent_file())
        });
        let services = file.service.iter().map(|service| {
            let found = pool.get_service_by_name(&full_name(service.name()))?;
            Some(found.parent_file())
        });
        let files = messages.chain(enums).chain(services);
        let names = files.map(|file| Some(file?.name().to_owned()));
        let names: BTreeSet<String> = names.collect::<Option<_>>()?;
        (!names.is_empty()).then(|| names.into_iter().collect())
    }

    /// Replaces imports of copied files by imports of their equivalents.
    fn rewrite_imports(&mut self, equivalents: &HashMap<String, Vec<String>>) {
        let mut additional = Vec::new();
        for import in &mut self.proto.dependency {
            if let Some([first, rest @ ..]) = equivalents.get(import).map(Vec::as_slice) {
                import.clone_from(first);
                additional.extend(rest.iter().cloned());
            }
        }
        self.proto.dependency.extend(additional);
        self.bytes = self.proto.encode_to_vec();
    }
}

/// Adds sets to a pool. Files of the pool take precedence over files of the sets; the sets
/// must be consistent with each other. The pool may be changed partially on error.
pub(super) fn add_sets(
    pool: &mut DescriptorPool,
    sets: &[DescriptorSet],
) -> Result<LoadSummary, InvalidDescriptorSet> {
    let mut files: Vec<(ProtoFile, &str)> = Vec::new();
    let mut by_name: HashMap<&str, (&ProtoFile, &str)> = HashMap::new();
    let mut equivalents = HashMap::new();
    for set in sets {
        for file in &set.files {
            let name = file.proto.name();
            if pool.get_file_by_name(name).is_some() {
                continue;
            }
            if let Some((previous, other_origin)) = by_name.get(name) {
                if file.is_equivalent(previous) {
                    continue;
                }
                return Err(InvalidDescriptorSet::ConflictingFiles {
                    file: name.to_owned(),
                    origin: set.origin.clone(),
                    other: (*other_origin).to_owned(),
                });
            }
            by_name.insert(name, (file, &set.origin));
            match file.equivalent_files(pool) {
                Some(names) => drop(equivalents.insert(name.to_owned(), names)),
                None => files.push((file.clone(), &set.origin)),
            }
        }
    }
    for (file, _) in &mut files {
        let mut imports = file.proto.dependency.iter();
        if imports.any(|import| equivalents.contains_key(import)) {
            file.rewrite_imports(&equivalents);
        }
    }
    for (file, origin) in &files {
        let is_available = |import: &&String| {
            by_name.contains_key(import.as_str()) || pool.get_file_by_name(import).is_some()
        };
        let mut imports = file.proto.dependency.iter();
        if let Some(missing) = imports.find(|import| !is_available(import)) {
            return Err(InvalidDescriptorSet::MissingImport {
                file: file.proto.name().to_owned(),
                origin: (*origin).to_owned(),
                missing: missing.clone(),
            });
        }
    }
    let messages_before = pool.all_messages().len();
    let encoded = EncodedFileSet {
        file: files.iter().map(|(file, _)| file.bytes.clone()).collect(),
    };
    pool.decode_file_descriptor_set(encoded.encode_to_vec().as_slice())
        .map_err(|error| invalid_file(error, &files))?;
    Ok(LoadSummary {
        file_count: files.len(),
        message_count: pool.all_messages().len() - messages_before,
        dropped_reflection: None,
    })
}

fn invalid_file(error: DescriptorError, files: &[(ProtoFile, &str)]) -> InvalidDescriptorSet {
    let name = error.file().unwrap_or_default().to_owned();
    let found = files.iter().find(|(file, _)| file.proto.name() == name);
    let origin = found.or(files.first()).map_or("", |(_, origin)| origin);
    let position = match (error.line(), error.column()) {
        (Some(line), Some(column)) => format!("line {}, column {}: ", line + 1, column + 1),
        _ => String::new(),
    };
    InvalidDescriptorSet::InvalidFile {
        file: name,
        origin: origin.to_owned(),
        position,
        source: Box::new(error),
    }
}

//! Descriptor sets: the types that `protoc` and `buf` write down, checked and
//! put into a pool. When that happens, and who has the pool, is not known here.

use std::{collections::HashMap, fs, io, path::Path};

use prost::Message;
use prost_reflect::{DescriptorError, DescriptorPool};
use prost_types::FileDescriptorProto;

/// How a set is made that has everything.
const COMPILE_HINT: &str = "make one with `protoc --include_imports --descriptor_set_out=FILE …`, \
    or with `buf build -o FILE`";

/// Files of types, and where they come from.
#[derive(Clone, Debug)]
pub(crate) struct DescriptorSet {
    origin: String,
    files: Vec<ProtoFile>,
}

/// One `.proto` file. Its bytes have the options that the struct cannot hold.
#[derive(Clone, Debug)]
struct ProtoFile {
    proto: FileDescriptorProto,
    bytes: Vec<u8>,
}

/// How much was added.
#[derive(Debug, Default)]
pub(crate) struct LoadSummary {
    pub(crate) file_count: usize,
    pub(crate) message_count: usize,
    /// Why the types of another server, which were there, had to go.
    pub(crate) dropped_reflection: Option<InvalidDescriptorSet>,
}

/// Why types are not taken in. The text says where they are from, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDescriptorSet {
    /// The file cannot be read.
    #[error("cannot read the descriptor set {0:?}: {1}")]
    Unreadable(String, io::Error),
    /// The bytes are something else.
    #[error("{0:?} is no descriptor set ({1}); {COMPILE_HINT}")]
    NotADescriptorSet(String, String),
    /// Two sets have different files of one name.
    #[error(
        "{file:?} in {origin:?} is not the {file:?} in {other:?}; make both sets from the same sources"
    )]
    ConflictingFiles {
        /// The `.proto` file.
        file: String,
        /// Where it is from.
        origin: String,
        /// Where the other one is from.
        other: String,
    },
    /// What a file needs is in none of the sets.
    #[error(
        "{file:?} in {origin:?} imports {missing:?}, which no descriptor set has; {COMPILE_HINT}"
    )]
    MissingImport {
        /// The `.proto` file.
        file: String,
        /// Where it is from.
        origin: String,
        /// The `.proto` file that it imports.
        missing: String,
    },
    /// The types contradict each other.
    #[error("{file:?} in {origin:?} cannot be used: {cause}; {COMPILE_HINT}")]
    InvalidFile {
        /// The `.proto` file.
        file: String,
        /// Where it is from.
        origin: String,
        /// What is wrong, and on which line if the set knows.
        cause: String,
    },
}

// === impl DescriptorSet ===

impl DescriptorSet {
    /// The set in a file.
    pub(crate) fn read(path: &Path) -> Result<Self, InvalidDescriptorSet> {
        let origin = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Self::decode(origin, &bytes),
            Err(error) => Err(InvalidDescriptorSet::Unreadable(origin, error)),
        }
    }

    /// The set in these bytes, which come from `origin`.
    pub(crate) fn decode(origin: String, bytes: &[u8]) -> Result<Self, InvalidDescriptorSet> {
        let not_a_set = |reason: &str| {
            InvalidDescriptorSet::NotADescriptorSet(origin.clone(), reason.to_owned())
        };
        if bytes.is_empty() {
            return Err(not_a_set("it is empty"));
        }
        let Ok(files) = EncodedFileSet::decode(bytes) else {
            let is_text = std::str::from_utf8(bytes).is_ok();
            return Err(not_a_set(if is_text {
                "it is text; a .proto file has to be compiled"
            } else {
                "its bytes are something else"
            }));
        };
        if files.file.is_empty() {
            return Err(not_a_set("there is no file in it"));
        }
        Self::from_encoded_files(origin, files.file)
    }

    /// The set of these encoded files.
    pub(crate) fn from_encoded_files(
        origin: String,
        files: Vec<Vec<u8>>,
    ) -> Result<Self, InvalidDescriptorSet> {
        let files = files.into_iter().map(ProtoFile::decode).collect();
        match files {
            Some(files) => Ok(Self { origin, files }),
            None => Err(InvalidDescriptorSet::NotADescriptorSet(
                origin,
                "its bytes are something else".to_owned(),
            )),
        }
    }
}

/// A `FileDescriptorSet` whose files stay encoded: decoded and encoded again,
/// they would lose the options that are extensions.
#[derive(Clone, PartialEq, Message)]
struct EncodedFileSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

// === impl File ===

impl ProtoFile {
    fn decode(bytes: Vec<u8>) -> Option<Self> {
        let proto = FileDescriptorProto::decode(bytes.as_slice()).ok()?;
        let has_name = !proto.name().is_empty();
        let file = Self { proto, bytes };
        has_name
            .then_some(file)
            .map(ProtoFile::with_edition_as_proto2)
    }

    /// Editions are not known to prost-reflect. For JSON and for filters the
    /// types of one are those of proto2: fields know whether they are set.
    fn with_edition_as_proto2(mut self) -> Self {
        if self.proto.syntax() == "editions" {
            self.proto.syntax = Some("proto2".to_owned());
            self.bytes = self.proto.encode_to_vec();
        }
        self
    }

    /// Whether both say the same, in whatever words their comments do.
    fn is_equivalent(&self, other: &Self) -> bool {
        let without_source_info = |file: &Self| FileDescriptorProto {
            source_code_info: None,
            ..file.proto.clone()
        };
        self.bytes == other.bytes || without_source_info(self) == without_source_info(other)
    }

    /// The files of the pool that define all of what this one defines: it is
    /// one of them under another path. Google's own Python package has
    /// operations.proto as operations_proto.proto.
    fn equivalent_files(&self, pool: &DescriptorPool) -> Option<Vec<String>> {
        let file = &self.proto;
        let package = match file.package() {
            "" => String::new(),
            package => format!("{package}."),
        };
        let messages = file.message_type.iter().map(|message| {
            let name = format!("{package}{}", message.name());
            pool.get_message_by_name(&name)
                .map(|found| found.parent_file())
        });
        let enums = file.enum_type.iter().map(|item| {
            let name = format!("{package}{}", item.name());
            pool.get_enum_by_name(&name)
                .map(|found| found.parent_file())
        });
        let services = file.service.iter().map(|service| {
            let name = format!("{package}{}", service.name());
            pool.get_service_by_name(&name)
                .map(|found| found.parent_file())
        });
        let files: Option<Vec<_>> = messages.chain(enums).chain(services).collect();
        let mut names: Vec<String> = files?.iter().map(|file| file.name().to_owned()).collect();
        names.sort();
        names.dedup();
        (!names.is_empty()).then_some(names)
    }

    /// Imports the twins of a file instead of the file.
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

/// Adds sets to a pool. What the pool has already wins, whatever the sets say
/// of it; among themselves they must agree.
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
        let imports = &file.proto.dependency;
        if imports
            .iter()
            .any(|import| equivalents.contains_key(import))
        {
            file.rewrite_imports(&equivalents);
        }
    }
    for (file, origin) in &files {
        let is_available = |import: &&String| {
            by_name.contains_key(import.as_str()) || pool.get_file_by_name(import).is_some()
        };
        if let Some(missing) = file
            .proto
            .dependency
            .iter()
            .find(|import| !is_available(import))
        {
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
        .map_err(|error| invalid_file(&error, &files))?;
    Ok(LoadSummary {
        file_count: files.len(),
        message_count: pool.all_messages().len() - messages_before,
        dropped_reflection: None,
    })
}

fn invalid_file(error: &DescriptorError, files: &[(ProtoFile, &str)]) -> InvalidDescriptorSet {
    let name = error.file().unwrap_or_default();
    let origin = files
        .iter()
        .find(|(file, _)| file.proto.name() == name)
        .or(files.first())
        .map_or("", |(_, origin)| origin);
    let position = match (error.line(), error.column()) {
        (Some(line), Some(column)) => format!("line {}, column {}: ", line + 1, column + 1),
        _ => String::new(),
    };
    InvalidDescriptorSet::InvalidFile {
        file: name.to_owned(),
        origin: origin.to_owned(),
        cause: format!("{position}{error}"),
    }
}

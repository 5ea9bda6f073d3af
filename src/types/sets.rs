//! Descriptor sets: the types that `protoc` and `buf` write down, checked and
//! put into a pool. When that happens, and who has the pool, is not known here.

use std::{collections::HashMap, fs, io, path::Path};

use prost::Message;
use prost_reflect::{DescriptorError, DescriptorPool};
use prost_types::FileDescriptorProto;

/// How a set is made that has everything.
const MAKE: &str = "make one with `protoc --include_imports --descriptor_set_out=FILE …`, \
    or with `buf build -o FILE`";

/// Files of types, and where they come from.
#[derive(Clone, Debug)]
pub(crate) struct DescriptorSet {
    origin: String,
    files: Vec<File>,
}

/// One `.proto` file. Its bytes have the options that the struct cannot hold.
#[derive(Clone, Debug)]
struct File {
    proto: FileDescriptorProto,
    bytes: Vec<u8>,
}

/// How much was added.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) files: usize,
    pub(crate) messages: usize,
    /// Why the types of another server, which were there, had to go.
    pub(crate) left_out: Option<InvalidTypes>,
}

/// Why types are not taken in. The text says where they are from, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTypes {
    /// The file cannot be read.
    #[error("cannot read the descriptor set {0:?}: {1}")]
    Unreadable(String, io::Error),
    /// The bytes are something else.
    #[error("{0:?} is no descriptor set ({1}); {MAKE}")]
    NoSet(String, String),
    /// Two sets have different files of one name.
    #[error(
        "{file:?} in {origin:?} is not the {file:?} in {other:?}; make both sets from the same sources"
    )]
    Different {
        /// The `.proto` file.
        file: String,
        /// Where it is from.
        origin: String,
        /// Where the other one is from.
        other: String,
    },
    /// What a file needs is in none of the sets.
    #[error("{file:?} in {origin:?} imports {missing:?}, which no descriptor set has; {MAKE}")]
    Missing {
        /// The `.proto` file.
        file: String,
        /// Where it is from.
        origin: String,
        /// The `.proto` file that it imports.
        missing: String,
    },
    /// The types contradict each other.
    #[error("{file:?} in {origin:?} cannot be used: {cause}; {MAKE}")]
    Broken {
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
    pub(crate) fn read(path: &Path) -> Result<Self, InvalidTypes> {
        let origin = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Self::decode(origin, &bytes),
            Err(error) => Err(InvalidTypes::Unreadable(origin, error)),
        }
    }

    /// The set in these bytes, which come from `origin`.
    pub(crate) fn decode(origin: String, bytes: &[u8]) -> Result<Self, InvalidTypes> {
        let no_set = |why: &str| InvalidTypes::NoSet(origin.clone(), why.to_owned());
        if bytes.is_empty() {
            return Err(no_set("it is empty"));
        }
        let Ok(files) = Files::decode(bytes) else {
            let is_text = std::str::from_utf8(bytes).is_ok();
            return Err(no_set(if is_text {
                "it is text; a .proto file has to be compiled"
            } else {
                "its bytes are something else"
            }));
        };
        if files.file.is_empty() {
            return Err(no_set("there is no file in it"));
        }
        Self::of_files(origin, files.file)
    }

    /// The set of these encoded files.
    pub(crate) fn of_files(origin: String, files: Vec<Vec<u8>>) -> Result<Self, InvalidTypes> {
        let files = files.into_iter().map(File::decode).collect();
        match files {
            Some(files) => Ok(Self { origin, files }),
            None => Err(InvalidTypes::NoSet(
                origin,
                "its bytes are something else".to_owned(),
            )),
        }
    }
}

/// A `FileDescriptorSet` whose files stay encoded: decoded and encoded again,
/// they would lose the options that are extensions.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

// === impl File ===

impl File {
    fn decode(bytes: Vec<u8>) -> Option<Self> {
        let proto = FileDescriptorProto::decode(bytes.as_slice()).ok()?;
        let has_name = !proto.name().is_empty();
        let file = Self { proto, bytes };
        has_name.then_some(file).map(File::without_edition)
    }

    /// Editions are not known to prost-reflect. For JSON and for filters the
    /// types of one are those of proto2: fields know whether they are set.
    fn without_edition(mut self) -> Self {
        if self.proto.syntax() == "editions" {
            self.proto.syntax = Some("proto2".to_owned());
            self.bytes = self.proto.encode_to_vec();
        }
        self
    }

    /// Whether both say the same, in whatever words their comments do.
    fn is_same(&self, other: &Self) -> bool {
        let plain = |file: &Self| FileDescriptorProto {
            source_code_info: None,
            ..file.proto.clone()
        };
        self.bytes == other.bytes || plain(self) == plain(other)
    }

    /// The files of the pool that define all of what this one defines: it is
    /// one of them under another path. Google's own Python package has
    /// operations.proto as operations_proto.proto.
    fn twins(&self, pool: &DescriptorPool) -> Option<Vec<String>> {
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
    fn import(&mut self, twins: &HashMap<String, Vec<String>>) {
        let mut more = Vec::new();
        for import in &mut self.proto.dependency {
            if let Some([first, rest @ ..]) = twins.get(import).map(Vec::as_slice) {
                import.clone_from(first);
                more.extend(rest.iter().cloned());
            }
        }
        self.proto.dependency.extend(more);
        self.bytes = self.proto.encode_to_vec();
    }
}

/// Adds sets to a pool. What the pool has already wins, whatever the sets say
/// of it; among themselves they must agree.
pub(super) fn add(
    pool: &mut DescriptorPool,
    sets: &[DescriptorSet],
) -> Result<Loaded, InvalidTypes> {
    let mut files: Vec<(File, &str)> = Vec::new();
    let mut by_name: HashMap<&str, (&File, &str)> = HashMap::new();
    let mut twins = HashMap::new();
    for set in sets {
        for file in &set.files {
            let name = file.proto.name();
            if pool.get_file_by_name(name).is_some() {
                continue;
            }
            if let Some((same, other)) = by_name.get(name) {
                if file.is_same(same) {
                    continue;
                }
                return Err(InvalidTypes::Different {
                    file: name.to_owned(),
                    origin: set.origin.clone(),
                    other: (*other).to_owned(),
                });
            }
            by_name.insert(name, (file, &set.origin));
            match file.twins(pool) {
                Some(those) => drop(twins.insert(name.to_owned(), those)),
                None => files.push((file.clone(), &set.origin)),
            }
        }
    }
    for (file, _) in &mut files {
        let imports = &file.proto.dependency;
        if imports.iter().any(|import| twins.contains_key(import)) {
            file.import(&twins);
        }
    }
    for (file, origin) in &files {
        let is_there = |import: &&String| {
            by_name.contains_key(import.as_str()) || pool.get_file_by_name(import).is_some()
        };
        if let Some(missing) = file
            .proto
            .dependency
            .iter()
            .find(|import| !is_there(import))
        {
            return Err(InvalidTypes::Missing {
                file: file.proto.name().to_owned(),
                origin: (*origin).to_owned(),
                missing: missing.clone(),
            });
        }
    }
    let before = pool.all_messages().len();
    let encoded = Files {
        file: files.iter().map(|(file, _)| file.bytes.clone()).collect(),
    };
    pool.decode_file_descriptor_set(encoded.encode_to_vec().as_slice())
        .map_err(|error| broken(&error, &files))?;
    Ok(Loaded {
        files: files.len(),
        messages: pool.all_messages().len() - before,
        left_out: None,
    })
}

fn broken(error: &DescriptorError, files: &[(File, &str)]) -> InvalidTypes {
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
    InvalidTypes::Broken {
        file: name.to_owned(),
        origin: origin.to_owned(),
        cause: format!("{position}{error}"),
    }
}

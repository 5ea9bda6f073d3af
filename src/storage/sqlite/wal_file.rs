//! Reads a write-ahead log without SQLite, which would apply it to the file beside it: whose log it is, and what its
//! last commit was (sqlite.org/fileformat2.html#walformat).

use std::{
    fs,
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
};

/// The first field of the header. Its last bit says how checksums read the contents: big-endian if it is set.
const MAGIC: u32 = 0x377f_0682;

const FORMAT_VERSION: u32 = 3_007_000;
const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const READ_BUFFER_BYTES: usize = 1 << 18;

/// The length of a file ID.
const FILE_ID_BYTES: usize = 36;

/// How a record stores a text of this length: `2 * length + 13`.
const FILE_ID_TYPE: u8 = 85;

/// The type of a page that is a leaf of a table.
const TABLE_LEAF: u8 = 0x0d;

/// The committed transactions of a log.
#[derive(Debug, Default)]
pub(super) struct WalContents {
    /// `true` if SQLite would apply any.
    pub(super) has_commits: bool,
    /// The last committed row of table `file_info`, or `None` if no transaction wrote it.
    pub(super) info: Option<StoredFileInfo>,
}

/// What a row of table `file_info` says of the database and its age.
#[derive(Debug)]
pub(super) struct StoredFileInfo {
    pub(super) file_id: String,
    pub(super) write_count: u64,
}

/// The checksum of all frames up to one.
#[derive(Debug)]
struct Checksum {
    is_big_endian: bool,
    sums: (u32, u32),
}

// === impl Checksum ===

impl Checksum {
    fn update(&mut self, data: &[u8]) {
        let (mut first, mut second) = self.sums;
        for words in data.as_chunks::<8>().0 {
            let word = |offset| {
                let value = be_u32(words, offset);
                if self.is_big_endian {
                    value
                } else {
                    value.swap_bytes()
                }
            };
            first = first.wrapping_add(word(0)).wrapping_add(second);
            second = second.wrapping_add(word(4)).wrapping_add(first);
        }
        self.sums = (first, second);
    }

    /// Returns `true` if this is the checksum that is stored at `offset`.
    fn matches(&self, data: &[u8], offset: usize) -> bool {
        self.sums == (be_u32(data, offset), be_u32(data, offset + 4))
    }
}

/// Reads a log up to the last transaction that SQLite would apply. A log that does not exist, or that SQLite would
/// ignore, is empty.
pub(super) fn read_wal(path: &Path) -> io::Result<WalContents> {
    let mut contents = WalContents::default();
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(contents),
        opened => opened?,
    };
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, file);
    let mut header = [0; HEADER_BYTES];
    if !read_whole(&mut reader, &mut header)? {
        return Ok(contents);
    }
    let (magic, page_bytes) = (be_u32(&header, 0), be_u32(&header, 8));
    let mut checksum = Checksum {
        is_big_endian: magic & 1 == 1,
        sums: (0, 0),
    };
    checksum.update(&header[..24]);
    let is_valid = magic & !1 == MAGIC
        && be_u32(&header, 4) == FORMAT_VERSION
        && page_bytes.is_power_of_two()
        && (512..=65_536).contains(&page_bytes)
        && checksum.matches(&header, 24);
    if !is_valid {
        return Ok(contents);
    }
    let mut frame = vec![0; FRAME_HEADER_BYTES + usize::try_from(page_bytes).unwrap_or(0)];
    let mut uncommitted = None;
    while read_whole(&mut reader, &mut frame)? {
        checksum.update(&frame[..8]);
        checksum.update(&frame[FRAME_HEADER_BYTES..]);
        // Behind the end are frames of an earlier run through the log.
        if frame[8..16] != header[16..24] || !checksum.matches(&frame, 16) {
            break;
        }
        uncommitted = parse_file_info(&frame[FRAME_HEADER_BYTES..]).or(uncommitted);
        let is_commit = be_u32(&frame, 4) != 0;
        if is_commit {
            contents.has_commits = true;
            contents.info = uncommitted.take().or(contents.info);
        }
    }
    Ok(contents)
}

/// Returns `false` if fewer bytes are left.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn be_u32(data: &[u8], offset: usize) -> u32 {
    let bytes = data[offset..].first_chunk();
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Returns the row of table `file_info` if this is its page: the only one with a single row that begins with a file ID.
fn parse_file_info(page: &[u8]) -> Option<StoredFileInfo> {
    let be_u16 = |offset: usize| Some(u16::from_be_bytes(*page.get(offset..)?.first_chunk()?));
    if page[0] != TABLE_LEAF || be_u16(3)? != 1 {
        return None;
    }
    let row = page.get(usize::from(be_u16(8)?)..)?;
    // The length of the record and the number of the row, then the header of the record: its length, and the types of
    // the values. All fit into one byte.
    let &[_, _, header_bytes, FILE_ID_TYPE, count_type, ..] = row else {
        return None;
    };
    let values = row.get(2 + usize::from(header_bytes)..)?;
    let (file_id, values) = values.split_at_checked(FILE_ID_BYTES)?;
    let count_bytes = match count_type {
        1..=4 => usize::from(count_type),
        5 => 6,
        6 => 8,
        // The values 0 and 1 take no bytes.
        8 | 9 => 0,
        _ => return None,
    };
    let stored_count = values.get(..count_bytes)?;
    let stored_count = stored_count
        .iter()
        .fold(0, |count, byte| count << 8 | u64::from(*byte));
    Some(StoredFileInfo {
        file_id: std::str::from_utf8(file_id).ok()?.to_owned(),
        write_count: stored_count + u64::from(count_type == 9),
    })
}

//! The bytes of a pack's header, table and footer; stated once here and once in FORMAT.md.

use crate::format::limits::{PACK_BYTES_MAX, PACK_RECORDS_MAX};
use crate::format::record::{Unreadable, get_id, get_u32, get_u64, put_u32, put_u64};
use crate::format::{ChunkParams, Codec, HEADER_BYTES, Header, Kind, PackId, RecordId, check_lengths};
use crate::pack::Class;

/// Length of a pack's header.
pub const PACK_HEADER_BYTES: usize = 64;
/// Length of a table's entry.
pub const TABLE_ENTRY_BYTES: usize = 84;
/// Length of a pack's footer.
pub const FOOTER_BYTES: usize = 64;

const HEADER_MAGIC: [u8; 8] = *b"VMSPACK1";
const FOOTER_MAGIC: [u8; 8] = *b"VMSPEND1";

// Offsets in the pack's header.
const STORE_ID: usize = 8;
const NUMBER: usize = 24;
const TAG: usize = 28;
const CLASS: usize = 32;
/// Features a reader must know; none is defined. Bytes 34 and 35 are reserved for optional ones.
const REQUIRED_FLAGS: usize = 33;
const CHUNK_MIN: usize = 36;
const CHUNK_AVG: usize = 40;
const CHUNK_MAX: usize = 44;
const ZERO_RUN_MIN: usize = 48;
/// Eight reserved bytes lie between the parameters and the checksum.
const HEADER_CRC: usize = 60;

/// The first bytes of a pack: enough to know the store's parameters if its `config.toml` is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    /// The store it belongs to.
    pub store_id: [u8; 16],
    /// The pack's own name.
    pub id: PackId,
    /// What it holds.
    pub class: Class,
    /// The store's chunk parameters.
    pub params: ChunkParams,
}

impl PackHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        bytes[..STORE_ID].copy_from_slice(&HEADER_MAGIC);
        bytes[STORE_ID..NUMBER].copy_from_slice(&self.store_id);
        put_u32(&mut bytes, NUMBER, self.id.number);
        put_u32(&mut bytes, TAG, self.id.tag);
        bytes[CLASS] = self.class as u8;
        put_u32(&mut bytes, CHUNK_MIN, self.params.min_bytes);
        put_u32(&mut bytes, CHUNK_AVG, self.params.avg_bytes);
        put_u32(&mut bytes, CHUNK_MAX, self.params.max_bytes);
        put_u32(&mut bytes, ZERO_RUN_MIN, self.params.zero_run_min_bytes);
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
        put_u32(&mut bytes, HEADER_CRC, crc);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode(bytes: &[u8; PACK_HEADER_BYTES]) -> Result<Self, Unreadable> {
        if bytes[..STORE_ID] != HEADER_MAGIC {
            return Err("not a pack: wrong magic".into());
        }
        if get_u32(bytes, HEADER_CRC) != crc32c::crc32c(&bytes[..HEADER_CRC]) {
            return Err("the pack header's checksum does not match".into());
        }
        if bytes[REQUIRED_FLAGS] != 0 {
            return Err(Unreadable::Newer { required: bytes[REQUIRED_FLAGS] });
        }
        Ok(Self {
            store_id: bytes[STORE_ID..NUMBER].try_into().expect("16 bytes were sliced"),
            id: PackId { number: get_u32(bytes, NUMBER), tag: get_u32(bytes, TAG) },
            class: Class::from_number(bytes[CLASS]).ok_or_else(|| format!("unknown class {}", bytes[CLASS]))?,
            params: ChunkParams {
                min_bytes: get_u32(bytes, CHUNK_MIN),
                avg_bytes: get_u32(bytes, CHUNK_AVG),
                max_bytes: get_u32(bytes, CHUNK_MAX),
                zero_run_min_bytes: get_u32(bytes, ZERO_RUN_MIN),
            },
        })
    }
}

/// One record's line in the table: all of its header that an index or a mark needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableEntry {
    /// The content's name.
    pub id: RecordId,
    /// Of a delta: its base.
    pub base: Option<RecordId>,
    /// Where the record's header begins in the pack.
    pub offset: u32,
    /// Length of the payload.
    pub stored_bytes: u32,
    /// Length of the content.
    pub plain_bytes: u32,
    /// What it holds.
    pub kind: Kind,
    /// How it is encoded.
    pub codec: Codec,
    /// As in the record's header.
    pub sketch: u32,
}

impl TableEntry {
    /// The entry of a record at an offset.
    pub fn new(header: &Header, offset: u32) -> Self {
        Self {
            id: header.id,
            base: header.base,
            offset,
            stored_bytes: header.stored_bytes,
            plain_bytes: header.plain_bytes,
            kind: header.kind,
            codec: header.codec,
            sketch: header.sketch,
        }
    }

    /// The class of the pack it lies in.
    pub fn class(&self) -> Class {
        Class::of(self.kind, self.codec)
    }

    /// Bytes of the record in the pack, its header included.
    pub fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.stored_bytes)
    }

    /// Appends the entry's bytes to a table.
    pub(crate) fn encode_to(&self, table: &mut Vec<u8>) {
        let mut bytes = [0; TABLE_ENTRY_BYTES];
        bytes[..32].copy_from_slice(self.id.as_bytes());
        if let Some(base) = self.base {
            bytes[32..64].copy_from_slice(base.as_bytes());
        }
        put_u32(&mut bytes, 64, self.offset);
        put_u32(&mut bytes, 68, self.stored_bytes);
        put_u32(&mut bytes, 72, self.plain_bytes);
        bytes[76] = self.kind as u8;
        bytes[77] = self.codec as u8;
        put_u32(&mut bytes, 80, self.sketch);
        table.extend_from_slice(&bytes);
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let codec = Codec::from_number(bytes[77]).ok_or_else(|| format!("unknown codec {}", bytes[77]))?;
        let entry = Self {
            id: get_id(bytes, 0),
            base: (codec == Codec::Delta).then(|| get_id(bytes, 32)),
            offset: get_u32(bytes, 64),
            stored_bytes: get_u32(bytes, 68),
            plain_bytes: get_u32(bytes, 72),
            kind: Kind::from_number(bytes[76]).ok_or_else(|| format!("unknown kind {}", bytes[76]))?,
            codec,
            sketch: get_u32(bytes, 80),
        };
        check_lengths(entry.plain_bytes, entry.stored_bytes)?;
        Ok(entry)
    }
}

/// The last bytes of a pack: where its table is, and that all of it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    pub(super) id: PackId,
    pub(super) table_offset: u64,
    pub(super) records: u32,
    pub(super) table_crc: u32,
    pub(super) plain_bytes: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..8].copy_from_slice(&FOOTER_MAGIC);
        put_u32(&mut bytes, 8, self.id.number);
        put_u32(&mut bytes, 12, self.id.tag);
        put_u64(&mut bytes, 16, self.table_offset);
        put_u32(&mut bytes, 24, self.records);
        put_u32(&mut bytes, 28, self.table_crc);
        put_u64(&mut bytes, 32, self.plain_bytes);
        let crc = crc32c::crc32c(&bytes[..60]);
        put_u32(&mut bytes, 60, crc);
        bytes
    }

    /// Reads the footer of a pack of `file_bytes`.
    pub(super) fn decode(bytes: &[u8; FOOTER_BYTES], file_bytes: u64) -> Result<Self, String> {
        if bytes[..8] != FOOTER_MAGIC {
            return Err("the footer is missing".into());
        }
        if get_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err("the footer's checksum does not match".into());
        }
        let footer = Self {
            id: PackId { number: get_u32(bytes, 8), tag: get_u32(bytes, 12) },
            table_offset: get_u64(bytes, 16),
            records: get_u32(bytes, 24),
            table_crc: get_u32(bytes, 28),
            plain_bytes: get_u64(bytes, 32),
        };
        if footer.records > PACK_RECORDS_MAX || footer.table_offset > PACK_BYTES_MAX {
            return Err("the footer's numbers are over the limits".into());
        }
        let table_bytes = u64::from(footer.records) * TABLE_ENTRY_BYTES as u64;
        if footer.table_offset + table_bytes + FOOTER_BYTES as u64 != file_bytes {
            return Err(format!("the pack's length {file_bytes} is not what its footer says"));
        }
        Ok(footer)
    }
}

/// Reads a table and checks that its records lie one behind another between the header and the table.
pub(super) fn decode_table(bytes: &[u8], footer: &Footer) -> Result<Vec<TableEntry>, String> {
    if crc32c::crc32c(bytes) != footer.table_crc {
        return Err("the table's checksum does not match".into());
    }
    let entries: Vec<_> = bytes.chunks_exact(TABLE_ENTRY_BYTES).map(TableEntry::decode).collect::<Result<_, _>>()?;
    let mut end = PACK_HEADER_BYTES as u64;
    for entry in &entries {
        if u64::from(entry.offset) < end {
            return Err(format!("the table has records that overlap at offset {}", entry.offset));
        }
        end = u64::from(entry.offset) + entry.record_bytes();
    }
    if end <= footer.table_offset { Ok(entries) } else { Err("the table lies within its records".into()) }
}

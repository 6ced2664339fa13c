//! Writing one pack.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::limits::PACK_RECORDS_MAX;
use crate::format::{Header, PackId, Record};
use crate::pack::layout::{FOOTER_BYTES, Footer, PACK_HEADER_BYTES, PackHeader, TABLE_ENTRY_BYTES, TableEntry};
use crate::pack::{Class, DIR, part_path, path};
use crate::storage::{AppendFile, Storage};

/// Bytes after which writeback of a pack is started, so that sealing waits less.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Writes records one after another into a reserved extent of another process's pack. Each is a write of its own, as in
/// [`PackWriter::append`]: larger writes take larger pages of memory, which a virtual machine may have to get from its
/// host first.
pub(crate) fn write_records(storage: &dyn Storage, pack: PackId, offset: u32, records: &[Record]) -> Result<()> {
    let path = part_path(pack);
    let failed = |error| Error::io("writing", storage.locate(&path), error);
    let file = storage.join(&path).map_err(failed)?;
    let mut at = u64::from(offset);
    let mut buffer = Vec::new();
    for record in records {
        buffer.clear();
        record.write_to(&mut buffer);
        file.write_at(at, &buffer).map_err(failed)?;
        at += buffer.len() as u64;
    }
    Ok(())
}

/// A pack that grows. Dropping it without [`PackWriter::seal`] leaves a `.part` file, which the next open removes.
pub struct PackWriter {
    storage: Arc<dyn Storage>,
    header: PackHeader,
    file: Box<dyn AppendFile>,
    entries: Vec<TableEntry>,
    bytes: u64,
    plain_bytes: u64,
    written_back_bytes: u64,
    buffer: Vec<u8>,
}

/// A pack that is on disk under its final name.
#[derive(Debug)]
pub struct SealedPack {
    /// Its header.
    pub header: PackHeader,
    /// Its table.
    pub entries: Vec<TableEntry>,
    /// Length of the file.
    pub bytes: u64,
}

impl PackWriter {
    /// Begins a pack.
    pub fn create(storage: Arc<dyn Storage>, header: PackHeader) -> Result<Self> {
        let path = part_path(header.id);
        let failed = |action, error| Error::io(action, storage.locate(&path), error);
        let mut file = storage.create(&path).map_err(|error| failed("creating", error))?;
        if let Err(error) = file.append(&header.encode()) {
            let _ = storage.remove(&path);
            return Err(failed("writing", error));
        }
        Ok(Self {
            storage,
            header,
            file,
            entries: Vec::new(),
            bytes: PACK_HEADER_BYTES as u64,
            plain_bytes: 0,
            written_back_bytes: 0,
            buffer: Vec::new(),
        })
    }

    /// The pack's name.
    pub fn id(&self) -> PackId {
        self.header.id
    }

    /// The pack's class.
    pub fn class(&self) -> Class {
        self.header.class
    }

    /// Whether it has grown enough to be sealed.
    pub fn is_full(&self, target_bytes: u64) -> bool {
        let table_bytes = (self.entries.len() * TABLE_ENTRY_BYTES) as u64;
        self.bytes + table_bytes >= target_bytes || self.entries.len() as u32 >= PACK_RECORDS_MAX
    }

    /// The table's entries of the records appended so far.
    pub fn entries(&self) -> &[TableEntry] {
        &self.entries
    }

    /// Appends a record of this pack's class. After an error the pack must be abandoned.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        assert_eq!(
            Class::of(record.header.kind, record.header.codec),
            self.header.class,
            "callers sort records by class"
        );
        self.buffer.clear();
        record.write_to(&mut self.buffer);
        self.file.append(&self.buffer).map_err(|error| self.failed("writing", error))?;
        self.add(&record.header);
        Ok(())
    }

    /// Where the next record begins.
    pub fn end(&self) -> u64 {
        self.bytes
    }

    /// Adds the record with this header, of this pack's class, which a direct writer wrote at the pack's end.
    pub(crate) fn add_written(&mut self, header: &Header) {
        assert_eq!(Class::of(header.kind, header.codec), self.header.class, "callers sort records by class");
        self.file.skip(header.record_bytes());
        self.add(header);
    }

    /// Leaves a gap for a direct writer.
    pub fn skip(&mut self, bytes: u64) {
        self.file.skip(bytes);
        self.bytes += bytes;
    }

    /// Adds a record that lies at the end.
    fn add(&mut self, header: &Header) {
        self.entries.push(TableEntry::new(header, self.bytes as u32));
        self.bytes += header.record_bytes();
        self.plain_bytes += u64::from(header.plain_bytes);
        if self.bytes - self.written_back_bytes >= WRITEBACK_BYTES {
            self.file.start_writeback();
            self.written_back_bytes = self.bytes;
        }
    }

    /// Writes table and footer and makes the pack durable under its final name: the file is synced, renamed, and
    /// its directory synced. After an error the pack does not exist.
    pub fn seal(mut self) -> Result<SealedPack> {
        let mut table = Vec::with_capacity(self.entries.len() * TABLE_ENTRY_BYTES + FOOTER_BYTES);
        self.entries.iter().for_each(|entry| entry.encode_to(&mut table));
        let footer = Footer {
            id: self.header.id,
            table_offset: self.bytes,
            plain_bytes: self.plain_bytes,
            records: self.entries.len() as u32,
            table_crc: crc32c::crc32c(&table),
        };
        table.extend_from_slice(&footer.encode());
        self.file.append(&table).map_err(|error| self.failed("writing", error))?;
        self.file.sync().map_err(|error| self.failed("syncing", error))?;
        let (part, sealed) = (part_path(self.header.id), path(self.header.id));
        self.storage.rename(&part, &sealed).map_err(|error| self.failed("renaming", error))?;
        self.storage.sync_dir(DIR).map_err(|error| Error::io("syncing", DIR, error))?;
        let bytes = self.bytes + table.len() as u64;
        Ok(SealedPack { header: self.header, entries: self.entries, bytes })
    }

    fn failed(&self, action: &'static str, error: std::io::Error) -> Error {
        Error::io(action, self.storage.locate(&part_path(self.header.id)), error)
    }
}

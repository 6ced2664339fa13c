//! Writing one pack.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::PackId;
use crate::limits::PACK_RECORDS_MAX;
use crate::pack::layout::{FOOTER_BYTES, Footer, PACK_HEADER_BYTES, PackHeader, TABLE_ENTRY_BYTES, TableEntry};
use crate::pack::{Class, DIR, part_path, path};
use crate::record::{HEADER_BYTES, Record};
use crate::storage::{AppendFile, Storage};

/// Bytes after which the system is told to begin writing a pack, so that sealing has little to wait for.
const WRITEBACK_BYTES: u64 = 8 << 20;

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
    /// Sum of its records' plain lengths.
    pub plain_bytes: u64,
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

    /// Appends a record of this pack's class. After an error the pack must be given up.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        assert_eq!(
            Class::of(record.header.kind, record.header.codec),
            self.header.class,
            "callers sort records by class"
        );
        self.buffer.clear();
        self.buffer.extend_from_slice(&record.header.encode());
        self.buffer.extend_from_slice(&record.payload);
        self.file.append(&self.buffer).map_err(|error| self.failed("writing", error))?;
        self.entries.push(TableEntry {
            id: record.header.id,
            base: record.header.base,
            offset: self.bytes as u32,
            stored_bytes: record.header.stored_bytes,
            plain_bytes: record.header.plain_bytes,
            kind: record.header.kind,
            codec: record.header.codec,
            sketch: record.header.sketch,
        });
        self.bytes += (HEADER_BYTES + record.payload.len()) as u64;
        self.plain_bytes += u64::from(record.header.plain_bytes);
        if self.bytes - self.written_back_bytes >= WRITEBACK_BYTES {
            self.file.start_writeback();
            self.written_back_bytes = self.bytes;
        }
        Ok(())
    }

    /// Writes table and footer and makes the pack durable under its final name: the file is synced, renamed, and
    /// its directory synced. After an error the pack does not exist.
    pub fn seal(mut self) -> Result<SealedPack> {
        let mut table = Vec::with_capacity(self.entries.len() * TABLE_ENTRY_BYTES + FOOTER_BYTES);
        self.entries.iter().for_each(|entry| entry.encode_to(&mut table));
        let footer = Footer {
            id: self.header.id,
            table_offset: self.bytes,
            records: self.entries.len() as u32,
            table_crc: crc32c::crc32c(&table),
            plain_bytes: self.plain_bytes,
        };
        table.extend_from_slice(&footer.encode());
        self.file.append(&table).map_err(|error| self.failed("writing", error))?;
        self.file.sync().map_err(|error| self.failed("syncing", error))?;
        let (part, sealed) = (part_path(self.header.id), path(self.header.id));
        self.storage.rename(&part, &sealed).map_err(|error| self.failed("renaming", error))?;
        self.storage.sync_dir(DIR).map_err(|error| Error::io("syncing", DIR, error))?;
        let bytes = self.bytes + table.len() as u64;
        Ok(SealedPack { header: self.header, entries: self.entries, bytes, plain_bytes: self.plain_bytes })
    }

    fn failed(&self, action: &'static str, error: std::io::Error) -> Error {
        Error::io(action, self.storage.locate(&part_path(self.header.id)), error)
    }
}

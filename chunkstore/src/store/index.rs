//! The index: from a record's id to its location in a pack. It is derived from the packs and rebuilt from them when
//! needed.
//!
//! RocksDB holds four column families: `records` (id -> [`RecordLocation`]), `packs` (number -> [`PackRow`]),
//! `sketches` (sketch -> pack and offset of a chunk that has it) and `state` (which store, which layout). One synced
//! batch is written for each sealed pack. The index is never trusted for content: a record read at a location carries
//! its own id and checksum.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, Direction, FlushOptions,
    IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};

use crate::error::{Error, Result};
use crate::format::limits::PACK_NUMBER_MAX;
use crate::format::record::{get_u32, get_u64};
use crate::format::{Codec, Kind, PackId, RecordId, check_lengths};
use crate::pack::{Class, PackRow, RecordLocation};

/// Directory of the index in a store.
pub(crate) const DIR: &str = "index";

const RECORDS: &str = "records";
const PACKS: &str = "packs";
const SKETCHES: &str = "sketches";
const STATE: &str = "state";
const KEY_STORE: &[u8] = b"store";
/// Present if everything that snapshots need was found in the packs.
const KEY_COMPLETE: &[u8] = b"complete";
/// Changes with the layout of keys or values; an index with another layout is rebuilt.
const LAYOUT: u8 = 1;
/// Keys in one RocksDB lookup.
const LOOKUP_KEYS: usize = 1024;
/// A file in the index's directory that requests a rebuild at the next open. RocksDB reads a damaged table only when
/// one of its keys is looked up, so opening the index again would succeed.
const DAMAGED_MARK: &str = "DAMAGED";
const PLACE_BYTES: usize = 22;
const SKETCH_VALUE_BYTES: usize = 8;
const PACK_ROW_BYTES: usize = 32;

impl RecordLocation {
    pub(crate) fn encode(&self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        let words = [self.pack, self.ordinal, self.offset, self.stored_bytes, self.plain_bytes];
        for (at, word) in words.into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[20] = self.kind as u8;
        bytes[21] = self.codec as u8;
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == PLACE_BYTES).then_some(())?;
        check_lengths(get_u32(bytes, 16), get_u32(bytes, 12)).ok()?;
        Some(Self {
            pack: get_u32(bytes, 0),
            ordinal: get_u32(bytes, 4),
            offset: get_u32(bytes, 8),
            stored_bytes: get_u32(bytes, 12),
            plain_bytes: get_u32(bytes, 16),
            kind: Kind::from_number(bytes[20])?,
            codec: Codec::from_number(bytes[21])?,
        })
    }
}

impl PackRow {
    pub(crate) fn encode(&self) -> [u8; PACK_ROW_BYTES] {
        let mut bytes = [0; PACK_ROW_BYTES];
        bytes[..4].copy_from_slice(&self.id.tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.records.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[24] = self.class as u8;
        bytes
    }

    pub(crate) fn decode(key: &[u8], bytes: &[u8]) -> Option<Self> {
        (bytes.len() == PACK_ROW_BYTES).then_some(())?;
        let number = u32::from_be_bytes(key.try_into().ok()?);
        (number <= PACK_NUMBER_MAX).then_some(())?;
        Some(Self {
            id: PackId { number, tag: get_u32(bytes, 0) },
            class: Class::from_number(bytes[24])?,
            records: get_u32(bytes, 4),
            bytes: get_u64(bytes, 8),
            plain_bytes: get_u64(bytes, 16),
        })
    }
}

/// A change to the index that is written in one synced batch.
#[derive(Default)]
pub(crate) struct Change {
    records: Vec<(RecordId, Option<RecordLocation>)>,
    packs: Vec<(u32, Option<PackRow>)>,
    sketches: Vec<(u32, Option<(u32, u32)>)>,
}

impl Change {
    /// Sets a record's location.
    pub(crate) fn put(&mut self, id: RecordId, location: RecordLocation) {
        self.records.push((id, Some(location)));
    }

    /// Forgets a record.
    pub(crate) fn forget(&mut self, id: RecordId) {
        self.records.push((id, None));
    }

    /// Makes the record at this offset of this pack the one that a sketch finds.
    pub(crate) fn put_sketch(&mut self, sketch: u32, pack: u32, offset: u32) {
        self.sketches.push((sketch, Some((pack, offset))));
    }

    /// Forgets a sketch.
    pub(crate) fn forget_sketch(&mut self, sketch: u32) {
        self.sketches.push((sketch, None));
    }

    /// Adds a pack.
    pub(crate) fn put_pack(&mut self, row: PackRow) {
        self.packs.push((row.id.number, Some(row)));
    }

    /// Forgets a pack.
    pub(crate) fn forget_pack(&mut self, number: u32) {
        self.packs.push((number, None));
    }
}

/// The open index. The cache it was opened with bounds its memory, whatever its size.
pub(crate) struct Index {
    db: DB,
    path: PathBuf,
    /// Opened on a disk so full that nothing can be written.
    read_only: bool,
}

impl Index {
    /// Opens the index in `path`, creating it if it is missing. Opening `RocksDB` writes; on a disk too full for that
    /// the index answers lookups and refuses changes with [`Error::OutOfSpace`].
    ///
    /// # Errors
    /// [`Error::IndexDamaged`] if it is unusable or belongs to another store: the caller deletes and rebuilds it.
    pub(crate) fn open(path: &Path, store_id: [u8; 16], cache_bytes: usize) -> Result<Self> {
        if let Ok(detail) = fs::read_to_string(path.join(DAMAGED_MARK)) {
            return Err(Error::IndexDamaged { detail });
        }
        let cache = Cache::new_lru_cache(cache_bytes);
        let families =
            || [RECORDS, PACKS, SKETCHES, STATE].map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
        let writable =
            DB::open_cf_descriptors(&db_options(), path, families()).map_err(|error| index_error(path, &error));
        let (db, read_only) = match writable {
            Ok(db) => (db, false),
            Err(full @ Error::OutOfSpace { .. }) => {
                let db = DB::open_cf_descriptors_read_only(&db_options(), path, families(), false);
                (db.map_err(|_| full)?, true)
            }
            Err(error) => return Err(error),
        };
        let index = Self { db, path: path.to_path_buf(), read_only };
        index.check_store(store_id)?;
        Ok(index)
    }

    fn check_store(&self, store_id: [u8; 16]) -> Result<()> {
        let stamp = [&[LAYOUT], store_id.as_slice()].concat();
        match self.db.get_cf(self.family(STATE), KEY_STORE).map_err(|error| self.error(&error))? {
            Some(found) if found == stamp => Ok(()),
            Some(_) => Err(Error::IndexDamaged { detail: "it is another store's or another version's".into() }),
            None => {
                let mut batch = WriteBatch::default();
                batch.put_cf(self.family(STATE), KEY_STORE, stamp);
                self.write(batch)
            }
        }
    }

    /// Whether everything that snapshots need was found since the index was last built. A pack that was already missing
    /// then is not known to be missing.
    pub(crate) fn is_complete(&self) -> Result<bool> {
        Ok(self.db.get_cf(self.family(STATE), KEY_COMPLETE).map_err(|error| self.error(&error))?.is_some())
    }

    /// Writes that state durably.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn set_complete(&self, complete: bool) -> Result<()> {
        if self.is_complete()? == complete {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        if complete {
            batch.put_cf(self.family(STATE), KEY_COMPLETE, []);
        } else {
            batch.delete_cf(self.family(STATE), KEY_COMPLETE);
        }
        self.write(batch)
    }

    /// Whether it was opened on a disk so full that it can't be changed.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The location of each id, in their order.
    pub(crate) fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.look_up(ids, &ReadOptions::default())
    }

    /// Like [`Index::locate`], for a walk over everything, which would only evict the cache's content.
    pub(crate) fn locate_once(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        self.look_up(ids, &options)
    }

    fn look_up(&self, ids: &[RecordId], options: &ReadOptions) -> Result<Vec<Option<RecordLocation>>> {
        // RocksDB reads neighbouring keys of a sorted batch from one block.
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_unstable_by_key(|at| ids[*at as usize]);
        let mut locations = vec![None; ids.len()];
        // RocksDB pins the values it found until the whole batch is answered.
        for order in order.chunks(LOOKUP_KEYS) {
            let keys = order.iter().map(|at| ids[*at as usize].as_bytes().as_slice());
            let values = self.db.batched_multi_get_cf_opt(self.family(RECORDS), keys, true, options);
            for (at, value) in order.iter().zip(values) {
                locations[*at as usize] = match value.map_err(|error| self.error(&error))? {
                    Some(value) => Some(decode_location(&value)?),
                    None => None,
                };
            }
        }
        Ok(locations)
    }

    /// The pack and offset of the last record with each sketch; `None` for sketch 0. Only hints.
    pub(crate) fn similar(&self, sketches: &[u32]) -> Result<Vec<Option<(u32, u32)>>> {
        let keys: Vec<[u8; 4]> = sketches.iter().map(|sketch| sketch.to_be_bytes()).collect();
        let values = self.db.batched_multi_get_cf(self.family(SKETCHES), keys.iter().map(<[u8; 4]>::as_slice), false);
        let mut similar = Vec::with_capacity(sketches.len());
        for (value, sketch) in values.into_iter().zip(sketches) {
            let value = value.map_err(|error| self.error(&error))?;
            let value = value.filter(|value| value.len() == SKETCH_VALUE_BYTES && *sketch != 0);
            similar.push(value.map(|value| (get_u32(&value, 0), get_u32(&value, 4))));
        }
        Ok(similar)
    }

    /// Whether the index has an id that begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> Result<bool> {
        let mode = IteratorMode::From(prefix, Direction::Forward);
        let first = self.db.iterator_cf(self.family(RECORDS), mode).next().transpose();
        Ok(first.map_err(|error| self.error(&error))?.is_some_and(|(key, _)| key.starts_with(prefix)))
    }

    /// Calls `visit` with every record's location, in the order of ids. Reads the whole index.
    pub(crate) fn each_record(&self, visit: &mut dyn FnMut(RecordId, RecordLocation) -> Result<()>) -> Result<()> {
        for item in self.db.iterator_cf(self.family(RECORDS), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| self.error(&error))?;
            let key: [u8; 32] =
                (*key).try_into().map_err(|_| Error::IndexDamaged { detail: "an id has an unknown form".into() })?;
            visit(RecordId::from_bytes(key), decode_location(&value)?)?;
        }
        Ok(())
    }

    /// All packs in the index, by number.
    pub(crate) fn packs(&self) -> Result<HashMap<u32, PackRow>> {
        let mut rows = HashMap::new();
        for item in self.db.iterator_cf(self.family(PACKS), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| self.error(&error))?;
            let row = PackRow::decode(&key, &value)
                .ok_or_else(|| Error::IndexDamaged { detail: "a pack's row has an unknown form".into() })?;
            rows.insert(row.id.number, row);
        }
        Ok(rows)
    }

    /// Writes a change; durable when it returns.
    pub(crate) fn apply(&self, change: &Change) -> Result<()> {
        if change.records.is_empty() && change.packs.is_empty() && change.sketches.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (id, location) in &change.records {
            match location {
                Some(location) => batch.put_cf(self.family(RECORDS), id.as_bytes(), location.encode()),
                None => batch.delete_cf(self.family(RECORDS), id.as_bytes()),
            }
        }
        for (number, row) in &change.packs {
            match row {
                Some(row) => batch.put_cf(self.family(PACKS), number.to_be_bytes(), row.encode()),
                None => batch.delete_cf(self.family(PACKS), number.to_be_bytes()),
            }
        }
        for (sketch, location) in &change.sketches {
            match location {
                Some((pack, offset)) => {
                    let value = [pack.to_le_bytes(), offset.to_le_bytes()].concat();
                    batch.put_cf(self.family(SKETCHES), sketch.to_be_bytes(), value);
                }
                None => batch.delete_cf(self.family(SKETCHES), sketch.to_be_bytes()),
            }
        }
        self.write(batch)
    }

    /// Moves what was written from the log to sorted tables, so that the next open has nothing to replay.
    pub(crate) fn flush(&self) -> Result<()> {
        self.check_writable()?;
        // A log is kept until no family needs it.
        let families = [RECORDS, PACKS, SKETCHES, STATE].map(|name| self.family(name));
        self.db.flush_cfs_opt(&families, &FlushOptions::default()).map_err(|error| self.error(&error))
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Error::OutOfSpace { path: self.path.clone(), is_quota: false }) } else { Ok(()) }
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        self.check_writable()?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|error| self.error(&error))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every family was opened")
    }

    fn error(&self, error: &rocksdb::Error) -> Error {
        let error = index_error(&self.path, error);
        if let Error::IndexDamaged { detail } = &error {
            // If it can't be written, the next open finds the damage as this one did.
            let _ = fs::write(self.path.join(DAMAGED_MARK), detail);
        }
        error
    }
}

fn decode_location(value: &[u8]) -> Result<RecordLocation> {
    RecordLocation::decode(value).ok_or_else(|| Error::IndexDamaged { detail: "a place has an unknown form".into() })
}

fn index_error(path: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    let is_quota = text.contains("Disk quota");
    if is_quota || text.contains("No space left") || text.contains("NoSpace") {
        Error::OutOfSpace { path: path.to_path_buf(), is_quota }
    } else if text.contains("Too many open files") {
        // The files are not damaged.
        Error::io("opening", path, std::io::Error::from_raw_os_error(libc::EMFILE))
    } else {
        Error::IndexDamaged { detail: text }
    }
}

fn db_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_manifest_preallocation_size(64 << 10);
    options.set_max_open_files(256);
    options.set_max_total_wal_size(32 << 20);
    options.set_max_background_jobs(2);
    // A lost or truncated log sets all families back to the same moment, so a pack in the index has its records.
    options.set_atomic_flush(true);
    options
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(4 << 10);
    table.set_ribbon_filter(10.0);
    // Partitioned, so that a lookup reads a few KiB of them and the cache bounds their memory.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // Ids are random bytes and do not compress.
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options.set_write_buffer_size(8 << 20);
    options.set_max_write_buffer_number(2);
    options
}

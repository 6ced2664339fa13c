//! Reading one pack: single records, its table, or everything in order.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::limits::{PACK_BYTES_MAX, STORED_BYTES_MAX};
use crate::format::record::{MAGIC, Unreadable};
use crate::format::{HEADER_BYTES, Header, PackId, Record};
use crate::pack::layout::{
    FOOTER_BYTES, Footer, PACK_HEADER_BYTES, PackHeader, TABLE_ENTRY_BYTES, TableEntry, decode_table,
};
use crate::pack::path;
use crate::storage::{ReadFile, Storage};

/// Bytes that are searched at a time; longer than any record.
const SEARCH_BYTES: usize = 4 << 20;
/// Bytes skipped where the device can't read.
const SEARCH_BLOCK_BYTES: usize = 4 << 10;
const _: () = assert!(SEARCH_BYTES > HEADER_BYTES + STORED_BYTES_MAX);

/// A sealed pack open for reading. Records it returns match their checksums; they are not yet verified chunks.
pub struct PackReader {
    id: PackId,
    file: Arc<dyn ReadFile>,
}

impl PackReader {
    /// Opens the pack's file; reads nothing yet.
    pub fn open(storage: &dyn Storage, id: PackId) -> Result<Self> {
        let path = path(id);
        let file = storage.open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::damaged(format!("pack {id}"), "its file is missing"),
            _ => Error::io("opening", &path, error),
        })?;
        Ok(Self { id, file })
    }

    /// The pack's name.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Whether the file is known to be unlinked.
    pub fn is_removed(&self) -> bool {
        self.file.is_removed()
    }

    /// Reads bytes of the pack.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the pack ends before, or the device reports an error there.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged(offset, "the file ends too early"),
            _ => self.damaged(offset, error.to_string()),
        })
    }

    /// Reads the record at `offset` whose payload is `stored_bytes` long.
    pub fn record(&self, offset: u64, stored_bytes: u32) -> Result<Record> {
        if stored_bytes as usize > STORED_BYTES_MAX {
            return Err(self.damaged(offset, "its length is over the limit"));
        }
        let mut bytes = vec![0; HEADER_BYTES + stored_bytes as usize];
        self.read_at(&mut bytes, offset)?;
        let (header, payload) = self.parse_record(&bytes, offset)?;
        Ok(Record { header, payload: payload.to_vec() })
    }

    /// Checks the bytes of one whole record that lay at `offset`, and splits them into header and payload.
    pub(crate) fn parse_record<'b>(&self, bytes: &'b [u8], offset: u64) -> Result<(Header, &'b [u8])> {
        let header = self.parse_header(bytes, offset)?;
        let payload = &bytes[HEADER_BYTES..];
        if header.payload_matches(payload) {
            Ok((header, payload))
        } else {
            Err(self.damaged(offset, "the payload's checksum does not match"))
        }
    }

    /// Reads only a record's header.
    pub fn record_header(&self, offset: u64) -> Result<Header> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_at(&mut bytes, offset)?;
        self.parse_header(&bytes, offset)
    }

    fn parse_header(&self, bytes: &[u8], offset: u64) -> Result<Header> {
        Header::decode(bytes).map_err(|error| self.unreadable(offset, error))
    }

    /// Reads and checks the pack's header: it must be this pack's.
    pub fn header(&self) -> Result<PackHeader> {
        let mut bytes = [0; PACK_HEADER_BYTES];
        self.read_at(&mut bytes, 0)?;
        let header = PackHeader::decode(&bytes).map_err(|error| self.unreadable(0, error))?;
        if header.id == self.id {
            Ok(header)
        } else {
            Err(self.damaged(0, format!("the file holds pack {} instead", header.id)))
        }
    }

    /// Whether the file is whole at its front and says that it is another pack: a copy under a wrong name.
    pub fn is_another_pack(&self) -> bool {
        let mut bytes = [0; PACK_HEADER_BYTES];
        let header = self.read_at(&mut bytes, 0).ok().and_then(|()| PackHeader::decode(&bytes).ok());
        header.is_some_and(|header| header.id != self.id)
    }

    /// Length of the file, unchecked.
    pub fn file_bytes(&self) -> Result<u64> {
        self.file.len_bytes().map_err(|error| Error::io("reading", path(self.id), error))
    }

    /// Length of the file, if a pack can be that long.
    pub fn bytes(&self) -> Result<u64> {
        let bytes = self.file_bytes()?;
        if bytes > PACK_BYTES_MAX { Err(self.damaged(0, "the file is over the limit")) } else { Ok(bytes) }
    }

    /// Reads the table by way of the footer.
    pub fn table(&self) -> Result<Vec<TableEntry>> {
        let file_bytes = self.bytes()?;
        let footer_at = file_bytes
            .checked_sub((PACK_HEADER_BYTES + FOOTER_BYTES) as u64)
            .map(|space| space + PACK_HEADER_BYTES as u64)
            .ok_or_else(|| self.damaged(0, format!("only {file_bytes} bytes long")))?;
        let mut footer = [0; FOOTER_BYTES];
        self.read_at(&mut footer, footer_at)?;
        let footer = Footer::decode(&footer, file_bytes).map_err(|detail| self.damaged(footer_at, detail))?;
        if footer.id != self.id {
            return Err(self.damaged(footer_at, format!("the footer is that of pack {}", footer.id)));
        }
        let mut table = vec![0; footer.records as usize * TABLE_ENTRY_BYTES];
        self.read_at(&mut table, footer.table_offset)?;
        decode_table(&table, &footer).map_err(|detail| self.damaged(footer.table_offset, detail))
    }

    /// The pack's records by its table or, where that is damaged, by scanning the file for whole records.
    ///
    /// # Errors
    /// [`Error::Refused`] if a newer program wrote the pack.
    pub fn scan(&self) -> Result<Scanned> {
        let header = self.header();
        match (header, self.table()) {
            (Err(newer @ Error::Refused { .. }), _) => Err(newer),
            (Ok(_), Ok(entries)) => Ok(Scanned { entries, outcome: ScanOutcome::Whole }),
            (header, table) => {
                let error = header.err().or(table.err()).expect("one of the two failed to get here");
                Ok(Scanned { entries: self.search()?, outcome: ScanOutcome::Damaged(error) })
            }
        }
    }

    /// Finds whole records without table or footer: a record's header has a checksum of its own. Bytes that the device
    /// can't read are skipped.
    fn search(&self) -> Result<Vec<TableEntry>> {
        let end = self.file_bytes()?.min(PACK_BYTES_MAX);
        let mut window = vec![0; (SEARCH_BYTES as u64).min(end) as usize];
        let mut entries = Vec::new();
        let mut at = 0;
        while at + HEADER_BYTES as u64 <= end {
            let window = &mut window[..(end - at).min(SEARCH_BYTES as u64) as usize];
            self.read_what_can_be(window, at);
            at += search_window(window, at, at + window.len() as u64 == end, &mut entries) as u64;
        }
        Ok(entries)
    }

    /// Reads bytes of the pack, zeros where that fails.
    fn read_what_can_be(&self, buf: &mut [u8], offset: u64) {
        if self.read_at(buf, offset).is_ok() {
            return;
        }
        for (block, at) in buf.chunks_mut(SEARCH_BLOCK_BYTES).zip((offset..).step_by(SEARCH_BLOCK_BYTES)) {
            if self.read_at(block, at).is_err() {
                block.fill(0);
            }
        }
    }

    /// A whole header of a newer program is no damage: such a pack must not be replaced.
    fn unreadable(&self, offset: u64, error: Unreadable) -> Error {
        match error {
            Unreadable::Newer { .. } => Error::refused(format!("pack {} at offset {offset} was {error}", self.id)),
            Unreadable::Damaged(detail) => self.damaged(offset, detail),
        }
    }

    /// An [`Error::Damaged`] that names this pack and the offset.
    pub fn damaged(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::damaged(format!("pack {} at offset {offset}", self.id), detail)
    }
}

/// Adds the whole records in a window at `offset` of the file and returns how far it searched. A record that may extend
/// past the window ends the search; the next window starts with it.
fn search_window(window: &[u8], offset: u64, is_last: bool, entries: &mut Vec<TableEntry>) -> usize {
    let mut at = 0;
    while let Some(step) = window[at..].windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
        at += step;
        let longest = HEADER_BYTES + STORED_BYTES_MAX;
        match whole_record(&window[at..]) {
            Some(header) => {
                entries.push(TableEntry::new(&header, (offset + at as u64) as u32));
                at += HEADER_BYTES + header.stored_bytes as usize;
            }
            None if !is_last && window.len() - at < longest => return at,
            None => at += 1,
        }
    }
    if is_last { window.len() } else { at.max(window.len() + 1 - MAGIC.len()) }
}

/// The header of the whole record that these bytes begin with.
fn whole_record(bytes: &[u8]) -> Option<Header> {
    let header = Header::decode(bytes).ok()?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.stored_bytes as usize)?;
    header.payload_matches(payload).then_some(header)
}

/// The records found in a pack.
#[derive(Debug)]
pub struct Scanned {
    /// In the order of the file.
    pub entries: Vec<TableEntry>,
    /// Whether they are all that was written.
    pub outcome: ScanOutcome,
}

/// How a pack's records were found.
#[derive(Debug)]
pub enum ScanOutcome {
    /// By its table.
    Whole,
    /// By searching, because of this damage: there may have been more.
    Damaged(Error),
}

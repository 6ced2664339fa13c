//! Reading one pack: single records, its table, or everything in order.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::PackId;
use crate::limits::{PACK_BYTES_MAX, STORED_BYTES_MAX};
use crate::pack::layout::{
    FOOTER_BYTES, Footer, PACK_HEADER_BYTES, PackHeader, TABLE_ENTRY_BYTES, TableEntry, decode_table,
};
use crate::pack::path;
use crate::record::{HEADER_BYTES, Header, MAGIC, Record};
use crate::storage::{ReadFile, Storage};

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

    /// Reads bytes of the pack.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the pack ends before, or the device reports an error there.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| self.damaged(offset, error.to_string()))
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
    pub fn parse_record<'b>(&self, bytes: &'b [u8], offset: u64) -> Result<(Header, &'b [u8])> {
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
        Header::decode(bytes).map_err(|detail| self.damaged(offset, detail))
    }

    /// Reads and checks the pack's header: it must be this pack's.
    pub fn header(&self) -> Result<PackHeader> {
        let mut bytes = [0; PACK_HEADER_BYTES];
        self.read_at(&mut bytes, 0)?;
        let header = PackHeader::decode(&bytes).map_err(|detail| self.damaged(0, detail))?;
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

    /// Length of the file.
    pub fn bytes(&self) -> Result<u64> {
        let bytes = self.file.len_bytes().map_err(|error| Error::io("reading", path(self.id), error))?;
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
    pub fn scan(&self) -> Result<Scanned> {
        let header = self.header();
        match (header, self.table()) {
            (Ok(_), Ok(entries)) => Ok(Scanned { entries, outcome: ScanOutcome::Whole }),
            (header, table) => {
                let error = header.err().or(table.err()).expect("one of the two failed to get here");
                Ok(Scanned { entries: self.search()?, outcome: ScanOutcome::Damaged(error) })
            }
        }
    }

    /// Finds whole records without table or footer: a record's header has a checksum of its own.
    fn search(&self) -> Result<Vec<TableEntry>> {
        let mut bytes = vec![0; self.bytes()? as usize];
        self.read_at(&mut bytes, 0)?;
        let mut entries = Vec::new();
        let mut at = 0;
        while at + HEADER_BYTES <= bytes.len() {
            let Some(step) = bytes[at..].windows(MAGIC.len()).position(|window| window == MAGIC) else { break };
            at += step;
            match self.whole_record(&bytes, at) {
                Some(header) => {
                    entries.push(table_entry(&header, at as u32));
                    at += HEADER_BYTES + header.stored_bytes as usize;
                }
                None => at += 1,
            }
        }
        Ok(entries)
    }

    fn whole_record(&self, bytes: &[u8], at: usize) -> Option<Header> {
        let header = Header::decode(&bytes[at..]).ok()?;
        let payload = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + header.stored_bytes as usize)?;
        header.payload_matches(payload).then_some(header)
    }

    /// An [`Error::Damaged`] that names this pack and the offset.
    pub fn damaged(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::damaged(format!("pack {} at offset {offset}", self.id), detail)
    }
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

fn table_entry(header: &Header, offset: u32) -> TableEntry {
    TableEntry {
        id: header.id,
        base: header.base,
        offset,
        stored_bytes: header.stored_bytes,
        plain_bytes: header.plain_bytes,
        kind: header.kind,
        codec: header.codec,
    }
}

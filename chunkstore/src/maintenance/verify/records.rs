//! Checking records: checksum, table, decoding, hash.

use super::Run;
use super::findings::Findings;
use super::unit_queue::{Pass, Unit, UnitQueue};
use super::verdict::{Fault, FoundEntry, OpenPack, Verdict};
use crate::catalog::{Snapshot, State};
use crate::error::{Error, Result};
use crate::format::manifest::Node;
use crate::format::{EntryId, Header, Kind, RecordCodec, buffers};
use crate::pack::PackRow;
use crate::pack::TableEntry;
use crate::pack::record_reader::id_of;
use crate::parallel;
use crate::store::marks::Mark;

/// Checks all full records of these packs, or the wanted ones.
pub(super) fn check(run: &Run<'_>, rows: Vec<PackRow>, wanted: Option<&Mark>, findings: &Findings) -> Result<()> {
    let units = UnitQueue::new(run, findings, rows, wanted, Pass::Full);
    parallel::run(run.threads, || {
        let mut plain = Vec::new();
        while let Some(unit) = units.next()? {
            let verdicts = check_unit(run.store.codec(), &unit, &mut plain);
            findings.settle(run.store, &unit.pack, verdicts)?;
            run.progress.advance(unit.bytes() as u64);
        }
        Ok(())
    })?;
    Ok(())
}

fn check_unit(codec: &RecordCodec, unit: &Unit, plain: &mut Vec<u8>) -> Vec<Verdict> {
    buffers::with(unit.bytes(), |bytes| {
        let readable = read_unit(unit, bytes);
        let check = |(at, entry): (usize, &TableEntry)| {
            let verdict = record_bytes(unit, &readable, bytes, at, entry)
                .and_then(|bytes| check_full(codec, &unit.pack, entry, bytes, plain));
            (at, verdict.map_err(Fault::from))
        };
        unit.entries().map(check).collect()
    })
}

/// The records of a unit that could not be read, with the reasons.
pub(super) type Unreadable = Vec<(usize, String)>;

/// Reads a unit's bytes with one call or, if that fails, record by record, so that one bad block affects only its own
/// record.
pub(super) fn read_unit(unit: &Unit, bytes: &mut [u8]) -> Unreadable {
    if unit.pack.reader.read_at(bytes, unit.start()).is_ok() {
        return Vec::new();
    }
    let mut unreadable = Vec::new();
    for (at, entry) in unit.entries() {
        let start = (u64::from(entry.offset) - unit.start()) as usize;
        let record = &mut bytes[start..start + entry.record_bytes() as usize];
        if let Err(error) = unit.pack.reader.read_at(record, u64::from(entry.offset)) {
            unreadable.push((at, detail(error)));
        }
    }
    unreadable
}

/// The bytes of one record of a unit that was read.
pub(super) fn record_bytes<'b>(
    unit: &Unit,
    unreadable: &Unreadable,
    bytes: &'b [u8],
    at: usize,
    entry: &TableEntry,
) -> Result<&'b [u8], String> {
    if let Some((_, detail)) = unreadable.iter().find(|unreadable| unreadable.0 == at) {
        return Err(detail.clone());
    }
    let start = (u64::from(entry.offset) - unit.start()) as usize;
    Ok(&bytes[start..start + entry.record_bytes() as usize])
}

/// Checks the stored form of a record: its checksums, and that its header matches the table.
pub(super) fn parse<'b>(pack: &OpenPack, entry: &TableEntry, bytes: &'b [u8]) -> Result<(Header, &'b [u8]), String> {
    let (header, payload) = pack.reader.parse_record(bytes, u64::from(entry.offset)).map_err(detail)?;
    let as_listed = header.id == entry.id
        && header.base == entry.base
        && (header.kind, header.codec) == (entry.kind, entry.codec)
        && (header.plain_bytes, header.stored_bytes) == (entry.plain_bytes, entry.stored_bytes);
    if as_listed { Ok((header, payload)) } else { Err("its header does not match the pack's table".into()) }
}

fn check_full(
    codec: &RecordCodec,
    pack: &OpenPack,
    entry: &TableEntry,
    bytes: &[u8],
    plain: &mut Vec<u8>,
) -> Result<Option<FoundEntry>, String> {
    let (header, payload) = parse(pack, entry, bytes)?;
    let plain = codec.decode_into(&header, payload, None, plain)?;
    check_content(pack, entry, plain)
}

/// Checks plain bytes against their id, and the form of nodes and snapshots' entries.
pub(super) fn check_content(pack: &OpenPack, entry: &TableEntry, plain: &[u8]) -> Result<Option<FoundEntry>, String> {
    if id_of(entry.kind, plain) != entry.id {
        return Err("its bytes do not match its id".into());
    }
    match entry.kind {
        Kind::Chunk => Ok(None),
        Kind::Node => Node::decode(plain).map(|_| None),
        Kind::Entry => {
            let id = EntryId::from_bytes(*entry.id.as_bytes());
            match Snapshot::from_entry(id, plain.to_vec(), State::default()) {
                Ok(snapshot) => Ok(Some(FoundEntry { id, name: snapshot.name(), pack: pack.row.id })),
                // An entry of a newer version: if its catalog file is lost, that version has to report it.
                Err(Error::Refused { .. }) => Ok(None),
                Err(error) => Err(error.to_string()),
            }
        }
    }
}

/// The text of an error about a location in a pack, without the location.
fn detail(error: Error) -> String {
    match error {
        Error::Damaged { detail, .. } => detail,
        other => other.to_string(),
    }
}

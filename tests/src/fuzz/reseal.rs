//! Putting the checksums of changed bytes right, so that a fuzzer gets behind them. Written from FORMAT.md, not from
//! the library, whose encoders would also put other things right. `None` where there is no place for a checksum.

use std::collections::BTreeMap;

use chunkstore::format::HEADER_BYTES;
use chunkstore::pack::{FOOTER_BYTES, PACK_HEADER_BYTES, TABLE_ENTRY_BYTES};

/// A record's header.
pub fn record_header(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sealed = bytes.to_vec();
    seal_record_header(sealed.get_mut(..HEADER_BYTES)?);
    Some(sealed)
}

fn seal_record_header(header: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..20]), &header[24..HEADER_BYTES]);
    put(header, 20, crc);
}

/// The header, each record as far as they lie one after another, table and footer.
pub fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sealed = bytes.to_vec();
    seal_last_word(sealed.get_mut(..PACK_HEADER_BYTES)?);
    seal_records(&mut sealed[PACK_HEADER_BYTES..]);
    let footer_at = bytes.len().checked_sub(FOOTER_BYTES).filter(|at| *at >= PACK_HEADER_BYTES)?;
    let (front, footer) = sealed.split_at_mut(footer_at);
    if let Some(table) = table_of(front, footer) {
        let crc = crc32c::crc32c(table);
        put(footer, 28, crc);
    }
    seal_last_word(footer);
    Some(sealed)
}

/// The bytes before the footer that it calls the table.
fn table_of<'a>(front: &'a [u8], footer: &[u8]) -> Option<&'a [u8]> {
    let at = u64::from_le_bytes(footer[16..24].try_into().expect("eight bytes"));
    let table_bytes = (get(footer, 24) as usize).checked_mul(TABLE_ENTRY_BYTES)?;
    front.get(usize::try_from(at).ok()?..)?.get(..table_bytes)
}

/// Records one after another, without anything around them.
pub fn records(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    seal_records(&mut sealed);
    sealed
}

fn seal_records(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(record_bytes) = bytes.get_mut(at..).and_then(seal_record) {
        at += record_bytes;
    }
}

/// Seals the record that these bytes begin with and returns its length.
fn seal_record(bytes: &mut [u8]) -> Option<usize> {
    let (header, rest) = bytes.split_at_mut_checked(HEADER_BYTES)?;
    let stored_bytes = get(header, 12) as usize;
    let payload = rest.get(..stored_bytes).filter(|_| header.starts_with(b"VMR1"))?;
    put(header, 16, crc32c::crc32c(payload));
    seal_record_header(header);
    Some(HEADER_BYTES + stored_bytes)
}

/// Header and footer of a pack end with the checksum of what is before.
fn seal_last_word(part: &mut [u8]) {
    let at = part.len() - 4;
    let crc = crc32c::crc32c(&part[..at]);
    put(part, at, crc);
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Sectors of a clone's map, of which the first has this number (disks/CLONES.md). A sector of zeros has no checksum.
pub fn map_sectors(first: u64, sectors: &[u8]) -> Vec<u8> {
    const SECTOR_BYTES: usize = 512;
    let mut sealed = sectors.to_vec();
    for (number, sector) in (first..).zip(sealed.as_chunks_mut::<SECTOR_BYTES>().0) {
        if sector.iter().any(|byte| *byte != 0) {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &sector[..SECTOR_BYTES - 4]);
            put(sector, SECTOR_BYTES - 4, crc);
        }
    }
    sealed
}

/// Files of text whose last line is `blake3 ` and the digits for all lines before.
pub fn last_line(bytes: &[u8]) -> Option<Vec<u8>> {
    let body_end = 1 + bytes.strip_suffix(b"\n")?.iter().rposition(|byte| *byte == b'\n')?;
    let body = &bytes[..body_end];
    let line = format!("blake3 {}\n", blake3::hash(body).to_hex());
    Some([body, line.as_bytes()].concat())
}

/// The checksum of a configuration's section `[format]`.
pub fn config(text: &[u8]) -> Option<Vec<u8>> {
    const KEY: &str = "check = \"";
    const DIGITS: usize = 16;
    let text = str::from_utf8(text).ok()?;
    let file: BTreeMap<String, toml::Value> = toml::from_str(text).ok()?;
    let mut fields: BTreeMap<_, _> = file.get("format")?.as_table()?.clone().into_iter().collect();
    fields.remove("check");
    let digest = blake3::hash(&serde_json::to_vec(&fields).ok()?).to_hex();
    let at = text.find(KEY)? + KEY.len();
    let end = at + text[at..].find('"')?;
    Some([&text[..at], &digest[..DIGITS], &text[end..]].concat().into_bytes())
}

//! A snapshot in memory, and its catalog file: four lines, the last a checksum of all before it.
//!
//! ```text
//! vmstore-snapshot 1
//! {entry}
//! {state}
//! blake3 <64 hex digits>
//! ```
//!
//! The checksum is verified first, in this and every later version: a file that passes it is as it was written, so a
//! higher version number means a newer program and not a flipped bit.

use super::entry::{Entry, State};
use crate::catalog::name::SnapshotName;
use crate::error::{Error, Result};
use crate::format::EntryId;
use crate::format::limits::CATALOG_FILE_BYTES_MAX;

const MAGIC: &str = "vmstore-snapshot";
const VERSION: u32 = 1;
/// `blake3 `, 64 hex digits and a newline.
const TRAILER_BYTES: usize = 7 + 64 + 1;

/// A snapshot whose entry was just made, or read from bytes that passed their checksum.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    entry: Entry,
    entry_id: EntryId,
    /// As it was first written, because a newer version's fields may not encode to the same bytes again.
    entry_encoding: Vec<u8>,
    /// The mutable state; made permanent by [`Catalog::rewrite`](super::Catalog::rewrite).
    pub state: State,
}

impl Snapshot {
    /// Makes a new snapshot.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the entry breaks a limit.
    pub fn create(entry: Entry, state: State) -> Result<Self> {
        let entry_encoding = entry.encode()?;
        Ok(Self { entry, entry_id: EntryId::of(&entry_encoding), entry_encoding, state })
    }

    /// Makes a snapshot from an entry's encoding, as in a pack or another store, which must match `entry_id`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not; otherwise as [`Entry::decode`].
    pub fn from_entry(entry_id: EntryId, entry_encoding: Vec<u8>, state: State) -> Result<Self> {
        if EntryId::of(&entry_encoding) != entry_id {
            return Err(Error::damaged(format!("snapshot entry {entry_id}"), "its bytes do not match its id"));
        }
        if entry_encoding.contains(&b'\n') {
            return Err(Error::invalid("a snapshot's entry is one line"));
        }
        Ok(Self { entry: Entry::decode(&entry_encoding)?, entry_id, entry_encoding, state })
    }

    /// The snapshot's name.
    pub fn name(&self) -> SnapshotName {
        self.entry.name()
    }

    /// The immutable part.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The name of the entry's bytes.
    pub fn entry_id(&self) -> EntryId {
        self.entry_id
    }

    /// The entry's bytes, to be repeated in a pack.
    pub fn entry_encoding(&self) -> &[u8] {
        &self.entry_encoding
    }

    /// Checks that the snapshot is not partial.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is partial, naming what completes it.
    pub fn check_whole(&self) -> Result<()> {
        if !self.state.partial {
            return Ok(());
        }
        let percent = self.state.presence.map_or_else(String::new, |presence| format!(" ({} %)", presence.percent()));
        let name = self.name();
        Err(Error::refused(format!(
            "snapshot {name} is here only in part{percent}; `vmstore pull REMOTE {name}` completes it, and so does \
             `vmfs mount --upstream REMOTE --hydrate {name}`"
        )))
    }

    /// The bytes of the catalog file.
    #[expect(clippy::missing_panics_doc, reason = "a state has no value that JSON lacks")]
    pub fn encode(&self) -> Vec<u8> {
        let mut file = format!("{MAGIC} {VERSION}\n").into_bytes();
        file.extend_from_slice(&self.entry_encoding);
        file.push(b'\n');
        serde_json::to_writer(&mut file, &self.state).expect("all keys are strings, and a Vec takes all bytes");
        file.push(b'\n');
        let trailer = trailer(&file);
        file.extend_from_slice(trailer.as_bytes());
        file
    }

    /// Reads the catalog file of the snapshot `name`.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the entry, also if it is the file of another snapshot; [`Error::Refused`] if a newer
    /// version made it.
    pub fn decode(name: &SnapshotName, file: &[u8]) -> Result<Self> {
        let damaged = |detail: String| Error::damaged(format!("catalog entry {name}"), detail);
        if file.len() as u64 > CATALOG_FILE_BYTES_MAX {
            return Err(damaged(format!("{} bytes are too many", file.len())));
        }
        let lines = checked_lines(file).map_err(|detail| damaged(detail.to_owned()))?;
        check_version(name, lines.header)?;
        let state = serde_json::from_slice(lines.state).map_err(|error| damaged(format!("its state: {error}")))?;
        let entry = Entry::decode(lines.entry).map_err(|error| match error {
            Error::Refused { what } => Error::refused(format!("catalog entry {name}: {what}")),
            other => damaged(other.to_string()),
        })?;
        if entry.name() != *name {
            return Err(damaged(format!("holds the entry of {}: files were swapped or renamed", entry.name())));
        }
        Ok(Self { entry, entry_id: EntryId::of(lines.entry), entry_encoding: lines.entry.to_vec(), state })
    }
}

impl Snapshot {
    /// Reads the catalog file of an unknown snapshot.
    ///
    /// # Errors
    /// As [`Snapshot::decode`].
    pub fn read_file(file: &[u8]) -> Result<Self> {
        let damaged = |detail: &str| Error::damaged("a catalog entry", detail);
        let entry = checked_lines(file).map_err(damaged)?.entry;
        Self::decode(&Entry::decode(entry)?.name(), file)
    }
}

struct Lines<'a> {
    header: &'a [u8],
    entry: &'a [u8],
    state: &'a [u8],
}

fn trailer(body: &[u8]) -> String {
    format!("blake3 {}\n", blake3::hash(body).to_hex())
}

/// Splits a file whose checksum is right.
fn checked_lines(file: &[u8]) -> Result<Lines<'_>, &'static str> {
    let body_bytes = file.len().checked_sub(TRAILER_BYTES).ok_or("too short")?;
    let (body, found) = file.split_at(body_bytes);
    if found != trailer(body).as_bytes() {
        return Err("its checksum does not match");
    }
    let mut lines = body.split(|&byte| byte == b'\n');
    match (lines.next(), lines.next(), lines.next(), lines.next(), lines.next()) {
        (Some(header), Some(entry), Some(state), Some([]), None) => Ok(Lines { header, entry, state }),
        _ => Err("not four lines"),
    }
}

fn check_version(name: &SnapshotName, header: &[u8]) -> Result<()> {
    let version = str::from_utf8(header).ok().and_then(|header| header.strip_prefix(MAGIC)?.strip_prefix(' '));
    match version.and_then(|version| version.parse::<u32>().ok()) {
        Some(VERSION) => Ok(()),
        Some(version) if version > VERSION => Err(Error::refused(format!(
            "catalog entry {name} was made by a newer vmstore (its version is {version}, this program knows {VERSION})"
        ))),
        _ => Err(Error::damaged(format!("catalog entry {name}"), "its first line is none of a snapshot")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::tests::{entry, name};

    /// The worked example of the format's document.
    const GOLDEN: &str = concat!(
        "vmstore-snapshot 1\n",
        r#"{"image":"web01","time":"20261120T020000Z","#,
        r#""root":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","virtual_bytes":8589934592,"#,
        r#""labels":{"app":"mysql","os":"debian12"},"group":"web","origin":"00112233445566778899aabbccddeeff","#,
        r#""created":"2026-11-20T02:00:07Z","attachments":{"domain.xml":"<domain/>\n"}}"#,
        "\n",
        r#"{"holds":["operator"],"partial":false}"#,
        "\n",
        "blake3 84eaf9f102fd88f4a6866e8d9523b0ed52f790ba1c66d04e05d5282717b865c5\n",
    );
    const GOLDEN_ENTRY_ID: &str = "e532cc91b021f1a9a9fd7f4b1994f2d300eaa25b6d1c7be7030ebbcf832d4007";

    fn golden_name() -> SnapshotName {
        name("web01@20261120T020000Z")
    }

    fn golden_snapshot() -> Snapshot {
        let mut state = State::default();
        state.hold("operator").unwrap();
        Snapshot::create(entry("web01@20261120T020000Z"), state).unwrap()
    }

    fn with_checksum(body: &str) -> Vec<u8> {
        format!("{body}{}", trailer(body.as_bytes())).into_bytes()
    }

    #[test]
    fn golden_file() {
        assert_eq!(String::from_utf8(golden_snapshot().encode()).unwrap(), GOLDEN);
        let read = Snapshot::decode(&golden_name(), GOLDEN.as_bytes()).unwrap();
        assert_eq!(read, golden_snapshot());
        assert_eq!(read.entry_id().to_string(), GOLDEN_ENTRY_ID);
        let again = Snapshot::from_entry(read.entry_id(), read.entry_encoding().to_vec(), read.state.clone()).unwrap();
        assert_eq!(again, read);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        for (offset, bit) in (0..GOLDEN.len()).flat_map(|offset| (0..8).map(move |bit| (offset, bit))) {
            let mut file = GOLDEN.as_bytes().to_vec();
            file[offset] ^= 1 << bit;
            let error = Snapshot::decode(&golden_name(), &file).expect_err("a flipped bit");
            assert!(
                matches!(&error, Error::Damaged { what, .. } if what.contains("web01@20261120T020000Z")),
                "{error}"
            );
        }
    }

    #[test]
    fn every_other_length_is_detected() {
        for len in 0..GOLDEN.len() {
            assert!(matches!(Snapshot::decode(&golden_name(), &GOLDEN.as_bytes()[..len]), Err(Error::Damaged { .. })));
        }
        for longer in [format!("{GOLDEN}\n"), format!("{GOLDEN}{GOLDEN}"), format!("\n{GOLDEN}")] {
            assert!(matches!(Snapshot::decode(&golden_name(), longer.as_bytes()), Err(Error::Damaged { .. })));
        }
        let huge = with_checksum(&"x".repeat(CATALOG_FILE_BYTES_MAX as usize));
        assert!(matches!(Snapshot::decode(&golden_name(), &huge), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_whole_file_under_another_name_is_detected() {
        for other in ["web02@20261120T020000Z", "web01@20261121T020000Z"] {
            let error = Snapshot::decode(&name(other), GOLDEN.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("web01@20261120T020000Z"), "{error}");
        }
    }

    #[test]
    fn what_passes_the_checksum_is_still_judged() {
        let body = &GOLDEN[..GOLDEN.len() - TRAILER_BYTES];
        assert_eq!(with_checksum(body), GOLDEN.as_bytes());
        let newer = with_checksum(&body.replace("snapshot 1", "snapshot 2"));
        assert!(matches!(Snapshot::decode(&golden_name(), &newer), Err(Error::Refused { .. })));
        let required = with_checksum(&body.replace("\"image\"", "\"required_features\":[\"x\"],\"image\""));
        assert!(matches!(Snapshot::decode(&golden_name(), &required), Err(Error::Refused { .. })));
        let damaged = [
            body.replace("snapshot 1", "snapshot 0"),
            body.replace("snapshot 1", "snapshot"),
            body.replace("vmstore", "VMSTORE"),
            body.replace("\"partial\":false", "\"partial\":0"),
            body.replace("\"image\":\"web01\"", "\"image\":\"../x\""),
            body.replace("\"root\":\"00", "\"root\":\"0"),
            body.replace("\"root\"", "\"toor\""),
            body.replace("8589934592", "-1"),
            body.replace("8589934592", "18446744073709551616"),
            body.replace('{', "["),
            format!("{body}\n"),
            body.replacen('\n', " ", 1),
            String::new(),
            "\n\n\n".to_owned(),
        ];
        for body in damaged {
            assert!(
                matches!(Snapshot::decode(&golden_name(), &with_checksum(&body)), Err(Error::Damaged { .. })),
                "{body}"
            );
        }
    }

    #[test]
    fn unknown_fields_of_a_newer_version_survive_a_rewrite() {
        // With its own spacing and numbers, which this version would write otherwise.
        let body = GOLDEN[..GOLDEN.len() - TRAILER_BYTES]
            .replace("\"image\"", "\"weight\": 1.0e3, \"image\"")
            .replace("\"partial\"", "\"later\":18446744073709551615,\"partial\"");
        let mut newer = Snapshot::decode(&golden_name(), &with_checksum(&body)).unwrap();
        newer.state.release("operator");
        let rewritten = Snapshot::decode(&golden_name(), &newer.encode()).unwrap();
        assert_eq!((rewritten.entry_id(), rewritten.entry_encoding()), (newer.entry_id(), newer.entry_encoding()));
        assert_eq!(rewritten.state.extra["later"], u64::MAX);
    }

    #[test]
    fn an_entry_from_elsewhere_must_match_its_id_and_be_a_line() {
        let snapshot = golden_snapshot();
        let other = EntryId::of(b"other");
        let encoding = snapshot.entry_encoding().to_vec();
        assert!(matches!(Snapshot::from_entry(other, encoding.clone(), State::default()), Err(Error::Damaged { .. })));
        let two_lines = [&encoding[..], b"\n"].concat();
        let id = EntryId::of(&two_lines);
        assert!(matches!(Snapshot::from_entry(id, two_lines, State::default()), Err(Error::Invalid { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Snapshot::decode(&golden_name(), &body);
            let mut file = body.clone();
            file.extend_from_slice(trailer(&body).as_bytes());
            let _ = Snapshot::decode(&golden_name(), &file);
        }
    }
}

//! A snapshot's immutable entry, and its mutable state.
//!
//! An entry is encoded once, as one line of JSON, and from then on kept as those bytes: its `EntryId` names those
//! bytes, and packs repeat them. Fields that this version does not know are optional by definition and preserved; a
//! field that must be understood is named in `required_features`, and such an entry is refused.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::label;
use crate::catalog::name::{ImageName, SnapshotName, SnapshotTime};
use crate::error::{Error, Result};
use crate::format::NodeId;
use crate::format::limits::{ENTRY_BYTES_MAX, IMAGE_BYTES_MAX, LABELS_MAX};
use crate::format::manifest::Tree;

/// The reason of a hold for which the user gave none.
pub const DEFAULT_HOLD: &str = "operator";

/// Fields that this version does not know.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// The immutable part of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Of which image.
    pub image: ImageName,
    /// Of which time.
    pub time: SnapshotTime,
    /// The manifest's root; `None` for an image of zeros only.
    #[serde(with = "node_hex")]
    pub root: Option<NodeId>,
    /// The image's exact size.
    pub virtual_bytes: u64,
    /// Labels given by users.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The disks of one VM that were taken at a common time have the same group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The id of the store that made it.
    pub origin: String,
    /// When it was ingested.
    pub created: Timestamp,
    /// Small named texts that belong to it, such as a VM's definition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attachments: BTreeMap<String, String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Read first, because a newer version's features may make the rest unreadable.
#[derive(Deserialize)]
struct Requirements {
    #[serde(default)]
    required_features: Vec<String>,
}

impl Entry {
    /// The manifest: its root, if the image is not all zeros, and the size of the image in bytes.
    pub fn tree(&self) -> Tree {
        (self.root, self.virtual_bytes)
    }

    /// Reads an entry from its encoding.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not one or breaks a limit; [`Error::Refused`] if a newer version made it.
    pub fn decode(encoding: &[u8]) -> Result<Self> {
        check_len(encoding)?;
        let unreadable = |error: serde_json::Error| Error::invalid(format!("not a snapshot's entry: {error}"));
        let requirements: Requirements = serde_json::from_slice(encoding).map_err(unreadable)?;
        if !requirements.required_features.is_empty() {
            let features = requirements.required_features;
            return Err(Error::refused(format!("the snapshot was made by a newer vmstore, with {features:?}")));
        }
        let entry: Self = serde_json::from_slice(encoding).map_err(unreadable)?;
        entry.check()?;
        Ok(entry)
    }

    /// The entry as one line of JSON, without the newline: the same bytes for the same entry.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it breaks a limit.
    #[expect(clippy::missing_panics_doc, reason = "it has no value that JSON lacks")]
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let encoding = serde_json::to_vec(self).expect("all keys are strings");
        check_len(&encoding)?;
        // An unknown field could be named like a known one, or demand a feature.
        let read_back = Self::decode(&encoding)?;
        if read_back == *self { Ok(encoding) } else { Err(Error::invalid("the entry does not read back as itself")) }
    }

    /// The snapshot's name.
    pub fn name(&self) -> SnapshotName {
        SnapshotName::new(self.image.clone(), self.time)
    }

    /// Whether the snapshot has all of these labels.
    pub fn label_matches(&self, wanted: &[label::Label]) -> bool {
        wanted.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }

    fn check(&self) -> Result<()> {
        if self.virtual_bytes > IMAGE_BYTES_MAX {
            return Err(Error::invalid(format!("an image of {} bytes is too large", self.virtual_bytes)));
        }
        label::check(&self.labels)?;
        label::check_text("a snapshot's group", self.group.as_deref().unwrap_or_default())?;
        label::check_text("a snapshot's origin", &self.origin)?;
        if self.attachments.len() > LABELS_MAX {
            return Err(Error::invalid(format!("{} attachments are too many", self.attachments.len())));
        }
        self.attachments.keys().try_for_each(|key| label::check_key(key))
    }
}

fn check_len(encoding: &[u8]) -> Result<()> {
    if encoding.len() <= ENTRY_BYTES_MAX {
        return Ok(());
    }
    let len_bytes = encoding.len();
    Err(Error::invalid(format!("a snapshot's entry of {len_bytes} bytes, where {ENTRY_BYTES_MAX} are possible")))
}

/// The mutable state of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Reasons why it must be neither removed nor pruned.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub holds: BTreeSet<String>,
    /// Whether chunks may be missing because they were not fetched yet.
    pub partial: bool,
    /// How much of a partial snapshot the store had when it was last counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<Presence>,
    /// How it was ingested here; not for a snapshot that came from another store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestReport>,
    /// The token that pushed it here, unless it was the operator's. The entry's origin is only the pusher's claim; this
    /// is verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_from: Option<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl State {
    /// Adds a reason to hold the snapshot; false if it was there already.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the reason is empty, too long or not printable.
    pub fn hold(&mut self, reason: &str) -> Result<bool> {
        label::check_text("the reason of a hold", reason)?;
        if reason.is_empty() {
            return Err(Error::invalid("the reason of a hold is empty"));
        }
        Ok(self.holds.insert(reason.to_owned()))
    }

    /// Removes a reason; false if it was not there.
    pub fn release(&mut self, reason: &str) -> bool {
        self.holds.remove(reason)
    }

    /// Removes a reason, or all if none is given.
    ///
    /// # Errors
    /// [`Error::NotFound`], naming the present reasons, if this is none of them.
    pub fn release_hold(&mut self, name: &SnapshotName, reason: Option<&str>) -> Result<()> {
        if !self.is_held() {
            return Err(Error::not_found(format!("a hold of snapshot {name}")));
        }
        let Some(reason) = reason else {
            self.holds.clear();
            return Ok(());
        };
        if self.release(reason) {
            return Ok(());
        }
        let others = self.holds.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(Error::not_found(format!("hold {reason:?} of snapshot {name} (it is held: {others})")))
    }

    /// Whether anything holds the snapshot.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }
}

/// How much of a partial snapshot the store has, in plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Bytes that the store has.
    pub present_bytes: u64,
    /// Bytes of the whole snapshot. An estimate while parts of its manifest are missing.
    pub needed_bytes: u64,
}

impl Presence {
    /// The present part in percent. Never 100 while something is missing.
    pub fn percent(&self) -> u8 {
        let Self { present_bytes, needed_bytes } = *self;
        match needed_bytes {
            0 => 0,
            _ if present_bytes >= needed_bytes => 100,
            _ => (u128::from(present_bytes) * 100 / u128::from(needed_bytes)) as u8,
        }
    }
}

/// The report of an ingest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngestReport {
    /// The snapshot that it was compared with, if any.
    pub parent: Option<String>,
    /// Bytes in chunks, which is all but the zero runs.
    pub data_bytes: u64,
    /// Bytes in zero runs.
    pub zero_bytes: u64,
    /// Chunks of the image, repeated ones included.
    pub chunks: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Their plain bytes.
    pub new_bytes: u64,
    /// Those of them that were stored as deltas.
    pub delta_chunks: u64,
    /// Chunks that were found where the parent has them, by hashing alone.
    pub reused_boundaries: u64,
    /// Bytes by which packs and catalog grew.
    pub stored_bytes: u64,
    /// Wall time.
    #[serde(serialize_with = "finite")]
    pub elapsed_s: f64,
    /// Of the image's data, read and processed.
    #[serde(serialize_with = "finite")]
    pub throughput_bytes_per_s: f64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// JSON has no infinity, the result of dividing by a time of 0.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn finite<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(if value.is_finite() { *value } else { 0.0 })
}

mod node_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::NodeId;

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(root: &Option<NodeId>, serializer: S) -> Result<S::Ok, S::Error> {
        match root {
            Some(root) => serializer.collect_str(root),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NodeId>, D::Error> {
        let hex = Option::<String>::deserialize(deserializer)?;
        hex.map(|hex| hex.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::tests::entry;

    #[test]
    fn large_numbers_and_unknown_fields_survive() {
        let mut full = entry("web01@20261120T020000Z");
        full.virtual_bytes = IMAGE_BYTES_MAX - 1;
        full.extra =
            BTreeMap::from([("counter".to_owned(), json!(u64::MAX)), ("nested".to_owned(), json!({"a": [1.5]}))]);
        full.labels.insert("quote".to_owned(), "line \u{2028} \"quoted\" \\".to_owned());
        let encoding = full.encode().unwrap();
        assert!(!encoding.contains(&b'\n'));
        assert_eq!(Entry::decode(&encoding).unwrap(), full);
        assert_eq!(Entry::decode(&encoding).unwrap().encode().unwrap(), encoding);
    }

    #[test]
    fn what_a_newer_version_requires_is_refused() {
        let mut newer = entry("web01@20261120T020000Z");
        newer.extra.insert("required_features".to_owned(), json!([]));
        newer.encode().unwrap();
        newer.extra.insert("required_features".to_owned(), json!(["cipher"]));
        let refused = newer.encode().unwrap_err().to_string();
        assert!(refused.starts_with("refused") && refused.contains("newer vmstore") && refused.contains("cipher"));
        let unreadable = br#"{"required_features":["x"],"root":17}"#;
        assert!(matches!(Entry::decode(unreadable), Err(Error::Refused { .. })));
    }

    #[test]
    fn an_unknown_field_can_not_hide_a_known_one() {
        let mut twice = entry("web01@20261120T020000Z");
        twice.extra.insert("virtual_bytes".to_owned(), json!(1));
        assert!(matches!(twice.encode(), Err(Error::Invalid { .. })));
    }

    #[test]
    fn limits_hold_in_both_directions() {
        let break_it: [fn(&mut Entry); 6] = [
            |entry| entry.virtual_bytes = IMAGE_BYTES_MAX + 1,
            |entry| entry.group = Some("a\nb".to_owned()),
            |entry| entry.origin = "x".repeat(999),
            |entry| entry.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(),
            |entry| drop(entry.attachments.insert("a b".to_owned(), String::new())),
            |entry| drop(entry.attachments.insert("a".to_owned(), "x".repeat(ENTRY_BYTES_MAX))),
        ];
        for break_it in break_it {
            let mut broken = entry("web01@20261120T020000Z");
            break_it(&mut broken);
            assert!(matches!(broken.encode(), Err(Error::Invalid { .. })));
            assert!(matches!(Entry::decode(&serde_json::to_vec(&broken).unwrap()), Err(Error::Invalid { .. })));
        }
        let deep = format!("{{\"deep\":{}", "[".repeat(100_000));
        assert!(matches!(Entry::decode(deep.as_bytes()), Err(Error::Invalid { .. })));
    }

    #[test]
    fn labels_select() {
        let label = |text| label::parse(text).unwrap();
        let labelled = entry("web01@20261120T020000Z");
        assert!(labelled.label_matches(&[]));
        assert!(labelled.label_matches(&[label("os=debian12"), label("app=mysql")]));
        for other in ["os=debian11", "os=", "host=hv7"] {
            assert!(!labelled.label_matches(&[label("os=debian12"), label(other)]));
        }
    }

    #[test]
    fn holds_have_reasons() {
        let mut state = State::default();
        assert!(
            state.hold(DEFAULT_HOLD).unwrap() && !state.hold(DEFAULT_HOLD).unwrap() && state.hold("clone a").unwrap()
        );
        assert!(state.release(DEFAULT_HOLD) && !state.release(DEFAULT_HOLD) && state.is_held());
        assert!(state.release("clone a") && !state.is_held());
        assert!(state.hold("").is_err() && state.hold("a\nb").is_err());
    }

    #[test]
    fn no_time_at_all_is_written_as_a_number() {
        let report = IngestReport { throughput_bytes_per_s: f64::INFINITY, elapsed_s: 0.1, ..IngestReport::default() };
        let read: IngestReport = serde_json::from_slice(&serde_json::to_vec(&report).unwrap()).unwrap();
        assert_eq!((read.throughput_bytes_per_s, read.elapsed_s), (0.0, 0.1));
    }
}

//! `clone.json`: what a clone consists of (CLONES.md). Replaced whole: it is the old one or the new one, whatever
//! happens.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use chunkstore::catalog::{ImageName, Snapshot, SnapshotName};
use chunkstore::format::EntryId;
use chunkstore::format::limits::IMAGE_BYTES_MAX;
use chunkstore::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::files::Files;

/// The file's name in a clone's directory.
pub(super) const FILE: &str = "clone.json";
/// The temporary file for new metadata.
pub(super) const ASIDE: &str = "clone.json.tmp";
/// Endings of the directory of a clone that is being made or discarded; its name begins with a dot.
pub(super) const NEW_SUFFIX: &str = ".new";
pub(super) const GONE_SUFFIX: &str = ".gone";
const VERSION: u32 = 1;
const BYTES_MAX: u64 = 1 << 20;
/// Most layers: each is made by a commit that did not come to its end.
const LAYERS_MAX: usize = 1000;

/// Fields of newer versions.
type Extra = BTreeMap<String, serde_json::Value>;

/// The parts of a clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CloneMetadata {
    version: u32,
    pub(super) name: ImageName,
    /// The snapshot below all layers.
    #[serde(with = "text")]
    pub(super) snapshot: SnapshotName,
    /// The id of its entry: another snapshot of the same name is not meant.
    #[serde(with = "text")]
    pub(super) entry: EntryId,
    /// Its manifest's root; none for zeros only.
    pub(super) root: Option<String>,
    /// Content of the snapshot from here on is ignored.
    pub(super) base_bytes_max: u64,
    /// The disk's size.
    pub(super) size_bytes: u64,
    /// The lowest first; the last one is written.
    pub(super) layers: Vec<LayerMetadata>,
    /// Other snapshots that may be held for this clone, because a commit did not come to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "texts")]
    pub(super) releases: Vec<SnapshotName>,
    pub(super) created: Timestamp,
    #[serde(flatten)]
    extra: Extra,
}

/// A layer of a clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerMetadata {
    pub(super) number: u32,
    /// Content from here on is ignored; none for the top layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes_max: Option<u64>,
    #[serde(flatten)]
    extra: Extra,
}

/// Whether a failed change may be there after all.
pub(super) struct NotStored {
    pub(super) error: Error,
    /// The file was renamed: the old one or the new one will be there.
    pub(super) is_unknown: bool,
}

impl CloneMetadata {
    /// A new clone of a snapshot.
    pub(super) fn new(name: &ImageName, snapshot: &Snapshot, created: Timestamp) -> Self {
        let entry = snapshot.entry();
        Self {
            version: VERSION,
            name: name.clone(),
            snapshot: snapshot.name(),
            entry: snapshot.entry_id(),
            root: entry.root.map(|root| root.to_string()),
            base_bytes_max: entry.virtual_bytes,
            size_bytes: entry.virtual_bytes,
            layers: vec![LayerMetadata::new(1)],
            releases: Vec::new(),
            created,
            extra: Extra::new(),
        }
    }

    /// Reads the metadata in a clone's directory.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Damaged`]; [`Error::Refused`] if a newer version made it.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = match read_limited(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error::not_found(format!("clone {name}")));
            }
            read => read.map_err(|error| Error::io("reading", &path, error))?,
        };
        let metadata = Self::decode(&path, &bytes)?;
        // A copy would release what the other clone holds.
        let own = dir.file_name().unwrap_or_default().to_string_lossy();
        if begun(&own).or_else(|| own.parse().ok()).as_ref() == Some(&metadata.name) {
            Ok(metadata)
        } else {
            Err(Error::damaged(path.display().to_string(), format!("it is that of clone {}", metadata.name)))
        }
    }

    /// Decodes the metadata in a file of this path.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |detail: String| Error::damaged(path.display().to_string(), detail);
        check_version(path, bytes)?;
        let metadata: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        metadata.check().and_then(|()| check_len(bytes)).map_err(|detail| damaged(detail.to_owned()))?;
        Ok(metadata)
    }

    fn check(&self) -> Result<(), &'static str> {
        let numbers = self.layers.iter().map(|layer| layer.number);
        let mut sizes = self.layers.iter().filter_map(|layer| layer.bytes_max).chain([self.size_bytes]);
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            Err("its number of layers is impossible")
        } else if !numbers.clone().is_sorted_by(|a, b| a < b) {
            Err("its layers are not in order")
        } else if numbers.max() == Some(u32::MAX) {
            Err("after its last layer no number is left")
        } else if self.base_bytes_max > IMAGE_BYTES_MAX || sizes.any(|bytes| bytes > IMAGE_BYTES_MAX) {
            Err("no disk can be so long")
        } else {
            Ok(())
        }
    }

    /// Replaces the metadata, durably: written aside and synced, which makes the bytes permanent, then renamed, then
    /// the directory synced, which makes the name permanent.
    pub(super) fn store(&self, files: &dyn Files, dir: &Path) -> Result<(), NotStored> {
        let encoding = self.encode().map_err(|what| NotStored {
            error: Error::refused(format!("clone {}: {what}", self.name)),
            is_unknown: false,
        })?;
        let failed =
            |action, is_unknown| move |error| NotStored { error: Error::io(action, dir.join(FILE), error), is_unknown };
        let aside = dir.join(ASIDE);
        let written = files.create(&aside).map_err(failed("creating", false)).and_then(|file| {
            file.write(&encoding, 0).map_err(failed("writing", false))?;
            file.sync().map_err(failed("syncing", false))?;
            files.rename(&aside, &dir.join(FILE)).map_err(failed("renaming", false))
        });
        if written.is_err() {
            // Only to give the room back: what is left is replaced by the next metadata, or removed when the clone is
            // opened.
            let _ = files.remove(&aside);
        }
        written?;
        files.sync_dir(dir).map_err(failed("syncing", true))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Why the metadata could not be read again.
    pub(super) fn encode(&self) -> Result<Vec<u8>, &'static str> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self).expect("all keys are strings");
        bytes.push(b'\n');
        check_len(&bytes).map(|()| bytes)
    }

    /// Puts the clone on another snapshot.
    pub(super) fn rebase(&mut self, snapshot: &Snapshot, base_bytes_max: u64) {
        self.snapshot = snapshot.name();
        self.entry = snapshot.entry_id();
        self.root = snapshot.entry().root.map(|root| root.to_string());
        self.base_bytes_max = base_bytes_max;
    }

    /// Cuts off what layers and snapshot have beyond.
    pub(super) fn shorten(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        self.base_bytes_max = self.base_bytes_max.min(size_bytes);
        for bytes_max in self.layers.iter_mut().filter_map(|layer| layer.bytes_max.as_mut()) {
            *bytes_max = size_bytes.min(*bytes_max);
        }
    }

    /// Ends the layer that is written, and begins another.
    pub(super) fn add_layer(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        let number = self.next_layer();
        self.layers.last_mut().expect("a clone has a layer").bytes_max = Some(size_bytes);
        self.layers.push(LayerMetadata::new(number));
    }

    /// The number of the next layer.
    pub(super) fn next_layer(&self) -> u32 {
        self.layers.last().map_or(0, |layer| layer.number) + 1
    }

    /// The snapshots that are to be released.
    pub(super) fn to_release(&self) -> Vec<SnapshotName> {
        self.releases.iter().filter(|name| **name != self.snapshot).cloned().collect()
    }

    /// The numbers of all layers.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.layers.iter().map(|layer| layer.number).collect()
    }
}

impl LayerMetadata {
    pub(super) fn new(number: u32) -> Self {
        Self { number, bytes_max: None, extra: Extra::new() }
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_len(bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.len() as u64 > BYTES_MAX { Err("it is over the limit") } else { Ok(()) }
}

/// Judged before all else: a newer version may mean other things by the same fields.
fn check_version(path: &Path, bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    match serde_json::from_slice(bytes) {
        Ok(Version { version: VERSION }) => Ok(()),
        Ok(Version { version }) if version > VERSION => Err(Error::refused(format!(
            "{} was made by a newer vmfs (its version is {version}, this program knows {VERSION})",
            path.display()
        ))),
        Ok(_) => Err(Error::damaged(path.display().to_string(), "it has no possible version")),
        Err(error) => Err(Error::damaged(path.display().to_string(), error.to_string())),
    }
}

/// The clone that was being made or discarded in a directory of this name.
pub(super) fn begun(dir: &str) -> Option<ImageName> {
    let name = dir.strip_suffix(NEW_SUFFIX).or_else(|| dir.strip_suffix(GONE_SUFFIX))?;
    name.strip_prefix('.')?.parse().ok()
}

/// Values that are written as their text.
mod text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Display, FromStr};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Lists of values that are written as their texts.
mod texts {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Display, FromStr};

    pub(super) fn serialize<T: Display, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

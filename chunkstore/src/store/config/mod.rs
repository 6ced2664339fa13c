//! The store's `config.toml`: what was fixed when the store was created, and defaults for users to edit.
//!
//! `[format]` decides how images are cut: a changed digit would silently end all deduplication, so the section carries
//! a checksum of its other fields. Its unknown fields, of newer versions, are kept. `[defaults]` belongs to the user;
//! an unknown key there is most likely a typo, and the error names it.
//!
//! `config.toml.copy` is a copy of the file from when the store was last opened, so that one damaged block does not
//! lose it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::catalog::retention::Retention;
use crate::error::{Error, Result};
use crate::format::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CONFIG_FILE_BYTES_MAX, SEGMENT_BYTES, ZERO_BLOCK_BYTES};
use crate::format::{ChunkParams, RecordCodec};
use crate::storage::{Storage, whole};

#[cfg(test)]
mod tests;

/// The file's path in a store.
pub(crate) const PATH: &str = "config.toml";
/// The path of its copy.
pub(crate) const COPY_PATH: &str = "config.toml.copy";
/// The format that this program writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Memory of the index, unless configured otherwise.
const INDEX_CACHE_BYTES: u64 = 32 << 20;
/// With less memory the index rereads its filters for every lookup.
const INDEX_CACHE_BYTES_MIN: u64 = 1 << 20;
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
const STORE_ID_BYTES: usize = 16;
const CHECK: &str = "check";
const CHECK_DIGITS: usize = 16;

/// A store's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Fixed when the store was created.
    pub format: FormatSection,
    /// For its users to edit.
    pub defaults: Defaults,
}

/// The settings that were fixed when the store was created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormatSection {
    /// Version of the store's format.
    pub version: u32,
    /// The store's id: 32 random hex digits.
    pub store_id: String,
    /// When the store was created.
    pub created: Timestamp,
    /// Least bytes of a chunk, except at the end of the data.
    pub chunk_min_bytes: u32,
    /// Average bytes of a chunk.
    pub chunk_avg_bytes: u32,
    /// Most bytes of a chunk.
    pub chunk_max_bytes: u32,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Runs of zeros shorter than this stay inside chunks.
    pub zero_run_min_bytes: u32,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Defaults of the commands on this store.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// The compression level of new chunks.
    pub zstd_level: i32,
    /// Time zone for the retention rules, by its IANA name.
    pub time_zone: String,
    /// Memory of the index.
    pub index_cache_bytes: u64,
    /// Threads of ingest, restore and verify; all cores if not set.
    pub threads: Option<NonZeroU32>,
    /// The snapshots that `prune` keeps without options.
    pub retention: Retention,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            zstd_level: 1,
            time_zone: "UTC".to_owned(),
            index_cache_bytes: INDEX_CACHE_BYTES,
            threads: None,
            retention: Retention::default(),
        }
    }
}

impl Config {
    /// The configuration of a new store; `random` becomes its id.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sizes are outside the limits.
    pub fn new(random: [u8; STORE_ID_BYTES], created: Timestamp, params: ChunkParams) -> Result<Self> {
        let format = FormatSection {
            version: FORMAT_VERSION,
            store_id: random.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")),
            created,
            chunk_min_bytes: params.min_bytes,
            chunk_avg_bytes: params.avg_bytes,
            chunk_max_bytes: params.max_bytes,
            segment_bytes: SEGMENT_BYTES as u32,
            zero_run_min_bytes: params.zero_run_min_bytes,
            extra: BTreeMap::new(),
        };
        format.check().map_err(Error::invalid)?;
        Ok(Self { format, defaults: Defaults::default() })
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::Damaged`] if `[format]` does not match its checksum; [`Error::Refused`] if a newer version wrote it;
    /// [`Error::Invalid`], with the name of the key, if `[defaults]` is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let mut file: BTreeMap<String, Value> = toml::from_str(text).map_err(|error| syntax_error(text, &error))?;
        let format = match file.remove("format") {
            Some(Value::Table(section)) => FormatSection::read(section.into_iter().collect())?,
            _ => return Err(damaged("it has no [format] section")),
        };
        let defaults = file.remove("defaults").map_or_else(|| Ok(Defaults::default()), Defaults::read)?;
        match file.into_keys().next() {
            Some(key) => Err(Error::invalid(format!("{PATH}: {key:?} is neither [format] nor [defaults]"))),
            None => Ok(Self { format, defaults }),
        }
    }

    /// The file's text, with comments for users.
    pub fn render(&self) -> String {
        let mut text = String::from(FORMAT_COMMENT);
        let mut fields = self.format.fields();
        let check = check_of(&fields);
        for key in FORMAT_KEYS {
            if let Some(value) = fields.remove(key) {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        for (key, value) in fields {
            let _ = writeln!(text, "{} = {value}", quoted_key(&key));
        }
        let _ = writeln!(text, "{CHECK} = \"{check}\"\n");
        text.push_str(&self.defaults.render());
        text
    }

    /// Reads a store's configuration.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no configuration, or its copy is another store's; otherwise as [`Config::parse`].
    /// The error mentions `vmstore repair` where that helps.
    pub fn load(storage: &dyn Storage) -> Result<Self> {
        let config = Self::text(storage).and_then(|text| Self::parse(&text)).map_err(mendable)?;
        match Self::copy(storage) {
            Some((_, copy)) if copy.format != config.format => {
                Err(mendable(damaged(format!("its [format] is not the one that {COPY_PATH} repeats"))))
            }
            _ => Ok(config),
        }
    }

    /// The file's text.
    pub(crate) fn text(storage: &dyn Storage) -> Result<String> {
        read_text(storage, PATH)?.ok_or_else(|| damaged("the file is missing"))
    }

    /// The copy and its text, if it is readable.
    pub(crate) fn copy(storage: &dyn Storage) -> Option<(String, Self)> {
        let text = read_text(storage, COPY_PATH).ok()??;
        let copy = Self::parse(&text).ok()?;
        Some((text, copy))
    }

    /// Updates the copy to the file that was read.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn repeat(storage: &dyn Storage) -> Result<()> {
        let text = Self::text(storage)?;
        if Self::copy(storage).is_some_and(|(copy, _)| copy == text) {
            return Ok(());
        }
        whole::replace_whole(storage, COPY_PATH, text.as_bytes())
    }

    /// Writes a store's configuration and its copy, each atomically and durably. Users' comments are not kept.
    pub fn store(&self, storage: &dyn Storage) -> Result<()> {
        Self::store_text(storage, &self.render())
    }

    /// Like [`Config::store`], with a text that was read elsewhere.
    pub(crate) fn store_text(storage: &dyn Storage, text: &str) -> Result<()> {
        Self::parse(text)?;
        whole::replace_whole(storage, COPY_PATH, text.as_bytes())?;
        whole::replace_whole(storage, PATH, text.as_bytes())
    }
}

/// A file's text, or `None` if there is no file.
fn read_text(storage: &dyn Storage, path: &str) -> Result<Option<String>> {
    let bytes = whole::read_whole(storage, path, CONFIG_FILE_BYTES_MAX)?;
    let text = bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| Error::damaged(path, "it is not text")));
    text.transpose()
}

/// Adds the remedy to the error.
fn mendable(error: Error) -> Error {
    match error {
        Error::Damaged { what, detail } => Error::damaged(what, format!("{detail}; `vmstore repair` mends it")),
        Error::Invalid { what } => Error::invalid(format!(
            "{what}; correct it, or let `vmstore repair` put back what the store was last opened with"
        )),
        other => other,
    }
}

impl Config {
    /// Encodes and decodes the store's records.
    pub fn record_codec(&self) -> RecordCodec {
        RecordCodec::new(self.defaults.zstd_level)
    }
}

impl FormatSection {
    /// The parameters that decide where chunks are cut.
    pub fn chunk_params(&self) -> ChunkParams {
        ChunkParams {
            min_bytes: self.chunk_min_bytes,
            avg_bytes: self.chunk_avg_bytes,
            max_bytes: self.chunk_max_bytes,
            zero_run_min_bytes: self.zero_run_min_bytes,
        }
    }

    /// The 16 bytes that `store_id` spells.
    pub fn store_id_bytes(&self) -> [u8; STORE_ID_BYTES] {
        u128::from_str_radix(&self.store_id, 16).expect("32 hex digits were checked").to_be_bytes()
    }

    fn read(mut fields: BTreeMap<String, Value>) -> Result<Self> {
        let found = fields.remove(CHECK).ok_or_else(|| damaged("[format] has no checksum"))?;
        if found.as_str() != Some(&check_of(&fields)) {
            return Err(damaged("[format] does not match its checksum; it is not for editing"));
        }
        // The checksum matches, so a higher version was written by a newer program.
        let version = fields.get("version").and_then(Value::as_integer).unwrap_or(0);
        if version > i64::from(FORMAT_VERSION) {
            let known = format!("its format is {version}, this program knows {FORMAT_VERSION}");
            return Err(Error::refused(format!("the store was made by a newer vmstore ({known})")));
        }
        let table: toml::Table = fields.into_iter().collect();
        let format: Self = table.try_into().map_err(|error| damaged(format!("[format]: {error}")))?;
        format.check().map_err(damaged)?;
        Ok(format)
    }

    fn fields(&self) -> BTreeMap<String, Value> {
        let table = toml::Table::try_from(self).expect("all values have a form in TOML");
        table.into_iter().collect()
    }

    fn check(&self) -> Result<(), String> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if self.version != FORMAT_VERSION {
            return Err(format!("version {} is none", self.version));
        }
        if self.store_id.len() != 2 * STORE_ID_BYTES || !self.store_id.bytes().all(is_digit) {
            return Err(format!("store_id {:?} is not {} hex digits", self.store_id, 2 * STORE_ID_BYTES));
        }
        if self.segment_bytes as usize != SEGMENT_BYTES {
            return Err(format!("segment_bytes must be {SEGMENT_BYTES}"));
        }
        let zero_run = self.zero_run_min_bytes as usize;
        if zero_run == 0 || zero_run > SEGMENT_BYTES || !zero_run.is_multiple_of(ZERO_BLOCK_BYTES) {
            return Err(format!("zero_run_min_bytes must be a multiple of {ZERO_BLOCK_BYTES}, at most a segment"));
        }
        check_sizes(self.chunk_params())
    }
}

fn check_sizes(params: ChunkParams) -> Result<(), String> {
    let ChunkParams { min_bytes, avg_bytes, max_bytes, .. } = params;
    let allowed = (CHUNK_BYTES_MIN as u32)..=(CHUNK_BYTES_MAX as u32);
    let fits = |size: u32| size.is_power_of_two() && allowed.contains(&size);
    if [min_bytes, avg_bytes, max_bytes].into_iter().all(fits) && min_bytes < avg_bytes && avg_bytes < max_bytes {
        return Ok(());
    }
    Err(format!(
        "chunk sizes must be growing powers of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}, \
         not {min_bytes}, {avg_bytes}, {max_bytes}"
    ))
}

impl Defaults {
    /// The time zone for the retention rules.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the zone does not exist.
    pub fn zone(&self) -> Result<TimeZone> {
        TimeZone::get(&self.time_zone).map_err(|_| {
            let name = &self.time_zone;
            Error::invalid(format!("{PATH}: time_zone {name:?} is not known; write one such as \"Europe/Berlin\""))
        })
    }

    fn read(section: Value) -> Result<Self> {
        let defaults: Self = section.try_into().map_err(|error: toml::de::Error| {
            let reason = error.to_string().trim_end().replace('\n', " ");
            Error::invalid(format!("{PATH}: [defaults]: {reason}"))
        })?;
        defaults.check()?;
        Ok(defaults)
    }

    fn check(&self) -> Result<()> {
        let (least, most) = (ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
        if !ZSTD_LEVELS.contains(&self.zstd_level) {
            return Err(Error::invalid(format!("{PATH}: zstd_level must be from {least} to {most}")));
        }
        if self.index_cache_bytes < INDEX_CACHE_BYTES_MIN {
            return Err(Error::invalid(format!("{PATH}: index_cache_bytes must be {INDEX_CACHE_BYTES_MIN} or more")));
        }
        self.zone().map(drop)
    }

    fn render(&self) -> String {
        let mut text = String::from(DEFAULTS_COMMENT);
        let mut line = |comment: &str, key: &str, value: Option<String>, example: &str| {
            let (mark, value) = value.as_deref().map_or(("# ", example), |value| ("", value));
            let _ = writeln!(text, "{comment}{mark}{key} = {value}");
        };
        let zone = Value::from(self.time_zone.as_str()).to_string();
        line(
            "# How hard new chunks are compressed, from 1 to 19.\n",
            "zstd_level",
            Some(self.zstd_level.to_string()),
            "",
        );
        line("# Whose days, weeks and months retention counts.\n", "time_zone", Some(zone), "");
        line("# Memory of the index.\n", "index_cache_bytes", Some(self.index_cache_bytes.to_string()), "");
        line("# All cores, if not given.\n", "threads", self.threads.map(|threads| threads.to_string()), "4");
        line(RETENTION_COMMENT, "keep_last", self.retention.last.map(|n| n.to_string()), "1");
        line("", "keep_hourly", self.retention.hourly.map(|n| n.to_string()), "24");
        line("", "keep_daily", self.retention.daily.map(|n| n.to_string()), "14");
        line("", "keep_weekly", self.retention.weekly.map(|n| n.to_string()), "8");
        line("", "keep_monthly", self.retention.monthly.map(|n| n.to_string()), "12");
        line("", "keep_yearly", self.retention.yearly.map(|n| n.to_string()), "5");
        text
    }
}

const FORMAT_COMMENT: &str = "\
# The configuration of a vmstore store.

# Fixed when the store was made. Not for editing: changed values are noticed and refused.
[format]
";

/// In the order of the file.
const FORMAT_KEYS: [&str; 8] = [
    "version",
    "store_id",
    "created",
    "chunk_min_bytes",
    "chunk_avg_bytes",
    "chunk_max_bytes",
    "segment_bytes",
    "zero_run_min_bytes",
];

const DEFAULTS_COMMENT: &str = "\
# Yours to edit; options of a command come first.
[defaults]
";

const RETENTION_COMMENT: &str = "
# What `vmstore prune` keeps when it is not told: of each image, the newest snapshot of each of this many periods.
[defaults.retention]
";

/// The first digits of the BLAKE3 of the section's other fields, as JSON without spaces and with sorted keys.
fn check_of(fields: &BTreeMap<String, Value>) -> String {
    let canonical = serde_json::to_vec(fields).expect("all keys are strings");
    blake3::hash(&canonical).to_hex()[..CHECK_DIGITS].to_owned()
}

/// The key of a newer version as TOML: a key that is not bare is a basic string, like JSON's but for one character.
fn quoted_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !key.is_empty() && key.bytes().all(is_bare) {
        return key.to_owned();
    }
    serde_json::to_string(key).expect("a string has a form in JSON").replace('\u{7f}', "\\u007f")
}

fn damaged(detail: impl Into<String>) -> Error {
    Error::damaged(PATH, detail)
}

/// A mistake in `[defaults]` is not damage; the parts before it do not belong to users.
fn syntax_error(text: &str, error: &toml::de::Error) -> Error {
    let defaults_at = text.find("\n[defaults").unwrap_or(text.len());
    let is_users = error.span().is_some_and(|span| span.start > defaults_at);
    let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    let detail = format!("line {line}: {}", error.message());
    if is_users { Error::invalid(format!("{PATH}: {detail}")) } else { damaged(detail) }
}

//! The configuration file: its golden text, damage, and users' mistakes.

use std::io::ErrorKind;

use super::*;
use crate::storage::MemStorage;

const GOLDEN: &str = r#"# The configuration of a vmstore store.

# Fixed when the store was made. Not for editing: changed values are noticed and refused.
[format]
version = 1
store_id = "00112233445566778899aabbccddeeff"
created = "2026-11-20T02:00:00Z"
chunk_min_bytes = 16384
chunk_avg_bytes = 65536
chunk_max_bytes = 262144
segment_bytes = 4194304
zero_run_min_bytes = 65536
check = "ed091bcad7948e77"

# Yours to edit; options of a command come first.
[defaults]
# How hard new chunks are compressed, from 1 to 19.
zstd_level = 1
# Whose days, weeks and months retention counts.
time_zone = "UTC"
# Memory of the index.
index_cache_bytes = 33554432
# All cores, if not given.
# threads = 4

# What `vmstore prune` keeps when it is not told: of each image, the newest snapshot of each of this many periods.
[defaults.retention]
# keep_last = 1
# keep_hourly = 24
# keep_daily = 14
# keep_weekly = 8
# keep_monthly = 12
# keep_yearly = 5
"#;

fn golden() -> Config {
    let random = std::array::from_fn(|n| (n * 0x11) as u8);
    Config::new(random, "2026-11-20T02:00:00Z".parse().unwrap(), ChunkParams::default()).unwrap()
}

fn is_damaged(text: &str) -> bool {
    matches!(Config::parse(text), Err(Error::Damaged { what, .. }) if what == PATH)
}

/// The golden text with another `[format]` and a matching checksum.
fn with_format(change: impl Fn(&mut BTreeMap<String, Value>)) -> String {
    let mut fields = golden().format.fields();
    change(&mut fields);
    let check = check_of(&fields);
    let lines: Vec<_> = fields.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("[format]\n{}check = \"{check}\"\n", lines.concat())
}

#[test]
fn golden_file() {
    assert_eq!(golden().render(), GOLDEN);
    assert_eq!(Config::parse(GOLDEN).unwrap(), golden());
}

#[test]
fn what_users_set_is_read_and_rendered() {
    let text = GOLDEN
        .replace("# threads = 4", "threads = 3")
        .replace("# keep_daily = 14", "keep_daily = 7")
        .replace("# keep_last = 1", "keep_last = 0")
        .replace("\"UTC\"", "'Europe/Berlin'")
        .replace("zstd_level = 1", "zstd_level=3");
    let config = Config::parse(&text).unwrap();
    assert_eq!(config.defaults.threads.unwrap().get(), 3);
    assert_eq!(config.defaults.retention, Retention { last: Some(0), daily: Some(7), ..Retention::default() });
    assert_eq!(config.defaults.zone().unwrap().iana_name(), Some("Europe/Berlin"));
    assert_eq!(config.defaults.zstd_level, 3);
    assert_eq!(Config::parse(&config.render()).unwrap(), config);
    let bare = &GOLDEN[..GOLDEN.find("# Yours").unwrap()];
    assert_eq!(Config::parse(bare).unwrap(), golden());
}

#[test]
fn users_slips_are_named() {
    let cases = [
        ("zstd_level = 1", "zstd_levle = 1", "zstd_levle"),
        ("zstd_level = 1", "zstd_level = 99", "zstd_level"),
        ("zstd_level = 1", "zstd_level = \"1\"", "zstd_level"),
        ("zstd_level = 1", "zstd_level = ", "line 18"),
        ("\"UTC\"", "\"Europe/Berlim\"", "Berlim"),
        ("\"UTC\"", "\"../../etc/passwd\"", "time_zone"),
        ("33554432", "1", "index_cache_bytes"),
        ("# threads = 4", "threads = 0", "threads"),
        ("# keep_daily = 14", "keep_dayly = 14", "keep_dayly"),
        ("# keep_daily = 14", "keep_daily = -1", "keep_daily"),
        ("[defaults.retention]", "[retention]", "retention"),
    ];
    for (from, to, named) in cases {
        let text = GOLDEN.replacen(from, to, 1);
        let error = Config::parse(&text).unwrap_err();
        assert!(matches!(&error, Error::Invalid { what } if what.contains(named) && what.contains(PATH)), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn a_flipped_bit_in_the_format_is_damage() {
    let from = GOLDEN.find("[format]").unwrap();
    let to = GOLDEN.find("\n\n# Yours").unwrap();
    for (offset, bit) in (from..to).flat_map(|offset| (0..7).map(move |bit| (offset, bit))) {
        let mut bytes = GOLDEN.as_bytes().to_vec();
        bytes[offset] ^= 1 << bit;
        let text = String::from_utf8(bytes).unwrap();
        // A flipped bit may not change the meaning, such as a tab for a space.
        assert!(is_damaged(&text) || Config::parse(&text).is_ok_and(|config| config == golden()), "{text}");
    }
}

#[test]
fn a_file_cut_in_the_format_is_damage() {
    let format_end = GOLDEN.find("\n\n# Yours").unwrap();
    for len in 0..format_end {
        assert!(is_damaged(&GOLDEN[..len]), "{len}");
    }
    for len in format_end..GOLDEN.len() {
        let _ = Config::parse(&GOLDEN[..len]);
    }
}

#[test]
fn a_newer_version_is_refused() {
    let newer = with_format(|fields| drop(fields.insert("version".to_owned(), 2.into())));
    let error = Config::parse(&newer).unwrap_err().to_string();
    assert!(error.starts_with("refused") && error.contains("newer vmstore"), "{error}");
}

#[test]
fn optional_fields_of_a_newer_version_are_kept_whatever_their_names() {
    for key in ["comment", "a.b", "a b", "", "a\"b'\\", "\n\u{7f}\u{1}", "é"] {
        let mut config = Config::parse(GOLDEN).unwrap();
        config.format.extra.insert(key.to_owned(), "a \"b\"".into());
        let read = Config::parse(&config.render()).unwrap_or_else(|error| panic!("{key:?}: {error}"));
        assert_eq!(read, config);
    }
}

#[test]
fn what_passes_the_checksum_is_still_judged() {
    let cases = [
        ("version", Value::from(0)),
        ("version", "1".into()),
        ("store_id", "x".into()),
        ("store_id", "00112233445566778899AABBCCDDEEFF".into()),
        ("created", "yesterday".into()),
        ("chunk_min_bytes", 65536.into()),
        ("chunk_avg_bytes", 65535.into()),
        ("chunk_max_bytes", (1i64 << 21).into()),
        ("chunk_min_bytes", 512.into()),
        ("chunk_min_bytes", (-1).into()),
        ("segment_bytes", 4096.into()),
        ("zero_run_min_bytes", 0.into()),
        ("zero_run_min_bytes", 4097.into()),
    ];
    for (key, value) in cases {
        assert!(is_damaged(&with_format(|fields| drop(fields.insert(key.to_owned(), value.clone())))), "{key} {value}");
    }
    for key in FORMAT_KEYS {
        assert!(is_damaged(&with_format(|fields| drop(fields.remove(key)))), "{key}");
    }
}

#[test]
fn impossible_sizes_make_no_store() {
    let sizes = ChunkParams { min_bytes: 1 << 16, ..ChunkParams::default() };
    let created = "2026-11-20T02:00:00Z".parse().unwrap();
    assert!(matches!(Config::new([0; 16], created, sizes), Err(Error::Invalid { .. })));
    assert!(Config::new([0; 16], created, ChunkParams { zero_run_min_bytes: 1, ..ChunkParams::default() }).is_err());
    let other =
        Config::new([0; 16], created, ChunkParams { zero_run_min_bytes: 4096, ..ChunkParams::default() }).unwrap();
    assert_ne!(other.format.chunk_params(), golden().format.chunk_params());
}

#[test]
fn it_is_stored_whole_and_loaded() {
    let storage = MemStorage::new();
    assert!(matches!(Config::load(&storage), Err(Error::Damaged { .. })));
    golden().store(&storage).unwrap();
    assert_eq!(Config::load(&storage.power_cut()).unwrap(), golden());
    let mut changed = golden();
    changed.defaults.zstd_level = 9;
    storage.fail_at(storage.calls() + 3, ErrorKind::StorageFull);
    assert!(matches!(changed.store(&storage), Err(Error::OutOfSpace { .. })));
    assert_eq!(Config::load(&storage).unwrap(), golden());
    storage.overwrite(PATH, b"\xff").unwrap();
    assert!(matches!(Config::load(&storage), Err(Error::Damaged { .. })));
    storage.overwrite(PATH, &vec![b'#'; CONFIG_FILE_BYTES_MAX as usize + 1]).unwrap();
    assert!(matches!(Config::load(&storage), Err(Error::Damaged { .. })));
}

//! Formats of text: catalog files, entries, the configuration, the list of damage, leases, names.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::Arc;

use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::catalog::{Catalog, Entry, ImageName, Selector, Snapshot, SnapshotName, SnapshotTime, State, label};
use chunkstore::format::limits::{CATALOG_FILE_BYTES_MAX, ENTRY_BYTES_MAX, IMAGE_BYTES_MAX};
use chunkstore::format::{ChunkId, EntryId, NodeId, PackId};
use chunkstore::source::Format;
use chunkstore::storage::{MemStorage, Storage};
use chunkstore::store::Config;
use chunkstore::store::damaged::{Damaged, FILE};

use super::{Verdict, as_given_and_resealed, reseal};

/// A number as `1e20` is written with all its digits: JSON that is read may need this many times its length again.
const JSON_GROWTH_MAX: usize = 8;
/// Most names of [`file_names`]: what storage in memory does with them grows faster than their number.
const NAMES_MAX: usize = 32;

/// A snapshot's file in the catalog.
pub fn catalog_file(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::last_line, |file| {
        let decoded = Snapshot::read_file(file);
        if let Ok(snapshot) = &decoded {
            let again = snapshot.encode();
            if again.len() as u64 <= CATALOG_FILE_BYTES_MAX {
                assert_eq!(&Snapshot::decode(&snapshot.name(), &again).expect("it was just encoded"), snapshot);
            }
            assert_eq!(EntryId::of(snapshot.entry_encoding()), snapshot.entry_id());
        }
        Verdict::of(&decoded)
    })
}

/// A snapshot's entry, as packs and other sites have it.
pub fn snapshot_entry(encoding: &[u8]) -> Verdict {
    let decoded = Entry::decode(encoding);
    let snapshot = Snapshot::from_entry(EntryId::of(encoding), encoding.to_vec(), State::default());
    assert!(decoded.is_ok() || snapshot.is_err());
    assert!(Snapshot::from_entry(EntryId::of(b""), encoding.to_vec(), State::default()).is_err());
    if let Ok(entry) = &decoded {
        assert!(entry.virtual_bytes <= IMAGE_BYTES_MAX);
        match entry.encode() {
            Ok(again) => assert_eq!(&Entry::decode(&again).expect("it was just encoded"), entry),
            Err(error) => assert!(encoding.len() > ENTRY_BYTES_MAX / JSON_GROWTH_MAX, "{error}"),
        }
    }
    if let Ok(snapshot) = &snapshot {
        assert_eq!(&Snapshot::read_file(&snapshot.encode()).expect("it was just encoded"), snapshot);
    }
    Verdict::of(&decoded)
}

/// A store's `config.toml`.
pub fn config(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::config, |bytes| {
        let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
        let decoded = Config::parse(text);
        if let Ok(config) = &decoded {
            let rendered = config.render();
            let again = Config::parse(&rendered).unwrap_or_else(|error| panic!("{error} in {rendered}"));
            // Compared as text, because a field of a newer version may be a number that equals nothing.
            assert_eq!(again.render(), rendered);
            let _ = (config.format.store_id_bytes(), config.format.chunk_params());
            config.defaults.zone().expect("it was found when it was read");
        }
        Verdict::of(&decoded)
    })
}

/// The list of damaged records.
pub fn damaged_list(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::last_line, |bytes| {
        let storage = MemStorage::new();
        storage.create(FILE).and_then(|mut file| file.append(bytes)).expect("memory can always be written");
        let decoded = Damaged::load(&storage);
        if let Ok(damaged) = &decoded {
            damaged.save(&storage).expect("memory can always be written");
            assert_eq!(&Damaged::load(&storage).expect("it was just saved"), damaged);
        }
        Verdict::of(&decoded)
    })
}

/// A boot order, as a file or from another site.
pub fn boot_order(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::last_line, |bytes| {
        let decoded = BootOrder::decode(bytes);
        if let Ok(order) = &decoded {
            assert!(order.ranges().iter().all(|range| range.start < range.end && range.end <= IMAGE_BYTES_MAX));
            assert_eq!(&BootOrder::decode(&order.encode()).expect("it was just encoded"), order);
        }
        Verdict::of(&decoded)
    })
}

/// A lease's file.
pub fn lease(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::last_line, |bytes| Verdict::when(chunkstore::fuzzing::lease(bytes)))
}

/// Names of files in a store's directories, a line each: `packs/`, `catalog/` and below it, `clones/` and below it.
pub fn file_names(bytes: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
    let can_be = |name: &&str| !name.is_empty() && !name.contains('/');
    let names: BTreeSet<_> = text.lines().filter(can_be).take(NAMES_MAX).collect();
    Verdict::when(catalog_files(&names))
        .or(Verdict::when(chunkstore::fuzzing::pack_files(&names)))
        .or(Verdict::when(disks::fuzzing::clone_files(names.iter().copied())))
}

/// Each name as that of an image's directory, and of a file in one.
fn catalog_files(names: &BTreeSet<&str>) -> bool {
    const IMAGE: &str = "catalog/web01";
    let storage = MemStorage::new();
    let catalog = Catalog::create(Arc::new(storage.clone())).expect("memory can always be written");
    storage.create_dir(IMAGE).expect("memory can always be written");
    for name in names {
        storage.create_dir(&format!("catalog/{name}")).expect("memory can always be written");
        storage.create(&format!("{IMAGE}/{name}")).expect("memory can always be written");
    }
    let image: ImageName = "web01".parse().expect("a name");
    let times = catalog.times(&image).expect("memory can always be read");
    assert!(times.iter().all(|time| names.contains(&*format!("{time}.snap"))));
    let tombstones = catalog.tombstones().expect("memory can always be read");
    for tombstone in &tombstones {
        assert!(names.contains(&*format!("{}.{}.removed", tombstone.name.time, tombstone.entry_prefix)));
        let _ = tombstone.entry_prefix_bytes();
    }
    let strangers = catalog.strangers().expect("memory can always be read");
    for name in names {
        assert_eq!(strangers.contains(&format!("catalog/{name}")), name.parse::<ImageName>().is_err(), "{name:?}");
    }
    let strangers = names.iter().filter(|name| strangers.contains(&format!("{IMAGE}/{name}"))).count();
    let aside = catalog.clean().expect("memory can always be written");
    assert_eq!(times.len() + tombstones.len() + strangers + aside, names.len(), "each is one of the four");
    !times.is_empty() || !tombstones.is_empty()
}

/// Names, times, selectors, labels and ids, as command lines and other machines send them.
pub fn names(bytes: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
    survives::<ImageName>(text)
        .or(survives::<SnapshotName>(text))
        .or(survives::<SnapshotTime>(text))
        .or(selector(text))
        .or(survives::<ChunkId>(text))
        .or(survives::<NodeId>(text))
        .or(survives::<PackId>(text))
        .or(Verdict::of(&text.parse::<Format>()))
        .or(read_label(text))
}

/// Reads a value that is displayed as it is read.
pub(super) fn survives<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Verdict {
    let Ok(value) = text.parse::<T>() else { return Verdict::Refused };
    let displayed = value.to_string();
    assert_eq!(displayed.parse::<T>().ok().as_ref(), Some(&value), "{text:?} is displayed as {displayed:?}");
    Verdict::Accepted
}

fn selector(text: &str) -> Verdict {
    if let Ok(selector) = text.parse::<Selector>() {
        let times: Vec<SnapshotTime> = ["20251231T235959Z", "20261120T020000Z", "20261121T020000Z"]
            .map(|time| time.parse().expect("a time"))
            .into();
        for times in [&times[..0], &times[..1], &times] {
            assert!(selector.resolve(times).map_or(true, |found| times.contains(&found)));
        }
    }
    survives::<Selector>(text)
}

fn read_label(text: &str) -> Verdict {
    let decoded = label::parse(text);
    if let Ok((key, value)) = &decoded {
        assert_eq!(format!("{key}={value}"), text);
    }
    Verdict::of(&decoded)
}

//! The files without which a store can't be opened: its configuration, the list of damaged records, the catalog's
//! directory.
//!
//! The configuration is compared with its copy and with the header of every pack, which repeats the store's id and its
//! chunk parameters.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::format::PackId;
use crate::format::limits::CONFIG_FILE_BYTES_MAX;
use crate::pack::{self, Inventory, PackHeader, PackReader};
use crate::storage::quarantine;
use crate::storage::{LocalDir, Storage, whole};
use crate::store::config::{self, FormatSection};
use crate::store::damaged::{self, Damaged};
use crate::store::lock::StoreLock;
use crate::store::{Config, OpenOptions};

/// Packs whose headers are read.
const HEADERS_READ_MAX: usize = 256;

/// Describes the damage to these files; empty if the store can be opened. Changes nothing.
///
/// # Errors
/// [`Error::NotFound`] if there is no store; [`Error::Damaged`] if there is no copy of a lost file.
pub fn look(dir: &Path) -> Result<Vec<String>> {
    if !dir.join(pack::DIR).is_dir() {
        return Err(Error::not_found(format!("store {}", dir.display())));
    }
    let mends = mends(&LocalDir::new(dir), Timestamp::UNIX_EPOCH)?;
    Ok(mends.into_iter().map(|mend| mend.says).collect())
}

/// Repairs a store that no process has open; returns what was done. Damaged files are kept in `quarantine/`.
///
/// # Errors
/// As [`look`]; [`Error::Busy`] if a process has the store open.
pub fn mend(dir: &Path, options: &OpenOptions, now: Timestamp) -> Result<Vec<String>> {
    let storage: Arc<dyn Storage> = Arc::new(LocalDir::new(dir));
    let _lock = StoreLock::acquire(dir, options.wait)?;
    let mends = mends(&*storage, now)?;
    mends.iter().try_for_each(|mend| mend.how.carry_out(&storage))?;
    Ok(mends.into_iter().map(|mend| mend.says).collect())
}

struct Mend {
    says: String,
    how: How,
}

enum How {
    /// Write this configuration and its copy.
    WriteConfig(String),
    /// Quarantine the list of damaged records; a verification creates it anew.
    ForgetDamaged,
    MakeCatalog,
}

impl How {
    fn carry_out(&self, storage: &Arc<dyn Storage>) -> Result<()> {
        match self {
            Self::WriteConfig(text) => {
                for path in [config::PATH, config::COPY_PATH] {
                    let there = whole::read_whole(&**storage, path, CONFIG_FILE_BYTES_MAX);
                    if !there.is_ok_and(|there| there.as_deref() == Some(text.as_bytes())) {
                        quarantine::keep_copy(&**storage, path, CONFIG_FILE_BYTES_MAX)?;
                    }
                }
                Config::store_text(&**storage, text)
            }
            Self::ForgetDamaged => quarantine::put_away(&**storage, damaged::FILE).map(drop),
            Self::MakeCatalog => Catalog::create(Arc::clone(storage)).map(drop),
        }
    }
}

fn mends(storage: &dyn Storage, now: Timestamp) -> Result<Vec<Mend>> {
    let mut mends = Vec::new();
    mends.extend(mend_config(storage, now)?);
    if let Err(error) = Damaged::load(storage) {
        let says = format!("{} is unreadable: it is quarantined and recreated ({})", damaged::FILE, unreadable(error)?);
        mends.push(Mend { says, how: How::ForgetDamaged });
    }
    if let Err(error) = storage.list(crate::catalog::DIR)
        && error.kind() == io::ErrorKind::NotFound
    {
        let says = "the catalog is missing: it is recreated from the entries in packs".into();
        mends.push(Mend { says, how: How::MakeCatalog });
    }
    Ok(mends)
}

/// Why a file can't be read, if it is damaged and nothing else is the reason.
fn unreadable(error: Error) -> Result<String> {
    if error.is_damage() || matches!(error, Error::Invalid { .. }) { Ok(error.to_string()) } else { Err(error) }
}

fn mend_config(storage: &dyn Storage, now: Timestamp) -> Result<Option<Mend>> {
    let own = Config::text(storage).and_then(|text| Config::parse(&text).map(|config| (text, config)));
    let copy = Config::copy(storage);
    let (own, why) = match own {
        Ok((_, own)) if copy.as_ref().is_some_and(|(_, copy)| copy.format == own.format) => return Ok(None),
        Ok(own) => (Some(own), format!("{} and its copies are of two stores", config::PATH)),
        Err(error) => (None, unreadable(error)?),
    };
    let packs = majority(storage)?;
    let agrees = |(_, config): &(String, Config)| packs.is_none_or(|header| is_of(&header, &config.format));
    if copy.is_none() && own.as_ref().is_some_and(agrees) {
        // The copy is written when the store is next opened.
        return Ok(None);
    }
    let (text, from) = if let Some((text, _)) = own.filter(agrees) {
        (text, "the file is kept".to_owned())
    } else if let Some((text, _)) = copy.filter(agrees) {
        (text, format!("it is restored from {}, as of when the store was last opened", config::COPY_PATH))
    } else if let Some(PackHeader { store_id, params, .. }) = packs {
        let lost = "its creation time and the settings in [defaults] are lost";
        (Config::new(store_id, now, params)?.render(), format!("it is recreated from the headers of packs; {lost}"))
    } else {
        return Err(Error::damaged(config::PATH, format!("{why}; the store has no copy of it")));
    };
    Ok(Some(Mend { says: format!("{why}: {from}"), how: How::WriteConfig(text) }))
}

/// The header that most packs agree with; `None` if none can be read.
fn majority(storage: &dyn Storage) -> Result<Option<PackHeader>> {
    let inventory = Inventory::read(storage)?;
    let header = |id: &PackId| PackReader::open(storage, *id).and_then(|reader| reader.header()).ok();
    let headers: Vec<_> = inventory.sealed.values().filter_map(header).take(HEADERS_READ_MAX).collect();
    let alike = |one: &PackHeader| {
        headers.iter().filter(|other| (other.store_id, other.params) == (one.store_id, one.params)).count()
    };
    Ok(headers.iter().max_by_key(|header| alike(header)).copied())
}

fn is_of(header: &PackHeader, format: &FormatSection) -> bool {
    (header.store_id, header.params) == (format.store_id_bytes(), format.chunk_params())
}

//! `remotes.toml`: other stores by name, and how to reach them.
//!
//! Relative paths in the file begin at the store's directory. Secrets are not here, only the paths of their files.

use std::collections::BTreeMap;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use chunkstore::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::rpc::address::Address;
use crate::rpc::private_file::{self, Changing, KeepOut};
use crate::rpc::tls::Fingerprint;

/// The file's name in a store.
const FILE: &str = "remotes.toml";

const COMMENT: &str = "\
# Other stores by name. `vmstore remote` changes it, and so may you.
";

/// Another store, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Where it is.
    pub address: Address,
    /// The only key that its server may present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Fingerprint>,
    /// A PEM file of certificates; one of them must have signed its server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// A file with a token, readable only by its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Rate limit in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_rate_bytes_per_s: Option<NonZeroU64>,
    /// Number of parallel connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<NonZeroU32>,
}

impl Remote {
    /// A store of which only the address is known.
    pub fn at(address: Address) -> Self {
        Self {
            address,
            pin: None,
            ca: None,
            cert: None,
            key: None,
            token_file: None,
            limit_rate_bytes_per_s: None,
            streams: None,
        }
    }

    /// # Errors
    /// [`Error::Invalid`] if parts do not go together.
    fn check(&self, name: &str) -> Result<()> {
        private_file::checked_name("remote", name)?;
        if self.cert.is_some() != self.key.is_some() {
            return Err(Error::invalid(format!("remote {name}: cert and key are needed together")));
        }
        let is_tls = matches!(self.address, Address::Tls(_));
        if !is_tls && (self.pin.is_some() || self.ca.is_some() || self.cert.is_some()) {
            return Err(Error::invalid(format!("remote {name}: pin, ca, cert and key are for tls:// addresses")));
        }
        Ok(())
    }

    fn map_paths(&mut self, map: impl Fn(&Path) -> io::Result<PathBuf>) -> Result<()> {
        let address = match &mut self.address {
            Address::Path(path) | Address::Unix(path) => Some(path),
            Address::Ssh(_) | Address::Tls(_) | Address::Tcp(_) => None,
        };
        let files = [&mut self.ca, &mut self.cert, &mut self.key, &mut self.token_file];
        for path in files.into_iter().filter_map(Option::as_mut).chain(address) {
            *path = map(path).map_err(|error| Error::io("finding", &path, error))?;
        }
        Ok(())
    }
}

/// The file `remotes.toml` of a store.
#[derive(Clone, Debug)]
pub struct Remotes {
    dir: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    #[serde(default, rename = "remote")]
    remotes: BTreeMap<String, Remote>,
}

impl Remotes {
    /// The remotes of the store in `dir`; the file need not be there.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// Adds a remote. Relative paths are resolved against the working directory and stored as absolute ones. Comments
    /// in the file are lost.
    ///
    /// # Errors
    /// [`Error::Refused`] if the name is taken; [`Error::Invalid`] if the name is none, or parts do not go together.
    pub fn add(&self, name: &str, mut remote: Remote) -> Result<()> {
        remote.check(name)?;
        remote.map_paths(|path| std::path::absolute(path))?;
        self.change(|remotes| {
            if remotes.contains_key(name) {
                return Err(Error::refused(format!("there is a remote {name} already")));
            }
            remotes.insert(name.to_owned(), remote);
            Ok(())
        })
    }

    /// Removes a remote.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none of that name.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|remotes| remotes.remove(name).map(drop).ok_or_else(|| unknown(name)))
    }

    /// All remotes by name.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the line and the key, if the file is not right.
    pub fn list(&self) -> Result<BTreeMap<String, Remote>> {
        let path = self.path();
        let Some(bytes) = private_file::read_if_present(&path, KeepOut::Nobody)? else { return Ok(BTreeMap::new()) };
        let mut entries: Entries = private_file::from_toml(&path, &bytes)?;
        for (name, remote) in &mut entries.remotes {
            remote.check(name).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
            remote.map_paths(|relative| Ok(self.dir.join(relative)))?;
        }
        Ok(entries.remotes)
    }

    /// The store that an address or the name of a remote refers to.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is a name and there is no such remote; [`Error::Invalid`] if it is no address.
    pub fn resolve(&self, text: &str) -> Result<Remote> {
        if Address::is_name(text) {
            return self.list()?.remove(text).ok_or_else(|| unknown(text));
        }
        Ok(Remote::at(text.parse()?))
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Remote>) -> Result<()>) -> Result<()> {
        let _changing = Changing::begin(&self.dir)?;
        let mut remotes = self.list()?;
        change(&mut remotes)?;
        private_file::replace(&self.path(), &private_file::to_toml(COMMENT, &Entries { remotes }))
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("remote {name:?} (a directory is written ./{name})"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn added_listed_resolved_removed() {
        let dir = tempfile::tempdir().unwrap();
        let remotes = Remotes::new(dir.path());
        let site_b = Remote {
            pin: Some(format!("sha256:{}", "ab".repeat(32)).parse().unwrap()),
            cert: Some("/etc/c.pem".into()),
            key: Some("/etc/k.pem".into()),
            token_file: Some("/etc/token".into()),
            limit_rate_bytes_per_s: NonZeroU64::new(1 << 20),
            streams: NonZeroU32::new(4),
            ..Remote::at("tls://site-b".parse().unwrap())
        };
        remotes.add("site-b", site_b.clone()).unwrap();
        remotes.add("nas", Remote::at("./nas".parse().unwrap())).unwrap();
        assert_eq!(remotes.resolve("site-b").unwrap(), site_b);
        let Address::Path(nas) = remotes.resolve("nas").unwrap().address else { panic!() };
        assert!(nas.is_absolute() && nas.ends_with("nas"));
        assert_eq!(remotes.list().unwrap().into_keys().collect::<Vec<_>>(), ["nas", "site-b"]);
        assert!(matches!(remotes.add("nas", site_b), Err(Error::Refused { .. })));
        remotes.remove("nas").unwrap();
        assert!(matches!(remotes.remove("nas"), Err(Error::NotFound { .. })));
        assert!(matches!(remotes.resolve("nas"), Err(Error::NotFound { .. })));
        assert_eq!(remotes.resolve("./nas").unwrap(), Remote::at("./nas".parse().unwrap()));
        assert!(matches!(remotes.resolve("http://x"), Err(Error::Invalid { .. })));
    }

    #[test]
    fn paths_written_by_hand_begin_at_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[remote.b]\naddress = \"tls://b\"\nca = \"ca.pem\"\n[remote.c]\naddress = \"../c\"\n";
        fs::write(dir.path().join(FILE), text).unwrap();
        let remotes = Remotes::new(dir.path()).list().unwrap();
        assert_eq!(remotes["b"].ca.as_deref(), Some(&*dir.path().join("ca.pem")));
        assert_eq!(remotes["c"].address, Address::Path(dir.path().join("../c")));
    }

    #[test]
    fn unknown_content_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let remotes = Remotes::new(dir.path());
        let cases = [
            ("[remote.b]\naddress = \"tls://b\"\npinn = \"x\"", "pinn"),
            ("[remote.b]\naddress = \"b\"", "address"),
            ("[remote.b]\naddress = \"tls://b\"\npin = \"md5:x\"", "sha256:"),
            ("[remote.b]\naddress = \"tls://b\"\nstreams = 0", "nonzero"),
            ("[remote.b]\naddress = \"tls://b\"\ncert = \"x\"", "together"),
            ("[remote.b]\naddress = \"/b\"\nca = \"x\"", "tls://"),
            ("[remote.\"-b\"]\naddress = \"/b\"", "name"),
            ("[remotes.b]\naddress = \"/b\"", "remotes"),
            ("[remote.b]\npin = \"\"", "line"),
        ];
        for (text, named) in cases {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = remotes.resolve("b").unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(FILE), "{error}");
        }
    }
}

//! A server's key and certificate.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chunkstore::{Error, Result};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Fingerprint, read_chain, read_key};
use crate::rpc::private_file::{self, KeepOut};

/// The directory of the generated key and certificate in a store.
const DIR: &str = "tls";
const KEY_FILE: &str = "key.pem";
const CERT_FILE: &str = "cert.pem";
/// The generated certificate's name. Clients pin the key, so it does not matter.
const NAME: &str = "vmstore";

/// The identity of a server.
pub struct ServerIdentity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// The path of the key, for messages.
    pub(super) key_path: PathBuf,
    fingerprint: Fingerprint,
}

impl ServerIdentity {
    /// The identity of the store in `dir`, created on first use. The caller owns the store.
    ///
    /// # Errors
    /// [`Error::Refused`] if others may read the key, or the certificate's key is missing; [`Error::Invalid`] if the
    /// files have other content.
    pub fn load_or_create(dir: &Path) -> Result<Self> {
        let dir = dir.join(DIR);
        let (key, cert) = (dir.join(KEY_FILE), dir.join(CERT_FILE));
        if !cert.exists() {
            create(&dir, &key, &cert)?;
        }
        if !key.exists() {
            let (key, cert) = (key.display(), cert.display());
            return Err(Error::refused(format!("{key} is gone; without {cert} a new one is made, for clients to pin")));
        }
        Self::load(&cert, &key, KeepOut::GroupAndOthers)
    }

    /// The identity that an operator keeps in two PEM files: the certificate with the intermediate ones after it, and
    /// the key.
    ///
    /// # Errors
    /// [`Error::Refused`] if everyone may read the key; [`Error::Invalid`] if the files have other content.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self> {
        Self::load(cert, key, KeepOut::Others)
    }

    /// The fingerprint that clients pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn load(cert: &Path, key: &Path, keep_out: KeepOut) -> Result<Self> {
        let chain = read_chain(cert)?;
        let fingerprint =
            Fingerprint::of(&chain[0]).map_err(|error| Error::invalid(format!("{}: {error}", cert.display())))?;
        Ok(Self { chain, key: read_key(key, keep_out)?, key_path: key.to_path_buf(), fingerprint })
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// The certificate is written last and completes the identity. An existing key is kept: clients may have pinned it.
fn create(dir: &Path, key_path: &Path, cert_path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("creating", dir, error)),
        _ => {}
    }
    let key = match private_file::read_if_present(key_path, KeepOut::GroupAndOthers)? {
        Some(pem) => str::from_utf8(&pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| Error::invalid(format!("{} holds no private key in PEM", key_path.display())))?,
        None => new_key(key_path)?,
    };
    private_file::replace(cert_path, self_signed(&key)?.as_bytes())?;
    let parent = dir.parent().expect("it was made in a store");
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| Error::io("syncing", parent, error))
}

fn new_key(path: &Path) -> Result<KeyPair> {
    let key = KeyPair::generate().map_err(|error| not_made(&error))?;
    private_file::replace(path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

fn self_signed(key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).map_err(|error| not_made(&error))?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    Ok(params.self_signed(key).map_err(|error| not_made(&error))?.pem())
}

fn not_made(error: &rcgen::Error) -> Error {
    Error::refused(format!("a certificate can't be made: {error}"))
}

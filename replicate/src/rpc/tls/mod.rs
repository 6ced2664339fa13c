//! TLS 1.3 between sites: authenticates the server and optionally the client.
//!
//! A server is authenticated by its pinned key, or by a certificate of an authority that the client names. An unknown
//! server is never trusted on first use, and receives nothing from the client. Sessions are not resumed, so that every
//! connection is checked against today's certificates, and there is no early data.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use chunkstore::{Error, Result};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, RootCertStore};

use crate::rpc::private_file::{self, KeepOut};

mod client;
mod fingerprint;
mod identity;
mod server;
#[cfg(test)]
mod tests;

pub use client::TlsClient;
pub use fingerprint::Fingerprint;
pub use identity::ServerIdentity;
pub use server::{ClientCertificates, ServerTls};

/// The protocol's name (ALPN); a server of another protocol refuses the connection.
const PROTOCOL: &[u8] = b"vmstore";

/// The cryptography provider; passed to every configuration, because this crate must not set a process-wide default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a certificate and the intermediate ones after it.
fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = private_file::read(path, KeepOut::Nobody)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(Error::invalid(format!("{} holds no certificate in PEM", path.display()))),
    }
}

fn read_key(path: &Path, keep_out: KeepOut) -> Result<PrivateKeyDer<'static>> {
    let bytes = private_file::read(path, keep_out)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| Error::invalid(format!("{} holds no private key in PEM", path.display())))
}

/// Reads the certificates of authorities.
fn read_authorities(path: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(path)? {
        roots.add(certificate).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
    }
    Ok(Arc::new(roots))
}

/// The error for a failed TLS connection: [`Error::Denied`] if one side does not accept the other's certificate, else
/// [`Error::Unreachable`].
pub fn connection_error(peer: impl Display, error: &io::Error) -> Error {
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    match reason {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            Error::denied(format!("{peer} admits only clients with a certificate"))
        }
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificates(*alert) => {
            Error::denied(format!("{peer} refuses the certificate: {alert:?}"))
        }
        Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            Error::denied(format!("{peer} is not accepted: {error}"))
        }
        _ => Error::unreachable(format!("the connection with {peer} failed: {error}")),
    }
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

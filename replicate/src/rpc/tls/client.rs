//! The client's side: authenticates the server.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use chunkstore::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Fingerprint, PROTOCOL, connection_error, provider, read_authorities, read_chain, read_key};
use crate::rpc::private_file::KeepOut;

/// How a server must authenticate.
#[derive(Debug)]
enum Trust {
    /// By this key. Its name and dates do not matter.
    Pin(Fingerprint),
    /// By a certificate for the requested name, valid now, and signed by an authority.
    Authority(Arc<WebPkiServerVerifier>),
    /// Not at all; the handshake only retrieves its key for the operator to compare.
    Nothing,
}

/// Checks one server's certificate, and remembers the key that it presented.
#[derive(Debug)]
struct ServerCheck {
    trust: Trust,
    shown: OnceLock<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

/// The client's side of one connection.
#[derive(Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    check: Arc<ServerCheck>,
}

impl TlsClient {
    /// Trusts the pinned key if there is a pin, else the authorities in the PEM file `ca`, else no server. Presents the
    /// certificate in the PEM files `client_cert` if the server requests one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a file has other content; [`Error::Refused`] if others may read the key.
    pub fn new(pin: Option<Fingerprint>, ca: Option<&Path>, client_cert: Option<&(PathBuf, PathBuf)>) -> Result<Self> {
        let provider = provider();
        let trust = match (pin, ca) {
            (Some(pin), _) => Trust::Pin(pin),
            (None, Some(ca)) => Trust::Authority(authority(ca, &provider)?),
            (None, None) => Trust::Nothing,
        };
        let check = Arc::new(ServerCheck { trust, shown: OnceLock::new(), provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&check) as _);
        let mut config = match client_cert {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(read_chain(cert)?, read_key(key, KeepOut::Others)?)
                .map_err(|error| Error::invalid(format!("{} with {}: {error}", cert.display(), key.display())))?,
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self { config: Arc::new(config), check })
    }

    /// Performs the handshake with the server named `host`. Nothing else is sent before the server is authenticated.
    ///
    /// # Errors
    /// [`Error::Denied`] if it is another server, or there is neither pin nor authority; [`Error::Unreachable`] if the
    /// connection fails.
    pub async fn connect<S>(self, host: &str, stream: S) -> Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::invalid(format!("{host:?} can't be the name of a TLS server")))?;
        let connected = TlsConnector::from(self.config).connect(name, stream).await;
        connected.map_err(|error| self.check.explain(host, &error))
    }
}

fn authority(ca: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(read_authorities(ca)?, Arc::clone(provider))
        .build()
        .map_err(|error| Error::invalid(format!("{}: {error}", ca.display())))
}

impl ServerCheck {
    /// The reason why a handshake failed, with the key that the server presented.
    fn explain(&self, host: &str, error: &std::io::Error) -> Error {
        let failed = connection_error(host, error);
        let Error::Denied { what } = &failed else { return failed };
        match (&self.trust, self.shown.get()) {
            (Trust::Pin(pin), Some(shown)) if pin != shown => Error::denied(format!(
                "the key of {host} is {shown}, not the pinned {pin}: either its key was changed, or someone else answers \
                 in its place"
            )),
            (Trust::Nothing, Some(shown)) => Error::denied(format!(
                "nothing says who {host} is. The key it shows is {shown}; if that is what its operator sees there, pin it \
                 (--pin {shown})"
            )),
            (Trust::Authority(_), Some(shown)) => Error::denied(format!("{what} (its key is {shown})")),
            _ => failed,
        }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::of(end_entity)?;
        self.shown.get_or_init(|| shown);
        match &self.trust {
            Trust::Pin(pin) if *pin == shown => Ok(ServerCertVerified::assertion()),
            Trust::Pin(_) | Trust::Nothing => Err(CertificateError::ApplicationVerificationFailure.into()),
            Trust::Authority(authority) => {
                authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    /// Verifies that the server has the key of its certificate: without this a pin would be worthless.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

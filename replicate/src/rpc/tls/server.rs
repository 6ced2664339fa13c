//! The server's side: presents its certificate, and authenticates clients that have one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use chunkstore::{Error, Result};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{PROTOCOL, ServerIdentity, connection_error, provider, read_authorities};

/// How a server treats client certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Requests none.
    #[default]
    Ignored,
    /// Accepts those signed by an authority in this PEM file. Clients without one may use a token.
    Accepted(PathBuf),
    /// Admits only clients with such a certificate.
    Required(PathBuf),
}

/// The server's side of connections.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl ServerTls {
    /// A server of this identity.
    ///
    /// # Errors
    /// [`Error::Invalid`] if certificate and key do not match, or a file has other content.
    pub fn new(identity: &ServerIdentity, clients: &ClientCertificates) -> Result<Self> {
        let provider = provider();
        let verifier = verifier(clients, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| {
                let key = identity.key_path.display();
                Error::invalid(format!("the server's certificate with its key {key}: {error}"))
            })?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::from_config(config))
    }

    pub(super) fn from_config(config: ServerConfig) -> Self {
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Performs the handshake with a client, and returns the name in its certificate, if it presented one.
    ///
    /// # Errors
    /// [`Error::Denied`] if its certificate is not accepted; [`Error::Unreachable`] if the connection fails.
    pub async fn accept<S>(&self, peer: impl fmt::Display, stream: S) -> Result<(TlsStream<S>, Option<String>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.0.accept(stream).await.map_err(|error| connection_error(peer, &error))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let name = certificates.and_then(|chain| chain.first()).and_then(client_name);
        Ok((stream, name))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

fn verifier(clients: &ClientCertificates, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
    let (path, is_required) = match clients {
        ClientCertificates::Ignored => return Ok(WebPkiClientVerifier::no_client_auth()),
        ClientCertificates::Accepted(path) => (path, false),
        ClientCertificates::Required(path) => (path, true),
    };
    let builder = WebPkiClientVerifier::builder_with_provider(read_authorities(path)?, Arc::clone(provider));
    let builder = if is_required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

/// The name that a verified certificate is for: its first DNS name, else the common name of its subject.
fn client_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let dns_name = certificate.valid_dns_names().find(|name| !name.contains('*')).map(str::to_owned);
    dns_name.or_else(|| common_name(certificate.subject()))
}

/// Of the object identifier 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const TAG_SEQUENCE: u8 = 0x30;
const TAG_SET: u8 = 0x31;
const TAG_OBJECT_ID: u8 = 0x06;
/// `UTF8String`, `PrintableString` and `IA5String`: UTF-8, or part of it.
const TEXT_TAGS: [u8; 3] = [0x0c, 0x13, 0x16];

/// The last, which is the most specific, common name in the DER of a subject (RFC 5280, 4.1.2.4) without its outer tag.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut rest = subject;
    let mut found = None;
    while !rest.is_empty() {
        let set;
        (set, rest) = der_value(rest, TAG_SET)?;
        let (attribute, _) = der_value(set, TAG_SEQUENCE)?;
        let (kind, value) = der_value(attribute, TAG_OBJECT_ID)?;
        if kind == COMMON_NAME {
            let (text, _) = TEXT_TAGS.iter().find_map(|tag| der_value(value, *tag))?;
            found = Some(str::from_utf8(text).ok()?.to_owned());
        }
    }
    found.filter(|name| !name.is_empty() && !name.chars().any(char::is_control))
}

/// The content of a value with this tag, and the bytes after it; lengths of up to two bytes, which is more than a name
/// needs.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let length_bytes = match first {
        0..=0x7f => 0,
        0x81 | 0x82 => usize::from(first & 0x7f),
        _ => return None,
    };
    let (long, rest) = rest.split_at_checked(length_bytes)?;
    let short = if length_bytes == 0 { usize::from(*first) } else { 0 };
    let length = long.iter().fold(short, |length, byte| length << 8 | usize::from(*byte));
    if *found == tag { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(object_id: u8, tag: u8, text: &[u8]) -> Vec<u8> {
        let value = [&[tag, text.len() as u8], text].concat();
        let kind = [TAG_OBJECT_ID, 3, 0x55, 0x04, object_id];
        let pair = [&[TAG_SEQUENCE, (kind.len() + value.len()) as u8][..], &kind, &value].concat();
        [&[TAG_SET, pair.len() as u8][..], &pair].concat()
    }

    #[test]
    fn common_names() {
        let (country, organisation) = (attribute(6, 0x13, b"DE"), attribute(10, 0x0c, b"backup"));
        let (cn, other) = (attribute(3, 0x0c, "wéb".as_bytes()), attribute(3, 0x16, b"db"));
        let cases = [
            (vec![], None),
            ([country.clone(), organisation.clone()].concat(), None),
            ([country.clone(), cn.clone()].concat(), Some("wéb")),
            ([cn.clone(), country].concat(), Some("wéb")),
            ([other, organisation, cn.clone()].concat(), Some("wéb")),
            (attribute(3, 0x1e, b"\0x"), None),
            (attribute(3, 0x0c, b"\xff"), None),
            (attribute(3, 0x0c, b"a\nb"), None),
            (attribute(3, 0x0c, b""), None),
        ];
        for (subject, expected) in cases {
            assert_eq!(common_name(&subject).as_deref(), expected, "{subject:02x?}");
        }
        for end in 1..cn.len() {
            assert_eq!(common_name(&cn[..end]), None);
        }
    }

    #[test]
    fn lengths() {
        let long = [&[0x0c, 0x82, 0x01, 0x00][..], &[b'x'; 256]].concat();
        assert_eq!(der_value(&long, 0x0c).unwrap().0.len(), 256);
        assert_eq!(der_value(&[0x0c, 0x81, 1, b'x', b'y'], 0x0c), Some((&b"x"[..], &b"y"[..])));
        for bad in [&[0x0c][..], &[0x0c, 0x80], &[0x0c, 0x84, 0, 0, 0, 1, 0], &[0x0c, 2, 0], &[0x0c, 0x82, 1]] {
            assert_eq!(der_value(bad, 0x0c), None);
        }
    }
}

//! Authentication of both sides, over a stream in memory.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const HOST: &str = "b.site.example";

/// An authority, and PEM files of what it signs.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate and key.
    fn sign(&self, mut params: CertificateParams) -> (PathBuf, PathBuf) {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |what| self.dir.path().join(format!("{what}{}", fs::read_dir(&self.dir).unwrap().count()));
        let (cert_path, key_path) = (path("cert"), path("key"));
        fs::write(&cert_path, certificate.pem()).unwrap();
        private_file::replace(&key_path, key.serialize_pem().as_bytes()).unwrap();
        (cert_path, key_path)
    }

    fn identity(&self, params: CertificateParams) -> ServerIdentity {
        let (cert, key) = self.sign(params);
        ServerIdentity::from_files(&cert, &key).unwrap()
    }
}

fn named(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

fn common_name(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn expired(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2020, 2, 1);
    params
}

fn own() -> ServerIdentity {
    let dir = tempfile::tempdir().unwrap();
    ServerIdentity::load_or_create(dir.path()).unwrap()
}

fn server(identity: &ServerIdentity) -> ServerTls {
    ServerTls::new(identity, &ClientCertificates::Ignored).unwrap()
}

/// Performs the handshake and sends a secret. Returns the client's result and the server's: the client's name.
async fn meet(client: TlsClient, server: ServerTls) -> (Result<()>, Result<Option<String>>) {
    let (near, far) = duplex(1 << 16);
    tokio::join!(speak(client, near), listen(server, far))
}

async fn speak(client: TlsClient, stream: DuplexStream) -> Result<()> {
    let mut stream = client.connect(HOST, stream).await?;
    let mut greeting = [0; 5];
    let spoken = async {
        stream.write_all(b"token").await?;
        stream.read_exact(&mut greeting).await
    };
    // In TLS 1.3 a client learns only here that the server refuses it.
    spoken.await.map(drop).map_err(|error| connection_error(HOST, &error))
}

async fn listen(server: ServerTls, stream: DuplexStream) -> Result<Option<String>> {
    let (mut stream, name) = server.accept("a client", stream).await?;
    let mut token = [0; 5];
    stream.read_exact(&mut token).await.map_err(|error| connection_error("a client", &error))?;
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    Ok(name)
}

fn assert_denied<T: std::fmt::Debug>(result: &Result<T>, words: &str) {
    let Err(Error::Denied { what }) = result else { panic!("{result:?}") };
    assert!(what.contains(words), "{what}");
}

#[tokio::test]
async fn a_pinned_key_is_trusted_whatever_its_certificate_says() {
    let authority = Authority::new();
    for identity in [own(), authority.identity(named("another.example")), authority.identity(expired(named(HOST)))] {
        let client = TlsClient::new(Some(identity.fingerprint()), None, None).unwrap();
        let (client, server) = meet(client, server(&identity)).await;
        client.unwrap();
        assert_eq!(server.unwrap(), None);
    }
}

#[tokio::test]
async fn a_pin_is_of_the_key_and_not_of_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let first = ServerIdentity::load_or_create(dir.path()).unwrap();
    fs::remove_file(dir.path().join("tls/cert.pem")).unwrap();
    let renewed = ServerIdentity::load_or_create(dir.path()).unwrap();
    assert_ne!(first.chain, renewed.chain);
    assert_eq!(first.fingerprint(), renewed.fingerprint());
}

#[tokio::test]
async fn another_key_gets_nothing_though_its_certificate_has_the_same_name() {
    let (meant, other) = (own(), own());
    let client = TlsClient::new(Some(meant.fingerprint()), None, None).unwrap();
    let (client, server) = meet(client, server(&other)).await;
    assert_denied(&client, &meant.fingerprint().to_string());
    assert_denied(&client, &other.fingerprint().to_string());
    server.unwrap_err();
}

/// A server that was once connected to knows the certificate, but not its key.
#[tokio::test]
async fn a_copied_certificate_without_its_key_gets_nothing() {
    let (meant, other) = (own(), own());
    let key = provider().key_provider.load_private_key(other.key.clone_key()).unwrap();
    let copied = SingleCertAndKey::from(CertifiedKey::new(meant.chain.clone(), key));
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(copied));
    let client = TlsClient::new(Some(meant.fingerprint()), None, None).unwrap();
    let (client, server) = meet(client, ServerTls::from_config(config)).await;
    assert_denied(&client, "BadSignature");
    server.unwrap_err();
}

#[tokio::test]
async fn without_a_pin_or_authority_only_the_key_is_reported() {
    let identity = own();
    let (client, server) = meet(TlsClient::new(None, None, None).unwrap(), server(&identity)).await;
    assert_denied(&client, &format!("--pin {}", identity.fingerprint()));
    server.unwrap_err();
}

#[tokio::test]
async fn an_authority_vouches_for_names_and_dates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let cases = [
        (authority.identity(named(HOST)), None),
        (authority.identity(named("*.site.example")), None),
        (authority.identity(named("another.example")), Some("not valid for name")),
        (authority.identity(common_name(HOST)), Some("not valid for")),
        (authority.identity(expired(named(HOST))), Some("expired")),
        (other.identity(named(HOST)), Some("is not accepted")),
        (own(), Some("is not accepted")),
    ];
    for (identity, refusal) in cases {
        let client = TlsClient::new(None, Some(&authority.file()), None).unwrap();
        let (client, server) = meet(client, server(&identity)).await;
        match refusal {
            None => client.unwrap(),
            Some(words) => {
                assert_denied(&client, words);
                assert_denied(&client, &identity.fingerprint().to_string());
                server.unwrap_err();
            }
        }
    }
}

#[tokio::test]
async fn clients_are_known_by_their_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut both = common_name("by-subject");
    both.subject_alt_names = named("by-dns.example").subject_alt_names;
    let (dns, subject) = (authority.sign(both), authority.sign(common_name("by-subject")));
    let (foreign, old) = (other.sign(named("by-dns.example")), authority.sign(expired(named("by-dns.example"))));
    let accepted = ClientCertificates::Accepted(authority.file());
    let required = ClientCertificates::Required(authority.file());
    let cases = [
        (ClientCertificates::Ignored, Some(&dns), Ok(None)),
        (accepted.clone(), None, Ok(None)),
        (accepted.clone(), Some(&dns), Ok(Some("by-dns.example"))),
        (accepted.clone(), Some(&subject), Ok(Some("by-subject"))),
        (accepted.clone(), Some(&foreign), Err("refuses the certificate")),
        (accepted, Some(&old), Err("refuses the certificate")),
        (required.clone(), Some(&dns), Ok(Some("by-dns.example"))),
        (required.clone(), None, Err("only clients with a certificate")),
        (required, Some(&foreign), Err("refuses the certificate")),
    ];
    let identity = own();
    for (clients, shown, expected) in cases {
        let client = TlsClient::new(Some(identity.fingerprint()), None, shown).unwrap();
        let (client, server) = meet(client, ServerTls::new(&identity, &clients).unwrap()).await;
        match expected {
            Ok(name) => {
                client.unwrap();
                assert_eq!(server.unwrap().as_deref(), name);
            }
            Err(words) => {
                assert_denied(&client, words);
                assert_denied(&server, "a client");
            }
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_unreachable() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    let client = TlsClient::new(Some(own().fingerprint()), None, None).unwrap();
    assert!(matches!(client.connect(HOST, near).await, Err(Error::Unreachable { .. })));
    let (near, far) = duplex(1 << 16);
    drop(far);
    let client = TlsClient::new(None, None, None).unwrap();
    assert!(matches!(client.connect(HOST, near).await, Err(Error::Unreachable { .. })));
}

#[test]
fn an_identity_is_kept_and_private() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let first = ServerIdentity::load_or_create(dir.path()).unwrap();
    let again = ServerIdentity::load_or_create(dir.path()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.chain, again.chain);
    let key = dir.path().join("tls/key.pem");
    assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(dir.path().join("tls")).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(ServerIdentity::load_or_create(dir.path()), Err(Error::Refused { .. })));
    // An operator may let a group read his own.
    ServerIdentity::from_files(&dir.path().join("tls/cert.pem"), &key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(matches!(ServerIdentity::load_or_create(dir.path()), Err(Error::Refused { .. })));
}

#[test]
fn mismatched_certificates_and_keys_are_refused() {
    let authority = Authority::new();
    let (a, b) = (authority.sign(named(HOST)), authority.sign(named(HOST)));
    let mixed = ServerIdentity::from_files(&a.0, &b.1).unwrap();
    assert!(matches!(ServerTls::new(&mixed, &ClientCertificates::Ignored), Err(Error::Invalid { .. })));
    assert!(matches!(ServerIdentity::from_files(&a.1, &a.1), Err(Error::Invalid { .. })));
    // Before it is read: everyone may.
    assert!(matches!(ServerIdentity::from_files(&a.0, &a.0), Err(Error::Refused { .. })));
    let no_key = a.1.with_extension("no");
    private_file::replace(&no_key, b"no key").unwrap();
    assert!(matches!(ServerIdentity::from_files(&a.0, &no_key), Err(Error::Invalid { .. })));
    let pin = Some(mixed.fingerprint());
    assert!(matches!(TlsClient::new(pin, None, Some(&(a.0.clone(), b.1))), Err(Error::Invalid { .. })));
    assert!(matches!(TlsClient::new(None, Some(&a.1), None), Err(Error::Invalid { .. })));
    assert!(matches!(TlsClient::new(None, Some(&a.0.with_extension("gone")), None), Err(Error::NotFound { .. })));
}

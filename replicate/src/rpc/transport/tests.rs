//! Both ends together.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::rpc::tls::{ClientCertificates, ServerIdentity, ServerTls};

fn path(path: &Path) -> Address {
    Address::Path(path.to_path_buf())
}

/// Echoes one connection, and returns its peer.
async fn echo(mut acceptor: Acceptor) -> Result<Peer> {
    let (mut stream, peer) = acceptor.accept().await?.handshake().await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    Ok(peer)
}

/// The echo of some bytes, up to the end of the stream.
async fn exchange(mut stream: Stream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn meet(address: &Address, options: &ConnectOptions, acceptor: Acceptor) -> (Peer, Counter) {
    let client = async {
        let connected = connect(address, options).await.unwrap();
        assert_eq!(connected.peer, address.to_string());
        assert_eq!(exchange(connected.stream, b"hello").await.unwrap(), b"hello");
        connected.tls_bytes_sent
    };
    let (peer, sent) = tokio::join!(echo(acceptor), client);
    (peer.unwrap(), sent)
}

#[tokio::test]
async fn a_store_is_reached_by_its_path_however_long_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200)).join("y".repeat(200));
    fs::create_dir_all(&long).unwrap();
    for store in [dir.path(), &long] {
        let (peer, sent) = meet(&path(store), &ConnectOptions::default(), Acceptor::unix(store).unwrap()).await;
        let own = std::process::id() as i32;
        assert_eq!(peer, Peer::Local { uid: fs::metadata(store).unwrap().uid(), pid: Some(own) });
        assert_eq!(sent.get(), 0);
    }
}

#[tokio::test]
async fn a_socket_is_private_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(SOCKET_FILE);
    drop(Acceptor::unix(dir.path()).unwrap());
    assert!(socket.exists());
    // A child that another test has just forked holds it too, until its exec.
    let mut refused = connect(&path(dir.path()), &ConnectOptions::default()).await;
    while refused.is_ok() {
        refused = connect(&path(dir.path()), &ConnectOptions::default()).await;
    }
    assert!(matches!(refused, Err(Error::Unreachable { .. })), "{refused:?}");
    let acceptor = Acceptor::unix(dir.path()).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    meet(&Address::Unix(socket.clone()), &ConnectOptions::default(), acceptor).await;
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "somebody's").unwrap();
    assert!(matches!(Acceptor::unix(dir.path()), Err(Error::Refused { .. })));
    assert_eq!(fs::read(&socket).unwrap(), b"somebody's");
}

#[tokio::test]
async fn a_missing_store_and_a_missing_owner_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let options = ConnectOptions::default();
    assert!(matches!(connect(&path(dir.path()), &options).await, Err(Error::Unreachable { .. })));
    assert!(matches!(connect(&path(&dir.path().join("x")), &options).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn tls_is_counted_and_names_no_client_without_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let identity = ServerIdentity::load_or_create(dir.path()).unwrap();
    let tls = ServerTls::new(&identity, &ClientCertificates::Ignored).unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let Address::Tls(_) = format!("tls://{host}:1").parse().unwrap() else { panic!() };
        // Port 0 can't be written as an address: the system chooses one.
        let listener = tcp::listen("127.0.0.1", 0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = Acceptor::inherited(Inherited::Tcp(listener.into_std().unwrap()), Some(&tls)).unwrap();
        assert_eq!(acceptor.local_addr().unwrap().port(), port);
        let options = ConnectOptions { pin: Some(identity.fingerprint()), ..Default::default() };
        let (peer, sent) = meet(&format!("tls://{host}:{port}").parse().unwrap(), &options, acceptor).await;
        assert!(matches!(&peer, Peer::Tls { client_name: None, .. }), "{peer:?}");
        assert!(sent.get() > 100, "{sent:?}");
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = tcp::listen("127.0.0.1", 0).await.unwrap();
    let address = format!("tls://{}", listener.local_addr().unwrap()).parse().unwrap();
    let options = ConnectOptions { timeout: Duration::from_millis(50), ..Default::default() };
    assert!(matches!(connect(&address, &options).await, Err(Error::Unreachable { .. })));
    drop(listener);
    assert!(matches!(connect(&address, &ConnectOptions::default()).await, Err(Error::Unreachable { .. })));
    let nowhere = "tls://host.invalid".parse().unwrap();
    assert!(matches!(connect(&nowhere, &ConnectOptions::default()).await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn without_encryption_only_this_machine_and_only_if_asked() {
    let plain = ConnectOptions { allow_plain: true, ..Default::default() };
    let acceptor = Acceptor::plain(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let here = Address::Tcp(acceptor.local_addr().unwrap());
    assert!(matches!(connect(&here, &ConnectOptions::default()).await, Err(Error::Refused { .. })));
    let (peer, _) = meet(&here, &plain, acceptor).await;
    assert!(matches!(peer, Peer::Plain { .. }));
    let elsewhere = "tcp://192.0.2.1:7879".parse().unwrap();
    assert!(matches!(connect(&elsewhere, &plain).await, Err(Error::Refused { .. })));
    let everywhere = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(Acceptor::plain(&everywhere).await, Err(Error::Refused { .. })));
    let socket = std::net::TcpListener::bind(everywhere).unwrap();
    assert!(matches!(Acceptor::inherited(Inherited::Tcp(socket), None), Err(Error::Refused { .. })));
    for address in ["/srv/x", "ssh://host/x", "tls://[::1]"] {
        assert!(matches!(Acceptor::at(&address.parse().unwrap(), None).await, Err(Error::Invalid { .. })), "{address}");
    }
}

/// Replacements for ssh, which runs the command here, and for the remote vmstore.
struct FakeSsh(tempfile::TempDir);

impl FakeSsh {
    fn new(vmstore: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Self(dir);
        fake.script("ssh", "echo $$ > \"$0.pid\"\nwhile [ \"$1\" != -- ]; do shift; done\nexec sh -c \"exec $3\"");
        fake.script("vmstore", vmstore);
        fake
    }

    fn script(&self, name: &str, body: &str) {
        // Written by another process: a child that another test forks just then would inherit the open file, and a file
        // open for writing can't be executed.
        let mut write = std::process::Command::new("sh");
        write.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
        assert!(write.arg(self.0.path().join(name)).arg(body).status().unwrap().success());
    }

    fn options(&self) -> ConnectOptions {
        let program = |name| self.0.path().join(name).to_str().unwrap().to_owned();
        ConnectOptions { ssh_command: program("ssh"), remote_program: program("vmstore"), ..Default::default() }
    }

    async fn connect(&self, path: &str) -> Stream {
        connect(&format!("ssh://host{path}").parse().unwrap(), &self.options()).await.unwrap().stream
    }
}

#[tokio::test]
async fn through_ssh_the_store_is_the_one_named_whatever_its_name() {
    let fake = FakeSsh::new("printf '%s|' \"$@\"; cat");
    for store in ["/srv/x", "/srv/a b", "/srv/a'b\"c", "/$(touch x)`id`;&|*?\\", "/ü\u{a0}", "/-x"] {
        let answer = exchange(fake.connect(store).await, b"hello").await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("--store={store}|serve|--stdio|hello"));
    }
}

#[tokio::test]
async fn the_exit_of_ssh_is_reported() {
    for (vmstore, reason) in [
        ("exit 255", "255"),
        ("exit 127", "no vmstore at host"),
        ("echo x; exit 3", "exit code 3"),
        ("kill -9 $$", "137"),
    ] {
        let fake = FakeSsh::new(vmstore);
        // The shell turns a signal into an exit code only if it still runs.
        fake.script("ssh", "while [ \"$1\" != -- ]; do shift; done\nsh -c \"exec $3\"; exit $?");
        let mut stream = fake.connect("/x").await;
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        let error = stream.write_all(&vec![0; 1 << 20]).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let missing = ConnectOptions { ssh_command: "/nonexistent/ssh".into(), ..Default::default() };
    assert!(matches!(connect(&"ssh://host/x".parse().unwrap(), &missing).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn ssh_ends_with_its_stream() {
    let fake = FakeSsh::new("echo ready; exec sleep 1000");
    let mut stream = fake.connect("/x").await;
    stream.read_exact(&mut [0; 6]).await.unwrap();
    let pid = fs::read_to_string(fake.0.path().join("ssh.pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    drop(stream);
    // A process that was killed but not waited for would stay as a zombie.
    while process.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

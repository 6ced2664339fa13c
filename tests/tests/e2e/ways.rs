//! Ways to a store elsewhere, each with all that it needs at both sides.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::devices::tool;
use tests::{Running, Serving, Site, Vmstore, eventually};

const SSHD: &str = "/usr/sbin/sshd";

/// A way to a store elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Its directory.
    Path,
    /// Its owner's socket.
    Socket,
    /// TLS to a pinned key, with a token.
    Pinned,
    /// TLS with certificates of an authority on both sides.
    Certified,
    /// As pinned, but `remote add` has been told all.
    Named,
    /// TCP without encryption.
    Plain,
    /// A shell in place of ssh.
    FakeSsh,
    /// OpenSSH, client and server.
    Ssh,
}

/// Everything a command needs to reach a store elsewhere.
pub(crate) struct Far {
    pub(crate) address: String,
    pub(crate) args: Vec<String>,
    env: Vec<(&'static str, String)>,
    /// Given to `remote add` and not to the commands.
    named: bool,
    _serving: Option<Serving>,
    _sshd: Option<Running>,
}

impl Way {
    /// Opens the way to a store.
    pub(crate) fn open(self, site: &Site, far: &Vmstore) -> Far {
        let store = far.store().to_str().unwrap();
        match self {
            Self::Path => Far::at(store),
            Self::Socket => {
                Far { ..Far::at(format!("unix:{store}/owner.sock")).served(Serving::start::<&str>(far, &[])) }
            }
            Self::Pinned => pinned(site, far),
            Self::Named => Far { named: true, ..pinned(site, far) },
            Self::Certified => certified(site, far),
            Self::Plain => {
                let serving = Serving::start(far, &["--listen", "tcp://127.0.0.1:0", "--allow-plain"]);
                let token = far.run(["token", "add", "site-a", "--role", "admin"]).trim().to_owned();
                let env = vec![("VMSTORE_TOKEN", token)];
                let far = Far::at(&serving.listening()[0].address).with_args(&["--allow-plain"]);
                Far { env, ..far.served(serving) }
            }
            Self::FakeSsh => by_ssh(site, far, "host", "for last; do :; done; exec sh -c \"$last\"", None),
            Self::Ssh => real_ssh(site, far),
        }
    }
}

impl Far {
    fn at(address: impl Into<String>) -> Self {
        let (args, env) = (Vec::new(), Vec::new());
        Self { address: address.into(), args, env, named: false, _serving: None, _sshd: None }
    }

    fn with_args(self, args: &[&str]) -> Self {
        Self { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..self }
    }

    fn served(self, serving: Serving) -> Self {
        Self { _serving: Some(serving), ..self }
    }

    /// The command `vmstore VERB REMOTE ...`, for a store on this side.
    pub(crate) fn command(&self, near: &Vmstore, args: &[&str]) -> Command {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = near.command([*verb]);
        if self.named {
            near.command(["remote", "remove", "far"]).output().unwrap();
            near.run(["remote", "add", "far", &self.address].into_iter().chain(self.args.iter().map(String::as_str)));
            command.arg("far");
        } else {
            command.arg(&self.address).args(&self.args);
        }
        command.args(rest).envs(self.env.iter().cloned());
        command
    }

    /// The command that makes a store on this side.
    pub(crate) fn init_like(&self, near: &Vmstore) -> Command {
        let mut command = near.command(["init", "--no-reserve", "--like", &self.address]);
        command.args(&self.args).envs(self.env.iter().cloned());
        command
    }
}

fn pinned(site: &Site, far: &Vmstore) -> Far {
    let serving = Serving::start(far, &["--listen", "tls://127.0.0.1:0"]);
    let server = serving.listening()[0].clone();
    let token = site.path("site-a.token");
    fs::write(&token, far.run(["token", "add", "site-a", "--role", "admin"])).unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let args = ["--pin", &server.fingerprint.unwrap(), "--token-file", token.to_str().unwrap()];
    Far::at(server.address).with_args(&args).served(serving)
}

fn certified(site: &Site, far: &Vmstore) -> Far {
    let authority = Authority::new(site);
    let ca = authority.ca.to_str().unwrap();
    let [cert, key] = authority.issue("server", "subjectAltName=IP:127.0.0.1");
    let listen = ["--listen", "tls://127.0.0.1:0", "--cert", &cert, "--key", &key];
    let serving = Serving::start(far, &[&listen[..], &["--client-ca", ca, "--require-client-cert"]].concat());
    far.run(["token", "add", "site-a", "--role", "admin", "--client-cert", "site-a"]);
    let [cert, key] = authority.issue("site-a", "extendedKeyUsage=clientAuth");
    let args = ["--ca", ca, "--cert", &cert, "--key", &key];
    Far::at(&serving.listening()[0].address).with_args(&args).served(serving)
}

/// An authority that certifies servers and clients.
pub(crate) struct Authority {
    dir: PathBuf,
    /// Its own certificate.
    pub(crate) ca: PathBuf,
}

impl Authority {
    /// A new one.
    pub(crate) fn new(site: &Site) -> Self {
        let (dir, ca) = (site.dir().to_path_buf(), site.path("ca.pem"));
        let key = site.arg("ca-key.pem");
        let made = "req -x509 -newkey ed25519 -nodes -days 2 -subj /CN=tests -addext basicConstraints=critical,CA:TRUE";
        openssl(made, &["-keyout", &key, "-out", ca.to_str().unwrap()]);
        Self { dir, ca }
    }

    /// Certifies a name; returns the certificate and its key.
    pub(crate) fn issue(&self, name: &str, extension: &str) -> [String; 2] {
        let path = |suffix: &str| self.dir.join(format!("{name}{suffix}")).into_os_string().into_string().unwrap();
        let [cert, key] = [path(".pem"), path("-key.pem")];
        let (ca, ca_key) = (self.ca.to_str().unwrap(), self.dir.join("ca-key.pem"));
        let subject = format!("/CN={name}");
        let by = ["-CA", ca, "-CAkey", ca_key.to_str().unwrap(), "-subj", &subject, "-addext", extension];
        let certified = "req -x509 -newkey ed25519 -nodes -days 2 -addext basicConstraints=critical,CA:FALSE";
        openssl(certified, &[&by[..], &["-keyout", &key, "-out", &cert]].concat());
        [cert, key]
    }
}

fn openssl(words: &str, args: &[&str]) {
    tool("openssl", &words.split(' ').chain(args.iter().copied()).map(OsStr::new).collect::<Vec<_>>());
}

fn executable(path: &Path, script: &str) {
    // Written by another process: one that a test has just started would hold a file of this one open for writing.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#;
    tool("sh", &["-c".as_ref(), write.as_ref(), "sh".as_ref(), OsStr::new(script), path.as_os_str()]);
}

fn by_ssh(site: &Site, far: &Vmstore, host: &str, script: &str, sshd: Option<Running>) -> Far {
    let ssh = site.path("ssh");
    executable(&ssh, script);
    let env = vec![
        ("VMSTORE_SSH", ssh.into_os_string().into_string().unwrap()),
        ("VMSTORE_REMOTE_PROGRAM", far.program().to_str().unwrap().to_owned()),
    ];
    Far { env, _sshd: sshd, ..Far::at(format!("ssh://{host}{}", far.store().display())) }
}

/// Whether the test of OpenSSH can't be run; says so.
pub(crate) fn sshd_is_missing() -> bool {
    let missing = !Path::new(SSHD).exists();
    if missing {
        assert!(std::env::var_os("CI").is_none(), "{SSHD} is missing: tests/setup installs it where CI is set");
        eprintln!("{SSHD} is missing (package openssh-server): only a shell in its place was tested");
    }
    missing
}

/// A server of ssh on a free port of this machine, with a key for this test alone.
fn real_ssh(site: &Site, far: &Vmstore) -> Far {
    let [host_key, key] = ["host_key", "user_key"].map(|name| site.arg(name));
    for key in [&host_key, &key] {
        tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key].map(OsStr::new));
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    );
    fs::write(site.path("sshd_config"), config).unwrap();
    // Needed by sshd; Debian's service makes it.
    fs::create_dir_all("/run/sshd").unwrap();
    let sshd = Running::start(Command::new(SSHD).args(["-D", "-e", "-f", &site.arg("sshd_config")]));
    eventually("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let options =
        "-F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    let script = format!("exec ssh {options} -i {key} \"$@\"");
    by_ssh(site, far, &format!("127.0.0.1:{port}"), &script, Some(sshd))
}

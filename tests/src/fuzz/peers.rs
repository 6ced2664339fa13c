//! Descriptions of other stores and their users: addresses, remotes, tokens, quotas, certificates.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use replicate::remotes::Remotes;
use replicate::rpc::address::Address;
use replicate::rpc::auth::{Grant, ImagePattern, Quota, Role, Token, TokenFile};
use replicate::rpc::tls::{ClientCertificates, Fingerprint, ServerIdentity, ServerTls, TlsClient};
use tempfile::TempDir;

use super::Verdict;
use super::texts::survives;

/// Entries of a file that are written again, which takes a while for each.
const ENTRIES_MAX: usize = 4;

thread_local! {
    static DIR: TempDir = memory_dir();
}

/// Where a sync costs nothing.
fn memory_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    dir.expect("a directory for small files")
}

/// Runs with an empty directory that holds `bytes` as a file, and the path of that.
pub(super) fn with_file<T>(name: &str, bytes: &[u8], run: impl FnOnce(&Path, &Path) -> T) -> T {
    DIR.with(|dir| {
        let path = dir.path().join(name);
        let _ = fs::remove_file(&path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("a new file");
        file.write_all(bytes).expect("a small file");
        run(dir.path(), &path)
    })
}

/// Addresses, fingerprints, tokens, roles and patterns of images.
pub fn peer_names(bytes: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
    if let Ok(Address::Ssh(ssh)) = text.parse() {
        let words = [Some(ssh.host()), ssh.user()];
        assert!(words.into_iter().flatten().all(|word| !word.starts_with('-') && !word.contains(char::is_whitespace)));
        assert!(!ssh.path().contains(char::is_control));
    }
    if let Ok(pattern) = text.parse::<ImagePattern>() {
        let _ = pattern.matches(&"web01.disk-0_a".parse().expect("a name"));
    }
    survives::<Address>(text)
        .or(survives::<Fingerprint>(text))
        .or(survives::<ImagePattern>(text))
        .or(survives::<Role>(text))
        .or(Verdict::of(&text.parse::<Token>()))
}

/// A store's `remotes.toml`.
pub fn remotes(bytes: &[u8]) -> Verdict {
    with_file("remotes.toml", bytes, |dir, path| {
        let listed = Remotes::new(dir).list();
        if let Ok(mut remotes) = listed {
            let _ = fs::remove_file(path);
            while remotes.len() > ENTRIES_MAX {
                remotes.pop_first();
            }
            for (name, remote) in &remotes {
                Remotes::new(dir).add(name, remote.clone()).expect("it was listed");
            }
            assert_eq!(Remotes::new(dir).list().expect("it was just written"), remotes);
            return Verdict::Accepted;
        }
        Verdict::Refused
    })
}

/// A store's `tokens.toml`.
pub fn tokens(bytes: &[u8]) -> Verdict {
    with_file("tokens.toml", bytes, |dir, path| {
        let listed = TokenFile::new(dir).list();
        if let Ok(mut entries) = listed {
            let _ = fs::remove_file(path);
            entries.truncate(ENTRIES_MAX);
            for entry in &entries {
                TokenFile::new(dir).add_entry(entry.clone()).expect("it was listed");
            }
            assert_eq!(TokenFile::new(dir).list().expect("it was just written"), entries);
            return Verdict::Accepted;
        }
        Verdict::Refused
    })
}

/// A store's `quota.toml`, when a token of that quota stores more.
pub fn quotas(bytes: &[u8]) -> Verdict {
    with_file("quota.toml", bytes, |dir, _| {
        let grant = Grant::of_token("site-b".to_owned(), Role::Push, Vec::new(), Some(1 << 40));
        let quota = Quota::new(dir);
        let Ok(used) = quota.used_bytes(grant.name()) else { return Verdict::Refused };
        if quota.charge(&grant, 1 << 30).is_ok() {
            assert_eq!(Quota::new(dir).used_bytes(grant.name()).expect("it was just written"), used + (1 << 30));
        }
        Verdict::Accepted
    })
}

/// A PEM file as a server's certificate and key, as a client's, and as authorities for both.
pub fn pem(bytes: &[u8]) -> Verdict {
    with_file("identity.pem", bytes, |_, path| {
        let client = (path.to_path_buf(), PathBuf::from(path));
        let _ = TlsClient::new(None, Some(path), Some(&client));
        let identity = ServerIdentity::from_files(path, path);
        if let Ok(identity) = &identity {
            survives::<Fingerprint>(&identity.fingerprint().to_string());
            let _ = ServerTls::new(identity, &ClientCertificates::Required(path.to_path_buf()));
        }
        Verdict::of(&identity)
    })
}

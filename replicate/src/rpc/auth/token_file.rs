//! `tokens.toml`: the clients that a store admits, and their rights.
//!
//! The file is checked for every client and read again when it has changed, so a removed token is refused from then on.
//! While it can't be read, no client is admitted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunkstore::{Error, Result};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Grant, ImagePattern, Role, Token, TokenHash};
use crate::rpc::private_file::{self, Changing, KeepOut};

/// The file's name in a store.
const FILE: &str = "tokens.toml";

const COMMENT: &str = "\
# Who may use this store over the network. `vmstore token` changes it; so may you, and it takes effect at once.
# A token itself is not here, only its SHA-256.
";

/// How a client authenticates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// With the token that has this hash.
    Token(TokenHash),
    /// With a certificate for this name.
    Certificate(String),
}

/// A client that is admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct TokenEntry {
    /// Its name, here and in the snapshots that it pushes.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The images that it may use; all if empty.
    pub images: Vec<ImagePattern>,
    /// Its quota in stored bytes.
    pub quota_bytes: Option<u64>,
    /// When it was added.
    pub created: Timestamp,
    /// How it authenticates.
    pub holder: Holder,
}

/// An entry as it is in the file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    images: Vec<ImagePattern>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_bytes: Option<u64>,
    created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<TokenHash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_name: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    #[serde(default, rename = "token")]
    tokens: Vec<TokenEntry>,
}

/// The file `tokens.toml` of a store.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    known: Mutex<Option<Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    stamp: Stamp,
    tokens: Arc<Vec<TokenEntry>>,
}

/// Changes whenever the file's content may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl TokenFile {
    /// The file of the store in `dir`. If it does not exist, no client is admitted.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), known: Mutex::default() }
    }

    /// Adds a token and returns it; its text is not stored.
    ///
    /// # Errors
    /// As [`TokenFile::add_entry`].
    pub fn add(&self, grant: &Grant, created: Timestamp) -> Result<Token> {
        let token = Token::generate()?;
        self.add_entry(TokenEntry::new(grant, created, Holder::Token(token.hash())))?;
        Ok(token)
    }

    /// Adds a client with a certificate for this name.
    ///
    /// # Errors
    /// As [`TokenFile::add_entry`].
    pub fn add_client(&self, grant: &Grant, created: Timestamp, client_name: &str) -> Result<()> {
        self.add_entry(TokenEntry::new(grant, created, Holder::Certificate(client_name.to_owned())))
    }

    /// Adds an entry. Comments in the file are lost.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is one of that name, or for that certificate; [`Error::Invalid`] if the name is
    /// none, or the file is not right.
    pub fn add_entry(&self, entry: TokenEntry) -> Result<()> {
        self.change(|tokens| {
            tokens.push(entry);
            check(tokens)
        })
    }

    /// Removes the entry of this name.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|tokens| {
            let before = tokens.len();
            tokens.retain(|entry| entry.name != name);
            if tokens.len() == before { Err(Error::not_found(format!("token {name:?}"))) } else { Ok(()) }
        })
    }

    /// All entries, in the order of the file.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the line, if the file is not right.
    pub fn list(&self) -> Result<Vec<TokenEntry>> {
        self.tokens().map(Arc::unwrap_or_clone)
    }

    /// The grant of a token, if it is known.
    ///
    /// # Errors
    /// As [`TokenFile::list`].
    pub fn find(&self, token: &str) -> Result<Option<Grant>> {
        let Ok(token) = token.parse::<Token>() else { return Ok(None) };
        self.find_holder(&Holder::Token(token.hash()))
    }

    /// The grant of a verified certificate for this name, if it is known.
    ///
    /// # Errors
    /// As [`TokenFile::list`].
    pub(crate) fn find_client(&self, client_name: &str) -> Result<Option<Grant>> {
        self.find_holder(&Holder::Certificate(client_name.to_owned()))
    }

    fn find_holder(&self, holder: &Holder) -> Result<Option<Grant>> {
        Ok(self.tokens()?.iter().find(|entry| entry.holder == *holder).map(TokenEntry::grant))
    }

    fn tokens(&self) -> Result<Arc<Vec<TokenEntry>>> {
        let mut known = self.known.lock();
        // Before the content, so that a change in between is noticed the next time.
        let Some(stamp) = Stamp::of(&self.path)? else {
            *known = None;
            return Ok(Arc::default());
        };
        if let Some(known) = known.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(Arc::clone(&known.tokens));
        }
        *known = None;
        let tokens = Arc::new(self.read()?);
        *known = Some(Known { stamp, tokens: Arc::clone(&tokens) });
        Ok(tokens)
    }

    fn read(&self) -> Result<Vec<TokenEntry>> {
        let Some(bytes) = private_file::read_if_present(&self.path, KeepOut::Nobody)? else { return Ok(Vec::new()) };
        let entries: Entries = private_file::from_toml(&self.path, &bytes)?;
        check(&entries.tokens).map_err(|error| Error::invalid(format!("{}: {error}", self.path.display())))?;
        Ok(entries.tokens)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<TokenEntry>) -> Result<()>) -> Result<()> {
        let dir = self.path.parent().expect("it was made in a directory");
        let _changing = Changing::begin(dir)?;
        let mut tokens = self.read()?;
        change(&mut tokens)?;
        private_file::replace(&self.path, &private_file::to_toml(COMMENT, &Entries { tokens }))
    }
}

/// Two entries that can't be told apart would make it unclear what is granted.
fn check(tokens: &[TokenEntry]) -> Result<()> {
    for (at, entry) in tokens.iter().enumerate() {
        private_file::checked_name("token", &entry.name)?;
        let before = &tokens[..at];
        if before.iter().any(|other| other.name == entry.name) {
            return Err(Error::refused(format!("there is a token {:?} already", entry.name)));
        }
        if let Some(other) = before.iter().find(|other| other.holder == entry.holder) {
            return Err(Error::refused(format!("{:?} and {:?} have the same holder", other.name, entry.name)));
        }
    }
    Ok(())
}

impl TokenEntry {
    fn new(grant: &Grant, created: Timestamp, holder: Holder) -> Self {
        let (name, role) = (grant.name().to_owned(), grant.role);
        Self { name, role, images: grant.images.clone(), quota_bytes: grant.quota_bytes, created, holder }
    }

    /// Its grant.
    pub fn grant(&self) -> Grant {
        Grant::of_token(self.name.clone(), self.role, self.images.clone(), self.quota_bytes)
    }
}

impl TryFrom<Written> for TokenEntry {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { name, role, images, quota_bytes, created, sha256, client_name } = written;
        let holder = match (sha256, client_name) {
            (Some(hash), None) => Holder::Token(hash),
            (None, Some(client_name)) if !client_name.is_empty() => Holder::Certificate(client_name),
            _ => return Err(format!("token {name:?} needs either a sha256 or a client_name")),
        };
        Ok(Self { name, role, images, quota_bytes, created, holder })
    }
}

impl From<TokenEntry> for Written {
    fn from(entry: TokenEntry) -> Self {
        let TokenEntry { name, role, images, quota_bytes, created, holder } = entry;
        let (sha256, client_name) = match holder {
            Holder::Token(hash) => (Some(hash), None),
            Holder::Certificate(client_name) => (None, Some(client_name)),
        };
        Self { name, role, images, quota_bytes, created, sha256, client_name }
    }
}

impl Stamp {
    fn of(path: &Path) -> Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(file) => Ok(Some(Self {
                inode: file.ino(),
                bytes: file.len(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("looking at", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn grant(name: &str) -> Grant {
        Grant::of_token(name.into(), Role::Push, vec!["web*".parse().unwrap()], Some(1000))
    }

    #[test]
    fn a_token_admits_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (server, command) = (TokenFile::new(dir.path()), TokenFile::new(dir.path()));
        assert_eq!(server.find(Token::generate().unwrap().text()).unwrap(), None);
        let token = command.add(&grant("a"), NOW).unwrap();
        let other = command.add(&grant("b"), NOW).unwrap();
        assert_eq!(server.find(token.text()).unwrap(), Some(grant("a")));
        assert_eq!(server.find(other.text()).unwrap(), Some(grant("b")));
        command.remove("a").unwrap();
        assert_eq!(server.find(token.text()).unwrap(), None);
        assert_eq!(server.find(other.text()).unwrap(), Some(grant("b")));
        assert!(matches!(command.remove("a"), Err(Error::NotFound { .. })));
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(server.find(other.text()).unwrap(), None);
    }

    #[test]
    fn the_file_holds_no_secret_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path());
        let token = file.add(&grant("a"), NOW).unwrap();
        let path = dir.path().join(FILE);
        assert!(!fs::read_to_string(&path).unwrap().contains(&token.text()[4..]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{:?}", file.list().unwrap()).contains(&String::from(token.hash())));
    }

    #[test]
    fn a_certificate_is_no_token_and_a_token_no_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path());
        let token = file.add(&grant("a"), NOW).unwrap();
        file.add_client(&grant("b"), NOW, "backup.example").unwrap();
        assert_eq!(file.find_client("backup.example").unwrap(), Some(grant("b")));
        for stranger in ["backup.example.org", "Backup.example", "", token.text(), "a"] {
            assert_eq!(file.find_client(stranger).unwrap(), None, "{stranger}");
        }
        for stranger in ["backup.example", "", "a", &String::from(token.hash())] {
            assert_eq!(file.find(stranger).unwrap(), None, "{stranger}");
        }
    }

    #[test]
    fn ambiguous_entries_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path());
        file.add_client(&grant("a"), NOW, "x").unwrap();
        assert!(matches!(file.add(&grant("a"), NOW), Err(Error::Refused { .. })));
        assert!(matches!(file.add_client(&grant("b"), NOW, "x"), Err(Error::Refused { .. })));
        assert!(matches!(file.add(&grant("a/b"), NOW), Err(Error::Invalid { .. })));
        assert_eq!(file.list().unwrap().len(), 1);
    }

    #[test]
    fn an_error_in_the_file_admits_no_client_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path());
        let token = file.add(&grant("a"), NOW).unwrap();
        assert!(file.find(token.text()).unwrap().is_some());
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let hash = String::from(token.hash());
        let slips = [
            ("role = ", "roel = ", "roel"),
            ("\"push\"", "\"root\"", "root"),
            ("sha256 = ", "client_name = \"x\"\nsha256 = ", "either"),
            (&hash, "1234", "64 hex digits"),
            ("web*", "web/", "pattern"),
            ("[[token]]", "[[tokens]]", "tokens"),
            ("name = \"a\"", "name = ", "line"),
        ];
        for (right, wrong, named) in slips {
            fs::write(&path, text.replace(right, wrong)).unwrap();
            let error = file.find(token.text()).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(FILE) && !error.contains(&hash), "{error}");
        }
        fs::write(&path, &text).unwrap();
        assert!(file.find(token.text()).unwrap().is_some());
    }
}

//! Small files of a store that only its user may read: tokens, keys, remotes. They are read and replaced as a whole.
//!
//! Unlike the catalog's files they never exist with permissions for others, not even while they are being written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chunkstore::catalog::ImageName;
use chunkstore::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest file: some ten thousand tokens.
const BYTES_MAX: u64 = 4 << 20;

/// The users that a file's permissions must exclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepOut {
    /// Everyone but its user.
    GroupAndOthers,
    /// Everyone but its user and its group: keys are often shared with a group.
    Others,
    /// No user: it holds no secret.
    Nobody,
}

impl KeepOut {
    fn bits(self) -> u32 {
        match self {
            Self::GroupAndOthers => 0o077,
            Self::Others => 0o007,
            Self::Nobody => 0,
        }
    }
}

/// Reads a file that must be there.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Refused`] if excluded users may read it; [`Error::Invalid`] if it is too long.
pub(crate) fn read(path: &Path, keep_out: KeepOut) -> Result<Vec<u8>> {
    read_if_present(path, keep_out)?.ok_or_else(|| Error::not_found(format!("file {}", path.display())))
}

/// Reads a file, or nothing if there is none.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_if_present(path: &Path, keep_out: KeepOut) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("opening", path, error)),
    };
    let failed = |error| Error::io("reading", path, error);
    if file.metadata().map_err(failed)?.mode() & keep_out.bits() != 0 {
        let path = path.display();
        return Err(Error::refused(format!("others may use the secret in {path}; `chmod 600 {path}` keeps them out")));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(Error::invalid(format!("{} is longer than {BYTES_MAX} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Creates or replaces a file, atomically: it is written under another name with mode 0600 and synced, which makes the
/// bytes permanent, then renamed, then the directory is synced, which makes the name permanent.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(path);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &aside, error)),
        _ => {}
    }
    write_new(&aside, bytes).map_err(|error| Error::io("writing", &aside, error))?;
    fs::rename(&aside, path).map_err(|error| Error::io("renaming", &aside, error))?;
    let dir = path.parent().expect("a file has a directory");
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io("syncing the directory", dir, error))
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    aside.into()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Keeps other programs from changing the directory's files between a read and a [`replace`], until it is dropped.
#[must_use]
pub(crate) struct Changing(#[expect(dead_code, reason = "held for its lock")] File);

impl Changing {
    /// Waits until no other program changes files in this directory.
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        let file = File::open(dir).map_err(|error| Error::io("opening", dir, error))?;
        file.lock().map_err(|error| Error::io("locking", dir, error))?;
        Ok(Self(file))
    }
}

/// Reads a TOML file's content; messages name the file, the line and the key, but show no values.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn from_toml<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let text = str::from_utf8(bytes).map_err(|_| Error::invalid(format!("{} is not text", path.display())))?;
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Error::invalid(format!("{}: line {line}: {}", path.display(), error.message()))
    })
}

/// A TOML file's content, with a comment before it.
pub(crate) fn to_toml<T: Serialize>(comment: &str, content: &T) -> Vec<u8> {
    let text = toml::to_string(content).expect("tables with named fields have a form in TOML");
    format!("{comment}\n{text}").into_bytes()
}

/// The name of a token or remote, by the rules for image names.
///
/// # Errors
/// [`Error::Invalid`], which names the rules.
pub(crate) fn checked_name(what: &str, name: &str) -> Result<()> {
    let rule = "letters, digits, '.', '_' or '-' are allowed, the first a letter or digit, at most 128";
    let error = |_| Error::invalid(format!("not a {what}'s name: {name:?}: {rule}"));
    name.parse::<ImageName>().map(drop).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_replaced_file_is_private_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "old").unwrap();
        fs::write(dir.path().join("f.tmp"), "left").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(read(&path, KeepOut::GroupAndOthers).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn excluded_users_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "secret").unwrap();
        let cases = [
            (0o600, [true, true, true]),
            (0o400, [true, true, true]),
            (0o640, [false, true, true]),
            (0o620, [false, true, true]),
            (0o604, [false, false, true]),
            (0o666, [false, false, true]),
        ];
        for (mode, allowed) in cases {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            for (keep_out, allowed) in [KeepOut::GroupAndOthers, KeepOut::Others, KeepOut::Nobody].iter().zip(allowed) {
                let found = read(&path, *keep_out);
                assert_eq!(found.is_ok(), allowed, "{mode:o} {keep_out:?}");
                assert!(allowed || found.unwrap_err().to_string().contains("chmod 600"));
            }
        }
    }

    #[test]
    fn missing_and_long_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read_if_present(&path, KeepOut::Nobody).unwrap(), None);
        assert!(matches!(read(&path, KeepOut::Nobody), Err(Error::NotFound { .. })));
        File::create(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert!(matches!(read(&path, KeepOut::Nobody), Err(Error::Invalid { .. })));
    }
}

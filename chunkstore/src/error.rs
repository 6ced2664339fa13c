//! The library's errors: few kinds, one for each thing a caller would do differently.
//!
//! Every error names what it is about. Exit codes and hints are the command line's business.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A named thing does not exist.
    #[error("{what} not found")]
    NotFound {
        /// The thing that was asked for, such as `snapshot web01@latest`.
        what: String,
    },
    /// Stored bytes are not what was written.
    #[error("damaged: {what}: {detail}")]
    Damaged {
        /// The damaged thing, such as `pack 17 at offset 4096` or `catalog entry web01@20261120T020000Z`.
        what: String,
        /// How it was noticed.
        detail: String,
    },
    /// The derived index can't be used; it is rebuilt from the packs at the next open.
    #[error("the index is damaged ({detail}); it is rebuilt from the packs when the store is next opened")]
    IndexDamaged {
        /// What `RocksDB` said.
        detail: String,
    },
    /// Another process holds something.
    #[error("{what} is in use by {holder}")]
    Busy {
        /// What: the store, a clone, a mount.
        what: String,
        /// Who holds it.
        holder: String,
    },
    /// A rule forbids it; the store is sound.
    #[error("refused: {what}")]
    Refused {
        /// What was refused and why, with the way around it where there is one.
        what: String,
    },
    /// Input that can't be right: a name, an option, a source's structure.
    #[error("{what}")]
    Invalid {
        /// What is invalid, and what would be valid.
        what: String,
    },
    /// The file system of the store, or of a destination, is full.
    #[error("no {} left on the file system of {}", if *is_quota { "quota" } else { "space" }, path.display())]
    OutOfSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Whether it is a quota that is used up, and not the file system.
        is_quota: bool,
    },
    /// The peer can't be reached, or the connection failed: a retry may succeed.
    #[error("{what}")]
    Unreachable {
        /// What happened.
        what: String,
    },
    /// The peer does not admit the caller, or does not permit the request.
    #[error("denied: {what}")]
    Denied {
        /// What was denied and why.
        what: String,
    },
    /// The caller asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// Any other failure of the operating system.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: `reading`, `creating`.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an I/O error with the file and the action; a full disk or quota becomes [`Error::OutOfSpace`].
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull => Self::OutOfSpace { path, is_quota: false },
            io::ErrorKind::QuotaExceeded => Self::OutOfSpace { path, is_quota: true },
            _ => Self::Io { action, path, source },
        }
    }

    /// A [`Error::Damaged`] from its two parts.
    pub fn damaged(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), detail: detail.into() }
    }

    /// Whether stored bytes are damaged, or the device can't read them.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.raw_os_error() == Some(libc::EIO),
            _ => false,
        }
    }

    /// Reports damage of a part as damage of the whole: names the thing that the caller asked for first.
    pub(crate) fn within(self, whole: &str) -> Self {
        match self {
            Self::Damaged { what, detail } if what != whole => Self::damaged(whole, format!("{what}: {detail}")),
            other => other,
        }
    }

    /// An [`Error::Busy`] from what is in use and who uses it.
    pub fn busy(what: impl Into<String>, holder: impl Into<String>) -> Self {
        Self::Busy { what: what.into(), holder: holder.into() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// An [`Error::Refused`].
    pub fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    /// An [`Error::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// An [`Error::Unreachable`].
    pub fn unreachable(what: impl Into<String>) -> Self {
        Self::Unreachable { what: what.into() }
    }

    /// An [`Error::Denied`].
    pub fn denied(what: impl Into<String>) -> Self {
        Self::Denied { what: what.into() }
    }
}

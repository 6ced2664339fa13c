//! Errors on the wire: the library's kinds, so that a caller can't tell a far store's error from a near one's.

use std::path::PathBuf;

use chunkstore::Error;
use serde::{Deserialize, Serialize};

/// Longest text of an error; both sides truncate longer ones.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// An [`Error`] on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is the library's error of the same name")]
pub enum WireError {
    NotFound {
        what: String,
    },
    Damaged {
        what: String,
        detail: String,
    },
    IndexDamaged {
        detail: String,
    },
    Busy {
        holder: String,
    },
    Refused {
        what: String,
    },
    Invalid {
        what: String,
    },
    OutOfSpace {
        path: String,
    },
    Interrupted,
    Denied {
        what: String,
    },
    Unreachable {
        what: String,
    },
    /// Anything else, in words.
    Other {
        what: String,
    },
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        match error {
            Error::NotFound { what } => Self::NotFound { what: cut(what) },
            Error::Damaged { what, detail } => Self::Damaged { what: cut(what), detail: cut(detail) },
            Error::IndexDamaged { detail } => Self::IndexDamaged { detail: cut(detail) },
            Error::Busy { holder, .. } => Self::Busy { holder: cut(holder) },
            Error::Refused { what } => Self::Refused { what: cut(what) },
            Error::Invalid { what } => Self::Invalid { what: cut(what) },
            Error::OutOfSpace { path, .. } => Self::OutOfSpace { path: cut(&path.to_string_lossy()) },
            Error::Interrupted => Self::Interrupted,
            Error::Denied { what } => Self::Denied { what: cut(what) },
            Error::Unreachable { what } => Self::Unreachable { what: cut(what) },
            other => Self::Other { what: cut(&other.to_string()) },
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::NotFound { what } => Self::NotFound { what: shown(&what) },
            WireError::Damaged { what, detail } => Self::Damaged { what: shown(&what), detail: shown(&detail) },
            WireError::IndexDamaged { detail } => Self::IndexDamaged { detail: shown(&detail) },
            WireError::Busy { holder } => Self::busy("the store", shown(&holder)),
            WireError::Refused { what } => Self::Refused { what: shown(&what) },
            WireError::Invalid { what } => Self::Invalid { what: shown(&what) },
            WireError::OutOfSpace { path } => Self::OutOfSpace { path: PathBuf::from(shown(&path)), is_quota: false },
            WireError::Interrupted => Self::Interrupted,
            WireError::Denied { what } => Self::Denied { what: shown(&what) },
            WireError::Unreachable { what } => Self::Unreachable { what: shown(&what) },
            WireError::Other { what } => {
                let source = std::io::Error::other(shown(&what));
                Self::Io { action: "at the other side of the connection, to", path: "the store".into(), source }
            }
        }
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Makes another process's text safe for a terminal, which it must neither fill nor control.
pub fn shown(text: &str) -> String {
    cut(text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_and_texts_are_bounded_and_harmless() {
        let there_and_back = |error: &Error| Error::from(WireError::from(error)).to_string();
        let errors = [
            Error::not_found("x"),
            Error::damaged("x", "y"),
            Error::IndexDamaged { detail: "x".into() },
            Error::busy("the store", "x"),
            Error::refused("x"),
            Error::invalid("x"),
            Error::OutOfSpace { path: "/x".into(), is_quota: false },
            Error::Interrupted,
            Error::Denied { what: "x".into() },
            Error::Unreachable { what: "x".into() },
        ];
        for error in errors {
            assert_eq!(there_and_back(&error), error.to_string());
        }
        assert!(there_and_back(&Error::refused("é".repeat(1 << 20))).len() < 2 * TEXT_BYTES_MAX);
        assert!(!there_and_back(&Error::refused("\u{1b}[2J")).contains('\u{1b}'));
        let long = WireError::Refused { what: "x".repeat(1 << 20) };
        assert!(Error::from(long).to_string().len() < 2 * TEXT_BYTES_MAX, "also where the other side does not cut it");
    }
}

//! The one place where an error becomes a message, a hint and an exit code.

use std::io::{self, Write};
use std::path::Path;

use chunkstore::Error;

use crate::options::LogFormat;

/// The exit codes, as the help documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    DamageFound = 3,
    Busy = 4,
    NotFound = 5,
    Refused = 6,
    Unreachable = 7,
    Denied = 8,
    Interrupted = 130,
}

/// `Result` of a command or a part of one.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error on its way to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    hint: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, hint: None }
    }
}

impl Failure {
    /// Something is wrong with the command line.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Error::invalid(what).into()
    }

    /// A rule of the command line forbids it.
    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Error::refused(what).into()
    }

    /// A failure of the operating system.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, error: io::Error) -> Self {
        Error::io(action, path, error).into()
    }

    /// Adds a hint more specific than that of the error's kind.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The library's error.
    pub(crate) fn error(&self) -> &Error {
        &self.error
    }

    /// The hint for the user: the specific one, or that of the error's kind.
    pub(crate) fn told_hint(&self) -> Option<String> {
        self.hint.clone().or_else(|| hint_of(&self.error))
    }

    /// Prints the failure of `program`, and returns its exit code.
    pub(crate) fn report(&self, program: &str, format: LogFormat) -> Exit {
        let exit = exit_of(&self.error);
        let hint = self.told_hint();
        let words = self.error.to_string();
        match format {
            LogFormat::Text => print_text(program, &words, hint.as_deref()),
            LogFormat::Json => tracing::error!(hint, exit_code = exit as u8, "{words}"),
        }
        exit
    }
}

/// The exit code of an error.
pub(crate) fn exit_of(error: &Error) -> Exit {
    match error {
        Error::NotFound { .. } => Exit::NotFound,
        Error::Damaged { .. } | Error::IndexDamaged { .. } => Exit::DamageFound,
        Error::Busy { .. } => Exit::Busy,
        Error::Refused { .. } => Exit::Refused,
        Error::Invalid { .. } => Exit::Usage,
        Error::Unreachable { .. } => Exit::Unreachable,
        Error::Denied { .. } => Exit::Denied,
        Error::Interrupted => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

fn hint_of(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Damaged { .. } => {
            "`vmstore verify` finds all damage and the snapshots that it affects, `vmstore repair` repairs it"
        }
        Error::IndexDamaged { .. } => "`vmstore reindex` rebuilds the index",
        Error::Busy { .. } => "--wait waits for it, --wait=SECONDS at most that long",
        Error::OutOfSpace { .. } => "in a store, `vmstore remove` or `prune` and then `vmstore gc` free space",
        Error::Io { action: "running", path, .. } if path == Path::new("qemu-img") => {
            "writing qcow2 needs `qemu-img` (in Debian: apt install qemu-utils); --format raw does without"
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run it as a user with this permission"
        }
        Error::Io { action: "creating", source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "its directory does not exist"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn print_text(program: &str, words: &str, hint: Option<&str>) {
    let hint = hint.map_or_else(String::new, |hint| format!("hint: {hint}\n"));
    let text = format!("{program}: {words}\n{hint}");
    // A closed standard error leaves no way to report it.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let cases = [
            (Error::not_found("x"), 5),
            (Error::damaged("x", "y"), 3),
            (Error::IndexDamaged { detail: "x".into() }, 3),
            (Error::busy("x", "y"), 4),
            (Error::refused("x"), 6),
            (Error::invalid("x"), 2),
            (Error::unreachable("x"), 7),
            (Error::denied("x"), 8),
            (Error::OutOfSpace { path: "x".into(), is_quota: false }, 1),
            (Error::Interrupted, 130),
            (Error::io("reading", "x", denied), 1),
        ];
        for (error, code) in cases {
            assert_eq!(exit_of(&error) as u8, code, "{error}");
        }
    }
}

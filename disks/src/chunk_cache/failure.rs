//! Copies of one failure, for all readers that waited for the same load.

use std::io;

use chunkstore::Error;

/// A copy of an error, of the same kind.
pub(crate) fn repeated(error: &Error) -> Error {
    match error {
        Error::NotFound { what } => Error::NotFound { what: what.clone() },
        Error::Damaged { what, detail } => Error::Damaged { what: what.clone(), detail: detail.clone() },
        Error::IndexDamaged { detail } => Error::IndexDamaged { detail: detail.clone() },
        Error::Busy { what, holder } => Error::busy(what, holder),
        Error::Refused { what } => Error::Refused { what: what.clone() },
        Error::OutOfSpace { path, is_quota } => Error::OutOfSpace { path: path.clone(), is_quota: *is_quota },
        Error::Unreachable { what } => Error::Unreachable { what: what.clone() },
        Error::Denied { what } => Error::Denied { what: what.clone() },
        Error::Interrupted => Error::Interrupted,
        Error::Io { action, path, source } => Error::Io { action, path: path.clone(), source: io_again(source) },
        other => Error::Invalid { what: other.to_string() },
    }
}

fn io_again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// Whether another attempt may succeed: the source is away or not ready.
pub(crate) fn is_transient(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. } | Error::Busy { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_told_again_says_the_same() {
        let io = Error::io("reading", "/pack", io::Error::from_raw_os_error(libc::EIO));
        let errors = [
            Error::not_found("it"),
            Error::damaged("it", "so"),
            Error::IndexDamaged { detail: "so".into() },
            Error::busy("it", "who"),
            Error::refused("it"),
            Error::OutOfSpace { path: "/pack".into(), is_quota: true },
            Error::unreachable("it"),
            Error::denied("it"),
            Error::invalid("it"),
            Error::Interrupted,
            io,
        ];
        for error in errors {
            let told = repeated(&error);
            assert_eq!(told.to_string(), error.to_string());
            assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&error));
        }
    }
}

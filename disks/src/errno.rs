//! The one mapping of errors to errno.

use std::io;

use chunkstore::Error;
use rustix::io::Errno;

/// The kind of operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Finding or opening a file by its name.
    Name,
    /// Reading or writing one that is open.
    Data,
}

/// The errno of a system call that failed with this error.
pub fn errno(of: Of, error: &Error) -> Errno {
    match error {
        // In an open file, a missing part is an I/O error.
        Error::NotFound { .. } if of == Of::Name => Errno::NOENT,
        Error::Busy { .. } => Errno::BUSY,
        Error::Refused { .. } => Errno::PERM,
        Error::Invalid { .. } => Errno::INVAL,
        Error::OutOfSpace { is_quota: true, .. } => Errno::DQUOT,
        Error::OutOfSpace { .. } => Errno::NOSPC,
        Error::Denied { .. } => Errno::ACCESS,
        Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => Errno::FBIG,
        Error::Io { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => Errno::MFILE,
        Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENFILE) => Errno::NFILE,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_errno() {
        let io = |errno| Error::io("writing", "x", io::Error::from_raw_os_error(errno));
        let cases = [
            (Error::not_found("x"), libc::ENOENT, libc::EIO),
            (Error::damaged("x", "y"), libc::EIO, libc::EIO),
            (Error::IndexDamaged { detail: "x".into() }, libc::EIO, libc::EIO),
            (Error::busy("x", "y"), libc::EBUSY, libc::EBUSY),
            (Error::refused("x"), libc::EPERM, libc::EPERM),
            (Error::invalid("x"), libc::EINVAL, libc::EINVAL),
            (Error::unreachable("x"), libc::EIO, libc::EIO),
            (Error::denied("x"), libc::EACCES, libc::EACCES),
            (Error::Interrupted, libc::EIO, libc::EIO),
            (io(libc::ENOSPC), libc::ENOSPC, libc::ENOSPC),
            (io(libc::EDQUOT), libc::EDQUOT, libc::EDQUOT),
            (io(libc::EFBIG), libc::EFBIG, libc::EFBIG),
            (io(libc::EMFILE), libc::EMFILE, libc::EMFILE),
            (io(libc::EBADF), libc::EIO, libc::EIO),
        ];
        for (error, name, data) in cases {
            assert_eq!(errno(Of::Name, &error).raw_os_error(), name, "{error}");
            assert_eq!(errno(Of::Data, &error).raw_os_error(), data, "{error}");
        }
    }
}

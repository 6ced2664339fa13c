//! Standard input and output as one stream: how a store is served through ssh.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use chunkstore::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, join, stdin, stdout};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::Stream;

/// The type of a file descriptor; ssh passes pipes or sockets.
enum Kind {
    Pipe(File),
    Socket(OwnedFd),
    /// A file or terminal, for which tokio uses a thread.
    Other,
}

impl Kind {
    /// Examines a duplicate; closing it leaves the original open.
    fn of(fd: impl AsFd) -> io::Result<Self> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        Ok(if kind.is_fifo() {
            Self::Pipe(file)
        } else if kind.is_socket() {
            Self::Socket(file.into())
        } else {
            Self::Other
        })
    }
}

/// This process's standard input and output.
///
/// # Errors
/// [`Error::Io`] if they are closed.
pub(super) fn stream() -> Result<Stream> {
    let input = input(io::stdin()).map_err(|error| Error::io("using", "standard input", error))?;
    let output = output(io::stdout()).map_err(|error| Error::io("using", "standard output", error))?;
    Ok(Box::new(join(input, output)))
}

fn input(fd: impl AsFd) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    Ok(match Kind::of(fd)? {
        Kind::Pipe(pipe) => Box::new(pipe::Receiver::from_file(pipe)?),
        Kind::Socket(socket) => Box::new(from_socket(socket)?),
        Kind::Other => Box::new(stdin()),
    })
}

fn output(fd: impl AsFd) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    Ok(match Kind::of(fd)? {
        Kind::Pipe(pipe) => Box::new(pipe::Sender::from_file(pipe)?),
        Kind::Socket(socket) => Box::new(from_socket(socket)?),
        Kind::Other => Box::new(stdout()),
    })
}

fn from_socket(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn pipes_and_sockets_carry_bytes() {
        let (read_pipe, write_pipe) = io::pipe().unwrap();
        let (near, far) = StdUnixStream::pair().unwrap();
        let ends = [
            (input(&read_pipe).unwrap(), output(&write_pipe).unwrap()),
            (input(&near).unwrap(), output(&far).unwrap()),
        ];
        drop((read_pipe, write_pipe, near, far));
        for (mut reader, mut writer) in ends {
            writer.write_all(b"there").await.unwrap();
            writer.shutdown().await.unwrap();
            drop(writer);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, b"there");
        }
    }
}

//! A store behind ssh: the program's standard input and output are the stream.
//!
//! ssh writes messages to standard error, and may ask for input at the terminal. When the stream is dropped, ssh is
//! killed and reaped.

use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll, ready};

use chunkstore::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::rpc::address::SshAddress;

/// ssh's exit code for its own failures.
const SSH_FAILED: i32 = 255;
/// A shell's exit code for a missing program.
const PROGRAM_NOT_FOUND: i32 = 127;

/// Starts ssh.
///
/// # Errors
/// [`Error::NotFound`] if there is no such program.
pub(super) fn start(address: &SshAddress, ssh_command: &str, remote_program: &str) -> Result<SshStream> {
    let mut child = command(address, ssh_command, remote_program)?.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("program {ssh_command}")),
        _ => Error::io("starting", ssh_command, error),
    })?;
    let stdin = child.stdin.take().expect("it is piped");
    let stdout = child.stdout.take().expect("it is piped");
    let (dropped, is_dropped) = oneshot::channel();
    let ending = Ending::Running(tokio::spawn(wait_for(child, is_dropped)));
    Ok(SshStream { stdin: Some(stdin), stdout, host: address.host().to_owned(), ending, _dropped: dropped })
}

fn command(address: &SshAddress, ssh_command: &str, remote_program: &str) -> Result<Command> {
    let mut words = ssh_command.split_whitespace();
    let program = words.next().ok_or_else(|| Error::invalid("VMSTORE_SSH names no program"))?;
    let mut command = Command::new(program);
    // No terminal at the other side: it would change the bytes.
    command.args(words).arg("-T");
    if let Some(port) = address.port() {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = address.user() {
        command.arg("-l").arg(user);
    }
    let there = format!("{remote_program} --store={} serve --stdio", quoted(address.path()));
    command.arg("--").arg(address.host()).arg(there);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    Ok(command)
}

/// One word for a POSIX shell: in quotes nothing is special but the quote itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Waits for ssh to end, or kills it when its stream is dropped.
async fn wait_for(mut child: Child, is_dropped: oneshot::Receiver<()>) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        _ = is_dropped => {}
    }
    child.kill().await?;
    child.wait().await
}

/// The stream through ssh.
#[derive(Debug)]
pub(super) struct SshStream {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    host: String,
    ending: Ending,
    _dropped: oneshot::Sender<()>,
}

/// The state of ssh's exit.
#[derive(Debug)]
enum Ending {
    Running(JoinHandle<io::Result<ExitStatus>>),
    /// With the reason, if it failed.
    Ended(Option<String>),
}

impl SshStream {
    /// Waits for ssh, which has closed a pipe, to exit, and returns the reason.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Ending::Running(ending) = &mut self.ending {
            let ended = ready!(Pin::new(ending).poll(cx)).map_err(io::Error::other)?;
            self.ending = Ending::Ended(explain(&self.host, ended?));
        }
        match &self.ending {
            Ending::Ended(Some(reason)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, &**reason)))
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_stdin<T>(
        &mut self,
        cx: &mut Context<'_>,
        work: impl FnOnce(Pin<&mut ChildStdin>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(stdin) = &mut self.stdin else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        match ready!(work(Pin::new(stdin), cx)) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                ready!(self.poll_ended(cx))?;
                Poll::Ready(Err(error))
            }
            done => Poll::Ready(done),
        }
    }
}

fn explain(host: &str, status: ExitStatus) -> Option<String> {
    match status.code() {
        Some(0) => None,
        Some(SSH_FAILED) => Some(format!("ssh to {host} failed (exit code {SSH_FAILED})")),
        Some(PROGRAM_NOT_FOUND) => Some(format!("there is no vmstore at {host} (exit code {PROGRAM_NOT_FOUND})")),
        Some(code) => Some(format!("vmstore at {host} ended with exit code {code}")),
        None => Some(format!("ssh to {host} was ended by a signal ({status})")),
    }
}

impl AsyncRead for SshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stdout).poll_read(cx, buf))?;
        let is_end = buf.filled().len() == before && buf.remaining() > 0;
        if is_end { self.poll_ended(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_stdin(cx, |stdin, cx| stdin.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stdin.is_none() {
            return Poll::Ready(Ok(()));
        }
        self.poll_stdin(cx, AsyncWrite::poll_flush)
    }

    /// Closes the other side's input; its remaining output can still be read.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(address: &str, ssh: &str, program: &str) -> Vec<String> {
        let Ok(crate::rpc::address::Address::Ssh(address)) = address.parse() else { panic!("{address}") };
        let command = command(&address, ssh, program).unwrap();
        let command = command.as_std();
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_arguments_of_ssh() {
        let there = "vmstore --store='/srv/x' serve --stdio";
        assert_eq!(arguments("ssh://host/srv/x", "ssh", "vmstore"), ["ssh", "-T", "--", "host", there]);
        assert_eq!(
            arguments("ssh://me@[::1]:22/~/a b'c", "ssh -i key", "sudo vmstore"),
            [
                "ssh",
                "-i",
                "key",
                "-T",
                "-p",
                "22",
                "-l",
                "me",
                "--",
                "::1",
                r"sudo vmstore --store='a b'\''c' serve --stdio"
            ]
        );
    }
}

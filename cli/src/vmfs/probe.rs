//! The state of a mount, without waiting for one that hangs: a child asks, and is abandoned if it gets no answer,
//! because a thread that waits for a mount would keep its process from ending.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fusefs::status::Status;

/// A working mount answers within this time.
const PATIENCE: Duration = Duration::from_secs(3);
const FILE: &str = ".vmfs/status.json";
/// A status is shorter. Another user may serve the mount, and write without end.
const STATUS_BYTES_MAX: u64 = 1 << 20;

/// The state of a mount.
#[derive(Debug)]
pub(crate) enum Probed {
    /// It answers.
    Well(Box<Status>),
    /// The process that served it has ended without unmounting.
    Dead,
    /// It does not answer.
    Hangs,
    /// This user may not look into it.
    Closed,
    /// Its answer can't be read, perhaps because it is another version's.
    Strange(String),
}

/// Asks the mount at `mountpoint`.
pub(crate) fn probe(mountpoint: &Path) -> Probed {
    let mut command = Command::new("/bin/cat");
    command.arg("--").arg(mountpoint.join(FILE)).env("LC_ALL", "C");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    match child {
        Ok(child) => within_patience(child),
        Err(error) => Probed::Strange(error.to_string()),
    }
}

fn within_patience(mut child: Child) -> Probed {
    let (out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut text, mut said) = (String::new(), String::new());
        let read = out.take(STATUS_BYTES_MAX).read_to_string(&mut text);
        // A child with more output ends now, because its pipe is closed.
        let read = read.and_then(|_| err.read_to_string(&mut said));
        // The receiver may have given up.
        let _ = tell.send(read.map(|_| (text, said)));
    });
    match told.recv_timeout(PATIENCE) {
        Ok(Ok((text, said))) => {
            let _ = child.wait();
            understand(&text, &said)
        }
        Ok(Err(error)) => Probed::Strange(error.to_string()),
        Err(_) => {
            // It may be blocked for ever, so it is not waited for.
            let _ = child.kill();
            Probed::Hangs
        }
    }
}

/// The mount's state by the child's output and error text.
pub(crate) fn understand(text: &str, said: &str) -> Probed {
    match serde_json::from_str(text) {
        Ok(status) => Probed::Well(Box::new(status)),
        Err(_) if said.contains("not connected") || said.contains("Software caused connection abort") => Probed::Dead,
        Err(_) if said.contains("Permission denied") => Probed::Closed,
        Err(error) => Probed::Strange(if said.is_empty() { error.to_string() } else { said.trim().to_owned() }),
    }
}

//! A process in the background: this program again, by exec, in a session of its own.
//!
//! Its standard error is a pipe to the command until it is ready; a failure to start is the last line there. Then it
//! makes its log its standard error, and the command ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use chunkstore::Error;
use replicate::owner;
use replicate::rpc::wire::WireError;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, Result, exit_of};

/// The option that makes a process the one in the background.
pub(crate) const FLAG: &str = "in-background";
/// Its last line if it is ready.
const READY: &str = "ready";

/// Its last line if it failed to start.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    error: WireError,
    hint: Option<String>,
}

/// Runs this process's command in the background, and returns when that is ready.
pub(crate) fn start() -> Result<()> {
    let failed = |error| Failure::io("starting", "vmfs", error);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg(format!("--{FLAG}")).args(std::env::args_os().skip(1));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: it makes only system calls that are safe there.
    unsafe {
        command.pre_exec(owner::detach);
    }
    let mut child = command.spawn().map_err(failed)?;
    let mut said = String::new();
    let mut pipe = child.stderr.take().expect("it was piped");
    pipe.read_to_string(&mut said).map_err(|error| Failure::io("reading", "the pipe of vmfs", error))?;
    let last = said.lines().last().unwrap_or_default();
    if last == READY {
        return Ok(());
    }
    if let Ok(told) = serde_json::from_str::<Told>(last) {
        let failure = Failure::from(Error::from(told.error));
        return Err(match told.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        });
    }
    let status = child.wait().map_err(failed)?;
    Err(Error::unreachable(format!("vmfs ended before it had mounted ({status}): {}", said.trim())).into())
}

/// Reports that the process in the background is ready; called before its log becomes its standard error.
pub(crate) fn tell_ready() {
    eprintln!("{READY}");
}

/// Reports that the process in the background failed to start.
pub(crate) fn tell_starter(failure: &Failure) -> Exit {
    let told = Told { error: failure.error().into(), hint: failure.told_hint() };
    eprintln!("{}", serde_json::to_string(&told).expect("its keys are strings"));
    exit_of(failure.error())
}

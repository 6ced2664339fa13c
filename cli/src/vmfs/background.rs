//! Leaving a process in the background: this program again, by exec, in a session of its own.
//!
//! Until it works, its standard error is a pipe to the command; what kept it from working comes through there, as the
//! last line. Then it makes its log its standard error, and the command ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use chunkstore::Error;
use replicate::owner;
use replicate::rpc::wire::WireError;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, Result, exit_of};

/// What tells the process that it is the one in the background.
pub(crate) const FLAG: &str = "in-background";
/// Its last line if it works.
const READY: &str = "ready";

/// What kept it from working.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    error: WireError,
    hint: Option<String>,
}

/// Does in the background what this process was told to do, and returns when it works.
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

/// What a process in the background says when it works, before it makes its log its standard error.
pub(crate) fn tell_ready() {
    eprintln!("{READY}");
}

/// What a process in the background says if it can't work.
pub(crate) fn tell_starter(failure: &Failure) -> Exit {
    let told = Told { error: failure.error().into(), hint: failure.told_hint() };
    eprintln!("{}", serde_json::to_string(&told).expect("its keys are strings"));
    exit_of(failure.error())
}

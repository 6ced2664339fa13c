//! Shared by end-to-end tests: the program under test, images made from a seed, and mounts and loop devices that
//! are taken down again. Everything fails as a test does, by a panic that says what is missing.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "the helpers of a test fail as the test does")]

pub mod devices;
pub mod fuzz;
pub mod guest;
pub mod images;
pub mod memory_limit;
mod mounted;
mod mounting;
pub mod netns;
mod process;
pub mod programs;
mod running;
pub mod scripted;
mod site;
pub mod torture;
pub mod wan;
pub mod writers;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub use mounted::{Mounted, Vmfs, is_mounted};
pub use process::{Ended, measured, stderr};
pub use running::{Listening, Running, Serving, eventually, holder, listens};
pub use site::{Site, command_line, kill};

/// Seconds after which an owner that a test has started leaves.
const IDLE_EXIT_S: &str = "2";

/// The program `vmstore` and a store for it.
#[derive(Clone, Debug)]
pub struct Vmstore {
    program: PathBuf,
    store: PathBuf,
    opening: Opening,
}

/// Which process a command's store is opened in.
#[derive(Clone, Copy, Debug)]
enum Opening {
    /// The command's own.
    Standalone,
    /// The store's owner, which the command finds or starts.
    ThroughOwner,
}

impl Vmstore {
    /// For a store in `store`, which need not exist, and which every command opens itself.
    pub fn new(store: impl Into<PathBuf>) -> Self {
        Self { program: program(), store: store.into(), opening: Opening::Standalone }
    }

    /// For a store in `store` and a program that is not the build's own.
    pub fn with(program: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), store: store.into(), opening: Opening::Standalone }
    }

    /// The same store, but commands ask its owner, which the first of them starts and which soon leaves when idle.
    #[must_use]
    pub fn through_owner(&self) -> Self {
        Self { opening: Opening::ThroughOwner, ..self.clone() }
    }

    /// The same store, but another copy of the program.
    #[must_use]
    pub fn with_program(&self, program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), ..self.clone() }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Makes a store without reserve in `dir/store`.
    pub fn init_in(dir: &Path) -> Self {
        let vmstore = Self::new(dir.join("store"));
        vmstore.run(["init", "--no-reserve"]);
        vmstore
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The command `vmstore --store STORE ARGS...`, with nothing on standard input.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--store").arg(&self.store).args(args).stdin(Stdio::null());
        for variable in ["VMSTORE_STORE", "VMSTORE_LOG", "VMSTORE_TOKEN", "NO_COLOR"] {
            command.env_remove(variable);
        }
        match self.opening {
            Opening::Standalone => command.env("VMSTORE_STANDALONE", "1").env_remove("VMSTORE_IDLE_EXIT"),
            Opening::ThroughOwner => command.env_remove("VMSTORE_STANDALONE").env("VMSTORE_IDLE_EXIT", IDLE_EXIT_S),
        };
        command
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?} ended with {}: {}{printed}", output.status, stderr(&output));
        printed
    }

    /// Runs a command that must succeed and print JSON.
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let text = self.run(args.iter().map(AsRef::as_ref).chain([OsStr::new("--json")]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?} printed no JSON: {error}: {text}"))
    }

    /// Runs a command that must end with `code` and say why; returns what it said.
    pub fn expect_exit<A: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap();
        expect_exit_of(&output, code, &format!("{command:?}"))
    }

    /// The names of all snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        let list = self.json(["list"]);
        list.as_array().unwrap().iter().map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect()
    }

    /// Fails unless `snapshot` restores to what is in `image`.
    pub fn assert_holds(&self, snapshot: &str, image: &Path) {
        let scratch = TempDir::new_in(image.parent().unwrap()).unwrap();
        let restored = scratch.path().join("restored.raw");
        self.run([OsStr::new("restore"), OsStr::new(snapshot), restored.as_os_str(), OsStr::new("--no-sync")]);
        images::assert_same(&restored, image);
    }

    /// The names in a directory of the store that end with `suffix`.
    pub fn files(&self, dir: &str, suffix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store.join(dir)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(suffix)).collect()
    }
}

/// Fails unless a command ended with `code`, without a panic and with a message; returns the message.
pub fn expect_exit_of(output: &Output, code: i32, what: &str) -> String {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{what} ended with {}: {said}", output.status);
    assert!(!said.is_empty() && !said.contains("panicked"), "{what}: {said:?}");
    said
}

/// The program under test.
fn program() -> PathBuf {
    programs::vmstore().unwrap_or_else(|missing| panic!("{missing}")).to_owned()
}

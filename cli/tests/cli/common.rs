//! A store in a directory of its own, and runs of the program on it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use chunkstore::testing::noise;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const NIGHT: &str = "20261120T020000Z";
pub(crate) const MIB: usize = 1 << 20;

/// A directory with a store in it, and room for images.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
}

impl Site {
    /// With an empty store.
    pub(crate) fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        site.succeed(&["init", "--no-reserve"]);
        site
    }

    /// With a snapshot of each of these times, all of image `web01`.
    pub(crate) fn with_nights(times: &[&str]) -> Self {
        let site = Self::new();
        let disk = site.disk("web01.raw", 1, 1);
        for time in times {
            site.succeed(&["ingest", &disk, "--image", "web01", "--time", time]);
        }
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Makes a sparse disk of 8 MiB with some MiB of data.
    pub(crate) fn disk(&self, name: &str, data_mib: usize, seed: u8) -> String {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(8 * MIB as u64).unwrap();
        file.write_all_at(&noise(data_mib * MIB, seed.into()), MIB as u64).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = vmstore();
        command.arg("--store").arg(self.store()).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; returns what it printed.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Runs a command that must fail with the exit code `expected` and print nothing; returns its message.
    pub(crate) fn fail(&self, args: &[&str], expected: i32) -> String {
        let output = self.run(args);
        let said = stderr(&output);
        assert_eq!((code(&output), stdout(&output).as_str()), (expected, ""), "{args:?}: {said}");
        assert!(!said.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
        said
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.succeed(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    pub(crate) fn snapshots(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        list.as_array().unwrap().iter().map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn catalog_file(&self, snapshot: &str) -> PathBuf {
        let (image, time) = snapshot.split_once('@').unwrap();
        self.store().join("catalog").join(image).join(format!("{time}.snap"))
    }
}

/// The program, which opens a store itself. For one that asks the store's owner, remove `VMSTORE_STANDALONE`.
pub(crate) fn vmstore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstore"));
    command.stdin(Stdio::null());
    for variable in ["VMSTORE_STORE", "VMSTORE_LOG", "VMSTORE_TOKEN", "VMSTORE_IDLE_EXIT", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.env("VMSTORE_STANDALONE", "1");
    command
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

pub(crate) fn terminate(child: &Child) {
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
}

/// Reads the output of a child until `word`.
pub(crate) fn wait_for(child: &mut Child, word: &str) -> String {
    let stderr = child.stderr.as_mut().unwrap();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(word) && stderr.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// A command with its input and output piped.
pub(crate) trait Piped {
    fn piped(&mut self) -> &mut Self;
}

impl Piped for Command {
    fn piped(&mut self) -> &mut Self {
        self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
    }
}

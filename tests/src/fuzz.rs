//! Every decoder of bytes that others may have written, as a function that a fuzzer can call.
//!
//! Each takes any bytes and must come back: without a panic, within bounded time, without allocating more than the
//! formats' limits. An accepted input must survive being encoded again. Where a format has checksums, which no fuzzer
//! guesses, the bytes are tried a second time with the checksums put right (`reseal`).
//!
//! `make fuzz` runs them under libFuzzer (`fuzz/fuzz_targets`), `tests/fuzz_targets.rs` over their corpus and mutations
//! of it. The corpus is written by `fuzz-corpus` from the examples here.

mod clones;
mod commands;
mod examples;
pub mod mutate;
mod peers;
mod qcow2;
mod records;
pub mod reseal;
mod texts;
mod wire;

/// How a decoder judged its input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was read, as it is or with its checksums put right.
    Accepted,
    /// It was an error, which is as good.
    Refused,
}

impl Verdict {
    fn when(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }

    fn of<T, E>(decoded: &Result<T, E>) -> Self {
        Self::when(decoded.is_ok())
    }

    fn or(self, other: Self) -> Self {
        if self == Self::Accepted { self } else { other }
    }
}

/// A valid input and its name.
pub type Example = (&'static str, Vec<u8>);

/// A decoder as a fuzzer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The function's name; its program and its corpus are called so, too.
    pub name: &'static str,
    /// Decodes, and fails as a test does if the decoder is wrong.
    pub decode: fn(&[u8]) -> Verdict,
    /// Valid inputs, always the same.
    pub examples: fn() -> Vec<Example>,
}

/// Publishes functions and lists them. One that is not listed can't be reached, which is a warning.
macro_rules! targets {
    ($($module:ident: $($name:ident),+;)+) => {
        $(pub use $module::{$($name),+};)+

        /// All of them.
        pub const TARGETS: &[Target] = &[
            $($(Target { name: stringify!($name), decode: $name, examples: examples::$name },)+)+
        ];
    };
}

targets! {
    clones: clone_map, clone_record, clone_socket, lock_holder, mountinfo;
    commands: mount_status, options, reports;
    peers: peer_names, pem, quotas, remotes, tokens;
    qcow2: qcow2_image;
    records: index_row, record_header, pack, payload, manifest_node;
    texts: boot_order, catalog_file, snapshot_entry, config, damaged_list, file_names, lease, names;
    wire: frames, messages, wire_records;
}

/// Tries bytes as they are and with their checksums put right.
fn as_given_and_resealed(
    bytes: &[u8],
    reseal: impl Fn(&[u8]) -> Option<Vec<u8>>,
    decode: impl Fn(&[u8]) -> Verdict,
) -> Verdict {
    let as_given = decode(bytes);
    match reseal(bytes).filter(|resealed| resealed != bytes) {
        Some(resealed) => as_given.or(decode(&resealed)),
        None => as_given,
    }
}

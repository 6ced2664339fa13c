//! `vmstore diff`: where two snapshots differ.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::ops::Range;

use chunkstore::catalog::Selector;
use chunkstore::format::manifest::compare;
use chunkstore::{Error, catalog::Snapshot};
use clap::Args;

use super::resolve;
use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::{STDOUT, bytes, counted};

/// Show the byte ranges in which two snapshots, of one image or of two, differ
///
/// The time depends on the difference, not on the size. Ranges are as fine as chunks: all bytes outside of them are
/// equal, but not all inside differ. Each line has the offset and the length of a range in bytes; the last has the sum.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmstore diff web01@20261119 web01@20261120")]
pub(crate) struct Diff {
    /// The first snapshot
    a: Selector,
    /// The second snapshot
    b: Selector,
}

impl Diff {
    /// Not repeated after a damaged index, because ranges are printed as they are found.
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let store = connector.access(Purpose::Use)?;
        let read =
            |selector| Ok::<_, crate::failure::Failure>(store.read(&resolve::snapshot(store.catalog(), selector)?)?);
        let ((_lease_a, a), (_lease_b, b)) = (read(&self.a)?, read(&self.b)?);
        let mut printer = Printer::new(terminal.is_json(), &a, &b);
        let outcome = printer.begin().and_then(|()| {
            let changed_bytes =
                compare(store.source(), a.entry().tree(), b.entry().tree(), &mut |range| printer.range(&range))?;
            printer.end(changed_bytes)
        });
        match outcome {
            // The reader has seen enough.
            Err(Error::Io { source, .. }) if printer.reader_gone && source.kind() == ErrorKind::BrokenPipe => {
                Ok(Exit::Done)
            }
            outcome => Ok(outcome.map(|()| Exit::Done)?),
        }
    }
}

/// Prints ranges one by one: there may be more of them than fit into memory.
struct Printer {
    stdout: BufWriter<StdoutLock<'static>>,
    json: bool,
    names: [String; 2],
    ranges: u64,
    reader_gone: bool,
}

impl Printer {
    fn new(json: bool, a: &Snapshot, b: &Snapshot) -> Self {
        let names = [a, b].map(|snapshot| snapshot.name().to_string());
        Self { stdout: BufWriter::new(io::stdout().lock()), json, names, ranges: 0, reader_gone: false }
    }

    fn begin(&mut self) -> chunkstore::Result<()> {
        let [a, b] = &self.names;
        // A snapshot's name has no character that JSON escapes.
        let text = if self.json { format!("{{\"a\":\"{a}\",\"b\":\"{b}\",\"ranges\":[") } else { String::new() };
        self.print(&text)
    }

    fn range(&mut self, range: &Range<u64>) -> chunkstore::Result<()> {
        let (offset, bytes) = (range.start, range.end - range.start);
        let comma = if self.ranges == 0 { "" } else { "," };
        let text = if self.json {
            format!("{comma}{{\"offset\":{offset},\"bytes\":{bytes}}}")
        } else {
            format!("{offset} {bytes}\n")
        };
        self.ranges += 1;
        self.print(&text)
    }

    fn end(&mut self, changed_bytes: u64) -> chunkstore::Result<()> {
        let [a, b] = &self.names;
        let text = match (self.json, self.ranges) {
            (true, _) => format!("],\"changed_bytes\":{changed_bytes}}}\n"),
            (false, 0) => format!("{a} and {b} are equal\n"),
            (false, ranges) => {
                let ranges = counted(ranges, "range");
                format!("{a} and {b} differ in {changed_bytes} bytes ({}), {ranges}\n", bytes(changed_bytes))
            }
        };
        self.print(&text)?;
        let flushed = self.stdout.flush();
        self.checked(flushed)
    }

    fn print(&mut self, text: &str) -> chunkstore::Result<()> {
        let written = self.stdout.write_all(text.as_bytes());
        self.checked(written)
    }

    fn checked(&mut self, result: io::Result<()>) -> chunkstore::Result<()> {
        self.reader_gone |= result.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
        result.map_err(|error| Error::io("writing", STDOUT, error))
    }
}

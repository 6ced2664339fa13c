//! How results look on standard output: JSON, or text and tables for people.

use std::io::{self, Write};
use std::process::ExitCode;

use bytesize::ByteSize;
use chunkstore::Error;
use comfy_table::{CellAlignment, Row, Table, presets};
use serde::Serialize;

use crate::failure::Result;

/// The name of standard output in errors.
pub(crate) const STDOUT: &str = "standard output";

/// A result as one line of JSON.
pub(super) fn json_line(json: &impl Serialize) -> String {
    serde_json::to_string(json).expect("results have string keys only") + "\n"
}

/// Prints to standard output. A reader that has gone away is no failure: the command's work is done.
pub(crate) fn print(text: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("writing", STDOUT, error).into()),
        _ => Ok(()),
    }
}

/// Prints help, the version, or what is wrong with the command line.
pub(crate) fn print_answer(answer: &clap::Error) -> ExitCode {
    // A closed stream has no reader to miss it.
    let _ = answer.print();
    ExitCode::from(answer.exit_code() as u8)
}

/// A number of bytes for people, such as `1.4 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    ByteSize(count).display().iec().to_string()
}

/// `1 pack`, `2 packs`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Seconds for people.
pub(crate) fn seconds(elapsed_s: f64) -> String {
    if elapsed_s < 10.0 { format!("{elapsed_s:.2} s") } else { format!("{elapsed_s:.0} s") }
}

/// A table without lines; the columns in `numbers` are aligned to the right.
pub(crate) fn table<const N: usize>(header: [&str; N], numbers: &[usize], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(Row::from(header));
    table.add_rows(rows.into_iter().map(Row::from));
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// Lines of a report: names to the left, values to the right.
pub(crate) fn fields(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = lines.iter().map(|(name, value)| format!("  {name:width$}  {value}\n")).collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_do_not_end_in_spaces() {
        let rows = vec![["web01".to_owned(), "7".to_owned()], ["w".to_owned(), "1234".to_owned()]];
        assert_eq!(table(["IMAGE", "SIZE"], &[1], rows), "IMAGE  SIZE\nweb01     7\nw      1234\n");
    }

    #[test]
    fn text_for_people() {
        assert_eq!([bytes(0), bytes(1536), bytes(8 << 40)], ["0 B", "1.5 KiB", "8.0 TiB"]);
        assert_eq!([counted(0, "pack"), counted(1, "pack")], ["0 packs", "1 pack"]);
        assert_eq!([seconds(0.123), seconds(75.3)], ["0.12 s", "75 s"]);
        assert_eq!(fields(&[("a", "1".into()), ("long", "2".into())]), "  a     1\n  long  2\n");
    }
}

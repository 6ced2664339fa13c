//! The table of results: what was measured, against whom, and whether it is what it must be.

use serde::{Serialize, Serializer};

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Reported only.
    Informative,
}

impl Target {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(limit) => Some(value <= limit),
            Self::AtLeast(limit) => Some(value >= limit),
            Self::Informative => None,
        }
    }

    fn describe(self, write: impl Fn(f64) -> String) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {}", write(limit)),
            Self::AtLeast(limit) => format!("≥ {}", write(limit)),
            Self::Informative => String::new(),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Informative => serializer.serialize_none(),
            target => serializer.serialize_some(&target.describe(|limit| limit.to_string())),
        }
    }
}

/// One line: a figure, and what it is compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    /// The other tool's figure, in the same unit.
    other: Option<f64>,
    ratio: Option<f64>,
    /// On the ratio if there is one, else on the figure.
    target: Target,
    met: Option<bool>,
}

impl Row {
    /// A figure in `unit`: `s`, `B`, `B/s` or `B/chunk`.
    pub(crate) fn new(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self { what: what.into(), measured, unit, other: None, ratio: None, target: Target::Informative, met: None }
    }

    /// Compared with another tool as a part of its figure.
    pub(crate) fn part_of(self, other: f64) -> Self {
        Self { other: Some(other), ratio: Some(self.measured / other), ..self }
    }

    /// Compared with another tool as how many times better (faster) it is.
    pub(crate) fn times_better_than(self, other: f64) -> Self {
        Self { other: Some(other), ratio: Some(other / self.measured), ..self }
    }

    /// The target of the ratio, or without one of the figure.
    pub(crate) fn target(self, target: Target) -> Self {
        Self { target, met: target.met(self.ratio.unwrap_or(self.measured)), ..self }
    }

    fn cells(&self) -> [String; 5] {
        let measured = match self.other {
            Some(other) => format!("{} against {}", quantity(self.measured, self.unit), quantity(other, self.unit)),
            None => quantity(self.measured, self.unit),
        };
        let ratio = self.ratio.map_or(String::new(), ratio_text);
        let target = match self.ratio {
            Some(_) => self.target.describe(ratio_text),
            None => self.target.describe(|limit| quantity(limit, self.unit)),
        };
        let met = self.met.map_or("", |met| if met { "yes" } else { "**no**" });
        [self.what.clone(), measured, ratio, target, met.to_owned()]
    }
}

fn ratio_text(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

/// A number with a unit that a person reads: `2.31 s`, `9.60 MB`, `1.35 GB/s`.
fn quantity(value: f64, unit: &str) -> String {
    if !unit.starts_with('B') || unit == "B/chunk" {
        let digits = if unit == "s" && value < 0.1 { 4 } else { 2 };
        return format!("{value:.digits$} {unit}");
    }
    let scale = [(1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter().find(|(least, _)| value >= *least);
    match scale {
        Some((least, prefix)) => format!("{:.2} {prefix}{unit}", value / least),
        None => format!("{value:.0} {unit}"),
    }
}

/// Prints the rows as a Markdown table, aligned.
pub(crate) fn print(rows: &[Row]) {
    let mut lines = vec![["what", "measured", "ratio", "target", "met"].map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    lines.insert(1, widths.map(|width| "-".repeat(width)));
    for cells in &lines {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} ")).collect::<Vec<_>>();
        println!("|{}|", padded.join("|"));
    }
}

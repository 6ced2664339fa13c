//! The options that every command takes. Knows no command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

/// An endless wait, 136 years: `Instant` can still represent its end.
const WAIT_SECONDS_MAX: &str = "4294967295";

/// The global options of both programs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Common {
    /// The store's directory
    #[arg(long, global = true, env = "VMSTORE_STORE", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only results and errors: no reports, progress or warnings
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; twice for even more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Format of logs and errors on standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// How long an owner that a command starts waits for the next client
    #[arg(hide = true, long, global = true, env = "VMSTORE_IDLE_EXIT", value_name = "SECONDS")]
    pub(crate) idle_exit: Option<u64>,
}

/// The global options of `vmstore`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Show progress on standard error; `auto` does on a terminal
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) progress: ProgressMode,
    /// Open the store in this process alone, instead of through its owner, which serves several
    #[arg(long, global = true, env = "VMSTORE_STANDALONE", value_parser = clap::builder::BoolishValueParser::new())]
    #[arg(action = ArgAction::SetTrue)]
    pub(crate) standalone: bool,
    /// With --standalone: wait while another process uses the store, at most this long if given
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = WAIT_SECONDS_MAX)]
    wait: Option<u32>,
}

impl Global {
    /// The options of a program that takes only the common ones.
    pub(crate) fn of(common: Common) -> Self {
        Self { common, progress: ProgressMode::Never, standalone: false, wait: None }
    }

    /// How long to wait for a store that is in use.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.unwrap_or(0).into())
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// When progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// On a terminal
    Auto,
    /// Always; where there is no terminal, as a line a second
    Always,
    /// Never
    Never,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        global: Global,
    }

    #[test]
    fn waiting() {
        let wait = |args: &[&str]| Program::try_parse_from([&["vmstore"], args].concat()).unwrap().global.wait();
        assert_eq!(wait(&[]), Duration::ZERO);
        assert_eq!(wait(&["--wait=7"]), Duration::from_secs(7));
        let endless = wait(&["--wait", "--json"]);
        assert_eq!(endless, Duration::from_secs(u64::from(u32::MAX)));
        assert!(std::time::Instant::now().checked_add(endless).is_some());
    }
}

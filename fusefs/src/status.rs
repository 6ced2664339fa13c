//! The content of `.vmfs/status.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::counters::Requests;

/// State of a mounted view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program that serves it.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The store's directory.
    pub store: String,
    /// Seconds since it was mounted.
    pub uptime_s: f64,
    /// Handles of disks.
    pub open_files: u64,
    /// Counters of its requests.
    pub requests: Requests,
    /// Fields that the program adds.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

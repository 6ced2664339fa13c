//! Random bytes from the operating system: below this crate, seeds and ids are parameters.

use std::fs::File;
use std::io::Read;

use crate::failure::{Failure, Result};

const DEVICE: &str = "/dev/urandom";

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = File::open(DEVICE).and_then(|mut device| device.read_exact(&mut bytes));
    read.map_err(|error| Failure::io("reading", DEVICE, error))?;
    Ok(bytes)
}

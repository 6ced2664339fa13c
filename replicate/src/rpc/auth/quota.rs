//! How much each token has stored, kept in `quota.toml`.
//!
//! Bytes are charged before they are stored and are never refunded: a broken push resumes with the records already
//! sent, so nothing is charged twice, and no client can fill the disk without publishing. Only the store's owner uses
//! this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chunkstore::{Error, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Grant;
use crate::rpc::private_file::{self, KeepOut};

/// The file's name in a store.
const FILE: &str = "quota.toml";
/// Charges since the file was last written are lost when the owner is killed: at most this much.
const UNSAVED_BYTES_MAX: u64 = 16 << 20;

const COMMENT: &str = "\
# How many bytes each token has stored. The store's owner writes it; change it only while none runs.
";

/// The bytes that tokens have stored.
#[derive(Debug)]
pub struct Quota {
    path: PathBuf,
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    used: Used,
    unsaved_bytes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    #[serde(default)]
    used_bytes: BTreeMap<String, u64>,
}

impl Quota {
    /// The quotas of the store in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), state: Mutex::default() }
    }

    /// Checks that this many more bytes may be stored.
    ///
    /// # Errors
    /// [`Error::Denied`] if not; [`Error::Invalid`] if the file is not right.
    pub fn check(&self, grant: &Grant, bytes: u64) -> Result<()> {
        if grant.quota_bytes().is_none() {
            return Ok(());
        }
        self.with_state(|state| fit(grant, state.used.of(grant.name()), bytes).map(drop))
    }

    /// Charges this many bytes before they are stored.
    ///
    /// # Errors
    /// As [`Quota::check`], and then nothing is charged; [`Error::Io`] if the file can't be written.
    pub fn charge(&self, grant: &Grant, bytes: u64) -> Result<()> {
        if grant.is_local() || bytes == 0 {
            return Ok(());
        }
        self.with_state(|state| {
            let used = fit(grant, state.used.of(grant.name()), bytes)?;
            state.used.used_bytes.insert(grant.name().to_owned(), used);
            state.unsaved_bytes = state.unsaved_bytes.saturating_add(bytes);
            if state.unsaved_bytes < UNSAVED_BYTES_MAX { Ok(()) } else { self.write(state) }
        })
    }

    /// Writes the charges to the file; also done on drop.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self) -> Result<()> {
        self.with_state(|state| if state.unsaved_bytes == 0 { Ok(()) } else { self.write(state) })
    }

    /// A token's stored bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the file is not right.
    pub fn used_bytes(&self, name: &str) -> Result<u64> {
        self.with_state(|state| Ok(state.used.of(name)))
    }

    /// Resets a token's count to zero.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be written.
    pub fn reset(&self, name: &str) -> Result<()> {
        self.with_state(|state| {
            state.used.used_bytes.remove(name);
            self.write(state)
        })
    }

    /// The file is read on first use.
    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock();
        let state = match &mut *state {
            Some(state) => state,
            unread => unread.insert(State { used: self.read()?, unsaved_bytes: 0 }),
        };
        work(state)
    }

    fn read(&self) -> Result<Used> {
        let bytes = private_file::read_if_present(&self.path, KeepOut::Nobody)?;
        bytes.map_or_else(|| Ok(Used::default()), |bytes| private_file::from_toml(&self.path, &bytes))
    }

    fn write(&self, state: &mut State) -> Result<()> {
        private_file::replace(&self.path, &private_file::to_toml(COMMENT, &state.used))?;
        state.unsaved_bytes = 0;
        Ok(())
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        let unsaved = self.state.lock().as_ref().is_some_and(|state| state.unsaved_bytes > 0);
        if unsaved && let Err(error) = self.save() {
            tracing::warn!("what tokens have stored could not be written down: {error}");
        }
    }
}

impl Used {
    fn of(&self, name: &str) -> u64 {
        self.used_bytes.get(name).copied().unwrap_or(0)
    }
}

/// The usage with `bytes` added.
fn fit(grant: &Grant, used: u64, bytes: u64) -> Result<u64> {
    let sum = used.saturating_add(bytes);
    match grant.quota_bytes() {
        Some(quota) if sum > quota => Err(Error::denied(format!(
            "{} may store {quota} bytes, and has stored {used}; the operator of the store can allow more",
            grant.name()
        ))),
        // The largest number that TOML can hold.
        _ => Ok(sum.min(i64::MAX as u64)),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::rpc::auth::Role;

    fn grant(name: &str, quota_bytes: Option<u64>) -> Grant {
        Grant::of_token(name.into(), Role::Push, Vec::new(), quota_bytes)
    }

    #[test]
    fn charges_survive_and_end_at_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (grant("a", Some(100)), grant("b", None));
        let quota = Quota::new(dir.path());
        quota.charge(&a, 60).unwrap();
        quota.charge(&b, 1000).unwrap();
        quota.charge(&Grant::local(), 1000).unwrap();
        drop(quota);
        let quota = Quota::new(dir.path());
        assert_eq!((quota.used_bytes("a").unwrap(), quota.used_bytes("b").unwrap()), (60, 1000));
        quota.check(&a, 40).unwrap();
        for over in [41, u64::MAX] {
            assert!(matches!(quota.check(&a, over), Err(Error::Denied { .. })));
            assert!(matches!(quota.charge(&a, over), Err(Error::Denied { .. })));
        }
        quota.charge(&a, 40).unwrap();
        assert!(matches!(quota.charge(&a, 1), Err(Error::Denied { .. })));
        quota.charge(&b, u64::MAX).unwrap();
        quota.reset("a").unwrap();
        quota.charge(&a, 100).unwrap();
    }

    #[test]
    fn a_kill_forgets_little() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(dir.path());
        quota.charge(&grant("a", None), 100 * UNSAVED_BYTES_MAX).unwrap();
        quota.charge(&grant("a", None), 1).unwrap();
        assert_eq!(Quota::new(dir.path()).used_bytes("a").unwrap(), 100 * UNSAVED_BYTES_MAX);
        quota.save().unwrap();
        assert_eq!(Quota::new(dir.path()).used_bytes("a").unwrap(), 100 * UNSAVED_BYTES_MAX + 1);
    }

    #[test]
    fn threads_together_do_not_pass_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(dir.path());
        let charge_many = || (0..100).filter(|_| quota.charge(&grant("a", Some(250)), 1).is_ok()).count();
        let charged: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(charge_many)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((charged, quota.used_bytes("a").unwrap()), (250, 250));
    }

    #[test]
    fn a_damaged_file_refuses_all_storing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "used_bytes = 3").unwrap();
        let quota = Quota::new(dir.path());
        for _ in 0..2 {
            assert!(matches!(quota.charge(&grant("a", Some(1)), 1), Err(Error::Invalid { .. })));
        }
    }
}

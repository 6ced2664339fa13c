//! Acknowledged work, and the snapshots that must or must not exist because of it.

use std::collections::{BTreeMap, BTreeSet};

use blake3::Hash;

/// The state of a snapshot that was ingested and not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its ingest ended well.
    There,
    /// Its ingest or its removal did not end, or not well: it is there, or it is not.
    Unknown,
}

/// The snapshots of both sites.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Of the bytes of each snapshot that was ever begun.
    digests: BTreeMap<String, Hash>,
    near: BTreeMap<String, Fate>,
    /// Snapshots that must be at the far site.
    far: BTreeSet<String>,
}

impl Ledger {
    /// An ingest of such bytes begins.
    pub(crate) fn begin(&mut self, name: &str, digest: Hash) {
        self.digests.insert(name.to_owned(), digest);
        self.near.insert(name.to_owned(), Fate::Unknown);
    }

    /// An ingest ended well.
    pub(crate) fn ingested(&mut self, name: &str) {
        self.near.insert(name.to_owned(), Fate::There);
    }

    /// The oldest snapshots but for so many: their removal begins.
    pub(crate) fn begin_removal(&mut self, keep: usize) -> Vec<String> {
        let mut there = self.there();
        there.truncate(there.len().saturating_sub(keep));
        for name in &there {
            self.near.insert(name.clone(), Fate::Unknown);
        }
        there
    }

    /// A removal ended well.
    pub(crate) fn removed(&mut self, names: &[String]) {
        self.near.retain(|name, _| !names.contains(name));
    }

    /// Snapshots known to be at the near site, by age.
    pub(crate) fn there(&self) -> Vec<String> {
        let there = self.near.iter().filter(|(_, fate)| **fate == Fate::There);
        let mut there: Vec<_> = there.map(|(name, _)| name.clone()).collect();
        there.sort_by_key(|name| name.split('@').nth(1).map(str::to_owned));
        there
    }

    /// Whether a snapshot is known to be at the near site.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.near.get(name) == Some(&Fate::There)
    }

    /// A push ended well that began when these were there; then the far site lists those.
    pub(crate) fn pushed(&mut self, there: &[String], far: &[String]) {
        for name in there.iter().filter(|name| self.has(name)) {
            assert!(far.contains(name), "{name} was pushed and is not there");
        }
        self.far.extend(there.iter().filter(|name| far.contains(name)).cloned());
    }

    /// Of which bytes a snapshot is.
    pub(crate) fn digest(&self, name: &str) -> Hash {
        *self.digests.get(name).unwrap_or_else(|| panic!("{name} is there and was never ingested"))
    }

    /// Fails unless the sites list what they must, and nothing that they must not. The unknown ones are known now.
    pub(crate) fn settle(&mut self, near: &[String], far: &[String]) {
        for name in self.there() {
            assert!(near.contains(&name), "{name} was acknowledged and is lost");
        }
        for name in near {
            assert!(self.near.contains_key(name), "{name} was removed and is there");
        }
        self.near = near.iter().map(|name| (name.clone(), Fate::There)).collect();
        for name in &self.far {
            assert!(far.contains(name), "{name} was pushed and is lost");
        }
        self.far = far.iter().cloned().collect();
    }

    /// Snapshots at the far site that the near one no longer has: to be removed there.
    pub(crate) fn take_outdated(&mut self) -> Vec<String> {
        let outdated = |name: &&String| !self.near.contains_key(*name);
        let names: Vec<_> = self.far.iter().filter(outdated).cloned().collect();
        self.far.retain(|name| !names.contains(name));
        names
    }
}

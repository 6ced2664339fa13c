//! The contents that each sector of a thread's part must or may have.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::SECTOR_BYTES;
use super::plan::{Step, What, fill};

/// The content of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// The content before the first write.
    Base,
    Zeros,
    /// The content of the write with this tag.
    Written(u64),
}

/// All sectors of a part.
#[derive(Clone, Debug)]
pub(super) struct Sectors {
    base: Arc<Vec<u8>>,
    range: Range<u64>,
    sure: Vec<Content>,
    /// By sector, what came after the last sync, the latest last.
    since: BTreeMap<usize, Vec<Content>>,
}

impl Sectors {
    pub(super) fn new(base: Arc<Vec<u8>>, range: Range<u64>) -> Self {
        let count = (range.end - range.start) / SECTOR_BYTES;
        Self { base, range, sure: vec![Content::Base; count as usize], since: BTreeMap::new() }
    }

    /// Takes note of a step that was begun; returns whether it is a sync.
    pub(super) fn apply(&mut self, step: &Step) -> bool {
        let (range, content) = match &step.what {
            What::Sync => return true,
            What::Write(range) => (range, Content::Written(step.tag)),
            What::Discard(range) => (range, Content::Zeros),
        };
        let number = |offset: u64| ((offset - self.range.start) / SECTOR_BYTES) as usize;
        for sector in number(range.start)..number(range.end) {
            self.since.entry(sector).or_default().push(content);
        }
        false
    }

    /// Everything done until now must be there.
    pub(super) fn synced(&mut self) {
        for (sector, since) in std::mem::take(&mut self.since) {
            self.sure[sector] = *since.last().expect("only made to push to");
        }
    }

    /// Fails unless each sector has what it must or may have; what it has, it keeps.
    pub(super) fn settle(&mut self, bytes: &[u8]) {
        let since = std::mem::take(&mut self.since);
        for (sector, found) in bytes.chunks_exact(SECTOR_BYTES as usize).enumerate() {
            let allowed = [self.sure[sector]].into_iter().chain(since.get(&sector).into_iter().flatten().copied());
            let content = allowed.clone().find(|content| self.has(sector, *content, found));
            self.sure[sector] = content.unwrap_or_else(|| {
                let allowed: Vec<_> = allowed.collect();
                panic!("the sector at {} has none of {allowed:?} but {:02x?} ...", self.offset(sector), &found[..16])
            });
        }
    }

    fn offset(&self, sector: usize) -> u64 {
        self.range.start + sector as u64 * SECTOR_BYTES
    }

    fn has(&self, sector: usize, content: Content, found: &[u8]) -> bool {
        match content {
            Content::Base => self.base[self.offset(sector) as usize..][..found.len()] == *found,
            Content::Zeros => found.iter().all(|byte| *byte == 0),
            Content::Written(tag) => {
                let mut expected = [0; SECTOR_BYTES as usize];
                fill(&mut expected, tag, self.offset(sector));
                expected == *found
            }
        }
    }
}

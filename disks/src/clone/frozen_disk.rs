//! A clone's disk as it was when a commit began, for the ingest to read while the guest writes on above it.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::Result;
use chunkstore::source::{ChangedRanges, DiskSource};
use tokio::runtime::Handle;

use super::layer_stack::LayerStack;

/// The layers below the one that is written, over the clone's snapshot. They do not change any more.
#[derive(Clone)]
pub struct FrozenDisk {
    name: Arc<str>,
    stack: Arc<LayerStack>,
    size_bytes: u64,
    runtime: Handle,
}

impl FrozenDisk {
    pub(super) fn new(name: &str, stack: LayerStack, size_bytes: u64, runtime: &Handle) -> Self {
        Self { name: name.into(), stack: Arc::new(stack), size_bytes, runtime: runtime.clone() }
    }

    /// Bytes of the blocks that may differ from the clone's snapshot.
    pub(super) fn changed_bytes(&self) -> Result<u64> {
        let (mut bytes, mut at) = (0, 0);
        while let Some(changed) = self.next_changed(at)? {
            bytes += changed.end - changed.start;
            at = changed.end;
        }
        Ok(bytes)
    }
}

impl ChangedRanges for FrozenDisk {
    /// Where it may differ from the clone's snapshot, but for what was not written beyond the snapshot's end: zeros.
    fn next_changed(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let written = self.stack.next_written(offset, self.size_bytes);
        let base = &self.stack.base;
        let cut_off = base.bytes_max.max(offset)..base.disk.size_bytes().min(self.size_bytes);
        let cut_off = Some(cut_off).filter(|range| !range.is_empty());
        Ok(written.into_iter().chain(cut_off).min_by_key(|range| range.start))
    }
}

impl DiskSource for FrozenDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.runtime.block_on(self.stack.next_data(offset, self.size_bytes))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.runtime.block_on(self.stack.read(buf, offset))
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

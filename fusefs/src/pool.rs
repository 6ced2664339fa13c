//! Where all disks of a mount get their chunks: one source, one cache, one set of threads.

use std::sync::Arc;

use chunkstore::chunk_source::ChunkSource;
use tokio::runtime::Handle;

/// What the disks of a mount share.
pub struct Pool {
    source: Arc<dyn ChunkSource>,
    runtime: Handle,
}

impl Pool {
    /// Gets chunks from `source`; what waits runs on `runtime`.
    pub fn new(source: Arc<dyn ChunkSource>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { source, runtime })
    }

    /// Where chunks come from.
    pub fn source(&self) -> &Arc<dyn ChunkSource> {
        &self.source
    }

    /// What drives the futures.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

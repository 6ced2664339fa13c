//! A file of a qcow2 chain as imago reads it: through [`HostFile`], so that errors name offsets and the page cache
//! keeps its state. Read only.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::super::host_file::HostFile;
use crate::error::{Error, Result};

/// One file of a chain.
#[derive(Debug)]
pub(super) struct LayerFile {
    file: Arc<HostFile>,
    /// How far a cluster may reach beyond the end of the file: 1 for a raw file.
    cluster_bytes: u64,
    /// Bytes that imago read by itself, over the whole chain: tables and compressed clusters.
    imago_bytes: Arc<AtomicU64>,
    helper: CommonStorageHelper,
}

impl LayerFile {
    pub(super) fn new(file: Arc<HostFile>, cluster_bytes: u64, imago_bytes: Arc<AtomicU64>) -> Self {
        Self { file, cluster_bytes, imago_bytes, helper: CommonStorageHelper::default() }
    }

    pub(super) fn file(&self) -> &HostFile {
        &self.file
    }

    /// Fills `buf` from `offset`. A file may end within its last cluster, whose rest then reads as zeros.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read_bytes = self.file.read_up_to(buf, offset)?;
        if read_bytes < buf.len() {
            self.check_end(offset + buf.len() as u64)?;
            buf[read_bytes..].fill(0);
        }
        Ok(())
    }

    /// Fails if `end` lies beyond the last cluster that the file, which may be growing, reaches into.
    pub(super) fn check_end(&self, end: u64) -> Result<()> {
        if end <= self.file.size_bytes() {
            return Ok(());
        }
        let size_bytes = self.file.current_size_bytes()?;
        if end <= size_bytes.next_multiple_of(self.cluster_bytes) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} is cut off: it has {size_bytes} bytes and refers to its offset {end}",
            self.file.name()
        )))
    }
}

impl fmt::Display for LayerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file.name())
    }
}

impl Storage for LayerFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.size_bytes())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        self.imago_bytes.fetch_add(bufv.len(), Ordering::Relaxed);
        for mut buf in bufv.into_inner() {
            self.read_exact_at(&mut buf, offset).map_err(io::Error::other)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, _bufv: IoVector<'_>, _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

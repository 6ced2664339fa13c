//! Decoders of a clone's files and messages, as [`crate::fuzzing`] exports them.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunkstore::Progress;
use chunkstore::format::limits::{CATALOG_FILE_BYTES_MAX, IMAGE_BYTES_MAX};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Builder, Runtime};

use super::files::LayerFile;
use super::map::{Map, SECTOR_BLOCKS, SECTOR_BYTES};
use super::metadata::{CloneMetadata, FILE};
use super::socket::{Answer, LINE_BYTES_MAX, Question, encode, hear, read_question, understand};
use super::{layer, lock, metadata};

/// A clone's `clone.json`.
pub fn clone_record(file: &[u8]) -> bool {
    let path = Path::new(FILE);
    let Ok(mut metadata) = CloneMetadata::decode(path, file) else { return false };
    assert!(metadata.size_bytes <= IMAGE_BYTES_MAX && metadata.base_bytes_max <= IMAGE_BYTES_MAX);
    assert!(!metadata.numbers().contains(&metadata.next_layer()));
    // With all that may be in it and indented, it may be over the limit; then it is not written.
    if let Ok(again) = metadata.encode() {
        assert_eq!(CloneMetadata::decode(path, &again).expect("it was just encoded"), metadata);
    }
    metadata.shorten(metadata.size_bytes / 2);
    metadata.add_layer(metadata.size_bytes);
    true
}

/// A layer's map: what is in its file from a sector on. Before that is a hole.
pub fn clone_map(first_sector: u64, data: &[u8]) -> bool {
    let start = first_sector * SECTOR_BYTES as u64;
    let file = MapFile { start, data: Arc::new(Mutex::new(data.to_vec())) };
    let Ok(map) = Map::open(Box::new(file.clone())) else { return false };
    // The same blocks, written to another file.
    let copy = MapFile { start, data: Arc::default() };
    let copied = Map::open(Box::new(copy.clone())).expect("it is empty");
    let end = file.end_block();
    let written = written(&map, end);
    for blocks in &written {
        copied.reserve(blocks).expect("there is always room");
        copied.set(blocks);
    }
    copied.write(&copied.take_dirty()).expect("memory can always be written");
    let copied = Map::open(Box::new(copy)).expect("it was just written");
    assert!(self::written(&copied, end) == written);
    true
}

/// The blocks that a map has before `end`.
fn written(map: &Map, end: u64) -> Vec<Range<u64>> {
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < end {
        let run = map.run(at, end);
        assert!(at < run.end && run.end <= end);
        if run.is_there {
            blocks.push(at..run.end);
        }
        at = run.end;
    }
    blocks
}

/// A file of which nothing is before `start`.
#[derive(Clone)]
struct MapFile {
    start: u64,
    data: Arc<Mutex<Vec<u8>>>,
}

impl MapFile {
    fn data(&self) -> MutexGuard<'_, Vec<u8>> {
        self.data.lock()
    }

    /// The first block that it can't have.
    fn end_block(&self) -> u64 {
        (self.start + self.data().len() as u64).div_ceil(SECTOR_BYTES as u64).saturating_mul(SECTOR_BLOCKS)
    }
}

impl LayerFile for MapFile {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let data = self.data();
        for (at, byte) in (offset..).zip(buf) {
            *byte = at.checked_sub(self.start).and_then(|at| data.get(at as usize)).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut data = self.data();
        let at = (offset - self.start) as usize;
        let end = data.len().max(at + bytes.len());
        data.resize(end, 0);
        data[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.start + self.data().len() as u64;
        Ok((offset < end).then(|| offset.max(self.start)..end))
    }

    fn punch(&self, _: Range<u64>) -> io::Result<()> {
        unreachable!("maps only gain blocks")
    }

    fn reserve(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn cut(&self, _: u64) -> io::Result<()> {
        unreachable!("maps only gain blocks")
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.data().len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
}

/// What comes through a clone's socket, as a question and as the answers to one.
pub fn clone_socket(bytes: &[u8]) -> bool {
    let question = RUNTIME.with(|runtime| runtime.block_on(read_question(bytes)));
    if let Some(Ok(question)) = &question {
        assert_eq!(&understood::<Question>(&encode(question)), question);
    }
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').map_while(|line| std::str::from_utf8(line).ok());
    let answers: Vec<Answer> = lines.map_while(|line| understand(line).ok()).collect();
    for answer in &answers {
        assert_eq!(&understood::<Answer>(&encode(answer)), answer);
    }
    let (dir, progress) = (Path::new("clones/c"), Progress::default());
    match hear(bytes, dir, &progress) {
        Ok(committed) => {
            let encoded = encode(&Answer::of(Ok(committed.clone())));
            // What is written anew may be longer than what is read.
            let file_bytes = committed.snapshot.encode().len() as u64;
            if file_bytes <= CATALOG_FILE_BYTES_MAX && encoded.len() as u64 <= LINE_BYTES_MAX {
                assert_eq!(hear(&encoded[..], dir, &progress).expect("it was just encoded"), committed);
            }
        }
        Err(error) => {
            let told = error.to_string();
            assert!(!told.contains(char::is_control), "{told:?}");
        }
    }
    matches!(question, Some(Ok(_))) || !answers.is_empty()
}

fn understood<T: for<'line> serde::Deserialize<'line>>(line: &[u8]) -> T {
    understand(std::str::from_utf8(line).expect("JSON is text")).expect("it was just encoded")
}

/// The names of files and directories of clones; accepted if one of them tells something.
pub fn clone_files<'name>(names: impl IntoIterator<Item = &'name str>) -> bool {
    let mut accepted = false;
    for name in names {
        let layer = layer::number_of(name);
        if let Some(number) = layer {
            assert!(layer::paths(Path::new(""), number).contains(&PathBuf::from(name)));
        }
        let begun = metadata::begun(name);
        if let Some(clone) = &begun {
            assert!(name.starts_with(&format!(".{clone}.")));
        }
        accepted |= layer.is_some() || begun.is_some();
    }
    accepted
}

/// What the holder of a clone's lock has written into its file.
pub fn lock_holder(text: &str) -> bool {
    lock::number_of(text).is_some()
}

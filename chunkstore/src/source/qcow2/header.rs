//! The header of a qcow2 file (QEMU's `docs/interop/qcow2.txt`), as far as opening needs it.
//!
//! It is checked here before imago sees the file: imago allocates what the header asks for and has no limit on
//! it, guesses the format of a backing file that has none recorded, and reads version 2 headers without their
//! extensions.

use super::super::host_file::HostFile;
use crate::error::{Error, Result};
use crate::format::limits::IMAGE_BYTES_MAX;

const MAGIC: &[u8; 4] = b"QFI\xfb";
const V2_HEADER_BYTES: usize = 72;
const V3_HEADER_BYTES: usize = 104;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const BACKING_NAME_BYTES_MAX: usize = 1023;
/// QEMU's own limit.
const L1_BYTES_MAX: u64 = 32 << 20;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_BYTES: usize = 48;

/// The incompatible features that the format defines, by bit.
const FEATURES: [&str; 5] = [
    "not closed cleanly (its dirty bit is set)",
    "marked as corrupt",
    "with an external data file",
    "with a compression type other than zlib",
    "with extended L2 entries",
];

/// The fields of a header that are needed here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size_bytes: u64,
    pub(super) cluster_bytes: u64,
    /// Bytes of the first-level table, which is kept in memory.
    pub(super) l1_bytes: u64,
    pub(super) backing: Option<Backing>,
    /// Why imago can't read the image, if it can't.
    pub(super) unsupported: Option<String>,
}

/// A backing file as the header names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

impl Header {
    /// Reads and checks the header of `file`.
    pub(super) fn read(file: &HostFile) -> Result<Self> {
        let mut fixed = vec![0; V3_HEADER_BYTES];
        let fixed_bytes = file.read_up_to(&mut fixed, 0)?;
        let cluster_bytes = Fields(&fixed[..fixed_bytes]).cluster_bytes().map_err(|what| invalid(file, what))?;
        let mut first_cluster = vec![0; cluster_bytes as usize];
        let first_bytes = file.read_up_to(&mut first_cluster, 0)?;
        // A truncated file has less than that.
        first_cluster.truncate(first_bytes);
        let header = Self::parse(&first_cluster).map_err(|what| invalid(file, what))?;
        header.check_l1(file, Fields(&first_cluster).u64(40).map_err(|what| invalid(file, what))?)?;
        Ok(header)
    }

    /// Parses the first cluster of a file, or all of the file if it is shorter.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fields = Fields(bytes);
        let cluster_bytes = fields.cluster_bytes()?;
        let version = fields.u32(4)?;
        let size_bytes = fields.u64(24)?;
        if size_bytes > IMAGE_BYTES_MAX {
            return Err(format!("its virtual size of {size_bytes} bytes exceeds {IMAGE_BYTES_MAX}"));
        }
        let header_bytes = if version == 2 { V2_HEADER_BYTES } else { fields.u32(100)? as usize };
        if version == 3 && header_bytes < V3_HEADER_BYTES {
            return Err(format!("its header claims a length of {header_bytes} bytes"));
        }
        let l1_bytes = u64::from(fields.u32(36)?) * 8;
        check_l1_length(l1_bytes, size_bytes, cluster_bytes)?;
        let backing_name = fields.backing_name()?;
        // In the oldest images the name follows the header at once, without an end of extensions.
        let name_offset = fields.u64(8)?;
        let extensions_end = if version == 2 && name_offset != 0 { name_offset } else { u64::MAX };
        let backing_format = fields.backing_format(header_bytes, extensions_end)?;
        Ok(Self {
            size_bytes,
            cluster_bytes,
            l1_bytes,
            backing: backing_name.map(|name| Backing { name, format: backing_format }),
            unsupported: fields.unsupported(version)?,
        })
    }

    /// The table must lie in the file, so that the file's size bounds the allocation.
    fn check_l1(&self, file: &HostFile, l1_offset: u64) -> Result<()> {
        let end = l1_offset.checked_add(self.l1_bytes);
        let file_bytes = file.current_size_bytes()?;
        if l1_offset.is_multiple_of(self.cluster_bytes)
            && end.is_some_and(|end| end <= file_bytes.next_multiple_of(self.cluster_bytes))
        {
            return Ok(());
        }
        Err(invalid(file, format!("its first-level table at {l1_offset} does not lie in the file")))
    }
}

fn invalid(file: &HostFile, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("{} is not a sound qcow2 image: {what}", file.name()))
}

fn check_l1_length(l1_bytes: u64, size_bytes: u64, cluster_bytes: u64) -> Result<(), String> {
    // One entry covers an L2 table, which has one cluster of 8-byte entries.
    let bytes_per_entry = cluster_bytes * (cluster_bytes / 8);
    let needed_bytes = size_bytes.div_ceil(bytes_per_entry) * 8;
    if l1_bytes > L1_BYTES_MAX || l1_bytes < needed_bytes {
        return Err(format!("its first-level table has {l1_bytes} bytes where {needed_bytes} are needed"));
    }
    Ok(())
}

/// Big-endian fields at fixed offsets, none of them trusted to be there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&self, offset: usize, length: usize) -> Result<&'a [u8], String> {
        let end = offset.checked_add(length);
        end.and_then(|end| self.0.get(offset..end)).ok_or_else(|| "its header is cut off".to_owned())
    }

    fn u32(&self, offset: usize) -> Result<u32, String> {
        let bytes = self.bytes(offset, 4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes were asked for")))
    }

    fn u64(&self, offset: usize) -> Result<u64, String> {
        Ok(u64::from(self.u32(offset)?) << 32 | u64::from(self.u32(offset + 4)?))
    }

    /// The size of a cluster, once magic and version are known to be right.
    fn cluster_bytes(&self) -> Result<u64, String> {
        if self.bytes(0, 4)? != MAGIC {
            return Err("it does not begin like one (--format raw takes a file as it is)".into());
        }
        match self.u32(4)? {
            2 | 3 => {}
            version => return Err(format!("its version is {version}, not 2 or 3")),
        }
        let bits = self.u32(20)?;
        if !CLUSTER_BITS.contains(&bits) {
            return Err(format!("its clusters are of 2^{bits} bytes"));
        }
        Ok(1 << bits)
    }

    fn backing_name(&self) -> Result<Option<String>, String> {
        let offset = self.u64(8)?;
        if offset == 0 {
            return Ok(None);
        }
        let length = self.u32(16)? as usize;
        if length == 0 || length > BACKING_NAME_BYTES_MAX {
            return Err(format!("its backing file's name claims a length of {length} bytes"));
        }
        let offset = usize::try_from(offset).map_err(|_| "its header is cut off".to_owned())?;
        match std::str::from_utf8(self.bytes(offset, length)?) {
            // Names are shown to operators: no control sequences for their terminals.
            Ok(name) if !name.contains(char::is_control) => Ok(Some(name.to_owned())),
            _ => Err("its backing file's name is not text".into()),
        }
    }

    /// Walks the header extensions, which begin after the header and end with one of type 0, or at `end`.
    fn backing_format(&self, header_bytes: usize, end: u64) -> Result<Option<String>, String> {
        let mut offset = header_bytes;
        let mut format = None;
        while (offset as u64) < end {
            let kind = self.u32(offset)?;
            let length = self.u32(offset + 4)? as usize;
            let data = self.bytes(offset + 8, length)?;
            match kind {
                EXTENSION_END => return Ok(format),
                EXTENSION_BACKING_FORMAT if format.is_some() => return Err("it records two backing formats".into()),
                EXTENSION_BACKING_FORMAT => format = Some(String::from_utf8_lossy(data).into_owned()),
                // imago panics on a part of an entry.
                EXTENSION_FEATURE_NAMES if !length.is_multiple_of(FEATURE_NAME_BYTES) => {
                    return Err("its table of feature names is cut off".into());
                }
                _ => {}
            }
            offset += 8 + length.next_multiple_of(8);
        }
        Ok(format)
    }

    fn unsupported(&self, version: u32) -> Result<Option<String>, String> {
        if self.u32(32)? != 0 {
            return Ok(Some("encrypted".into()));
        }
        let features = if version == 2 { 0 } else { self.u64(72)? };
        Ok((0..u64::BITS).find(|bit| features >> bit & 1 == 1).map(|bit| match FEATURES.get(bit as usize) {
            Some(name) => (*name).to_owned(),
            None => format!("with an unknown incompatible feature (bit {bit})"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 3 header of a 1 GiB disk with 64 KiB clusters, and these extensions.
    fn header(extensions: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(36, &2_u32.to_be_bytes());
        put(40, &(3_u64 << 16).to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        let mut offset = 104;
        for (kind, data) in extensions {
            put(offset, &kind.to_be_bytes());
            put(offset + 4, &(data.len() as u32).to_be_bytes());
            put(offset + 8, data);
            offset += 8 + data.len().next_multiple_of(8);
        }
        put(8, &2048_u64.to_be_bytes());
        put(16, &8_u32.to_be_bytes());
        put(2048, b"base.img");
        bytes
    }

    #[test]
    fn parses() {
        let bytes = header(&[(EXTENSION_FEATURE_NAMES, &[0; 96]), (7, b"x"), (EXTENSION_BACKING_FORMAT, b"raw")]);
        let expected = Header {
            size_bytes: 1 << 30,
            cluster_bytes: 1 << 16,
            l1_bytes: 16,
            backing: Some(Backing { name: "base.img".into(), format: Some("raw".into()) }),
            unsupported: None,
        };
        assert_eq!(Header::parse(&bytes), Ok(expected));
    }

    #[test]
    fn names_unsupported_features() {
        for (bit, words) in [(0, "cleanly"), (1, "corrupt"), (2, "data file"), (3, "zlib"), (4, "L2"), (9, "bit 9")] {
            let mut bytes = header(&[]);
            bytes[72..80].copy_from_slice(&(1_u64 << bit).to_be_bytes());
            let unsupported = Header::parse(&bytes).unwrap().unsupported.unwrap();
            assert!(unsupported.contains(words), "{unsupported}");
        }
        let mut bytes = header(&[]);
        bytes[35] = 2;
        assert_eq!(Header::parse(&bytes).unwrap().unsupported.unwrap(), "encrypted");
    }

    #[test]
    fn refuses_what_can_not_be() {
        let cases: [(usize, &[u8], &str); 11] = [
            (0, b"QCOW", "begin"),
            (7, &[1], "version"),
            (23, &[8], "clusters"),
            (23, &[22], "clusters"),
            (24, &[0x20], "virtual size"),
            (36, &[1], "first-level"),
            (39, &[1], "first-level"),
            (8, &[1], "cut off"),
            (18, &[9], "name"),
            (2050, b"\x1b", "not text"),
            (2050, b"\xff", "not text"),
        ];
        for (offset, value, words) in cases {
            let mut bytes = header(&[]);
            bytes[offset..offset + value.len()].copy_from_slice(value);
            let error = Header::parse(&bytes).unwrap_err();
            assert!(error.contains(words), "{offset}: {error}");
        }
        let half_an_entry = header(&[(EXTENSION_FEATURE_NAMES, &[0; 49])]);
        assert!(Header::parse(&half_an_entry).unwrap_err().contains("feature names"));
        let two_formats = header(&[(EXTENSION_BACKING_FORMAT, b"raw"), (EXTENSION_BACKING_FORMAT, b"qcow2")]);
        assert!(Header::parse(&two_formats).unwrap_err().contains("two backing formats"));
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = header(&[(EXTENSION_BACKING_FORMAT, b"raw")]);
        for length in 0..2056 {
            assert!(Header::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Header::parse(&bytes[..2056]).is_ok());
    }
}

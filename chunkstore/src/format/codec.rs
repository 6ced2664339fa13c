//! Encoding and decoding of payloads: raw, zstd, or zstd with another chunk as prefix (a delta).
//!
//! Deltas use zstd's `refPrefix` (the method of `zstd --patch-from`): the base is referenced, not copied, and the
//! match finder sees it as history. Contexts are reused; nothing here touches files. Only
//! [`RecordCodec`](crate::format::record_codec::RecordCodec) uses this.

use std::mem;

use zstd::zstd_safe::{CCtx, CParameter, DCtx, ResetDirective, compress_bound, get_error_name};

use crate::format::buffers;
use crate::format::limits::PLAIN_BYTES_MAX;

/// How a payload is encoded. The numbers are those of the record format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes themselves.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One zstd frame that needs the base's plain bytes as prefix.
    Delta = 2,
}

impl Codec {
    /// The codec with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd, Self::Delta].into_iter().find(|codec| *codec as u8 == number)
    }
}

/// Window of delta frames: base and chunk of 256 KiB each fit.
const DELTA_WINDOW_LOG: u32 = 20;
/// Hash table of the delta match finder; measured on nightly chunks of 64 KiB.
const DELTA_HASH_LOG: u32 = 17;
/// Largest base that fits the window together with its chunk.
pub(crate) const DELTA_BASE_BYTES_MAX: usize = 1 << (DELTA_WINDOW_LOG - 1);

/// A reusable zstd compressor.
pub(crate) struct Encoder {
    context: CCtx<'static>,
    level: i32,
    buffer: Vec<u8>,
}

impl Encoder {
    /// An encoder that compresses plain payloads at `level`.
    pub(crate) fn new(level: i32) -> Self {
        Self { context: CCtx::create(), level, buffer: Vec::new() }
    }

    /// Compresses plain payloads at another level from now on.
    pub(crate) fn set_level(&mut self, level: i32) {
        self.level = level;
    }

    /// Encodes without a base; keeps the bytes raw where compression would save less than a 32nd.
    pub(crate) fn plain(&mut self, bytes: &[u8]) -> (Codec, Vec<u8>) {
        let level = self.level;
        match self.compress(bytes, None, &[CParameter::CompressionLevel(level)]) {
            Some(frame) if frame.len() < bytes.len() - bytes.len() / 32 => (Codec::Zstd, frame.to_vec()),
            _ => (Codec::Raw, bytes.to_vec()),
        }
    }

    /// Encodes against a base if that is clearly smaller than [`Encoder::plain`]'s result, which it returns otherwise.
    pub(crate) fn against(&mut self, bytes: &[u8], base: &[u8]) -> (Codec, Vec<u8>) {
        let Some(delta) = self.delta(bytes, base) else { return self.plain(bytes) };
        // A delta this small is never beaten by compressing alone; finding out would cost as much again.
        if delta.len() < bytes.len() / 16 {
            return (Codec::Delta, delta);
        }
        let (codec, plain) = self.plain(bytes);
        if is_clearly_smaller(&delta, plain.len()) { (Codec::Delta, delta) } else { (codec, plain) }
    }

    /// A delta against a base, if it is clearly smaller than a payload of `plain_payload_bytes`.
    pub(crate) fn smaller_than(&mut self, bytes: &[u8], base: &[u8], plain_payload_bytes: usize) -> Option<Vec<u8>> {
        self.delta(bytes, base).filter(|delta| is_clearly_smaller(delta, plain_payload_bytes))
    }

    fn delta(&mut self, bytes: &[u8], base: &[u8]) -> Option<Vec<u8>> {
        if base.len() > DELTA_BASE_BYTES_MAX || bytes.len() > DELTA_BASE_BYTES_MAX {
            return None;
        }
        let parameters = [
            CParameter::CompressionLevel(1),
            CParameter::WindowLog(DELTA_WINDOW_LOG),
            CParameter::HashLog(DELTA_HASH_LOG),
        ];
        self.compress(bytes, Some(base), &parameters).map(<[u8]>::to_vec)
    }

    /// Compresses into the reused buffer; `None` if zstd declines.
    fn compress(&mut self, bytes: &[u8], base: Option<&[u8]>, parameters: &[CParameter]) -> Option<&[u8]> {
        self.context.reset(ResetDirective::SessionAndParameters).ok()?;
        for &parameter in parameters {
            self.context.set_parameter(parameter).ok()?;
        }
        if let Some(base) = base {
            // SAFETY: only the lifetime changes. zstd forgets a prefix when its frame ends, and the reset above
            // clears it if the frame failed, so the context never reads `base` after this call.
            self.context.ref_prefix(unsafe { mem::transmute::<&[u8], &'static [u8]>(base) }).ok()?;
        }
        self.buffer.clear();
        self.buffer.reserve(compress_bound(bytes.len()));
        let result = self.context.compress2(&mut self.buffer, bytes);
        if base.is_some() {
            self.context.reset(ResetDirective::SessionAndParameters).ok()?;
        }
        result.ok()?;
        Some(&self.buffer)
    }
}

/// Whether a delta is worth the dependence on its base.
fn is_clearly_smaller(delta: &[u8], plain_payload_bytes: usize) -> bool {
    delta.len() < plain_payload_bytes - plain_payload_bytes / 4
}

/// A reusable zstd decompressor.
pub(crate) struct Decoder {
    context: DCtx<'static>,
}

impl Decoder {
    /// A decoder.
    pub(crate) fn new() -> Self {
        Self { context: DCtx::create() }
    }

    /// Decodes a payload of exactly `plain_bytes` plain bytes. The result is *not* verified against any id.
    ///
    /// # Errors
    /// What is wrong, in words, if the payload is malformed, or a delta comes without its base.
    pub(crate) fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        plain_bytes: usize,
        base: Option<&[u8]>,
    ) -> Result<Vec<u8>, String> {
        let mut buffer = buffers::take(plain_bytes.min(PLAIN_BYTES_MAX));
        self.decode_into(codec, payload, plain_bytes, base, &mut buffer)?;
        if codec == Codec::Raw {
            buffer.extend_from_slice(payload);
        }
        Ok(buffer)
    }

    /// [`Decoder::decode`] without a copy or an allocation: the result is in `buffer`, or is the raw payload itself.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub(crate) fn decode_into<'a>(
        &mut self,
        codec: Codec,
        payload: &'a [u8],
        plain_bytes: usize,
        base: Option<&[u8]>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], String> {
        if plain_bytes > PLAIN_BYTES_MAX {
            return Err(format!("plain length {plain_bytes} is over the limit"));
        }
        let plain = match codec {
            Codec::Raw => payload,
            Codec::Zstd => self.decompress(payload, plain_bytes, None, buffer)?,
            Codec::Delta => self.decompress(payload, plain_bytes, Some(base.ok_or("its base is missing")?), buffer)?,
        };
        if plain.len() == plain_bytes {
            Ok(plain)
        } else {
            Err(format!("decodes to {} bytes instead of {plain_bytes}", plain.len()))
        }
    }

    fn decompress<'a>(
        &mut self,
        frame: &[u8],
        plain_bytes: usize,
        base: Option<&[u8]>,
        plain: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], String> {
        let describe = |code| format!("zstd: {}", get_error_name(code));
        self.context.reset(ResetDirective::SessionAndParameters).map_err(describe)?;
        if let Some(base) = base {
            // SAFETY: only the lifetime changes; the prefix is dropped by the reset below, before `base` can end.
            self.context.ref_prefix(unsafe { mem::transmute::<&[u8], &'static [u8]>(base) }).map_err(describe)?;
        }
        plain.clear();
        plain.reserve_exact(plain_bytes);
        let result = self.context.decompress(plain, frame).map_err(describe);
        if base.is_some() {
            self.context.reset(ResetDirective::SessionAndParameters).map_err(describe)?;
        }
        result.map(|_| plain.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn plain_round_trip_and_raw_fallback() {
        let mut encoder = Encoder::new(1);
        for (bytes, codec) in [(vec![7; 70_000], Codec::Zstd), (noise(70_000, 1), Codec::Raw), (vec![1], Codec::Raw)] {
            let (chosen, payload) = encoder.plain(&bytes);
            assert_eq!(chosen, codec);
            assert!(payload.len() <= bytes.len());
            assert_eq!(Decoder::new().decode(codec, &payload, bytes.len(), None).unwrap(), bytes);
        }
    }

    #[test]
    fn a_changed_page_makes_a_small_delta() {
        let base = noise(64 << 10, 2);
        let mut changed = base.clone();
        changed[8192..12288].copy_from_slice(&noise(4096, 3));
        let mut encoder = Encoder::new(1);
        let (codec, payload) = encoder.against(&changed, &base);
        assert_eq!(codec, Codec::Delta);
        assert!(payload.len() < 4096 + 256, "{}", payload.len());
        let mut decoder = Decoder::new();
        assert_eq!(decoder.decode(codec, &payload, changed.len(), Some(&base)).unwrap(), changed);
        assert!(decoder.decode(codec, &payload, changed.len(), None).is_err());
        // The contexts are clean again: plain frames do not depend on the base.
        let (codec, payload) = encoder.plain(&vec![3; 5000]);
        assert_eq!(decoder.decode(codec, &payload, 5000, None).unwrap(), vec![3; 5000]);
    }

    #[test]
    fn an_unrelated_base_is_not_used() {
        assert_eq!(Encoder::new(1).against(&noise(64 << 10, 4), &noise(64 << 10, 5)).0, Codec::Raw);
    }

    #[test]
    fn wrong_payloads_are_errors() {
        let (_, payload) = Encoder::new(1).plain(&vec![7; 70_000]);
        let mut decoder = Decoder::new();
        assert!(decoder.decode(Codec::Zstd, &payload, 69_999, None).is_err());
        assert!(decoder.decode(Codec::Zstd, &payload, 70_001, None).is_err());
        assert!(decoder.decode(Codec::Zstd, &payload[..payload.len() - 1], 70_000, None).is_err());
        assert!(decoder.decode(Codec::Zstd, b"", 10, None).is_err());
        assert!(decoder.decode(Codec::Raw, b"ab", 1, None).is_err());
        assert!(decoder.decode(Codec::Zstd, &payload, usize::MAX, None).is_err());
    }
}

//! Changes to valid inputs as damage and malice make them: flipped bits, cuts, splices, tampered lengths and numbers.

use crate::images::Rng;

/// Most changes to one input.
const CHANGES_MAX: u64 = 4;
/// Most bytes that one change moves or adds.
const RUN_BYTES_MAX: u64 = 256;
/// Numbers at the edges of types and limits; their neighbours are tried, too.
const EDGES: [u64; 16] = [
    0,
    1 << 7,
    1 << 8,
    1 << 12,
    1 << 15,
    1 << 16,
    1 << 19,
    1 << 20,
    2 << 20,
    1 << 22,
    1 << 24,
    1 << 30,
    1 << 31,
    1 << 32,
    1 << 60,
    1 << 63,
];
const TEXT_NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "1e20",
    "nan",
    "0x7f",
    "\"\"",
];

/// The input that a seed makes of valid ones.
pub fn mutate(examples: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = pick(&mut rng, examples).clone();
    for _ in 0..=rng.below(CHANGES_MAX) {
        change(&mut bytes, examples, &mut rng);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, examples: &[Vec<u8>], rng: &mut Rng) {
    match rng.below(9) {
        0 | 1 => flip(bytes, rng),
        2 | 3 => tamper_number(bytes, rng),
        4 => tamper_text_number(bytes, rng),
        5 => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
        6 => splice(bytes, pick::<Vec<u8>>(rng, examples), rng),
        7 => remove(bytes, rng),
        _ => insert(bytes, rng),
    }
}

fn pick<'a, T>(rng: &mut Rng, items: &'a [T]) -> &'a T {
    &items[rng.below(items.len() as u64) as usize]
}

fn place(bytes: &[u8], rng: &mut Rng) -> usize {
    rng.below(bytes.len() as u64 + 1) as usize
}

fn flip(bytes: &mut [u8], rng: &mut Rng) {
    let at = place(bytes, rng);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.below(8);
    }
}

/// Overwrites a field of 1, 2, 4 or 8 bytes, in either order, with a number at an edge or near what was there.
fn tamper_number(bytes: &mut [u8], rng: &mut Rng) {
    let width = 1 << rng.below(4);
    // Fields lie at multiples of four more often than not.
    let at = if rng.below(2) == 0 { place(bytes, rng) } else { place(bytes, rng) / 4 * 4 };
    let edge = pick(rng, &EDGES).wrapping_add(rng.below(3)).wrapping_sub(1);
    let number = if rng.below(4) == 0 { bytes.len() as u64 } else { edge };
    if let Some(field) = bytes.get_mut(at..at + width) {
        if rng.below(2) == 0 {
            field.copy_from_slice(&number.to_le_bytes()[..width]);
        } else {
            field.copy_from_slice(&number.to_be_bytes()[8 - width..]);
        }
    }
}

/// Replaces a run of digits.
fn tamper_text_number(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let from = place(bytes, rng);
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    bytes.splice(start..start + digits, pick(rng, &TEXT_NUMBERS).bytes());
}

/// The beginning of one input and the end of another.
fn splice(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    bytes.truncate(place(bytes, rng));
    bytes.extend_from_slice(&other[place(other, rng)..]);
}

fn remove(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let at = place(bytes, rng);
    let end = bytes.len().min(at + rng.below(RUN_BYTES_MAX) as usize);
    bytes.drain(at..end);
}

/// Repeats a run, or adds noise.
fn insert(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let at = place(bytes, rng);
    let count = 1 + rng.below(RUN_BYTES_MAX) as usize;
    let run = if rng.below(2) == 0 { rng.noise(count) } else { bytes[at..bytes.len().min(at + count)].to_vec() };
    let to = place(bytes, rng);
    bytes.splice(to..to, run);
}

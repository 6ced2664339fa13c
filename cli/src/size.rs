//! Sizes as people write them.

use std::num::NonZeroU64;

/// Reads `65536`, `64K` or `64KiB`; all units are powers of 1024.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1 << 40),
        _ => None,
    };
    let size = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    size.ok_or_else(|| "not a size; use a number of bytes such as 65536 or 64KiB".to_owned())
}

/// [`parse`] for sizes below 4 GiB.
pub(crate) fn parse_u32(text: &str) -> Result<u32, String> {
    parse(text)?.try_into().map_err(|_| "too large".to_owned())
}

/// [`parse`] for sizes greater than zero.
pub(crate) fn parse_positive(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse(text)?).ok_or_else(|| "must not be zero".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [("0", 0), ("65536", 65536), ("64K", 65536), ("64 KiB", 65536), ("1m", 1 << 20)] {
            assert_eq!(parse_u32(text), Ok(size), "{text}");
        }
        assert_eq!(parse("200GiB"), Ok(200 << 30));
        for bad in ["", "K", "-1", "64kb", "1.5M", "5000M", "99999999999", "６4"] {
            assert!(parse_u32(bad).is_err(), "{bad}");
        }
        assert!(
            parse("99999999999999999999").is_err() && parse("99999999999T").is_err() && parse_positive("0").is_err()
        );
    }
}

//! Patterns of image names.

use std::fmt;
use std::str::FromStr;

use chunkstore::catalog::ImageName;
use chunkstore::{Error, Result};
use serde::{Deserialize, Serialize};

/// Longest pattern, as the longest name.
const BYTES_MAX: usize = 128;

/// A glob over image names: `*` matches any text, `?` any one character, everything else itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePattern(String);

impl ImagePattern {
    /// Whether the pattern matches the whole name.
    pub fn matches(&self, image: &ImageName) -> bool {
        matches(self.0.as_bytes(), image.as_ref().as_bytes())
    }
}

/// It backtracks only to the last `*`, so the time is at most the product of the lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut done) = (0, 0);
    // Where to continue if the last `*` takes one more character.
    let mut retry = None;
    while done < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                retry = Some((at, done));
            }
            Some(c) if *c == b'?' || *c == name[done] => (at, done) = (at + 1, done + 1),
            _ => {
                let Some((after_star, taken)) = retry else { return false };
                (at, done) = (after_star, taken + 1);
                retry = Some((at, done));
            }
        }
    }
    pattern[at..].iter().all(|c| *c == b'*')
}

impl TryFrom<String> for ImagePattern {
    type Error = Error;

    fn try_from(pattern: String) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?".contains(&byte);
        if !pattern.is_empty() && pattern.len() <= BYTES_MAX && pattern.bytes().all(allowed) {
            return Ok(Self(pattern));
        }
        let rule = "letters, digits, '.', '_', '-', and '*' and '?' for any text and any character, are allowed";
        Err(Error::invalid(format!("not a pattern of images' names: {pattern:?}: {rule}")))
    }
}

impl FromStr for ImagePattern {
    type Err = Error;

    fn from_str(pattern: &str) -> Result<Self> {
        pattern.to_owned().try_into()
    }
}

impl From<ImagePattern> for String {
    fn from(pattern: ImagePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let cases = [
            ("web01", "web01", true),
            ("web01", "web011", false),
            ("web", "web01", false),
            ("*", "x", true),
            ("web*", "web", true),
            ("web*", "web01", true),
            ("web*", "Web01", false),
            ("*01", "web0101", true),
            ("*01", "web010", false),
            ("web?", "web1", true),
            ("web?", "web", false),
            ("web??", "web1", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**x**", "x", true),
            ("a.c", "abc", false),
        ];
        for (pattern, name, expected) in cases {
            let pattern: ImagePattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&name.parse().unwrap()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let pattern: ImagePattern = "*a".repeat(64).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(63).parse().unwrap()));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(127)).parse().unwrap()));
    }

    #[test]
    fn patterns_that_match_no_name_are_refused() {
        for bad in ["", "a/b", "[ab]", "a b", "{a,b}", "ä", &"x".repeat(129)] {
            assert!(matches!(bad.parse::<ImagePattern>(), Err(Error::Invalid { .. })), "{bad}");
        }
    }
}

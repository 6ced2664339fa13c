//! Labels: `key=value` pairs that users give to snapshots and select them by.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::format::limits::{LABEL_BYTES_MAX, LABELS_MAX};

/// A label's key and value.
pub type Label = (String, String);

/// Reads `key=value`; the value may be empty and may contain `=`.
///
/// # Errors
/// [`Error::Invalid`], saying what is allowed.
pub fn parse(text: &str) -> Result<Label> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::invalid(format!("not a label: {text:?}: write key=value, such as os=debian12")))?;
    check_key(key)?;
    check_text("the value of a label", value)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Checks a snapshot's labels.
///
/// # Errors
/// [`Error::Invalid`] if they are too many, or one is not allowed.
pub fn check(labels: &BTreeMap<String, String>) -> Result<()> {
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid(format!("{} labels, where at most {LABELS_MAX} are possible", labels.len())));
    }
    labels.iter().try_for_each(|(key, value)| {
        check_key(key)?;
        check_text("the value of a label", value)
    })
}

pub(super) fn check_key(key: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if !key.is_empty() && key.len() <= LABEL_BYTES_MAX && key.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "not a label's key: {key:?}: 1 to {LABEL_BYTES_MAX} letters, digits, '.', '_', '/' or '-' are allowed"
    )))
}

/// Checks short text that is shown on terminals and in tables, such as a group's name.
///
/// # Errors
/// [`Error::Invalid`] if it is too long or has control characters.
pub fn check_text(what: &str, text: &str) -> Result<()> {
    if text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} may have up to {LABEL_BYTES_MAX} bytes and no control characters: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_or_refused_with_the_reason() {
        let good = [("os=debian12", "os", "debian12"), ("a=", "a", ""), ("a/b.c_d-e=x=y z", "a/b.c_d-e", "x=y z")];
        for (text, key, value) in good {
            assert_eq!(parse(text).unwrap(), (key.to_owned(), value.to_owned()));
        }
        let (long_key, long_value) = (format!("{}=v", "k".repeat(257)), format!("k={}", "v".repeat(257)));
        for bad in ["", "os", "=v", "a b=v", "ä=v", "a\n=v", "a=v\n", "a=\u{1b}[31m", "a=\0", &long_key, &long_value] {
            assert!(matches!(parse(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
    }

    #[test]
    fn their_number_is_limited() {
        let labels = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
        assert!(check(&labels(LABELS_MAX)).is_ok());
        assert!(check(&labels(LABELS_MAX + 1)).is_err());
    }
}

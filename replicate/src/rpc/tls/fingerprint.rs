//! The fingerprint of a server's key.

use std::fmt;
use std::str::FromStr;

use chunkstore::{Error, Result};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};

use crate::rpc::auth::{from_hex, hex};

const PREFIX: &str = "sha256:";

/// SHA-256 of a certificate's `SubjectPublicKeyInfo` (as RFC 7469 pins keys), shown as `sha256:` and hex digits. A
/// renewed certificate of the same key has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; SHA256_OUTPUT_LEN]);

impl Fingerprint {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(Self(digest(&SHA256, &key).as_ref().try_into().expect("SHA-256 has 32 bytes")))
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digest = text.strip_prefix(PREFIX).and_then(|digits| from_hex(&digits.to_ascii_lowercase()));
        digest.map(Self).ok_or_else(|| {
            Error::invalid(format!("not a key's fingerprint: {text:?}: {PREFIX} and 64 hex digits are needed"))
        })
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_shown() {
        let text = format!("sha256:{}", "0af1".repeat(16));
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text);
        assert_eq!(format!("sha256:{}", "0AF1".repeat(16)).parse::<Fingerprint>().unwrap().to_string(), text);
        for bad in ["", "sha256:", "0af1", &text[7..], &text[..70], &format!("{text}0"), &text.replace('a', "g")] {
            assert!(matches!(bad.parse::<Fingerprint>(), Err(Error::Invalid { .. })), "{bad}");
        }
    }
}

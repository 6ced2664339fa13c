//! A token's text, its hash, and the places where a client looks for it.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::str::FromStr;

use chunkstore::{Error, Result};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::rpc::private_file::{self, KeepOut};

const PREFIX: &str = "vms_";
const RANDOM_BYTES: usize = 32;

/// A bearer secret: `vms_` and 64 hex digits of random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new one, from the system's random bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] if the system has none.
    pub fn generate() -> Result<Self> {
        let mut random = [0; RANDOM_BYTES];
        SystemRandom::new().fill(&mut random).map_err(|_| Error::refused("the system gives no random bytes"))?;
        Ok(Self(format!("{PREFIX}{}", hex(&random))))
    }

    /// The secret itself, for its holder.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The hash that a store keeps. A plain hash is enough, because 32 random bytes can't be guessed.
    pub fn hash(&self) -> TokenHash {
        let hash = digest(&SHA256, self.0.as_bytes());
        TokenHash(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Reads a token from a file that holds nothing else.
    ///
    /// # Errors
    /// [`Error::Refused`] if others may read it; [`Error::Invalid`] if it holds no token.
    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        let bytes = private_file::read(path, KeepOut::GroupAndOthers)?;
        let text = str::from_utf8(&bytes).unwrap_or_default();
        text.trim().parse().map_err(|_| Error::invalid(format!("{} holds no token", path.display())))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_token = text.strip_prefix(PREFIX).is_some_and(|digits| from_hex::<RANDOM_BYTES>(digits).is_some());
        if is_token { Ok(Self(text.to_owned())) } else { Err(Error::invalid("that is no token of a store")) }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash([u8; SHA256_OUTPUT_LEN]);

impl TryFrom<String> for TokenHash {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        from_hex(&text).map(Self).ok_or_else(|| Error::invalid("not the SHA-256 of a token: 64 hex digits are needed"))
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hex(&hash.0)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(hidden)")
    }
}

/// The token that a client uses: from the file named on the command line, else from the environment, else from the file
/// configured for the remote; otherwise none.
///
/// # Errors
/// [`Error::Refused`] if others may read a file; [`Error::Invalid`] if it or the environment holds no token.
pub fn client_token(given: Option<&Path>, env: Option<&str>, configured: Option<&Path>) -> Result<Option<Token>> {
    match (given, env, configured) {
        (Some(path), _, _) | (None, None, Some(path)) => Token::from_file(path).map(Some),
        (None, Some(text), _) => {
            text.trim().parse().map(Some).map_err(|_| Error::invalid("VMSTORE_TOKEN holds no token"))
        }
        (None, None, None) => Ok(None),
    }
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Exactly as many bytes from lower-case hex digits.
pub(crate) fn from_hex<const BYTES: usize>(digits: &str) -> Option<[u8; BYTES]> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * BYTES || !digits.bytes().all(is_digit) {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_random_and_not_shown() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert!(a != b && a.hash() != b.hash());
        assert_eq!(a.text().len(), 68);
        assert_eq!(a.text().parse::<Token>().unwrap(), a);
        assert!(!format!("{a:?}").contains(&a.text()[4..]));
    }

    #[test]
    fn a_token_hashes_as_sha256sum_does() {
        let token: Token = format!("vms_{}", "0".repeat(64)).parse().unwrap();
        let known = "b9803e4cf3b61e131b645ccd8b9b590a4d61aad16947a5f394465971fda99453";
        assert_eq!(String::from(token.hash()), known);
        assert_eq!(TokenHash::try_from(known.to_owned()).unwrap(), token.hash());
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let token = Token::generate().unwrap();
        let upper = token.text().to_uppercase();
        for bad in ["", "vms_", "x", &token.text()[4..], &token.text()[..67], &upper, &format!("{}0", token.text())] {
            let error = bad.parse::<Token>().unwrap_err().to_string();
            assert!(bad.len() < 2 || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_client_takes_the_first_source_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<_> = (0..3).map(|_| Token::generate().unwrap()).collect();
        let file = |name: &str, token: &Token| {
            let path = dir.path().join(name);
            private_file::replace(&path, format!("{}\n", token.text()).as_bytes()).unwrap();
            path
        };
        let (given, configured) = (file("given", &tokens[0]), file("configured", &tokens[2]));
        let env = Some(tokens[1].text());
        let cases = [
            (Some(&given), env, Some(&configured), Some(0)),
            (None, env, Some(&configured), Some(1)),
            (None, None, Some(&configured), Some(2)),
            (None, None, None, None),
        ];
        for (given, env, configured, expected) in cases {
            let found = client_token(given.map(|path| &**path), env, configured.map(|path| &**path)).unwrap();
            assert_eq!(found.as_ref(), expected.map(|at: usize| &tokens[at]));
        }
    }

    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, Token::generate().unwrap().text()).unwrap();
        for (mode, is_private) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match Token::from_file(&path) {
                Ok(_) => assert!(is_private, "{mode:o}"),
                Err(error) => assert!(!is_private && error.to_string().contains("chmod 600"), "{mode:o}: {error}"),
            }
        }
        private_file::replace(&path, b"hunter2").unwrap();
        assert!(!Token::from_file(&path).unwrap_err().to_string().contains("hunter2"));
        assert!(!client_token(None, Some("hunter2"), None).unwrap_err().to_string().contains("hunter2"));
    }
}

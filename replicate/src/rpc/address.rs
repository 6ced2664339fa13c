//! Addresses of stores, as written on a command line or in `remotes.toml`.
//!
//! Addresses come from users, and parts of them are passed to other programs: a host or user that ssh could take for an
//! option, and control characters anywhere, are refused here.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use chunkstore::{Error, Result};
use serde::{Deserialize, Serialize};

/// The default port of a store's owner under TLS.
pub const TLS_PORT: u16 = 7878;
/// Longest host or user.
const HOST_BYTES_MAX: usize = 253;
/// Prefix of a path at an ssh host that is relative to the user's home directory.
const HOME: &str = "/~/";

/// The address of a store or its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A store's directory on this machine: `/srv/vmstore`, `./store`, `a/b`.
    Path(PathBuf),
    /// A socket on this machine: `unix:/run/vmstore.sock`.
    Unix(PathBuf),
    /// A store's directory at a host with ssh: `ssh://backup@site-b/srv/vmstore`.
    Ssh(SshAddress),
    /// An owner that listens with TLS: `tls://site-b`.
    Tls(HostPort),
    /// An owner that listens without: `tcp://127.0.0.1:7879`.
    Tcp(SocketAddr),
}

/// A store at a host with ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAddress {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    path: String,
}

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl Address {
    /// Whether a text is a remote's name rather than an address: it has no slash and no scheme.
    pub fn is_name(text: &str) -> bool {
        !text.is_empty() && !text.contains(['/', ':']) && !text.starts_with('.')
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("control characters are not allowed".into());
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err("it names no socket".into()) } else { Ok(Self::Unix(path.into())) };
        }
        match text.split_once("://") {
            Some(("ssh", rest)) => SshAddress::parse(rest).map(Self::Ssh),
            Some(("tls", rest)) => HostPort::parse(rest, Some(TLS_PORT)).map(Self::Tls),
            Some(("tcp", rest)) => parse_socket(rest).map(Self::Tcp),
            Some((scheme, _)) if !scheme.contains('/') => {
                Err(format!("{scheme:?} is none of the schemes ssh, tls, tcp and unix"))
            }
            _ => parse_path(text).map(Self::Path),
        }
    }
}

fn parse_socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, as in tcp://127.0.0.1:7879".to_owned())
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if Address::is_name(text) {
        return Err("no remote has this name; a directory is written ./NAME".to_owned());
    }
    let first = text.split('/').next().unwrap_or_default();
    if text.is_empty() || first.contains(':') {
        return Err("write ssh://HOST/PATH for a store elsewhere, ./PATH for a directory here".to_owned());
    }
    Ok(text.into())
}

impl SshAddress {
    /// The user at the host; ssh's own choice if not given.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The host, or its name in ssh's configuration. Never begins with `-`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; ssh's own choice if not given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The store's directory there; relative to the user's home if it does not begin with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn parse(text: &str) -> Result<Self, String> {
        let at = text.find('/').ok_or("it names no directory: write ssh://HOST/PATH")?;
        let (authority, path) = text.split_at(at);
        // The rest must not look like an absolute path.
        let path = path.strip_prefix(HOME).map_or(path, |relative| relative.trim_start_matches('/'));
        if path.is_empty() || path == "/" {
            return Err("it names no directory: write ssh://HOST/PATH".into());
        }
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(checked_word("user", user)?.to_owned()), host),
            None => (None, authority),
        };
        let (host, port) = split_port(host)?;
        if port == Some(0) {
            return Err("port 0 is no port to connect to".into());
        }
        Ok(Self { user, host, port, path: path.to_owned() })
    }
}

impl HostPort {
    /// A name or an IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (host, port) = split_port(text.strip_suffix('/').unwrap_or(text))?;
        let port = port.or(default_port).ok_or("it has no port")?;
        Ok(Self { host, port })
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn split_port(text: &str) -> Result<(String, Option<u16>), String> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = bracketed.unwrap_or_else(|| text.split_at(text.find(':').unwrap_or(text.len())));
    let host = if bracketed.is_some() { checked_ipv6(host)? } else { checked_word("host", host)? };
    let port = match port.strip_prefix(':') {
        Some(digits) => Some(parse_port(digits)?),
        None if port.is_empty() => None,
        None => return Err(format!("{port:?} after the host is no port")),
    };
    Ok((host.to_owned(), port))
}

/// For a server, port 0 lets the system choose.
fn parse_port(digits: &str) -> Result<u16, String> {
    let port = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    port.ok_or_else(|| format!("{digits:?} is no port; an IPv6 address is written in brackets"))
}

fn checked_ipv6(host: &str) -> Result<&str, String> {
    let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
    let is_zone = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && zone.bytes().all(is_zone) {
        return Ok(host);
    }
    Err(format!("{host:?} is no IPv6 address"))
}

/// A word that no program takes for an option or splits.
fn checked_word<'a>(what: &str, word: &'a str) -> Result<&'a str, String> {
    let is_allowed = |c: char| !c.is_control() && !c.is_whitespace() && !"/@:[]\\'\"`$;&|<>(){}*?!#%".contains(c);
    if word.is_empty() {
        return Err(format!("its {what} is missing"));
    }
    if word.starts_with('-') || word.len() > HOST_BYTES_MAX || !word.chars().all(is_allowed) {
        return Err(format!("{word:?} is no {what}"));
    }
    Ok(word)
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|reason| Error::invalid(format!("not an address of a store: {text:?}: {reason}")))
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => {
                let path = path.to_string_lossy();
                let is_understood = Self::parse(&path).is_ok_and(|address| matches!(address, Self::Path(_)));
                write!(f, "{}{path}", if is_understood { "" } else { "./" })
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Ssh(ssh) => write!(f, "ssh://{ssh}"),
            Self::Tls(host_port) => write!(f, "tls://{host_port}"),
            Self::Tcp(socket) => write!(f, "tcp://{socket}"),
        }
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write_host(f, &self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}{}", if self.path.starts_with('/') { "" } else { HOME }, self.path)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown() {
        let cases = [
            ("/srv/x", "/srv/x"),
            ("./x", "./x"),
            ("..", ".."),
            ("x/y:z", "x/y:z"),
            ("./a:b/c", "./a:b/c"),
            ("/a b/'ü", "/a b/'ü"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:x.sock", "unix:x.sock"),
            ("ssh://host/srv/x", "ssh://host/srv/x"),
            ("ssh://me@host:2222/srv/a b'c", "ssh://me@host:2222/srv/a b'c"),
            ("ssh://me@[fe80::1%eth0]:22/x", "ssh://me@[fe80::1%eth0]:22/x"),
            ("ssh://host/~/store", "ssh://host/~/store"),
            ("ssh://host/~//~/store", "ssh://host/~/~/store"),
            ("tls://site-b", "tls://site-b:7878"),
            ("tls://site_b.example:1/", "tls://site_b.example:1"),
            ("tls://[::1]", "tls://[::1]:7878"),
            ("tls://10.0.0.1:65535", "tls://10.0.0.1:65535"),
            ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
            ("tcp://[::1]:80", "tcp://[::1]:80"),
        ];
        for (text, shown) in cases {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
            assert_eq!(serde_json::from_str::<Address>(&serde_json::to_string(&address).unwrap()).unwrap(), address);
        }
        for path in ["x", "a:b/c", "tls://x"] {
            let address = Address::Path(path.into());
            assert_eq!(address.to_string().parse::<Address>().unwrap(), Address::Path(format!("./{path}").into()));
        }
    }

    #[test]
    fn parts_are_as_written() {
        let Address::Ssh(ssh) = "ssh://b@c:7/~/x/y".parse().unwrap() else { panic!() };
        assert_eq!((ssh.user(), ssh.host(), ssh.port(), ssh.path()), (Some("b"), "c", Some(7), "x/y"));
        let Address::Tls(tls) = "tls://[::1]".parse().unwrap() else { panic!() };
        assert_eq!((tls.host(), tls.port()), ("::1", TLS_PORT));
    }

    #[test]
    fn ambiguous_addresses_are_refused() {
        let long = format!("tls://{}", "x".repeat(300));
        let cases = [
            "",
            "web01",
            "http://x/y",
            "ssh:/x",
            "me@host:/srv/x",
            "host:/x",
            "host:22/x",
            "unix:",
            "/a\nb",
            "/a\0",
            "ssh://host",
            "ssh://host/",
            "ssh://host/~/",
            "ssh://host/~//",
            "ssh:///x",
            "ssh://-oProxyCommand=x/y",
            "ssh://-u@host/x",
            "ssh://u:secret@host/x",
            "ssh://a@b@c/x",
            "ssh://@host/x",
            "ssh://ho st/x",
            "ssh://h\u{a0}st/x",
            "ssh://a$b/x",
            "ssh://host:/x",
            "ssh://host:0/x",
            "ssh://host:99999/x",
            "ssh://host:+1/x",
            "ssh://[host]/x",
            "ssh://[::1]x/x",
            "tls://",
            "tls://:7878",
            "tls://::1",
            "tls://host/path",
            "tls://me@host",
            "tls://[::1%]",
            "tls://host:70000",
            "tls://-x",
            "tcp://localhost:80",
            "tcp://127.0.0.1",
            "tcp://",
            &long,
        ];
        for text in cases {
            assert!(matches!(text.parse::<Address>(), Err(Error::Invalid { .. })), "{text:?} was taken");
        }
    }

    #[test]
    fn names_and_addresses_are_distinguished() {
        for (text, is_name) in [("web01", true), ("a@b", true), ("./x", false), (".x", false), ("", false)] {
            assert_eq!(Address::is_name(text), is_name, "{text:?}");
        }
        assert!(!Address::is_name("unix:x") && !Address::is_name("a/b") && !Address::is_name("tls://x"));
    }
}

//! A store elsewhere: the meaning of its name or address, and connections to it.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunkstore::Error;
use chunkstore::format::ChunkParams;
use clap::{Args, ValueHint};
use replicate::owner::{self, Starter};
use replicate::remotes::{Remote, Remotes};
use replicate::rpc::address::Address;
use replicate::rpc::auth;
use replicate::rpc::client::{Client, Link};
use replicate::rpc::tls::Fingerprint;
use replicate::rpc::transport::RateLimit;
use replicate::rpc::transport::{self, ConnectOptions, SOCKET_FILE};
use replicate::rpc::wire::Hello;

use super::{Connector, Purpose};
use crate::failure::Result;

/// The options that authenticate a store elsewhere, and this one there.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The other side")]
pub(crate) struct RemoteArgs {
    /// Fingerprint of the server's key, as `vmstore serve` prints it
    #[arg(long, value_name = "FINGERPRINT")]
    pin: Option<Fingerprint>,
    /// Certificate authority of the server, in PEM format
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// Client certificate, in PEM format
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    cert: Option<PathBuf>,
    /// Key of the client certificate, in PEM format
    #[arg(long, value_name = "FILE", requires = "cert", value_hint = ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// File with the token [default: the variable `VMSTORE_TOKEN`]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
    /// Allow a tcp:// address, which is not encrypted
    #[arg(long)]
    allow_plain: bool,
}

/// A path that means the same when the working directory is another.
fn absolute(path: &Path) -> chunkstore::Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io("finding", path, error))
}

/// A store elsewhere, with all that is needed to reach it.
pub(crate) struct Reachable {
    address: Address,
    options: ConnectOptions,
    starter: Starter,
    token_file: Option<PathBuf>,
    configured_token_file: Option<PathBuf>,
    /// Most bytes a second.
    limit_rate_bytes_per_s: Option<NonZeroU64>,
    /// Connections.
    pub(crate) streams: Option<NonZeroU32>,
}

impl RemoteArgs {
    /// The entry that `vmstore remote add` stores for the store at `address`.
    pub(crate) fn remote(&self, address: Address) -> Remote {
        let Self { pin, ca, cert, key, token_file, .. } = self.clone();
        Remote { pin, ca, cert, key, token_file, ..Remote::at(address) }
    }

    /// Resolves a name or an address, completed by these options.
    pub(crate) fn resolve(&self, connector: &Connector, remote: &str) -> Result<Reachable> {
        let named = if Address::is_name(remote) {
            Remotes::new(connector.store_dir()?).resolve(remote)?
        } else {
            Remote::at(remote.parse()?)
        };
        let client_cert = self.cert.clone().zip(self.key.clone()).or(named.cert.zip(named.key));
        let ca = self.ca.clone().or(named.ca);
        let options = ConnectOptions {
            pin: self.pin.or(named.pin),
            ca: ca.as_deref().map(absolute).transpose()?,
            client_cert: client_cert
                .map(|(cert, key)| Ok::<_, Error>((absolute(&cert)?, absolute(&key)?)))
                .transpose()?,
            allow_plain: self.allow_plain,
            ..ConnectOptions::from_env()
        };
        Ok(Reachable {
            address: match named.address {
                Address::Path(path) => Address::Path(absolute(&path)?),
                Address::Unix(path) => Address::Unix(absolute(&path)?),
                address => address,
            },
            options,
            starter: connector.starter(Purpose::Use)?,
            token_file: self.token_file.as_deref().map(absolute).transpose()?,
            configured_token_file: named.token_file,
            limit_rate_bytes_per_s: named.limit_rate_bytes_per_s,
            streams: named.streams,
        })
    }

    /// The chunk sizes of a store elsewhere.
    pub(crate) fn chunk_params(&self, connector: &Connector, remote: &str) -> Result<ChunkParams> {
        let reachable = self.resolve(connector, remote)?;
        let client = connector.runtime()?.block_on(reachable.connect(None))?;
        let [min_bytes, avg_bytes, max_bytes, zero_run_min_bytes] = client.welcome().chunk_params;
        Ok(ChunkParams { min_bytes, avg_bytes, max_bytes, zero_run_min_bytes })
    }
}

impl Reachable {
    /// Connects. The owner of a store on this machine is started if there is none.
    pub(crate) async fn connect(&self, limit: Option<Arc<RateLimit>>) -> chunkstore::Result<Client> {
        if let Address::Path(dir) = &self.address {
            return owner::connect(dir, Some(&self.starter)).await;
        }
        let hello = Hello { program: replicate::PROGRAM.to_owned(), token: self.token()? };
        let connected = transport::connect(&self.address, &self.options).await?;
        let link = Link { limit, tls_bytes_sent: connected.tls_bytes_sent, packs: None, is_far: true };
        let client = Client::start(connected.stream, &hello, &link).await;
        client.map_err(|error| at(&self.address, error))
    }

    /// The rate that is asked for, or else the one that belongs to its name; [`Error::Invalid`] where none can be kept.
    pub(crate) fn rate(&self, asked: Option<NonZeroU64>) -> chunkstore::Result<Option<Arc<RateLimit>>> {
        let rate = asked.or(self.limit_rate_bytes_per_s);
        check_rate(&self.address, rate)?;
        Ok(rate.map(|rate| Arc::new(RateLimit::new(rate.get()))))
    }

    /// The directory of the store, if it is on this machine.
    pub(crate) fn dir(&self) -> Option<&Path> {
        match &self.address {
            Address::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The token, if the other side needs one: a socket and ssh identify the user.
    fn token(&self) -> chunkstore::Result<Option<String>> {
        if !matches!(self.address, Address::Tls(_) | Address::Tcp(_)) {
            return Ok(None);
        }
        let env = std::env::var(auth::TOKEN_VARIABLE).ok();
        let token =
            auth::client_token(self.token_file.as_deref(), env.as_deref(), self.configured_token_file.as_deref())?;
        Ok(token.map(|token| token.text().to_owned()))
    }
}

/// Refuses a rate limit for a store that is reached without a link.
pub(crate) fn check_rate(address: &Address, rate: Option<NonZeroU64>) -> chunkstore::Result<()> {
    match address {
        Address::Path(dir) if rate.is_some() => Err(Error::invalid(format!(
            "--limit-rate needs a socket or a network address; use unix:{}/{SOCKET_FILE}",
            dir.display()
        ))),
        _ => Ok(()),
    }
}

/// Names the other side.
fn at(address: &Address, error: Error) -> Error {
    match error {
        Error::Unreachable { what } => Error::Unreachable { what: format!("{address}: {what}") },
        Error::Denied { what } => Error::Denied { what: format!("{address}: {what}") },
        other => other,
    }
}

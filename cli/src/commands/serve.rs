//! `vmstore serve`: owns a store, and serves its clients.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueHint};
use replicate::owner;
use replicate::rpc::address::Address;
use replicate::rpc::server::{Families, ServeOptions, Server};
use replicate::rpc::tls::{ClientCertificates, ServerIdentity, ServerTls};
use replicate::rpc::transport::{Acceptor, Inherited};
use tokio::signal::unix::{SignalKind, signal};

use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::process_limits;
use crate::random::random;
use crate::terminal::log_file::{self, LogFile};

const AFTER_HELP: &str = "\
Examples:
  vmstore serve --listen tls://0.0.0.0:7878

The first start with a tls address creates a key and prints its fingerprint, which clients give in
`vmstore remote add NAME tls://HOST --pin FINGERPRINT`. `vmstore token add` creates tokens for clients.
ssh://HOST/PATH needs no server: push and pull run `vmstore serve --stdio` there.";

/// Own the store and serve its clients: through its socket, and with --listen over the network
///
/// A command that finds no owner starts one in the background, which ends when it is idle. A systemd service ships with
/// vmstore. SIGTERM ends the server; acknowledged data is durable.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Serve {
    /// Also listen on tls://ADDRESS:PORT, or without encryption on tcp://127.0.0.1:PORT; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Allow tcp:// addresses, which are not encrypted
    #[arg(long)]
    allow_plain: bool,
    /// Server certificate, in PEM format [default: created at the first start]
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    cert: Option<PathBuf>,
    /// Key of the server certificate, in PEM format
    #[arg(long, value_name = "FILE", requires = "cert", value_hint = ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// Accept client certificates of this authority, in PEM format
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    client_ca: Option<PathBuf>,
    /// Refuse clients without such a certificate
    #[arg(long, requires = "client_ca")]
    require_client_cert: bool,
    /// Serve one client on standard input and output, as ssh runs it
    #[arg(long, conflicts_with_all = ["listen", "background"])]
    stdio: bool,
    /// Write logs to owner.log in the store, as an owner that a command started does
    #[arg(long)]
    background: bool,
    /// On a full disk, release the store's reserve to be able to start
    #[arg(long, hide = true)]
    frees_space: bool,
}

impl Serve {
    pub(crate) fn is_background(&self) -> bool {
        self.background
    }

    pub(crate) fn run(&self, connector: &Connector) -> Result<Exit> {
        if self.stdio {
            return Self::serve_stdio(connector);
        }
        let served = self.serve(connector);
        if let Err(failure) = &served
            && std::env::var_os(owner::STARTED_BY_COMMAND).is_some()
        {
            owner::tell_starter(failure.error());
            return Ok(Exit::Failed);
        }
        served
    }

    fn serve(&self, connector: &Connector) -> Result<Exit> {
        let purpose = if self.frees_space { Purpose::ReclaimSpace } else { Purpose::Use };
        process_limits::bound_heaps();
        process_limits::allow_descriptors();
        let store = if self.background { connector.open_alone(purpose)? } else { connector.take_over(purpose)? };
        let dir = store.dir().to_path_buf();
        let runtime = connector.runtime()?;
        let acceptors = runtime.block_on(self.acceptors(&dir, connector.take_inherited()))?;
        let options = ServeOptions {
            idle_exit: connector.idle_exit(),
            is_temporary: self.background,
            families: Families::default(),
        };
        let server = Server::new(store, options, random()?);
        if self.background {
            // From here on standard error has no reader.
            LogFile::take_over(&dir, log_file::OWNER)?;
        }
        runtime.block_on(async {
            tokio::spawn(end_on_signal(Arc::clone(&server)));
            server.serve(acceptors).await;
        });
        Ok(Exit::Done)
    }

    async fn acceptors(&self, dir: &Path, inherited: Vec<Inherited>) -> Result<Vec<Acceptor>> {
        let has_socket = inherited.iter().any(|socket| matches!(socket, Inherited::Unix(_)));
        let needs_tls = self.listen.iter().any(|address| matches!(address, Address::Tls(_)))
            || inherited.iter().any(|socket| matches!(socket, Inherited::Tcp(_)));
        let tls = if needs_tls { Some(self.tls(dir)?) } else { None };
        let (identity, tls) = tls.unzip();
        let mut acceptors = Vec::new();
        for socket in inherited {
            acceptors.push(Acceptor::inherited(socket, tls.as_ref())?);
        }
        if !has_socket {
            acceptors.push(Acceptor::unix(dir)?);
        }
        for address in &self.listen {
            if matches!(address, Address::Tcp(_)) && !self.allow_plain {
                return Err(Failure::refused(format!("{address} is not encrypted"))
                    .hint("--allow-plain allows it within this machine"));
            }
            let acceptor = Acceptor::at(address, tls.as_ref()).await?;
            tell_address(address, &acceptor, identity.as_ref());
            acceptors.push(acceptor);
        }
        Ok(acceptors)
    }

    fn tls(&self, dir: &Path) -> Result<(ServerIdentity, ServerTls)> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => ServerIdentity::from_files(cert, key)?,
            _ => ServerIdentity::load_or_create(dir)?,
        };
        let clients = match &self.client_ca {
            None => ClientCertificates::Ignored,
            Some(ca) if self.require_client_cert => ClientCertificates::Required(ca.clone()),
            Some(ca) => ClientCertificates::Accepted(ca.clone()),
        };
        let tls = ServerTls::new(&identity, &clients)?;
        Ok((identity, tls))
    }

    /// Connects to the owner, and copies bytes both ways until one side ends.
    fn serve_stdio(connector: &Connector) -> Result<Exit> {
        if io::stdin().is_terminal() {
            return Err(Failure::usage("--stdio is for programs, but standard input is a terminal"));
        }
        let dir = connector.store_dir()?;
        let starter = connector.starter(Purpose::Use)?;
        let passed = connector.runtime()?.block_on(async {
            let mut owner = owner::open_stream(dir, &starter).await?;
            let mut stdio = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
            // Either side may end first, with any error.
            let _ = tokio::io::copy_bidirectional(&mut stdio, &mut owner).await;
            Ok::<_, chunkstore::Error>(())
        });
        passed?;
        Ok(Exit::Done)
    }
}

/// Prints the server's address and the fingerprint of its key, for operators to pass on.
fn tell_address(address: &Address, acceptor: &Acceptor, identity: Option<&ServerIdentity>) {
    let (scheme, shown) = address.to_string().split_once("://").map_or_else(
        || (String::new(), address.to_string()),
        |(scheme, rest)| (format!("{scheme}://"), rest.to_owned()),
    );
    // A port chosen by the system is known only now.
    let at = acceptor.local_addr().map_or(shown, |addr| addr.to_string());
    let fingerprint = match (address, identity) {
        (Address::Tls(_), Some(identity)) => format!(" fingerprint {}", identity.fingerprint()),
        _ => String::new(),
    };
    // The server runs on even if standard error is closed.
    let _ = writeln!(io::stderr(), "listening on {scheme}{at}{fingerprint}");
}

async fn end_on_signal(server: Arc<Server>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::error!("signals can't be handled");
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to end");
    server.leave();
}

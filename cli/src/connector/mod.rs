//! How a command reaches stores: opened in this process, through their owner, or elsewhere.
//!
//! `access` is an open store; `reachable` a store elsewhere; `runtime` drives connections. Imports `options`,
//! `failure`, `random` and what stops a command from `terminal`; knows no command.

mod access;
mod reachable;
mod runtime;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunkstore::Error;
use chunkstore::catalog::Catalog;
use chunkstore::maintenance::repair;
use chunkstore::store::{Config, OpenOptions, Reindexed, Store};
use fusefs::mounts::refuse_on_view;
use jiff::Timestamp;
use parking_lot::Mutex;
use replicate::owner::{self, Reconnecting, Starter};
use replicate::rpc::client::Client;
use replicate::rpc::server::{ServeOptions, Server};
use replicate::rpc::transport::Inherited;
use tokio::runtime::Runtime;

pub(crate) use self::access::Access;
use self::access::is_worth_another_try;
pub(crate) use self::reachable::{Reachable, RemoteArgs, check_rate};
use self::runtime::LazyRuntime;
use crate::failure::{Failure, Result};
use crate::options::Global;
use crate::random::random;
use crate::terminal::interrupt::Interrupt;

/// How long an owner that a command started waits for the next one before it ends.
const IDLE_EXIT: Duration = Duration::from_mins(1);

/// An owner that is asked to end does so within this time.
const OWNER_ENDS_WITHIN: Duration = Duration::from_secs(30);

/// The effect of a command on the size of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It reads or adds.
    Use,
    /// It reclaims space: on a full disk it may take the reserve.
    ReclaimSpace,
}

/// The store on this side of a transfer.
pub(crate) struct Near {
    pub(crate) client: Client,
    pub(crate) catalog: Catalog,
}

/// The stores that a command works on.
pub(crate) struct Connector {
    global: Global,
    interrupt: Interrupt,
    runtime: LazyRuntime,
    inherited: Mutex<Vec<Inherited>>,
}

impl Connector {
    pub(crate) fn new(global: Global, interrupt: Interrupt, inherited: Vec<Inherited>) -> Self {
        Self { global, interrupt, runtime: LazyRuntime::default(), inherited: Mutex::new(inherited) }
    }

    /// The directory of the store.
    pub(crate) fn store_dir(&self) -> Result<&Path> {
        self.global.common.store.as_deref().ok_or_else(|| {
            Failure::usage("no store is given").hint("give its directory with --store DIR or in VMSTORE_STORE")
        })
    }

    /// Opens only the catalog; works while the store is in use.
    pub(crate) fn catalog(&self) -> Result<(Config, Catalog)> {
        let dir = self.store_dir()?;
        Store::open_catalog(dir).map_err(|error| no_store(dir, error))
    }

    /// Opens the store in this process. From now on Ctrl-C asks operations to stop.
    pub(crate) fn open(&self, purpose: Purpose) -> Result<Arc<Store>> {
        let store = self.open_alone(purpose)?;
        self.interrupt.handle_signals()?;
        Ok(store)
    }

    /// Opens the store as its owner, which handles signals itself.
    pub(crate) fn open_alone(&self, purpose: Purpose) -> Result<Arc<Store>> {
        let dir = self.store_dir()?;
        refuse_on_view(dir, "the store")?;
        let store = Store::open(dir, &self.open_options(purpose)?).map_err(|error| no_store(dir, error))?;
        Ok(Arc::new(store))
    }

    /// [`Connector::open_alone`] for a service, which replaces an owner that a command started.
    pub(crate) fn take_over(&self, purpose: Purpose) -> Result<Arc<Store>> {
        let until = Instant::now() + OWNER_ENDS_WITHIN;
        loop {
            let opened = self.open_alone(purpose);
            let is_busy = opened.as_ref().is_err_and(|failure| matches!(failure.error(), Error::Busy { .. }));
            if !is_busy || Instant::now() >= until {
                return opened;
            }
            match self.owner_left(self.store_dir()?) {
                // Running commands may finish first; ask again.
                Ok(_) => std::thread::sleep(Duration::from_millis(100)),
                Err(failure) if matches!(failure.error(), Error::Busy { .. }) => return opened.map_err(|_| failure),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The sockets that systemd opened for this process; once.
    pub(crate) fn take_inherited(&self) -> Vec<Inherited> {
        std::mem::take(&mut *self.inherited.lock())
    }

    /// How long an owner without clients waits before it ends, if given.
    pub(crate) fn idle_exit(&self) -> Option<Duration> {
        self.global.common.idle_exit.map(Duration::from_secs)
    }

    /// The store, through its owner unless `--standalone` is given.
    pub(crate) fn access(&self, purpose: Purpose) -> Result<Access> {
        if self.global.standalone {
            return Ok(Access::Own(self.open(purpose)?));
        }
        let dir = self.store_dir()?;
        let owner = self.owner(dir, purpose)?;
        self.interrupt.handle_signals()?;
        Access::served(dir, owner).map_err(|error| no_store(dir, error))
    }

    /// A connection to the owner of the store in `dir`, which is started if there is none.
    pub(crate) fn owner(&self, dir: &Path, purpose: Purpose) -> Result<Reconnecting> {
        refuse_on_view(dir, "the store")?;
        let starter = self.starter(purpose)?;
        Reconnecting::new(self.runtime()?.handle(), dir, starter).map_err(|error| no_store(dir, error))
    }

    /// The way to start an owner.
    pub(crate) fn starter(&self, purpose: Purpose) -> Result<Starter> {
        let program = owner_program().map_err(|error| Failure::io("finding", "this program", error))?;
        let idle_exit = self.global.common.idle_exit.map_or(IDLE_EXIT, Duration::from_secs);
        Ok(Starter { program, idle_exit, frees_space: purpose == Purpose::ReclaimSpace })
    }

    /// The runtime that drives connections.
    pub(crate) fn runtime(&self) -> Result<&Runtime> {
        self.runtime.get()
    }

    /// A connection to the store's owner, which with `--standalone` is this process.
    pub(crate) fn near(&self) -> Result<Near> {
        let dir = self.store_dir()?;
        let runtime = self.runtime()?;
        let (_, catalog) = self.catalog()?;
        if !self.global.standalone {
            let client = runtime.block_on(owner::connect(dir, Some(&self.starter(Purpose::Use)?)));
            self.interrupt.handle_signals()?;
            return Ok(Near { client: client.map_err(|error| no_store(dir, error))?, catalog });
        }
        let server = Server::new(self.open(Purpose::Use)?, ServeOptions::default(), random()?);
        let client = runtime.block_on(server.client());
        Ok(Near { client: client?, catalog })
    }

    /// Does `work` on the store. Repeats it once if the index was found damaged, after rebuilding it, or if the owner
    /// ended meanwhile, with the next owner.
    pub(crate) fn with_store<T>(&self, purpose: Purpose, mut work: impl FnMut(&Access) -> Result<T>) -> Result<T> {
        let access = self.access(purpose)?;
        let result = work(&access);
        if !is_worth_another_try(&result) || self.interrupt.is_set() {
            return result;
        }
        let Err(failure) = result else { return result };
        tracing::warn!("{}; trying again", failure.error());
        let is_own = matches!(access, Access::Own(_));
        drop(access);
        if is_own {
            self.reindex(purpose)?;
        }
        work(&self.access(purpose)?)
    }

    /// Rebuilds the index. An owner that a command started ends first.
    pub(crate) fn reindex(&self, purpose: Purpose) -> Result<Reindexed> {
        let (dir, options) = self.without_owner(purpose)?;
        Store::reindex(dir, &options).map_err(|error| no_store(dir, error))
    }

    /// Repairs what keeps the store from being opened, and returns what was done. An owner that a command started ends
    /// first.
    pub(crate) fn mend_foundation(&self) -> Result<Vec<String>> {
        let (dir, options) = self.without_owner(Purpose::ReclaimSpace)?;
        Ok(repair::mend(dir, &options, Timestamp::now())?)
    }

    /// The store's directory, and how to open it once its owner, which is asked to end, has done so.
    fn without_owner(&self, purpose: Purpose) -> Result<(&Path, OpenOptions)> {
        let dir = self.store_dir()?;
        let mut options = self.open_options(purpose)?;
        if !self.global.standalone && self.owner_left(dir)? {
            options.wait = options.wait.max(OWNER_ENDS_WITHIN);
        }
        Ok((dir, options))
    }

    /// Asks the store's owner to end; returns false if there is none.
    fn owner_left(&self, dir: &Path) -> Result<bool> {
        match self.runtime()?.block_on(owner::connect(dir, None)) {
            Ok(client) => {
                client.leave_blocking().map_err(stays)?;
                Ok(true)
            }
            Err(Error::Unreachable { .. } | Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn open_options(&self, purpose: Purpose) -> Result<OpenOptions> {
        let frees_space = purpose == Purpose::ReclaimSpace;
        let seed = u64::from_le_bytes(random()?);
        Ok(OpenOptions { wait: self.global.wait(), frees_space, seed, ..OpenOptions::default() })
    }
}

/// The program `vmstore`: this one, or the one in the directory of `vmfs`.
fn owner_program() -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("vmstore"))
}

/// Threads to work with: as asked, else as configured, else one a core.
pub(crate) fn threads(asked: Option<NonZeroUsize>, config: &Config) -> usize {
    let configured = || config.defaults.threads.and_then(|threads| NonZeroUsize::try_from(threads).ok());
    let cores = || std::thread::available_parallelism().ok();
    asked.or_else(configured).or_else(cores).map_or(1, NonZeroUsize::get)
}

/// An owner that does not end when it is asked to.
fn stays(error: Error) -> Failure {
    let is_busy = matches!(error, Error::Busy { .. });
    let failure = Failure::from(error);
    if is_busy { failure.hint("this needs exclusive use of the store; try again when it is unused") } else { failure }
}

/// Explains that a store is missing: when a store is opened, "not found" means the store.
fn no_store(dir: &Path, error: Error) -> Failure {
    let missing = matches!(error, Error::NotFound { .. });
    let failure = Failure::from(error);
    if missing { failure.hint(format!("`vmstore --store {} init` creates one", dir.display())) } else { failure }
}

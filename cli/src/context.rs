//! What commands share: the global options, the store that they name, progress and output.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Once};

use chunkstore::Error;
use chunkstore::catalog::Catalog;
use chunkstore::config::Config;
use chunkstore::progress::Progress;
use chunkstore::store::{OpenOptions, Reindexed, Store};
use indicatif::MultiProgress;

use crate::args::Global;
use crate::failure::{Failure, Result};
use crate::interrupt::{self, Interrupted};
use crate::output::Output;
use crate::progress::{self, Unit, Watched};

/// What a command does to the store's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It reads or adds.
    Use,
    /// It frees space: on a full disk it may take the reserve.
    Free,
}

/// The surroundings of a command.
pub(crate) struct Context {
    global: Global,
    console: MultiProgress,
    progress: Arc<Progress>,
    interrupted: Interrupted,
    handling_signals: Once,
}

impl Context {
    pub(crate) fn new(global: Global, console: MultiProgress) -> Self {
        let (progress, interrupted) = <(Arc<Progress>, Interrupted)>::default();
        Self { global, console, progress, interrupted, handling_signals: Once::new() }
    }

    pub(crate) fn output(&self) -> Output {
        Output::new(&self.global)
    }

    /// Whether the user asked to stop.
    pub(crate) fn interrupted(&self) -> &Interrupted {
        &self.interrupted
    }

    /// Does `work`, which counts in `unit`, while its progress is shown.
    pub(crate) fn watch<T>(&self, label: &str, unit: Unit, work: impl FnOnce(&Progress) -> T) -> T {
        let watched = Watched { label, unit, progress: &self.progress };
        progress::watch(&self.global, &self.console, watched, || work(&self.progress))
    }

    /// The directory of the store.
    pub(crate) fn store_dir(&self) -> Result<&Path> {
        self.global.store.as_deref().ok_or_else(|| {
            Failure::usage("no store is named").hint("name its directory with --store DIR or in VMSTORE_STORE")
        })
    }

    /// Opens the catalog alone, beside whoever uses the store.
    pub(crate) fn catalog(&self) -> Result<(Config, Catalog)> {
        let dir = self.store_dir()?;
        Store::open_catalog(dir).map_err(|error| no_store(dir, error))
    }

    /// Opens the store. From now on Ctrl-C asks operations to stop.
    pub(crate) fn open(&self, purpose: Purpose) -> Result<Arc<Store>> {
        let dir = self.store_dir()?;
        let store = Store::open(dir, &self.open_options(purpose)?).map_err(|error| no_store(dir, error))?;
        self.handle_signals()?;
        Ok(Arc::new(store))
    }

    /// Opens the store and does `work`; once more, with a new index, if the index turns out to be damaged.
    pub(crate) fn with_store<T>(&self, purpose: Purpose, mut work: impl FnMut(&Arc<Store>) -> Result<T>) -> Result<T> {
        let store = self.open(purpose)?;
        match work(&store) {
            Err(failure) if matches!(failure.error(), Error::IndexDamaged { .. }) => {
                tracing::warn!("{}", failure.error());
                drop(store);
                self.reindex(purpose)?;
                work(&self.open(purpose)?)
            }
            result => result,
        }
    }

    /// Throws the index away and builds it anew.
    pub(crate) fn reindex(&self, purpose: Purpose) -> Result<Reindexed> {
        let dir = self.store_dir()?;
        Store::reindex(dir, &self.open_options(purpose)?).map_err(|error| no_store(dir, error))
    }

    fn open_options(&self, purpose: Purpose) -> Result<OpenOptions> {
        let frees_space = purpose == Purpose::Free;
        let seed = u64::from_le_bytes(random()?);
        Ok(OpenOptions { wait: self.global.wait(), frees_space, seed, ..OpenOptions::default() })
    }

    fn handle_signals(&self) -> Result<()> {
        let mut handled = Ok(());
        self.handling_signals.call_once(|| {
            handled = interrupt::stop_gently(Arc::clone(&self.progress), self.interrupted.clone());
        });
        handled
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    const DEVICE: &str = "/dev/urandom";
    let mut bytes = [0; N];
    let read = File::open(DEVICE).and_then(|mut device| device.read_exact(&mut bytes));
    read.map_err(|error| Failure::io("reading", DEVICE, error))?;
    Ok(bytes)
}

/// Threads to work with: as asked, else as configured, else one a core.
pub(crate) fn threads(asked: Option<NonZeroUsize>, config: &Config) -> usize {
    let configured = || config.defaults.threads.and_then(|threads| NonZeroUsize::try_from(threads).ok());
    let cores = || std::thread::available_parallelism().ok();
    asked.or_else(configured).or_else(cores).map_or(1, NonZeroUsize::get)
}

/// What is not found when a store is opened is the store.
fn no_store(dir: &Path, error: Error) -> Failure {
    let missing = matches!(error, Error::NotFound { .. });
    let failure = Failure::from(error);
    if missing { failure.hint(format!("`vmstore --store {} init` makes one", dir.display())) } else { failure }
}

//! Mounting a view, serving it, and its end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use chunkstore::{Error, Result};
use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::mounts::{self, Mount, TYPE};
use crate::service::MountService;
use crate::{fusermount, readahead_limit};

const DEVICE: &str = "/dev/fuse";

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An empty directory.
    pub mountpoint: PathBuf,
    /// Whether other users have access.
    pub allow_other: bool,
    /// Whether the directory may hold files, which are not seen then.
    pub allow_nonempty: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
}

/// A view that is mounted and served.
pub struct Mounted {
    view: MountService,
    mount: Mount,
    serving: JoinHandle<io::Result<()>>,
}

impl Mounted {
    /// Mounts a view and begins to serve it.
    ///
    /// # Errors
    /// [`Error::Refused`] if something speaks against this place; [`Error::NotFound`] if it is not there;
    /// [`Error::Denied`] if the user may not mount.
    pub fn start(view: MountService, options: &MountOptions) -> Result<Self> {
        let mountpoint = check(options, &view.0.namespace.store)?;
        let connection = connect(&mountpoint, &view.0.namespace.store, options)?;
        let started = serve(view.clone(), connection, options.threads);
        let mount = mounts::at(&mountpoint)?.filter(|mount| mount.kind == TYPE);
        let mount = mount.ok_or_else(|| Error::not_found(format!("the mount at {}", mountpoint.display())))?;
        match started {
            Ok(serving) => {
                readahead_limit::raise(&mount.device);
                Ok(Self { view, mount, serving })
            }
            Err(error) => {
                mount.force()?;
                Err(Error::io("mounting", &mountpoint, error))
            }
        }
    }

    /// The mount, for unmounting it.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Waits until it is unmounted, and makes all writes durable.
    ///
    /// # Errors
    /// If serving failed, or a clone can't be synced.
    pub fn wait(self) -> Result<()> {
        let served = self.serving.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        self.view.sync()?;
        served.map_err(|error| Error::io("serving", &self.mount.mountpoint, error))
    }
}

/// Checks that a view can be mounted there; returns the resolved path.
fn check(options: &MountOptions, store: &Path) -> Result<PathBuf> {
    let shown = options.mountpoint.display();
    let mountpoint = mounts::locate(&options.mountpoint).map_err(|_| Error::not_found(format!("directory {shown}")))?;
    clear_dead(&mountpoint)?;
    let metadata = match fs::metadata(&mountpoint) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("directory {shown}")));
        }
        metadata => metadata.map_err(|error| Error::io("reading", &mountpoint, error))?,
    };
    if !metadata.is_dir() {
        return Err(Error::invalid(format!("{shown} is no directory")));
    }
    mounts::refuse_on_view(&mountpoint, "the mount point")?;
    mounts::refuse_on_view(store, "the store")?;
    let store = fs::canonicalize(store).map_err(|error| Error::io("reading", store, error))?;
    if mountpoint.starts_with(&store) {
        return Err(Error::refused(format!("the mount point {shown} lies in the store")));
    }
    if !options.allow_nonempty && !is_empty(&mountpoint)? {
        return Err(Error::refused(format!("{shown} is not empty: its files would not be seen (--allow-nonempty)")));
    }
    Ok(mountpoint)
}

/// Refuses a place where a view is mounted; takes away one whose process was killed.
fn clear_dead(mountpoint: &Path) -> Result<()> {
    let Some(mount) = mounts::at(mountpoint)?.filter(|mount| mount.kind == TYPE) else { return Ok(()) };
    // Attributes could come from the kernel's memory.
    if let Err(Errno::NOTCONN | Errno::CONNABORTED) = rustix::fs::statvfs(mountpoint) {
        tracing::warn!("unmounting {}, whose vmfs was killed", mountpoint.display());
        return mount.force();
    }
    let (mountpoint, store) = (mountpoint.display(), mount.source.display());
    Err(Error::refused(format!("at {mountpoint}, vmfs has mounted {store} already")))
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(dir).map_err(|error| Error::io("listing", dir, error))?;
    Ok(entries.next().is_none())
}

/// Mounts, and returns the connection to the kernel.
fn connect(mountpoint: &Path, store: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    let connection = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("{DEVICE} (`modprobe fuse` may help)")));
        }
        // Without access to the device, the program may still mount.
        Err(_) => return by_program(mountpoint, store, options),
        Ok(connection) => OwnedFd::from(connection),
    };
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data).expect("it has no zero byte");
    match rustix::mount::mount(store, mountpoint, TYPE, MountFlags::NODEV | MountFlags::NOSUID, data.as_c_str()) {
        Ok(()) => Ok(connection),
        Err(Errno::PERM) => by_program(mountpoint, store, options),
        Err(error) => Err(Error::io("mounting", mountpoint, error.into())),
    }
}

fn by_program(mountpoint: &Path, store: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let source = store.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
    let other = if options.allow_other { ",allow_other" } else { "" };
    let options = format!("fsname={source},subtype=vmfs,default_permissions,nodev,nosuid{other}");
    fusermount::mount(mountpoint, &options)
}

/// Shakes hands with the kernel and starts the threads.
fn serve(view: MountService, connection: OwnedFd, threads: usize) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut config = Config::default();
    config.n_threads = Some(threads.max(1));
    config.clone_fd = true;
    // The kernel enforces the mount's options.
    let session = Session::from_fd(view, connection, SessionACL::All, config)?;
    thread::Builder::new().name("vmfs".to_owned()).spawn(move || session.run())
}

//! A real guest boots from what a mount shows, and reads every file under /usr right.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use tests::devices::tool;
use tests::guest::{Disk, Guest, Kernel, Sums};
use tests::wan::{Link, Proxy};
use tests::{Mounted, Serving, Site, Vmstore, images};

const SNAPSHOT: &str = "web01@20261118T020000Z";
const COMMITTED: &str = "web01@20261120T020000Z";
const RTT: Duration = Duration::from_millis(50);

/// The image, what it boots with, and what it must read.
struct Debian {
    image: PathBuf,
    kernel: Kernel,
    usr: Sums,
    _dir: Site,
}

static DEBIAN: LazyLock<Debian> = LazyLock::new(|| {
    let dir = scratch();
    let image = images::real("small").join("small-day1.raw");
    Debian { kernel: Kernel::of(&image, dir.dir()), usr: Sums::of_image(&image), image, _dir: dir }
});

/// On the disk of the build, because `/tmp` may be small.
fn scratch() -> Site {
    Site::below(env!("CARGO_TARGET_TMPDIR"))
}

/// A store with the image in it.
fn store(dir: &Path) -> Vmstore {
    let vmstore = Vmstore::init_in(dir);
    ingest(&vmstore, &DEBIAN.image, "20261118T020000Z", &[]);
    vmstore.through_owner()
}

fn ingest(vmstore: &Vmstore, source: &Path, time: &str, options: &[&str]) -> serde_json::Value {
    let source = source.to_str().unwrap();
    vmstore.json([&["ingest", source, "--image", "web01", "--time", time], options].concat())
}

/// Boots from a disk, and fails unless the guest reads what is in the image.
fn reads_usr(disk: &Disk) {
    let dir = scratch();
    let mut guest = Guest::boot(&DEBIAN.kernel, disk, "sum_usr", dir.dir());
    guest.reaches_user_space();
    Sums::parse(&guest.powers_off()).assert_are(&DEBIAN.usr);
}

#[test]
#[ignore = "boots a guest: run by `make acceptance`"]
fn from_a_snapshot() {
    let dir = scratch();
    let mounted = store(dir.dir()).mount(&[]);
    reads_usr(&Disk::snapshot(&mounted.snapshot(SNAPSHOT)));
    mounted.unmount();
}

#[test]
#[ignore = "boots a guest: run by `make acceptance`"]
fn from_a_clone_that_is_committed_while_it_runs() {
    let dir = scratch();
    let vmstore = store(dir.dir());
    vmstore.run_vmfs(["clone", "create", "web02", SNAPSHOT]);
    let mounted = vmstore.mount(&[]);
    let script = r"
        sum_usr
        head -c 5000000 /dev/urandom > /before; sync; tell wrote $(md5sum < /before)
        hear
        head -c 5000000 /dev/urandom > /after; sync";
    let mut guest = Guest::boot(&DEBIAN.kernel, &Disk::raw(&mounted.clone_file("web02")), script, dir.dir());
    guest.reaches_user_space();
    let sum = guest.tells("wrote");
    vmstore.run_vmfs(["clone", "commit", "web02", "--time", "20261120T020000Z"]);
    guest.say("go on");
    Sums::parse(&guest.powers_off()).assert_are(&DEBIAN.usr);
    has_file(&mounted, COMMITTED, &sum);
    mounted.unmount();
}

/// Fails unless a guest that boots from a snapshot finds the file that was written before the commit, and no other.
fn has_file(mounted: &Mounted, snapshot: &str, sum: &str) {
    let dir = scratch();
    let script = "tell found $(md5sum < /before) $(test ! -e /after || echo and a later file)";
    let mut guest = Guest::boot(&DEBIAN.kernel, &Disk::snapshot(&mounted.snapshot(snapshot)), script, dir.dir());
    assert_eq!(guest.tells("found"), sum);
    guest.powers_off();
}

#[test]
#[ignore = "boots a guest: run by `make acceptance`"]
fn from_a_qcow2_overlay_whose_own_clusters_alone_are_ingested() {
    let dir = scratch();
    let vmstore = store(dir.dir());
    vmstore.run(["hold", SNAPSHOT]);
    let mounted = vmstore.mount(&[]);
    let overlay = dir.dir().join("overlay.qcow2");
    tool(
        "qemu-img",
        &[
            "create".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-F".as_ref(),
            "raw".as_ref(),
            "-b".as_ref(),
            mounted.snapshot(SNAPSHOT).as_os_str(),
            overlay.as_os_str(),
        ],
    );
    reads_usr(&Disk::qcow2(&overlay));
    let before = read_bytes(&mounted);
    ingest(&vmstore, &overlay, "20261119T020000Z", &["--base", SNAPSHOT]);
    let more_bytes = read_bytes(&mounted) - before;
    assert!(more_bytes < 16 << 20, "{more_bytes} bytes of the backing file were read");
    reads_usr(&Disk::snapshot(&mounted.snapshot("web01@20261119T020000Z")));
    mounted.unmount();
}

/// Bytes read through a mount.
fn read_bytes(mounted: &Mounted) -> u64 {
    mounted.status()["requests"]["read_bytes"].as_u64().unwrap()
}

#[test]
#[ignore = "boots a guest: run by `make acceptance`"]
fn from_an_upstream_far_away() {
    let (here, there) = (scratch(), scratch());
    let far = store(there.dir());
    let serving = Serving::start(&far, &["--listen", "tls://127.0.0.1:0"]);
    let server = serving.listening()[0].clone();
    let address = server.address.strip_prefix("tls://").unwrap().parse().unwrap();
    let proxy = Proxy::start(Link { rtt: RTT, rate: None }, address).unwrap();
    let near = far_from(&far, here.dir(), proxy.address(), &server.fingerprint.unwrap());
    assert_eq!(near.packs_bytes(), 0, "a new store has something");
    let mounted = near.mount(&["--upstream", "far"]);
    reads_usr(&Disk::snapshot(&mounted.snapshot(SNAPSHOT)));
    mounted.unmount();
    assert_ne!(near.packs_bytes(), 0, "nothing of what was fetched was kept");
}

/// A new and empty store that knows a server of `far` as the remote `far`.
fn far_from(far: &Vmstore, dir: &Path, address: SocketAddr, pin: &str) -> Vmstore {
    let token = dir.join("token");
    fs::write(&token, far.run(["token", "add", "near", "--role", "admin"])).unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let near = Vmstore::init_in(dir).through_owner();
    let address = format!("tls://{address}");
    near.run(["remote", "add", "far", &address, "--pin", pin, "--token-file", token.to_str().unwrap()]);
    near
}

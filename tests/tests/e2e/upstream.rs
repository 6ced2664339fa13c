//! A mount with another store behind it, over a long link: what is far is read, kept, completed, and survives that the
//! other store goes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::Mounted;
use tests::wan::{Link, Proxy};
use tests::{Serving, Site, Vmstore, eventually, images};

/// There and back.
const RTT: Duration = Duration::from_millis(50);
/// The exit code of a refused command.
const REFUSED: i32 = 6;

/// A store with two nights, served at the other end of a long link, and an empty one here.
struct World {
    near: Vmstore,
    far: Vmstore,
    nights: BTreeMap<String, PathBuf>,
    serving: Option<Serving>,
    proxy: Proxy,
    site: Site,
}

impl World {
    fn new() -> Self {
        let site = Site::new();
        let (near, far) = (site.store("near"), site.store("far"));
        let nights = site.nights(&far, 40, 2);
        let serving = serve(&far, "tcp://127.0.0.1:0");
        let token = site.path("token");
        fs::write(&token, far.run(["token", "add", "near", "--role", "admin"])).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let proxy = Proxy::start(Link { rtt: RTT, rate: None }, address_of(&serving)).unwrap();
        Self { near, far, nights, serving: Some(serving), proxy, site }
    }

    fn upstream(&self) -> Vec<String> {
        let address = format!("tcp://{}", self.proxy.address());
        vec![address, "--allow-plain".into(), "--token-file".into(), self.site.arg("token")]
    }

    fn mount(&self, more: &[&str]) -> Mounted {
        let upstream = self.upstream();
        let args = ["--upstream"].into_iter().chain(upstream.iter().map(String::as_str)).chain(more.iter().copied());
        Mounted::with(&self.near, self.site.path("mnt"), &args.collect::<Vec<_>>())
    }

    /// The other store ends, and comes back with the same address after a while.
    fn restart(&mut self) {
        let address = address_of(self.serving.as_ref().unwrap());
        self.leave();
        thread::sleep(Duration::from_millis(500));
        self.serving = Some(serve(&self.far, &format!("tcp://{address}")));
    }

    fn leave(&mut self) {
        self.proxy.cut();
        self.serving.take().unwrap().kill();
    }

    /// The names of the nights, the older first.
    fn names(&self) -> [&str; 2] {
        let names: Vec<&str> = self.nights.keys().map(String::as_str).collect();
        names.try_into().unwrap()
    }

    fn line(&self, name: &str) -> Value {
        self.near.json(["show", name])
    }
}

fn serve(far: &Vmstore, address: &str) -> Serving {
    Serving::start(far, &["--listen", address, "--allow-plain"])
}

fn address_of(serving: &Serving) -> SocketAddr {
    serving.listening()[0].address.strip_prefix("tcp://").unwrap().parse().unwrap()
}

#[test]
fn a_far_snapshot_is_read_bit_for_bit_and_is_partial_until_it_is_pulled() {
    let world = World::new();
    let [first, second] = world.names();
    let mounted = world.mount(&[]);
    let listed = fs::read_dir(mounted.path().join("snapshots/web01")).unwrap().count();
    assert_eq!(listed, 3, "two nights and the newest");
    images::assert_same(&mounted.snapshot(second), &world.nights[second]);
    let upstream = mounted.status()["upstream"].clone();
    assert!(upstream["fetched_bytes"].as_u64() > Some(1 << 20), "{upstream}");
    mounted.unmount();
    let shown = world.line(second);
    assert_eq!((&shown["partial"], &shown["present_percent"]), (&true.into(), &100.into()), "{shown}");
    assert!(world.near.run(["list"]).contains("HERE"));
    let refused = world.near.expect_exit(REFUSED, ["restore", second, &world.site.arg("restored.raw")]);
    assert!(refused.contains("vmstore pull") && refused.contains("--hydrate"), "{refused}");
    let verified = world.near.json(["verify"]);
    assert_eq!((&verified["sound"], &verified["partial_snapshots"]), (&true.into(), &1.into()), "{verified}");
    world.near.run(["gc"]);
    let upstream = world.upstream();
    let pull = ["pull"].into_iter().chain(upstream.iter().map(String::as_str)).chain([second, first]);
    world.near.run(pull.collect::<Vec<_>>());
    assert_eq!(world.line(second)["partial"], false);
    world.near.assert_has_all(&world.nights);
}

#[test]
fn reads_survive_that_the_other_store_ends_and_comes_back() {
    let mut world = World::new();
    let [first, _] = world.names().map(str::to_owned);
    let mounted = world.mount(&["--timeout", "1min"]);
    let (read, image) = (mounted.snapshot(&first), world.nights[&first].clone());
    let reading = thread::spawn(move || images::assert_same(&read, &image));
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(200));
        world.restart();
    }
    reading.join().unwrap();
    mounted.unmount();
}

#[test]
fn a_hydrated_snapshot_needs_the_other_store_no_more() {
    let mut world = World::new();
    let [_, second] = world.names().map(str::to_owned);
    let mounted = world.mount(&["--hydrate", "web01@latest"]);
    let hydration = || mounted.status()["upstream"]["hydrations"][0]["state"].clone();
    eventually("the end of a hydration", || hydration() == "done");
    world.leave();
    images::assert_same(&mounted.snapshot(&second), &world.nights[&second]);
    mounted.unmount();
    assert_eq!(world.line(&second)["partial"], false);
    let verified = world.near.json(["verify"]);
    assert_eq!((&verified["sound"], &verified["partial_snapshots"]), (&true.into(), &0.into()), "{verified}");
    world.near.assert_holds(&second, &world.nights[&second]);
}

#[test]
fn a_boot_order_is_fetched_before_it_is_read() {
    let world = World::new();
    let [first, second] = world.names().map(str::to_owned);
    let mounted = world.mount(&["--record"]);
    let boot = |mounted: &Mounted, name: &str| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::open(mounted.snapshot(name)).unwrap();
        for at in [30_u64 << 20, 3 << 20, 17 << 20] {
            file.read_exact_at(&mut vec![0; 256 << 10], at).unwrap();
        }
        file
    };
    drop(boot(&mounted, &first));
    mounted.unmount();
    let orders = |store: &Vmstore| store.files("boot", ".order").len();
    assert_eq!((orders(&world.near), orders(&world.far)), (1, 1));
    // Another store and another night: without any read, the boot's records arrive.
    let near = Vmstore::new(world.site.path("third")).through_owner();
    near.run(["init", "--no-reserve"]);
    let world = World { near, ..world };
    let mounted = world.mount(&[]);
    let file = fs::File::open(mounted.snapshot(&second)).unwrap();
    let fetched = || mounted.status()["upstream"]["fetched_records"].as_u64().unwrap();
    // About 64 KiB a chunk.
    eventually("what a boot needs", || fetched() >= 12 && mounted.status()["upstream"]["waiting_records"] == 0);
    drop(file);
    mounted.unmount();
}

//! The contract of push and pull, over every way in which sites reach each other, and refusals on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::ways::{Authority, Far, Way};
use serde_json::Value;
use tests::images::Rng;
use tests::netns::Network;
use tests::{Running, Serving, Site, Vmstore, eventually, expect_exit_of};

/// Cost of a push of nothing new, in bytes of both directions.
const NOTHING_NEW_BYTES_MAX: u64 = 4096;

fn names(nights: &BTreeMap<String, PathBuf>) -> Vec<&str> {
    nights.keys().map(String::as_str).collect()
}

fn sent(report: &Value) -> Vec<&str> {
    report["snapshots_sent"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

fn run(command: &mut Command) -> Value {
    let printed = Running::start(command.arg("--json")).succeed();
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{command:?}: {error}: {printed}"))
}

/// The contract, whatever lies between the sites.
fn assert_contract(way: Way) {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    let nights = site.nights(&near, 12, 3);
    let remote = way.open(&site, &far);
    let transfer = |store: &Vmstore, verb, more: &[&str]| run(&mut remote.command(store, &[&[verb], more].concat()));

    let packs = far.packs_bytes();
    let planned = transfer(&near, "push", &["--all", "--dry-run"]);
    assert_eq!((sent(&planned), &planned["dry_run"]), (names(&nights), &true.into()), "{planned}");
    assert_eq!((far.snapshots(), far.packs_bytes()), (Vec::new(), packs), "a dry run changes nothing");

    let first = transfer(&near, "push", &["web01@20261101"]);
    assert_eq!((sent(&first).len(), far.snapshots().len()), (1, 1), "{first}");
    let rest = transfer(&near, "push", &["--all"]);
    assert_eq!(sent(&rest), &names(&nights)[1..], "{rest}");
    assert!(rest["deltas_sent"].as_u64() > Some(0), "nothing of the next nights went as deltas: {rest}");
    far.assert_has_all(&nights);

    let again = transfer(&near, "push", &["--all"]);
    assert_eq!((sent(&again), &again["snapshots_present"]), (Vec::new(), &3.into()), "{again}");
    let bytes = ["wire_bytes_sent", "wire_bytes_received"].map(|field| again[field].as_u64().unwrap());
    assert!(bytes.iter().sum::<u64>() < NOTHING_NEW_BYTES_MAX, "{again}");

    let third = Vmstore::new(site.path("third")).through_owner();
    Running::start(&mut remote.init_like(&third)).succeed();
    let planned = transfer(&third, "pull", &["--image", "web01", "--dry-run"]);
    assert_eq!((sent(&planned).len(), third.snapshots()), (3, Vec::new()), "{planned}");
    let pulled = transfer(&third, "pull", &["--image", "web01"]);
    assert_eq!(sent(&pulled), names(&nights), "{pulled}");
    third.assert_has_all(&nights);
    assert_eq!(sent(&transfer(&third, "pull", &["--all"])), [""; 0]);
}

macro_rules! contract {
    ($($test:ident: $way:expr,)*) => {
        $(#[test]
        fn $test() {
            assert_contract($way);
        })*
    };
}

contract! {
    by_path: Way::Path,
    by_socket: Way::Socket,
    by_tls_with_pin_and_token: Way::Pinned,
    by_tls_with_certificates: Way::Certified,
    by_tls_of_a_named_remote: Way::Named,
    by_plain_tcp: Way::Plain,
    by_ssh: Way::FakeSsh,
}

#[test]
fn by_the_real_ssh() {
    if crate::ways::sshd_is_missing() {
        return;
    }
    assert_contract(Way::Ssh);
}

/// A client's mistake, the exit code of its push, and parts of its message.
struct Refusal {
    what: &'static str,
    args: Vec<String>,
    token: Option<String>,
    code: i32,
    told: Vec<String>,
}

fn refusal(what: &'static str, args: &[&str], token: Option<&str>, code: i32, told: &[&str]) -> Refusal {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Refusal { what, args: owned(args), token: token.map(str::to_owned), code, told: owned(told) }
}

#[test]
fn a_wrong_identity_is_refused_with_the_reason() {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    site.nights(&near, 4, 1);
    let token = far.run(["token", "add", "site-a", "--role", "push"]);
    let token = token.trim();
    let listen = ["--listen", "tls://127.0.0.1:0", "--listen", "tcp://127.0.0.1:0", "--allow-plain"];
    let serving = Serving::start(&far, &listen);
    let [tls, tcp] = [0, 1].map(|at| serving.listening()[at].clone());
    let (pin, wrong_pin) = (tls.fingerprint.as_deref().unwrap(), format!("sha256:{}", "0a".repeat(32)));
    let authority = Authority::new(&site);
    let (ca, wrong_token) = (authority.ca.to_str().unwrap(), format!("vms_{}", "0".repeat(64)));
    let open_file = site.arg("open.token");
    std::fs::write(&open_file, token).unwrap();
    let token = Some(token);
    let cases = [
        refusal("another key", &[&tls.address, "--pin", &wrong_pin], token, 8, &[pin]),
        refusal("neither pin nor authority", &[&tls.address], token, 8, &[pin, "--pin"]),
        refusal("another authority", &[&tls.address, "--ca", ca], token, 8, &["certificate"]),
        refusal("another token", &[&tls.address, "--pin", pin], Some(&wrong_token), 8, &["token"]),
        refusal("no token", &[&tls.address, "--pin", pin], None, 8, &["token"]),
        refusal("what is no token", &[&tls.address, "--pin", pin], Some("secret"), 2, &["token"]),
        refusal(
            "a token for all to read",
            &[&tls.address, "--pin", pin, "--token-file", &open_file],
            None,
            6,
            &["600"],
        ),
        refusal("plain without the flag", &[&tcp.address], token, 6, &["--allow-plain"]),
        refusal("plain to elsewhere", &["tcp://192.0.2.1:7879", "--allow-plain"], token, 6, &["this machine"]),
    ];
    for Refusal { what, args, token, code, told } in cases {
        let mut command = near.command(["push"].into_iter().chain(args.iter().map(String::as_str)).chain(["--all"]));
        command.args(["--retries", "0"]).envs(token.map(|token| ("VMSTORE_TOKEN", token)));
        let said = expect_exit_of(&command.output().unwrap(), code, &format!("{what}: {command:?}"));
        for told in told {
            assert!(said.contains(&told), "{what}: {told:?} should be told: {said}");
        }
    }
    assert_eq!(far.snapshots(), [""; 0]);
    // And an address without a server.
    drop(serving);
    let args = ["push", &tls.address, "--pin", pin, "--all", "--retries", "0"];
    let said = near.expect_exit(7, args);
    assert!(said.contains(tls.address.strip_prefix("tls://").unwrap()), "{said}");
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    site.nights(&near, 4, 1);
    let Far { address, args, .. } = Way::Certified.open(&site, &far);
    let only_ca: Vec<_> = args.iter().take_while(|arg| *arg != "--cert").map(String::as_str).collect();
    let command = [&["push", &address, "--all", "--retries", "0"], &only_ca[..]].concat();
    let output = near.command(command).output().unwrap();
    // TLS 1.3 tells the client after the hand-shake, where it may look like a cut connection.
    let code = output.status.code().unwrap();
    assert!([7, 8].contains(&code), "{}", tests::stderr(&output));
    assert_eq!(far.snapshots(), [""; 0]);
}

#[test]
fn a_rate_is_kept_or_refused() {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    let nights = site.nights(&near, 12, 1);
    let far_path = site.arg("far");
    for command in [
        vec!["push", &far_path, "--all", "--limit-rate", "1MiB"],
        vec!["remote", "add", "usb-disk", &far_path, "--limit-rate", "1MiB"],
    ] {
        let said = near.expect_exit(2, command);
        assert!(said.contains(&format!("unix:{far_path}/owner.sock")), "{said}");
    }
    let serving = Serving::start(&far, &[""; 0]);
    let socket = format!("unix:{far_path}/owner.sock");
    let pushed = run(&mut near.command(["push", &socket, "--all", "--limit-rate", "1MiB"]));
    let [bytes, elapsed_s] = ["wire_bytes_sent", "elapsed_s"].map(|field| pushed[field].as_f64().unwrap());
    assert!(bytes > 2e6 && elapsed_s * f64::from(1 << 20) > bytes / 2.0, "{pushed}");
    drop(serving);
    far.assert_has_all(&nights);
}

#[test]
fn other_chunk_parameters_are_refused_unless_made_like_the_others() {
    let site = Site::new();
    let near = site.store("near");
    let nights = site.nights(&near, 4, 1);
    let far = Vmstore::new(site.path("far")).through_owner();
    far.run(["init", "--no-reserve", "--chunk-avg", "32KiB"]);
    for command in [["push", &site.arg("far"), "--all"], ["pull", &site.arg("far"), "--all"]] {
        let said = near.expect_exit(6, command);
        assert!(said.contains("chunk") && said.contains("--like"), "{said}");
    }
    let like = Vmstore::new(site.path("like")).through_owner();
    like.run(["init", "--no-reserve", "--like", &site.arg("far")]);
    let image = nights.values().next().unwrap();
    like.run(["ingest", image.to_str().unwrap(), "--image", "web01"]);
    like.run(["push", &site.arg("far"), "--all"]);
    far.assert_holds("web01", image);
}

#[test]
fn machines_reach_each_other_by_tls() {
    let (network, site) = (Network::new(2), Site::new());
    let (near, far) = (site.store("near"), site.store("far"));
    let nights = site.nights(&near, 12, 2);
    let token = far.run(["token", "add", "site-a", "--role", "push"]);
    let on = |machine, command: Command| {
        let mut inside = network.command(machine, command.get_program());
        inside.args(command.get_args());
        command.get_envs().filter_map(|(name, value)| Some((name, value?))).for_each(|(name, value)| {
            inside.env(name, value);
        });
        inside.env_remove("VMSTORE_STANDALONE");
        inside
    };
    let listen = format!("tls://{}:0", network.address(0));
    let mut serve = on(0, far.command(["serve", "--listen", &listen]));
    let serving = Serving::of(serve.env_remove("VMSTORE_IDLE_EXIT"), far.store(), 1);
    let server = &serving.listening()[0];
    let push = ["push", &server.address, "--pin", server.fingerprint.as_deref().unwrap(), "--all"];
    Running::start(on(1, near.command(push)).env("VMSTORE_TOKEN", token.trim())).succeed();
    far.assert_has_all(&nights);
}

/// A snapshot that both sites had when a push began is removed, at one of them, before the next night's turn comes.
fn assert_pushes_without_parent(loses: impl FnOnce(&Vmstore, &Vmstore)) {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    let _serving = Serving::start::<&str>(&far, &[]);
    let remote = &format!("unix:{}", far.store().join("owner.sock").display());
    let nights = site.nights(&near, 8, 3);
    let (last, common) = nights.iter().next_back().map(|last| (last, names(&nights)[..2].to_vec())).unwrap();
    near.run([&["push", remote.as_str()], &common[..]].concat());
    // Its turn is before that of `web01`, and takes some seconds.
    fs::write(site.path("first.raw"), Rng::new(4).noise(8 << 20)).unwrap();
    near.run(["ingest", &site.arg("first.raw"), "--image", "first"]);
    let there = far.packs_bytes();
    let push = Running::start(&mut near.command(["push", remote, "--all", "--limit-rate", "2MiB"]));
    eventually("the first of the push", || far.packs_bytes() > there);
    loses(&near, &far);
    push.succeed();
    far.assert_holds(last.0, last.1);
    far.run(["verify"]);
}

#[test]
fn a_push_goes_on_when_what_it_builds_on_is_removed_here() {
    assert_pushes_without_parent(|near, _| {
        near.run(["remove", "web01@20261102"]);
        assert!(near.json(["gc"])["removed_packs"].as_u64() > Some(0), "its manifest is still there");
    });
}

#[test]
fn a_push_goes_on_when_what_it_builds_on_is_removed_there() {
    assert_pushes_without_parent(|_, far| drop(far.run(["remove", "web01@20261102"])));
}

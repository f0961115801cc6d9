//! What a user does, with real processes and real files: the commands of the README, the import through a crash, kill -9 under
//! load, the ports for those who watch, and the exit codes.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quorate_client::{Blind, Client};
use quorate_tests::processes::{Cluster, Process, Said, bare_command, eventually, free_ports, isolate, quorate, root};
use tokio::time::Instant;

#[test]
fn an_import_and_an_export_are_equal_through_a_crash() {
    let said = Said::by(
        Command::new(root().join("scripts/import-through-a-crash"))
            .env("QUORATE_BIN", quorate())
            .env("BASE_PORT", free_ports().to_string()),
    );
    said.expect(0, &["n2 killed (-9)", "n2 started again", "== equal: all"]);
}

#[test]
fn five_nodes_heal_after_two_crashes_and_the_loss_of_a_disk() {
    let said = Said::by(
        Command::new(root().join("scripts/heal-after-crashes"))
            .arg("15")
            .env("QUORATE_BIN", quorate())
            .env("BASE_PORT", free_ports().to_string()),
    );
    said.expect(0, &["n3's disk is empty now", "== healed", "== equal: all"]);
}

#[test]
fn the_first_steps_of_the_readme_work_as_printed() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("there is one");
    let section = readme.split("\n## ").find(|section| section.starts_with("Try it")).expect("it says how to try it");
    let commands: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(commands[0].starts_with("scripts/install "), "the programs are in the PATH after this: {commands:?}");
    assert!(commands[1].starts_with("quorate dev -n 3"), "{commands:?}");
    assert!(commands.iter().any(|line| line.contains("dev kill n2 && quorate get greeting")), "{commands:?}");

    let dir = tempfile::tempdir().expect("a directory");
    // The one difference: the ports, so that the test does not meet a cluster that somebody runs here.
    let (_dev, _) = dev(dir.path(), &["-n", "3", "--base-port", &free_ports().to_string()]);
    for line in &commands[2..] {
        let said = Said::by(&mut shell(dir.path(), line)).expect(0, &[]);
        if line.contains("quorate get greeting") {
            assert!(said.out.ends_with("hello"), "{line}: {said}");
        }
        if line.starts_with("quorate status") {
            assert_eq!(
                said.out.lines().filter(|line| line.starts_with('n') && line.contains("  up  ")).count(),
                3,
                "{line}: {said}"
            );
        }
    }
    // The same on a terminal of 80 columns, as whoever reads the README has one.
    for line in commands[2..].iter().filter(|line| line.starts_with("quorate ")) {
        let said = Said::by(&mut on_a_terminal(dir.path(), line)).expect(0, &[]);
        let shown: Vec<&str> = said.out.lines().collect();
        if line.contains("quorate get greeting") {
            assert!(shown.contains(&"hello"), "{line}: {said}");
        }
        if line.starts_with("quorate status") {
            assert_eq!(shown.iter().filter(|line| line.starts_with('n') && line.contains(" up ")).count(), 3, "{said}");
            assert!(shown.iter().all(|line| line.chars().count() <= 80), "{said}");
        }
    }
    Said::by(&mut shell(dir.path(), "quorate dev stop")).expect(0, &[]);
}

#[test]
fn a_node_with_an_empty_disk_gets_everything_back_before_it_answers() {
    let mut cluster = Cluster::start(3);
    let put = |cluster: &Cluster, key: &str, value: &str| {
        cluster.run(&["put", key, value, "--blind", "--timeout", "5s"]).expect(0, &[]);
    };
    for number in 0..40 {
        put(&cluster, &format!("k{number}"), &format!("v{number}"));
    }
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.dir().join("data-n2")).expect("removed");
    for number in 40..60 {
        put(&cluster, &format!("k{number}"), &format!("v{number}"));
    }
    cluster.start_node(2);
    cluster.await_ready(2);
    eventually("n2 has recovered", || (cluster.metric(2, "quorate_recovering_partitions") == 0).then_some(()));
    assert!(cluster.log(2).contains("the disk is not the one that the layout names"), "{}", cluster.log(2));
    assert!(cluster.metric(2, "quorate_repaired_total{cause=\"wiped\"}") >= 40);
    for number in 0..60 {
        let (key, value) = (format!("k{number}"), format!("v{number}"));
        let said = eventually("all three answer", || {
            let said = cluster.run(&["get", &key, "--r", "all", "--timeout", "2s"]);
            (said.code == 0).then_some(said)
        });
        said.expect(0, &[&value]);
    }
    // Byte for byte: hash trees that are known and equal.
    eventually("nothing differs", || {
        let passes = |said: &Said| -> Option<u64> {
            let nodes = said.json();
            let nodes = nodes["nodes"].as_array()?.clone();
            let quiet = |node: &serde_json::Value| {
                node["differing"] == 0 && node["unknown"] == 0 && !node["last_pass_ms"].is_null()
            };
            nodes.iter().all(quiet).then(|| nodes.iter().filter_map(|node| node["pass"].as_u64()).sum())
        };
        let before = passes(&cluster.run(&["repair", "start", "-o", "json", "--timeout", "5s"]));
        std::thread::sleep(Duration::from_millis(500));
        let after = passes(&cluster.run(&["repair", "status", "-o", "json", "--timeout", "5s"]));
        (before.is_some() && after > before).then_some(())
    });
    cluster.run(&["repair", "status"]).expect(0, &["n1", "n2", "n3", "LAST WHOLE PASS"]);
}

#[test]
fn a_persistent_development_cluster_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = free_ports().to_string();
    let run = |words: &[&str]| Said::by(bare_command(dir.path()).args(words).env("QUORATE_TIMEOUT", "10s"));
    let (mut first, banner) = dev(dir.path(), &["--persist", "kept", "--base-port", &ports]);
    assert!(banner.contains("/kept\n"), "{banner}");
    run(&["put", "greeting", "hello"]).expect(0, &[]);
    // Whatever the umask is: keys and data are in there.
    let open_to_others = Command::new("find").arg(dir.path().join("kept")).args(["-perm", "/077"]).output();
    let open_to_others = open_to_others.expect("find runs");
    assert!(open_to_others.status.success() && open_to_others.stdout.is_empty(), "{open_to_others:?}");
    run(&["dev", "stop"]).expect(0, &[]);
    let base: u16 = ports.parse().expect("a number");
    for port in base + 1..=base + 3 {
        std::net::UdpSocket::bind(("127.0.0.1", port)).expect("free, as soon as the cluster is said to have ended");
    }
    run(&["get", "greeting"]).expect(2, &["quorate dev"]);
    assert!(first.ended().success());

    // Number of nodes and ports are those of the first time.
    let (mut second, _) = dev(dir.path(), &["--persist", "kept"]);
    assert_eq!(run(&["get", "greeting"]).expect(0, &[]).out, "hello");
    second.signal("INT");
    assert!(second.ended().success());
}

/// Writes of many clients go on while each node in turn is killed and comes back. As W nodes are there all the time, not one of
/// them may be refused. One whose coordinator died has an unknown outcome, and is retried with its operation id, as the error
/// says; afterwards every one of them is there, once, for a read with R = 2.
#[test]
fn kill_nine_of_each_node_in_turn_loses_no_write_and_refuses_none() {
    let mut cluster = Cluster::start(3);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let connect = Client::from_config(cluster.dir().join("client.toml")).expect("a profile").timeout(REQUEST_TIME);
    let db = runtime.block_on(connect.connect()).expect("the cluster runs");
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (db, stop, written) = (db.clone(), Arc::clone(&stop), Arc::clone(&written));
            runtime.spawn(async move {
                let mut acknowledged = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (key, value) = record(writer, acknowledged);
                    let mut written_now = db.put(&key, value.clone(), Blind).await;
                    for _ in 0..RETRIES_MAX {
                        let Err(error) = &written_now else { break };
                        let unknown = error.op_id().filter(|_| error.may_have_applied() && error.is_retryable());
                        let op_id = unknown.unwrap_or_else(|| panic!("{key}: {error}"));
                        written_now = db.put(&key, value.clone(), Blind).op_id(op_id).any_coordinator().await;
                    }
                    if let Err(error) = &written_now {
                        // Whoever had minted it has started since, so that it stays unknown: one looks, and writes it anew.
                        assert!(error.may_have_applied(), "{key}, after {RETRIES_MAX} retries: {error}");
                        // A node that has just started waits for a member that is down, for a second, before it answers reads.
                        let mut looked = db.get(&key).optional().await;
                        for _ in 0..RETRIES_MAX {
                            if looked.is_ok() {
                                break;
                            }
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            looked = db.get(&key).optional().await;
                        }
                        if looked.unwrap_or_else(|error| panic!("{key}: {error}")).is_none() {
                            let anew = db.put(&key, value.clone(), Blind).await;
                            anew.unwrap_or_else(|error| panic!("{key}, written anew: {error}"));
                        }
                    }
                    acknowledged += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                acknowledged
            })
        })
        .collect();
    let await_more = |what: &str| {
        let goal = written.load(Ordering::Relaxed) + 150;
        eventually(what, || {
            // A writer ends early only when a write has failed, which its own panic explains.
            let failed = writers.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || written.load(Ordering::Relaxed) >= goal).then_some(())
        });
    };
    for victim in 1..=3 {
        await_more("writes before a crash");
        cluster.kill(victim);
        await_more(&format!("writes without n{victim}"));
        cluster.start_node(victim);
        cluster.await_ready(victim);
        // Two nodes must be there for the next crash: all three count each other again.
        cluster.await_healthy();
    }
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for (writer, task) in writers.into_iter().enumerate() {
            for number in 0..task.await.expect("no write failed") {
                let (key, value) = record(writer, number);
                let read = db.get(&key).await.unwrap_or_else(|error| panic!("{key} was acknowledged: {error}"));
                assert_eq!(read.siblings(), [value.as_bytes()], "{key}");
            }
        }
        db.close().await;
    });
}

const WRITERS: usize = 8;

/// One retry finds another coordinator as soon as the client knows that the first is gone; the rest is for a busy machine.
const RETRIES_MAX: usize = 5;

/// Long enough for a busy machine. A request to a dead node gives up on it after half of this, so that more makes the test slow.
const REQUEST_TIME: Duration = Duration::from_secs(8);

fn record(writer: usize, number: usize) -> (String, String) {
    (format!("w{writer}-{number}"), format!("value {number} of writer {writer}"))
}

#[test]
fn a_node_shows_that_it_lives_whether_it_serves_and_what_it_does() {
    let mut cluster = Cluster::prepare(1);
    cluster.start_node(1);
    let alive = eventually("/livez answers", || cluster.http(1, "/livez"));
    assert_eq!(alive, (200, "alive\n".to_owned()));
    // It is starting, until then.
    eventually("there is no layout", || {
        let (status, why) = cluster.http(1, "/readyz").expect("it answers");
        assert_eq!(status, 503, "{why}");
        why.contains("no layout").then_some(())
    });
    cluster.run(&["put", "k", "v"]).expect(4, &["no layout", "layout stage join"]);

    cluster.run(&["layout", "stage", "join", &format!("n1={}", cluster.addr(1))]).expect(0, &[]);
    cluster.run(&["layout", "stage", "settings", "--replicas", "1"]).expect(0, &[]);
    cluster.run(&["layout", "apply", "--version", "1"]).expect(0, &[]);
    cluster.await_ready(1);
    for number in 0..3 {
        cluster.run(&["put", &format!("k{number}"), "v"]).expect(0, &[]);
    }
    cluster.run(&["get", "k0"]).expect(0, &["v"]);
    let count = |kind| {
        let name = format!("quorate_request_duration_seconds_count{{kind=\"{kind}\",outcome=\"ok\"}}");
        cluster.metric(1, &name)
    };
    // A put reads first.
    assert_eq!((count("put"), count("get")), (3, 4));
    for (name, expected) in [("quorate_layout_version", 1), ("quorate_nodes_up", 1), ("quorate_store_quarantined", 0)] {
        assert_eq!(cluster.metric(1, name), expected, "{name}");
    }
    let (_, metrics) = cluster.http(1, "/metrics").expect("it answers");
    assert!(metrics.contains("# TYPE quorate_puts_total counter"), "no text format 0.0.4: {metrics}");
    assert!(!metrics.contains("quorate_quorate"), "a doubled prefix");
}

#[test]
fn sigterm_ends_a_node_cleanly_and_what_it_holds_stays() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["put", "greeting", "hello", "--w", "all"]).expect(0, &[]);
    let begun = Instant::now();
    let status = cluster.terminate(2);
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(10), "SIGTERM took {:?}", begun.elapsed());
    assert!(cluster.log(2).contains("shut down"), "{}", cluster.log(2));
    cluster.run(&["get", "greeting"]).expect(0, &["hello"]);
    cluster.start_node(2);
    cluster.await_ready(2);
    cluster.await_healthy();
    let said = cluster.run(&["get", "greeting", "--r", "all", "--explain", "-o", "json"]).expect(0, &[]);
    assert_eq!(said.json()["evidence"]["asked"].as_array().map(Vec::len), Some(3), "{said}");
}

#[test]
fn exit_codes_are_as_promised() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["put", "k", "first"]).expect(0, &[]);
    cluster.run(&["put", "k", "second"]).expect(0, &[]);
    cluster.run(&["get", "k"]).expect(0, &["second"]);

    // 1: failed in a way that has no code of its own.
    let file = cluster.write("bad.ndjson", "{\"key\": \"a\", \"value\": \"1\"}\nnonsense\n");
    cluster.run(&["import".as_ref(), file.as_os_str()]).expect(1, &["1 written", "1 failed", "bad.ndjson:2"]);
    cluster.run(&["get", "k", "--nonsense"]).expect(2, &["--nonsense"]);
    cluster.run(&["get", "absent"]).expect(3, &["absent"]);
    cluster.run(&["del", "absent"]).expect(3, &["absent"]);

    // 6: siblings. Both values are there, and merging them ends it. Who writes blindly has asked for them.
    let stale = cluster.run(&["get", "k", "--context"]);
    cluster.run(&["put", "k", "third"]).expect(0, &[]);
    cluster.run(&["put", "k", "fourth", "--context", stale.out.trim()]).expect(6, &["2 siblings"]);
    cluster.run(&["get", "k"]).expect(6, &["third", "fourth", "--context"]);
    cluster.run(&["put", "k", "fifth", "--blind"]).expect(0, &["3 siblings"]);
    let context = cluster.run(&["get", "k", "--context"]);
    cluster.run(&["put", "k", "merged", "--context", context.out.trim()]).expect(0, &[]);
    cluster.run(&["get", "k"]).expect(0, &["merged"]);
    cluster.run(&["del", "k"]).expect(0, &[]);
    cluster.run(&["get", "k"]).expect(3, &[]);

    // 4: nobody there, nothing sent.
    let said = cluster.run(&["put", "k", "v", "--blind", "--seeds", "127.0.0.1:1", "--timeout", "300ms", "-o", "json"]);
    let error = said.expect(4, &["nothing was sent"]).error();
    assert_eq!((&error["retryable"], &error["may_have_applied"]), (&true.into(), &false.into()), "{error}");

    two_of_three_stand_still(&mut cluster);

    // 7: degraded, and the reason.
    cluster.kill(3);
    eventually("n3 is missed", || {
        let said = cluster.run(&["status", "--check"]);
        (said.code == 7 && said.out.starts_with("AT RISK") && said.out.contains("n3 is down")).then_some(())
    });
    cluster.run(&["get", "calm"]).expect(0, &["before"]);
}

/// Two of three primaries are stopped. At first nobody knows: a write is sent, and its outcome is unknown (5). Once they are
/// known to be away a write is refused before it begins (4), and must never show up.
fn two_of_three_stand_still(cluster: &mut Cluster) {
    cluster.run(&["put", "calm", "before", "--w", "all"]).expect(0, &[]);
    let first = cluster.addr(1).to_string();
    cluster.node(2).signal("STOP");
    cluster.node(3).signal("STOP");
    let mut codes = Vec::new();
    let refused = eventually("a write is refused", || {
        let key = format!("stalled-{}", codes.len());
        let words = ["put", &key, "v", "--blind", "--timeout", "500ms", "--seeds", &first, "-o", "json"];
        let said = cluster.run(&words);
        codes.push(said.code);
        let error = said.error();
        match said.code {
            5 => assert_eq!(error["may_have_applied"], true, "{said}"),
            4 => {
                assert_eq!(error["may_have_applied"], false, "{said}");
                return Some(key);
            }
            _ => panic!("neither unknown nor unavailable: {said}"),
        }
        None
    });
    // A read of one replica is served all the time.
    cluster.run(&["get", "calm", "--r", "one", "--seeds", &first]).expect(0, &["before"]);
    cluster.node(2).signal("CONT");
    cluster.node(3).signal("CONT");
    cluster.await_healthy();
    cluster.run(&["get", &refused, "--r", "all"]).expect(3, &[]);
    for number in 0..codes.len() - 1 {
        let said = cluster.run(&["get", &format!("stalled-{number}"), "--r", "all"]);
        assert!(said.code == 0 && said.out == "v" || said.code == 3, "there as a whole or not at all: {said}");
    }
}

/// `quorate dev` in the foreground, once it has said that it is ready, and what it has said.
fn dev(dir: &Path, words: &[&str]) -> (Process, String) {
    let path = dir.join("dev.out");
    let out = File::create(&path).expect("a file");
    let mut command = bare_command(dir);
    let mut process = Process::start(command.arg("dev").args(words).stdout(out));
    let banner = eventually("quorate dev is ready", || {
        let said = std::fs::read_to_string(&path).expect("text");
        assert!(process.runs(), "quorate dev has ended: {said}");
        said.contains("Ctrl-C").then_some(said)
    });
    (process, banner)
}

/// A line as it is typed in a terminal, with the built binary in the PATH, and cargo working where the binary was built.
fn shell(dir: &Path, line: &str) -> Command {
    let mut path = quorate().parent().expect("in a directory").as_os_str().to_owned();
    let _ = write!(path, ":{}", std::env::var("PATH").expect("there is one"));
    let mut command = Command::new("bash");
    isolate(&mut command, dir);
    command.args(["-c", line]).current_dir(root()).env("PATH", path).env("QUORATE_TIMEOUT", "10s");
    command.env("CARGO_TARGET_DIR", quorate().ancestors().nth(2).expect("target/<profile>/quorate"));
    command
}

/// The same line with a terminal of 80 columns at its other end; what it says on stderr comes with what it says on stdout.
fn on_a_terminal(dir: &Path, line: &str) -> Command {
    let mut command = shell(dir, r#"script --quiet --return --command "$LINE" /dev/null"#);
    // In colours the text would not be what it says.
    command.env("LINE", format!("stty cols 80 rows 24; {line}")).env("TERM", "xterm").env("NO_COLOR", "1");
    command
}

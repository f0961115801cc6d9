//! What happens to a node from outside, with real processes: logs that cannot be written, signals, disks that fill up, certificates
//! that run out, keys and data that others can read, predecessors that are still there. None of it ends or wedges a node.

use std::fs::{File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use quorate_client::{Blind, Client};
use quorate_tests::processes::{Cluster, PATIENCE, Process, Said, bare_command, eventually};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Every file and directory below one.
fn all_below(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(path.to_owned());
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("readable") {
            all_below(&entry.expect("readable").path(), found);
        }
    }
}

/// A log on a full disk, and one whose reader has gone, cost log lines and nothing else.
#[test]
fn a_log_that_cannot_be_written_costs_its_lines_only() {
    let mut cluster = Cluster::start(3);
    for number in [2, 3] {
        assert!(cluster.terminate(number).success());
    }
    let start = |cluster: &Cluster, number: usize, stderr: Stdio| {
        let mut command = bare_command(cluster.dir());
        command.args(["server", "--config", &format!("n{number}.toml")]).stdout(Stdio::null()).stderr(stderr);
        Process::start(&mut command)
    };
    let full = File::options().write(true).open("/dev/full").expect("there is one");
    let mut second = start(&cluster, 2, full.into());
    let (reader, writer) = std::io::pipe().expect("there are descriptors");
    let mut third = start(&cluster, 3, writer.into());
    drop(reader);
    for number in [2, 3] {
        eventually("it is ready", || cluster.http(number, "/readyz").filter(|(status, _)| *status == 200));
    }
    // What they have to say when a peer goes and comes back once ended their membership.
    cluster.kill(1);
    for number in [2, 3] {
        eventually("it sees n1 go", || (cluster.metric(number, "quorate_nodes_up") == 2).then_some(()));
    }
    cluster.start_node(1);
    for number in [1, 2, 3] {
        eventually("it sees n1 come", || {
            let shown = cluster.http(number, "/metrics").filter(|(_, text)| text.contains("quorate_nodes_up 3"));
            shown.map(drop)
        });
    }
    assert!(second.runs() && third.runs());
    for number in [2, 3] {
        assert!(cluster.metric(number, "quorate_log_lines_dropped_total") > 0, "they are counted");
    }
}

#[test]
fn a_log_file_is_rotated_and_opened_anew() {
    let mut cluster = Cluster::prepare(1);
    let logging = |cluster: &Cluster, level: &str| {
        let mut command = bare_command(cluster.dir());
        command.args(["server", "--config", "n1.toml", "--log-file", "node.log", "--log-format", "json"]);
        command.args(["--log-level", level, "--log-file-size", "64KiB", "--log-files", "2"]);
        command
    };
    let dir = cluster.dir().to_owned();
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    cluster.start_node_by(1, logging(&cluster, "trace"));
    // A node that nobody asks has little to say.
    eventually("it is rotated", || {
        cluster.run(&["status"]);
        read("node.log.2").ok()
    });
    for name in ["node.log.1", "node.log.2"] {
        // Between two of its names a file has none.
        let text = eventually("a log", || read(name).ok());
        assert!(text.len() <= 64 << 10, "{name} has {} bytes", text.len());
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert!(!text.is_empty() && text.lines().all(is_json), "each line is JSON: {text}");
    }
    assert!(cluster.terminate(1).success());
    assert_eq!(mode(&dir.join("node.log")), 0o600);
    let nowhere = ["server", "--config", "n1.toml", "--log-file", "no/such/directory/log"];
    cluster.run(&nowhere).expect(2, &["cannot write the log file", "no/such/directory/log"]);

    cluster.start_node_by(1, logging(&cluster, "info"));
    eventually("it logs", || read("node.log").ok().filter(|text| text.contains("listening")));
    std::fs::rename(dir.join("node.log"), dir.join("moved")).expect("moved");
    cluster.node(1).signal("HUP");
    eventually("it is opened anew", || read("node.log").ok().filter(|text| text.contains("SIGHUP")));
    assert!(cluster.node(1).runs());
    assert!(cluster.terminate(1).success());
    assert!(read("node.log").expect("readable").contains("shut down"));
}

/// A certificate that ends in 20 days is warned of everywhere; it is renewed under load, and no request is lost.
#[test]
fn certificates_are_warned_of_and_renewed_without_losing_a_request() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["check", "certs"]).expect(0, &["ok"]);
    cluster.run(&["cert", "renew", "n2", "--days", "20"]).expect(0, &["n2.pem"]);
    cluster.run(&["cert", "show"]).expect(7, &["n2", "node", "19 days", "admin", "administrator", "authority"]);
    cluster.run(&["cert", "show", "n1"]).expect(0, &["n1", "364 days"]);
    cluster.run(&["cert", "renew", "n9"]).expect(2, &["n9.pem", "cert node"]);

    let stop = Arc::new(AtomicBool::new(false));
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (stop, done, failed) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
        let profile = cluster.dir().join("client.toml");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let db = Client::from_config(profile).expect("a profile").timeout(PATIENCE);
                let db = db.connect().await.expect("the cluster runs");
                while !stop.load(Ordering::Relaxed) {
                    let counter = match db.put("k", "v", Blind).await {
                        Ok(_) => &done,
                        Err(_) => &failed,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    // Blind writes become siblings; these are taken back.
                    if let Ok(read) = db.get("k").await {
                        let _ = db.put("k", "v", &read).await;
                    }
                }
            });
        })
    };
    let left = |cluster: &Cluster| cluster.metric(2, "quorate_certificate_seconds_left");
    assert!(left(&cluster) > 300 * 86_400, "it still has the old one");
    cluster.node(2).signal("HUP");
    eventually("the new one is in use", || (left(&cluster) < 20 * 86_400).then_some(()));
    eventually("it is warned of", || cluster.log(2).contains("expires in 19 days").then_some(()));
    cluster.run(&["status"]).expect(0, &["HEALTHY", "the certificate expires in 19 days on n2"]);
    cluster.run(&["status", "--check"]).expect(0, &[]);
    cluster.run(&["check", "certs"]).expect(7, &["the certificate expires in 19 days on n2"]);

    // What does not fit is not taken, and harms nobody.
    let pem = cluster.dir().join("certs/n2.pem");
    let good = std::fs::read(&pem).expect("readable");
    std::fs::copy(cluster.dir().join("certs/n1.pem"), &pem).expect("copied");
    cluster.node(2).signal("HUP");
    eventually("it is refused", || cluster.log(2).contains("the certificate stays as it was").then_some(()));
    std::fs::write(&pem, good).expect("written");

    for number in [1, 2, 3] {
        cluster.run(&["cert", "renew", &format!("n{number}")]).expect(0, &[]);
        cluster.node(number).signal("HUP");
    }
    eventually("all is well", || (cluster.run(&["check", "certs"]).code == 0).then_some(()));
    let before = done.load(Ordering::Relaxed);
    eventually("the load goes on", || (done.load(Ordering::Relaxed) > before + 20).then_some(()));
    stop.store(true, Ordering::Relaxed);
    load.join().expect("no panic");
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} writes", done.load(Ordering::Relaxed));
    // A node that dials anew shows the renewed one.
    cluster.kill(1);
    cluster.start_node(1);
    cluster.await_healthy();
}

#[test]
fn data_and_keys_are_for_their_owner_only() {
    let mut cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let data = cluster.dir().join("data-n1");
    let mut paths = Vec::new();
    all_below(&data, &mut paths);
    assert!(paths.len() > 4, "{paths:?}");
    for path in &paths {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(path), wanted, "{}", path.display());
    }
    // A directory from before, or from somebody who meant well.
    assert!(cluster.terminate(1).success());
    set_mode(&data, 0o755);
    set_mode(&data.join("quorate.json"), 0o644);
    let key = cluster.dir().join("certs/n1.key");
    set_mode(&key, 0o644);
    cluster.start_node(1);
    cluster.await_ready(1);
    assert_eq!((mode(&data), mode(&data.join("quorate.json")), mode(&key)), (0o700, 0o600, 0o600));
    let log = cluster.log(1);
    assert!(log.contains("could read the data directory") && log.contains("the private key was readable"), "{log}");

    let key = cluster.dir().join("certs/admin.key");
    set_mode(&key, 0o644);
    cluster.run(&["get", "k"]).expect(2, &["admin.key", "readable by every user", "chmod 600"]);
    let refused = Client::from_config(cluster.dir().join("client.toml")).expect_err("refused as well");
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
    // The group that root has given it to may read it.
    set_mode(&key, 0o640);
    cluster.run(&["get", "k"]).expect(0, &["v"]);
}

#[test]
fn import_and_bench_say_how_far_they_are_when_a_signal_ends_them() {
    let cluster = Cluster::start(1);
    for (signal, name, clients) in [("TERM", "SIGTERM", "2"), ("INT", "interrupt", "3")] {
        // Its input does not end.
        let mut command = cluster.command(&["import", "-"]);
        let errors = cluster.dir().join("errors");
        command.stderr(File::create(&errors).expect("made"));
        let mut import = command.stdin(Stdio::piped()).spawn().expect("it starts");
        let mut input = import.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut input, b"{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n")
            .expect("written");
        eventually("both lines are in", || (cluster.run(&["get", "b"]).code == 0).then_some(()));
        eventually("both lines are in", || (cluster.run(&["get", "a"]).code == 0).then_some(()));
        let sent = Command::new("kill").args([&format!("-{signal}"), &import.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let status = eventually("its end", || import.try_wait().expect("it is a child"));
        let said = std::fs::read_to_string(&errors).expect("readable");
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(said.contains(&format!("ended by {name}")) && said.contains(" written, "), "{said}");

        let mut bench = cluster.command(&["bench", "--duration", "1m", "--clients", clients, "--keys", "6"]);
        let out = cluster.dir().join("figures");
        bench.stdout(File::create(&out).expect("made")).stderr(File::create(&errors).expect("made"));
        let mut bench = Process::start(&mut bench);
        let last = if clients == "2" { "bench/1/2" } else { "bench/2/1" };
        eventually("it has filled its keys", || (cluster.run(&["get", last]).code == 0).then_some(()));
        thread::sleep(Duration::from_millis(500));
        bench.signal(signal);
        let status = bench.ended();
        let said = std::fs::read_to_string(&errors).expect("readable");
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(said.contains(&format!("ended by {name}")), "{said}");
    }
}

/// Each client of this open loop has one request in sixteen seconds: what they wait for beyond the measurement is no part of it.
#[test]
fn an_open_loop_is_measured_over_the_time_of_its_requests() {
    let cluster = Cluster::start(1);
    let bench = ["bench", "--mode", "open", "--rate", "1", "--clients", "16", "--keys", "16", "--duration", "1s"];
    let said = cluster.run(&[&bench[..], &["-o", "json"]].concat()).expect(0, &[]);
    let seconds = said.json()["seconds"].as_f64().expect("a number");
    assert!((1.0..4.0).contains(&seconds), "{said}");
}

/// A part of the disk is kept free. Here the part is so large that it is not: values are refused, and everything else goes on.
#[test]
fn a_node_whose_disk_is_full_reads_and_others_write() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["put", "before", "1", "--w", "all"]).expect(0, &[]);
    cluster.run(&["put", "doomed", "1", "--w", "all"]).expect(0, &[]);
    assert!(cluster.terminate(3).success());
    let free = {
        let shown = Command::new("df").args(["-B1", "--output=avail"]).arg(cluster.dir()).output().expect("df runs");
        let text = String::from_utf8(shown.stdout).expect("text");
        text.lines().nth(1).and_then(|line| line.trim().parse::<u64>().ok()).expect("a number")
    };
    let mut command = bare_command(cluster.dir());
    command.args(["server", "--config", "n3.toml", "--disk-reserve", &format!("{}KiB", free / 512)]);
    cluster.start_node_by(3, command);
    let (_, why) = eventually("it says so", || {
        cluster.http(3, "/readyz").filter(|(status, text)| *status == 503 && text.contains("the disk is full"))
    });
    assert!(why.contains("disk_reserve"), "{why}");
    eventually("it is up again", || {
        cluster.http(1, "/metrics").filter(|(_, text)| text.contains("quorate_nodes_up 3")).map(drop)
    });
    cluster.run(&["status", "--check"]).expect(7, &["DEGRADED", "n3 takes no new values: the disk is full"]);
    assert_eq!(cluster.metric(3, "quorate_disk_full"), 1);
    let on = cluster.addr(3).to_string();
    let at_third = |args: &[&str]| {
        let mut command = cluster.command(args);
        Said::by(command.args(["--seeds", &on]))
    };
    at_third(&["get", "before"]).expect(0, &["1"]);
    // Two of three are enough, whoever is asked.
    at_third(&["put", "during", "2"]).expect(0, &[]);
    cluster.run(&["put", "before", "2"]).expect(0, &[]);
    cluster.run(&["put", "never", "3", "--w", "all"]).expect(5, &[]);
    // A delete is merged everywhere.
    cluster.run(&["del", "doomed", "--w", "all"]).expect(0, &[]);
    assert!(cluster.metric(3, "quorate_disk_full_refusals_total") > 0);

    // There is room again.
    assert!(cluster.terminate(3).success());
    cluster.start_node(3);
    cluster.await_healthy();
    cluster.run(&["put", "after", "4", "--w", "all"]).expect(0, &[]);
    cluster.run(&["get", "during"]).expect(0, &["2"]);
    cluster.run(&["get", "doomed"]).expect(3, &[]);
}

/// Whoever says nothing takes nobody's place.
#[test]
fn silent_connections_do_not_keep_monitors_out() {
    let cluster = Cluster::start(1);
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(cluster.http_addr(1)).expect("accepted")).collect();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(cluster.http(1, path).map(|(status, _)| status), Some(200), "{path}");
    }
    drop(silent);
}

/// A predecessor that is about to end is waited for; one that stays is named.
#[test]
fn a_predecessor_is_waited_for_and_named() {
    let mut cluster = Cluster::start(1);
    let second = || {
        let mut command = bare_command(cluster.dir());
        command.args(["server", "--config", "n1.toml"]);
        command
    };
    // The HTTP port is the first that is tried, then the directory, then the port itself.
    let process = "process ";
    Said::by(&mut second()).expect(1, &["HTTP on", process, "listens there already"]);
    let other_http = ["--http", &cluster.http_addr(2).to_string()];
    Said::by(second().args(other_http)).expect(1, &["data-n1", process, "holds its lock"]);
    let elsewhere = ["--data-dir", "other"];
    Said::by(second().args(other_http).args(elsewhere)).expect(1, &["listen", process, "listens there already"]);

    // The next one starts while the first one still runs, which is then killed.
    let mut next = second();
    let log = File::create(cluster.dir().join("next.log")).expect("made");
    next.stdout(Stdio::null()).stderr(log);
    let mut next = Process::start(&mut next);
    thread::sleep(Duration::from_millis(300));
    cluster.kill(1);
    eventually("it has taken over", || cluster.http(1, "/readyz").filter(|(status, _)| *status == 200));
    assert!(next.runs());
}

/// A node that was wiped, met no other, and was given a layout of its own: two clusters of one name, which share that node.
#[test]
fn two_layouts_side_by_side_are_told_by_both_until_one_is_given_up() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["put", "k", "one"]).expect(0, &[]);
    let wipe = |cluster: &mut Cluster| {
        assert!(cluster.terminate(3).success());
        std::fs::remove_dir_all(cluster.dir().join("data-n3")).expect("there");
    };
    wipe(&mut cluster);
    let beside = |name: &str, of: &str, begins: &str, line: &str| {
        let text = std::fs::read_to_string(cluster.dir().join(of)).expect("there");
        let old = text.lines().find(|old| old.starts_with(begins)).expect("it has that line");
        cluster.write(name, &text.replace(old, line));
    };
    beside("n3-alone.toml", "n3.toml", "join", "join = []");
    beside("alone.toml", "client.toml", "seeds", &format!("seeds = [\"{}\"]", cluster.addr(3)));
    let alone = |cluster: &Cluster, words: &[&str]| cluster.run(&[words, &["--config", "alone.toml"]].concat());
    let mut command = bare_command(cluster.dir());
    command.args(["server", "--config", "n3-alone.toml"]);
    cluster.start_node_by(3, command);
    let member = format!("n3={}", cluster.addr(3));
    eventually("it can be staged", || (alone(&cluster, &["layout", "stage", "join", &member]).code == 0).then_some(()));
    // Without a layout it is said what to look at first.
    alone(&cluster, &["status"]).expect(0, &["First start every node that `join` names", "another cluster's for ever"]);
    alone(&cluster, &["layout", "stage", "settings", "--replicas", "1"]).expect(0, &[]);
    alone(&cluster, &["layout", "apply", "--version", "1"]).expect(0, &["layout version 1"]);
    cluster.await_ready(3);
    alone(&cluster, &["get", "k"]).expect(3, &[]);

    assert!(cluster.terminate(3).success());
    cluster.start_node(3);
    cluster.await_ready(3);
    let verdict = ["TWO LAYOUTS", "n3 holds ", "n1, n2 hold ", "is not seen under the other"];
    eventually("all three have met", || {
        let told = |said: Said| said.code == 7 && verdict.iter().all(|word| said.out.contains(word));
        (told(cluster.run(&["status", "--check"])) && told(alone(&cluster, &["status", "--check"]))).then_some(())
    });
    for check in ["quorum", "replicas"] {
        cluster.run(&["check", check]).expect(7, &verdict);
        alone(&cluster, &["check", check]).expect(7, &verdict);
    }
    alone(&cluster, &["check", "certs"]).expect(7, &["n1 holds another layout", "n2 holds another layout"]);
    let json = alone(&cluster, &["status", "-o", "json"]).expect(0, &[]).json();
    assert_eq!((json["healthy"].as_bool(), json["other_layouts"].as_array().map(Vec::len)), (Some(false), Some(2)));

    // As it says.
    wipe(&mut cluster);
    cluster.start_node(3);
    cluster.await_ready(3);
    cluster.await_healthy();
    alone(&cluster, &["get", "k"]).expect(0, &["one"]);
}

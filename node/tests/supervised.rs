//! Each task of a node is made to panic once, and each time the process hears of it.
//!
//! One test in a process of its own: what is done about a panic is set for the whole process.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::options::RequestOptions;
use quorate_client::{Blind, Client};
use quorate_core::keyspace::data_key;
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::{Durability, Executor, Identity, Latency, MemoryStore, Opened, Tree};
use quorate_node::supervise::{self, TASKS};
use quorate_transport::Seams;
use quorate_transport::tls::Credentials;
use quorate_wire::Quorum;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::{Key, LayoutCommand, RequestBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

#[cfg_attr(not(debug_assertions), ignore = "the fault point is not compiled in")]
#[test]
fn a_panic_in_any_task_of_a_node_is_heard_of() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hears = Arc::clone(&heard);
    supervise::on_panic(move |why| hears.lock().expect("nothing panics while it is locked").push(why.to_owned()));
    for name in TASKS {
        heard.lock().expect("nothing panics while it is locked").clear();
        // A runtime of its own, so that nothing of the last one is left.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
        let about = |why: &String| why.contains(&format!("{name:?} has panicked: on purpose"));
        let is_heard = || heard.lock().expect("nothing panics while it is locked").iter().any(about);
        runtime.block_on(async {
            supervise::panic_next(name);
            // What the panic breaks may hang, or panic as well; it is over when the panic has been heard of.
            let living = tokio::spawn(live());
            let begun = Instant::now();
            while !is_heard() {
                assert!(begun.elapsed() < PATIENCE, "nobody heard that {name:?} has panicked");
                let over = living.is_finished();
                sleep(Duration::from_millis(20)).await;
                assert!(!over || is_heard(), "a life is over, and {name:?} has not panicked, or nobody heard of it");
            }
        });
        runtime.shutdown_background();
    }
}

/// Two nodes of one cluster, a layout, requests that go through both, hints, and scrapes.
async fn live() {
    let seams = Seams::system();
    let now = (seams.wall_clock)();
    let ca = Ca::make(&seams.random, ClusterId(7), now, VALIDITY).expect("makes a CA");
    let credentials = |issued: Issued| {
        Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
    };
    let (mut nodes, mut stores): (Vec<Node>, Vec<MemoryStore>) = Default::default();
    for at in 0..2u128 {
        let node = NodeId::new(&format!("n{}", at + 1)).expect("legal");
        let config = NodeConfig {
            node,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise: None,
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            join: nodes.iter().map(Node::addr).collect(),
            credentials: credentials(ca.issue_node(&seams.random, node, now, VALIDITY).expect("issues")),
            durability: if at == 0 { Durability::Group } else { Durability::Interval },
            sync_interval: Duration::from_millis(20),
            mechanisms: Mechanisms::default(),
            anti_entropy: AntiEntropyConfig::default(),
            layout_changes: false,
        };
        let store = MemoryStore::new();
        stores.push(store.clone());
        let open = move || {
            let store = Arc::new(store.clone());
            let identity = Identity { cluster: ClusterId(7), node, disk: DiskId(at), boot: 2, clean: at == 0 };
            Ok(Opened { store, identity, quarantined: None })
        };
        let mut env = Env::system(Arc::new(open));
        if at == 1 {
            env.executor = Executor::Slow(Latency(Arc::new(|| Duration::from_millis(1))));
        }
        let Ok(started) = Node::start(config, env).await else { return };
        let shown = started.http_addr().expect("it has one");
        nodes.push(started);
        scrape(shown).await;
    }
    let admin = credentials(ca.issue_client(&seams.random, "admin", true, now, VALIDITY).expect("issues"));
    let Ok(admin) = Client::builder([nodes[0].addr()]).credentials(admin).connect().await else { return };
    let options = RequestOptions::default().timeout(Duration::from_secs(5));
    let joins = nodes.iter().map(|node| LayoutCommand::StageJoin {
        node: node.id(),
        addr: node.addr(),
        zone: node.id().to_string(),
        weight: 1,
    });
    let settings = LayoutCommand::StageSettings { n: Some(2), partitions: Some(8), r: None, w: None };
    let apply = LayoutCommand::Apply { version: LayoutVersion(1) };
    for command in joins.chain([settings, apply]) {
        if admin.request_at(nodes[0].addr(), RequestBody::Layout(command), options).await.is_err() {
            return;
        }
    }
    for i in 0..200 {
        // Whether it succeeds is not the point here.
        let _ = admin.put(format!("key-{i}"), "value", Blind).await;
        if i % 50 == 0 {
            // A record rots, and is brought back.
            stores[1].flip_bit(Tree::Data, &data_key(&Key::plain(format!("key-{i}"))));
            let _ = admin.get(format!("key-{i}")).r(Quorum::All).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn scrape(addr: SocketAddr) {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return };
    let mut answer = String::new();
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n").await;
    let _ = timeout(Duration::from_secs(1), stream.read_to_string(&mut answer)).await;
}

/// No task of a node is started in any other way, and every name is that of a task.
#[test]
fn every_task_is_supervised() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut named = BTreeSet::new();
    let mut bare = Vec::new();
    read(&root, &mut |path, text| {
        // Tests stand at the end of a file, or in files of their own.
        let tests = path.file_stem().is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_test"));
        if tests || path.starts_with(root.join("cli")) || path.ends_with("supervise.rs") || path.ends_with("main.rs") {
            return;
        }
        let text = text.replace("\npub(super) mod tests {", "\nmod tests {");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for opening in ["supervise::spawn(", "supervise::watched("] {
            for (at, _) in code.match_indices(opening) {
                let quoted = code[at + opening.len()..].trim_start().strip_prefix('"');
                named.insert(quoted.and_then(|quoted| quoted.split('"').next()).unwrap_or("no name").to_owned());
            }
        }
        for (at, _) in code.match_indices("spawn(") {
            let before = &code[..at];
            let what = code[at..].trim_start_matches("spawn(").trim_start();
            let supervised = before.ends_with("supervise::")
                || what.starts_with("supervise::watched(")
                || ALLOWED.iter().any(|(file, begins)| path.ends_with(file) && what.starts_with(begins));
            if !supervised && !before.ends_with("fn ") {
                let line = before.lines().count();
                bare.push(format!("{}:{line}: {}", path.display(), what.lines().next().unwrap_or_default()));
            }
        }
    });
    assert!(bare.is_empty(), "tasks that nobody watches:\n{}", bare.join("\n"));
    let listed: BTreeSet<String> = TASKS.iter().map(|name| (*name).to_owned()).filter(|name| name != "quic").collect();
    assert_eq!(named, listed, "the table says what the sources say");
}

/// Calls of functions that are called `spawn` themselves and watch what they are given, and threads whose panics are caught.
const ALLOWED: &[(&str, &str)] = &[
    ("coordinator/repair.rs", "task"),
    ("coordinator/read.rs", "rest"),
    ("coordinator/write.rs", "task"),
    ("peers.rs", "shared.clone().keep_connected()"),
    ("peers.rs", "async move {"),
    ("peers.rs", "self.0.clone().adopted("),
    ("peers/tests.rs", ""),
    ("replica_test.rs", ""),
    ("store/contract.rs", ""),
    ("store/executor.rs", "move || shared.work()"),
    ("store/on_disk.rs", "{"),
    // Without this thread the node is whole.
    ("store/stuck.rs", "watch"),
    ("http.rs", "served"),
    ("server.rs", "served"),
];

fn read(folder: &Path, seen: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("is a folder") {
        let path = entry.expect("is readable").path();
        if path.is_dir() {
            read(&path, seen);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            seen(&path, &fs::read_to_string(&path).expect("is text"));
        }
    }
}

/// For a life and its panic, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

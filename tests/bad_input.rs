//! What strangers, mistakes and broken machines can do to a node, with real processes and real sockets: every bad input gets a
//! clear answer, and costs nobody else anything.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use quorate_client::{Blind, Client, Error};
use quorate_node::cert::{Ca, Issued};
use quorate_node::peer_wire::ALPN_PEER;
use quorate_tests::processes::{Cluster, PATIENCE, Said, bare_command, eventually, isolate, quorate};
use quorate_transport::close;
use quorate_transport::quic;
use quorate_transport::rpc::STALL;
use quorate_transport::tls::{self, Credentials};
use quorate_transport::{Link, Seams};
use quorate_wire::ids::NodeId;
use quorate_wire::random::Random;
use quorate_wire::{ALPN_CLIENT, KEY_LEN_MAX, VALUE_LEN_MAX};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

#[test]
fn keys_values_quorums_and_options_have_limits_that_are_named() {
    let cluster = Cluster::start(1);
    let largest_key = "k".repeat(KEY_LEN_MAX);
    cluster.run(&["put", &largest_key, "v"]).expect(0, &[]);
    for command in ["get", "put", "del", "locate"] {
        let words = |key| if command == "put" { vec![command, key, "v"] } else { vec![command, key] };
        cluster.run(&words("")).expect(2, &["empty", "1 to 1024"]);
        cluster.run(&words(&format!("{largest_key}k"))).expect(2, &["1025 bytes", "at most 1024"]);
    }

    let value = |len: usize| {
        let path = cluster.dir().join(format!("value-{len}"));
        std::fs::write(&path, vec![b'v'; len]).expect("written");
        format!("@{}", path.display())
    };
    cluster.run(&["put", "large", &value(VALUE_LEN_MAX)]).expect(0, &[]);
    assert_eq!(cluster.run(&["get", "large"]).expect(0, &[]).out.len(), VALUE_LEN_MAX);
    cluster.run(&["put", "larger", &value(VALUE_LEN_MAX + 1)]).expect(2, &["1048577", "1048576"]);
    cluster.run(&["get", "larger"]).expect(3, &[]);

    cluster.run(&["put", "k", "v", "--w", "2"]).expect(2, &["W=2", "N=1", "nothing was changed"]);
    cluster.run(&["get", "k", "--r", "2"]).expect(2, &["R=2", "N=1"]);
    for quorum in ["0", "-1", "256", "some"] {
        cluster.run(&["get", "k", &format!("--r={quorum}")]).expect(2, &["majority"]);
        cluster.run(&["put", "k", "v", &format!("--w={quorum}")]).expect(2, &["majority"]);
    }
    cluster.run(&["get", "k", "--explian"]).expect(2, &["--explian", "--explain"]);
    cluster.run(&["gett", "k"]).expect(2, &["gett", "'get'"]);
    cluster.run(&["put", "k", "v", "--context", "nonsense"]).expect(2, &["context", "nothing was changed"]);
    cluster.run(&["put", "k", "v", "--context", "no/base64url"]).expect(2, &["not a context"]);
    cluster.run(&["get", "k"]).expect(3, &[]);

    // What the tool refuses the node refuses as well.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let errors = runtime.block_on(async {
        let connect = Client::from_config(cluster.dir().join("client.toml")).expect("a profile").timeout(PATIENCE);
        let db = connect.connect().await.expect("the cluster runs");
        let large = vec![b'v'; VALUE_LEN_MAX + 1];
        let long = vec![b'k'; KEY_LEN_MAX + 1];
        [
            db.get("").await.expect_err("an empty key"),
            db.get(&long).await.expect_err("a long key"),
            db.put("k", large, Blind).await.expect_err("a large value"),
        ]
    });
    for error in errors {
        assert!(!error.may_have_applied() && !error.is_retryable(), "{error}");
        assert!(matches!(error, Error::NotApplied(_) | Error::Misuse { .. }), "{error}");
    }
}

#[test]
fn unknown_keys_of_configurations_are_errors_with_a_suggestion() {
    let cluster = Cluster::prepare(1);
    let path = cluster.dir().join("n1.toml");
    let good = std::fs::read_to_string(&path).expect("there");
    for (wrong, suggestion) in [
        (good.replace("data_dir", "data_dri"), "`data_dir`"),
        (good.replace("listen", "lisen"), "`listen`"),
        (good.replace("[tls]\nca", "[tls]\ncaa"), "`tls.ca`"),
    ] {
        cluster.write("n1.toml", &wrong);
        cluster
            .run(&["server", "--config", "n1.toml"])
            .expect(2, &["n1.toml:", "unknown key", "did you mean", suggestion]);
    }
    cluster.write("n1.toml", &good.replace("\"127.0.0.1:", "\"127.0.0.1;"));
    cluster.run(&["server", "--config", "n1.toml"]).expect(2, &["n1.toml:2", "127.0.0.1;"]);
    cluster.write("n1.toml", "node = \"n1");
    cluster.run(&["server", "--config", "n1.toml"]).expect(2, &["n1.toml"]);
    cluster.run(&["server", "--config", "absent.toml"]).expect(2, &["absent.toml", "check the path"]);
    cluster.write("client.toml", "sedes = [\"127.0.0.1:7401\"]\n");
    cluster.run(&["get", "k"]).expect(2, &["client.toml:1", "unknown key `sedes`", "did you mean `seeds`"]);
    assert!(!cluster.dir().join("data-n1").exists(), "a node that does not start leaves nothing");
}

#[test]
fn certificates_decide_who_may_do_what() {
    let cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let with = |words: &[&str], cert: &str| {
        let (cert, key) = (format!("{cert}.pem"), format!("{cert}.key"));
        cluster.run(&[words, &["--cert", &cert, "--key", &key]].concat())
    };

    // No administrator: reads, writes and looks, and changes nothing.
    cluster.run(&["cert", "client", "joe"]).expect(0, &[]);
    with(&["get", "k"], "certs/joe").expect(0, &["v"]);
    with(&["layout", "show"], "certs/joe").expect(0, &["n1"]);
    for words in [&["stage", "join", "n2=127.0.0.1:9"][..], &["apply", "--version", "1"], &["revert"]] {
        with(&[&["layout"], words].concat(), "certs/joe").expect(1, &["administrator", "--admin"]);
    }

    // Of another cluster: with its own authority, and with ours beside it.
    let others = cluster.dir().join("others");
    let other = |words: &[&str]| Said::by(bare_command(cluster.dir()).args(words).args(["--dir", "others"]));
    other(&["cert", "init"]).expect(0, &[]);
    other(&["cert", "client", "eve"]).expect(0, &[]);
    other(&["cert", "node", "n1"]).expect(0, &[]);
    let said = with(&["get", "k", "--ca", "others/ca.pem", "--timeout", "3s"], "others/eve");
    said.expect(2, &["another cluster"]);
    with(&["get", "k"], "others/eve").expect(2, &["different clusters"]);

    // A node's certificate is no client's, also where it would be a valid one.
    with(&["get", "k"], "certs/n1").expect(2, &["the certificate of node n1", "`quorate cert client NAME`"]);
    // What is not what it should be is named, with what to do.
    let pem = |name: &str| std::fs::read_to_string(cluster.dir().join("certs").join(name)).expect("there");
    cluster.write("locked.pem", &pem("joe.pem"));
    own(&cluster.write("locked.key", &pem("joe.key").replace(" PRIVATE", " ENCRYPTED PRIVATE")));
    with(&["get", "k"], "locked").expect(2, &["locked.key", "an encrypted key", "openssl pkey -in OLD -out NEW"]);
    cluster.write("chain.pem", &[pem("ca.pem"), pem("joe.pem")].concat());
    own(&cluster.write("chain.key", &pem("joe.key")));
    with(&["get", "k"], "chain").expect(2, &["chain.pem", "begins with the certificate of an authority"]);
    let ca = CertificateDer::from_pem_slice(pem("ca.pem").as_bytes()).expect("one");
    std::fs::write(cluster.dir().join("ca.der"), &ca).expect("written");
    with(&["get", "k", "--ca", "ca.der"], "certs/joe")
        .expect(2, &["ca.der", "in binary (DER)", "openssl x509 -inform DER"]);
    let refused = Client::from_config(cluster.write(
        "der.toml",
        "seeds = [\"127.0.0.1:1\"]\nca = \"ca.der\"\ncert = \"certs/joe.pem\"\nkey = \"certs/joe.key\"\n",
    ));
    let refused = refused.expect_err("as the tool does").to_string();
    assert!(refused.contains("in binary (DER)"), "{refused}");
    Said::by(bare_command(cluster.dir()).args(["cert", "show", "ca.der"])).expect(1, &["ca.der", "in binary (DER)"]);

    // Expired: the tools see it before they begin, and a node does not rely on that.
    let now = (Seams::system().wall_clock)();
    let ca = authority(&cluster.dir().join("certs"));
    let random = Random::from_os();
    let day = Duration::from_secs(86_400);
    let late = ca.issue_client(&random, "late", true, now - 2 * day, day).expect("possible");
    cluster.write("late.pem", &late.certificate);
    own(&cluster.write("late.key", &late.key));
    with(&["get", "k"], "late").expect(1, &["late.pem", "expired at"]);
    let n9 = NodeId::new("n9").expect("legal");
    let late_node = ca.issue_node(&random, n9, now - 2 * day, day).expect("possible");
    cluster.write("late-node.pem", &late_node.certificate);
    own(&cluster.write("late-node.key", &late_node.key));
    let server = ["server", "--config", "n1.toml", "--node", "n9", "--data-dir", "data-n9"];
    with(&server, "late-node").expect(1, &["expired at"]);
    with(&server, "certs/joe").expect(2, &["client joe", "cert node n9"]);

    // The same and more on the bare wire, as peer and as client.
    let joe = issued(&cluster, "joe");
    let foreign = authority(&others);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        for (stranger, alpn, why) in [
            (Stranger(joe), ALPN_PEER, "needs a node's certificate"),
            (Stranger(issued(&cluster, "n1")), ALPN_CLIENT, "this is the certificate of node n1"),
            (Stranger(late), ALPN_CLIENT, "expired"),
            (Stranger(late_node), ALPN_PEER, "expired"),
            (
                Stranger(foreign.issue_client(&random, "eve", true, now, day).expect("possible")),
                ALPN_CLIENT,
                "another cluster",
            ),
            (Stranger(foreign.issue_node(&random, n9, now, day).expect("possible")), ALPN_PEER, "another cluster"),
        ] {
            let refusal = stranger.refusal(cluster.addr(1), alpn).await;
            assert!(refusal.contains(why), "{why}: {refusal}");
        }
    });
    assert_eq!(cluster.metric(1, "quorate_nodes_up"), 1, "nobody has become a peer");
    cluster.run(&["get", "k"]).expect(0, &["v"]);
}

#[test]
fn a_peer_of_another_cluster_is_kept_out_and_named() {
    let mut cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let mut foreign = Cluster::prepare(1);
    let mut command = bare_command(foreign.dir());
    command.args(["server", "--config", "n1.toml", "--join", &cluster.addr(1).to_string()]);
    foreign.start_node_by(1, command);
    eventually("the foreign node says why it is alone", || foreign.log(1).contains("another cluster").then_some(()));
    assert_eq!(cluster.metric(1, "quorate_nodes_up"), 1);
    cluster.await_ready(1);
    cluster.run(&["get", "k"]).expect(0, &["v"]);
}

#[test]
fn garbage_and_half_open_handshakes_leave_room_for_good_clients() {
    let cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let node = cluster.addr(1);

    let random = Random::from_seed(1);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for number in 0..5_000 {
        let mut packet = vec![0; 1 + random.below(1_400) as usize];
        random.fill(&mut packet);
        // A third looks like QUIC: long header, version 1, initial.
        if random.below(3) == 0 && packet.len() > 5 {
            packet[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        socket.send_to(&packet, node).expect("sent");
        pace(number);
    }
    cluster.run(&["get", "k"]).expect(0, &["v"]);

    // First packets of real handshakes that nobody will carry on: taken from dials to a socket that only listens.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hole = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    hole.set_read_timeout(Some(Duration::from_millis(200))).expect("possible");
    let target = hole.local_addr().expect("bound");
    let admin = issued(&cluster, "admin");
    let hellos = runtime.block_on(async {
        let (endpoint, config) = Stranger(admin).endpoint(ALPN_CLIENT);
        let (mut hellos, mut dials) = (BTreeMap::new(), Vec::new());
        while hellos.len() < HALF_OPEN {
            // The dials are kept: one that is dropped sends a close, which is no handshake that anybody waits for.
            dials.extend((0..20).map(|_| endpoint.connect_with(config.clone(), target, tls::ANY_NODE).expect("dials")));
            let mut packet = [0; 2_048];
            for _ in 0..20 {
                if let Ok(len) = hole.recv(&mut packet) {
                    // Its connection id tells a first packet from one that is sent again.
                    let id_len = usize::from(packet[5]);
                    hellos.entry(packet[6..6 + id_len].to_vec()).or_insert(packet[..len].to_vec());
                }
            }
        }
        hellos.into_values().collect::<Vec<_>>()
    });
    let crowd: Vec<_> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket")).collect();
    // Again and again, because a busy machine drops some of them before the node sees them.
    eventually("the crowd is felt", || {
        for (number, hello) in hellos.iter().enumerate() {
            crowd[number % crowd.len()].send_to(hello, node).expect("sent");
            pace(number);
        }
        (cluster.metric(1, "quorate_handshakes_total{outcome=\"retried\"}") > 0).then_some(())
    });
    cluster.run(&["get", "k"]).expect(0, &["v"]);
    cluster.run(&["put", "k", "w"]).expect(0, &[]);
    eventually("the half-open ones are given up", || {
        (cluster.metric(1, "quorate_handshakes_total{outcome=\"failed\"}") > 0).then_some(())
    });
    cluster.run(&["get", "k"]).expect(0, &["w"]);
}

/// First packets of connections that were made, sent again and again from several addresses, are what anybody can send who has seen
/// them pass.
#[test]
fn first_packets_that_are_sent_again_keep_no_new_client_out() {
    let cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let node = cluster.addr(1);
    let stop = Arc::new(AtomicBool::new(false));
    let relay = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let through = relay.local_addr().expect("bound");
    let relayed = std::thread::spawn({
        let stop = stop.clone();
        move || record_first_packets(&relay, node, &stop)
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stranger = Stranger(issued(&cluster, "admin"));
    runtime.block_on(async {
        let (endpoint, config) = stranger.endpoint(ALPN_CLIENT);
        for _ in 0..OLD_FLIGHTS {
            let dial = endpoint.connect_with(config.clone(), through, tls::ANY_NODE).expect("dials");
            dial.await.expect("a connection through the relay").close(0u32.into(), b"done");
        }
    });
    stop.store(true, Ordering::SeqCst);
    let first_packets = relayed.join().expect("no panic");
    assert!(first_packets.len() >= OLD_FLIGHTS, "{} were recorded", first_packets.len());

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let crowd = std::thread::spawn({
        let (stop, sent) = (stop.clone(), sent.clone());
        move || {
            let sockets: Vec<_> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket")).collect();
            for (number, packet) in first_packets.iter().cycle().enumerate() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                // Each of them comes from another address each time.
                sockets[(number + number / first_packets.len()) % sockets.len()].send_to(packet, node).expect("sent");
                sent.fetch_add(1, Ordering::SeqCst);
                pace(number);
            }
        }
    });
    let retried = || cluster.metric(1, "quorate_handshakes_total{outcome=\"retried\"}");
    eventually("the crowd is felt", || (retried() > 0).then_some(()));
    let (mut clients, mut half_open) = (0, Vec::new());
    // Each command is a client of its own, with the time that it has always.
    while clients < 10 || sent.load(Ordering::SeqCst) < 2_000 {
        cluster.run(&["put", "k", &format!("v{clients}"), "--replace-all"]).expect(0, &[]);
        cluster.run(&["get", "k"]).expect(0, &[&format!("v{clients}")]);
        half_open.push(cluster.metric(1, "quorate_handshakes_under_way"));
        clients += 1;
    }
    stop.store(true, Ordering::SeqCst);
    crowd.join().expect("no panic");
    let most = half_open.iter().max().expect("it was asked");
    // As many as may begin without a proof of their address, and a few with one.
    assert!((1..=72).contains(most), "{half_open:?}");
    eventually("the last ones are given up", || (cluster.metric(1, "quorate_handshakes_under_way") == 0).then_some(()));
}

/// Passes packets on between a client's socket and a node, and returns the first one of each connection.
fn record_first_packets(client: &UdpSocket, node: SocketAddr, stop: &AtomicBool) -> Vec<Vec<u8>> {
    let upstream = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    upstream.connect(node).expect("an address");
    for socket in [client, &upstream] {
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("possible");
    }
    let (mut first_packets, mut client_addr, mut packet) = (BTreeMap::new(), None, [0; 2_048]);
    while !stop.load(Ordering::SeqCst) {
        if let Ok((len, from)) = client.recv_from(&mut packet) {
            client_addr = Some(from);
            let id_len = usize::from(packet[5]);
            // A long header of the kind that begins a connection, with the id that the client has drawn for the node.
            if packet[0] & 0xf0 == 0xc0 && id_len == 20 {
                first_packets.entry(packet[6..26].to_vec()).or_insert(packet[..len].to_vec());
            }
            upstream.send(&packet[..len]).expect("sent");
        }
        if let (Ok(len), Some(client_addr)) = (upstream.recv(&mut packet), client_addr) {
            client.send_to(&packet[..len], client_addr).expect("sent");
        }
    }
    first_packets.into_values().collect()
}

/// More than a node begins without a proof of the address.
const OLD_FLIGHTS: usize = 200;

/// Far more than a node begins without a proof of the address.
const HALF_OPEN: usize = 600;

/// Lets the node's socket be read now and then: what overflows its buffer troubles nobody.
fn pace(number: usize) {
    if number % 16 == 15 {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_client_that_breaks_the_protocol_loses_its_connection_and_nobody_else_does() {
    let mut cluster = Cluster::start(1);
    let node = cluster.addr(1);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let admin = issued(&cluster, "admin");
    runtime.block_on(async {
        let connect = Client::from_config(cluster.dir().join("client.toml")).expect("a profile").timeout(PATIENCE);
        let db = connect.connect().await.expect("the cluster runs");
        db.put("k", "v", Blind).await.expect("written");

        let header = |len: u32, id: u64| [&len.to_be_bytes()[..], &id.to_be_bytes(), &5_000u32.to_be_bytes()].concat();
        let mut garbage = vec![0; 4_000];
        Random::from_seed(2).fill(&mut garbage);
        let part = [header(1 << 31 | 65_536, 7), vec![0; 65_536]].concat();
        let mut breaking = Vec::new();
        for (bytes, repeats, why) in [
            ([&[0][..], &header(0x7fff_ffff, 1)].concat(), 1, "at most"),
            ([&[0][..], &garbage].concat(), 1, ""),
            (vec![77], 1, "class 77"),
            // A frame that stops growing, and one that never stops.
            ([&[0][..], &header(100, 1), b"half"].concat(), 1, "did not go on"),
            (part, 1_000, "more than"),
        ] {
            let stranger = Stranger(admin.clone());
            breaking.push(tokio::spawn(async move {
                let (_endpoint, connection) = stranger.dial(node, ALPN_CLIENT).await.expect("connects");
                let (mut send, _recv) = connection.open_bi().await.expect("a stream");
                if repeats > 1 {
                    send.write_all(&[0]).await.expect("the class");
                }
                for _ in 0..repeats {
                    // Fails once the node has closed the connection.
                    let _ = send.write_all(&bytes).await;
                }
                let closed = tokio::time::timeout(STALL + PATIENCE, connection.closed()).await;
                (close::explain_connection_error(&closed.expect("the node closes the connection")), why)
            }));
        }
        for task in breaking {
            while !task.is_finished() {
                assert_eq!(db.get("k").await.expect("the others are served").siblings(), [b"v".as_slice()]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let (told, why) = task.await.expect("no panic");
            assert!(told.contains(why), "{why}: {told}");
        }
        // The good connection is still the one that it was.
        db.put("k2", "v", Blind).await.expect("written");
        db.close().await;
    });

    // A frame that is a frame, and no request: an answer says so, and the connection lives on.
    runtime.block_on(async {
        let (_endpoint, connection) = Stranger(admin.clone()).dial(node, ALPN_CLIENT).await.expect("connects");
        let lanes = quorate_transport::rpc::Lanes::new(connection.clone(), Default::default());
        for body in [&b"nonsense"[..], &[0xc1; 100], &[0x93; 2_000]] {
            let answer = lanes.call(0, bytes::Bytes::copy_from_slice(body), PATIENCE).await.expect("an answer");
            let text = String::from_utf8_lossy(&answer);
            assert!(text.contains("this is quorate"), "{text}");
        }
        assert!(connection.close_reason().is_none());
    });
    assert!(cluster.node(1).runs());
}

#[test]
fn a_data_directory_of_another_node_or_cluster_is_refused_untouched() {
    let mut cluster = Cluster::start(1);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    assert!(cluster.terminate(1).success());
    let before = std::fs::read(cluster.dir().join("data-n1/quorate.json")).expect("there");

    cluster.run(&["cert", "node", "n2"]).expect(0, &[]);
    let n2 = ["--node", "n2", "--cert", "certs/n2.pem", "--key", "certs/n2.key"];
    let said = cluster.run(&[&["server", "--config", "n1.toml"], &n2[..]].concat());
    said.expect(1, &["data-n1", "n1", "n2"]);

    let foreign = Cluster::prepare(1);
    let data = cluster.dir().join("data-n1");
    let mut command = foreign.command(&["server", "--config", "n1.toml"]);
    Said::by(command.arg("--data-dir").arg(&data)).expect(1, &["data-n1", "cluster"]);

    assert_eq!(std::fs::read(data.join("quorate.json")).expect("there"), before, "nothing was changed");
    // Nor is one taken that holds other things; a look before the start says so too.
    let occupied = ["server", "--config", "n1.toml", "--data-dir", "certs"];
    for words in [&occupied[..], &[&occupied[..], &["--check"]].concat()] {
        cluster.run(words).expect(1, &["certs is not empty", "Nothing was changed"]);
    }
    assert!(!cluster.dir().join("certs/lock").exists());
    cluster.start_node(1);
    cluster.await_ready(1);
    cluster.run(&["get", "k"]).expect(0, &["v"]);
}

#[test]
fn a_damaged_store_is_replaced_once_and_then_quarantined_while_the_others_answer() {
    let mut cluster = Cluster::start(3);
    for number in 0..50 {
        cluster.run(&["put", &format!("k{number}"), "v", "--blind", "--w", "all"]).expect(0, &[]);
    }
    let db = cluster.dir().join("data-n2/sled/db");
    let cut = || {
        let len = std::fs::metadata(&db).expect("there").len();
        File::options().write(true).open(&db).and_then(|file| file.set_len(len / 2)).expect("truncated");
    };
    assert!(cluster.terminate(2).success());
    cut();
    cluster.start_node(2);
    cluster.await_ready(2);
    assert!(cluster.log(2).contains("moved aside"), "{}", cluster.log(2));
    assert!(cluster.dir().join("data-n2/sled.damaged/db").exists());
    // The others bring back what it held, and then it answers again.
    eventually("n2 has recovered", || (cluster.metric(2, "quorate_recovering_partitions") == 0).then_some(()));
    for number in 0..50 {
        let key = format!("k{number}");
        let got = eventually("all three answer", || {
            let said = cluster.run(&["get", &key, "--r", "all", "--timeout", "2s"]);
            (said.code == 0).then_some(said)
        });
        got.expect(0, &["v"]);
    }
    assert_eq!(cluster.metric(2, "quorate_repaired_total{cause=\"wiped\"}"), 50);

    assert!(cluster.terminate(2).success());
    cut();
    cluster.start_node(2);
    let shown = || cluster.http(2, "/readyz").filter(|(_, why)| !why.contains("it is starting"));
    let (status, why) = eventually("n2 shows itself", shown);
    assert!(status == 503 && why.contains("damaged"), "{status}: {why}");
    assert_eq!(cluster.http(2, "/livez").map(|(status, _)| status), Some(200));
    assert_eq!(cluster.metric(2, "quorate_store_quarantined"), 1);
    assert!(cluster.log(2).contains("QUARANTINED"), "{}", cluster.log(2));

    // It serves no data, also when it is asked to its face; the two others do.
    let n2 = cluster.addr(2).to_string();
    let said = cluster.run(&["status", "--on", &n2]);
    assert!(said.out.contains("damaged"), "{said}");
    for number in (0..50).step_by(10) {
        cluster.run(&["get", &format!("k{number}"), "--timeout", "20s"]).expect(0, &["v"]);
    }
    cluster.run(&["put", "k0", "w"]).expect(0, &[]);
    cluster.run(&["get", "k0", "--r", "all", "--timeout", "2s"]).expect(4, &["n2"]);
    assert!(cluster.terminate(2).success(), "and it ends as any other");
}

#[test]
fn a_full_disk_fails_clearly_and_keeps_what_was_acknowledged() {
    let mut cluster = Cluster::start(1);
    assert!(cluster.terminate(1).success());
    // The limit on the size of a file stands for the disk; without the trap the kernel would kill the process.
    let mut limited = Command::new("bash");
    isolate(&mut limited, cluster.dir());
    let script = format!("trap '' XFSZ; ulimit -f {DISK_KIB}; exec '{}' server --config n1.toml", quorate().display());
    limited.args(["-c", &script]).current_dir(cluster.dir());
    cluster.start_node_by(1, limited);
    cluster.await_ready(1);

    let value = cluster.write("value", &"v".repeat(16 << 10));
    let value = format!("@{}", value.display());
    let mut acknowledged = 0;
    let said = eventually("the disk is full", || {
        let key = format!("k{acknowledged}");
        let said = cluster.run(&["put", &key, &value, "--blind", "--timeout", "2s", "-o", "json"]);
        if said.code == 0 {
            acknowledged += 1;
            assert!(acknowledged < 10 * DISK_KIB / 16, "the disk never fills");
            return None;
        }
        Some(said)
    });
    assert!(acknowledged > 0, "{said}");
    // Refused, unreachable because the node has ended, or cut off by its end: whichever it says must hold.
    assert!([1, 4, 5].contains(&said.code), "{said}");
    assert_eq!(said.error()["may_have_applied"], said.code == 5, "{said}");
    let clear = |text: &str| ["no room", "full", "too large", "File too large"].iter().any(|word| text.contains(word));
    assert!(clear(&cluster.log(1)) || clear(&said.err), "{said}\n{}", cluster.log(1));

    // An engine that cannot write ends its process, which does not serve on as if there were room.
    assert!(!cluster.await_end(1).success());
    let log = cluster.log(1);
    assert!(log.contains("this node must end") && clear(&log), "{log}");

    // With room again everything is there.
    cluster.start_node(1);
    cluster.await_ready(1);
    for number in 0..acknowledged {
        assert_eq!(cluster.run(&["get", &format!("k{number}")]).expect(0, &[]).out.len(), 16 << 10);
    }
    cluster.run(&["put", "more", &value]).expect(0, &[]);
}

/// Makes a private key its owner's alone, as it must be.
fn own(key: &Path) {
    std::fs::set_permissions(key, Permissions::from_mode(0o600)).expect("it is ours");
}

/// A small disk: it fills after some dozens of values.
const DISK_KIB: usize = 1_024;

fn authority(dir: &Path) -> Ca {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("there");
    Ca::from_pem(read("ca.pem"), read("ca.key")).expect("an authority")
}

/// A certificate that `quorate cert` has made for the cluster.
fn issued(cluster: &Cluster, name: &str) -> Issued {
    let read = |file: &str| std::fs::read_to_string(cluster.dir().join("certs").join(file)).expect("there");
    Issued { ca: read("ca.pem"), certificate: read(&format!("{name}.pem")), key: read(&format!("{name}.key")) }
}

/// Whoever dials a node with some certificate.
struct Stranger(Issued);

impl Stranger {
    fn endpoint(&self, alpn: &[u8]) -> (quinn::Endpoint, quinn::ClientConfig) {
        let seams = Seams::system();
        let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let endpoint = quic::endpoint(&seams, socket, None).expect("an endpoint");
        let Issued { ca, certificate, key } = &self.0;
        let own = Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).expect("credentials");
        (endpoint, tls::client_config(&seams, &own, alpn, Link::Client).expect("a configuration"))
    }

    async fn dial(&self, node: SocketAddr, alpn: &[u8]) -> Result<(quinn::Endpoint, quinn::Connection), String> {
        let (endpoint, config) = self.endpoint(alpn);
        let connection = endpoint.connect_with(config, node, tls::ANY_NODE).expect("dials").await;
        Ok((endpoint, connection.map_err(|error| close::explain_connection_error(&error))?))
    }

    /// Why the connection does not come about or does not last.
    async fn refusal(&self, node: SocketAddr, alpn: &[u8]) -> String {
        match self.dial(node, alpn).await {
            Err(why) => why,
            // In TLS 1.3 the dialer is done before the node has looked at its certificate.
            Ok((_endpoint, connection)) => {
                let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
                close::explain_connection_error(&closed.expect("the node closes the connection"))
            }
        }
    }
}

//! Where nodes are: names that mean nothing, seeds that have grown old, and nodes that move.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use quorate_client::{Blind, Client};
use quorate_tests::processes::{Cluster, bare_command, eventually, free_ports};

/// Points the commands of the administrator at these seeds.
fn seeds(cluster: &Cluster, seeds: &[String]) {
    let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let text = format!(
        "seeds = [{}]\nca = \"certs/ca.pem\"\ncert = \"certs/admin.pem\"\nkey = \"certs/admin.key\"\n",
        seeds.join(", ")
    );
    cluster.write("client.toml", &text);
}

#[test]
fn a_name_that_cannot_be_resolved_and_seeds_that_are_gone_are_left_out() {
    let mut cluster = Cluster::start(2);
    let gone = "gone.invalid:7400".to_owned();
    // Ports that nothing listens at, more of them than are dialled at a time.
    let mut list: Vec<String> = (200..212).map(|port| format!("127.0.0.1:{}", cluster.addr(port).port())).collect();
    list.insert(0, gone.clone());
    list.push(cluster.addr(1).to_string());
    seeds(&cluster, &list);
    cluster.run(&["put", "k", "v"]).expect(0, &["a seed is left out", "gone.invalid"]);
    cluster.run(&["get", "k"]).expect(0, &["v"]);
    seeds(&cluster, std::slice::from_ref(&gone));
    cluster.run(&["get", "k"]).expect(4, &["cannot resolve gone.invalid:7400"]);
    seeds(&cluster, &[cluster.addr(1).to_string(), gone]);
    cluster.run(&["layout", "show"]).expect(0, &["n1", "n2"]);
    // It can be tried again, as with a seed: the name server may be back in a moment.
    for command in [&["status"][..], &["layout", "show"]] {
        let on = |node: &str| cluster.run(&[command, &["--on", node]].concat());
        on("gone.invalid:7400").expect(4, &["cannot resolve gone.invalid:7400"]);
        on("0.0.0.0:7400").expect(2, &["0.0.0.0:7400 means all addresses of a machine"]);
        on("[fe80::1%lo]:7400").expect(2, &["[fe80::1%lo]:7400 is a link-local address"]);
    }
    cluster.run(&["layout", "stage", "join", "n9=255.255.255.255:7400"]).expect(2, &["is the broadcast address"]);
    cluster.run(&["get", "k", "--seeds", "0.0.0.0:7400"]).expect(2, &["nobody can be reached there", "--seeds"]);
    for (flag, addr, why) in [
        ("--listen", "224.0.0.1:7400", "multicast"),
        ("--advertise", "[fe80::1%eth0]:7400", "link-local"),
        ("--http", "255.255.255.255:7400", "broadcast"),
        ("--join", "[::]:7400", "nobody can be reached there"),
    ] {
        cluster.run(&["server", "--config", "n1.toml", flag, addr]).expect(2, &[flag, addr, why]);
    }

    // A node that has its layout needs no join list, and one that has none finds the others by the names that mean something.
    assert!(cluster.terminate(2).success());
    let join = format!("join = [\"gone.invalid:7400\", \"{}\"]", cluster.addr(1));
    let config = std::fs::read_to_string(cluster.dir().join("n2.toml")).expect("there is one");
    let line = config.lines().find(|line| line.starts_with("join")).expect("it has a join list");
    let own = format!("listen = \"{}\"", cluster.addr(2));
    assert!(config.contains(&own), "{config}");
    let named = format!("listen = \"localhost:{}\"", cluster.addr(2).port());
    let http = format!("http = \"{}\"", cluster.http_addr(2));
    assert!(config.contains(&http), "{config}");
    let http_named = format!("http = \"localhost:{}\"", cluster.http_addr(2).port());
    let config = config.replace(line, &join).replace(&own, &named).replace(&http, &http_named);
    cluster.write("n2.toml", &config);
    cluster.start_node(2);
    cluster.await_ready(2);
    cluster.await_healthy();
    assert!(cluster.log(2).contains("left out for now"), "{}", cluster.log(2));
    assert!(cluster.terminate(2).success());
    let elsewhere = ["server", "--config", "n2.toml", "--listen", "192.0.2.7:7400"];
    cluster.run(&elsewhere).expect(1, &["cannot listen on 192.0.2.7:7400"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connected_client_survives_the_move_of_every_node() {
    let mut cluster = Cluster::start(3);
    let db = Client::from_config(cluster.dir().join("client.toml"))
        .expect("a configuration")
        .timeout(Duration::from_secs(10))
        .connect()
        .await
        .expect("connects");
    let first = free_ports();
    let moved = |number: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, first + number as u16));
    db.put("k", "0", Blind).await.expect("written");
    // Each is told where the others are now; nobody else is told anything.
    for number in 1..=3 {
        assert!(cluster.terminate(number).success());
        let there = (1..=3).map(|other| if other <= number { moved(other) } else { cluster.addr(other) });
        let list: Vec<_> = there.map(|addr| addr.to_string()).collect();
        let mut command = bare_command(cluster.dir());
        command.args(["server", "--config", &format!("n{number}.toml"), "--listen", &moved(number).to_string()]);
        command.args(["--join", &list.join(",")]);
        cluster.start_node_by(number, command);
        seeds(&cluster, &list);
        cluster.await_ready(number);
        cluster.await_healthy();
        for round in 0..20 {
            let read = db.get("k").await.expect("some node serves it");
            db.put("k", format!("{number}/{round}"), &read).await.expect("some node serves it");
        }
    }
    // Where they are is asked for in the background, more and more rarely.
    let all: Vec<_> = (1..=3).map(moved).collect();
    for _ in 0..900 {
        if db.nodes().iter().map(|(_, addr)| *addr).eq(all.iter().copied()) {
            break;
        }
        let _ = db.get("k").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        db.nodes().iter().map(|(_, addr)| *addr).collect::<Vec<_>>(),
        all,
        "the client knows where they are now"
    );
    assert_eq!(db.get("k").await.expect("read").one().expect("one value"), "3/19");
    // One that moves once more remembers where the others were last: its layout and its configuration know old addresses only.
    assert!(cluster.terminate(1).success());
    let again = SocketAddr::from((Ipv4Addr::LOCALHOST, first + 4));
    let mut command = bare_command(cluster.dir());
    command.args(["server", "--config", "n1.toml", "--listen", &again.to_string()]);
    cluster.start_node_by(1, command);
    cluster.await_ready(1);
    cluster.await_healthy();
    // A new command is told by the first node that it meets.
    seeds(&cluster, &[moved(2).to_string()]);
    eventually("the value", || (cluster.run(&["get", "k"]).code == 0).then_some(()));
}

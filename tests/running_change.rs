//! What an operator sees of a change of the layout that does not come to its end, and how it is ended: by real processes.

use std::fs::File;

use quorate_tests::processes::{Cluster, Process, Said, eventually};
use serde_json::Value;

/// Three members, of which the others may be asked for more, and nodes that wait to join.
fn three_and(spare: usize) -> Cluster {
    let mut cluster = Cluster::prepare_with(3 + spare, 3);
    cluster.found(3, &["--replicas", "3", "--partitions", "64"]);
    for number in 4..=3 + spare {
        cluster.start_node(number);
    }
    for number in 0..50 {
        cluster.run(&["put", &format!("key-{number}"), &"v".repeat(1000), "--blind"]).expect(0, &[]);
    }
    cluster
}

fn run(cluster: &Cluster, line: &str) -> Said {
    cluster.run(&line.split(' ').collect::<Vec<_>>())
}

/// Stages what the line says, once the node that it names can be reached.
fn stage(cluster: &Cluster, line: &str) {
    eventually(line, || (run(cluster, line).code == 0).then_some(()));
}

fn transfers(cluster: &Cluster) -> Value {
    run(cluster, "transfers -o json").expect(0, &[]).json()
}

#[test]
fn a_change_that_cannot_end_is_looked_at_watched_and_aborted() {
    let mut cluster = three_and(1);
    let quiet = transfers(&cluster);
    assert_eq!((&quiet["schema"], &quiet["under_way"]), (&"quorate.transfers.v1".into(), &false.into()), "{quiet}");
    run(&cluster, "transfers").expect(0, &["no change is under way: layout 1 is in force"]);
    run(&cluster, "transfers --watch").expect(0, &["no change is under way: layout 1 is in force"]);
    run(&cluster, "layout abort").expect(1, &["no change is under way: layout 1 alone is live"]);
    run(&cluster, "layout abort --version 2").expect(1, &["no change is under way"]);

    stage(&cluster, &format!("layout stage join n4={}", cluster.addr(4)));
    // Who is to take over is gone before the change begins.
    cluster.kill(4);
    run(&cluster, "layout apply --version 2").expect(0, &["layout version 2"]);
    eventually("n4 is known to be down", || {
        let seen = transfers(&cluster);
        assert_eq!((&seen["under_way"], &seen["from"], &seen["to"]), (&true.into(), &1.into(), &2.into()), "{seen}");
        (seen["waits"].as_array()?.iter().any(|wait| wait["node"] == "n4" && wait["up"] == false)).then_some(())
    });
    let seen = transfers(&cluster);
    let n4 = seen["receivers"].as_array().expect("a list").iter().find(|receiver| receiver["node"] == "n4");
    let n4 = n4.unwrap_or_else(|| panic!("n4 is to take over: {seen}"));
    assert_eq!((&n4["done"], &n4["bytes"], &n4["eta_ms"]), (&0.into(), &Value::Null, &Value::Null), "{seen}");
    let of = n4["of"].as_u64().expect("a number");
    assert!(of > 0 && seen["no_answer"]["n4"].is_string() && seen["eta_ms"].is_null(), "{seen}");
    let said = run(&cluster, "transfers").expect(0, &["from layout 1 to 2", "RECEIVER", "unknown", "waits for: n4"]);
    assert!(said.out.contains(&format!("0 of {of}")) && said.out.contains("! n4 does not answer"), "{said}");
    assert!(
        said.out
            .lines()
            .skip_while(|line| !line.starts_with("RECEIVER"))
            .take_while(|line| !line.is_empty())
            .all(|line| line.len() <= 80)
    );

    let watched = cluster.dir().join("watched");
    let mut command = cluster.command(&["transfers", "--watch"]);
    let mut watch = Process::start(command.stdout(File::create(&watched).expect("created")));
    let told = || std::fs::read_to_string(&watched).expect("readable");
    eventually("a line", || told().contains("; waits for n4 (down)").then_some(()));
    assert!(told().starts_with("from layout 1 to 2: ") && told().contains(", ETA unknown"), "{}", told());

    let page = cluster.dir().join("layout.html");
    run(&cluster, "layout show --report layout.html").expect(0, &["a change is under way, from layout 1 to 2"]);
    let html = std::fs::read_to_string(&page).expect("it was written");
    for said in
        ["<h1>Layout 2</h1>", "n4 <em>joins</em>", &format!("<th>n4<td>0 of {of}"), "n4 does not answer", "</html>"]
    {
        assert!(html.contains(said), "{said}: {html}");
    }
    assert!(!html.contains("<script"), "{html}");
    run(&cluster, "layout show --report certs").expect(2, &["certs is a directory"]);
    run(&cluster, "layout show --report nowhere/layout.html").expect(2, &["cannot write nowhere/layout.html"]);

    // A look changes nothing, and every mistake is told.
    let look = run(&cluster, "layout abort")
        .expect(0, &["layout version 3", "equal to layout 1", "n4 leaves", "nothing was changed"]);
    assert!(look.out.contains("`quorate layout abort --version 3`"), "{look}");
    let json = run(&cluster, "layout abort -o json").expect(0, &[]).json();
    assert_eq!((&json["abort"]["like"], &json["abort"]["layout"]["version"]), (&1.into(), &3.into()), "{json}");
    run(&cluster, "layout abort --version 2").expect(1, &["layout 2 is decided already", "makes layout 3"]);
    run(&cluster, "layout abort --version 4").expect(1, &["only version 3 can end the change"]);
    assert!(watch.runs(), "{}", told());

    run(&cluster, "layout abort --version 3").expect(0, &["layout version 3"]);
    assert!(watch.ended().success(), "{}", told());
    assert!(told().ends_with("no change is under way: layout 3 is in force\n"), "{}", told());
    let history = run(&cluster, "layout history -o json").expect(0, &[]).json();
    let newest = history["history"].as_array().and_then(|history| history.last()).expect("one");
    assert_eq!((&newest["version"], &newest["members"]), (&3.into(), &3.into()), "{history}");
    run(&cluster, "get key-7 --r all --strict").expect(0, &[&"v".repeat(1000)]);
    cluster.start_node(4);
    eventually("n4 knows that it is no member", || {
        let said = run(&cluster, &format!("status -o json --on {}", cluster.addr(4)));
        (said.code == 0 && said.json()["not_serving"].as_str()?.contains("no member of layout 3")).then_some(())
    });
}

#[test]
fn an_abort_takes_back_a_replacement_only_while_the_old_node_is_there() {
    let mut cluster = three_and(1);
    stage(&cluster, &format!("layout stage replace n3 n4={}", cluster.addr(4)));
    cluster.kill(4);
    cluster.kill(3);
    run(&cluster, "layout apply --version 2").expect(0, &["layout version 2"]);
    run(&cluster, "layout abort").expect(0, &["n3 takes the place of n4", "stands against it: n3 does not answer"]);
    let said = run(&cluster, "layout abort --version 3")
        .expect(1, &["layout 1 cannot be taken up again", "n3 does not answer"]);
    assert!(said.err.contains("Stage what is wanted"), "{said}");
    // Its disk was emptied.
    let data = cluster.dir().join("data-n3");
    std::fs::rename(&data, cluster.dir().join("kept")).expect("renamed");
    cluster.start_node(3);
    eventually("n3 has another disk", || {
        let said = run(&cluster, "layout abort --version 3");
        said.err.contains("n3 has not the disk that it had as a member").then_some(())
    });
    cluster.kill(3);
    std::fs::remove_dir_all(&data).expect("removed");
    std::fs::rename(cluster.dir().join("kept"), &data).expect("renamed");
    cluster.start_node(3);
    eventually("the change is aborted", || (run(&cluster, "layout abort --version 3").code == 0).then_some(()));
    let said = run(&cluster, "transfers --watch").expect(0, &["no change is under way: layout 3 is in force"]);
    assert!(!said.out.contains("does not answer"), "n4 is no member: {said}");
    for number in 0..50 {
        run(&cluster, &format!("get key-{number}")).expect(0, &["vvv"]);
    }
}

//! `status`, `node ls` and `locate`: looking at a cluster.

use comfy_table::Table;
use quorate_client::wire::{Located, NodeStatus};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::{LocateArgs, StatusArgs};
use super::connection::{Cluster, resolve};
use super::failure::{Exit, Failure, Outcome};
use super::output::{Output, bytes_text, facts, print, readable, table, time_text};
use super::settings::Settings;

/// `status`.
pub(crate) async fn status(args: &StatusArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let status = match &args.on {
        None => cluster.status().await?,
        Some(endpoint) => {
            let addrs = resolve(endpoint).await?;
            cluster.status_at(*addrs.first().expect("a resolved name has an address")).await?
        }
    };
    let troubles = troubles(&status);
    if output.is_json() {
        let mut json = serde_json::to_value(&status).expect("a status is plain data with text keys");
        json["schema"] = "quorate.status.v1".into();
        json["healthy"] = troubles.is_empty().into();
        json["troubles"] = troubles.clone().into();
        output.json(&json)?;
    } else {
        output.table(&overview(&status))?;
        output.line("")?;
        output.table(&peers(&status))?;
        if !troubles.is_empty() {
            output.line("")?;
        }
        for trouble in &troubles {
            output.line(&format!("! {trouble}"))?;
        }
    }
    if args.check && !troubles.is_empty() {
        if !output.is_json() {
            output.say("hint: `quorate node ls` asks each node for its own state");
        }
        return Ok(Exit::Degraded);
    }
    Ok(Exit::Done)
}

/// What is not as it should be, for people. Nothing if all is well.
fn troubles(status: &NodeStatus) -> Vec<String> {
    let mut troubles = Vec::new();
    if let Some(why) = &status.not_serving {
        troubles.push(format!("{} does not serve data: {why}", status.node));
    }
    if status.n == 0 {
        troubles.push("there is no layout yet; stage one with `quorate layout stage join`".to_owned());
        return troubles;
    }
    for peer in status.peers.iter().filter(|peer| peer.member) {
        if !peer.up {
            troubles.push(format!("{} is down for {}", peer.node, time_text(peer.since_ms)));
        } else if peer.layout.is_some_and(|layout| layout != status.layout) {
            troubles.push(format!(
                "{} holds layout {}, not {}",
                peer.node,
                peer.layout.unwrap_or_default(),
                status.layout
            ));
        }
    }
    for (reachable, &partitions) in status.reachable.iter().enumerate().take(usize::from(status.n)) {
        if partitions > 0 {
            troubles.push(format!(
                "{partitions} of {} partitions have {reachable} of {} owners reachable",
                status.partitions, status.n
            ));
        }
    }
    troubles
}

fn overview(status: &NodeStatus) -> Table {
    let layout = match status.n {
        0 => "none yet".to_owned(),
        n => format!(
            "version {} ({}), N={n}, floors R={} W={}, {} partitions",
            status.layout, status.layout_hash, status.r, status.w, status.partitions
        ),
    };
    facts([
        ("cluster", status.cluster.to_string()),
        ("layout", layout),
        ("asked", format!("{}, release {}, up {}", status.node, status.release, time_text(status.uptime_ms))),
        ("storage", format!("{}, about {} records, {}", status.storage, status.records, bytes_text(status.disk_bytes))),
    ])
}

fn peers(status: &NodeStatus) -> Table {
    let mut table = table(&["NODE", "ADDRESS", "MEMBER", "ZONE", "WEIGHT", "PRIMARIES", "STATE", "FOR", "LAYOUT"]);
    for peer in &status.peers {
        table.add_row([
            peer.node.to_string(),
            peer.addr.to_string(),
            if peer.member { "yes" } else { "no" }.to_owned(),
            if peer.member { peer.zone.clone() } else { "-".to_owned() },
            if peer.member { peer.weight.to_string() } else { "-".to_owned() },
            peer.primaries.to_string(),
            if peer.up { "up" } else { "down" }.to_owned(),
            time_text(peer.since_ms),
            peer.layout.map_or_else(|| "-".to_owned(), |layout| layout.to_string()),
        ]);
    }
    table
}

/// `node ls`: one node names the others, each of which is asked itself.
pub(crate) async fn node_ls(settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let seen = cluster.status().await?;
    let mut asking = JoinSet::new();
    for (place, peer) in seen.peers.iter().take(NODES_ASKED_MAX).enumerate() {
        let (cluster, addr) = (cluster.clone(), peer.addr);
        asking.spawn(async move { (place, cluster.status_at(addr).await) });
    }
    let mut answers: Vec<Option<Result<NodeStatus, String>>> = (0..seen.peers.len()).map(|_| None).collect();
    while let Some(answer) = asking.join_next().await {
        let (place, answer) =
            answer.map_err(|error| Failure::new(format!("asking a node failed: {error}"), "run the command again"))?;
        // An address may meanwhile belong to another node; its state must not be shown under this name.
        answers[place] = Some(match answer {
            Ok(status) if status.node == seen.peers[place].node => Ok(status),
            Ok(status) => Err(format!("{} answers there", status.node)),
            Err(error) => Err(Failure::from(error).message),
        });
    }
    let nodes: Vec<_> = seen.peers.iter().zip(answers).collect();
    let json = || {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|(peer, answer)| {
                let own = match answer {
                    Some(Ok(own)) => Some(own),
                    Some(Err(_)) | None => None,
                };
                json!({
                    "node": peer.node,
                    "addr": peer.addr,
                    "member": peer.member,
                    "zone": peer.zone,
                    "weight": peer.weight,
                    "primaries": peer.primaries,
                    "up": peer.up,
                    "answers": own.is_some(),
                    "error": answer.as_ref().and_then(|answer| answer.as_ref().err()),
                    "not_serving": own.and_then(|own| own.not_serving.clone()),
                    "release": own.map(|own| &own.release),
                    "uptime_ms": own.map(|own| own.uptime_ms),
                    "storage": own.map(|own| &own.storage),
                    "records": own.map(|own| own.records),
                    "disk_bytes": own.map(|own| own.disk_bytes),
                    "disk": own.map(|own| own.disk),
                    "layout": own.map(|own| own.layout),
                })
            })
            .collect();
        json!({ "schema": "quorate.nodes.v1", "asked": seen.node, "nodes": nodes })
    };
    let text = || {
        let mut shown =
            table(&["NODE", "ADDRESS", "MEMBER", "STATE", "RELEASE", "UPTIME", "STORAGE", "RECORDS", "DISK", "LAYOUT"]);
        for (peer, answer) in &nodes {
            let mut row =
                vec![peer.node.to_string(), peer.addr.to_string(), if peer.member { "yes" } else { "no" }.to_owned()];
            match answer {
                Some(Ok(own)) => row.extend([
                    own.not_serving.as_ref().map_or_else(|| "serving".to_owned(), |why| format!("not serving: {why}")),
                    own.release.clone(),
                    time_text(own.uptime_ms),
                    own.storage.clone(),
                    format!("~{}", own.records),
                    bytes_text(own.disk_bytes),
                    own.layout.to_string(),
                ]),
                Some(Err(why)) => row.push(format!("no answer: {}", readable(why.as_bytes(), 60))),
                None => row.push("not asked".to_owned()),
            }
            shown.add_row(row);
        }
        shown
    };
    print(output, &json(), text)?;
    Ok(Exit::Done)
}

/// `locate KEY`.
pub(crate) async fn locate(args: &LocateArgs, settings: &Settings, output: &Output) -> Outcome {
    let located = Cluster::connect(settings).await?.locate(&args.key).await?;
    if output.is_json() {
        let mut json = serde_json::to_value(&located).expect("a location is plain data");
        json["schema"] = "quorate.locate.v1".into();
        json["key"] = args.key.clone().into();
        // 64 bits do not survive a parser that has only floating point numbers.
        json["hash"] = format!("{:016x}", located.hash).into();
        output.json(&json)?;
        return Ok(Exit::Done);
    }
    output.table(&facts([
        ("key", readable(args.key.as_bytes(), 64)),
        ("hash", format!("{:016x}", located.hash)),
        ("partition", format!("{} in layout {}, N={}", located.partition, located.layout, located.n)),
    ]))?;
    output.line("")?;
    output.table(&preference(&located))?;
    Ok(Exit::Done)
}

fn preference(located: &Located) -> Table {
    let mut table = table(&["PLACE", "NODE", "ADDRESS", "ZONE", "ROLE", "STATE"]);
    for (place, member) in located.preference.iter().enumerate() {
        table.add_row([
            (place + 1).to_string(),
            member.node.to_string(),
            member.addr.to_string(),
            member.zone.clone(),
            if place < usize::from(located.n) { "primary" } else { "fallback" }.to_owned(),
            if member.up { "up" } else { "down" }.to_owned(),
        ]);
    }
    table
}

/// How many nodes `node ls` asks at a time: more than any sensible cluster has.
const NODES_ASKED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_client::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
    use quorate_client::wire::PeerStatus;

    use super::*;

    fn healthy() -> NodeStatus {
        let node = |name: &str| NodeId::new(name).expect("legal");
        let peer = |name: &str| PeerStatus {
            node: node(name),
            addr: "127.0.0.1:7401".parse().expect("an address"),
            member: true,
            zone: "default".into(),
            weight: 1,
            primaries: 8,
            up: true,
            since_ms: 5_000,
            layout: Some(LayoutVersion(1)),
        };
        NodeStatus {
            node: node("n1"),
            cluster: ClusterId(1),
            disk: DiskId(1),
            release: "0.1.0".into(),
            uptime_ms: 1,
            storage: "memory".into(),
            records: 0,
            disk_bytes: 0,
            not_serving: None,
            layout: LayoutVersion(1),
            layout_hash: "00".into(),
            n: 3,
            r: 2,
            w: 2,
            partitions: 8,
            peers: vec![peer("n1"), peer("n2"), peer("n3")],
            hints: Vec::new(),
            hint_bytes_max: 0,
            reachable: vec![0, 0, 0, 8],
            counters: BTreeMap::new(),
        }
    }

    #[test]
    fn a_healthy_cluster_has_no_troubles() {
        assert!(troubles(&healthy()).is_empty());
    }

    #[test]
    fn every_trouble_is_named() {
        let mut status = healthy();
        status.peers[1].up = false;
        status.peers[2].layout = Some(LayoutVersion::NONE);
        status.reachable = vec![0, 0, 8, 0];
        assert_eq!(
            troubles(&status),
            ["n2 is down for 5 s", "n3 holds layout 0, not 1", "8 of 8 partitions have 2 of 3 owners reachable"]
        );
        // A node that is no member may be down without harm.
        status = healthy();
        status.peers[1].member = false;
        status.peers[1].up = false;
        assert!(troubles(&status).is_empty());
        status.not_serving = Some("store quarantined".into());
        assert_eq!(troubles(&status), ["n1 does not serve data: store quarantined"]);
        status = NodeStatus { n: 0, partitions: 0, reachable: Vec::new(), ..healthy() };
        assert!(troubles(&status)[0].contains("no layout"));
    }

    #[test]
    fn tables_have_a_row_for_each_node() {
        assert_eq!(peers(&healthy()).row_count(), 3);
        let text = overview(&healthy()).to_string();
        assert!(text.contains("N=3") && text.contains("8 partitions"), "{text}");
    }
}

//! `status`, `node ls` and `locate`: looking at a cluster.

use comfy_table::Table;
use quorate_wire::{Located, NodeStatus};
use serde_json::{Value, json};

use super::args::{LocateArgs, StatusArgs};
use super::connection::{Cluster, resolve_in_time};
use super::failure::{Exit, Failure, Outcome};
use super::health::{self, Answer};
use super::key_value::with_key;
use super::layout::moved_text;
use super::output::{Output, bytes_text, facts, print, readable, table, time_text};
use super::settings::Settings;

/// `status`.
pub(crate) async fn status(args: &StatusArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let status = match &args.on {
        None => cluster.status().await.map_err(Failure::of_read)?,
        Some(endpoint) => {
            resolve_in_time(endpoint).await?;
            cluster.status_at(endpoint.to_string()).await.map_err(Failure::of_read)?
        }
    };
    let answers = health::ask_all(&cluster, &status, false).await?;
    let (verdict, troubles) = health::judge(&status, &answers);
    let hints: Vec<_> = health::hints_of(&answers).collect();
    let expiring = health::expiring(&answers);
    if output.is_json() {
        let mut json = serde_json::to_value(&status).expect("a status is plain data with text keys");
        json["schema"] = "quorate.status.v1".into();
        json["verdict"] = verdict.text().into();
        json["healthy"] = troubles.is_empty().into();
        json["hints"] = health::hints_json(&hints);
        json["troubles"] = troubles.clone().into();
        json["expiring"] = expiring.into();
        for (shown, (_, answer)) in json["peers"].as_array_mut().into_iter().flatten().zip(&answers) {
            shown["answers"] = answer.as_ref().map(Result::is_ok).into();
        }
        output.json(&json)?;
    } else {
        output.line(verdict.text())?;
        for trouble in &troubles {
            output.line(&format!("! {trouble}"))?;
        }
        for expiring in &expiring {
            output.line(&format!("warning: {expiring}; see `quorate cert renew --help`"))?;
        }
        if let Some(change) = &status.change {
            let waits = change.waits.iter().map(|wait| match wait.up {
                true => wait.node.to_string(),
                false => format!("{} (down)", wait.node),
            });
            let waits: Vec<_> = waits.collect();
            let waits = if waits.is_empty() { String::new() } else { format!("; it waits for {}", waits.join(", ")) };
            let moved = moved_text(change);
            output.line(&format!("a change of the layout is under way: {moved}{waits}; see `quorate layout show`"))?;
        }
        for outsider in health::outsiders(&status, &answers) {
            output.line(&format!("note: {outsider}"))?;
        }
        output.line("")?;
        output.table(&overview(&status))?;
        output.line("")?;
        output.table(&peers(&answers))?;
        if !hints.is_empty() {
            output.line("")?;
            output.table(&health::hint_table(&hints))?;
            health::tell_trouble(&hints, output)?;
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

/// The nodes as one of them knows them, except for what they have just shown themselves.
fn peers(answers: &[Answer]) -> Table {
    let mut table = table(&["NODE", "ADDRESS", "MEMBER", "ZONE", "WEIGHT", "PRIMARIES", "STATE", "FOR", "LAYOUT"]);
    for (peer, answer) in answers {
        let state = match answer {
            Some(Ok(_)) => "up",
            Some(Err(_)) => "silent",
            None if peer.up => "not asked",
            None => "down",
        };
        table.add_row([
            peer.node.to_string(),
            peer.addr.to_string(),
            if peer.member { "yes" } else { "no" }.to_owned(),
            if peer.member { peer.zone.clone() } else { "-".to_owned() },
            if peer.member { peer.weight.to_string() } else { "-".to_owned() },
            peer.primaries.to_string(),
            state.to_owned(),
            // It says for how long the other state lasts, which is not the one that is shown.
            if state == "silent" { "-".to_owned() } else { time_text(peer.since_ms) },
            peer.layout.map_or_else(|| "-".to_owned(), |layout| layout.to_string()),
        ]);
    }
    table
}

/// `node ls`: one node names the others, each of which is asked itself.
pub(crate) async fn node_ls(settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let seen = cluster.status().await.map_err(Failure::of_read)?;
    let nodes = health::ask_all(&cluster, &seen, true).await?;
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
                    if own.not_serving.is_none() { "serving" } else { "not serving" }.to_owned(),
                    own.release.clone(),
                    time_text(own.uptime_ms),
                    own.storage.clone(),
                    format!("~{}", own.records),
                    bytes_text(own.disk_bytes),
                    own.layout.to_string(),
                ]),
                Some(Err(_)) => row.push("no answer".to_owned()),
                None => row.push("not asked".to_owned()),
            }
            shown.add_row(row);
        }
        shown
    };
    print(output, &json(), text)?;
    if !output.is_json() {
        for (peer, answer) in &nodes {
            match answer {
                Some(Ok(own)) => {
                    if let Some(why) = &own.not_serving {
                        output.line(&format!("! {} does not serve data: {why}", peer.node))?;
                    }
                }
                Some(Err(why)) => output.line(&format!("! {} does not answer: {why}", peer.node))?,
                None => {}
            }
        }
    }
    Ok(Exit::Done)
}

/// `locate KEY`.
pub(crate) async fn locate(args: &LocateArgs, settings: &Settings, output: &Output) -> Outcome {
    let key = args.key.bytes()?;
    let located = Cluster::connect(settings).await?.locate(&key).await.map_err(Failure::of_read)?;
    if output.is_json() {
        let mut json = serde_json::to_value(&located).expect("a location is plain data");
        if let (Some(json), Value::Object(key)) = (json.as_object_mut(), with_key("quorate.locate.v1", &key)) {
            json.extend(key);
        }
        // 64 bits do not survive a parser that has only floating point numbers.
        json["hash"] = format!("{:016x}", located.hash).into();
        output.json(&json)?;
        return Ok(Exit::Done);
    }
    output.table(&facts([
        ("key", readable(&key, 64)),
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

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use quorate_wire::PeerStatus;
    use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};

    use super::*;

    pub(crate) fn healthy() -> NodeStatus {
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
            recovering: None,
            reachable: vec![0, 0, 0, 8],
            counters: BTreeMap::new(),
            disk_full: None,
            certificate_left_s: None,
            authority_left_s: None,
            other_layouts: Vec::new(),
            change: None,
            transfers: None,
        }
    }

    #[test]
    fn a_node_that_has_not_answered_is_not_called_up() {
        let seen = healthy();
        let down = PeerStatus { up: false, ..seen.peers[0].clone() };
        let answers: Vec<Answer> = vec![
            (seen.peers[0].clone(), Some(Ok(seen.clone()))),
            (seen.peers[1].clone(), Some(Err("no answer within 1s".into()))),
            (down.clone(), None),
            // It is back before its peers have noticed.
            (down, Some(Ok(seen.clone()))),
        ];
        let text = peers(&answers).to_string();
        let states: Vec<_> = text.lines().skip(1).map(|row| row.split_whitespace().nth(6).expect("a state")).collect();
        assert_eq!(states, ["up", "silent", "down", "up"], "{text}");
    }

    #[test]
    fn tables_have_a_row_for_each_node() {
        let answers: Vec<Answer> = healthy().peers.into_iter().map(|peer| (peer, Some(Ok(healthy())))).collect();
        assert_eq!(peers(&answers).row_count(), 3);
        let text = overview(&healthy()).to_string();
        assert!(text.contains("N=3") && text.contains("8 partitions"), "{text}");
    }
}

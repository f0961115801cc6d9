//! `repair`: how nodes compare themselves with each other, and what they do about it.

use std::net::SocketAddr;

use comfy_table::Table;
use quorate_client::error::Error;
use quorate_wire::ids::NodeId;
use quorate_wire::{Recovering, RepairCommand as Ask, RepairReport};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::{RepairArgs, RepairCommand};
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome, reason_of};
use super::health;
use super::output::{Output, bytes_text, print, table, time_text};
use super::settings::Settings;

impl RepairCommand {
    /// What all of them have.
    pub(crate) fn args(&self) -> &RepairArgs {
        match self {
            Self::Start(args) | Self::Status(args) | Self::Pause(args) | Self::Resume(args) => args,
        }
    }

    fn ask(&self) -> Ask {
        match self {
            Self::Start(_) => Ask::Start,
            Self::Status(_) => Ask::Status,
            Self::Pause(_) => Ask::Pause,
            Self::Resume(_) => Ask::Resume,
        }
    }
}

type Answer = (NodeId, Result<RepairReport, Failure>);

/// `repair ..`: asks the nodes that are named, or every member.
pub(crate) async fn run(command: &RepairCommand, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let members = cluster.status().await.map_err(Failure::of_read)?.peers.into_iter().filter(|peer| peer.member);
    let members: Vec<(NodeId, SocketAddr)> = members.map(|peer| (peer.node, peer.addr)).collect();
    let nodes = chosen(&command.args().node, &members)?;
    let mut asking = JoinSet::new();
    for (node, addr) in nodes {
        let (cluster, ask) = (cluster.clone(), command.ask());
        asking.spawn(async move { (node, cluster.repair_at(addr, ask).await.map_err(failure)) });
    }
    let mut answers: Vec<Answer> = Vec::new();
    while let Some(answer) = asking.join_next().await {
        answers.push(
            answer.map_err(|error| Failure::new(format!("asking a node failed: {error}"), "run the command again"))?,
        );
    }
    answers.sort_by_key(|(node, _)| *node);
    // What all of them refuse is this command's failure.
    if let [(_, Err(_)), others @ ..] = answers.as_slice()
        && others.iter().all(|(_, answer)| answer.is_err())
    {
        let (node, failure) = answers.swap_remove(0);
        let failure = failure.expect_err("all of them are");
        return Err(Failure { message: format!("{node}: {}", failure.message), ..failure });
    }
    print(output, &as_json(&answers), || as_table(&answers))?;
    if !output.is_json() {
        for (node, recovering) in recovering(&answers) {
            output.line(&format!("! {node} is recovering: {}", recovering_text(recovering)))?;
        }
    }
    if !output.is_json() {
        for (node, answer) in &answers {
            if let Err(failure) = answer {
                output.line(&format!("! {node} does not answer: {}", failure.message))?;
            }
        }
    }
    let failed: Vec<String> =
        answers.iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| node.to_string()).collect();
    if failed.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failure {
        exit: Exit::Degraded,
        ..Failure::new(
            format!("no answer from {}", failed.join(", ")),
            "see `quorate node ls`; run the command again when they are back",
        )
    })
}

/// The table has room for a node and not for how a request went on its way to it.
fn failure(error: Error) -> Failure {
    let reason = reason_of(error.clone());
    let failure = Failure::from(error);
    if failure.exit == Exit::Unavailable { Failure { message: reason, ..failure } } else { failure }
}

/// The members that are named, or all of them.
fn chosen(named: &[NodeId], members: &[(NodeId, SocketAddr)]) -> Outcome<Vec<(NodeId, SocketAddr)>> {
    if members.is_empty() {
        return Err(Failure::new("the cluster has no members yet".to_owned(), health::NO_LAYOUT_YET));
    }
    if let Some(stranger) = named.iter().find(|node| members.iter().all(|(member, _)| member != *node)) {
        return Err(health::stranger(*stranger, members.iter().map(|(member, _)| *member)));
    }
    Ok(members.iter().filter(|(member, _)| named.is_empty() || named.contains(member)).copied().collect())
}

fn as_json(answers: &[Answer]) -> Value {
    let nodes: Vec<Value> = answers
        .iter()
        .map(|(node, answer)| match answer {
            Ok(report) => serde_json::to_value(report).expect("a report is plain data"),
            Err(failure) => json!({ "node": node, "error": failure.message }),
        })
        .collect();
    json!({ "schema": "quorate.repair.v1", "nodes": nodes })
}

fn as_table(answers: &[Answer]) -> Table {
    let mut table = table(&[
        "NODE",
        "STATE",
        "PASS",
        "COMPARED",
        "DIFFERING",
        "LAST WHOLE PASS",
        "MISSED",
        "CORRUPT",
        "WIPED",
        "SHIPPED",
        "TREES LEFT",
        "LAST SCRUB",
        "TOMBSTONES",
    ]);
    for (node, answer) in answers {
        match answer {
            Ok(report) => table.add_row([
                node.to_string(),
                state_text(report).to_owned(),
                report.pass.to_string(),
                format!("{} of {}", report.compared, report.partitions),
                report.differing.to_string(),
                ago_text(report.last_pass_ms),
                report.repaired_missed.to_string(),
                report.repaired_corrupt.to_string(),
                report.repaired_wiped.to_string(),
                bytes_text(report.bytes_sent + report.bytes_received),
                trees_text(report),
                ago_text(report.last_scrub_ms),
                report.tombstones.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            ]),
            Err(_) => table.add_row([node.to_string(), "no answer".to_owned()]),
        };
    }
    table
}

fn state_text(report: &RepairReport) -> &'static str {
    match (&report.recovering, report.paused, report.running, report.enabled) {
        (Some(_), ..) => "recovering",
        (None, true, ..) => "paused",
        (None, false, true, _) => "running",
        (None, false, false, true) => "resting",
        (None, false, false, false) => "off",
    }
}

fn trees_text(report: &RepairReport) -> String {
    match (report.rebuild_left, report.rebuild_eta_ms) {
        (0, _) => "0".to_owned(),
        (left, Some(eta_ms)) => format!("{left} ({})", time_text(eta_ms)),
        (left, None) => left.to_string(),
    }
}

fn ago_text(ago_ms: Option<u64>) -> String {
    ago_ms.map_or_else(|| "-".to_owned(), |ms| format!("{} ago", time_text(ms)))
}

fn recovering(answers: &[Answer]) -> impl Iterator<Item = (NodeId, &Recovering)> {
    answers.iter().filter_map(|(node, answer)| {
        let report = answer.as_ref().ok()?;
        Some((*node, report.recovering.as_ref()?))
    })
}

/// How a recovery stands, for people.
pub(crate) fn recovering_text(recovering: &Recovering) -> String {
    let Recovering { why, left, total, eta_ms } = recovering;
    let eta = eta_ms.map(|eta_ms| format!(", about {} left", time_text(eta_ms))).unwrap_or_default();
    format!("{} of {total} partitions are whole again{eta} ({why})", total - left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn report() -> RepairReport {
        RepairReport {
            node: node("n1"),
            enabled: true,
            paused: false,
            running: false,
            pass: 12,
            partitions: 614,
            compared: 614,
            differing: 2,
            unknown: 0,
            repaired_missed: 3,
            repaired_corrupt: 1,
            repaired_wiped: 0,
            bytes_listed: 100,
            bytes_sent: 2048,
            bytes_received: 0,
            last_pass_ms: Some(4_000),
            scrubbed: 1000,
            scrub_found: 1,
            last_scrub_ms: Some(60_000),
            records: Some(40),
            tombstones: Some(7),
            rebuild_left: 0,
            rebuild_eta_ms: None,
            recovering: None,
        }
    }

    #[test]
    fn nodes_are_chosen_by_name_and_strangers_are_named() {
        let addr = "127.0.0.1:7401".parse().expect("an address");
        let members = [(node("n1"), addr), (node("n2"), addr)];
        assert_eq!(chosen(&[], &members).expect("all").len(), 2);
        assert_eq!(chosen(&[node("n2")], &members).expect("one"), [(node("n2"), addr)]);
        let failure = chosen(&[node("n3")], &members).expect_err("a stranger");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("n3 is no member; the members are n1, n2"), "{}", failure.message);
        assert!(chosen(&[], &[]).expect_err("none").message.contains("no members"));
    }

    #[test]
    fn reports_are_shown_with_their_state() {
        let recovering = Recovering { why: "the disk is another".into(), left: 3, total: 8, eta_ms: Some(9_000) };
        assert_eq!(
            recovering_text(&recovering),
            "5 of 8 partitions are whole again, about 9 s left (the disk is another)"
        );
        assert_eq!(state_text(&report()), "resting");
        assert_eq!(state_text(&RepairReport { recovering: Some(recovering), ..report() }), "recovering");
        assert_eq!(state_text(&RepairReport { enabled: false, ..report() }), "off");
        assert_eq!(trees_text(&RepairReport { rebuild_left: 7, rebuild_eta_ms: Some(2_000), ..report() }), "7 (2 s)");
        let failure = Failure::new("it is down".to_owned(), "start it");
        let answers = [(node("n1"), Ok(report())), (node("n2"), Err(failure))];
        let text = as_table(&answers).to_string();
        assert!(text.contains("614 of 614") && text.contains("no answer"), "{text}");
        let json = as_json(&answers);
        assert_eq!((&json["nodes"][0]["pass"], &json["nodes"][1]["error"]), (&json!(12), &json!("it is down")));
    }
}

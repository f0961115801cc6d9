//! `transfers`: what moves in a change of the layout, how fast, and what stands in the way, from what all nodes say.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Flow, NodeStatus, Progress, Stopped, Transfer, Wait};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::args::TransfersArgs;
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome};
use super::health::{self, Answer};
use super::layout::{moved_text, wait_text};
use super::output::{Output, bytes_text, readable, table, time_text};
use super::settings::Settings;

/// `transfers`.
pub(crate) async fn transfers(args: &TransfersArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    if args.watch {
        return watch(&cluster, output).await;
    }
    let report = Report::gather(&cluster, true).await?;
    show(&report, output)?;
    Ok(Exit::Done)
}

/// Looks again every second until no change is under way.
async fn watch(cluster: &Cluster, output: &Output) -> Outcome {
    let (mut drawn, mut told, mut silent_since) = (0, None, None);
    loop {
        let began = Instant::now();
        match Report::gather(cluster, false).await {
            Ok(report) => {
                silent_since = None;
                if output.redraws() {
                    let lines: Vec<String> = if report.under_way { report.lines(output) } else { Vec::new() };
                    drawn = output.redraw(&lines, drawn)?;
                } else if report.under_way && told != Some(report.state()) {
                    told = Some(report.state());
                    match output.is_json() {
                        true => output.json(&report)?,
                        false => output.line(&report.line())?,
                    }
                }
                if !report.under_way {
                    show(&report, output)?;
                    return Ok(Exit::Done);
                }
            }
            Err(failure) => {
                let since = *silent_since.get_or_insert(began);
                if !failure.retryable || since.elapsed() >= SILENCE_MAX {
                    return Err(failure);
                }
            }
        }
        sleep(PAUSE.saturating_sub(began.elapsed())).await;
    }
}

fn show(report: &Report, output: &Output) -> Outcome<()> {
    if output.is_json() {
        output.json(report)?;
        return Ok(());
    }
    for line in report.lines(output) {
        output.line(&line)?;
    }
    Ok(())
}

/// What all nodes say of one change.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    /// Whose view of the whole this is; what a node moves it says itself.
    asked: NodeId,
    /// A node that has answered is in the midst of a change.
    under_way: bool,
    /// The oldest live layout, and the newest one.
    from: Option<LayoutVersion>,
    to: LayoutVersion,
    /// How many partitions have moved, of how many.
    moved: u32,
    partitions: u32,
    /// Until every receiver is done; unknown if one of them is.
    eta_ms: Option<u64>,
    pub(crate) receivers: Vec<Receiver>,
    pub(crate) waits: Vec<Wait>,
    hand_overs: Vec<HandOver>,
    pub(crate) stopped: Vec<StoppedAt>,
    /// Members that have not answered, and why.
    pub(crate) no_answer: BTreeMap<NodeId, String>,
}

/// A node that takes something over. What it counts itself is known if it has answered.
#[derive(Debug, Serialize)]
pub(crate) struct Receiver {
    pub(crate) node: NodeId,
    pub(crate) done: u32,
    pub(crate) of: u32,
    pub(crate) records: Option<u64>,
    pub(crate) bytes: Option<u64>,
    records_per_second: Option<u64>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) eta_ms: Option<u64>,
    sources: Vec<Flow>,
}

/// A node that hands over what it owns no more.
#[derive(Debug, Serialize)]
struct HandOver {
    node: NodeId,
    /// In how many partitions something may lie there still.
    left: Option<u32>,
    records: u64,
    bytes: u64,
    records_per_second: u64,
    bytes_per_second: u64,
    targets: Vec<Flow>,
}

/// What has failed at a node.
#[derive(Debug, Serialize)]
pub(crate) struct StoppedAt {
    node: NodeId,
    #[serde(flatten)]
    stopped: Stopped,
}

/// What has to differ for a new line: rates and times do with every look.
#[derive(Debug, PartialEq, Eq)]
struct State(
    u32,
    Vec<(NodeId, u32, Option<u64>)>,
    Vec<Wait>,
    Vec<(NodeId, Option<u32>, u64)>,
    Vec<(NodeId, String, u32)>,
);

impl Report {
    /// Asks one node which others there are, and each of them how it stands; those that are down only if that is wanted.
    pub(crate) async fn gather(cluster: &Cluster, also_down: bool) -> Outcome<Self> {
        let seen = cluster.status().await.map_err(Failure::of_read)?;
        let answers = health::ask_all(cluster, &seen, also_down).await?;
        Ok(Self::of(&seen, &answers))
    }

    fn of(seen: &NodeStatus, answers: &[Answer]) -> Self {
        let mut own: BTreeMap<NodeId, &NodeStatus> = BTreeMap::from([(seen.node, seen)]);
        own.extend(answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok()).map(|own| (own.node, own)));
        // Who has not heard of the newest layout yet knows of no change.
        let knows = |status: &&&NodeStatus| (status.layout, status.change.is_some(), status.node == seen.node);
        let newest = own.values().max_by_key(knows).expect("one has answered");
        let under_way = own.values().any(|status| status.change.is_some());
        let change = newest.change.clone().unwrap_or_default();
        let moves = |node: NodeId| own.get(&node).and_then(|status| status.transfers.as_ref());

        let receiver = |receiver: &quorate_wire::Receiver| {
            let moves = moves(receiver.node).filter(|moves| moves.to == newest.layout);
            let sum = |count: fn(&Flow) -> u64| moves.map(|moves| moves.sources.iter().map(count).sum::<u64>());
            let (done, of) = moves.map_or((receiver.done, receiver.of), |moves| (moves.done, moves.of));
            Receiver {
                node: receiver.node,
                done,
                of,
                records: sum(|flow| flow.records),
                bytes: sum(|flow| flow.bytes),
                records_per_second: sum(|flow| flow.records_per_second),
                bytes_per_second: sum(|flow| flow.bytes_per_second),
                eta_ms: if done == of { Some(0) } else { moves.and_then(|moves| moves.eta_ms) },
                sources: moves.map(|moves| moves.sources.clone()).unwrap_or_default(),
            }
        };
        let receivers: Vec<Receiver> = change.receivers.iter().map(receiver).collect();
        let hand_over = |(node, status): (&NodeId, &&NodeStatus)| {
            let moves = status.transfers.as_ref()?;
            let sum = |count: fn(&Flow) -> u64| moves.targets.iter().map(count).sum::<u64>();
            // Before its partitions have moved there is nothing to hand over.
            let begun = !moves.targets.is_empty() || moves.from == moves.to;
            (begun && moves.left != Some(0)).then(|| HandOver {
                node: *node,
                left: moves.left,
                records: sum(|flow| flow.records),
                bytes: sum(|flow| flow.bytes),
                records_per_second: sum(|flow| flow.records_per_second),
                bytes_per_second: sum(|flow| flow.bytes_per_second),
                targets: moves.targets.clone(),
            })
        };
        let stopped = own.iter().flat_map(|(node, status)| {
            let stopped = status.transfers.iter().flat_map(|moves| &moves.stopped);
            stopped.map(move |stopped| StoppedAt { node: *node, stopped: stopped.clone() })
        });
        let silent = answers.iter().filter(|(peer, _)| peer.member && !own.contains_key(&peer.node));
        let no_answer = silent.map(|(peer, answer)| {
            let why = answer.as_ref().and_then(|answer| answer.as_ref().err().cloned());
            (peer.node, why.unwrap_or_else(|| format!("it is down for {}", time_text(peer.since_ms))))
        });
        Self {
            schema: "quorate.transfers.v1",
            asked: newest.node,
            under_way,
            from: moves(newest.node).map(|moves| moves.from),
            to: newest.layout,
            moved: change.moved,
            partitions: change.partitions,
            eta_ms: receivers
                .iter()
                .map(|receiver| receiver.eta_ms)
                .collect::<Option<Vec<_>>>()
                .and_then(|etas| etas.into_iter().max()),
            waits: change.waits,
            hand_overs: own.iter().filter_map(hand_over).collect(),
            stopped: stopped.collect(),
            no_answer: no_answer.collect(),
            receivers,
        }
    }

    fn state(&self) -> State {
        let stopped = |at: &StoppedAt| (at.node, at.stopped.why.clone(), at.stopped.partitions);
        State(
            self.moved,
            self.receivers.iter().map(|receiver| (receiver.node, receiver.done, receiver.records)).collect(),
            self.waits.clone(),
            self.hand_overs.iter().map(|over| (over.node, over.left, over.records)).collect(),
            self.stopped.iter().map(stopped).collect(),
        )
    }

    fn which(&self) -> String {
        match self.from.filter(|from| *from < self.to) {
            Some(from) => format!("from layout {from} to {}", self.to),
            None => format!("to layout {}", self.to),
        }
    }

    fn moved_text(&self) -> String {
        moved_text(&Progress { moved: self.moved, partitions: self.partitions, ..Progress::default() })
    }

    /// For people at a terminal.
    fn lines(&self, output: &Output) -> Vec<String> {
        let mut lines = Vec::new();
        if self.under_way {
            lines.push(format!("a change is under way, {}: {}", self.which(), self.moved_text()));
            if self.from.is_some_and(|from| from.0 + 1 < self.to.0) {
                lines.push("(it began before an earlier one was over, and both end together)".to_owned());
            }
        } else if self.to == LayoutVersion::NONE {
            lines.push("no change is under way: there is no layout yet".to_owned());
        } else {
            lines.push(format!("no change is under way: layout {} is in force", self.to));
        }
        if !self.receivers.is_empty() {
            lines.push(String::new());
            lines.extend(output.laid_out(&self.table()).lines().map(str::to_owned));
            if !self.shows_sources() {
                lines.push("(from whom each of them takes over is in `quorate transfers -o json`)".to_owned());
            }
            lines.push(String::new());
        }
        lines.extend(self.waits.iter().map(|wait| format!("waits for: {}", wait_text(wait))));
        for over in &self.hand_overs {
            let left = over.left.map_or_else(
                || "it has yet to look what lies there".to_owned(),
                |left| format!("{left} partition{} left", if left == 1 { "" } else { "s" }),
            );
            let rate = if over.bytes_per_second > 0 {
                format!(", {}/s", bytes_text(over.bytes_per_second))
            } else {
                String::new()
            };
            lines.push(format!(
                "{} hands over what it owns no more: {left}; {} records ({}) sent{rate}",
                over.node,
                over.records,
                bytes_text(over.bytes)
            ));
        }
        lines.extend(self.stopped.iter().map(stopped_text));
        lines.extend(self.no_answer.iter().map(|(node, why)| format!("! {node} does not answer: {why}")));
        lines
    }

    fn shows_sources(&self) -> bool {
        self.receivers.iter().map(|receiver| 1 + receiver.sources.len()).sum::<usize>() <= ROWS_MAX
    }

    fn table(&self) -> Table {
        let mut shown = table(&["RECEIVER", "PARTITIONS", "RECORDS", "BYTES", "NOW", "ETA"]);
        let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), bytes_text);
        for receiver in &self.receivers {
            shown.add_row([
                receiver.node.to_string(),
                format!("{} of {}", receiver.done, receiver.of),
                count(receiver.records),
                bytes(receiver.bytes),
                rate_text(receiver.bytes_per_second.unwrap_or(0)),
                if receiver.done == receiver.of { "done".to_owned() } else { eta_text(receiver.eta_ms) },
            ]);
            for source in receiver.sources.iter().filter(|_| self.shows_sources()) {
                shown.add_row([
                    format!("  from {}", source.node),
                    source.of.map_or_else(|| source.done.to_string(), |of| format!("{} of {of}", source.done)),
                    source.records.to_string(),
                    bytes_text(source.bytes),
                    rate_text(source.bytes_per_second),
                    String::new(),
                ]);
            }
        }
        shown
    }

    /// In one line, for a log.
    fn line(&self) -> String {
        let sum = |count: fn(&Receiver) -> Option<u64>| self.receivers.iter().filter_map(count).sum::<u64>();
        let mut line = format!(
            "{}: {}, {} records ({}) taken over, {}/s, ETA {}",
            self.which(),
            self.moved_text(),
            sum(|receiver| receiver.records),
            bytes_text(sum(|receiver| receiver.bytes)),
            bytes_text(sum(|receiver| receiver.bytes_per_second)),
            eta_text(self.eta_ms),
        );
        let waits = self.waits.iter().map(|wait| format!("{}{}", wait.node, if wait.up { "" } else { " (down)" }));
        let waits: Vec<String> = waits.collect();
        if !waits.is_empty() {
            line += &format!("; waits for {}", waits.join(", "));
        }
        if !self.stopped.is_empty() {
            let what = |at: &StoppedAt| format!("{} with {}", at.node, at.stopped.with);
            line += &format!("; failed: {}", self.stopped.iter().map(what).collect::<Vec<_>>().join(", "));
        }
        line
    }
}

/// What has failed, and why.
pub(crate) fn stopped_text(StoppedAt { node, stopped }: &StoppedAt) -> String {
    let Stopped { what, with, partitions, partition, why, ago_ms } = stopped;
    let s = if *partitions == 1 { "" } else { "s" };
    let doing = match (what, with == node) {
        (Transfer::TakeOver, true) => format!("could not take over {partitions} partition{s}"),
        (Transfer::TakeOver, false) => format!("could not take over {partitions} partition{s} from {with}"),
        (Transfer::HandOver, true) => format!("could not hand over {partitions} partition{s}"),
        (Transfer::HandOver, false) => format!("could not hand over {partitions} partition{s} to {with}"),
    };
    let why = readable(why.as_bytes(), 200);
    format!("! {node} {doing}, and tries again; the last was {partition}, {} ago: {why}", time_text(*ago_ms))
}

pub(crate) fn rate_text(per_second: u64) -> String {
    if per_second == 0 { "-".to_owned() } else { format!("{}/s", bytes_text(per_second)) }
}

pub(crate) fn eta_text(eta_ms: Option<u64>) -> String {
    eta_ms.map_or_else(|| "unknown".to_owned(), time_text)
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// So long `--watch` goes on while no node answers: one that is started again is back by then.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// With more rows a table says less: then each receiver has one.
const ROWS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use quorate_wire::ids::Partition;
    use quorate_wire::{PeerStatus, Transfers};

    use super::*;
    use crate::cli::args::OutputFormat;
    use crate::cli::cluster::tests::healthy;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn flow(name: &str, done: u32, of: Option<u32>, bytes: u64) -> Flow {
        let rate = bytes / 10;
        Flow {
            node: node(name),
            done,
            of,
            records: bytes / 1000,
            bytes,
            records_per_second: rate / 1000,
            bytes_per_second: rate,
        }
    }

    /// n4 joins; n1 is behind, n2 is asked, n3 does not answer.
    fn seen() -> (NodeStatus, Vec<Answer>) {
        let wait = Wait { node: node("n4"), partitions: 50, what: "takes over what n1, n2 hold".into(), up: true };
        let receivers = vec![
            quorate_wire::Receiver { node: node("n3"), done: 1, of: 2 },
            quorate_wire::Receiver { node: node("n4"), done: 20, of: 77 },
        ];
        let change = Progress { moved: 25, partitions: 128, waits: vec![wait], receivers };
        let (v1, v2) = (LayoutVersion(1), LayoutVersion(2));
        let stopped = Stopped {
            what: Transfer::TakeOver,
            with: node("n1"),
            partitions: 12,
            partition: Partition(31),
            why: "its disk is full".into(),
            ago_ms: 3_000,
        };
        let moves = Transfers {
            from: v1,
            to: v2,
            done: 25,
            of: 77,
            eta_ms: Some(40_000),
            sources: vec![flow("n1", 12, Some(40), 5_000_000), flow("n2", 13, Some(37), 7_000_000)],
            stopped: vec![stopped],
            ..Transfers::default()
        };
        let status = |name: &str, change: Option<&Progress>, transfers| NodeStatus {
            node: node(name),
            layout: if change.is_some() { v2 } else { v1 },
            change: change.cloned(),
            transfers,
            ..healthy()
        };
        let seen = status("n2", Some(&change), Some(Transfers { from: v1, to: v2, ..Transfers::default() }));
        let peer = |name: &str| PeerStatus { node: node(name), ..healthy().peers[0].clone() };
        let answers = vec![
            (peer("n1"), Some(Ok(status("n1", None, None)))),
            (peer("n2"), Some(Ok(seen.clone()))),
            (peer("n3"), Some(Err("no answer within 1s".into()))),
            (peer("n4"), Some(Ok(status("n4", Some(&change), Some(moves))))),
        ];
        (seen, answers)
    }

    #[test]
    fn each_receiver_says_itself_how_far_it_is() {
        let (seen, answers) = seen();
        let report = Report::of(&seen, &answers);
        assert!(report.under_way);
        assert_eq!((report.asked, report.from, report.to), (node("n2"), Some(LayoutVersion(1)), LayoutVersion(2)));
        let [n3, n4] = &report.receivers[..] else { panic!("two: {report:?}") };
        // What is asked has heard of it by gossip; how much it has moved n3 alone knows.
        assert_eq!((n3.node, n3.done, n3.of, n3.bytes, n3.eta_ms), (node("n3"), 1, 2, None, None));
        assert_eq!((n4.done, n4.of, n4.bytes, n4.eta_ms), (25, 77, Some(12_000_000), Some(40_000)));
        assert_eq!(report.eta_ms, None, "that of n3 is unknown");
        assert_eq!(report.no_answer, BTreeMap::from([(node("n3"), "no answer within 1s".to_owned())]));
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(
            (&json["schema"], &json["receivers"][1]["sources"][0]["node"]),
            (&"quorate.transfers.v1".into(), &"n1".into())
        );
        assert_eq!((&json["stopped"][0]["node"], &json["stopped"][0]["with"]), (&"n4".into(), &"n1".into()));
        assert_eq!(json["stopped"][0]["what"], "TakeOver");
    }

    #[test]
    fn a_table_for_people_fits_80_columns_and_names_what_has_failed() {
        let (seen, answers) = seen();
        let report = Report::of(&seen, &answers);
        let lines = report.lines(&Output::new(OutputFormat::Text));
        let text = lines.join("\n");
        for said in [
            "from layout 1 to 2: 25 of 128 partitions have moved (19 %)",
            "  from n2",
            "12 of 40",
            "1.14 MiB/s",
            "unknown",
            "waits for: n4, which takes over what n1, n2 hold (50 partitions)",
            "! n4 could not take over 12 partitions from n1, and tries again; the last was 31, 3 s ago: its disk is full",
            "! n3 does not answer: no answer within 1s",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let shown = super::super::output::rendered(&report.table());
        let wide = shown.lines().map(|line| line.chars().count()).max();
        assert!(wide <= Some(80), "{wide:?}\n{shown}");
        assert!(report.line().contains("; waits for n4; failed: n4 with n1"), "{}", report.line());
    }

    #[test]
    fn with_many_sources_each_receiver_has_one_row() {
        let (seen, mut answers) = seen();
        let Some(Ok(n4)) = &mut answers[3].1 else { panic!("it answers") };
        let moves = n4.transfers.as_mut().expect("it moves something");
        moves.sources = (0..100).map(|number| flow(&format!("s{number}"), 1, Some(2), 1_000)).collect();
        let report = Report::of(&seen, &answers);
        assert_eq!(report.table().row_count(), 2);
        assert!(report.lines(&Output::new(OutputFormat::Text)).join("\n").contains("-o json"));
    }

    #[test]
    fn a_new_line_needs_more_than_another_rate() {
        let (seen, mut answers) = seen();
        let before = Report::of(&seen, &answers).state();
        let own = |answers: &mut Vec<Answer>, change: &dyn Fn(&mut Transfers)| {
            let Some(Ok(n4)) = &mut answers[3].1 else { panic!("it answers") };
            change(n4.transfers.as_mut().expect("it moves something"));
        };
        own(&mut answers, &|moves| {
            (moves.eta_ms, moves.sources[0].bytes_per_second, moves.stopped[0].ago_ms) = (None, 1, 9)
        });
        assert_eq!(Report::of(&seen, &answers).state(), before);
        own(&mut answers, &|moves| moves.sources[0].records += 1);
        assert_ne!(Report::of(&seen, &answers).state(), before);
    }

    #[test]
    fn when_no_change_is_under_way_what_is_still_handed_over_is_told() {
        let v2 = LayoutVersion(2);
        let moves = Transfers {
            from: v2,
            to: v2,
            left: Some(3),
            targets: vec![flow("n4", 1, None, 5_000)],
            ..Transfers::default()
        };
        let seen = NodeStatus { layout: v2, transfers: Some(moves), ..healthy() };
        let report = Report::of(&seen, &[]);
        assert!(!report.under_way);
        let text = report.lines(&Output::new(OutputFormat::Text)).join("\n");
        assert!(text.contains("no change is under way: layout 2 is in force"), "{text}");
        assert!(
            text.contains("n1 hands over what it owns no more: 3 partitions left; 5 records (4.88 KiB) sent"),
            "{text}"
        );
        let none = NodeStatus { layout: LayoutVersion::NONE, n: 0, ..healthy() };
        let text = Report::of(&none, &[]).lines(&Output::new(OutputFormat::Text)).join("\n");
        assert_eq!(text, "no change is under way: there is no layout yet");
    }
}

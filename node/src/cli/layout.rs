//! `layout`: who owns what, staged, looked at, and applied.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::Table;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Abort, Applied, LayoutCommand as Ask, LayoutReport, LayoutView, Moves, PastLayout, Progress, Wait};
use tokio::task::JoinSet;

use super::args::{LayoutArgs, LayoutCommand, Member, StageCommand};
use super::cert::date;
use super::connection::{Cluster, resolve_in_time};
use super::export::Whole;
use super::failure::{Exit, Failure, Outcome};
use super::layout_page;
use super::output::{Output, table};
use super::settings::Settings;
use super::transfers::Report;
use super::wall_clock;

impl LayoutCommand {
    /// What all of them have.
    pub(crate) fn args(&self) -> &LayoutArgs {
        match self {
            Self::Show { args, .. }
            | Self::History(args)
            | Self::Revert(args)
            | Self::Apply { args, .. }
            | Self::Abort { args, .. }
            | Self::RotateContextKey(args) => args,
            Self::Stage(
                StageCommand::Join { args, .. }
                | StageCommand::Leave { args, .. }
                | StageCommand::Replace { args, .. }
                | StageCommand::Weight { args, .. }
                | StageCommand::Zone { args, .. }
                | StageCommand::Settings { args, .. },
            ) => args,
        }
    }
}

/// `layout ..`.
pub(crate) async fn run(command: &LayoutCommand, settings: &Settings, output: &Output) -> Outcome {
    let page = match command {
        LayoutCommand::Show { report: Some(path), .. } => Some((path, Whole::create(path)?)),
        _ => None,
    };
    let cluster = Cluster::connect(settings).await?;
    let at = match &command.args().on {
        None => cluster.first_seed().to_owned(),
        Some(endpoint) => {
            resolve_in_time(endpoint).await?;
            endpoint.to_string()
        }
    };
    let mut last = None;
    for ask in asks(command, Some(&cluster)).await? {
        let staging = last.is_some();
        let report = cluster.layout_at(&at, ask).await.map_err(|error| {
            let failure = if is_look(command) { Failure::of_read(error) } else { error.into() };
            if !staging {
                return Failure { message: format!("{at}: {}", failure.message), ..failure };
            }
            let why = failure.message.replace("; nothing was changed", "");
            let message = format!("{at}: {why}; what was named before it is staged");
            Failure { message, may_have_applied: true, ..failure }
        })?;
        last = Some(report);
    }
    let report = last.expect("every command asks at least once");
    if let Some((path, file)) = page {
        let transfers = match report.under_way {
            Some(_) => Some(Report::gather(&cluster, true).await?),
            None => None,
        };
        let taken = format!("as {at} knew it at {}", date(to_the_second(wall_clock())));
        file.finish(layout_page::page(&report, transfers.as_ref(), &taken).as_bytes())?;
        output.hint(&format!("{} shows it as a page", path.display()));
    }
    if output.is_json() {
        let mut json = serde_json::to_value(&report).expect("a report is plain data");
        json["schema"] = "quorate.layout.v1".into();
        output.json(&json)?;
    } else if matches!(command, LayoutCommand::History(_)) {
        output.table(&history(&report.history))?;
    } else if let Some(abort) = &report.abort {
        show_abort(&report, abort, output)?;
    } else {
        show(&report, output)?;
        next_step(command, &report, output);
    }
    match command {
        LayoutCommand::Apply { version, .. } if report.applied.is_some() => {
            came_of(*version, "what is staged", report.applied.as_ref().expect("seen above"))
        }
        LayoutCommand::Abort { version: Some(version), .. } => match &report.applied {
            Some(applied) => came_of(*version, "what ends the change", applied),
            None => Ok(Exit::Done),
        },
        LayoutCommand::Apply { version, .. } if report.current.version.0 < *version => Err(Failure {
            exit: Exit::Unknown,
            may_have_applied: true,
            ..Failure::new(
                format!("layout {version} was accepted by {} members and is not in force", report.holding.len()),
                "repeat the command when the missing members can be reached: it is the same layout, so that this is safe",
            )
        }),
        _ => Ok(Exit::Done),
    }
}

fn to_the_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Whether it only looks.
fn is_look(command: &LayoutCommand) -> bool {
    matches!(
        command,
        LayoutCommand::Show { .. } | LayoutCommand::History(_) | LayoutCommand::Abort { version: None, .. }
    )
}

/// How an apply of a later version than the first one ends, or an abort. `wanted` is what the operator wants to come into force.
fn came_of(version: u64, wanted: &str, applied: &Applied) -> Outcome {
    match applied {
        Applied::AsStaged | Applied::Before => Ok(Exit::Done),
        Applied::Another { by, what } => {
            let by = by.map_or_else(|| "another operator's".to_owned(), |by| format!("proposed by {by}"));
            Err(Failure::new(
                format!("layout {version} is another one than {wanted}, {by}: {what}; {wanted} was not applied"),
                "`quorate layout show` tells what is under way now, and what applying what is staged to that would do",
            ))
        }
        Applied::Undecided { why } => Err(Failure {
            exit: Exit::Unknown,
            may_have_applied: true,
            ..Failure::new(
                format!("layout {version} is not decided: {why}; {wanted} may yet come into force"),
                "repeat the command when more members can be reached: it finishes what was begun, so that this is safe",
            )
        }),
    }
}

/// What to ask the node for; several members are staged one by one.
async fn asks(command: &LayoutCommand, cluster: Option<&Cluster>) -> Outcome<Vec<Ask>> {
    Ok(match command {
        LayoutCommand::Show { .. } => vec![Ask::Show],
        LayoutCommand::History(_) => vec![Ask::History],
        LayoutCommand::Revert(_) => vec![Ask::Revert],
        LayoutCommand::RotateContextKey(_) => vec![Ask::RotateContextKey],
        LayoutCommand::Apply { version, .. } => vec![Ask::Apply { version: LayoutVersion(*version) }],
        LayoutCommand::Abort { version, .. } => vec![Ask::Abort { version: version.map(LayoutVersion) }],
        LayoutCommand::Stage(StageCommand::Settings { replicas, partitions, floor_r, floor_w, .. }) => {
            vec![Ask::StageSettings { n: *replicas, partitions: *partitions, r: *floor_r, w: *floor_w }]
        }
        LayoutCommand::Stage(StageCommand::Leave { nodes, .. }) => {
            nodes.iter().map(|node| Ask::StageLeave { node: *node }).collect()
        }
        LayoutCommand::Stage(StageCommand::Replace { old, new: Member { node, addr }, .. }) => {
            let addr = where_it_answers(cluster, *node, &resolve_in_time(addr).await?).await;
            vec![Ask::StageReplace { old: *old, new: *node, addr }]
        }
        LayoutCommand::Stage(StageCommand::Weight { node, weight, .. }) => {
            vec![Ask::StageWeight { node: *node, weight: *weight }]
        }
        LayoutCommand::Stage(StageCommand::Zone { node, zone, .. }) => {
            vec![Ask::StageZone { node: *node, zone: zone.clone() }]
        }
        LayoutCommand::Stage(StageCommand::Join { members, zone, weight, .. }) => {
            let mut asks = Vec::new();
            for Member { node, addr } in members {
                let addr = where_it_answers(cluster, *node, &resolve_in_time(addr).await?).await;
                asks.push(Ask::StageJoin { node: *node, addr, zone: zone.clone(), weight: *weight });
            }
            asks
        }
    })
}

/// Of the addresses of a name the one at which that node answers; the first one if none does, and the node that stages says why.
async fn where_it_answers(cluster: Option<&Cluster>, node: NodeId, addrs: &[SocketAddr]) -> SocketAddr {
    let first = *addrs.first().expect("a resolved name has an address");
    let (Some(cluster), true) = (cluster, addrs.len() > 1) else { return first };
    let mut asked = JoinSet::new();
    for addr in addrs.iter().copied() {
        let cluster = cluster.clone();
        asked.spawn(
            async move { cluster.status_at(addr).await.ok().filter(|status| status.node == node).map(|_| addr) },
        );
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(addr)) = answer {
            return addr;
        }
    }
    first
}

fn show(report: &LayoutReport, output: &Output) -> Outcome<()> {
    if report.current.version == LayoutVersion::NONE {
        output.line("no layout yet: the cluster does not serve data")?;
    } else {
        output.line(&format!("layout {}", settings_text(&report.current)))?;
        output.table(&members(&report.current))?;
        if let [oldest, .., newest] = &report.live[..] {
            output
                .line(&format!("a change is under way, from layout {oldest} to {newest}{}", moved(&report.progress)))?;
            for wait in report.progress.iter().flat_map(|progress| &progress.waits) {
                output.line(&format!("waits for: {}", wait_text(wait)))?;
            }
        }
        output.line(&format!("context keys, the newest first: {}", report.context_keys.join(", ")))?;
    }
    if report.applied == Some(Applied::Before) {
        output.line("that version was applied before; nothing was changed")?;
    }
    if let Some(staged) = &report.staged {
        output.line(&format!("\nstaged: layout {}", settings_text(staged)))?;
        output.table(&members(staged))?;
    }
    if let Some(moves) = &report.moves {
        output.line(&format!("\n{}", moves_text(moves)))?;
        if !moves.gets.is_empty() {
            output.table(&moves_table(moves))?;
        }
    }
    let several =
        |title: &str, lines: &[String]| lines.iter().try_for_each(|line| output.line(&format!("{title}: {line}")));
    several("stands against it", &report.problems)?;
    several("warning", &report.warnings)?;
    if !report.holding.is_empty() {
        let names: Vec<_> = report.holding.iter().map(ToString::to_string).collect();
        output.line(&format!("held durably by: {}", names.join(", ")))?;
    }
    for (node, why) in &report.missing {
        output.line(&format!("not held yet by: {node} ({why}); it gets it when it returns"))?;
    }
    Ok(())
}

/// What an abort would do.
fn show_abort(report: &LayoutReport, abort: &Abort, output: &Output) -> Outcome<()> {
    let Abort { layout, like, what, moves, problems } = abort;
    output.line(&format!(
        "a change is under way, from layout {like} to {}{}",
        report.current.version,
        moved(&report.progress)
    ))?;
    output.line(&format!("\naborting it makes layout {}, equal to layout {like}: {what}", settings_text(layout)))?;
    output.table(&members(layout))?;
    if let Some(moves) = moves {
        output.line(&format!(
            "\nwhat has moved moves back, {} replicas of partitions at most; everything stays readable and writable meanwhile",
            moves.replicas
        ))?;
        if !moves.gets.is_empty() {
            output.table(&moves_table(moves))?;
        }
    }
    problems.iter().try_for_each(|problem| output.line(&format!("stands against it: {problem}")))?;
    if report.staged.is_some() {
        output.line("what is staged stays staged, for the layout after that")?;
    }
    if problems.is_empty() {
        output.line(&format!("nothing was changed: `quorate layout abort --version {}` does it", layout.version))?;
    } else {
        output.line("nothing was changed: stage what is wanted instead (`quorate layout stage --help`)")?;
    }
    Ok(())
}

fn moved(progress: &Option<Progress>) -> String {
    progress.as_ref().map_or_else(String::new, |progress| format!(": {}", moved_text(progress)))
}

/// How much of a change is done.
pub(crate) fn moved_text(Progress { moved, partitions, .. }: &Progress) -> String {
    let percent = u64::from(*moved) * 100 / u64::from(*partitions).max(1);
    format!("{moved} of {partitions} partitions have moved ({percent} %)")
}

/// What a change waits for.
pub(crate) fn wait_text(Wait { node, partitions, what, up }: &Wait) -> String {
    let (down, s) = (if *up { "" } else { "; it is down" }, if *partitions == 1 { "" } else { "s" });
    format!("{node}, which {what} ({partitions} partition{s}){down}")
}

fn next_step(command: &LayoutCommand, report: &LayoutReport, output: &Output) {
    let staged = report.staged.as_ref().map(|staged| staged.version);
    match (command, staged) {
        (LayoutCommand::Apply { .. } | LayoutCommand::Abort { .. }, _) if report.live.len() > 1 => {
            output.hint("next: quorate transfers --watch");
        }
        (LayoutCommand::Apply { .. } | LayoutCommand::Abort { .. }, _) => output.hint("next: quorate status"),
        (LayoutCommand::RotateContextKey(_) | LayoutCommand::History(_), _) => {}
        (_, Some(version)) if report.problems.is_empty() => {
            output.hint(&format!("next: quorate layout apply --version {version}"));
        }
        (_, Some(_)) => output.hint("next: stage what is missing, then `quorate layout show`"),
        (LayoutCommand::Show { .. }, None) if report.live.len() > 1 => {
            output.hint("next: quorate transfers --watch; or quorate layout abort, to go back");
        }
        (_, None) if report.current.version == LayoutVersion::NONE => {
            output.hint("next: quorate layout stage join NODE=HOST:PORT ..");
        }
        (_, None) => {}
    }
}

fn settings_text(view: &LayoutView) -> String {
    let hash = view.hash.get(..16).unwrap_or(&view.hash);
    format!(
        "version {} ({hash}): N={}, {} partitions, floors R={} W={}",
        view.version, view.n, view.partitions, view.r, view.w
    )
}

fn moves_text(moves: &Moves) -> String {
    let Moves { replicas, least, balance_before, balance_after, all_owners_change, .. } = moves;
    format!(
        "applying it copies {replicas} replicas of partitions, at least {least} for these shares; {all_owners_change} partitions keep \
         none of their owners; the largest load is {balance_before:.2} of its share before and {balance_after:.2} after"
    )
}

fn moves_table(moves: &Moves) -> Table {
    let mut table = table(&["FROM", "TO", "PARTITIONS"]);
    for gets in &moves.gets {
        let from = gets.from.map_or_else(|| "(one more replica)".to_owned(), |from| from.to_string());
        table.add_row([from, gets.to.to_string(), gets.partitions.to_string()]);
    }
    table
}

fn history(past: &[PastLayout]) -> Table {
    let mut table = table(&["VERSION", "HASH", "LIVE", "MEMBERS", "N", "ADDED", "REMOVED"]);
    let names = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for layout in past {
        let gap = layout.since != LayoutVersion::NONE && layout.since.0 + 1 != layout.version.0;
        let since = if gap { format!(" (since version {})", layout.since) } else { String::new() };
        table.add_row([
            layout.version.to_string(),
            layout.hash.get(..16).unwrap_or(&layout.hash).to_owned(),
            if layout.live { "yes" } else { "no" }.to_owned(),
            layout.members.to_string(),
            layout.n.to_string(),
            format!("{}{since}", names(&layout.added)),
            names(&layout.removed),
        ]);
    }
    table
}

fn members(view: &LayoutView) -> Table {
    let mut table = table(&["NODE", "ADDRESS", "ZONE", "WEIGHT", "PRIMARIES", "DISK"]);
    for member in &view.members {
        table.add_row([
            member.node.to_string(),
            member.addr.to_string(),
            member.zone.clone(),
            member.weight.to_string(),
            member.primaries.to_string(),
            member.disk.to_string()[..8].to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};

    async fn asked(line: &str) -> Vec<Ask> {
        let cli = Cli::parse_args(line.split(' ')).expect("legal");
        let Command::Layout(command) = cli.command else { panic!("a layout command: {line}") };
        asks(&command, None).await.expect("addresses that need no name service")
    }

    #[tokio::test]
    async fn commands_become_what_a_node_is_asked_for() {
        assert_eq!(asked("quorate layout show").await, [Ask::Show]);
        assert_eq!(asked("quorate layout revert").await, [Ask::Revert]);
        assert_eq!(asked("quorate layout abort").await, [Ask::Abort { version: None }]);
        assert_eq!(asked("quorate layout abort --version 3").await, [Ask::Abort { version: Some(LayoutVersion(3)) }]);
        assert_eq!(asked("quorate layout rotate-context-key").await, [Ask::RotateContextKey]);
        assert_eq!(asked("quorate layout apply --version 1").await, [Ask::Apply { version: LayoutVersion(1) }]);
        assert_eq!(
            asked("quorate layout stage settings --replicas 5 --floor-w 4").await,
            [Ask::StageSettings { n: Some(5), partitions: None, r: None, w: Some(4) }]
        );
        let join = |name: &str, port: u16, zone: &str, weight| Ask::StageJoin {
            node: name.parse().expect("legal"),
            addr: ([10, 0, 0, 1], port).into(),
            zone: zone.into(),
            weight,
        };
        assert_eq!(
            asked("quorate layout stage join n1=10.0.0.1:7401 n2=10.0.0.1:7402 --zone a --weight 2").await,
            [join("n1", 7401, "a", 2), join("n2", 7402, "a", 2)]
        );
        assert_eq!(asked("quorate layout stage join n1=10.0.0.1:7401").await, [join("n1", 7401, "default", 1)]);
        let node = |name: &str| name.parse().expect("legal");
        assert_eq!(asked("quorate layout history").await, [Ask::History]);
        assert_eq!(
            asked("quorate layout stage leave n2 n3").await,
            [Ask::StageLeave { node: node("n2") }, Ask::StageLeave { node: node("n3") }]
        );
        assert_eq!(
            asked("quorate layout stage replace n2 n6=10.0.0.1:7406").await,
            [Ask::StageReplace { old: node("n2"), new: node("n6"), addr: ([10, 0, 0, 1], 7406).into() }]
        );
        assert_eq!(asked("quorate layout stage weight n1 3").await, [Ask::StageWeight { node: node("n1"), weight: 3 }]);
        assert_eq!(
            asked("quorate layout stage zone n1 rack-2").await,
            [Ask::StageZone { node: node("n1"), zone: "rack-2".into() }]
        );
    }

    #[test]
    fn what_came_of_an_apply_is_told_by_message_and_exit_code() {
        assert_eq!(came_of(2, "what is staged", &Applied::AsStaged).expect("done"), Exit::Done);
        assert_eq!(came_of(2, "what is staged", &Applied::Before).expect("done"), Exit::Done);
        let by = "n3".parse().ok();
        let lost =
            came_of(2, "what is staged", &Applied::Another { by, what: "n5 joins".into() }).expect_err("another one");
        let text =
            "layout 2 is another one than what is staged, proposed by n3: n5 joins; what is staged was not applied";
        assert_eq!((lost.message.as_str(), lost.exit, lost.may_have_applied), (text, Exit::Failed, false));
        let unknown = came_of(2, "what is staged", &Applied::Another { by: None, what: "n5 joins".into() })
            .expect_err("another one");
        assert!(unknown.message.contains("another operator's: n5 joins"));
        let open =
            came_of(2, "what is staged", &Applied::Undecided { why: "1 of 3".into() }).expect_err("it may yet be");
        assert_eq!((open.exit, open.may_have_applied), (Exit::Unknown, true));
        let lost = came_of(3, "what ends the change", &Applied::Another { by, what: "n5 joins".into() });
        let text = lost.expect_err("another one").message;
        assert!(text.contains("another one than what ends the change, proposed by n3: n5 joins"), "{text}");
        assert!(open.message.contains("1 of 3; what is staged may yet come into force"), "{}", open.message);
    }

    #[test]
    fn how_far_a_change_is_and_what_it_waits_for() {
        let n4 = "n4".parse().expect("legal");
        let what = "takes over what n1, n2 hold".to_owned();
        let wait = Wait { node: n4, partitions: 7, what, up: false };
        assert_eq!(wait_text(&wait), "n4, which takes over what n1, n2 hold (7 partitions); it is down");
        let progress = Progress { moved: 25, partitions: 32, waits: vec![wait], receivers: Vec::new() };
        assert_eq!(moved(&Some(progress)), ": 25 of 32 partitions have moved (78 %)");
        assert_eq!(moved(&None), "", "a node of an older release does not tell");
    }

    #[test]
    fn what_moves_and_what_was_in_force_are_shown() {
        let node = |name: &str| name.parse().expect("legal");
        let gets =
            |from: Option<&str>, to, partitions| quorate_wire::Gets { from: from.map(node), to: node(to), partitions };
        let moves = Moves {
            gets: vec![gets(Some("n1"), "n4", 12), gets(None, "n2", 3)],
            replicas: 15,
            least: 14,
            balance_before: 1.0,
            balance_after: 1.049,
            ..Moves::default()
        };
        let shown = moves_table(&moves).to_string();
        for cells in [["n1", "n4", "12"], ["(one more replica)", "n2", "3"]] {
            let row = shown.lines().find(|line| line.contains(cells[0])).expect("a row");
            assert!(cells.iter().all(|cell| row.contains(cell)), "{shown}");
        }
        let text = moves_text(&moves);
        assert!(text.contains("15 replicas") && text.contains("at least 14") && text.contains("1.05 after"), "{text}");
        let past = |version, since, added: &[&str]| PastLayout {
            version: LayoutVersion(version),
            hash: "c76f8643b3f48b1ef62e".into(),
            live: version == 5,
            members: 3,
            n: 3,
            since: LayoutVersion(since),
            added: added.iter().copied().map(node).collect(),
            removed: Vec::new(),
        };
        let shown = history(&[past(1, 0, &["n1", "n2"]), past(5, 1, &["n4"])]).to_string();
        assert!(shown.contains("c76f8643b3f48b1e ") && shown.contains("n1, n2"), "{shown}");
        assert!(shown.contains("n4 (since version 1)"), "{shown}");
    }
}

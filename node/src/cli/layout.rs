//! `layout`: who owns what, staged, looked at, and applied.

use std::net::SocketAddr;

use comfy_table::Table;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{LayoutCommand as Ask, LayoutReport, LayoutView};
use tokio::task::JoinSet;

use super::args::{LayoutArgs, LayoutCommand, Member, StageCommand};
use super::connection::{Cluster, resolve_in_time};
use super::failure::{Exit, Failure, Outcome};
use super::output::{Output, table};
use super::settings::Settings;

impl LayoutCommand {
    /// What all of them have.
    pub(crate) fn args(&self) -> &LayoutArgs {
        match self {
            Self::Show(args) | Self::Revert(args) | Self::Apply { args, .. } | Self::RotateContextKey(args) => args,
            Self::Stage(StageCommand::Join { args, .. } | StageCommand::Settings { args, .. }) => args,
        }
    }
}

/// `layout ..`.
pub(crate) async fn run(command: &LayoutCommand, settings: &Settings, output: &Output) -> Outcome {
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
            let failure =
                if matches!(command, LayoutCommand::Show(_)) { Failure::of_read(error) } else { error.into() };
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
    if output.is_json() {
        let mut json = serde_json::to_value(&report).expect("a report is plain data");
        json["schema"] = "quorate.layout.v1".into();
        output.json(&json)?;
    } else {
        show(&report, output)?;
        next_step(command, &report, output);
    }
    match command {
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

/// What to ask the node for; several members are staged one by one.
async fn asks(command: &LayoutCommand, cluster: Option<&Cluster>) -> Outcome<Vec<Ask>> {
    Ok(match command {
        LayoutCommand::Show(_) => vec![Ask::Show],
        LayoutCommand::Revert(_) => vec![Ask::Revert],
        LayoutCommand::RotateContextKey(_) => vec![Ask::RotateContextKey],
        LayoutCommand::Apply { version, .. } => vec![Ask::Apply { version: LayoutVersion(*version) }],
        LayoutCommand::Stage(StageCommand::Settings { replicas, partitions, floor_r, floor_w, .. }) => {
            vec![Ask::StageSettings { n: *replicas, partitions: *partitions, r: *floor_r, w: *floor_w }]
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
        output.line(&format!("context keys, the newest first: {}", report.context_keys.join(", ")))?;
    }
    if let Some(staged) = &report.staged {
        output.line(&format!("\nstaged: layout {}", settings_text(staged)))?;
        output.table(&members(staged))?;
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

fn next_step(command: &LayoutCommand, report: &LayoutReport, output: &Output) {
    let staged = report.staged.as_ref().map(|staged| staged.version);
    match (command, staged) {
        (LayoutCommand::Apply { .. }, _) => output.hint("next: quorate status"),
        (LayoutCommand::RotateContextKey(_), _) => {}
        (_, Some(version)) if report.problems.is_empty() => {
            output.hint(&format!("next: quorate layout apply --version {version}"));
        }
        (_, Some(_)) => output.hint("next: stage what is missing, then `quorate layout show`"),
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
    }
}

//! `hints`, `check` and the verdict of `status`: how well a cluster is, from what all of its nodes say.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::Table;
use quorate_node::certificate::{WARNED_BEFORE, days, left_s};
use quorate_transport::tls::Credentials;
use quorate_wire::ids::NodeId;
use quorate_wire::{HintStatus, NodeStatus, PeerStatus};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::{CheckCommand, HintsArgs};
use super::connection::{Cluster, credentials};
use super::failure::{Exit, Failure, Outcome, reason_of};
use super::layout::moved_text;
use super::output::{Output, bytes_text, print, readable, table, time_text};
use super::repair::recovering_text;
use super::settings::Settings;
use super::wall_clock;

/// A node as another one names it, and what it says itself; nothing if it was not asked.
pub(crate) type Answer = (PeerStatus, Option<Result<NodeStatus, String>>);

/// Asks every node that `seen` names for its own state, all at once; those that are down only if that is wanted, since they
/// have to be waited for.
pub(crate) async fn ask_all(cluster: &Cluster, seen: &NodeStatus, also_down: bool) -> Outcome<Vec<Answer>> {
    let mut asking = JoinSet::new();
    let asked = seen.peers.iter().take(NODES_ASKED_MAX).enumerate();
    for (place, peer) in asked.filter(|(_, peer)| peer.up || also_down) {
        let (cluster, addr) = (cluster.clone(), peer.addr);
        asking.spawn(async move { (place, cluster.status_at(addr).await) });
    }
    let mut answers: Vec<Answer> = seen.peers.iter().map(|peer| (peer.clone(), None)).collect();
    while let Some(answer) = asking.join_next().await {
        let (place, answer) =
            answer.map_err(|error| Failure::new(format!("asking a node failed: {error}"), "run the command again"))?;
        // An address may meanwhile belong to another node; its state must not be shown under this name.
        answers[place].1 = Some(match answer {
            Ok(status) if status.node == seen.peers[place].node => Ok(status),
            Ok(status) => Err(format!("{} answers there", status.node)),
            Err(error) => Err(reason_of(error)),
        });
    }
    Ok(answers)
}

/// How well a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Every owner of every key is there, and nobody keeps anything for anybody.
    Healthy,
    /// Something is missing; every quorum of the layout's floors can be met, also if one more node fails.
    Degraded,
    /// Every quorum can be met, but one more failure would make some keys unavailable; or hints are about to be refused.
    AtRisk,
    /// For some keys a quorum of owners cannot be met: strict requests fail, and so may reads. Sloppy writes still succeed
    /// wherever W nodes can be reached.
    Unavailable,
    /// Nodes hold different layouts of one number: they are two clusters, and none sees what the other one is told.
    TwoLayouts,
}

impl Verdict {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::AtRisk => "AT RISK",
            Self::Unavailable => "UNAVAILABLE for some keys",
            Self::TwoLayouts => "TWO LAYOUTS side by side",
        }
    }
}

/// The verdict and its reasons, the worst first. `seen` is one node's view, `answers` what the others say of themselves.
pub(crate) fn judge(seen: &NodeStatus, answers: &[Answer]) -> (Verdict, Vec<String>) {
    let mut reasons: Vec<(Verdict, String)> = Vec::new();
    if let Some(why) = seen.not_serving.as_ref().filter(|_| seen.n == 0 || is_member(seen, seen.node)) {
        reasons.push((Verdict::Degraded, format!("{} does not serve data: {why}", seen.node)));
    }
    if seen.n == 0 {
        let why = NO_LAYOUT_YET;
        // A store that cannot be read hides the layout as well: then that is the reason to see first.
        let others = reasons.into_iter().map(|(_, reason)| reason).filter(|reason| !reason.contains("no layout yet"));
        return (Verdict::Unavailable, others.chain([why.to_owned()]).collect());
    }
    reasons.extend(two_layouts(seen, answers).map(|why| (Verdict::TwoLayouts, why)));
    let need = seen.r.max(seen.w);
    for (reachable, &partitions) in seen.reachable.iter().enumerate().take(usize::from(seen.n)) {
        if partitions == 0 {
            continue;
        }
        let verdict = match reachable as u8 {
            reachable if reachable < need => Verdict::Unavailable,
            reachable if reachable == need => Verdict::AtRisk,
            _ => Verdict::Degraded,
        };
        let meaning = match verdict {
            Verdict::Unavailable => format!(": {need} are needed"),
            Verdict::AtRisk => ": one more failure makes them unavailable".to_owned(),
            Verdict::Healthy | Verdict::Degraded | Verdict::TwoLayouts => String::new(),
        };
        reasons.push((
            verdict,
            format!(
                "{partitions} of {} partitions have {reachable} of {} owners reachable{meaning}",
                seen.partitions, seen.n
            ),
        ));
    }
    for peer in seen.peers.iter().filter(|peer| peer.member) {
        if !peer.up {
            reasons.push((Verdict::Degraded, format!("{} is down for {}", peer.node, time_text(peer.since_ms))));
        } else if peer.layout.is_some_and(|layout| layout != seen.layout) {
            let holds = peer.layout.unwrap_or_default();
            reasons.push((Verdict::Degraded, format!("{} holds layout {holds}, not {}", peer.node, seen.layout)));
        }
    }
    for (peer, answer) in answers {
        match answer {
            Some(Ok(own)) => reasons.extend(of_node(own, seen)),
            Some(Err(why)) if peer.up => {
                reasons.push((Verdict::Degraded, format!("{} does not answer here: {why}", peer.node)));
            }
            Some(Err(_)) | None => {}
        }
    }
    reasons.extend(short_if_silent(seen, answers).map(|why| (Verdict::AtRisk, why)));
    reasons.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    let verdict = reasons.first().map_or(Verdict::Healthy, |(verdict, _)| *verdict);
    (verdict, reasons.into_iter().map(|(_, reason)| reason).collect())
}

fn is_member(seen: &NodeStatus, node: NodeId) -> bool {
    seen.peers.iter().any(|peer| peer.node == node && peer.member)
}

/// What nodes that are no members say of themselves: they wait to join, or have left. No trouble of the cluster's.
pub(crate) fn outsiders(seen: &NodeStatus, answers: &[Answer]) -> Vec<String> {
    let own = answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok());
    own.filter(|own| seen.n > 0 && !is_member(seen, own.node)).filter_map(|own| own.not_serving.clone()).collect()
}

/// Who holds which layout, if nodes hold different ones of the same number.
fn two_layouts(seen: &NodeStatus, answers: &[Answer]) -> Option<String> {
    let answered = answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok());
    // Of layout 1 by its hash, and of later ones by theirs: two of one number cannot come from one layout 1 either.
    let mut holders: BTreeMap<(u64, &str), BTreeSet<NodeId>> = BTreeMap::new();
    for own in std::iter::once(seen).chain(answered).filter(|own| own.n > 0) {
        holders.entry((own.layout.0, &own.layout_hash)).or_default().insert(own.node);
        for other in &own.other_layouts {
            holders.entry((1, &other.own)).or_default().insert(own.node);
            holders.entry((1, &other.hash)).or_default().insert(other.node);
        }
    }
    let double: BTreeSet<u64> = holders
        .keys()
        .map(|(version, _)| *version)
        .filter(|version| holders.keys().filter(|(other, _)| other == version).count() > 1)
        .collect();
    let version = double.first()?;
    let told: Vec<String> = holders
        .iter()
        .filter(|((other, _), _)| other == version)
        .map(|((_, hash), nodes)| {
            let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
            format!("{} {} {hash}", names.join(", "), if names.len() == 1 { "holds" } else { "hold" })
        })
        .collect();
    Some(format!(
        "there are different layouts {version}: {}. What is written under one of them is not seen under the other: keep one, and start \
         the nodes of the other with empty data directories (what only they hold is lost then: export it first)",
        told.join("; ")
    ))
}

/// What a node without a layout needs.
pub(crate) const NO_LAYOUT_YET: &str = "there is no layout yet. First start every node that `join` names and that is not shown here: a \
    node that has lost its disk is told the cluster's layout by them, and one that is staged without them is another cluster's for ever. \
    For a new cluster, stage one with `quorate layout stage join` then";

/// Whether some key may lack a quorum of owners that answer this client: who is gone is counted as up until gossip has found out.
fn short_if_silent(seen: &NodeStatus, answers: &[Answer]) -> Option<String> {
    let silent = answers.iter().filter(|(peer, answer)| peer.member && peer.up && matches!(answer, Some(Err(_))));
    let silent: Vec<&str> = silent.map(|(peer, _)| peer.node.as_str()).collect();
    let need = usize::from(seen.r.max(seen.w));
    let least = seen.reachable.iter().take(usize::from(seen.n) + 1).position(|partitions| *partitions > 0)?;
    (!silent.is_empty() && least >= need && least.saturating_sub(silent.len()) < need).then(|| {
        format!(
            "if {} {} gone, some keys may have fewer than {need} of their owners",
            silent.join(", "),
            if silent.len() == 1 { "is" } else { "are" }
        )
    })
}

/// What a node's own state adds to the verdict.
fn of_node(own: &NodeStatus, seen: &NodeStatus) -> Vec<(Verdict, String)> {
    let mut reasons = Vec::new();
    if let (Some(why), true) = (&own.not_serving, own.node != seen.node && is_member(seen, own.node)) {
        reasons.push((Verdict::Degraded, format!("{} does not serve data: {why}", own.node)));
    }
    if let Some(recovering) = &own.recovering {
        let text = format!("{} is recovering: {}", own.node, recovering_text(recovering));
        reasons.push((Verdict::Degraded, text));
    }
    for hint in &own.hints {
        let HintStatus { target, count, bytes, oldest_ms, .. } = hint;
        let (bytes, oldest) = (bytes_text(*bytes), time_text(*oldest_ms));
        let writes = if *count == 1 { "write" } else { "writes" };
        let text = format!("{} keeps {count} {writes} ({bytes}) for {target}, the oldest for {oldest}", own.node);
        reasons.push((Verdict::Degraded, text));
    }
    if let Some(why) = &own.disk_full {
        reasons.push((Verdict::Degraded, format!("{} takes no new values: {why}", own.node)));
    }
    let kept: u64 = own.hints.iter().map(|hint| hint.bytes).sum();
    if own.hint_bytes_max > 0 && kept >= own.hint_bytes_max / 100 * HINTS_FULL_PERCENT {
        let text = format!(
            "the hints on {} take {} of {}: beyond that it refuses to stand in",
            own.node,
            bytes_text(kept),
            bytes_text(own.hint_bytes_max)
        );
        reasons.push((Verdict::AtRisk, text));
    }
    reasons
}

/// `hints`.
pub(crate) async fn hints(args: &HintsArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let seen = cluster.status().await.map_err(Failure::of_read)?;
    if let Some(target) = &args.target {
        let members: Vec<_> = seen.peers.iter().filter(|peer| peer.member).map(|peer| peer.node).collect();
        if seen.n > 0 && !members.contains(target) && seen.node != *target {
            return Err(stranger(*target, members));
        }
    }
    let answers = ask_all(&cluster, &seen, true).await?;
    let kept: Vec<_> =
        hints_of(&answers).filter(|(_, hint)| args.target.is_none_or(|target| target == hint.target)).collect();
    let silent: Vec<String> = answers
        .iter()
        .filter(|(peer, answer)| peer.member && !matches!(answer, Some(Ok(_))))
        .map(|(peer, _)| peer.node.to_string())
        .collect();
    let json = json!({ "schema": "quorate.hints.v1", "hints": hints_json(&kept), "no_answer": silent });
    print(output, &json, || hint_table(&kept))?;
    if !output.is_json() {
        tell_trouble(&kept, output)?;
        if kept.is_empty() {
            let whom = args.target.map_or_else(|| "anybody".to_owned(), |target| target.to_string());
            output.say(&format!("nobody keeps anything for {whom}"));
        }
        if !silent.is_empty() {
            output.say(&format!("warning: {} did not answer, and may keep some", silent.join(", ")));
        }
    }
    Ok(Exit::Done)
}

/// Somebody was named who is not one of the members.
pub(crate) fn stranger(named: NodeId, members: impl IntoIterator<Item = NodeId>) -> Failure {
    let members: Vec<String> = members.into_iter().map(|member| member.to_string()).collect();
    Failure::usage(format!("{named} is no member; the members are {}", members.join(", ")), "see `quorate status`")
}

/// Everything that any node keeps: who, and what for whom.
pub(crate) fn hints_of(answers: &[Answer]) -> impl Iterator<Item = (NodeId, HintStatus)> + '_ {
    let own = answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok());
    own.flat_map(|own| own.hints.iter().map(|hint| (own.node, hint.clone())))
}

pub(crate) fn hints_json(kept: &[(NodeId, HintStatus)]) -> Value {
    let one = |(holder, hint): &(NodeId, HintStatus)| {
        let mut json = serde_json::to_value(hint).expect("a hint's state is plain data");
        json["holder"] = holder.as_str().into();
        json
    };
    kept.iter().map(one).collect()
}

pub(crate) fn hint_table(kept: &[(NodeId, HintStatus)]) -> Table {
    let mut shown = table(&["FOR", "KEPT BY", "HINTS", "BYTES", "OLDEST", "HANDED OVER"]);
    for (holder, hint) in kept {
        shown.add_row([
            hint.target.to_string(),
            holder.to_string(),
            hint.count.to_string(),
            bytes_text(hint.bytes),
            time_text(hint.oldest_ms),
            if hint.per_second > 0 { format!("{}/s", hint.per_second) } else { "-".to_owned() },
        ]);
    }
    shown
}

/// What stands in the way of handing over, below the table.
pub(crate) fn tell_trouble(kept: &[(NodeId, HintStatus)], output: &Output) -> Outcome<()> {
    for (holder, hint) in kept.iter().filter(|(_, hint)| !hint.failed.is_empty()) {
        let why = readable(hint.failed.as_bytes(), 200);
        output.line(&format!("! {holder} could not hand over to {}: {why}", hint.target))?;
    }
    Ok(())
}

/// What expires within 30 days, of the nodes' certificates and the CA's as they have it: no trouble of today's.
pub(crate) fn expiring(answers: &[Answer]) -> Vec<String> {
    let own = answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok());
    let of_node = |own: &NodeStatus| {
        [("the certificate", own.certificate_left_s), ("the cluster's CA certificate", own.authority_left_s)]
            .into_iter()
            .filter_map(|(what, left)| expires(what, left?).map(|text| format!("{text} on {}", own.node)))
            .collect::<Vec<_>>()
    };
    own.flat_map(of_node).collect()
}

fn expires(what: &str, left_s: i64) -> Option<String> {
    match left_s {
        ..=0 => Some(format!("{what} has expired")),
        left_s if left_s < WARNED_BEFORE.as_secs() as i64 => Some(format!("{what} expires in {}", days(left_s))),
        _ => None,
    }
}

/// The nodes whose certificates were not seen: nobody can say that they are valid. A node may be down because its own is not.
fn unseen(answers: &[Answer]) -> Vec<String> {
    let told = |(peer, answer): &Answer| {
        let why = match answer {
            Some(Ok(own)) if own.certificate_left_s.is_some() => return None,
            Some(Ok(_)) => return Some(format!("{} does not say: its release is older", peer.node)),
            Some(Err(why)) => format!(" ({why})"),
            None if peer.member => String::new(),
            // It was met once, and has no part in the cluster.
            None => return None,
        };
        Some(format!("{} does not answer{why}: its certificate is not known", peer.node))
    };
    let asked: BTreeSet<NodeId> = answers.iter().map(|(peer, _)| peer.node).collect();
    let answered = answers.iter().filter_map(|(_, answer)| answer.as_ref()?.as_ref().ok());
    let others: BTreeSet<NodeId> = answered.flat_map(|own| own.other_layouts.iter().map(|other| other.node)).collect();
    let another =
        |node: &NodeId| format!("{node} holds another layout and was not asked: its certificate is not known");
    answers.iter().filter_map(told).chain(others.difference(&asked).map(another)).collect()
}

/// `check certs`.
fn check_certs(answers: &[Answer], own: &Credentials, output: &Output) -> Outcome {
    let now = wall_clock();
    let mut reasons = expiring(answers);
    reasons.extend(expires("this client's certificate", left_s(own.not_after(), now)));
    reasons.extend(expires("the CA certificate of this client", left_s(own.authority_not_after(), now)));
    reasons.extend(unseen(answers));
    report_check(
        "certs",
        reasons.is_empty(),
        "every certificate is valid for more than 30 days",
        "CERTIFICATES",
        &reasons,
        output,
    )
}

fn report_check(what: &str, well: bool, text: &str, verdict: &str, reasons: &[String], output: &Output) -> Outcome {
    if output.is_json() {
        output.json(&json!({
            "schema": "quorate.check.v1",
            "check": what,
            "ok": well,
            "verdict": verdict,
            "reasons": reasons,
        }))?;
    } else if well {
        output.line(&format!("ok: {text}"))?;
    } else {
        output.line(verdict)?;
        for reason in reasons {
            output.line(&format!("! {reason}"))?;
        }
    }
    Ok(if well { Exit::Done } else { Exit::Degraded })
}

/// `check quorum`, `check replicas` and `check certs`: for scripts and monitors.
pub(crate) async fn check(command: &CheckCommand, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let seen = cluster.status().await.map_err(Failure::of_read)?;
    let answers = ask_all(&cluster, &seen, false).await?;
    let (verdict, mut reasons) = judge(&seen, &answers);
    let (what, well, text) = match command {
        CheckCommand::Quorum(_) => {
            let well = verdict < Verdict::Unavailable && short_if_silent(&seen, &answers).is_none();
            ("quorum", well, "every key has a quorum of its owners within reach")
        }
        CheckCommand::Replicas(_) => {
            let moves = seen
                .change
                .as_ref()
                .map(|change| format!("a change of the layout is under way: {}", moved_text(change)));
            let well = verdict == Verdict::Healthy && moves.is_none();
            reasons.extend(moves);
            ("replicas", well, "every owner of every key is there, and nothing waits to be delivered")
        }
        CheckCommand::Certs(_) => {
            let wanted = settings.connection()?;
            let own = credentials(&wanted.ca.value, &wanted.cert.value, &wanted.key.value);
            return check_certs(&answers, &own.map_err(|failure| wanted.explain(failure))?, output);
        }
    };
    report_check(what, well, text, verdict.text(), &reasons, output)
}

/// More nodes than any sensible cluster has.
const NODES_ASKED_MAX: usize = 256;

/// From here on the room for hints is worth a warning.
const HINTS_FULL_PERCENT: u64 = 80;

#[cfg(test)]
mod tests {
    use quorate_wire::OtherLayout;
    use quorate_wire::ids::LayoutVersion;

    use super::super::cluster::tests::healthy;
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn answers(seen: &NodeStatus, own: NodeStatus) -> Vec<Answer> {
        vec![(seen.peers[0].clone(), Some(Ok(own)))]
    }

    #[test]
    fn a_cluster_without_trouble_is_healthy() {
        let seen = healthy();
        assert_eq!(judge(&seen, &answers(&seen, seen.clone())), (Verdict::Healthy, Vec::new()));
    }

    #[test]
    fn a_full_disk_is_a_trouble_and_a_certificate_that_expires_soon_is_none_yet() {
        let seen = healthy();
        let full = NodeStatus { disk_full: Some("9 bytes are free".into()), ..healthy() };
        let (verdict, reasons) = judge(&seen, &answers(&seen, full));
        assert!(verdict == Verdict::Degraded && reasons[0].contains("no new values: 9 bytes are free"), "{reasons:?}");
        let of = |certificate_left_s| NodeStatus { certificate_left_s, authority_left_s: Some(1 << 40), ..healthy() };
        let soon = answers(&seen, of(Some(43_200)));
        assert_eq!(judge(&seen, &soon).0, Verdict::Healthy);
        assert_eq!(expiring(&soon), ["the certificate expires in 12 hours on n1"]);
        assert_eq!(expiring(&answers(&seen, of(Some(-5)))), ["the certificate has expired on n1"]);
        assert_eq!(expiring(&answers(&seen, of(Some(31 * 86_400)))), [""; 0]);
        assert_eq!(expiring(&answers(&seen, of(None))), [""; 0]);
    }

    #[test]
    fn a_certificate_that_nobody_has_seen_is_not_said_to_be_valid() {
        let seen = healthy();
        let own = NodeStatus { certificate_left_s: Some(1 << 40), authority_left_s: Some(1 << 40), ..healthy() };
        let of = |place: usize, answer| vec![(seen.peers[place].clone(), answer)];
        assert_eq!(unseen(&of(0, Some(Ok(own)))), [""; 0]);
        assert_eq!(unseen(&of(1, None)), ["n2 does not answer: its certificate is not known"]);
        let silent = of(1, Some(Err("no answer within 5s".to_owned())));
        assert_eq!(unseen(&silent), ["n2 does not answer (no answer within 5s): its certificate is not known"]);
        let other = OtherLayout { node: node("n9"), addr: seen.peers[0].addr, hash: "b".into(), own: "a".into() };
        let told = NodeStatus { other_layouts: vec![other], certificate_left_s: Some(1 << 40), ..healthy() };
        let told = unseen(&of(0, Some(Ok(told))));
        assert_eq!(told, ["n9 holds another layout and was not asked: its certificate is not known"]);
        let mut stranger = of(1, None);
        stranger[0].0.member = false;
        assert_eq!(unseen(&stranger), [""; 0]);
    }

    #[test]
    fn two_layouts_of_one_number_are_the_worst_that_can_be_told() {
        let mut seen = healthy();
        (seen.n, seen.r, seen.w, seen.partitions, seen.reachable) = (3, 2, 2, 16, vec![0, 0, 0, 16]);
        seen.layout_hash = "aaaa".to_owned();
        let answered = |hash: &str, version: u64| {
            let own = NodeStatus {
                node: node("n2"),
                layout_hash: hash.to_owned(),
                layout: LayoutVersion(version),
                ..seen.clone()
            };
            answers(&seen, own)
        };
        assert_eq!(judge(&seen, &answered("aaaa", 1)).0, Verdict::Healthy);
        assert_eq!(two_layouts(&seen, &answered("bbbb", 2)), None, "the newer one of the same cluster");
        let (verdict, reasons) = judge(&seen, &answered("bbbb", 1));
        assert_eq!(verdict, Verdict::TwoLayouts);
        assert!(reasons[0].contains("n1 holds aaaa; n2 holds bbbb"), "{reasons:?}");

        // A node that refuses the other one never answers for it.
        let addr = seen.peers[0].addr;
        let other = OtherLayout { node: node("n3"), addr, hash: "cccc".to_owned(), own: "aaaa".to_owned() };
        let told = NodeStatus { other_layouts: vec![other], ..seen.clone() };
        let (verdict, reasons) = judge(&told, &answers(&seen, seen.clone()));
        assert_eq!(verdict, Verdict::TwoLayouts);
        assert!(reasons[0].contains("n1 holds aaaa; n3 holds cccc") && reasons[0].contains("not seen"), "{reasons:?}");
    }

    #[test]
    fn those_that_do_not_answer_may_be_gone_before_gossip_knows_it() {
        let mut seen = healthy();
        (seen.n, seen.r, seen.w, seen.partitions) = (3, 2, 2, 16);
        seen.reachable = vec![0, 0, 0, 16];
        let silent = |count: usize| -> Vec<Answer> {
            let peer = |name: &str| PeerStatus { node: node(name), up: true, member: true, ..seen.peers[0].clone() };
            ["n2", "n3"].iter().take(count).map(|name| (peer(name), Some(Err("no answer".to_owned())))).collect()
        };
        assert_eq!(short_if_silent(&seen, &silent(1)), None, "two of three are left at least");
        assert_eq!(judge(&seen, &silent(1)).0, Verdict::Degraded);
        let (verdict, reasons) = judge(&seen, &silent(2));
        assert!(verdict == Verdict::AtRisk && reasons[0].contains("if n2, n3 are gone"), "{reasons:?}");
        seen.reachable = vec![0, 0, 16, 0];
        let one = short_if_silent(&seen, &silent(1)).expect("two of three owners, and one of them is silent");
        assert!(one.contains("if n2 is gone"), "{one}");
    }

    #[test]
    fn the_verdict_is_the_worst_of_its_reasons_and_they_stand_in_that_order() {
        let mut seen = healthy();
        (seen.n, seen.r, seen.w, seen.partitions) = (3, 2, 2, 16);
        for (reachable, expected) in [
            (vec![0, 0, 0, 16], Verdict::Healthy),
            (vec![0, 0, 4, 12], Verdict::AtRisk),
            (vec![0, 1, 3, 12], Verdict::Unavailable),
        ] {
            seen.reachable = reachable;
            assert_eq!(judge(&seen, &[]).0, expected, "{:?}", seen.reachable);
        }
        let (_, reasons) = judge(&seen, &[]);
        assert!(reasons[0].contains("1 of 3 owners reachable: 2 are needed"), "{reasons:?}");
        assert!(reasons[1].contains("one more failure"), "{reasons:?}");
        (seen.n, seen.r, seen.w, seen.reachable) = (5, 3, 3, vec![0, 0, 0, 0, 16, 0]);
        assert_eq!(judge(&seen, &[]).0, Verdict::Degraded);
        seen.n = 0;
        assert_eq!(judge(&seen, &[]).0, Verdict::Unavailable);
    }

    #[test]
    fn every_trouble_is_named() {
        let mut seen = healthy();
        seen.peers[1].up = false;
        seen.peers[2].layout = Some(LayoutVersion::NONE);
        let (verdict, reasons) = judge(&seen, &[]);
        assert_eq!(
            (verdict, &reasons[..]),
            (Verdict::Degraded, &["n2 is down for 5 s".to_owned(), "n3 holds layout 0, not 1".into()][..])
        );
        // A node that is no member may be down without harm.
        seen = healthy();
        seen.peers[1].member = false;
        seen.peers[1].up = false;
        assert_eq!(judge(&seen, &[]).0, Verdict::Healthy);
        seen.not_serving = Some("store quarantined".into());
        assert_eq!(judge(&seen, &[]).1, ["n1 does not serve data: store quarantined"]);
        // One that waits to join, or has left, serves nothing, as it should.
        let own = NodeStatus { node: node("n2"), not_serving: Some("n2 is no member".into()), ..healthy() };
        let waiting = vec![(seen.peers[1].clone(), Some(Ok(own)))];
        seen.not_serving = None;
        assert_eq!(judge(&seen, &waiting), (Verdict::Healthy, Vec::new()));
        assert_eq!(
            (outsiders(&seen, &waiting), outsiders(&healthy(), &waiting)),
            (vec!["n2 is no member".to_owned()], vec![])
        );
        let own = NodeStatus { node: node("n2"), not_serving: Some("damaged".into()), ..healthy() };
        assert!(judge(&healthy(), &answers(&healthy(), own)).1[0].contains("n2 does not serve data: damaged"));
        let silent = vec![(healthy().peers[0].clone(), Some(Err("no route".to_owned())))];
        assert!(judge(&healthy(), &silent).1[0].contains("no route"));
    }

    #[test]
    fn hints_are_told_and_their_bound_is_a_risk() {
        let seen = healthy();
        let mut own = seen.clone();
        let hint = HintStatus {
            target: node("n2"),
            count: 3,
            bytes: 100,
            oldest_ms: 1000,
            per_second: 0,
            failed: String::new(),
        };
        (own.hints, own.hint_bytes_max) = (vec![hint], 1000);
        let (verdict, reasons) = judge(&seen, &answers(&seen, own.clone()));
        assert_eq!(verdict, Verdict::Degraded);
        assert!(reasons[0].contains("keeps 3 writes") && reasons[0].contains("for n2"), "{reasons:?}");
        own.hints[0].count = 1;
        let (_, reasons) = judge(&seen, &answers(&seen, own.clone()));
        assert!(reasons[0].contains("keeps 1 write ("), "{reasons:?}");
        own.hints[0].bytes = 800;
        assert_eq!(judge(&seen, &answers(&seen, own)).0, Verdict::AtRisk);
    }
}

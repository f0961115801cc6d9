//! Layouts that change while clients work: nothing that was acknowledged is missed or lost, and each change comes to its end.

use std::collections::BTreeSet;

use quorate_sim::life::{self, Report};
use quorate_sim::plan::{Fault, FaultKind, LayoutChange, Plan, Spare, Staging};
use quorate_sim::trace::Trace;
use quorate_wire::Quorum;

/// A life of three members and some spares, with majorities; four clients work all the time.
fn life(seed: u64, spares: u8, changes: Vec<LayoutChange>, faults: Vec<Fault>) -> Report {
    let mut plan = Plan::draw(seed, &BTreeSet::new()).plain();
    (plan.zones, plan.n, plan.partitions) = ((0..3).collect(), 3, 8);
    plan.spares = (3..3 + spares).map(|zone| Spare { zone, from_ms: None }).collect();
    let workload = &mut plan.workload;
    workload.quorums = vec![(Quorum::Majority, Quorum::Majority)];
    (workload.keys, workload.clients, workload.pause_max_ms, workload.operations) = (20, 4, 30, 600);
    (workload.timeout_ms, workload.strict_percent, workload.value_len_max) = (2000, 100, 500);
    plan.network.latency_max_ms = plan.network.latency_max_ms.min(10);
    plan.network.latency_min_ms = plan.network.latency_min_ms.min(2);
    plan.active_ms = 26_000;
    (plan.changes, plan.faults) = (changes, faults);
    life::run(&plan, Trace::new())
}

fn change(at_ms: u32, at: u8, stage: &[Staging]) -> LayoutChange {
    LayoutChange { at_ms, at, stage: stage.to_vec(), stops: true, insists: false }
}

fn must_be_good(report: &Report, decided: u64, versions: u64) {
    assert!(report.is_good(), "{report}");
    assert_eq!((report.changes.decided, report.changes.dropped, report.changes.refused), (decided, 0, 0), "{report}");
    assert!(report.changes.operations > 0, "clients worked meanwhile: {report}");
    let newest = report.history.layouts.iter().flat_map(|known| &known.layouts).map(|(version, _)| *version).max();
    assert_eq!(newest, Some(versions), "{report}");
}

#[test]
fn a_cluster_grows_from_three_to_five_and_back_to_three() {
    for seed in 0..2 {
        let grow = change(4_000, 0, &[Staging::Join(3), Staging::Join(4)]);
        let shrink = change(14_000, 2, &[Staging::Leave(0), Staging::Leave(1)]);
        must_be_good(&life(seed, 2, vec![grow, shrink], Vec::new()), 2, 3);
    }
}

#[test]
fn all_owners_are_replaced_at_once_and_one_of_each_crashes_meanwhile() {
    for seed in 0..2 {
        let replace = |old: u8| Staging::Replace { old, new: old + 3 };
        let all = change(5_000, 0, &[replace(0), replace(1), replace(2)]);
        let crash = |at_ms, node| Fault { at_ms, for_ms: 4_000, kind: FaultKind::Crash { node, torn: false } };
        must_be_good(&life(seed, 3, vec![all], vec![crash(5_400, 1), crash(5_700, 4)]), 1, 2);
    }
}

/// Two operators want different things of the same version, one of them on the smaller side of a partition.
#[test]
fn of_two_layouts_for_one_version_one_is_decided() {
    for seed in 0..2 {
        let one = change(5_000, 0, &[Staging::Replace { old: 0, new: 3 }]);
        let other = change(5_100, 2, &[Staging::Join(4)]);
        let part = Fault { at_ms: 4_500, for_ms: 5_000, kind: FaultKind::Partition([2, 4].into()) };
        let report = life(seed, 2, vec![one, other], vec![part]);
        assert!(report.is_good(), "{report}");
        let changes = report.changes;
        assert!(changes.decided >= 1 && changes.decided + changes.dropped + changes.refused == 2, "{report}");
    }
}

/// A donor and then a receiver of a change dies with its disk while it is under way, and another node takes its place in a second change:
/// three layouts are live, and one of their owners never says anything again.
#[test]
fn a_node_that_dies_for_good_in_a_change_is_replaced_in_the_next_one() {
    for (seed, dead) in [(0, 1), (1, 3)] {
        let first = change(5_000, 0, &[Staging::Replace { old: 2, new: 3 }]);
        let mut second = change(5_800, 0, &[Staging::Replace { old: dead, new: 4 }]);
        second.insists = true;
        let dies = Fault { at_ms: 5_300, for_ms: 0, kind: FaultKind::DiesForGood(dead) };
        must_be_good(&life(seed, 2, vec![first, second], vec![dies]), 2, 3);
    }
}

/// All owners are replaced while those that go and those that come do not hear each other, so that nothing can be moved; afterwards it is.
#[test]
fn owners_that_go_and_owners_that_come_are_apart_for_a_while() {
    for seed in 0..2 {
        let replace = |old: u8| Staging::Replace { old, new: old + 3 };
        let all = change(5_000, 0, &[replace(0), replace(1), replace(2)]);
        // One of those that go hears everybody, so that the others learn of the change.
        let apart = FaultKind::Apart { one: [1, 2].into(), other: [3, 4, 5].into() };
        let report = life(seed, 3, vec![all], vec![Fault { at_ms: 4_000, for_ms: 8_000, kind: apart }]);
        must_be_good(&report, 1, 2);
    }
}

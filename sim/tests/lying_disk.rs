//! Disks that acknowledge a sync and keep nothing of it when the power fails: the checkers see what W of them have lost, and fewer of them
//! lose nothing that was acknowledged.

use std::collections::BTreeSet;

use quorate_sim::checker::Property;
use quorate_sim::life::{self, Report};
use quorate_sim::plan::{Fault, FaultKind, Plan};
use quorate_sim::trace::Trace;
use quorate_wire::Quorum;

/// A life of three nodes and majorities in which the third node is cut off while the disks of these nodes lie, and until their power has
/// failed: nobody else holds what was acknowledged then.
fn while_one_is_away(seed: u64, liars: &[u8], reckless: bool) -> Report {
    let mut plan = Plan::draw(seed, &BTreeSet::new()).plain();
    (plan.zones, plan.n, plan.partitions, plan.reckless) = ((0..3).collect(), 3, 8, reckless);
    let workload = &mut plan.workload;
    workload.quorums = vec![(Quorum::Majority, Quorum::Majority)];
    (workload.keys, workload.clients, workload.pause_max_ms, workload.operations) = (10, 4, 20, 300);
    workload.mix.delete = 0;
    plan.active_ms = 20_000;
    // The power fails when three quarters of the time are over.
    let lies = liars.iter().map(|node| Fault { at_ms: 4_000, for_ms: 8_000, kind: FaultKind::LyingDisk(*node) });
    let away = Fault { at_ms: 5_000, for_ms: 6_000, kind: FaultKind::Partition([2].into()) };
    plan.faults = lies.chain([away]).collect();
    life::run(&plan, Trace::new())
}

#[test]
fn what_w_disks_have_lied_about_is_missed() {
    for seed in 0..3 {
        let report = while_one_is_away(seed, &[0, 1], true);
        assert_eq!(report.failure, None, "{report}");
        assert!(report.disks.lied > 0, "{report}");
        // Nothing is left of them, or what was written later without having seen them.
        let lost = |property| matches!(property, Property::Durable | Property::NoLostUpdate);
        let gone = report.violations.iter().any(|violation| lost(violation.property));
        assert!(gone, "writes that two of two disks had acknowledged are gone, and nobody says so: {report}");
    }
}

#[test]
fn one_of_w_disks_that_lies_is_found_to_be_set_back_and_loses_nothing() {
    let mut found = 0;
    for seed in 0..3 {
        let report = while_one_is_away(seed, &[0], false);
        assert!(report.is_good(), "{report}");
        assert!(report.disks.lied > 0, "{report}");
        found += report.points.reached["beacons: a disk was found to be set back"];
    }
    assert!(found >= 3, "{found} disks were found to be set back in three lives");
}

#[test]
fn a_plan_that_is_drawn_never_lets_w_disks_lie() {
    let report = while_one_is_away(0, &[0, 1], false);
    assert!(report.is_good(), "the nemesis spares the second disk: {report}");
}

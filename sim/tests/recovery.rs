//! Disks that lose what was acknowledged: a node that does not speak of it until others have told it keeps every promise.

use std::collections::BTreeSet;

use quorate_sim::life::{self, Report};
use quorate_sim::plan::{Fault, FaultKind, Mix, Plan};
use quorate_sim::trace::Trace;
use quorate_wire::Quorum;

/// A life of five nodes, three replicas and majorities, with these faults and no other: (when, how long, what).
fn lives(seed: u64, faults: &[(u32, u32, FaultKind)]) -> Report {
    lives_with(seed, faults, |_| {})
}

fn lives_with(seed: u64, faults: &[(u32, u32, FaultKind)], change: impl FnOnce(&mut Plan)) -> Report {
    let mut plan = Plan::draw(seed, &BTreeSet::new()).plain();
    (plan.zones, plan.n, plan.partitions) = ((0..5).collect(), 3, 8);
    plan.workload.quorums = vec![(Quorum::Majority, Quorum::Majority)];
    (plan.workload.keys, plan.workload.clients, plan.workload.pause_max_ms) = (30, 6, 20);
    plan.workload.operations = 400;
    let fault =
        |(at_ms, for_ms, kind): &(u32, u32, FaultKind)| Fault { at_ms: *at_ms, for_ms: *for_ms, kind: kind.clone() };
    plan.faults = faults.iter().map(fault).collect();
    change(&mut plan);
    let report = life::run(&plan, Trace::new());
    assert!(report.is_good(), "{report}");
    report
}

fn reached(reports: &[Report], mark: &str) {
    let times: u64 = reports.iter().map(|report| report.points.reached[mark]).sum();
    assert!(times > 0, "no life has reached {mark:?}");
}

#[test]
fn a_wiped_disk_is_filled_before_it_speaks() {
    let faults = [(3_000, 2_000, FaultKind::EmptyDisk(1)), (9_000, 3_000, FaultKind::EmptyDisk(1))];
    let reports: Vec<Report> = (0..16).map(|seed| lives(seed, &faults)).collect();
    reached(&reports, "recovery: a read was refused");
    reached(&reports, "recovery: a partition is whole again");
    reached(&reports, "anti-entropy: repaired what was wiped");
}

#[test]
fn a_wiped_disk_in_the_middle_of_a_crash_goes_on_where_it_was() {
    let crash = FaultKind::Crash { node: 1, torn: false };
    let faults = [(3_000, 1_000, FaultKind::EmptyDisk(1)), (4_300, 500, crash.clone()), (5_200, 500, crash)];
    let reports: Vec<Report> = (10..14).map(|seed| lives(seed, &faults)).collect();
    reached(&reports, "recovery: a partition is whole again");
}

#[test]
fn a_disk_that_was_set_back_is_found_out() {
    let faults = [(9_000, 2_000, FaultKind::RolledBackDisk { node: 1, back_ms: 6_000 })];
    let reports: Vec<Report> = (20..24).map(|seed| lives(seed, &faults)).collect();
    reached(&reports, "beacons: a disk was found to be set back");
    reached(&reports, "recovery: a partition is whole again");
}

#[test]
fn corrupt_records_are_brought_back() {
    let faults: Vec<_> = (0..8).map(|i| (3_000 + 800 * i, 100, FaultKind::CorruptRecord(1))).collect();
    let reports: Vec<Report> = (30..34).map(|seed| lives(seed, &faults)).collect();
    reached(&reports, "replica: found a corrupt record");
    reached(&reports, "anti-entropy: repaired what was corrupt");
}

/// Nobody asks for most of these keys once they have rotted, and no hash tree sees it.
#[test]
fn corrupt_records_that_nobody_reads_are_looked_for() {
    let faults = [(19_800, 100, FaultKind::CorruptRecord(1))];
    let cold = |plan: &mut Plan| {
        plan.active_ms = 20_000;
        (plan.workload.keys, plan.workload.skew_x1000) = (300, 0);
    };
    let reports: Vec<Report> = (40..43).map(|seed| lives_with(seed, &faults, cold)).collect();
    reached(&reports, "scrub: found a corrupt record");
}

/// The first record of a leaf rots while the third node is cut off, and is brought back by the second one, which does not suffice. Then a
/// second record of the leaf rots, the second node goes and the third one comes back: what the second one had told says nothing of that.
#[test]
fn a_second_record_of_a_leaf_that_rots_in_a_recovery_is_not_served_from_one_owner() {
    let crash = FaultKind::Crash { node: 1, torn: false };
    let faults = [
        (4_000, 6_000, FaultKind::Partition([2].into())),
        (5_000, 5_000, FaultKind::CorruptLeaf(0)),
        (10_000, 13_000, crash),
    ];
    let many = |plan: &mut Plan| {
        (plan.zones, plan.partitions, plan.active_ms) = ((0..3).collect(), 1, 25_000);
        let workload = &mut plan.workload;
        (workload.strict_percent, workload.timeout_ms) = (100, 300);
        (workload.keys, workload.skew_x1000, workload.clients, workload.operations) = (60, 0, 4, 250);
        workload.mix = Mix { get: 6, put: 4, blind_put: 2, delete: 0, update: 0 };
    };
    let reports: Vec<Report> = (60..64).map(|seed| lives_with(seed, &faults, many)).collect();
    reached(&reports, "replica: found a corrupt record");
}

/// The node has lived with another disk since, which everybody remembers; of the old one nobody remembers more than it holds.
#[test]
fn an_old_disk_that_comes_back_is_found_out() {
    let crash = FaultKind::Crash { node: 2, torn: false };
    let faults = [
        (24_000, 1_000, FaultKind::RolledBackDisk { node: 0, back_ms: 16_000 }),
        (8_000, 0, FaultKind::EmptyDisk(0)),
        (14_000, 10_000, crash),
    ];
    let few = |plan: &mut Plan| {
        (plan.zones, plan.active_ms) = ((0..3).collect(), 40_000);
        let workload = &mut plan.workload;
        (workload.strict_percent, workload.timeout_ms) = (100, 1_000);
        (workload.keys, workload.clients, workload.operations, workload.pause_max_ms) = (10, 2, 150, 100);
        workload.mix = Mix { get: 5, put: 5, blind_put: 0, delete: 0, update: 0 };
    };
    for seed in 70..73 {
        lives_with(seed, &faults, few);
    }
}

//! How fast the simulator is, in the case that it was promised for. To be asked for, of an optimised build:
//!
//! ```text
//! cargo test --profile swarm -p quorate-sim --test speed -- --ignored --nocapture
//! ```

use std::collections::BTreeSet;
use std::fs;

use quorate_sim::life;
use quorate_sim::plan::{Durability, Plan};
use quorate_sim::trace::Trace;

/// Five nodes, ten clients that together make about a hundred requests a second for a minute, real TLS, no faults.
#[test]
#[allow(clippy::print_stdout, reason = "whoever asks for it wants the figures")]
#[ignore = "it measures, and means something only of an optimised build on a quiet machine"]
fn five_nodes_at_a_hundred_requests_a_second_run_thirty_times_as_fast_as_a_processor() {
    let mut plan = Plan::draw(1, &BTreeSet::new()).plain();
    plan.zones = (0..5).collect();
    (plan.n, plan.partitions, plan.durability) = (3, 64, Durability::Group);
    (plan.network.latency_min_ms, plan.network.latency_max_ms) = (1, 10);
    (plan.active_ms, plan.settle_ms) = (60_000, 1_000);
    let workload = &mut plan.workload;
    (workload.clients, workload.operations, workload.pause_max_ms) = (10, 460, 240);
    (workload.keys, workload.value_len_max) = (100, 1_000);
    workload.quorums.truncate(1);
    let before = cpu_seconds();
    let report = life::run(&plan, Trace::new());
    let cpu = cpu_seconds() - before;
    assert!(report.is_good(), "{report}");
    let requests = report.history.operations.len() as f64 / report.simulated.as_secs_f64();
    let speed = report.simulated.as_secs_f64() / cpu;
    println!(
        "{} s simulated, {requests:.0} operations a second, {cpu:.2} s of a processor: {speed:.1} simulated seconds a second",
        report.simulated.as_secs()
    );
    assert!(speed >= 30.0, "{speed:.1}");
}

/// User and system time of this process, which Linux counts in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux tells");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

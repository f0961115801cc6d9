//! The checker "served if any coordinator in reach can" judges while things are broken, and not only when they are mended.

use std::collections::BTreeSet;

use quorate_sim::life::{self, Report};
use quorate_sim::plan::{Fault, FaultKind, Hearing, Mechanisms, Plan};
use quorate_sim::scenario::{Broken, Scenario, Stage};
use quorate_sim::trace::Trace;
use quorate_wire::Quorum;

/// Five nodes, of which something is wrong from the third second to the end of the twenty-third.
fn while_something_is_broken(seed: u64, strict_percent: u8, kind: FaultKind) -> Report {
    let mut plan = Plan::draw(seed, &BTreeSet::new());
    (plan.zones, plan.n, plan.partitions, plan.floors) = ((0..5).collect(), 3, 64, None);
    (plan.network.latency_min_ms, plan.network.latency_max_ms) = (0, 3);
    (plan.mechanisms, plan.aftermath) = (Mechanisms::ALL, None);
    plan.points.on.clear();
    plan.request_memory_kib = 256 << 10;
    let workload = &mut plan.workload;
    (workload.clients, workload.operations, workload.keys) = (4, 300, 30);
    (workload.timeout_ms, workload.pause_max_ms, workload.value_len_max) = (1000, 100, 100);
    (workload.strict_percent, workload.quorums) = (strict_percent, vec![(Quorum::Majority, Quorum::Majority)]);
    (workload.foreign_percent, workload.scan_percent, workload.repeat_percent) = (0, 0, 0);
    plan.faults = vec![Fault { at_ms: 3_000, for_ms: 20_000, kind }];
    plan.active_ms = 25_000;
    life::run(&plan, Trace::new())
}

#[test]
fn hundreds_of_operations_are_judged_while_a_node_is_cut_off_from_its_peers_or_the_cluster_is_parted() {
    let cut = |hearing| FaultKind::CutFromPeers { node: 1, hearing };
    let bridge = FaultKind::Bridge { side: [0, 1].into(), bridge: 2 };
    for (seed, strict_percent, kind) in [(1, 100, cut(Hearing::Neither)), (3, 50, cut(Hearing::Mute)), (5, 100, bridge)]
    {
        let report = while_something_is_broken(seed, strict_percent, kind);
        assert!(report.is_good(), "{report}");
        assert!(report.served.broken > 200, "{report}");
    }
}

/// It hears the others well, so that its connections look good; what it begins then would end unknown.
#[test]
fn a_node_that_the_others_do_not_hear_knows_that_after_some_seconds_without_a_request() {
    async fn script(stage: Stage) -> Result<(), Broken> {
        let alice = stage.client("alice");
        alice.put("cart", "milk").await.acknowledged()?;
        let primaries = stage.primaries("cart").await?;
        for other in &primaries[1..] {
            stage.one_way(&primaries[0], other).await?;
        }
        stage.wait_ms(6_000).await;
        alice.put("cart", "bread").await.acknowledged()?;
        Ok(())
    }
    let ending = Scenario::new("a node that is not heard").clients(&["alice"]).play(script);
    assert!(ending.is_good(), "{ending}");
}

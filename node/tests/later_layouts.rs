//! Layouts after the first one, over whole nodes that gossip: who was away, who joins and who only looks on learns them.

mod cluster;

use std::time::Duration;

use quorate_wire::ids::LayoutVersion;
use quorate_wire::{Applied, LayoutCommand, LayoutReport, Reply, RequestBody};

use cluster::{Cluster, RETRIES, node, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_learns_the_next_layout() {
    let mut cluster = Cluster::new(5);
    for at in 0..4 {
        cluster.run(at).await;
    }
    for at in 0..3 {
        cluster.layout(0, cluster.join(at)).await.expect("staged");
    }
    let settings = LayoutCommand::StageSettings { n: Some(3), partitions: Some(8), r: None, w: None };
    cluster.layout(0, settings).await.expect("staged");
    cluster.layout(0, LayoutCommand::Apply { version: LayoutVersion(1) }).await.expect("applied");
    for at in 0..4 {
        cluster.knows(at, 1).await;
    }
    cluster.layout(0, cluster.join(3)).await.expect("staged");
    let apply = LayoutCommand::Apply { version: LayoutVersion(2) };
    cluster.stop(2).await;
    let report = cluster.layout(0, apply).await.expect("two of three decide");
    assert_eq!(report.applied, Some(Applied::AsStaged), "{report:?}");
    let hash = report.current.hash;
    cluster.run(2).await;
    cluster.run(4).await;
    for at in 0..5 {
        let report = cluster.knows(at, 2).await;
        // The older one goes as soon as every partition has moved.
        assert_eq!((&report.current.hash, report.live.last()), (&hash, Some(&LayoutVersion(2))));
        assert_eq!(report.context_keys.len(), 1, "node {at} learns the keys with it");
    }
    // A node that has started again says so too, before it has talked to anybody.
    cluster.stop(3).await;
    cluster.run(3).await;
    assert_eq!(cluster.layout(3, LayoutCommand::Show).await.expect("shown").current.hash, hash);
    assert_eq!(cluster.not_serving(3).await, None);
    for _ in 0..RETRIES {
        let why = cluster.not_serving(4).await.expect("it is no member");
        assert!(why.starts_with("n5 is no member of layout 2; "), "{why}");
        if why.ends_with("; it holds no data") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("n5 does not find out that it holds nothing");
}

impl Cluster {
    async fn layout(&self, at: usize, command: LayoutCommand) -> Result<LayoutReport, String> {
        let body = RequestBody::Layout(command);
        match self.client(true).await.request_at(self.addr(at), body, options()).await {
            Ok(Reply::Layout(report)) => Ok(*report),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The node comes to know this version as the newest one.
    async fn knows(&self, at: usize, version: u64) -> LayoutReport {
        for _ in 0..RETRIES {
            let report = self.layout(at, LayoutCommand::Show).await.expect("shown");
            if report.current.version == LayoutVersion(version) {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} does not come to know layout {version}", node(at));
    }

    async fn not_serving(&self, at: usize) -> Option<String> {
        self.client(true).await.status_at(self.addr(at)).await.expect("a status").not_serving
    }
}

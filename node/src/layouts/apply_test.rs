//! Layouts after the first one, decided by nodes over real connections on loopback.
//!
//! Nobody gossips: who is behind learns because it is told, asked to vote, or shown a newer version.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use quorate_wire::LayoutCommand;
use quorate_wire::ids::{DiskId, Partition};
use quorate_wire::random::Random;
use tokio::sync::watch;

use super::super::{LayoutStore, store_chosen};
use super::*;
use crate::membership::{Liveness, Membership, PeerState};
use crate::peer_wire::{GetLayout, PeerBody, PeerReply, ShareKeys};
use crate::peers::tests::{CLUSTER, Node as Bare, id};
use crate::store::{Executor, MemoryStore, Store as _, Tree};
use quorate_core::bootstrap::Me;
use quorate_core::ownership::Label;
use quorate_core::staging::{Staged, StagedMember};

/// How a node treats what it is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    /// It can be reached and does nothing.
    Refuses,
    /// It promises, and then accepts nothing.
    PromisesOnly,
}

struct Machine {
    id: NodeId,
    disk: MemoryStore,
    bare: Bare,
    layouts: Arc<Mutex<Layouts>>,
    manner: Arc<Mutex<Manner>>,
    up: watch::Receiver<Arc<Liveness>>,
}

/// The disk of every node of the pool, as its hello says it. Only one node may join, therefore.
const JOINING: DiskId = DiskId(1);

impl Machine {
    /// The i-th of several; it believes that `up` are up.
    async fn start(i: u16, first: Option<&Layout>, bare: Bare, up: Liveness) -> Self {
        let (_, up) = watch::channel(Arc::new(up));
        let disk = MemoryStore::new();
        if let Some(first) = first {
            store_chosen(&disk, first.clone());
        }
        let node = id(&format!("n{i}"));
        let layouts = Arc::new(Mutex::new(open(i, &disk, &bare, &up).await));
        let manner = Arc::new(Mutex::new(Manner::Answers));
        bare.peers.set_handler({
            let (layouts, manner) = (layouts.clone(), manner.clone());
            Arc::new(move |from, request, timeout, _| {
                let layouts = layouts.lock().expect("no panic").clone();
                let manner = *manner.lock().expect("no panic");
                Box::pin(async move {
                    match request.body {
                        PeerBody::AcceptLayout(_) if manner == Manner::PromisesOnly => refusal(node),
                        _ if manner == Manner::Refuses => refusal(node),
                        PeerBody::LayoutState(GetLayout) => layouts.state().into(),
                        PeerBody::ContextKeys(ShareKeys { keys }) => layouts.take_context_keys(keys).await.into(),
                        PeerBody::PrepareLayout(ask) => layouts.promise(from, ask, timeout).await.into(),
                        PeerBody::AcceptLayout(ask) => layouts.vote(from, ask, timeout).await.into(),
                        PeerBody::LearnLayouts(ask) => layouts.learn(from, ask).await.into(),
                        PeerBody::GetLayouts(GetLayouts { after }) => layouts.known_after(after).await.into(),
                        _ => refusal(node),
                    }
                })
            })
        });
        Self { id: node, disk, bare, layouts, manner, up }
    }

    fn layouts(&self) -> Layouts {
        self.layouts.lock().expect("no panic").clone()
    }

    fn is(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }

    /// As after a power cut: what was not durable is gone.
    async fn restart(&self, i: u16) {
        self.layouts().shutdown();
        *self.layouts.lock().expect("no panic") = open(i, &self.disk, &self.bare, &self.up).await;
    }

    async fn command(&self, command: LayoutCommand) -> Result<LayoutReport, NotApplied> {
        self.layouts().command(command, Duration::from_secs(8)).await
    }

    async fn stage_weight(&self, node: &str, weight: u32) {
        self.command(LayoutCommand::StageWeight { node: id(node), weight }).await.expect("staged");
    }

    async fn apply(&self, version: u64) -> LayoutReport {
        let apply = LayoutCommand::Apply { version: LayoutVersion(version) };
        self.command(apply).await.expect("a report")
    }

    /// The live versions, and the hash of the newest.
    fn live(&self) -> (Vec<u64>, String) {
        let current = self.layouts().current().expect("in force");
        (current.live().versions().iter().map(|placed| placed.version().0).collect(), current.hash.to_string())
    }

    async fn knows(&self, version: u64) {
        let mut watch = self.layouts().watch();
        let known = |current: &Option<Arc<super::super::Current>>| {
            current.as_ref().is_some_and(|current| current.version() == LayoutVersion(version))
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), watch.wait_for(known)).await;
        assert!(waited.is_ok_and(|known| known.is_ok()), "{} has not learned layout {version}", self.id);
    }
}

fn refusal(node: NodeId) -> PeerReply {
    PeerReply::Refused(NotApplied::NotServing { node, why: "the test wants it so".into() })
}

async fn open(i: u16, disk: &MemoryStore, bare: &Bare, up: &watch::Receiver<Arc<Liveness>>) -> Layouts {
    let me = Me { node: id(&format!("n{i}")), disk: disk_of(i), cluster: CLUSTER };
    let failed = Arc::new(|why: String| panic!("{why}"));
    let executors = (Executor::Inline, Executor::Inline);
    let store = LayoutStore::open(Arc::new(disk.clone()), executors, me, failed).await.expect("readable");
    store.allows_changes.store(true, Ordering::Relaxed);
    let random = Random::from_seed(u64::from(i));
    Layouts::start(Arc::new(store), bare.peers.clone(), &Membership::told(up.clone()), random)
}

fn disk_of(i: u16) -> DiskId {
    if i == 4 { JOINING } else { DiskId(u128::from(i) + 10) }
}

fn bare(i: u16) -> Bare {
    Bare::bare(&format!("n{i}"), "127.0.0.1:0".parse().expect("an address"), Arc::new(|_| Ok(())))
}

/// n1 to n3, which are the members of layout 1.
async fn three() -> Vec<Machine> {
    let bares: Vec<Bare> = (1..=3).map(bare).collect();
    let mut staged = Staged::default();
    for (i, bare) in (1..).zip(&bares) {
        let member = StagedMember { disk: disk_of(i), addr: bare.addr, zone: format!("z{i}"), weight: 1 };
        staged.join(id(&format!("n{i}")), member);
    }
    staged.settings(Some(3), Some(8), None, None);
    let first = staged.layout(CLUSTER);
    let mut machines = Vec::new();
    for (i, bare) in (1..).zip(bares) {
        for member in &first.members {
            bare.peers.learn(member.node, member.addr);
        }
        machines.push(Machine::start(i, Some(&first), bare, Liveness::default()).await);
    }
    machines
}

/// n4, which knows nothing, and that n1 is up.
async fn newcomer(n1: &Machine) -> Machine {
    let bare = bare(4);
    bare.peers.learn(n1.id, n1.bare.addr);
    let state = PeerState { addr: n1.bare.addr, up: true, since: Instant::now() };
    Machine::start(4, None, bare, [(n1.id, state)].into()).await
}

fn join(machine: &Machine, addr: SocketAddr) -> LayoutCommand {
    LayoutCommand::StageJoin { node: machine.id, addr, zone: "z4".into(), weight: 1 }
}

#[tokio::test]
async fn a_layout_is_decided_told_to_all_and_kept() {
    let nodes = three().await;
    let newcomer = newcomer(&nodes[0]).await;
    newcomer.knows(1).await;
    assert_eq!(newcomer.layouts().not_serving().as_deref(), Some("n4 is no member of layout 1"));
    let report = nodes[0].command(join(&newcomer, newcomer.bare.addr)).await.expect("staged");
    let moves = report.moves.expect("it is possible");
    assert_eq!((moves.replicas, moves.least, moves.gets[0].to), (6, 6, id("n4")));
    assert!(moves.balance_after >= 1.0 && moves.loads.len() == 4, "{moves:?}");

    let report = nodes[0].apply(2).await;
    assert_eq!((report.applied, report.missing), (Some(Applied::AsStaged), vec![]));
    assert_eq!(report.holding, ["n1", "n2", "n3", "n4"].map(id));
    assert_eq!((report.current.members.len(), report.staged), (4, None));
    let decided = nodes[0].live();
    assert_eq!(decided.0, [1, 2]);
    for node in nodes.iter().chain([&newcomer]) {
        assert_eq!(node.live(), decided, "{}", node.id);
        assert_eq!(node.layouts().not_serving(), None);
    }
    assert_eq!(newcomer.layouts().context_keys(), nodes[0].layouts().context_keys());

    // Again is fine, also at another node and over restarts.
    for (node, i) in nodes.iter().chain([&newcomer]).zip(1..) {
        node.restart(i).await;
        assert_eq!(node.live(), decided, "{}", node.id);
        assert_eq!(node.apply(2).await.applied, Some(Applied::Before));
    }
    let again = nodes[1].command(join(&newcomer, newcomer.bare.addr)).await.expect_err("a member").to_string();
    assert!(again.contains("n4 is a member already"), "{again}");
    nodes[1].layouts().settle(LayoutVersion(2)).await.expect("stored");
    assert_eq!(nodes[1].live(), (vec![2], decided.1));
    let history = nodes[1].command(LayoutCommand::History).await.expect("shown").history;
    let told: Vec<_> = history.iter().map(|past| (past.version.0, past.live, past.added.len())).collect();
    assert_eq!(told, [(1, false, 3), (2, true, 1)]);
}

#[tokio::test]
async fn of_two_operators_one_wins_and_the_other_is_told_by_whom() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[1].stage_weight("n2", 3).await;
    let reports = tokio::join!(nodes[0].apply(2), nodes[1].apply(2));
    let (winner, loser, told, weight) = match (reports.0.applied, reports.1.applied) {
        (Some(Applied::AsStaged), Some(told)) => (&nodes[0], &nodes[1], told, "the weight of n1 is 2"),
        (Some(told), Some(Applied::AsStaged)) => (&nodes[1], &nodes[0], told, "the weight of n2 is 3"),
        other => panic!("one of them wins: {other:?}"),
    };
    assert_eq!(told, Applied::Another { by: Some(winner.id), what: weight.into() });
    for node in &nodes {
        node.knows(2).await;
        assert_eq!(node.live(), nodes[0].live());
    }
    // A repetition tells the same, but for whose it was, if this node has completed it; what was staged is for the next version now.
    let again = loser.apply(2).await.applied;
    assert!(matches!(&again, Some(Applied::Another { what, .. }) if what == weight), "{again:?}");
    assert_eq!(winner.apply(2).await.applied, Some(Applied::Before));
    assert_eq!(loser.apply(3).await.applied, Some(Applied::AsStaged));
    let weights: Vec<u32> = winner.layouts().current().expect("it").layout.members.iter().map(|m| m.weight).collect();
    assert_eq!(weights, [2, 3, 1]);
}

#[tokio::test]
async fn a_majority_suffices_and_who_was_away_learns() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[1].is(Manner::Refuses);
    nodes[2].is(Manner::Refuses);
    let apply = LayoutCommand::Apply { version: LayoutVersion(2) };
    let refused = nodes[0].command(apply).await.expect_err("one of three").to_string();
    assert!(
        refused.contains("1 of 3 members have agreed, 2 must") && refused.contains("Nobody was asked"),
        "{refused}"
    );
    assert_eq!(nodes[0].live().0, [1]);

    nodes[1].is(Manner::Answers);
    let report = nodes[0].apply(2).await;
    assert_eq!((report.applied, report.holding), (Some(Applied::AsStaged), vec![id("n1"), id("n2")]));
    assert_eq!((report.missing.len(), report.missing[0].0), (1, id("n3")));
    assert_eq!(nodes[2].live().0, [1]);

    // The one that was away is asked about the version after the one that it lacks.
    nodes[2].is(Manner::Answers);
    nodes[1].is(Manner::Refuses);
    nodes[0].stage_weight("n1", 3).await;
    assert_eq!(nodes[0].apply(3).await.applied, Some(Applied::AsStaged));
    assert_eq!((nodes[2].live(), nodes[1].live().0), (nodes[0].live(), vec![1, 2]));

    // The other one is shown a request under a newer layout than it knows.
    nodes[1].is(Manner::Answers);
    let label = Label { low: LayoutVersion(3), high: LayoutVersion(3) };
    assert!(nodes[1].layouts().under(label).is_err());
    nodes[1].knows(3).await;
    assert_eq!(nodes[1].live(), nodes[0].live());

    // Three are live now.
    nodes[1].stage_weight("n2", 2).await;
    let apply = LayoutCommand::Apply { version: LayoutVersion(4) };
    let refused = nodes[1].command(apply).await.expect_err("three are live").to_string();
    assert!(
        refused.contains("layouts 1 to 3 are live") && refused.contains("from layout 1 to 2 must end"),
        "{refused}"
    );
    let warned = nodes[1].command(LayoutCommand::Show).await.expect("shown").warnings;
    assert!(warned.iter().any(|warning| warning.contains("layouts 1 to 3 are live")), "{warned:?}");
    for node in &nodes {
        node.layouts().settle(LayoutVersion(3)).await.expect("stored");
    }
    assert_eq!(nodes[1].apply(4).await.applied, Some(Applied::AsStaged));
    assert_eq!(nodes[2].live().0, [3, 4]);
    assert_eq!(nodes[2].layouts().current().expect("in force").owners(Partition(0)).len(), 3);
}

#[tokio::test]
async fn a_member_whose_disk_was_set_back_does_not_help_another_layout_of_the_same_version() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[2].is(Manner::Refuses);
    assert_eq!(nodes[0].apply(2).await.applied, Some(Applied::AsStaged), "n1 and n2 have chosen it");
    // Its disk goes back to before that, and is noticed to have done so.
    for key in [&b"layout/chain"[..], b"layout/acceptor"] {
        assert!(nodes[1].disk.get(Tree::Meta, key).expect("readable").is_some());
        nodes[1].disk.remove(Tree::Meta, key).expect("memory takes it");
    }
    nodes[1].restart(2).await;
    assert_eq!(nodes[1].live().0, [1]);
    let layouts = nodes[1].layouts();
    layouts.abstain().await.expect("stored");
    nodes[0].is(Manner::Refuses);
    nodes[2].is(Manner::Answers);
    nodes[2].stage_weight("n3", 5).await;
    let caught_up = async || layouts.catch_up_to_vote().await.expect("stored");
    assert!(!caught_up().await, "n3 may not be the one that it has voted with");
    let apply = LayoutCommand::Apply { version: LayoutVersion(2) };
    let refused = nodes[2].command(apply).await.expect_err("one of three").to_string();
    assert!(refused.contains("its disk was set back"), "{refused}");
    // Now the other two can be asked.
    nodes[0].is(Manner::Answers);
    let mut rounds = 0;
    while !caught_up().await {
        rounds += 1;
        assert!(rounds < 5, "it learns layout 2 and asks once more");
    }
    assert_eq!(nodes[1].live(), nodes[0].live());
    assert!(!*layouts.watch_behind().borrow());
    // It has no vote on the next one for ever, which the other two decide, and one on that after it.
    nodes[0].stage_weight("n2", 7).await;
    assert_eq!(nodes[0].apply(3).await.applied, Some(Applied::AsStaged));
    for node in &nodes {
        node.knows(3).await;
        node.layouts().settle(LayoutVersion(3)).await.expect("stored");
    }
    nodes[2].is(Manner::Refuses);
    nodes[0].stage_weight("n2", 3).await;
    assert_eq!(nodes[0].apply(4).await.applied, Some(Applied::AsStaged));
}

#[tokio::test]
async fn a_disk_that_was_set_back_has_not_caught_up_while_a_member_has_accepted_what_it_does_not_know() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[2].is(Manner::Refuses);
    assert_eq!(nodes[0].apply(2).await.applied, Some(Applied::AsStaged), "n1 and n2 have chosen it");
    // n2 loses its memory of all that, and n1 of having heard that it was chosen: it knows that it has accepted it.
    for key in [&b"layout/chain"[..], b"layout/acceptor"] {
        nodes[1].disk.remove(Tree::Meta, key).expect("memory takes it");
    }
    nodes[0].disk.remove(Tree::Meta, b"layout/chain").expect("memory takes it");
    nodes[0].restart(1).await;
    nodes[1].restart(2).await;
    nodes[2].is(Manner::Answers);
    assert!(nodes.iter().all(|node| node.live().0 == [1]));
    let layouts = nodes[1].layouts();
    layouts.abstain().await.expect("stored");
    for _ in 0..3 {
        assert!(!layouts.catch_up_to_vote().await.expect("stored"), "it may have voted on layout 3, too");
    }
    assert_eq!(layouts.known_when_caught_up(), None);
    // What was chosen is found by the next who asks for a decision, and it is told of that.
    nodes[2].stage_weight("n3", 5).await;
    assert!(matches!(nodes[2].apply(2).await.applied, Some(Applied::Another { .. })));
    let mut rounds = 0;
    while !layouts.catch_up_to_vote().await.expect("stored") {
        rounds += 1;
        assert!(rounds < 5, "it learns layout 2 and asks once more");
    }
    assert_eq!(layouts.known_when_caught_up(), Some(LayoutVersion(2)));
}

#[tokio::test]
async fn what_may_have_been_chosen_is_completed_by_whoever_comes_next() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[1].is(Manner::PromisesOnly);
    nodes[2].is(Manner::PromisesOnly);
    let report = nodes[0].apply(2).await;
    let Some(Applied::Undecided { why }) = report.applied else { panic!("it may yet be decided: {report:?}") };
    assert!(
        why.contains("1 of 3 members have agreed, 2 must") && why.contains("n3 (") || why.contains("n2 ("),
        "{why}"
    );
    assert_eq!((nodes[0].live().0, report.current.version), (vec![1], LayoutVersion(1)));
    nodes[0].restart(1).await;
    assert_eq!(nodes[0].live().0, [1]);

    nodes[1].is(Manner::Answers);
    nodes[2].is(Manner::Refuses);
    nodes[1].stage_weight("n2", 3).await;
    let told = Applied::Another { by: Some(id("n1")), what: "the weight of n1 is 2".into() };
    assert_eq!(nodes[1].apply(2).await.applied, Some(told));
    assert_eq!(nodes[0].apply(2).await.applied, Some(Applied::Before), "what was staged here is in force");
    assert_eq!(nodes[0].live(), nodes[1].live());
}

#[tokio::test]
async fn what_an_operator_may_not_stage_is_refused_with_its_reason() {
    let nodes = three().await;
    let newcomer = newcomer(&nodes[0]).await;
    let refused = async |command: LayoutCommand| nodes[0].command(command).await.expect_err("refused").to_string();
    let (n1, n9) = (id("n1"), id("n9"));
    let settings = LayoutCommand::StageSettings { n: None, partitions: Some(16), r: None, w: None };
    for (command, why) in [
        (settings, "there are 8 partitions, and their number never changes"),
        (LayoutCommand::StageLeave { node: n9 }, "n9 is no member"),
        (LayoutCommand::StageWeight { node: n1, weight: 0 }, "the weight is 0, 1 to 1000"),
        (LayoutCommand::StageZone { node: n1, zone: String::new() }, "0 bytes, 1 to 63"),
        (LayoutCommand::StageReplace { old: n1, new: id("n2"), addr: nodes[1].bare.addr }, "n2 is a member already"),
        (LayoutCommand::StageReplace { old: n1, new: n9, addr: nodes[1].bare.addr }, "n2 listens at"),
        (LayoutCommand::Apply { version: LayoutVersion(2) }, "nothing is staged"),
        (LayoutCommand::Apply { version: LayoutVersion(5) }, "only version 2 can be applied"),
    ] {
        let said = refused(command).await;
        assert!(said.contains(why), "{why}: {said}");
    }
    let replace = LayoutCommand::StageReplace { old: id("n3"), new: newcomer.id, addr: newcomer.bare.addr };
    let report = nodes[0].command(replace).await.expect("staged");
    let moves = report.moves.expect("possible");
    let gets: Vec<_> = moves.gets.iter().map(|gets| (gets.from, gets.to, gets.partitions)).collect();
    assert_eq!(gets, [(Some(id("n3")), id("n4"), 8)]);
    nodes[0].command(LayoutCommand::Revert).await.expect("reverted");
    assert!(refused(LayoutCommand::Apply { version: LayoutVersion(2) }).await.contains("nothing is staged"));
    let blank = Machine::start(5, None, bare(5), Liveness::default()).await;
    let early = blank.command(LayoutCommand::StageLeave { node: n1 }).await.expect_err("too early").to_string();
    assert!(early.contains("there is no layout in force that it could change"), "{early}");
}

fn abort(version: impl Into<Option<u64>>) -> LayoutCommand {
    LayoutCommand::Abort { version: version.into().map(LayoutVersion) }
}

#[tokio::test]
async fn a_change_under_way_is_ended_by_the_layout_before_it() {
    let nodes = three().await;
    let newcomer = newcomer(&nodes[0]).await;
    newcomer.knows(1).await;
    let refused =
        async |node: &Machine, command: LayoutCommand| node.command(command).await.expect_err("refused").to_string();
    for command in [abort(None), abort(1), abort(2)] {
        assert!(refused(&nodes[0], command).await.contains("no change is under way: layout 1 alone is live"));
    }
    assert!(refused(&bare_machine().await, abort(None)).await.contains("there is no layout in force yet"));
    nodes[0].command(join(&newcomer, newcomer.bare.addr)).await.expect("staged");
    nodes[0].apply(2).await;

    let report = nodes[1].command(abort(None)).await.expect("a look");
    let look = report.abort.expect("what it would be");
    assert_eq!((look.like.0, look.layout.version.0, look.what.as_str()), (1, 3, "n4 leaves"));
    assert_eq!((look.layout.members.len(), look.problems.len(), look.moves.expect("it moves").replicas), (3, 0, 6));
    assert!(report.progress.is_some() && nodes[1].live().0 == [1, 2], "nothing was changed");
    for (version, why) in [
        (1, "layout 1 is decided already: to end the change to layout 2 makes layout 3"),
        (2, "layout 2 is decided already"),
        (4, "only version 3 can end the change"),
        (u64::MAX, "only version 3 can end the change"),
    ] {
        let said = refused(&nodes[1], abort(version)).await;
        assert!(said.contains(why), "{why}: {said}");
    }

    // What is staged has nothing to do with it.
    nodes[2].stage_weight("n1", 2).await;
    let report = nodes[2].command(abort(3)).await.expect("decided");
    assert_eq!((report.applied, report.current.version.0), (Some(Applied::AsStaged), 3));
    assert_eq!(report.holding, ["n1", "n2", "n3", "n4"].map(id));
    let staged = report.staged.expect("it stays staged");
    assert_eq!((staged.version.0, staged.members[0].weight), (4, 2));
    let decided = nodes[2].live();
    assert_eq!(decided.0, [1, 2, 3]);
    assert!(nodes.iter().chain([&newcomer]).all(|node| node.live() == decided));
    let current = nodes[0].layouts().current().expect("in force");
    let before = &current.live().versions()[0].layout;
    assert_eq!((&current.layout.members, current.layout.n), (&before.members, before.n));

    assert_eq!(nodes[0].command(abort(3)).await.expect("again").applied, Some(Applied::Before));
    for command in [abort(None), abort(4)] {
        assert!(refused(&nodes[0], command).await.contains("layouts 1 to 3 are live, and 3 at most can be"));
    }
}

#[tokio::test]
async fn an_abort_that_comes_second_is_told_what_came_first() {
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[0].apply(2).await;
    nodes[0].stage_weight("n2", 5).await;
    nodes[1].command(abort(None)).await.expect("a look");
    nodes[0].apply(3).await;
    let told = nodes[1].command(abort(3)).await.expect("a report").applied;
    assert_eq!(told, Some(Applied::Another { by: Some(id("n1")), what: "the weight of n2 is 5".into() }));

    // Where layouts are not changed an abort is not either.
    let nodes = three().await;
    nodes[0].stage_weight("n1", 2).await;
    nodes[0].apply(2).await;
    nodes[0].layouts().0.store.allows_changes.store(false, Ordering::Relaxed);
    let refused = nodes[0].command(abort(3)).await.expect_err("switched off").to_string();
    assert!(refused.contains("layout_changes"), "{refused}");
}

#[tokio::test]
async fn a_node_that_would_be_a_member_again_has_to_be_there_with_its_disk() {
    let nodes = three().await;
    let newcomer = newcomer(&nodes[0]).await;
    let replace = LayoutCommand::StageReplace { old: id("n3"), new: newcomer.id, addr: newcomer.bare.addr };
    nodes[0].command(replace).await.expect("staged");
    nodes[0].apply(2).await;
    let expect = async |why: &str| {
        let look = nodes[0].command(abort(None)).await.expect("a look").abort.expect("what it would be");
        assert_eq!((look.what.as_str(), look.problems.len()), ("n3 takes the place of n4", 1));
        assert!(look.problems[0].contains(why), "{:?}", look.problems);
        let refused = nodes[0].command(abort(3)).await.expect_err("refused").to_string();
        assert!(refused.contains("layout 1 cannot be taken up again: n3 ") && refused.contains(why), "{refused}");
        assert_eq!(nodes[0].live().0, [1, 2], "nothing was changed");
    };
    // Every node of the pool says the disk of n4.
    expect("has not the disk that it had as a member").await;
    // It knows its own.
    let report = nodes[2].command(abort(None)).await.expect("a look");
    assert_eq!(report.abort.expect("what it would be").problems, [""; 0]);
    nodes[2].bare.peers.shutdown();
    expect("does not answer at").await;
}

/// It has no layout.
async fn bare_machine() -> Machine {
    Machine::start(5, None, bare(5), Liveness::default()).await
}

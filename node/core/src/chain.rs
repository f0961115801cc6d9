//! How a layout follows on another one: one decision for each version, made by the members of the version before (rule L13).
//!
//! ```text
//!   operator's node                          members of version v
//!     ballot b --- prepare ----------------> promise to take nothing below b; say what was accepted
//!     a majority has promised
//!     the newest accepted layout, or the operator's own
//!       --- accept under b ----------------> accept, unless a later ballot was promised
//!     a majority has accepted: it is chosen, and only now adopted and told to others
//! ```
//!
//! It is single-decree Paxos (Lamport, "Paxos Made Simple", 2001), one instance for each version. Its acceptors are the members of version
//! v and nobody else, each with the disk that v names; those of v + 1 have no say in their own making. Two operators on two sides of a split
//! can therefore not both win. Who was cut off in the midst of an `apply` finishes what it may have begun, whoever's it was: then the
//! same command tells which layout was chosen.
//!
//! Invariants: what an acceptor says, it has made durable before; a ballot belongs to one proposer and is used once; a proposer proposes
//! one layout under its ballot, and its own only where no promise names another. `tests/layout_chain.rs` runs all of it under lost,
//! repeated and reordered messages, and bends each of these.
//!
//! Layout 1 has no members before it: [`bootstrap`](crate::bootstrap) decides that one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_wire::ids::{DiskId, LayoutVersion, NodeId};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::transition::LIVE_MAX;

/// The name of one attempt to decide a version. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// Counted from 1.
    pub round: u64,
    /// Whose it is.
    pub proposer: NodeId,
    /// Drawn at random, so that a proposer that has started again does not use one twice.
    pub nonce: u64,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ballot {} of {}", self.round, self.proposer)
    }
}

/// A layout that was accepted under a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The ballot.
    pub ballot: Ballot,
    /// The layout.
    pub layout: Layout,
}

/// What one member of a version holds durably of the decision on the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptor {
    /// The version that is to be decided.
    version: LayoutVersion,
    promised: Option<Ballot>,
    accepted: Option<Accepted>,
}

/// A later ballot was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outrun(pub Ballot);

impl Acceptor {
    /// Of the version after `parent`: nothing was promised or accepted yet.
    pub fn after(parent: &Layout) -> Self {
        Self { version: next(parent), promised: None, accepted: None }
    }

    /// The version that is to be decided.
    pub fn version(&self) -> LayoutVersion {
        self.version
    }

    /// What it holds after it has promised a ballot: to be made durable before [`accepted`](Self::accepted) is told. A promise may be
    /// given again.
    ///
    /// # Errors
    /// When it has promised a later one.
    pub fn promise(&self, ballot: Ballot) -> Result<Self, Outrun> {
        match self.promised {
            Some(promised) if promised > ballot => Err(Outrun(promised)),
            _ => Ok(Self { promised: Some(ballot), ..self.clone() }),
        }
    }

    /// What it holds after it has accepted a layout under a ballot: to be made durable before that is told. Whether the layout may follow at
    /// all is [`problems_after`]'s to say, before.
    ///
    /// # Errors
    /// When it has promised a later ballot.
    pub fn accept(&self, ballot: Ballot, layout: Layout) -> Result<Self, Outrun> {
        let promised = self.promise(ballot)?;
        Ok(Self { accepted: Some(Accepted { ballot, layout }), ..promised })
    }

    /// What it has promised last.
    pub fn promised(&self) -> Option<Ballot> {
        self.promised
    }

    /// What it has accepted last.
    pub fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }
}

/// What a proposer does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Have all acceptors accept this layout under its ballot.
    Propose(Layout),
    /// The layout is chosen: it is the next version, whoever has wanted it.
    Chosen(Layout),
    /// Too many cannot be asked, or have promised a later ballot, which is named: begin again above it, after a pause that is drawn.
    Failed(Option<Ballot>),
}

/// One attempt to decide a version.
#[derive(Debug, Clone)]
pub struct Proposer {
    ballot: Ballot,
    wanted: Layout,
    acceptors: BTreeSet<NodeId>,
    majority: usize,
    phase: Phase,
    /// Who will not answer, or has refused, in this phase.
    failed: BTreeSet<NodeId>,
    outrun: Option<Ballot>,
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing(BTreeMap<NodeId, Option<Accepted>>),
    Proposing { layout: Layout, accepted: BTreeSet<NodeId> },
    Over,
}

impl Proposer {
    /// Begins: all members of `parent` are to be asked for a promise. `wanted` is what the operator wants.
    ///
    /// # Panics
    /// When `wanted` is not the version after `parent`.
    pub fn start(parent: &Layout, wanted: Layout, ballot: Ballot) -> Self {
        assert_eq!(wanted.version, next(parent), "a layout follows on the one before");
        Self {
            ballot,
            wanted,
            acceptors: parent.members.iter().map(|member| member.node).collect(),
            majority: parent.majority(),
            phase: Phase::Preparing(BTreeMap::new()),
            failed: BTreeSet::new(),
            outrun: None,
        }
    }

    /// Its ballot.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Who decides.
    pub fn acceptors(&self) -> &BTreeSet<NodeId> {
        &self.acceptors
    }

    /// An acceptor has promised the ballot, and says what it has accepted before.
    pub fn on_promise(&mut self, from: NodeId, accepted: Option<Accepted>) -> Option<Step> {
        let Phase::Preparing(promises) = &mut self.phase else { return None };
        if !self.acceptors.contains(&from) || self.failed.contains(&from) {
            return None;
        }
        promises.insert(from, accepted);
        if promises.len() < self.majority {
            return None;
        }
        // What may have been chosen is what the newest ballot has put forward.
        let newest = promises.values().flatten().max_by_key(|accepted| accepted.ballot);
        let layout = newest.map_or(&self.wanted, |accepted| &accepted.layout).clone();
        self.failed.clear();
        self.phase = Phase::Proposing { layout: layout.clone(), accepted: BTreeSet::new() };
        Some(Step::Propose(layout))
    }

    /// An acceptor has accepted what was proposed.
    pub fn on_accepted(&mut self, from: NodeId) -> Option<Step> {
        let Phase::Proposing { layout, accepted } = &mut self.phase else { return None };
        if !self.acceptors.contains(&from) || self.failed.contains(&from) {
            return None;
        }
        accepted.insert(from);
        if accepted.len() < self.majority {
            return None;
        }
        let layout = layout.clone();
        self.phase = Phase::Over;
        Some(Step::Chosen(layout))
    }

    /// An acceptor cannot be asked, will not answer in time, or has promised a later ballot.
    pub fn on_failed(&mut self, from: NodeId, outrun: Option<Outrun>) -> Option<Step> {
        let answered = match &self.phase {
            Phase::Preparing(promises) => promises.contains_key(&from),
            Phase::Proposing { accepted, .. } => accepted.contains(&from),
            Phase::Over => return None,
        };
        if answered || !self.acceptors.contains(&from) || !self.failed.insert(from) {
            return None;
        }
        self.outrun = self.outrun.max(outrun.map(|Outrun(ballot)| ballot));
        if self.acceptors.len() - self.failed.len() >= self.majority {
            return None;
        }
        self.phase = Phase::Over;
        Some(Step::Failed(self.outrun))
    }

    /// Whether what was chosen is what the operator wanted.
    pub fn wanted(&self, chosen: &Layout) -> bool {
        self.wanted == *chosen
    }
}

/// The version after a layout.
fn next(parent: &Layout) -> LayoutVersion {
    LayoutVersion(parent.version.0 + 1)
}

/// Whether a node with this disk has a vote on what follows on a layout: a member that has lost its disk must not vote again.
pub fn may_vote(parent: &Layout, node: NodeId, disk: DiskId) -> bool {
    parent.member(node).is_some_and(|member| member.disk == disk)
}

/// Every reason why a layout cannot follow on another one; none if it can.
pub fn problems_after(parent: &Layout, layout: &Layout) -> Vec<String> {
    let mut problems = Vec::new();
    if layout.cluster != parent.cluster {
        problems.push(format!("it is of cluster {}, this is {}", layout.cluster, parent.cluster));
    }
    if layout.version != next(parent) {
        problems.push(format!("it has version {}, after {} comes {}", layout.version, parent.version, next(parent)));
    }
    if layout.previous != parent.hash() {
        let (named, is) = (layout.previous.short(), parent.hash().short());
        problems.push(format!("it follows on a layout {named}, and layout {} is {is}", parent.version));
    }
    if layout.partitions != parent.partitions {
        problems.push(format!(
            "it has {} partitions, and their number never changes: there are {}",
            layout.partitions, parent.partitions
        ));
    }
    for member in &layout.members {
        match parent.member(member.node) {
            // The name may come back with another disk only when it was gone in between.
            Some(before) if before.disk != member.disk => problems.push(format!(
                "it names {} with disk {}, which was {}: let the node leave first, or replace it under another name",
                member.node, member.disk, before.disk
            )),
            Some(before) if before.token_seed != member.token_seed => problems.push(format!(
                "it gives {} the tokens of {}, and it has those of {}",
                member.node, member.token_seed, before.token_seed
            )),
            _ => {}
        }
    }
    problems.extend(layout.problems());
    problems
}

/// The layouts of a cluster that were chosen, each naming the hash of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// By version, without a gap; the first one may be any: what came before it is over.
    layouts: Vec<Layout>,
}

impl Chain {
    /// Begins with a layout that is in force.
    pub fn new(first: Layout) -> Self {
        Self { layouts: vec![first] }
    }

    /// The newest layout.
    pub fn newest(&self) -> &Layout {
        self.layouts.last().expect("it begins with one")
    }

    /// All of them, oldest first.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// Those that one lacks who knows this version; all, if what it knows is older than the oldest.
    pub fn after(&self, version: LayoutVersion) -> &[Layout] {
        let known = self.layouts.iter().take_while(|layout| layout.version <= version).count();
        &self.layouts[known..]
    }

    /// Takes in a layout that was chosen. One that is there already changes nothing.
    ///
    /// # Errors
    /// Why it does not follow: nothing is taken in. When another layout of its version is there, two were chosen, or somebody lies.
    pub fn learn(&mut self, layout: Layout) -> Result<(), String> {
        if let Some(held) = self.layouts.iter().find(|held| held.version == layout.version) {
            if *held == layout {
                return Ok(());
            }
            let (held, other) = (held.hash(), layout.hash());
            return Err(format!("layout {} is {} here and {} there", layout.version, held.short(), other.short()));
        }
        match problems_after(self.newest(), &layout) {
            problems if problems.is_empty() => {
                self.layouts.push(layout);
                Ok(())
            }
            problems => Err(problems.join("; ")),
        }
    }

    /// Goes on from layouts that were chosen, oldest first.
    ///
    /// # Errors
    /// Why they are no chain: there are none or more than [`LIVE_MAX`], one has problems, or one does not follow on the one before.
    pub fn of(layouts: Vec<Layout>) -> Result<Self, String> {
        let mut layouts = layouts.into_iter();
        let first = layouts.next().ok_or("there is no layout")?;
        if let Some(problem) = first.problems().into_iter().next() {
            return Err(format!("layout {} is none: {problem}", first.version));
        }
        let mut chain = Self::new(first);
        layouts.try_for_each(|layout| chain.learn(layout))?;
        chain.bounded()
    }

    /// What this chain becomes when a peer tells the layouts that it knows: those that follow, and that every change up to `oldest`, the
    /// oldest one that is live there, is over.
    ///
    /// # Errors
    /// Why that cannot be; nothing is to be taken over then.
    pub fn caught_up(&self, layouts: &[Layout], oldest: LayoutVersion) -> Result<Self, String> {
        let mut chain = self.clone();
        for layout in layouts {
            if layout.cluster != self.newest().cluster {
                return Err(format!("it is of cluster {}, this is {}", layout.cluster, self.newest().cluster));
            }
            if layout.version < chain.layouts[0].version {
                continue;
            }
            // What lies between is over everywhere, and nobody may know it any more.
            if layout.version == oldest && oldest > next(chain.newest()) {
                let partitions = self.newest().partitions;
                if layout.partitions != partitions {
                    return Err(format!("it has {} partitions, there are {partitions}", layout.partitions));
                }
                chain = Self::of(vec![layout.clone()])?;
            } else {
                chain.learn(layout.clone())?;
            }
        }
        if oldest <= chain.newest().version {
            chain.forget_before(oldest);
        }
        chain.bounded()
    }

    fn bounded(self) -> Result<Self, String> {
        match self.layouts.len() {
            1..=LIVE_MAX => Ok(self),
            live => Err(format!("{live} layouts are live, there can be {LIVE_MAX}")),
        }
    }

    /// Why no further layout can be decided yet: as many are live as can be.
    pub fn full(&self) -> Option<String> {
        let [oldest, second, ..] = &self.layouts[..] else { return None };
        (self.layouts.len() >= LIVE_MAX).then(|| {
            format!(
                "layouts {} to {} are live, and {LIVE_MAX} at most can be: the change from layout {} to {} must end before another \
                 layout can be applied; `layout show` tells which ones are live",
                oldest.version,
                self.newest().version,
                oldest.version,
                second.version
            )
        })
    }

    /// Forgets what lies before a version: the change away from it has come to its end everywhere.
    pub fn forget_before(&mut self, version: LayoutVersion) {
        let newest = self.newest().version;
        self.layouts.retain(|layout| layout.version >= version || layout.version == newest);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use quorate_wire::ids::ClusterId;

    use super::*;
    use crate::layout::LayoutHash;
    use crate::staging::{Staged, StagedMember};

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn layout(members: &[u16]) -> Layout {
        let mut staged = Staged::default();
        for i in members {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i));
            staged.join(id(*i), StagedMember { disk: DiskId((*i).into()), addr, zone: "z".into(), weight: 1 });
        }
        staged.settings(Some(3), Some(8), None, None);
        staged.layout(ClusterId(7))
    }

    fn after(parent: &Layout, members: &[u16]) -> Layout {
        Layout { version: next(parent), previous: parent.hash(), ..layout(members) }
    }

    fn ballot(round: u64, proposer: u16) -> Ballot {
        Ballot { round, proposer: id(proposer), nonce: 0 }
    }

    #[test]
    fn an_acceptor_keeps_its_promise_and_may_repeat_it() {
        let first = layout(&[1, 2, 3]);
        let next = after(&first, &[1, 2, 3, 4]);
        let acceptor = Acceptor::after(&first);
        assert_eq!((acceptor.version(), acceptor.accepted()), (LayoutVersion(2), None));
        let promised = acceptor.promise(ballot(2, 1)).expect("the first one");
        assert_eq!(promised.promise(ballot(2, 1)), Ok(promised.clone()), "the answer may have been lost");
        assert_eq!(promised.promise(ballot(1, 3)), Err(Outrun(ballot(2, 1))));
        assert_eq!(promised.accept(ballot(1, 3), next.clone()), Err(Outrun(ballot(2, 1))));
        let accepted = promised.accept(ballot(2, 1), next.clone()).expect("promised");
        assert_eq!(accepted.accepted(), Some(&Accepted { ballot: ballot(2, 1), layout: next.clone() }));
        let later = accepted.promise(ballot(2, 2)).expect("a later one");
        assert_eq!(later.accepted(), accepted.accepted(), "what was accepted is told, not forgotten");
        let straight = acceptor.accept(ballot(1, 1), next).expect("nothing was promised");
        assert_eq!(straight.promise(ballot(0, 9)), Err(Outrun(ballot(1, 1))), "who accepts has promised");
    }

    #[test]
    fn a_proposer_wants_its_own_layout_and_completes_the_newest_that_it_is_told_of() {
        let first = layout(&[1, 2, 3]);
        let (own, other, newer) =
            (after(&first, &[1, 2, 3, 4]), after(&first, &[1, 2, 3, 5]), after(&first, &[1, 2, 3, 6]));
        let start = || Proposer::start(&first, own.clone(), ballot(3, 1));
        let mut alone = start();
        assert_eq!(alone.acceptors().len(), 3);
        assert_eq!(alone.on_promise(id(1), None), None);
        assert_eq!(alone.on_promise(id(1), None), None, "one voice each");
        assert_eq!(alone.on_promise(id(9), None), None, "nobody's voice");
        assert_eq!(alone.on_promise(id(2), None), Some(Step::Propose(own.clone())));
        assert_eq!(alone.on_promise(id(3), None), None);
        assert_eq!((alone.on_accepted(id(1)), alone.on_accepted(id(1)), alone.on_accepted(id(9))), (None, None, None));
        assert_eq!(alone.on_accepted(id(3)), Some(Step::Chosen(own.clone())));
        assert!(alone.wanted(&own) && !alone.wanted(&other));

        let mut second = start();
        second.on_promise(id(1), Some(Accepted { ballot: ballot(2, 3), layout: newer.clone() }));
        let told = second.on_promise(id(3), Some(Accepted { ballot: ballot(2, 2), layout: other }));
        assert_eq!(told, Some(Step::Propose(newer)));
    }

    #[test]
    fn a_proposer_gives_up_when_a_majority_is_out_of_reach_and_names_the_ballot_to_go_above() {
        let first = layout(&[1, 2, 3]);
        let mut proposer = Proposer::start(&first, after(&first, &[1, 2, 3, 4]), ballot(1, 1));
        assert_eq!(proposer.on_failed(id(9), None), None, "nobody's business");
        assert_eq!(proposer.on_failed(id(2), Some(Outrun(ballot(4, 2)))), None);
        assert_eq!(proposer.on_failed(id(2), Some(Outrun(ballot(9, 2)))), None, "it has been heard");
        assert_eq!(proposer.on_promise(id(2), None), None, "it has refused");
        proposer.on_promise(id(1), None);
        assert_eq!(proposer.on_failed(id(1), None), None, "it has promised");
        assert_eq!(proposer.on_failed(id(3), None), Some(Step::Failed(Some(ballot(4, 2)))));
        assert_eq!(proposer.on_failed(id(1), None), None, "it is over");
        assert_eq!((proposer.on_promise(id(3), None), proposer.on_accepted(id(3))), (None, None));

        let mut proposer = Proposer::start(&first, after(&first, &[1, 2, 3, 4]), ballot(1, 1));
        proposer.on_failed(id(3), None);
        proposer.on_promise(id(1), None);
        proposer.on_promise(id(2), None);
        assert_eq!(proposer.on_failed(id(1), None), None, "one of three may fail in the second phase as well");
        assert_eq!(proposer.on_accepted(id(3)), None);
        assert!(matches!(proposer.on_accepted(id(2)), Some(Step::Chosen(_))));
    }

    #[test]
    fn a_member_votes_with_its_disk_only() {
        let first = layout(&[1, 2, 3]);
        assert!(may_vote(&first, id(1), DiskId(1)));
        assert!(!may_vote(&first, id(1), DiskId(2)) && !may_vote(&first, id(4), DiskId(4)));
    }

    #[test]
    fn what_does_not_follow_is_refused_with_every_reason() {
        let first = layout(&[1, 2, 3]);
        let good = after(&first, &[1, 2, 4]);
        assert_eq!(problems_after(&first, &good), Vec::<String>::new());
        let bent = |bend: fn(&mut Layout)| {
            let mut layout = good.clone();
            bend(&mut layout);
            problems_after(&first, &layout).join("; ")
        };
        for (bend, why) in [
            ((|layout| layout.cluster = ClusterId(8)) as fn(&mut Layout), "it is of cluster"),
            (|layout| layout.version = LayoutVersion(3), "after 1 comes 2"),
            (|layout| layout.previous = LayoutHash([1; 32]), "it follows on a layout 0101"),
            (|layout| layout.partitions = 16, "their number never changes"),
            (|layout| layout.members[0].disk = DiskId(9), "let the node leave first"),
            (|layout| layout.members[0].token_seed = NodeId::new("x").expect("legal"), "gives n1 the tokens of x"),
            (|layout| layout.n = 4, "only 3 members"),
        ] {
            let problems = bent(bend);
            assert!(problems.contains(why), "{why}: {problems}");
        }
    }

    #[test]
    fn a_chain_takes_each_version_once_and_tells_what_one_lacks() {
        let first = layout(&[1, 2, 3]);
        let (second, other) = (after(&first, &[1, 2, 3, 4]), after(&first, &[1, 2, 3, 5]));
        let third = after(&second, &[2, 3, 4]);
        let mut chain = Chain::new(first.clone());
        assert!(chain.learn(third.clone()).expect_err("a gap").contains("after 1 comes 2"));
        chain.learn(second.clone()).expect("it follows");
        chain.learn(second.clone()).expect("it is there");
        assert!(chain.learn(other).expect_err("two of one version").contains("layout 2 is"));
        chain.learn(third.clone()).expect("it follows");
        assert_eq!((chain.newest(), chain.layouts().len()), (&third, 3));
        assert_eq!(chain.after(LayoutVersion(1)), [second.clone(), third.clone()]);
        assert!(chain.after(LayoutVersion(3)).is_empty());
        chain.forget_before(LayoutVersion(2));
        assert_eq!(chain.layouts(), [second, third.clone()]);
        assert_eq!(chain.after(LayoutVersion(0)).len(), 2);
        chain.forget_before(LayoutVersion(9));
        assert_eq!(chain.layouts(), [third], "the newest one stays");
    }

    #[test]
    fn who_was_away_catches_up_with_what_is_live_elsewhere() {
        let first = layout(&[1, 2, 3]);
        let mut all = vec![first.clone()];
        for members in [&[1, 2, 3, 4][..], &[2, 3, 4], &[3, 4, 5], &[4, 5, 6]] {
            all.push(after(all.last().expect("the first"), members));
        }
        let chain = Chain::new(first.clone());
        let versions = |chain: &Chain| chain.layouts().iter().map(|layout| layout.version.0).collect::<Vec<_>>();
        let heard = |chain: &Chain, from: usize, to: usize, oldest| {
            chain.caught_up(&all[from - 1..to], LayoutVersion(oldest)).map(|chain| versions(&chain))
        };
        assert_eq!(heard(&chain, 2, 2, 1), Ok(vec![1, 2]));
        assert_eq!(heard(&chain, 1, 3, 1), Ok(vec![1, 2, 3]), "what is known already is no obstacle");
        assert_eq!(heard(&chain, 2, 4, 2), Ok(vec![2, 3, 4]), "what is over there is over here");
        assert_eq!(heard(&chain, 4, 5, 4), Ok(vec![4, 5]), "nobody may know what lies between any more");
        assert!(heard(&chain, 4, 5, 3).expect_err("a gap, and it is not over").contains("after 1 comes 2"));
        assert!(heard(&chain, 2, 4, 1).expect_err("too many").contains("4 layouts are live"));
        let ahead = Chain::of(all[1..4].to_vec()).expect("a chain");
        assert_eq!(heard(&ahead, 1, 2, 1), Ok(vec![2, 3, 4]), "one who is behind teaches nothing");
        assert_eq!(heard(&ahead, 4, 4, 4), Ok(vec![4]));
        assert_eq!(ahead.caught_up(&[], LayoutVersion(9)), Ok(ahead.clone()), "what is over is not known here yet");
        let other = after(&first, &[1, 2, 3, 9]);
        let here = chain.caught_up(&[all[1].clone()], LayoutVersion(1)).expect("it follows");
        assert!(here.caught_up(&[other], LayoutVersion(1)).expect_err("two of one version").contains("layout 2 is"));
        let foreign = Layout { cluster: ClusterId(8), ..all[3].clone() };
        assert!(chain.caught_up(&[foreign], LayoutVersion(4)).expect_err("foreign").contains("of cluster"));
        let resized = Layout { partitions: 16, ..all[3].clone() };
        assert!(chain.caught_up(&[resized], LayoutVersion(4)).expect_err("resized").contains("16 partitions"));
    }

    #[test]
    fn what_is_no_chain_is_not_taken_for_one() {
        let first = layout(&[1, 2, 3]);
        let second = after(&first, &[1, 2, 3, 4]);
        let third = after(&second, &[2, 3, 4]);
        assert_eq!(Chain::of(vec![second.clone(), third.clone()]).expect("a chain").newest(), &third);
        assert!(Chain::of(Vec::new()).is_err());
        assert!(Chain::of(vec![first.clone(), third.clone()]).expect_err("a gap").contains("after 1 comes 2"));
        assert!(Chain::of(vec![Layout { r: 0, ..first.clone() }]).expect_err("none").contains("the floor r is 0"));
        assert_eq!(Chain::of(vec![first.clone(), second.clone()]).expect("a chain").full(), None);
        let full = Chain::of(vec![first.clone(), second.clone(), third.clone()]).expect("a chain");
        assert!(full.full().expect("3 are live").contains("the change from layout 1 to 2 must end"));
        let fourth = after(&third, &[2, 3, 4, 5]);
        assert!(Chain::of(vec![first, second, third, fourth]).expect_err("too many").contains("4 layouts are live"));
    }
}

//! Deciding the next layout among the members of the newest one (rule L13): what a proposer and an acceptor ask and answer.
//!
//! The arithmetic is [`quorate_core::chain`]'s, what an acceptor holds is `acceptor`'s. An operator's `apply` proposes what is staged, their
//! `abort` the layout before the newest one, and either completes what another one may have begun.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Applied, LayoutReport, NotApplied};
use quorate_wire::{dawdle, sometimes};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::ask::{ask, ask_until, ask_within, reason};
use super::staged::Next;
use super::store::Obstacle;
use super::{Layouts, PEER_TIMEOUT, list, refused};
use crate::peer_wire::{
    AcceptLayout, Ask, Decided, GetLayouts, KnownLayouts, LayoutsLearned, LearnLayouts, LiveLayouts, PrepareLayout,
    Vote,
};
use crate::store::StoreError;
use quorate_core::chain::{Ballot, Outrun, Proposer, Step};
use quorate_core::layout::Layout;

/// An operator's command begins a decision so often: two that collide draw their pauses at random, and four rounds part nearly all.
const ATTEMPTS_MAX: u32 = 5;
/// The longest pause before the second attempt; it doubles with each further one. Two rounds over a continent fit in.
const PAUSE: Duration = Duration::from_millis(300);
/// How long the others are told of a layout that has come into force: who is not reached hears of it by gossip.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How an attempt to decide a version has ended.
enum Attempt {
    /// This layout is chosen.
    Chosen(Layout),
    /// A peer knows the version to be decided.
    Decided(Decided),
    /// Begin again above this ballot.
    Failed(Option<Ballot>),
}

/// What is known of one command's attempts so far.
#[derive(Default)]
struct Known {
    /// Why members had no say in the last step, by name.
    reasons: BTreeMap<NodeId, String>,
    /// How many had.
    answered: usize,
    /// Somebody may have been asked to accept a layout.
    proposed: bool,
    /// The newest ballot of another proposer under which a member had accepted a layout.
    newest: Option<Ballot>,
}

impl Layouts {
    /// From now on this node votes on no layout while `obstacle` names a reason. A second call changes nothing.
    pub(crate) fn vote_unless(&self, obstacle: Obstacle) {
        let _ = self.0.store.no_vote.set(obstacle);
    }

    /// This disk was set back, or has lost what it held: see [`LayoutStore::abstain`](super::LayoutStore::abstain).
    ///
    /// # Errors
    /// When that cannot be noted: then this node must not vote either.
    pub(crate) async fn abstain(&self) -> Result<(), StoreError> {
        self.0.store.abstain().await
    }

    /// The newest layout that there was when enough members had last said so, after this disk was set back or exchanged; nothing if that
    /// never was or they still are to be asked. Each one after it was chosen later.
    pub(crate) fn known_when_caught_up(&self) -> Option<LayoutVersion> {
        *self.0.store.caught_up.borrow()
    }

    /// Whether this node has no vote at all until it has caught up.
    pub(crate) fn watch_behind(&self) -> watch::Receiver<bool> {
        self.0.store.is_behind.subscribe()
    }

    /// Asks the members of the newest layout for newer ones. Tells whether enough of them have answered and none has accepted a newer one, so
    /// that this node, whose disk was set back, votes again on versions on which it cannot have voted.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub(crate) async fn catch_up_to_vote(&self) -> Result<bool, StoreError> {
        let (store, Some(current)) = (&self.0.store, self.current()) else { return Ok(false) };
        let (known, layout) = (current.version(), &current.layout);
        let members = layout.members.iter().map(|member| member.node);
        let others: Vec<NodeId> = members.filter(|node| *node != store.me.node).collect();
        // A majority that this node was part of shares a member with so many others.
        let needed = (layout.members.len() - layout.majority() + 1).min(others.len());
        let mut answered = 0;
        for (node, answer) in ask(&self.0.peers, &self.0.random, &others, &GetLayouts { after: known }).await {
            match answer {
                Ok(KnownLayouts { chain, accepted }) => match store.learn(chain).await {
                    Ok(_) if accepted > known => {
                        tracing::debug!(peer = %node, %accepted, "the peer has accepted a layout that may have been chosen")
                    }
                    Ok(_) => answered += 1,
                    Err(why) => tracing::debug!(peer = %node, "no layouts are learned from the peer: {why}"),
                },
                Err(error) => {
                    tracing::debug!(peer = %node, "it does not say which layouts there are: {}", reason(error))
                }
            }
        }
        if answered < needed { Ok(false) } else { store.has_caught_up(known).await }
    }

    /// Answers a peer's [`PrepareLayout`]. One that is behind learns from the asker first.
    pub(crate) async fn promise(
        &self,
        from: NodeId,
        ask: PrepareLayout,
        timeout: Duration,
    ) -> Result<Vote, NotApplied> {
        if let Some(vote) = self.0.store.promise(ask.clone()).await? {
            return Ok(vote);
        }
        self.learn_from(from, timeout / 2).await;
        self.0.store.promise(ask).await?.ok_or_else(|| self.behind())
    }

    /// Answers a peer's [`AcceptLayout`]. One that is behind learns from the asker first.
    pub(crate) async fn vote(&self, from: NodeId, ask: AcceptLayout, timeout: Duration) -> Result<Vote, NotApplied> {
        dawdle!("layouts: a pause before a layout is accepted");
        if let Some(vote) = self.0.store.vote(ask.clone()).await? {
            return Ok(vote);
        }
        self.learn_from(from, timeout / 2).await;
        self.0.store.vote(ask).await?.ok_or_else(|| self.behind())
    }

    /// Answers a peer's [`LearnLayouts`]. What is learned is durable before the answer.
    pub(crate) async fn learn(&self, from: NodeId, ask: LearnLayouts) -> Result<LayoutsLearned, NotApplied> {
        if let Err(why) = self.0.store.learn(ask.chain).await {
            tracing::debug!(peer = %from, "the peer's layouts are not taken over: {why}");
            return Err(why);
        }
        Ok(LayoutsLearned { newest: self.known_version() })
    }

    /// Answers a peer's [`GetLayouts`].
    pub(crate) async fn known_after(&self, version: LayoutVersion) -> KnownLayouts {
        self.0.store.known_after(version).await
    }

    fn known_version(&self) -> LayoutVersion {
        self.current().map_or(LayoutVersion::NONE, |current| current.version())
    }

    fn behind(&self) -> NotApplied {
        let (me, newest) = (self.0.store.me.node, self.known_version());
        refused(format!("{me} knows no newer layout than {newest}, and could not learn the one before in time"))
    }

    /// Asks a peer for the layouts that this node lacks.
    async fn learn_from(&self, node: NodeId, timeout: Duration) {
        let ask = GetLayouts { after: self.known_version() };
        let answer = self.0.peers.ask(node, self.0.random.u64(), ask, timeout).await;
        let learned = match answer {
            Ok(heard) => self.0.store.learn(heard.chain).await.map_err(|error| error.to_string()),
            Err(error) => Err(reason(error)),
        };
        if let Err(why) = learned {
            tracing::debug!(peer = %node, "no layouts are learned from the peer: {why}");
        }
    }

    /// Makes what is staged the layout of this version, after the first one, if the members of the newest layout decide so.
    ///
    /// # Errors
    /// Why this command has changed nothing.
    pub(super) async fn apply_next(&self, version: LayoutVersion, until: Instant) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        let (parent, wanted) = match store.to_apply_next(version).await? {
            Next::Decide { parent, wanted } => (parent, wanted),
            Next::Known(applied) => return Ok(LayoutReport { applied: Some(applied), ..store.report().await }),
        };
        self.decide(parent, wanted, until).await
    }

    /// Has the members of `parent` decide the layout after it, which is to be `wanted`.
    ///
    /// # Errors
    /// Why this command has changed nothing.
    pub(super) async fn decide(
        &self,
        parent: Layout,
        wanted: Layout,
        until: Instant,
    ) -> Result<LayoutReport, NotApplied> {
        let (store, version) = (&self.0.store, wanted.version);
        for member in parent.members.iter().chain(&wanted.members) {
            self.0.peers.learn(member.node, member.addr);
        }
        let mut known = Known::default();
        let mut above = store.promised(version).await.map_or(0, |ballot| ballot.round);
        for attempt in 0..ATTEMPTS_MAX {
            let round = above.saturating_add(1);
            let ballot = Ballot { round, proposer: store.me.node, nonce: self.0.random.u64() };
            let (chain, by) = match self.attempt((&parent, &wanted), ballot, until, &mut known).await {
                Attempt::Chosen(layout) => {
                    let chain = LiveLayouts { layouts: vec![layout], oldest: LayoutVersion::NONE };
                    (chain, None)
                }
                Attempt::Decided(Decided { by, chain }) => {
                    sometimes!("layouts: an apply was told that its version is decided");
                    (chain, by)
                }
                Attempt::Failed(outrun) => {
                    sometimes!("layouts: an apply was outrun by another one", outrun.is_some());
                    above = outrun.map_or(round, |ballot| ballot.round.max(round));
                    let longest = PAUSE * 2u32.pow(attempt);
                    let pause = Duration::from_millis(self.0.random.below(longest.as_millis() as u64) + 1);
                    if Instant::now() + pause >= until {
                        break;
                    }
                    sleep(pause).await;
                    continue;
                }
            };
            let by = known.newest.map(|ballot| ballot.proposer).or(by);
            // It may be what this node has proposed before, and was not told of.
            let mine = chain.layouts.contains(&wanted);
            return match store.learn(chain).await {
                Ok(_) if mine => Ok(self.in_force(version, Applied::AsStaged).await),
                Ok(_) => Ok(self.in_force(version, store.another(version, by).await).await),
                Err(error) if !known.proposed => Err(error),
                // No refusal: it is chosen, and others learn it.
                Err(error) => {
                    Ok(self.undecided(format!("it is chosen, and {} cannot store it: {error}", store.me.node)).await)
                }
            };
        }
        let why = format!(
            "{} of {} members have agreed, {} must; the others: {}",
            known.answered,
            parent.members.len(),
            parent.majority(),
            list(known.reasons.iter().map(|(node, why)| (*node, why.as_str()))),
        );
        if !known.proposed {
            return Err(refused(format!(
                "layout {version} is not decided: {why}. Nobody was asked to accept it; repeating the command is safe"
            )));
        }
        Ok(self.undecided(why).await)
    }

    async fn undecided(&self, why: String) -> LayoutReport {
        LayoutReport { applied: Some(Applied::Undecided { why }), ..self.0.store.report().await }
    }

    /// One attempt under one ballot.
    async fn attempt(
        &self,
        (parent, wanted): (&Layout, &Layout),
        ballot: Ballot,
        until: Instant,
        known: &mut Known,
    ) -> Attempt {
        let mut proposer = Proposer::start(parent, wanted.clone(), ballot);
        let prepare = PrepareLayout { version: wanted.version, previous: wanted.previous, ballot };
        let own = self.0.store.promise(prepare.clone());
        let layout = match self.ask_acceptors(&mut proposer, prepare, own, until, known).await {
            Ok(Step::Propose(layout)) => layout,
            Ok(Step::Chosen(_)) => unreachable!("nothing is proposed yet"),
            Ok(Step::Failed(outrun)) => return Attempt::Failed(outrun),
            Err(decided) => return Attempt::Decided(decided),
        };
        sometimes!("layouts: an apply completed what another one had begun", !proposer.wanted(&layout));
        // From here on it may be chosen, whatever becomes of this command.
        known.proposed = true;
        let accept = AcceptLayout { ballot, layout };
        let own = self.0.store.vote(accept.clone());
        match self.ask_acceptors(&mut proposer, accept, own, until, known).await {
            Ok(Step::Chosen(layout)) => Attempt::Chosen(layout),
            Ok(Step::Propose(_)) => unreachable!("it is proposed"),
            Ok(Step::Failed(outrun)) => Attempt::Failed(outrun),
            Err(decided) => Attempt::Decided(decided),
        }
    }

    /// Puts one of the two questions to all acceptors, this node included, until the proposer has heard enough.
    async fn ask_acceptors<Q>(
        &self,
        proposer: &mut Proposer,
        question: Q,
        own: impl Future<Output = Result<Option<Vote>, NotApplied>>,
        until: Instant,
        known: &mut Known,
    ) -> Result<Step, Decided>
    where
        Q: Ask<Answer = Vote> + Clone + Send + 'static,
    {
        let me = self.0.store.me.node;
        let (mine, others): (Vec<NodeId>, Vec<NodeId>) = proposer.acceptors().iter().partition(|node| **node == me);
        known.reasons.clear();
        known.answered = 0;
        let mut hear = |node: NodeId, answer: Result<Vote, String>| {
            let step = match answer {
                Ok(Vote::Promised(accepted)) => {
                    known.answered += 1;
                    // What this node has completed before was proposed by another one all the same.
                    let ballot = accepted.as_ref().map(|accepted| accepted.ballot);
                    known.newest = known.newest.max(ballot.filter(|ballot| ballot.proposer != me));
                    proposer.on_promise(node, accepted)
                }
                Ok(Vote::Accepted) => {
                    known.answered += 1;
                    proposer.on_accepted(node)
                }
                Ok(Vote::Outrun(later)) => {
                    known.reasons.insert(node, format!("it has promised {later}"));
                    proposer.on_failed(node, Some(Outrun(later)))
                }
                Ok(Vote::Decided(decided)) => return ControlFlow::Break(Err(decided)),
                Err(why) => {
                    known.reasons.insert(node, why);
                    proposer.on_failed(node, None)
                }
            };
            step.map_or(ControlFlow::Continue(()), |step| ControlFlow::Break(Ok(step)))
        };
        if !mine.is_empty() {
            let own = match own.await {
                Ok(vote) => vote.ok_or_else(|| self.behind().to_string()),
                Err(NotApplied::Refused { why }) => Err(why),
                Err(other) => Err(other.to_string()),
            };
            if let ControlFlow::Break(ended) = hear(me, own) {
                return ended;
            }
        }
        let patience = until.saturating_duration_since(Instant::now()).min(PEER_TIMEOUT);
        let (peers, random) = (&self.0.peers, &self.0.random);
        let heard =
            ask_until(peers, random, &others, &question, patience, |node, answer| hear(node, answer.map_err(reason)));
        heard.await.unwrap_or(Ok(Step::Failed(None)))
    }

    /// The report after a version has come into force, once every member that can be reached has been told.
    async fn in_force(&self, version: LayoutVersion, applied: Applied) -> LayoutReport {
        let store = &self.0.store;
        let current = self.current();
        let live: Vec<&Layout> =
            current.iter().flat_map(|current| current.live().versions()).map(|p| &p.layout).collect();
        for member in live.iter().flat_map(|layout| &layout.members) {
            self.0.peers.learn(member.node, member.addr);
        }
        let members = live.iter().flat_map(|layout| &layout.members).map(|member| member.node);
        let others: BTreeSet<NodeId> = members.filter(|node| *node != store.me.node).collect();
        let others: Vec<NodeId> = others.into_iter().collect();
        let learn = LearnLayouts { chain: store.live_after(LayoutVersion::NONE) };
        let (mut holding, mut missing) = (vec![store.me.node], Vec::new());
        for (node, answer) in ask_within(&self.0.peers, &self.0.random, &others, &learn, TELL_TIMEOUT).await {
            match answer {
                Ok(LayoutsLearned { newest }) if newest >= version => holding.push(node),
                Ok(LayoutsLearned { newest }) => missing.push((node, format!("it knows layout {newest} only"))),
                Err(error) => missing.push((node, reason(error))),
            }
        }
        holding.sort_unstable();
        LayoutReport { applied: Some(applied), holding, missing, ..store.report().await }
    }
}

#[cfg(test)]
#[path = "apply_test.rs"]
mod tests;

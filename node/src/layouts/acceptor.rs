//! Layouts after the first one, as this node holds them: those that are live, and its own part in the decision on the next (rule L13).
//!
//! The rules are those of [`quorate_core::chain`]; here they are made durable. Nothing in this file talks to a peer.

use std::sync::Arc;

use bytes::Bytes;
use quorate_wire::ids::{DiskId, LayoutVersion, NodeId};
use quorate_wire::{NotApplied, codec};
use serde::{Deserialize, Serialize};

use super::refused;
use super::staged::StagedChanges;
use super::store::{LayoutStore, SWITCHED_OFF, State, StoredFirst, load, to_the_end};
use crate::peer_wire::{AcceptLayout, Decided, KnownLayouts, LiveLayouts, PrepareLayout, Vote};
use crate::store::{Store, StoreError};
use quorate_core::bootstrap::Me;
use quorate_core::chain::{Acceptor, Ballot, Chain, Outrun, may_vote, problems_after};
use quorate_core::changes::layout_after;
use quorate_core::layout::{Layout, LayoutHash};

/// Keys in [`Tree::Meta`](crate::store::Tree). The first one is public for whoever looks at disks from outside.
#[doc(hidden)]
pub const CHAIN_KEY: &[u8] = b"layout/chain";
const ACCEPTOR_KEY: &[u8] = b"layout/acceptor";
const ABSTENTION_KEY: &[u8] = b"layout/abstention";

/// What comes after the first layout.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// The live layouts; nothing until layout 1 is chosen.
    pub(super) chain: Option<Chain>,
    /// This node's part in the newest decision that it took part in.
    pub(super) acceptor: Option<Acceptor>,
    /// The disk that has taken part in decisions under this store, if that is another one than this node's: its promises may be lost.
    foreign: Option<(NodeId, DiskId)>,
    /// On what this disk must not vote, because it was set back.
    pub(super) abstention: Abstention,
    /// What an operator has staged here for the next layout.
    pub(super) changes: StagedChanges,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredChain {
    /// Oldest first.
    layouts: Vec<Layout>,
}

/// The layouts that are live by what is stored under [`FIRST_KEY`](super::FIRST_KEY) and [`CHAIN_KEY`], oldest first. For whoever looks at
/// disks from outside.
///
/// # Errors
/// When it is something else.
#[doc(hidden)]
pub fn stored_layouts(first: Option<&Bytes>, chain: Option<&Bytes>) -> Result<Vec<Layout>, String> {
    if let Some(chain) = chain {
        return codec::decode::<StoredChain>(chain).map(|chain| chain.layouts).map_err(|error| error.to_string());
    }
    let first = first.map(codec::decode::<StoredFirst>).transpose().map_err(|error| error.to_string())?;
    Ok(first.into_iter().filter(|first| first.chosen).map(|first| first.layout).collect())
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredAcceptor {
    /// Who has promised and accepted this, with which disk: what another one has said does not bind this node.
    node: NodeId,
    disk: DiskId,
    acceptor: Acceptor,
}

/// A disk that was set back may have promised and accepted what it knows nothing of now. It must not say anything else than it did: so it has
/// no vote on any version that it may have voted on, for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Abstention {
    /// The last version that it has no vote on.
    up_to: LayoutVersion,
    /// Nor has it one on any other, until it has heard from enough members which layouts there are: see [`LayoutStore::has_caught_up`].
    pub(super) is_behind: bool,
}

impl Abstention {
    /// See [`Layouts::known_when_caught_up`](super::Layouts::known_when_caught_up).
    pub(super) fn known(self) -> Option<LayoutVersion> {
        (!self.is_behind && self.up_to > LayoutVersion::NONE).then(|| LayoutVersion(self.up_to.0 - 1))
    }

    /// Why there is no vote on a version, if there is none.
    fn forbids(self, version: LayoutVersion) -> Option<String> {
        const WHY: &str = "its disk was set back, and what it has promised may be lost";
        let Self { up_to, is_behind } = self;
        let last = (version <= up_to)
            .then(|| format!("{WHY}: it has no vote on layouts up to {up_to}, and votes on later ones"));
        let behind = || format!("{WHY}: it votes again when enough members have told it which layouts there are");
        last.or_else(|| is_behind.then(behind))
    }
}

/// What an acceptor does with a question about a version.
enum Turn {
    /// It has a vote, and this is what it has said so far.
    Votes(Acceptor),
    /// The version is decided.
    Decided(Decided),
    /// It does not know the layout before that version yet.
    Behind,
}

impl Later {
    /// Loads what the disk holds. `first` is the first layout if that is chosen.
    ///
    /// # Errors
    /// When the disk cannot be read or holds something else.
    pub(super) fn load(disk: &dyn Store, me: Me, first: Option<&Layout>) -> Result<Self, StoreError> {
        let corrupt = |why: String| StoreError::Corrupt(format!("the stored layouts after the first one: {why}"));
        let chain = match (first, load::<StoredChain>(disk, CHAIN_KEY)?) {
            (None, None) => None,
            (None, Some(_)) => return Err(corrupt("layout 1 is missing, or not in force".into())),
            (Some(first), None) => Some(Chain::new(first.clone())),
            (Some(first), Some(StoredChain { layouts })) => {
                let chain = Chain::of(layouts).map_err(corrupt)?;
                let oldest = &chain.layouts()[0];
                let related = (oldest.cluster, oldest.partitions) == (first.cluster, first.partitions);
                if !related || (oldest.version == first.version && oldest != first) {
                    return Err(corrupt(format!("layout {} does not go back to layout 1", oldest.version)));
                }
                Some(chain)
            }
        };
        let stored = load::<StoredAcceptor>(disk, ACCEPTOR_KEY)?;
        let foreign = stored.as_ref().map(|stored| (stored.node, stored.disk)).filter(|own| *own != (me.node, me.disk));
        let mut changes = StagedChanges::load(disk)?;
        if chain.as_ref().is_some_and(|chain| has_made(chain, &changes)) {
            // The node ended before it could forget them.
            changes = StagedChanges::default();
        }
        let abstention = load::<Abstention>(disk, ABSTENTION_KEY)?.unwrap_or_default();
        Ok(Self { chain, acceptor: stored.map(|stored| stored.acceptor), foreign, abstention, changes })
    }

    /// Who has proposed a chosen layout, as far as this node's own vote tells.
    pub(super) fn proposer_of(&self, layout: &Layout) -> Option<NodeId> {
        let accepted = self.acceptor.as_ref().and_then(Acceptor::accepted);
        accepted.filter(|accepted| accepted.layout == *layout).map(|accepted| accepted.ballot.proposer)
    }
}

/// Whether a layout of the chain is what these changes make of the one before.
fn has_made(chain: &Chain, changes: &StagedChanges) -> bool {
    !changes.is_empty()
        && chain.layouts().windows(2).any(|pair| layout_after(&pair[0], changes.list()).as_ref() == Ok(&pair[1]))
}

impl LayoutStore {
    /// Answers a [`PrepareLayout`]; the promise is durable before it is given. Nothing if this node does not know the layout before yet.
    pub(super) async fn promise(self: &Arc<Self>, ask: PrepareLayout) -> Result<Option<Vote>, NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            let acceptor = match store.turn(&state, ask.version, ask.previous)? {
                Turn::Votes(acceptor) => acceptor,
                Turn::Decided(decided) => return Ok(Some(Vote::Decided(decided))),
                Turn::Behind => return Ok(None),
            };
            match acceptor.promise(ask.ballot) {
                Err(Outrun(ballot)) => Ok(Some(Vote::Outrun(ballot))),
                Ok(promised) => {
                    let accepted = promised.accepted().cloned();
                    store.keep_acceptor(&mut state, promised).await?;
                    Ok(Some(Vote::Promised(accepted)))
                }
            }
        })
        .await
    }

    /// Answers an [`AcceptLayout`]; what is accepted is durable before that is told. Nothing if this node does not know the layout before
    /// yet.
    pub(super) async fn vote(self: &Arc<Self>, ask: AcceptLayout) -> Result<Option<Vote>, NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            let AcceptLayout { ballot, layout } = ask;
            let acceptor = match store.turn(&state, layout.version, layout.previous)? {
                Turn::Votes(acceptor) => acceptor,
                Turn::Decided(decided) => return Ok(Some(Vote::Decided(decided))),
                Turn::Behind => return Ok(None),
            };
            let newest = state.later.chain.as_ref().expect("who votes knows a layout").newest();
            let problems = problems_after(newest, &layout);
            if !problems.is_empty() {
                return Err(refused(format!("it cannot follow on layout {}: {}", newest.version, problems.join("; "))));
            }
            match acceptor.accept(ballot, layout) {
                Err(Outrun(ballot)) => Ok(Some(Vote::Outrun(ballot))),
                Ok(accepted) => {
                    store.keep_acceptor(&mut state, accepted).await?;
                    Ok(Some(Vote::Accepted))
                }
            }
        })
        .await
    }

    /// What is to be done with a question about the version after the layout with the hash `previous`.
    fn turn(&self, state: &State, version: LayoutVersion, previous: LayoutHash) -> Result<Turn, NotApplied> {
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        let Some(chain) = &state.later.chain else { return Ok(Turn::Behind) };
        let (newest, me) = (chain.newest(), self.me);
        if version <= newest.version {
            let chosen = chain.layouts().iter().find(|layout| layout.version == version);
            let by = chosen.and_then(|layout| state.later.proposer_of(layout));
            return Ok(Turn::Decided(Decided { by, chain: live_of(chain, LayoutVersion::NONE) }));
        }
        if version.0 > newest.version.0 + 1 {
            return Ok(Turn::Behind);
        }
        if previous != newest.hash() {
            let (mine, theirs) = (newest.hash().short(), previous.short());
            return Err(refused(format!("layout {} is {mine} here and {theirs} there", newest.version)));
        }
        if !may_vote(newest, me.node, me.disk) {
            return Err(refused(match newest.member(me.node) {
                None => format!("{} is no member of layout {}, which alone decides", me.node, newest.version),
                Some(member) => format!(
                    "layout {} names {} with disk {}, and this node's disk is {}: its data directory was emptied or exchanged, so \
                     that it has no vote",
                    newest.version, me.node, member.disk, me.disk
                ),
            }));
        }
        if let Some((node, disk)) = state.later.foreign {
            return Err(refused(format!(
                "the store of {} was used by {node} with disk {disk}, and this node's disk is {}: what it has promised may be lost, so \
                 that it has no vote",
                me.node, me.disk
            )));
        }
        if let Some(why) = state.later.abstention.forbids(version) {
            return Err(refused(format!("{} has no vote on layout {version}: {why}", me.node)));
        }
        if let Some(why) = self.no_vote() {
            return Err(refused(format!("{} has no vote now: {why}", me.node)));
        }
        if !self.are_changes_allowed() {
            return Err(refused(SWITCHED_OFF.into()));
        }
        if let Some(why) = chain.full() {
            return Err(refused(why));
        }
        let known = state.later.acceptor.clone().filter(|acceptor| acceptor.version() == version);
        Ok(Turn::Votes(known.unwrap_or_else(|| Acceptor::after(newest))))
    }

    /// What this node has promised may be lost: from now on it has no vote until it [has caught up](Self::has_caught_up), durably.
    pub(super) async fn abstain(self: &Arc<Self>) -> Result<(), StoreError> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            let abstention = Abstention { is_behind: true, ..state.later.abstention };
            store.keep_abstention(&mut state, abstention).await
        })
        .await
    }

    /// So many members of the layout `known` have said since this disk was set back that they have accepted no newer one that every majority
    /// shares one with them: none was chosen before. What this node has voted on was that layout or the one after it at the latest: who votes
    /// on a version knows the one before. It votes on those after that again. Tells whether that is so, durably: not if it knows a newer layout
    /// by now.
    pub(super) async fn has_caught_up(self: &Arc<Self>, known: LayoutVersion) -> Result<bool, StoreError> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            if state.later.chain.as_ref().is_none_or(|chain| chain.newest().version != known) {
                return Ok(false);
            }
            let up_to = LayoutVersion(known.0.saturating_add(1)).max(state.later.abstention.up_to);
            store.keep_abstention(&mut state, Abstention { up_to, is_behind: false }).await?;
            tracing::warn!(node = %store.me.node, %up_to, "its disk was set back or exchanged: it has no vote on layouts up to this one");
            Ok(true)
        })
        .await
    }

    async fn keep_abstention(&self, state: &mut State, abstention: Abstention) -> Result<(), StoreError> {
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.later.abstention != abstention {
            self.keep(state, ABSTENTION_KEY, codec::encode(&abstention)).await?;
            state.later.abstention = abstention;
            self.is_behind.send_replace(abstention.is_behind);
            self.caught_up.send_replace(abstention.known());
        }
        Ok(())
    }

    async fn keep_acceptor(&self, state: &mut State, acceptor: Acceptor) -> Result<(), NotApplied> {
        // An answer that was lost is given again.
        if state.later.acceptor.as_ref() == Some(&acceptor) {
            return Ok(());
        }
        let stored = StoredAcceptor { node: self.me.node, disk: self.me.disk, acceptor };
        let kept = self.keep(state, ACCEPTOR_KEY, codec::encode(&stored)).await;
        kept.map_err(|error| self.storage(&error))?;
        state.later.acceptor = Some(stored.acceptor);
        Ok(())
    }

    /// The newest ballot that this node has promised for a version.
    pub(super) async fn promised(&self, version: LayoutVersion) -> Option<Ballot> {
        let state = self.state.lock().await;
        state.later.acceptor.as_ref().filter(|acceptor| acceptor.version() == version).and_then(Acceptor::promised)
    }

    /// Takes over layouts that were chosen, durably, before they are published. Tells whether anything of it was news.
    pub(super) async fn learn(self: &Arc<Self>, heard: LiveLayouts) -> Result<bool, NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            if let Some(error) = &state.failed {
                return Err(store.storage(error));
            }
            let Some(chain) = &state.later.chain else {
                return Err(refused(format!("{} does not know layout 1 yet", store.me.node)));
            };
            let caught_up = chain.caught_up(&heard.layouts, heard.oldest).map_err(|why| {
                tracing::error!("layouts that a peer says were chosen are refused: {why}");
                refused(why)
            })?;
            if caught_up == *chain {
                return Ok(false);
            }
            store.keep_chain(&mut state, caught_up).await.map_err(|error| store.storage(&error))?;
            Ok(true)
        })
        .await
    }

    /// Every change up to this version is over: what lies before it is forgotten, durably, and the layouts that are left are published.
    pub(crate) async fn settle(self: &Arc<Self>, version: LayoutVersion) -> Result<(), StoreError> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let Some(chain) = &state.later.chain else { return Ok(()) };
            let mut settled = chain.clone();
            settled.forget_before(version);
            if settled == *chain {
                return Ok(());
            }
            store.keep_chain(&mut state, settled).await
        })
        .await
    }

    async fn keep_chain(&self, state: &mut State, chain: Chain) -> Result<(), StoreError> {
        self.note_ready(state, chain.layouts()[0].version).await?;
        let stored = StoredChain { layouts: chain.layouts().to_vec() };
        self.keep(state, CHAIN_KEY, codec::encode(&stored)).await?;
        let (newest, live) = (chain.newest(), chain.layouts().len());
        tracing::info!(version = %newest.version, hash = %newest.hash(), live, "the live layouts are stored");
        let made = has_made(&chain, &state.later.changes);
        state.later.chain = Some(chain);
        if made {
            // Whether the disk takes that or not: what was staged is in force, which a start notices by itself.
            let _ = self.keep_changes(state, StagedChanges::default()).await;
            state.later.changes = StagedChanges::default();
        }
        self.tell(state).await;
        Ok(())
    }

    /// The live layouts after a version.
    pub(super) fn live_after(&self, version: LayoutVersion) -> LiveLayouts {
        let Some(current) = self.current() else {
            return LiveLayouts { layouts: Vec::new(), oldest: LayoutVersion::NONE };
        };
        let newer = current.live().versions().iter().filter(|placed| placed.version() > version);
        let layouts = newer.map(|placed| placed.layout.clone()).collect();
        LiveLayouts { layouts, oldest: current.live().oldest().version() }
    }

    /// The live layouts after a version, and the newest one that this node has accepted.
    pub(super) async fn known_after(&self, version: LayoutVersion) -> KnownLayouts {
        let state = self.state.lock().await;
        let accepted = state.later.acceptor.as_ref().and_then(Acceptor::accepted);
        let accepted = accepted.map_or(LayoutVersion::NONE, |accepted| accepted.layout.version);
        KnownLayouts { chain: self.live_after(version), accepted }
    }

    /// Whether this node helps to decide on the next layout.
    pub(super) fn are_changes_allowed(&self) -> bool {
        self.allows_changes.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn live_of(chain: &Chain, after: LayoutVersion) -> LiveLayouts {
    LiveLayouts { layouts: chain.after(after).to_vec(), oldest: chain.layouts()[0].version }
}

#[cfg(test)]
#[path = "acceptor_test.rs"]
mod tests;

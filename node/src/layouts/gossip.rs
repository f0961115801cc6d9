//! LayoutGossips the layout and the context keys: a background task that asks for what this node lacks and offers what others lack.

use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::NodeId;
use quorate_wire::random::Random;
use quorate_wire::{buggify, sometimes};
use tokio::sync::watch;
use tokio::time::sleep;

use super::ask::{ask, reason};
use super::context_keys::HeldBy;
use super::store::LayoutStore;
use crate::membership::{LayoutDigests, Liveness};
use crate::peer_wire::{AcceptFirstLayout, FirstLayoutAccepted, GetLayout, GetLayouts, LayoutState};
use crate::peers::Peers;
use crate::store::StoreError;
use quorate_core::context_keys::ContextKeys;
use quorate_core::layout::Layout;

/// The pause after the first round that changed nothing; it doubles up to [`PAUSE_MAX`], and every one is shortened by a random
/// part of a half, so that nodes that started together do not stay in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause. News of a peer that comes up ends it at once.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// So many are asked for a newer layout at a time.
const PULL_FROM: usize = 3;

/// The background task.
pub(super) struct LayoutGossip {
    pub(super) store: Arc<LayoutStore>,
    pub(super) peers: Peers,
    pub(super) liveness: watch::Receiver<Arc<Liveness>>,
    pub(super) digests: watch::Receiver<Arc<LayoutDigests>>,
    /// Which context keys each peer was last known to hold.
    pub(super) held: HeldBy,
    pub(super) random: Random,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Task {
    /// Nothing, until something changes.
    Rest,
    /// Ask these what they hold.
    Ask(Vec<NodeId>),
    /// Offer these the chosen layout.
    Offer(Vec<NodeId>, Layout),
}

impl LayoutGossip {
    pub(super) async fn run(mut self) {
        let mut accepts = self.store.accepts.subscribe();
        let (mut pause, mut membership) = (PAUSE_MIN, true);
        loop {
            // What changes from here on must start another round.
            accepts.borrow_and_update();
            let liveness = self.liveness.borrow_and_update().clone();
            self.digests.mark_unchanged();
            let task = self.store.task(&liveness).await;
            let (differing, ahead) = (self.differing(&liveness), self.ahead(&liveness));
            let rest = task == Task::Rest && differing.is_empty() && ahead.is_empty();
            let news = match self.all(task, &differing, &ahead).await {
                Ok(news) => news,
                Err(error) if self.store.state.lock().await.failed.is_some() => {
                    tracing::error!("the layout cannot be stored, and is not spread any more: {error}");
                    return;
                }
                // Nothing was changed, as by a disk that is full for now.
                Err(error) => {
                    sometimes!("layouts: one could not be stored for now");
                    tracing::warn!("the layout cannot be stored, which is tried again: {error}");
                    false
                }
            };
            pause = if news { PAUSE_MIN } else { pause };
            pause = buggify!("layouts: others are asked at once", pause, Duration::from_millis(1));
            let shortened = self.random.below(pause.as_millis() as u64 / 2 + 1);
            let timer = sleep(pause - Duration::from_millis(shortened));
            tokio::select! {
                biased;
                changed = self.liveness.changed(), if membership => {
                    // A membership that has ended says nothing new; peers may ask for the layout until the node ends as well.
                    membership = changed.is_ok();
                    pause = PAUSE_MIN;
                    // Liveness flaps while many nodes start; one short pause makes one round of it.
                    sleep(PAUSE_MIN / 4).await;
                }
                changed = self.digests.changed(), if membership => {
                    membership = changed.is_ok();
                    pause = PAUSE_MIN;
                }
                // The store, which this task holds, keeps the sender.
                _ = accepts.changed() => pause = PAUSE_MIN,
                () = timer, if !rest => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// Tells whether there was news.
    async fn all(&mut self, task: Task, differing: &[NodeId], ahead: &[NodeId]) -> Result<bool, StoreError> {
        let news = self.round(task).await? | self.exchange(differing).await?;
        Ok(self.pull(ahead).await || news)
    }

    /// Whom to ask for newer layouts than this node knows: those that say by gossip that they have one, else any member, if a request has
    /// named one. Only a few: one answer is enough, and a layout of many members is large.
    fn ahead(&self, liveness: &Liveness) -> Vec<NodeId> {
        let Some(current) = self.store.current() else { return Vec::new() };
        let (me, known) = (self.store.me.node, current.version());
        let down = |node: &NodeId| *node == me || liveness.get(node).is_some_and(|peer| !peer.up);
        let digests = self.digests.borrow();
        let newer = digests.iter().filter(|(_, (version, _))| *version > known).map(|(node, _)| *node);
        let mut nodes: Vec<NodeId> = newer.filter(|node| !down(node)).collect();
        if nodes.is_empty() && self.store.heard_of() > known {
            nodes = current.layout.members.iter().map(|member| member.node).filter(|node| !down(node)).collect();
        }
        if !nodes.is_empty() {
            let first = self.random.below(nodes.len() as u64) as usize;
            nodes.rotate_left(first);
            nodes.truncate(PULL_FROM);
        }
        nodes
    }

    /// Asks these for newer layouts. Tells whether there was news.
    async fn pull(&self, nodes: &[NodeId]) -> bool {
        let Some(known) = self.store.current().map(|current| current.version()).filter(|_| !nodes.is_empty()) else {
            return false;
        };
        self.learn_addresses(nodes);
        let heard_of = self.store.heard_of();
        let (mut news, mut answers) = (false, 0);
        for (node, answer) in ask(&self.peers, &self.random, nodes, &GetLayouts { after: known }).await {
            match answer {
                Ok(heard) => match self.store.learn(heard.chain).await {
                    Ok(learned) => {
                        sometimes!("layouts: a newer one was learned from a peer", learned);
                        answers += 1;
                        news |= learned;
                    }
                    Err(why) => tracing::warn!(peer = %node, "the peer's layouts are not taken over: {why}"),
                },
                Err(error) => tracing::debug!(peer = %node, "no layouts from the peer: {}", reason(error)),
            }
        }
        if answers == nodes.len() && !news {
            self.store.hear_no_more_than(known, heard_of);
        }
        news
    }

    async fn round(&self, task: Task) -> Result<bool, StoreError> {
        match task {
            Task::Rest => Ok(false),
            Task::Ask(nodes) => self.ask_what_is_accepted(&nodes).await,
            Task::Offer(nodes, layout) => self.offer(&nodes, layout).await,
        }
    }

    async fn ask_what_is_accepted(&self, nodes: &[NodeId]) -> Result<bool, StoreError> {
        self.learn_addresses(nodes);
        let mut news = false;
        for (node, answer) in ask(&self.peers, &self.random, nodes, &GetLayout).await {
            match answer {
                Ok(LayoutState { accepted, chosen, keys }) => {
                    news |= self.store.hear(node, accepted, chosen, keys).await?;
                }
                Err(error) => tracing::debug!(peer = %node, "no layout from the peer: {}", reason(error)),
            }
        }
        Ok(news)
    }

    async fn offer(&self, nodes: &[NodeId], layout: Layout) -> Result<bool, StoreError> {
        self.learn_addresses(nodes);
        let accept = AcceptFirstLayout { layout: layout.clone(), keys: self.store.known_keys() };
        let mut news = false;
        for (node, answer) in ask(&self.peers, &self.random, nodes, &accept).await {
            match answer {
                Ok(FirstLayoutAccepted) => {
                    sometimes!("layouts: offered to a member that was away");
                    news |= self.store.hear(node, Some(layout.clone()), false, ContextKeys::default()).await?;
                }
                Err(error) => tracing::debug!(peer = %node, "the peer does not take the layout: {}", reason(error)),
            }
        }
        Ok(news)
    }

    fn learn_addresses(&self, nodes: &[NodeId]) {
        // Where a member is now the newest layout knows best.
        let newest = self.store.current().map(|current| Layout::clone(&current.layout));
        let accepted = self.store.told().accepted.clone();
        for layout in accepted.iter().chain(&newest) {
            for member in layout.members.iter().filter(|member| nodes.contains(&member.node)) {
                self.peers.learn(member.node, member.addr);
            }
        }
    }
}

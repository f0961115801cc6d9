//! The secrets behind contexts (rule V5, [`quorate_core::context_keys`]): how each node comes to know them.
//!
//! They come with the first layout and are stored in one record with it, so that no node has the one without the other. What a
//! rotation adds is sent to every member at once. Each node gossips a digest of what it holds, and whoever sees another one
//! exchanges with that node, until all hold the same. A node that is shown a context under a key that it does not know asks at
//! once, but not for every such context. A key is durable before anything is sealed with it or anybody is told of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::sometimes;
use quorate_wire::{LayoutReport, NotApplied};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::ask::{ask_within, reason};
use super::gossip::LayoutGossip;
use super::store::{LayoutStore, State, StoredFirst, to_the_end};
use super::{Layouts, PEER_TIMEOUT, refused};
use crate::membership::Liveness;
use crate::peer_wire::{KnownKeys, ShareKeys};
use crate::store::StoreError;
use quorate_core::context_keys::{ContextKeys, KeyName, SECRET_LEN};

/// Others are asked for a key that is not known once in so long, whatever clients send.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Layouts {
    /// What contexts are sealed and opened with; not empty once there is a layout.
    pub(crate) fn context_keys(&self) -> Arc<ContextKeys> {
        self.0.store.keys.borrow().clone()
    }

    /// As [`context_keys`](Self::context_keys), with news of changes.
    pub(crate) fn watch_context_keys(&self) -> watch::Receiver<Arc<ContextKeys>> {
        self.0.store.keys.subscribe()
    }

    /// What gossip is to tell others of the layout in force and the keys: the version, and a digest of both.
    pub(crate) fn announced(&self) -> Option<(LayoutVersion, u64)> {
        self.0.store.announced()
    }

    /// Answers a peer's [`ShareKeys`]. What it has sent is durable before the answer.
    pub(crate) async fn take_context_keys(&self, keys: ContextKeys) -> Result<KnownKeys, NotApplied> {
        let store = &self.0.store;
        store.take_keys(keys).await.map_err(|error| store.storage(&error))?;
        Ok(KnownKeys { keys: store.known_keys() })
    }

    /// Asks the other members for a key, unless they were asked a moment ago. Tells whether it is known then.
    pub(crate) async fn look_for(&self, name: &KeyName, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let Ok(mut asked) = timeout_at(deadline, self.0.keys_asked_for.lock()).await else { return false };
        if self.context_keys().knows(name) {
            return true;
        }
        if asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return false;
        }
        *asked = Some(Instant::now());
        let left = deadline.saturating_duration_since(Instant::now());
        let mut others = self.other_members();
        others.retain(|node| !self.0.peers.link_down(*node));
        self.exchange(&others, left.min(PEER_TIMEOUT)).await;
        let known = self.context_keys().knows(name);
        sometimes!("contexts: a key was asked for and found", known);
        known
    }

    /// Makes a new key, above all that can be heard of, and tells every member.
    pub(super) async fn rotate_context_key(&self) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        if self.current().is_none() {
            return Err(refused("there is no layout in force yet, and the first context key comes with it".into()));
        }
        let others = self.other_members();
        self.exchange(&others, PEER_TIMEOUT).await;
        let before = store.known_keys();
        let newest = store.rotate(self.0.random.array()).await?;
        tracing::info!(key = %newest, "the context key was rotated");
        let mut report_holding = vec![store.me.node];
        let mut missing = Vec::new();
        for (node, answer) in self.exchange(&others, PEER_TIMEOUT).await {
            match answer {
                Ok(keys) if keys.knows(&newest) => report_holding.push(node),
                Ok(_) => missing.push((node, "it does not hold the layout yet".to_owned())),
                Err(why) => missing.push((node, why)),
            }
        }
        report_holding.sort_unstable();
        let after = store.known_keys();
        let retired = before.names().into_iter().filter(|name| !after.knows(name));
        let retired = retired.map(|name| {
            format!(
                "context key {name} is retired: a client that has kept a context that was issued under it is told to read the \
                 key again"
            )
        });
        let mut report = store.report().await;
        report.warnings.extend(retired);
        Ok(LayoutReport { holding: report_holding, missing, ..report })
    }

    /// Tells these nodes the keys that this one knows and takes in theirs; the answers are in the order of the nodes.
    async fn exchange(&self, nodes: &[NodeId], timeout: Duration) -> Vec<(NodeId, Result<ContextKeys, String>)> {
        let share = ShareKeys { keys: self.0.store.known_keys() };
        let mut known = Vec::new();
        for (node, answer) in ask_within(&self.0.peers, &self.0.random, nodes, &share, timeout).await {
            let answer = match answer {
                // No refusal: what a command has changed before is changed, whatever becomes of this.
                Ok(KnownKeys { keys }) => match self.0.store.take_keys(keys.clone()).await {
                    Ok(_) => Ok(keys),
                    Err(error) => {
                        tracing::warn!(peer = %node, "context keys cannot be stored: {error}");
                        Err(format!("what it knows could not be stored here: {error}"))
                    }
                },
                Err(error) => Err(reason(error)),
            };
            known.push((node, answer));
        }
        known
    }

    fn other_members(&self) -> Vec<NodeId> {
        let current = self.current();
        let members = current.iter().flat_map(|current| &current.layout.members).map(|member| member.node);
        members.filter(|node| *node != self.0.store.me.node).collect()
    }
}

impl LayoutStore {
    pub(super) fn known_keys(&self) -> ContextKeys {
        (**self.keys.borrow()).clone()
    }

    /// See [`Layouts::announced`].
    pub(super) fn announced(&self) -> Option<(LayoutVersion, u64)> {
        let current = self.current.borrow();
        let current = current.as_ref()?;
        let hash = u64::from_be_bytes(*current.hash.0.first_chunk().expect("a hash has 32 bytes"));
        Some((current.layout.version, hash ^ self.keys.borrow().digest()))
    }

    /// Takes in what a peer knows, durably. Tells whether anything of it was news.
    pub(super) async fn take_keys(self: &Arc<Self>, keys: ContextKeys) -> Result<bool, StoreError> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            match &state.failed {
                Some(error) => Err(error.clone()),
                None => store.join_keys(&mut state, &keys).await,
            }
        })
        .await
    }

    pub(super) async fn rotate(self: &Arc<Self>, secret: [u8; SECRET_LEN]) -> Result<KeyName, NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            if let Some(error) = &state.failed {
                return Err(store.storage(error));
            }
            let rotated = state.keys.rotated(secret).ok_or_else(|| refused("no number is left for a key".into()))?;
            let newest = rotated.newest().expect("one was added");
            store.join_keys(&mut state, &rotated).await.map_err(|error| store.storage(&error))?;
            Ok(newest)
        })
        .await
    }

    /// Stores what is new among these keys beside the accepted layout, then uses it. Without a layout there is nobody whose
    /// contexts they could be for.
    pub(super) async fn join_keys(&self, state: &mut State, keys: &ContextKeys) -> Result<bool, StoreError> {
        let Some((layout, _)) = state.bootstrap.accepted() else { return Ok(false) };
        let mut joined = state.keys.clone();
        if !joined.merge(keys) {
            return Ok(false);
        }
        let first = StoredFirst { layout: layout.clone(), chosen: state.bootstrap.is_chosen(), keys: joined };
        self.store_first(state, &first).await?;
        self.tell(state).await;
        Ok(true)
    }
}

/// What one peer was last known to hold: what its gossip said then, and what it said itself. Digests as of
/// [`Layouts::announced`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    gossip: u64,
    itself: u64,
}

impl LayoutGossip {
    /// The nodes that hold other keys than this one does, as far as gossip and they themselves have told.
    pub(super) fn differing(&self, liveness: &Liveness) -> Vec<NodeId> {
        let Some((version, mine)) = self.store.announced() else { return Vec::new() };
        let digests = self.digests.borrow();
        let up = |node: &NodeId| *node != self.store.me.node && liveness.get(node).is_some_and(|peer| peer.up);
        let of_this_layout = digests.iter().filter(|(node, (theirs, _))| up(node) && *theirs == version);
        let differ = of_this_layout.filter(|(node, (_, gossip))| {
            let held = self.held.get(*node).filter(|held| held.gossip == *gossip);
            held.map_or(*gossip, |held| held.itself) != mine
        });
        differ.map(|(node, _)| *node).collect()
    }

    /// Exchanges keys with these nodes. Tells whether there was news.
    pub(super) async fn exchange(&mut self, nodes: &[NodeId]) -> Result<bool, StoreError> {
        let (share, gossip) = (ShareKeys { keys: self.store.known_keys() }, self.digests.borrow().clone());
        self.held.retain(|node, _| gossip.contains_key(node));
        let mut news = false;
        for (node, answer) in ask_within(&self.peers, &self.random, nodes, &share, PEER_TIMEOUT).await {
            match answer {
                Ok(KnownKeys { keys }) => {
                    sometimes!("contexts: keys were exchanged with a node that held others");
                    let digest = keys.digest();
                    news |= self.store.take_keys(keys).await?;
                    let layout = self.store.announced().map_or(0, |(_, all)| all ^ self.store.keys.borrow().digest());
                    if let Some((_, gossip)) = gossip.get(&node) {
                        self.held.insert(node, Held { gossip: *gossip, itself: layout ^ digest });
                    }
                }
                Err(error) => tracing::debug!(peer = %node, "no context keys from the peer: {}", reason(error)),
            }
        }
        Ok(news)
    }
}

/// For what each peer was last known to hold.
pub(super) type HeldBy = BTreeMap<NodeId, Held>;

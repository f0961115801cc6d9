//! What this node says of its part in a change of layout: on its disk before it is told to anybody.

use std::sync::Arc;

use quorate_wire::codec;
use quorate_wire::ids::{LayoutVersion, NodeId};

use super::store::{LayoutStore, State, to_the_end};
use super::{Current, Layouts};
use crate::store::{Store, StoreError};
use quorate_core::live::Said;

/// Where it lies in the tree of what is kept once.
const SAID_KEY: &[u8] = b"layout/said";

/// What an earlier process has said.
pub(super) fn load(store: &dyn Store) -> Result<Option<Said>, StoreError> {
    super::store::load(store, SAID_KEY)
}

impl Layouts {
    /// What this node says.
    pub(crate) fn said(&self) -> Said {
        self.0.store.said()
    }

    /// Says more, durably. `change` is given what was said so far and tells whether it has changed anything; it may be called by one task at
    /// a time. Tells whether there was anything new.
    ///
    /// # Errors
    /// When it cannot be stored; then it is not said.
    pub(crate) async fn say(
        &self,
        change: impl FnOnce(&mut Said, &Current) -> bool + Send + 'static,
    ) -> Result<bool, StoreError> {
        let store = Arc::clone(&self.0.store);
        to_the_end(async move { store.say(change).await }).await
    }

    /// Learns the next layout, as if it had been chosen.
    #[cfg(test)]
    pub(crate) async fn adopt(&self, layout: quorate_core::layout::Layout) {
        let oldest = self.current().expect("a layout is in force").live().oldest().version();
        let chosen = crate::peer_wire::LiveLayouts { layouts: vec![layout], oldest };
        self.0.store.learn(chosen).await.expect("it follows");
    }

    /// Enough members have said that they know no layout after this one.
    #[cfg(test)]
    pub(crate) async fn has_caught_up(&self, known: LayoutVersion) -> bool {
        self.0.store.has_caught_up(known).await.expect("memory takes it")
    }

    /// What a peer says.
    pub(crate) fn hear_said(&self, node: NodeId, said: Said) {
        self.0.store.change_said(|known| {
            let news = known.get(&node).is_none_or(|known| **known != said);
            known.insert(node, Arc::new(said));
            news
        });
    }
}

impl LayoutStore {
    fn said(&self) -> Said {
        let current = self.current.borrow();
        let said = current.as_ref().and_then(|current| current.live().said().get(&self.me.node));
        said.map(|said| (**said).clone()).unwrap_or_default()
    }

    /// Layouts before this one are about to be forgotten: notes, as long as they are known, of which partitions this node is ready for it.
    pub(super) async fn note_ready(&self, state: &mut State, oldest: LayoutVersion) -> Result<(), StoreError> {
        let Some(current) = self.current() else { return Ok(()) };
        let (live, me, mut said) = (current.live(), self.me.node, self.said());
        let before = said.clone();
        if oldest <= live.oldest().version() || said.fence < oldest {
            return Ok(());
        }
        for partition in live.owned_by(me) {
            let mut part = said.part(partition);
            if part.ready < oldest && live.partition(partition).is_ready(me, oldest) {
                part.ready = oldest;
                said.set(partition, part);
            }
        }
        if said == before { Ok(()) } else { self.store_said(state, said).await }
    }

    async fn store_said(&self, state: &mut State, said: Said) -> Result<(), StoreError> {
        self.keep(state, SAID_KEY, codec::encode(&said)).await?;
        let me = self.me.node;
        self.change_said(|known| {
            known.insert(me, Arc::new(said));
            true
        });
        Ok(())
    }

    async fn say(&self, change: impl FnOnce(&mut Said, &Current) -> bool) -> Result<bool, StoreError> {
        let mut state = self.state.lock().await;
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let Some(current) = self.current() else { return Ok(false) };
        let mut said = self.said();
        if !change(&mut said, &current) {
            return Ok(false);
        }
        self.store_said(&mut state, said).await?;
        Ok(true)
    }
}

//! What an operator has staged for the layout after the newest one.

use std::sync::Arc;

use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Applied, NotApplied, codec};
use serde::{Deserialize, Serialize};

use super::refused;
use super::store::{LayoutStore, SWITCHED_OFF, State, load, to_the_end};
use crate::store::{Store, StoreError};
use quorate_core::chain::Chain;
use quorate_core::changes::{self, Change, difference, layout_after};
use quorate_core::layout::Layout;
use quorate_core::ring::MEMBERS_MAX;

const CHANGES_KEY: &[u8] = b"layout/changes";

/// So many changes may be staged at a time: one for each member that there can be. They are kept and built upon as a list.
const CHANGES_MAX: usize = MEMBERS_MAX;

/// Changes in their order, and what they were staged on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StagedChanges {
    /// The newest layout when the last one of them was staged: they were meant for the version after it.
    after: LayoutVersion,
    changes: Vec<Change>,
}

/// What an apply of a later version than the first one is about.
#[derive(Debug)]
pub(super) enum Next {
    /// To decide this one, which is to follow on that one.
    Decide {
        /// The newest layout.
        parent: Layout,
        /// What is staged on it.
        wanted: Layout,
    },
    /// The version is decided.
    Known(Applied),
}

impl StagedChanges {
    pub(super) fn load(disk: &dyn Store) -> Result<Self, StoreError> {
        Ok(load::<Self>(disk, CHANGES_KEY)?.unwrap_or_default())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn list(&self) -> &[Change] {
        &self.changes
    }

    /// What they make of the newest layout; nothing if nothing is staged.
    ///
    /// # Errors
    /// When one of them is not possible there.
    pub(super) fn draft(&self, newest: &Layout) -> Result<Option<Layout>, String> {
        if self.is_empty() {
            return Ok(None);
        }
        changes::draft(newest, &self.changes).map(Some).map_err(|why| {
            format!(
                "what is staged is not possible on layout {}: {why}; `layout revert` forgets what is staged",
                newest.version
            )
        })
    }
}

impl LayoutStore {
    /// Stages a change of the newest layout, durably.
    pub(super) async fn stage_change(self: &Arc<Self>, change: Change) -> Result<(), NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            let newest = store.newest(&state)?.newest().clone();
            state.later.changes.draft(&newest).map_err(refused)?;
            let mut changes = state.later.changes.changes.clone();
            changes::stage(&mut changes, change);
            if changes.len() > CHANGES_MAX {
                return Err(refused(format!(
                    "{CHANGES_MAX} changes are staged, there cannot be more: apply them first"
                )));
            }
            let draft = changes::draft(&newest, &changes).map_err(refused)?;
            for (what, asked) in [("the floor of R", draft.r), ("the floor of W", draft.w)] {
                if asked > draft.n {
                    return Err(NotApplied::QuorumImpossible { what: what.into(), asked, n: draft.n });
                }
            }
            let staged = StagedChanges { after: newest.version, changes };
            store.keep_changes(&mut state, staged).await.map_err(|error| store.storage(&error))
        })
        .await
    }

    /// Forgets what is staged for the next layout.
    pub(super) async fn revert_changes(self: &Arc<Self>) -> Result<(), NotApplied> {
        let store = Arc::clone(self);
        to_the_end(async move {
            let mut state = store.state.lock().await;
            store.newest(&state)?;
            store.keep_changes(&mut state, StagedChanges::default()).await.map_err(|error| store.storage(&error))
        })
        .await
    }

    pub(super) async fn keep_changes(&self, state: &mut State, changes: StagedChanges) -> Result<(), StoreError> {
        self.keep(state, CHANGES_KEY, codec::encode(&changes)).await?;
        state.later.changes = changes;
        Ok(())
    }

    pub(super) fn newest<'a>(&self, state: &'a State) -> Result<&'a Chain, NotApplied> {
        if let Some(error) = &state.failed {
            return Err(self.storage(error));
        }
        state.later.chain.as_ref().ok_or_else(|| refused("there is no layout in force yet".into()))
    }

    /// What an apply of this version, after the first one, is about.
    pub(super) async fn to_apply_next(&self, version: LayoutVersion) -> Result<Next, NotApplied> {
        let state = self.state.lock().await;
        let chain = self.newest(&state)?;
        let (newest, staged) = (chain.newest(), &state.later.changes);
        if version == LayoutVersion::NONE || version.0 > newest.version.0 + 1 {
            return Err(refused(format!(
                "the current layout is {}, so that only version {} can be applied",
                newest.version,
                newest.version.0 + 1
            )));
        }
        if version <= newest.version {
            // What was meant for this version and is staged still is not what became of it.
            let lost = !staged.is_empty() && staged.after.0 + 1 == version.0;
            return Ok(Next::Known(if lost { self.another_in(&state, version, None) } else { Applied::Before }));
        }
        if !self.are_changes_allowed() {
            return Err(refused(SWITCHED_OFF.into()));
        }
        if let Some(why) = chain.full() {
            return Err(refused(why));
        }
        if staged.is_empty() {
            return Err(refused("nothing is staged: begin with `layout stage`".into()));
        }
        staged.draft(newest).map_err(refused)?;
        let wanted = layout_after(newest, &staged.changes)
            .map_err(|why| refused(format!("the staged layout cannot be applied: {why}")))?;
        Ok(Next::Decide { parent: newest.clone(), wanted })
    }

    /// What to tell an operator whose layout was not chosen for a version that is known by now.
    pub(super) async fn another(&self, version: LayoutVersion, by: Option<NodeId>) -> Applied {
        self.another_in(&*self.state.lock().await, version, by)
    }

    pub(super) fn another_in(&self, state: &State, version: LayoutVersion, by: Option<NodeId>) -> Applied {
        let layouts = state.later.chain.as_ref().map(Chain::layouts).unwrap_or_default();
        let Some(place) = layouts.iter().position(|layout| layout.version == version) else {
            return Applied::Another { by, what: "it is known no more".into() };
        };
        // What this node has completed under its own ballot is another one's all the same.
        let by = by.or_else(|| state.later.proposer_of(&layouts[place])).filter(|by| *by != self.me.node);
        let what = match place.checked_sub(1).map(|before| difference(&layouts[before], &layouts[place])) {
            Some(what) => what,
            None => format!("it has the hash {}", layouts[place].hash().short()),
        };
        Applied::Another { by, what }
    }
}

//! Ending a change under way: by a new layout that is equal to the one before the newest.
//!
//! It is decided like any other (see `apply`), and carried out like one: what has moved moves back, and where nothing has moved yet nothing
//! does. Who was a member before the change and is none after it comes back with the disk that it had, or not at all.

use futures_util::future::join_all;
use quorate_wire::ids::LayoutVersion;
use quorate_wire::{Abort, Applied, LayoutReport, NotApplied};
use tokio::time::Instant;

use super::staged::Next;
use super::store::{LayoutStore, SWITCHED_OFF};
use super::{Layouts, refused};
use quorate_core::chain::problems_after;
use quorate_core::changes::difference;
use quorate_core::layout::{Layout, Member};

impl LayoutStore {
    /// What an abort is about; of the version after the newest one if none is named.
    pub(super) async fn to_abort(&self, version: Option<LayoutVersion>) -> Result<Next, NotApplied> {
        let state = self.state.lock().await;
        let chain = self.newest(&state)?;
        let layouts = chain.layouts();
        let [.., before, newest] = layouts else {
            return Err(refused(format!(
                "no change is under way: layout {} alone is live. To go back to what was before it, stage what differs",
                chain.newest().version
            )));
        };
        let next = LayoutVersion(newest.version.0 + 1);
        let asked = version.unwrap_or(next);
        if asked < next {
            // The command is repeated, or another operator was faster.
            return match layouts.iter().position(|layout| layout.version == asked) {
                Some(place) if place >= 2 && is_like(&layouts[place], &layouts[place - 2]) => {
                    Ok(Next::Known(Applied::Before))
                }
                Some(place) if place >= 2 => Ok(Next::Known(self.another_in(&state, asked, None))),
                _ => Err(refused(format!(
                    "layout {asked} is decided already: to end the change to layout {} makes layout {next}",
                    newest.version
                ))),
            };
        }
        if asked > next {
            return Err(refused(format!(
                "the newest layout is {}, so that only version {next} can end the change to it",
                newest.version
            )));
        }
        if !self.are_changes_allowed() {
            return Err(refused(SWITCHED_OFF.into()));
        }
        if let Some(why) = chain.full() {
            return Err(refused(why));
        }
        let wanted = Layout { version: next, previous: newest.hash(), ..before.clone() };
        match problems_after(newest, &wanted) {
            problems if problems.is_empty() => Ok(Next::Decide { parent: newest.clone(), wanted }),
            problems => Err(refused(format!(
                "layout {} cannot be taken up again after layout {}: {}",
                before.version,
                newest.version,
                problems.join("; ")
            ))),
        }
    }
}

/// Whether two layouts share the data out in the same way, among the same members.
fn is_like(layout: &Layout, other: &Layout) -> bool {
    Layout { version: other.version, previous: other.previous, ..layout.clone() } == *other
}

impl Layouts {
    /// What it would be to end the change under way.
    ///
    /// # Errors
    /// Why that cannot be done whatever the nodes do.
    pub(super) async fn look_at_abort(&self) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        let Next::Decide { parent, wanted } = store.to_abort(None).await? else {
            unreachable!("the next version is not decided")
        };
        let problems = self.what_keeps_away(&parent, &wanted).await;
        let what = difference(&parent, &wanted);
        let like = LayoutVersion(parent.version.0 - 1);
        let shown = store.showing.of(Some(parent), Some(wanted)).await;
        let layout = shown.staged_view.clone().expect("it is staged as far as this goes");
        let abort = Abort { layout, like, what, moves: shown.moves.clone(), problems };
        Ok(LayoutReport { abort: Some(abort), progress: self.progress(), ..store.report().await })
    }

    /// Ends the change under way by the layout of this version.
    ///
    /// # Errors
    /// Why this command has changed nothing.
    pub(super) async fn abort(&self, version: LayoutVersion, until: Instant) -> Result<LayoutReport, NotApplied> {
        let store = &self.0.store;
        let (parent, wanted) = match store.to_abort(Some(version)).await? {
            Next::Decide { parent, wanted } => (parent, wanted),
            Next::Known(applied) => return Ok(LayoutReport { applied: Some(applied), ..store.report().await }),
        };
        let problems = self.what_keeps_away(&parent, &wanted).await;
        if !problems.is_empty() {
            return Err(refused(format!(
                "layout {} cannot be taken up again: {}. Stage what is wanted without it instead",
                parent.version.0 - 1,
                problems.join("; ")
            )));
        }
        self.decide(parent, wanted, until).await
    }

    /// Why nodes that would be members again cannot be: a layout of members that are gone for good helps nobody.
    async fn what_keeps_away(&self, newest: &Layout, wanted: &Layout) -> Vec<String> {
        let back = wanted.members.iter().filter(|member| newest.member(member.node).is_none());
        join_all(back.map(|member| self.what_keeps_one_away(member))).await.into_iter().flatten().collect()
    }

    async fn what_keeps_one_away(&self, member: &Member) -> Option<String> {
        let me = &self.0.store.me;
        // It may listen elsewhere by now.
        let addr = self.0.liveness.borrow().get(&member.node).map_or(member.addr, |peer| peer.addr);
        let disk = if member.node == me.node { Ok(me.disk) } else { self.disk_at(member.node, addr).await };
        match disk {
            Ok(disk) if disk == member.disk => None,
            Ok(_) => Some(format!(
                "{} has not the disk that it had as a member: its data directory was emptied or exchanged",
                member.node
            )),
            Err(NotApplied::Refused { why }) => Some(why),
            Err(other) => Some(other.to_string()),
        }
    }
}

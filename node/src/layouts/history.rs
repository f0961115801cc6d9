//! What operators are shown of the layouts that were and are in force.

use quorate_wire::PastLayout;
use quorate_wire::ids::{LayoutVersion, NodeId};

use super::store::LayoutStore;
use quorate_core::chain::Chain;
use quorate_core::layout::Layout;

impl LayoutStore {
    /// The layouts that are still known, oldest first: the first one, and those that are live.
    pub(super) async fn history(&self) -> Vec<PastLayout> {
        let state = self.state.lock().await;
        let first = state.bootstrap.accepted().filter(|_| state.bootstrap.is_chosen()).map(|(layout, _)| layout);
        let live = state.later.chain.as_ref().map(Chain::layouts).unwrap_or_default();
        history(first, live)
    }
}

fn history(first: Option<&Layout>, live: &[Layout]) -> Vec<PastLayout> {
    let over = first.filter(|first| live.first().is_none_or(|oldest| oldest.version > first.version));
    let mut before: Option<&Layout> = None;
    let mut past = Vec::new();
    for layout in over.into_iter().chain(live) {
        let lacks = |this: &Layout, other: Option<&Layout>| -> Vec<NodeId> {
            let in_other = |node| other.is_some_and(|other| other.member(node).is_some());
            this.members.iter().map(|member| member.node).filter(|node| !in_other(*node)).collect()
        };
        past.push(PastLayout {
            version: layout.version,
            hash: layout.hash().to_string(),
            live: live.contains(layout),
            members: layout.members.len() as u32,
            n: layout.n,
            since: before.map_or(LayoutVersion::NONE, |before| before.version),
            added: lacks(layout, before),
            removed: before.map(|before| lacks(before, Some(layout))).unwrap_or_default(),
        });
        before = Some(layout);
    }
    past
}

//! Who may have minted the writes that this node has passed on, or has minted as a fallback.
//!
//! A write that may have been minted stays with who may have minted it: a retry that another primary mints anew is a second dot, which can
//! outlive what replaces the first one (rule V6). A client stays with the node that it has asked; that node, if it is no primary, has to stay
//! with the one that it had passed the write on to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use quorate_wire::ids::{NodeId, OpId};
use quorate_wire::sometimes;
use tokio::time::Instant;

use quorate_core::operations::TRAVEL_MAX;

/// The newest errands of this node.
#[derive(Debug)]
pub(super) struct Errands(Mutex<State>);

#[derive(Debug)]
struct State {
    known: BTreeMap<OpId, (NodeId, u64)>,
    /// In the order in which they were noted, with the number that each had then.
    order: VecDeque<(OpId, u64, Instant)>,
    next: u64,
    /// Everything that was noted since then is known.
    complete_since: Instant,
}

/// Whose a retry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// It was not passed on from here.
    Nobodys,
    /// This node may have minted an earlier attempt.
    Of(NodeId),
    /// It may have been passed on from here, so long ago that nobody knows.
    Forgotten,
}

impl Errands {
    pub(super) fn new(now: Instant) -> Self {
        let (known, order) = (BTreeMap::new(), VecDeque::new());
        Self(Mutex::new(State { known, order, next: 0, complete_since: now }))
    }

    /// A write is about to be minted by `node`.
    pub(super) fn note(&self, op_id: OpId, node: NodeId, now: Instant) {
        let mut state = self.0.lock().expect("nothing panics while it is locked");
        let number = state.next;
        state.next += 1;
        state.known.insert(op_id, (node, number));
        state.order.push_back((op_id, number, now));
        while state.order.len() > ERRANDS_MAX
            && let Some((oldest, number, at)) = state.order.pop_front()
        {
            if state.known.get(&oldest).is_some_and(|(_, newest)| *newest == number) {
                state.known.remove(&oldest);
                state.complete_since = state.complete_since.max(at);
            }
        }
    }

    /// It was definitely not minted there, and this was its first attempt.
    pub(super) fn settle(&self, op_id: OpId) {
        self.0.lock().expect("nothing panics while it is locked").known.remove(&op_id);
    }

    /// Who may have minted an earlier attempt, of which the first was sent at most so long ago.
    pub(super) fn whose(&self, op_id: OpId, first_sent: Duration, now: Instant) -> Whose {
        let state = self.0.lock().expect("nothing panics while it is locked");
        if let Some((node, _)) = state.known.get(&op_id) {
            sometimes!("forward: a retry went where its write had gone");
            return Whose::Of(*node);
        }
        match now.checked_sub(first_sent.saturating_add(TRAVEL_MAX)) {
            Some(since) if since >= state.complete_since => Whose::Nobodys,
            _ => Whose::Forgotten,
        }
    }
}

/// How many are remembered: about 6 MB. Clients that know the routes ask primaries and need none of it.
const ERRANDS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_stays_with_who_may_have_minted_it() {
        let (start, node) = (Instant::now(), |name: &str| NodeId::new(name).expect("legal"));
        let errands = Errands::new(start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let second = Duration::from_secs(1);
        errands.note(OpId(1), node("a"), at(50));
        assert_eq!(errands.whose(OpId(1), second, at(51)), Whose::Of(node("a")));
        errands.settle(OpId(1));
        assert_eq!(errands.whose(OpId(1), second, at(51)), Whose::Nobodys);
        assert_eq!(
            errands.whose(OpId(1), Duration::from_secs(22), at(51)),
            Whose::Forgotten,
            "it may have come before"
        );
        // The oldest go first, and then it is not known of their time.
        for op in 0..ERRANDS_MAX as u128 + 1 {
            errands.note(OpId(op), node("b"), at(60) + Duration::from_millis(u64::from(op > 0)));
        }
        assert_eq!(errands.whose(OpId(0), second, at(61)), Whose::Forgotten);
        assert_eq!(errands.whose(OpId(1), second, at(61)), Whose::Of(node("b")));
        assert_eq!(errands.whose(OpId(1 << 100), second, at(61) + TRAVEL_MAX), Whose::Nobodys);
    }
}

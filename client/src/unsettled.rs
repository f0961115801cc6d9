//! To whom the writes went whose outcome is unknown.
//!
//! A write that may have been minted stays with who may have minted it, also when its application repeats it by its operation id: a
//! second coordinator would mint a second dot, which can outlive what replaces the first one (ARCHITECTURE.md, rule V6). And a coordinator that
//! is told how old the write is knows whether it still remembers it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::route::Target;
use quorate_wire::ids::OpId;

/// The newest unknown writes of a client.
#[derive(Debug, Default)]
pub(crate) struct Unsettled(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<OpId, Sent>,
    /// In the order in which they became unknown; of one that was settled since, its id is still here.
    order: VecDeque<OpId>,
}

/// Where a write is, if it is anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The only node that may have minted it.
    pub(crate) to: Target,
    /// How old it was, at most, when this was noted.
    pub(crate) age: Duration,
    /// When that was. (The age is not taken off it: a machine may have started later than a write was sent.)
    pub(crate) noted: Instant,
}

impl Sent {
    /// How long ago its first attempt was sent, at most.
    pub(crate) fn age(&self) -> Duration {
        self.age.saturating_add(self.noted.elapsed())
    }
}

impl Unsettled {
    /// The outcome of a write is unknown. What was known of it before stays.
    pub(crate) fn note(&self, op_id: OpId, sent: Sent) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.known.contains_key(&op_id) {
            return;
        }
        state.known.insert(op_id, sent);
        state.order.push_back(op_id);
        while state.order.len() > UNSETTLED_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.known.remove(&oldest);
        }
    }

    /// Where an earlier request has left the write.
    pub(crate) fn of(&self, op_id: OpId) -> Option<Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.get(&op_id).copied()
    }

    /// The write was acknowledged.
    pub(crate) fn settle(&self, op_id: OpId) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.known.remove(&op_id).is_some() {
            state.order.retain(|noted| *noted != op_id);
        }
    }
}

/// How many are remembered: about 3 MB. Beyond that an application has not looked at what became of its writes for long.
const UNSETTLED_MAX: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn sent(port: u16, noted: Instant) -> Sent {
        Sent { to: Target { node: None, addr: SocketAddr::from(([127, 0, 0, 1], port)) }, age: Duration::ZERO, noted }
    }

    #[test]
    fn the_first_coordinator_stays_the_one_until_the_write_is_settled() {
        let (unsettled, start) = (Unsettled::default(), Instant::now());
        assert_eq!(unsettled.of(OpId(1)), None);
        unsettled.note(OpId(1), sent(1, start));
        unsettled.note(OpId(1), sent(2, start + Duration::from_secs(1)));
        assert_eq!(unsettled.of(OpId(1)), Some(sent(1, start)));
        unsettled.settle(OpId(1));
        assert_eq!(unsettled.of(OpId(1)), None);
        unsettled.settle(OpId(1));
        unsettled.note(OpId(1), sent(2, start));
        assert_eq!(unsettled.of(OpId(1)), Some(sent(2, start)));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let (unsettled, start) = (Unsettled::default(), Instant::now());
        for op in 0..=UNSETTLED_MAX as u128 {
            unsettled.note(OpId(op), sent(1, start));
        }
        assert_eq!(unsettled.of(OpId(0)), None);
        assert_eq!(unsettled.of(OpId(1)), Some(sent(1, start)));
        assert_eq!(unsettled.0.lock().expect("nobody panicked").order.len(), UNSETTLED_MAX);
    }
}

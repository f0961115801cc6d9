//! From the failure detector's opinion to what is published: debounced and damped, pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::ids::NodeId;
use quorate_wire::{buggify, sometimes};
use tokio::time::Instant;

use super::{Liveness, PeerState};

/// What the failure detector says of every peer, and what is published of it.
///
/// A "down" has to stand for [`DOWN_STANDS_FOR`] before it is published, because after a partition heals even healthy
/// nodes flap for some 0.2 s. An "up" is published at once, unless the node has been down again and again: then it has to
/// stand for longer each time, up to [`UP_STANDS_FOR_MAX`], so that a node in a crash loop does not swing routes to and fro.
#[derive(Debug)]
pub(super) struct Verdicts {
    me: NodeId,
    published: Arc<Liveness>,
    peers: BTreeMap<NodeId, Verdict>,
}

#[derive(Debug)]
struct Verdict {
    up: bool,
    since: Instant,
    /// Published downs, one forgotten every [`FLAP_FORGOTTEN_AFTER`].
    flaps: u32,
    last_flap: Instant,
}

impl Verdicts {
    /// Only `me`, which is always up.
    pub(super) fn new(me: NodeId, addr: SocketAddr, now: Instant) -> Self {
        let published = BTreeMap::from([(me, PeerState { addr, up: true, since: now })]);
        Self { me, published: Arc::new(published), peers: BTreeMap::new() }
    }

    /// What is published.
    pub(super) fn published(&self) -> &Arc<Liveness> {
        &self.published
    }

    /// The detector's opinion. A peer that it has never called up is of no interest.
    pub(super) fn hear(&mut self, node: NodeId, up: bool, now: Instant) {
        debug_assert_ne!(node, self.me, "nobody is a peer of itself");
        match self.peers.get_mut(&node) {
            Some(verdict) if verdict.up == up => {}
            Some(verdict) => {
                verdict.up = up;
                verdict.since = now;
                if !up
                    && buggify!("membership: a down is published at once")
                    && let Some(before) = now.checked_sub(DOWN_STANDS_FOR)
                {
                    verdict.since = before;
                }
            }
            None if up => {
                self.peers.insert(node, Verdict { up, since: now, flaps: 0, last_flap: now });
            }
            None => {}
        }
    }

    /// Forgets a peer that has been down for very long.
    pub(super) fn forget(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(|verdict| !verdict.up) {
            self.peers.remove(&node);
            Arc::make_mut(&mut self.published).remove(&node);
        }
    }

    /// When the next verdict has stood for long enough.
    pub(super) fn next_change(&self) -> Option<Instant> {
        self.peers.iter().filter_map(|(node, verdict)| verdict.due(self.published.get(node))).min()
    }

    /// Publishes what has stood for long enough; `addr_of` tells where a peer listens. Says whether anything changed.
    pub(super) fn settle(&mut self, now: Instant, addr_of: impl Fn(&NodeId) -> Option<SocketAddr>) -> bool {
        let mut changed = false;
        for (node, verdict) in &mut self.peers {
            let published = self.published.get(node);
            let due = verdict.due(published).is_some_and(|due| due <= now);
            let addr = addr_of(node).or(published.map(|state| state.addr));
            let Some(addr) = addr else { continue };
            if due {
                if !verdict.up {
                    verdict.count_flap(now);
                }
                sometimes!("membership: a peer was published as down", !verdict.up);
                sometimes!("membership: a peer came back", verdict.up && published.is_some());
                sometimes!("membership: a flapping peer was held back", verdict.up && verdict.flaps > 1);
                let state = PeerState { addr, up: verdict.up, since: now };
                Arc::make_mut(&mut self.published).insert(*node, state);
                changed = true;
            } else if published.is_some_and(|state| state.addr != addr) {
                let state = Arc::make_mut(&mut self.published).get_mut(node).expect("it was there a line above");
                state.addr = addr;
                changed = true;
            }
        }
        changed
    }
}

impl Verdict {
    /// When it is to be published, if it differs from what is.
    fn due(&self, published: Option<&PeerState>) -> Option<Instant> {
        match published {
            None => Some(self.since),
            Some(state) if state.up == self.up => None,
            Some(_) if self.up => Some(self.since + self.up_stands_for()),
            Some(_) => Some(self.since + DOWN_STANDS_FOR),
        }
    }

    /// Nothing after the first flap, then a second, doubled with every further one.
    fn up_stands_for(&self) -> Duration {
        match self.flaps.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => (Duration::from_secs(1) * (1 << doublings.min(8))).min(UP_STANDS_FOR_MAX),
        }
    }

    fn count_flap(&mut self, now: Instant) {
        let forgotten = now.duration_since(self.last_flap).as_secs() / FLAP_FORGOTTEN_AFTER.as_secs();
        self.flaps = self.flaps.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)).saturating_add(1);
        self.last_flap = now;
    }
}

/// Five times what healing nodes were seen to flap for; little beside the 6 s that the detector needs to notice a crash.
pub(super) const DOWN_STANDS_FOR: Duration = Duration::from_secs(1);
/// Requests have deadlines of their own, so that a node that is wrongly believed down for so long costs a stand-in, no more.
pub(super) const UP_STANDS_FOR_MAX: Duration = Duration::from_secs(16);
/// A node that restarts twice an hour is no flapping node.
const FLAP_FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    struct Story {
        verdicts: Verdicts,
        start: Instant,
    }

    impl Story {
        fn new() -> Self {
            let start = Instant::now();
            Self { verdicts: Verdicts::new(node("me"), addr(1), start), start }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn hear(&mut self, ms: u64, up: bool) {
            self.verdicts.hear(node("n1"), up, self.at(ms));
        }

        fn published(&mut self, ms: u64) -> Option<bool> {
            let now = self.at(ms);
            self.verdicts.settle(now, |_| Some(addr(2)));
            self.verdicts.published().get("n1").map(|state| state.up)
        }
    }

    fn addr(host: u8) -> SocketAddr {
        ([10, 0, 0, host], 7000).into()
    }

    #[test]
    fn a_first_up_is_published_at_once_and_a_down_after_a_second() {
        let mut story = Story::new();
        assert_eq!(story.published(0), None);
        story.hear(10, true);
        assert_eq!(story.published(10), Some(true));
        story.hear(100, false);
        assert_eq!(story.verdicts.next_change(), Some(story.at(1100)));
        assert_eq!(story.published(1099), Some(true));
        assert_eq!(story.published(1100), Some(false));
        assert_eq!(story.verdicts.next_change(), None);
        assert!(story.verdicts.published()[&node("me")].up);
    }

    #[test]
    fn a_short_down_is_never_seen() {
        let mut story = Story::new();
        story.hear(0, true);
        assert_eq!(story.published(0), Some(true));
        story.hear(100, false);
        story.hear(300, true);
        assert_eq!(story.verdicts.next_change(), None);
        assert_eq!(story.published(5000), Some(true));
        assert_eq!(story.verdicts.published()[&node("n1")].since, story.at(0));
    }

    #[test]
    fn a_down_of_a_stranger_is_no_news() {
        let mut story = Story::new();
        story.hear(0, false);
        assert_eq!(story.published(5000), None);
    }

    #[test]
    fn a_flapping_node_is_damped_and_the_damping_is_bounded_and_forgotten() {
        let mut story = Story::new();
        story.hear(0, true);
        story.published(0);
        let mut now = 1000;
        let mut waits = Vec::new();
        for _ in 0..8 {
            story.hear(now, false);
            now += 1000;
            assert_eq!(story.published(now), Some(false));
            story.hear(now, true);
            let due = story.verdicts.next_change().expect("an up is waiting");
            waits.push(due.duration_since(story.at(now)).as_secs());
            now += due.duration_since(story.at(now)).as_millis() as u64;
            assert_eq!(story.published(now), Some(true));
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 16, 16]);
        now += 600_000;
        story.hear(now, false);
        now += 1000;
        assert_eq!(story.published(now), Some(false));
        story.hear(now, true);
        assert_eq!(story.published(now), Some(true), "after ten quiet minutes it is trusted again");
    }

    #[test]
    fn only_the_dead_are_forgotten() {
        let mut story = Story::new();
        story.hear(0, true);
        story.published(0);
        story.verdicts.forget(node("n1"));
        assert_eq!(story.published(0), Some(true));
        story.hear(0, false);
        story.published(1000);
        story.verdicts.forget(node("n1"));
        assert_eq!(story.published(1000), None);
    }
}

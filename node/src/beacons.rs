//! How far each disk has come, as its node has told: who remembers a disk further ahead than it is has seen it rolled back.
//!
//! Every message between nodes carries the [beacon](crate::store) that is durable at its sender, and each hello the one that its
//! disk had when the sender started, a number for this life, and what the sender remembers of the receiver's disks. A node
//! that hears of a higher beacon of its own, told in another life, has been set back: from a backup, by a snapshot, because two
//! processes run on copies of one disk, or because an old disk has come back after the node had lived on another one. To that
//! end a node's beacons grow over all its disks: one that starts on an empty disk goes on above whatever its peers remember of the
//! disk before.
//!
//! What nobody was told, nobody can remember: a disk that is set back to before its last few writes, of which it had told
//! nobody but clients, is not noticed. What is heard is stored every second (`SAVE_EVERY`), so that a crash forgets no more than
//! that. And what nobody can tell, nobody hears: a node that starts waits for the other members' hellos before it answers reads, but
//! for a second only, so that owners which can be reached are not kept waiting by those which cannot; for ten if nobody greets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quorate_wire::codec;
use quorate_wire::ids::{DiskId, NodeId};
use quorate_wire::sometimes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::replica::Replica;
use crate::store::{Committer, Store, StoreError, Tree};

/// How far a disk had come, and in which life it said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The disk.
    pub disk: DiskId,
    /// The life of its node: random, drawn at each start.
    pub life: u64,
    /// The highest beacon that it has told.
    pub beacon: u64,
}

/// Who speaks: one life of a node on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Its life.
    pub life: u64,
}

/// What one node remembers of others, and hears of itself. Clones share it.
#[derive(Debug, Clone)]
pub struct Beacons(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    life: u64,
    /// What this disk had at the start.
    start: u64,
    committer: Committer,
    state: Mutex<State>,
    set_back: Notify,
    hellos: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The newest disks of each node, the newest first.
    remembered: BTreeMap<NodeId, Vec<Remembered>>,
    /// What is not stored yet.
    unsaved: BTreeSet<NodeId>,
    /// The highest beacon that another life of this node has told, on this disk or another one, above its start.
    ahead: u64,
    /// Whose hello has come since the start, so that what it remembers is known.
    greeted: BTreeSet<NodeId>,
}

impl Beacons {
    /// Goes on from what the store remembers of others. `life` is random. Blocking.
    pub fn open(store: &dyn Store, life: u64, committer: Committer) -> Self {
        let mut state = State::default();
        let to = [PREFIX, &[u8::MAX]].concat();
        // What cannot be read is not remembered: it is a help, and no promise.
        for key in store.keys(Tree::Meta, PREFIX, Some(&to), NODES_MAX).unwrap_or_default() {
            let name = key.strip_prefix(PREFIX).and_then(|name| std::str::from_utf8(name).ok());
            let (Some(Ok(node)), Ok(Some(value))) = (name.map(NodeId::new), store.get(Tree::Meta, &key)) else {
                continue;
            };
            if let Ok(remembered) = codec::decode(&value) {
                state.remembered.insert(node, remembered);
            }
        }
        let start = committer.beacon();
        let (state, set_back, hellos) = (Mutex::new(state), Notify::new(), Notify::new());
        Self(Arc::new(Shared { life, start, committer, state, set_back, hellos }))
    }

    /// This life.
    pub fn life(&self) -> u64 {
        self.0.life
    }

    /// What this disk had at its start.
    pub fn start(&self) -> u64 {
        self.0.start
    }

    /// What is durable now.
    pub fn durable(&self) -> u64 {
        self.0.committer.beacon()
    }

    /// Somebody has told how far its disk is.
    pub fn heard(&self, from: Speaker, beacon: u64) {
        let mut state = self.state();
        if state.remembered.len() >= NODES_MAX && !state.remembered.contains_key(&from.node) {
            return;
        }
        let disks = state.remembered.entry(from.node).or_default();
        let known = disks.iter().position(|known| known.disk == from.disk);
        if let Some(at) = known {
            if disks[at].beacon >= beacon {
                return;
            }
            disks.remove(at);
        }
        disks.insert(0, Remembered { disk: from.disk, life: from.life, beacon });
        disks.truncate(DISKS_MAX);
        state.unsaved.insert(from.node);
    }

    /// What is remembered of a node, to be told to it.
    pub fn of(&self, node: NodeId) -> Vec<Remembered> {
        self.state().remembered.get(&node).cloned().unwrap_or_default()
    }

    /// Another node's hello has come, and what it remembers of this one was [taken in](Self::told).
    pub fn greeted(&self, node: NodeId) {
        if self.state().greeted.insert(node) {
            self.0.hellos.notify_one();
        }
    }

    /// Waits, after a start, for the hellos of these nodes, of which some may be down; tells whether all have come. At most one may wait.
    ///
    /// While nobody at all has greeted, nobody could have said that this disk is an old one: such a node waits for longer.
    pub(crate) async fn hellos(&self, of: &[NodeId]) -> bool {
        let all = timeout(HELLOS_WAIT, self.greeted_by(of)).await.is_ok();
        if all || of.iter().any(|node| self.state().greeted.contains(node)) {
            return all;
        }
        let any = timeout(ALONE_WAIT - HELLOS_WAIT, self.greeted_by_any(of)).await;
        sometimes!("beacons: a start heard of nobody for long", any.is_err());
        // Others that are as far away as the first one are about to greet as well.
        any.is_ok() && timeout(HELLOS_WAIT, self.greeted_by(of)).await.is_ok()
    }

    /// Waits until the hellos of all these nodes have come.
    async fn greeted_by(&self, nodes: &[NodeId]) {
        while !nodes.iter().all(|node| self.state().greeted.contains(node)) {
            self.0.hellos.notified().await;
        }
    }

    /// Waits until the hello of any of these nodes has come.
    async fn greeted_by_any(&self, nodes: &[NodeId]) {
        while !nodes.iter().any(|node| self.state().greeted.contains(node)) {
            self.0.hellos.notified().await;
        }
    }

    /// Takes in what another node remembers of this one. Tells whether this disk was set back, which is news: to be
    /// [announced](Self::announce_set_back) when nothing is served any more.
    pub fn told(&self, remembered: &[Remembered]) -> bool {
        let own = remembered.iter().filter(|told| told.life != self.0.life);
        let Some(highest) = own.map(|told| told.beacon).max() else { return false };
        let mut state = self.state();
        if highest <= self.0.start.max(state.ahead) {
            return false;
        }
        sometimes!("beacons: a disk was found to be set back");
        state.ahead = highest;
        true
    }

    /// This disk was set back, and nothing is served until whoever waits for that has noted what it lacks.
    pub fn announce_set_back(&self) {
        self.0.set_back.notify_one();
    }

    /// Waits until this disk turns out to have been set back; to where it had been then. When it is noted what it lacks, its beacon has
    /// to [go on](Self::pass) above that: not before, or a crash in between would leave a disk that nobody takes for set back.
    pub(crate) async fn set_back(&self) -> u64 {
        self.0.set_back.notified().await;
        self.state().ahead
    }

    /// The next beacon is above this one.
    pub(crate) fn pass(&self, ahead: u64) {
        self.0.committer.pass_beacon(ahead);
    }

    /// Stores what is not stored yet; it survives a power cut with the next sync. Blocking.
    ///
    /// # Errors
    /// When the store does not take it; it is tried again then.
    pub(crate) fn save(&self, store: &dyn Store) -> Result<(), StoreError> {
        let unsaved: Vec<_> = {
            let state = self.state();
            state.unsaved.iter().map(|node| (*node, state.remembered[node].clone())).collect()
        };
        for (node, remembered) in unsaved {
            let key = [PREFIX, node.as_str().as_bytes()].concat();
            store.insert(Tree::Meta, &key, &codec::encode(&remembered))?;
            let mut state = self.state();
            if state.remembered.get(&node) == Some(&remembered) {
                state.unsaved.remove(&node);
            }
        }
        Ok(())
    }

    /// Whether anything is not stored yet.
    fn has_news(&self) -> bool {
        !self.state().unsaved.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it is locked")
    }
}

/// Stores what is heard of other disks, for as long as the node runs.
pub(crate) async fn remember(beacons: Beacons, replica: Replica) {
    loop {
        sleep(SAVE_EVERY).await;
        if beacons.has_news() {
            replica.save_beacons(&beacons).await;
        }
    }
}

/// How long a start waits for the hellos of members that may be down: two round trips to another continent, with a loss.
const HELLOS_WAIT: Duration = Duration::from_secs(1);

/// How long it waits in all while nobody has greeted it: some dials, each of which takes up to two seconds, over a link on which a
/// handshake takes longer than [`HELLOS_WAIT`]. A node that reaches nobody for so long trusts its disk, or the only one that is left of a
/// cluster would never answer a read again.
const ALONE_WAIT: Duration = Duration::from_secs(10);

/// A value for each node that was heard of, at most, is written so often. Disks that are set back just after whoever knew has crashed are
/// what this is for: what was stored by the last pass of anti-entropy, seconds ago, may be from before the time that they lack.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Before the node's name in the keys of [`Tree::Meta`].
const PREFIX: &[u8] = b"beacon/of/";
/// Nodes that are remembered, as many as a pool of connections knows.
const NODES_MAX: usize = 1024;
/// Disks of one node that are remembered: replaced ones may come back from a shelf.
const DISKS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::store::{Durability, Executor, MemoryStore};

    fn beacons(store: &MemoryStore, life: u64) -> Beacons {
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let fatal = Arc::new(|why| panic!("{why}"));
        let committer = Committer::start(shared, Executor::Inline, Durability::Group, Duration::from_secs(1), fatal);
        Beacons::open(store, life, committer)
    }

    fn speaker(disk: u128, life: u64) -> Speaker {
        Speaker { node: NodeId::new("n2").expect("legal"), disk: DiskId(disk), life }
    }

    #[tokio::test]
    async fn the_highest_of_each_disk_is_remembered_over_a_restart() {
        let store = MemoryStore::new();
        let one = beacons(&store, 7);
        for (disk, life, beacon) in [(2, 1, 5), (2, 1, 9), (2, 2, 6), (3, 4, 1)] {
            one.heard(speaker(disk, life), beacon);
        }
        let remembered = |disk, life, beacon| Remembered { disk: DiskId(disk), life, beacon };
        let expected = [remembered(3, 4, 1), remembered(2, 1, 9)];
        let node = speaker(2, 1).node;
        assert_eq!(one.of(node), expected, "a later life that is behind does not hide the earlier one");
        one.save(&store).expect("room");
        assert_eq!(beacons(&store, 8).of(node), expected);
        one.heard(speaker(2, 2), 10);
        assert_eq!(one.of(node)[0], remembered(2, 2, 10));
        for disk in 10..20 {
            one.heard(speaker(disk, 1), 1);
        }
        assert_eq!(one.of(node).len(), DISKS_MAX);
    }

    #[tokio::test]
    async fn a_disk_is_set_back_if_another_life_had_come_further() {
        let store = MemoryStore::new();
        store.insert(Tree::Meta, b"beacon/0", &10u64.to_be_bytes()).expect("room");
        let one = beacons(&store, 7);
        assert_eq!(one.start(), 10);
        let told = |disk, life, beacon| one.told(&[Remembered { disk: DiskId(disk), life, beacon }]);
        assert!(!told(1, 6, 10), "no further than it was at its start");
        assert!(!told(1, 7, 12), "that was this life");
        assert!(told(1, 6, 12));
        assert!(!told(1, 6, 12), "that is known");
        one.announce_set_back();
        assert_eq!(one.set_back().await, 12);
        let durable = || async {
            one.0.committer.synced().await.expect("memory syncs");
            one.durable()
        };
        assert!(durable().await <= 12, "a crash before it is noted must find it set back again");
        one.pass(12);
        assert!(durable().await > 12);
        assert!(told(1, 5, 15), "even further");
        assert!(told(2, 5, 16), "it has lived on another disk since");
        assert!(!told(1, 6, 12) && !told(2, 5, 16), "both are known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_everybody_who_may_remember() {
        let [a, b] = ["a", "b"].map(|name| NodeId::new(name).expect("legal"));
        // Who greets after how many milliseconds; when the wait is over, and whether all have greeted.
        for (greets, ends_ms, all) in [
            (vec![(100, a), (100, a), (300, b)], 300, true),
            (vec![(100, a)], 1_000, false),
            (vec![(1_700, a), (1_800, b)], 1_800, true),
            (vec![(1_700, a)], 2_700, false),
            (vec![(9_900, b), (10_800, a)], 10_800, true),
            (vec![], 10_000, false),
        ] {
            let one = beacons(&MemoryStore::new(), 7);
            let begun = Instant::now();
            let waiting = tokio::spawn({
                let one = one.clone();
                async move { (one.hellos(&[a, b]).await, begun.elapsed().as_millis()) }
            });
            for (after_ms, node) in greets.clone() {
                tokio::time::sleep_until(begun + Duration::from_millis(after_ms)).await;
                one.greeted(node);
            }
            assert_eq!(waiting.await.expect("no panic"), (all, ends_ms), "{greets:?}");
        }
        let begun = Instant::now();
        assert!(beacons(&MemoryStore::new(), 7).hellos(&[]).await);
        assert_eq!(begun.elapsed(), Duration::ZERO, "there is nobody else");
    }
}

//! Who is reachable: SWIM's opinion, over the peers' QUIC connections as datagrams.
//!
//! It is local and fickle, and nothing but a hint: who owns what is the layout's affair, requests have deadlines of their own
//! and peers their own back-off. A one-way partition, for one, raises no "down" at all, because the others vouch for both ends.
//!
//! One task owns the protocol, which is a value without I/O (`swim`); one more for each join seed asks who listens there and has the task announce itself.

mod digests;
mod identity;
mod swim;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_wire::buggify;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::random::Random;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, trace, warn};

pub use self::identity::Identity;
use self::swim::Swim;
use crate::peers::Peers;
use crate::supervise;

/// A peer, as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The debounced verdict: a "down" has stood for a second, an "up" may be held back for a node that flaps.
    pub up: bool,
    /// Since when that has been published.
    pub since: Instant,
}

/// Everyone that was ever up, itself included (always up). A peer that has been down for a day is forgotten.
pub type Liveness = BTreeMap<NodeId, PeerState>;

/// What every node says it holds: the version of its layout, and a digest of that and its context keys. Hearsay; a reason to go and ask.
pub type LayoutDigests = BTreeMap<NodeId, (LayoutVersion, u64)>;

/// What membership needs.
#[derive(Debug)]
pub struct Parts {
    /// This node, in this life.
    pub me: Identity,
    /// Carries datagrams and dials.
    pub peers: Peers,
    /// Datagrams that arrived, with the name that the sender's certificate binds.
    pub datagrams: mpsc::Receiver<(NodeId, Bytes)>,
    /// Where to look for others. This node's own address may be among them.
    pub seeds: Vec<SocketAddr>,
    /// Where others were in an earlier life: looked at as well, and never instead of a seed.
    pub remembered: Vec<SocketAddr>,
    /// Seeds the protocol's choices.
    pub random: Random,
}

/// A handle on the running membership. It ends with [`leave`](Self::leave), or when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Membership {
    liveness: watch::Receiver<Arc<Liveness>>,
    digests: watch::Receiver<Arc<LayoutDigests>>,
    announce: Arc<watch::Sender<Option<(LayoutVersion, u64)>>>,
    seeds: mpsc::Sender<SocketAddr>,
    leave: mpsc::Sender<oneshot::Sender<()>>,
}

impl Membership {
    /// Starts its tasks on the current runtime.
    pub fn start(parts: Parts) -> Self {
        let now = Instant::now();
        let swim = Swim::new(parts.me, parts.random.array(), now);
        let (liveness_tx, liveness) = watch::channel(swim.liveness().clone());
        let (digests_tx, digests) = watch::channel(Arc::default());
        let (announce, announced) = watch::channel(None);
        let (leave, leaving) = mpsc::channel(1);
        let (hello_tx, hellos) = mpsc::channel(HELLOS_MAX);
        let (seeds_tx, later_seeds) = mpsc::channel(SEEDS_MAX);
        let others =
            |addrs: Vec<SocketAddr>| -> Vec<_> { addrs.into_iter().filter(|addr| *addr != parts.me.addr).collect() };
        let (seeds, remembered) = (others(parts.seeds), others(parts.remembered));
        if seeds.len() > SEEDS_MAX {
            warn!("{} join addresses are given, the first {SEEDS_MAX} are used", seeds.len());
        }
        let mut driver = Driver {
            me: parts.me,
            swim,
            random: parts.random,
            peers: parts.peers,
            datagrams: parts.datagrams,
            hellos,
            announced,
            later_seeds,
            leaving,
            liveness: liveness_tx,
            digests: digests_tx,
            found: hello_tx,
            seeds: Seeds::default(),
            seekers: JoinSet::new(),
            later_seekers: BTreeMap::new(),
        };
        for addr in seeds.into_iter().take(SEEDS_MAX).chain(remembered.into_iter().take(SEEDS_MAX)) {
            if driver.seeds.stay(addr) {
                driver.start_seeker(addr);
            }
        }
        supervise::spawn("membership", driver.run());
        Self { liveness, digests, announce: Arc::new(announce), seeds: seeds_tx, leave }
    }

    /// One without tasks, that believes what a test tells it.
    #[cfg(test)]
    pub(crate) fn told(liveness: watch::Receiver<Arc<Liveness>>) -> Self {
        let ((_, digests), (announce, _)) = (watch::channel(Arc::default()), watch::channel(None));
        let ((seeds, _), (leave, _)) = (mpsc::channel(1), mpsc::channel(1));
        Self { liveness, digests, announce: Arc::new(announce), seeds, leave }
    }

    /// Who is up.
    pub fn liveness(&self) -> watch::Receiver<Arc<Liveness>> {
        self.liveness.clone()
    }

    /// Which layout the others say they hold (and this node, once it has announced one).
    pub fn layout_digests(&self) -> watch::Receiver<Arc<LayoutDigests>> {
        self.digests.clone()
    }

    /// Looks for other nodes at one more address, as at those that were given at the start. Of the addresses that were given in
    /// this way the newest 64 are looked at; to give one again makes it new.
    pub async fn seek(&self, addr: SocketAddr) {
        // Without the task nobody is looked for any more.
        let _ = self.seeds.send(addr).await;
    }

    /// Tells the others which layout this node holds, from now on and also those who come later.
    pub fn announce_layout(&self, version: LayoutVersion, digest: u64) {
        self.announce.send_replace(Some((version, digest)));
    }

    /// Tells others that this node goes and ends the tasks. The datagrams are with the connections when it returns: close
    /// these gracefully. Calling it again does nothing.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.leave.send(done).await.is_ok() {
            // An error means that the task ended by itself, which is what was asked for.
            let _ = left.await;
        }
    }
}

/// The task that owns the protocol.
struct Driver {
    me: Identity,
    swim: Swim,
    random: Random,
    peers: Peers,
    datagrams: mpsc::Receiver<(NodeId, Bytes)>,
    hellos: mpsc::Receiver<Identity>,
    announced: watch::Receiver<Option<(LayoutVersion, u64)>>,
    later_seeds: mpsc::Receiver<SocketAddr>,
    leaving: mpsc::Receiver<oneshot::Sender<()>>,
    liveness: watch::Sender<Arc<Liveness>>,
    digests: watch::Sender<Arc<LayoutDigests>>,
    /// Where seekers tell whom they have found; keeps `hellos` open when there is no seed.
    found: mpsc::Sender<Identity>,
    /// Where others are looked for.
    seeds: Seeds,
    /// They end with this task.
    seekers: JoinSet<()>,
    /// Those whose address was given later, and may be replaced.
    later_seekers: BTreeMap<SocketAddr, AbortHandle>,
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.flush();
            let timeout = self.swim.poll_timeout();
            tokio::select! {
                biased;
                request = self.leaving.recv() => {
                    self.swim.leave(Instant::now());
                    self.flush();
                    info!("left the gossip");
                    if let Some(done) = request {
                        // Nobody waits for it if the caller gave up.
                        let _ = done.send(());
                    }
                    return;
                }
                () = sleep_until(timeout.unwrap_or_else(Instant::now)), if timeout.is_some() => {
                    self.swim.handle_timeout(Instant::now());
                }
                Ok(()) = self.announced.changed() => {
                    if let Some((version, digest)) = *self.announced.borrow_and_update() {
                        self.swim.announce_layout(version, digest, Instant::now());
                    }
                }
                Some(addr) = self.later_seeds.recv() => self.seek(addr),
                Some(peer) = self.hellos.recv() => self.swim.announce_to(peer, Instant::now()),
                Some((from, data)) = self.datagrams.recv() => {
                    if let Err(refused) = self.swim.handle_data(from, &data, Instant::now()) {
                        debug!(%from, len = data.len(), %refused, "dropped a gossip datagram");
                    }
                }
            }
        }
    }

    /// Looks for others at an address that was given later.
    fn seek(&mut self, addr: SocketAddr) {
        if addr == self.me.addr {
            return;
        }
        let Added { new: true, replaced } = self.seeds.add(addr) else { return };
        if let Some(seeker) = replaced.and_then(|replaced| self.later_seekers.remove(&replaced)) {
            seeker.abort();
        }
        // Those that were stopped earlier.
        while self.seekers.try_join_next().is_some() {}
        let seeker = self.start_seeker(addr);
        self.later_seekers.insert(addr, seeker);
    }

    /// Looks for others at an address from now on.
    fn start_seeker(&mut self, addr: SocketAddr) -> AbortHandle {
        let seeker = Seeker {
            addr,
            me: self.me.node,
            peers: self.peers.clone(),
            found: self.found.clone(),
            liveness: self.liveness.subscribe(),
            random: self.random.fork(),
            misses: 0,
            warned: None,
        };
        self.seekers.spawn(supervise::watched("membership: a seed", seeker.run()))
    }

    fn flush(&mut self) {
        while let Some((node, addr)) = self.swim.poll_learned() {
            self.peers.learn(node, addr);
        }
        while let Some((to, data)) = self.swim.poll_send() {
            self.peers.send_datagram(to, data);
        }
        if let Some(liveness) = self.swim.poll_liveness(Instant::now()) {
            for (node, state) in liveness.iter() {
                if self.liveness.borrow().get(node).map(|before| before.up) != Some(state.up) {
                    info!(%node, addr = %state.addr, up = state.up, "a peer's state changed");
                }
            }
            self.liveness.send_replace(liveness);
        }
        if let Some(digests) = self.swim.poll_digests() {
            self.digests.send_replace(Arc::new(digests));
        }
    }
}

/// The addresses where others are looked for. Those of the start stay. Later ones, which names came to mean, have a bound of their
/// own, and the newest of them count: a name means other addresses whenever its machines are replaced.
#[derive(Debug, Default)]
struct Seeds {
    staying: BTreeSet<SocketAddr>,
    /// The oldest first.
    later: VecDeque<SocketAddr>,
}

/// What became of a later address.
#[derive(Debug, PartialEq, Eq)]
struct Added {
    /// It was not among the addresses.
    new: bool,
    /// The address whose place it took.
    replaced: Option<SocketAddr>,
}

impl Seeds {
    /// Whether it is new.
    fn stay(&mut self, addr: SocketAddr) -> bool {
        self.staying.insert(addr)
    }

    fn add(&mut self, addr: SocketAddr) -> Added {
        if self.staying.contains(&addr) {
            return Added { new: false, replaced: None };
        }
        let known = self.later.iter().position(|later| *later == addr);
        if let Some(known) = known {
            self.later.remove(known);
        }
        let replaced = if self.later.len() >= SEEDS_MAX { self.later.pop_front() } else { None };
        self.later.push_back(addr);
        Added { new: known.is_none(), replaced }
    }
}

/// Asks who listens at a seed, for ever: with back-off while this node is alone, rarely else, so that halves of a cluster
/// that never met or forgot each other find together. A seed that is up already is not asked.
struct Seeker {
    addr: SocketAddr,
    me: NodeId,
    peers: Peers,
    found: mpsc::Sender<Identity>,
    liveness: watch::Receiver<Arc<Liveness>>,
    random: Random,
    /// Times that it was asked in vain, one after the other.
    misses: u32,
    warned: Option<Instant>,
}

impl Seeker {
    async fn run(mut self) {
        let mut backoff = SEEK_BACKOFF_MIN;
        loop {
            if !self.is_up() {
                self.seek().await;
            }
            let company = self.company();
            let pause = if company { SEEK_EVERY } else { backoff };
            // Half of the pause is random, so that nodes that were started together do not ask together.
            let pause = pause / 2 + Duration::from_micros(self.random.below(pause.as_micros() as u64 / 2 + 1));
            let pause = buggify!("membership: seeds are asked again and again", pause, SEEK_BACKOFF_MIN);
            backoff = if company { SEEK_BACKOFF_MIN } else { (backoff * 2).min(SEEK_BACKOFF_MAX) };
            self.wait(pause, company).await;
        }
    }

    async fn seek(&mut self) {
        let answer = self.peers.hello_at(self.addr, SEEK_TIMEOUT).await;
        self.misses = if answer.is_ok() { 0 } else { self.misses + 1 };
        match answer {
            Ok(hello) if hello.node == self.me => trace!(addr = %self.addr, "the seed is this node itself"),
            Ok(hello) => {
                let peer = Identity::new(hello.node, hello.addr, hello.boot);
                // The driver is gone: so is this task, in a moment.
                let _ = self.found.send(peer).await;
            }
            Err(error) => {
                let due = self.warned.is_none_or(|warned| warned.elapsed() >= SEEK_WARN_EVERY);
                if self.misses >= SEEK_WARN_AFTER && due {
                    self.warned = Some(Instant::now());
                    warn!(missed = self.misses, "no node is met at a `join` address: {error}");
                } else {
                    debug!("no node is met at a `join` address: {error}");
                }
            }
        }
    }

    /// Waits, but no longer than it takes to fall from company into loneliness.
    async fn wait(&mut self, pause: Duration, company: bool) {
        let deadline = Instant::now() + pause;
        while let Ok(changed) =
            timeout(deadline.saturating_duration_since(Instant::now()), self.liveness.changed()).await
        {
            if changed.is_err() {
                // The driver is gone and takes this task with it.
                sleep(SEEK_EVERY).await;
            }
            if company && !self.company() {
                return;
            }
        }
    }

    fn is_up(&self) -> bool {
        let liveness = self.liveness.borrow();
        liveness.iter().any(|(node, state)| *node != self.me && state.up && state.addr == self.addr)
    }

    fn company(&self) -> bool {
        self.liveness.borrow().iter().any(|(node, state)| *node != self.me && state.up)
    }
}

/// The most peers that a node gossips with; more are refused with a warning. Far above the 100 members that the ring is
/// built for, and small enough that a scan of all takes microseconds.
pub const PEERS_MAX: usize = 1000;
/// Of each kind: those of the start, those that are remembered, and later ones. More find nobody whom these do not find.
const SEEDS_MAX: usize = 64;
/// Every seeker has one answer on its way at most.
const HELLOS_MAX: usize = 3 * SEEDS_MAX;
/// Nodes that are started together miss each other once or twice; what goes on is for whoever has set the address.
const SEEK_WARN_AFTER: u32 = 3;
/// How often is said again that a seed is not met.
const SEEK_WARN_EVERY: Duration = Duration::from_secs(600);
/// A handshake takes two round trips; three seconds are plenty also for a node under load.
const SEEK_TIMEOUT: Duration = Duration::from_secs(3);
/// The first pause while alone. Nodes that are started together are there a moment later.
const SEEK_BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest pause while alone: how late a node may notice that its seed has come up.
const SEEK_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// With company a seed that is not up is asked so often.
const SEEK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn later_addresses_take_the_place_of_older_ones_and_of_none_from_the_start() {
        let mut seeds = Seeds::default();
        let many = SEEDS_MAX as u16;
        // Join addresses and as many that are remembered.
        assert!((0..2 * many).all(|port| seeds.stay(addr(port))));
        assert_eq!(seeds.add(addr(5)), Added { new: false, replaced: None }, "it is looked at already");
        let fresh = |replaced: Option<u16>| Added { new: true, replaced: replaced.map(addr) };
        let first = 1000;
        for port in first..first + many {
            assert_eq!(seeds.add(addr(port)), fresh(None), "there is room beside those of the start");
        }
        // A name that still means what it meant.
        assert_eq!(seeds.add(addr(first)), Added { new: false, replaced: None });
        assert_eq!(seeds.add(addr(2000)), fresh(Some(first + 1)), "the one that was named longest ago goes");
        assert_eq!(seeds.add(addr(first + 1)), fresh(Some(first + 2)), "and may come back");
        assert_eq!((seeds.staying.len(), seeds.later.len()), (2 * SEEDS_MAX, SEEDS_MAX));
    }
}

//! SWIM without I/O: foca, its timers, the bound on its memory, and what follows from its notifications.
//!
//! Inputs are `handle_*(.., now)` and `announce_*`, outputs are `poll_*` and `published`; whoever drives it owns the clock
//! and the wire. The same inputs at the same instants give the same outputs.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use foca::{AccumulatingRuntime, Codec as _, Foca, Header, Member, Message, OwnedNotification, PeriodicParams, Timer};
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::sometimes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::digests::{Announcement, Digests};
use super::identity::{Codec, Identity};
use super::verdict::Verdicts;
use super::{LayoutDigests, Liveness, PEERS_MAX};

/// One node's side of the gossip.
pub(super) struct Swim {
    foca: Foca<Identity, Codec, StdRng, Digests>,
    runtime: AccumulatingRuntime<Identity>,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    timers_submitted: u64,
    /// The one timer of each dead peer that forgets it: older ones of the same peer have no effect any more.
    removals: BTreeMap<NodeId, (Instant, u64)>,
    outbox: VecDeque<(NodeId, Bytes)>,
    learned: VecDeque<(NodeId, SocketAddr)>,
    /// The latest life of every peer that was ever up.
    directory: BTreeMap<NodeId, Identity>,
    verdicts: Verdicts,
    digests: Digests,
    announcement: Option<(LayoutVersion, u64)>,
    announcements: u64,
    announce_at: Instant,
    lonely_at: Instant,
    lonely_rounds: usize,
    adopt_after: Instant,
    complain_after: Instant,
    sized_for: usize,
    left: bool,
}

impl Swim {
    /// Alone at first; `seed` seeds the protocol's choices.
    pub(super) fn new(me: Identity, seed: [u8; 32], now: Instant) -> Self {
        let digests = Digests::default();
        let rng = StdRng::from_seed(seed);
        Self {
            foca: Foca::with_custom_broadcast(me, config(1), rng, Codec, digests.clone()),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timers_submitted: 0,
            removals: BTreeMap::new(),
            outbox: VecDeque::new(),
            learned: VecDeque::new(),
            directory: BTreeMap::new(),
            verdicts: Verdicts::new(me.node, me.addr, now),
            digests,
            announcement: None,
            announcements: 0,
            announce_at: now,
            lonely_at: now + LONELY_EVERY,
            lonely_rounds: 0,
            adopt_after: now,
            complain_after: now,
            sized_for: 1,
            left: false,
        }
    }

    /// Who this node is now; its renewals may have grown.
    pub(super) fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Whether it knows of nobody who is up.
    pub(super) fn alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    /// A datagram from the peer that the connection's certificate names.
    ///
    /// # Errors
    /// When it is malformed, too large or speaks in another node's name, or when there is no room for what it would
    /// bring; nothing has happened then.
    pub(super) fn handle_data(&mut self, from: NodeId, data: &[u8], now: Instant) -> Result<(), Refused> {
        if self.left {
            return Ok(());
        }
        if self.timers.len() >= TIMERS_MAX {
            return Err(Refused(format!("{TIMERS_MAX} timers are pending already")));
        }
        let packet = Packet::parse(data)?;
        if packet.header.src.node != from {
            return Err(Refused(format!("{from} speaks in the name of {}", packet.header.src.node)));
        }
        self.outlive(packet.names(), now);
        let trimmed = self.trim(&packet, now)?;
        let result = self.foca.handle_data(trimmed.as_deref().unwrap_or(data), &mut self.runtime);
        self.absorb(now);
        result.map_err(|error| Refused(error.to_string()))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called; nothing after leaving.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.left {
            return None;
        }
        let timer = self.timers.first_key_value().map(|((deadline, _), _)| *deadline);
        let announce = self.announcement.map(|_| self.announce_at);
        let lonely = self.lonely().then_some(self.lonely_at);
        [timer, announce, lonely, self.verdicts.next_change()].into_iter().flatten().min()
    }

    /// Does what is due. Safe to call at any time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while !self.left {
            match self.timers.first_entry() {
                Some(entry) if entry.key().0 <= now => {
                    let timer = entry.remove();
                    self.fire(timer, now);
                }
                _ => break,
            }
        }
        if self.announcement.is_some() && self.announce_at <= now {
            self.announce_again(now);
        }
        if self.lonely() && self.lonely_at <= now {
            self.announce_to_the_dead(now);
        }
    }

    /// Asks to join whoever this is.
    pub(super) fn announce_to(&mut self, peer: Identity, now: Instant) {
        if self.left || peer.node == self.identity().node {
            return;
        }
        if let Err(error) = self.foca.announce(peer, &mut self.runtime) {
            warn!(%peer, %error, "cannot announce to a peer");
        }
        self.absorb(now);
    }

    /// Tells the others which layout this node holds, now and again and again.
    pub(super) fn announce_layout(&mut self, version: LayoutVersion, digest: u64, now: Instant) {
        self.announcement = Some((version, digest));
        if !self.left {
            self.announce_again(now);
        }
    }

    /// Tells some peers that this node goes, and is deaf from then on.
    pub(super) fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            debug!(%error, "leaving without a word");
        }
        for _ in 0..LEAVE_ROUNDS {
            if let Err(error) = self.foca.gossip(&mut self.runtime) {
                debug!(%error, "leaving with fewer words");
            }
        }
        self.absorb(now);
        self.left = true;
        self.timers.clear();
    }

    /// The next datagram to send.
    pub(super) fn poll_send(&mut self) -> Option<(NodeId, Bytes)> {
        self.outbox.pop_front()
    }

    /// The next address of a peer that may be new. To be asked for before what is to be sent.
    pub(super) fn poll_learned(&mut self) -> Option<(NodeId, SocketAddr)> {
        self.learned.pop_front()
    }

    /// Publishes the verdicts that are due; gives them if any changed.
    pub(super) fn poll_liveness(&mut self, now: Instant) -> Option<Arc<Liveness>> {
        let changed = self.verdicts.settle(now, |node| self.directory.get(node).map(|peer| peer.addr));
        changed.then(|| self.verdicts.published().clone())
    }

    /// What is published.
    pub(super) fn liveness(&self) -> &Arc<Liveness> {
        self.verdicts.published()
    }

    /// What every node says it holds, if any of it has changed since the last call.
    pub(super) fn poll_digests(&self) -> Option<LayoutDigests> {
        self.digests.changed()
    }

    /// A later life of this very node than the one it lives in: its data directory was rolled back or lost, or the name
    /// is used twice. Without outliving that one nobody would ever listen to it again.
    fn outlive<'a>(&mut self, names: impl Iterator<Item = &'a Identity>, now: Instant) {
        let me = *self.identity();
        let later = names.filter(|name| name.node == me.node && name.beats(&me));
        let latest = later.reduce(|one, other| if one.beats(other) { one } else { other });
        let Some(latest) = latest else { return };
        if now < self.adopt_after {
            return;
        }
        self.adopt_after = now + ADOPT_EVERY;
        let Some(next) = me.after(latest) else { return };
        sometimes!("membership: outlived a later life of its own");
        warn!(
            me = %me, other = %latest,
            "a later life of this node is known to others: its data directory has gone back in time, or another process runs under its name"
        );
        if let Err(error) = self.foca.change_identity(next, &mut self.runtime) {
            warn!(%error, "cannot take the next identity");
        }
        self.absorb(now);
        self.announce_at = now;
    }

    /// The packet without members that there is no room for, if there are any.
    fn trim(&mut self, packet: &Packet<'_>, now: Instant) -> Result<Option<Vec<u8>>, Refused> {
        let known = self.foca.iter_membership_state();
        let room = PEERS_MAX.saturating_sub(known.len());
        if packet.members.len() < room {
            return Ok(None);
        }
        let known: std::collections::BTreeSet<NodeId> = known.map(|member| member.id().node).collect();
        let me = self.identity().node;
        let stranger = |node: NodeId| node != me && !known.contains(&node);
        let (mut room, sender) = (room, packet.header.src.node);
        let mut members = packet.members.clone();
        if stranger(sender) {
            let Some(less) = room.checked_sub(1) else {
                self.complain_of_crowd(sender, now);
                return Err(Refused(format!("{PEERS_MAX} peers are known already")));
            };
            room = less;
        }
        members.retain(|member| {
            let fits = !stranger(member.id().node) || room > 0;
            room -= usize::from(fits && stranger(member.id().node));
            fits
        });
        if members.len() == packet.members.len() {
            return Ok(None);
        }
        self.complain_of_crowd(sender, now);
        packet.with_members(&members).map(Some)
    }

    fn complain_of_crowd(&mut self, from: NodeId, now: Instant) {
        if self.complain_after <= now {
            self.complain_after = now + COMPLAIN_EVERY;
            warn!(%from, "refusing new peers: {PEERS_MAX} are known already");
        }
    }

    fn fire(&mut self, timer: Timer<Identity>, now: Instant) {
        let removed = match &timer {
            Timer::RemoveDown(peer) => Some(peer.node),
            Timer::ProbeRandomMember(_)
            | Timer::SendIndirectProbe { .. }
            | Timer::ChangeSuspectToDown { .. }
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_) => None,
        };
        if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
            warn!(%error, "a probe cycle went wrong");
        }
        if let Some(node) = removed {
            self.removals.remove(&node);
            if !self.foca.iter_membership_state().any(|member| member.id().node == node) {
                info!(%node, "forgetting a peer that has been down for a day");
                self.directory.remove(&node);
                self.verdicts.forget(node);
                self.digests.forget(node);
            }
        }
        self.absorb(now);
    }

    /// Takes what foca has put out.
    fn absorb(&mut self, now: Instant) {
        while let Some(notification) = self.runtime.to_notify() {
            self.heed(notification, now);
        }
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            self.timers_submitted += 1;
            let key = (now + delay, self.timers_submitted);
            if let Timer::RemoveDown(peer) = &timer
                && let Some(older) = self.removals.insert(peer.node, key)
            {
                self.timers.remove(&older);
            }
            self.timers.insert(key, timer);
        }
        while let Some((peer, data)) = self.runtime.to_send() {
            if self.directory.get(&peer.node).is_none_or(|known| peer.beats(known)) {
                self.learned.push_back((peer.node, peer.addr));
            }
            self.outbox.push_back((peer.node, data));
        }
    }

    fn heed(&mut self, notification: OwnedNotification<Identity>, now: Instant) {
        match notification {
            OwnedNotification::MemberUp(peer) => {
                debug!(%peer, "believed up");
                self.meet(peer);
                self.verdicts.hear(peer.node, true, now);
                self.announce_at = self.announce_at.min(now + ANNOUNCE_TO_NEW_AFTER);
                self.resize();
            }
            OwnedNotification::MemberDown(peer) => {
                debug!(%peer, "believed down");
                self.verdicts.hear(peer.node, false, now);
                self.resize();
            }
            OwnedNotification::Rename(old, new) => {
                debug!(%old, %new, "a peer began another life");
                if self.directory.contains_key(&new.node) {
                    self.meet(new);
                }
            }
            OwnedNotification::Rejoin(me) => info!(%me, "was believed down by others, came back under a new identity"),
            OwnedNotification::Active => debug!("has company"),
            OwnedNotification::Idle => {
                debug!("is alone");
                self.lonely_at = now + LONELY_EVERY;
            }
            OwnedNotification::Defunct => debug!("takes no part any more"),
        }
    }

    fn meet(&mut self, peer: Identity) {
        if self.directory.insert(peer.node, peer).is_none_or(|known| known.addr != peer.addr) {
            self.learned.push_back((peer.node, peer.addr));
        }
    }

    /// Larger clusters need more retransmissions and more patience with a suspect.
    fn resize(&mut self) {
        let size = self.foca.num_members() + 1;
        if size != self.sized_for {
            self.sized_for = size;
            self.foca.set_config(config(size)).expect("only transmissions and patience differ, which may change");
        }
    }

    fn announce_again(&mut self, now: Instant) {
        let Some((version, digest)) = self.announcement else { return };
        self.announce_at = now + ANNOUNCE_EVERY;
        self.announcements += 1;
        let Identity { node, boot, .. } = *self.identity();
        let announcement = Announcement { node, stamp: (boot, self.announcements), version, digest };
        if let Err(error) = self.foca.add_broadcast(&announcement.encode()) {
            warn!(%error, "cannot announce the layout");
        }
    }

    /// Whether it knows only peers that it believes down. foca falls silent then; two nodes that were cut from one another
    /// would stay so for ever.
    fn lonely(&self) -> bool {
        self.alone() && !self.directory.is_empty()
    }

    fn announce_to_the_dead(&mut self, now: Instant) {
        self.lonely_at = now + LONELY_EVERY;
        let start = self.lonely_rounds % self.directory.len();
        self.lonely_rounds += LONELY_PEERS;
        let peers: Vec<Identity> =
            self.directory.values().cycle().skip(start).take(LONELY_PEERS.min(self.directory.len())).copied().collect();
        for peer in peers {
            self.announce_to(peer, now);
        }
    }
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("me", self.identity()).field("members", &self.foca.num_members()).finish()
    }
}

/// A datagram that was not taken in, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// foca's packet, taken apart: a header, a counted list of members, custom broadcasts.
struct Packet<'a> {
    header: Header<Identity>,
    members: Vec<Member<Identity>>,
    header_bytes: &'a [u8],
    broadcasts: &'a [u8],
}

impl<'a> Packet<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, Refused> {
        if data.len() > PACKET_LEN_MAX {
            return Err(Refused(format!("{} bytes, at most {PACKET_LEN_MAX} are allowed", data.len())));
        }
        let malformed = |error: super::identity::CodecError| Refused(format!("malformed: {error}"));
        let mut rest = data;
        let header = Codec.decode_header(&mut rest).map_err(malformed)?;
        let header_bytes = &data[..data.len() - rest.len()];
        let mut members = Vec::new();
        if header.message != Message::Broadcast && rest.len() >= 2 {
            for _ in 0..rest.get_u16() {
                members.push(Codec.decode_member(&mut rest).map_err(malformed)?);
            }
        }
        Ok(Self { header, members, header_bytes, broadcasts: rest })
    }

    /// Every identity that it tells of with authority enough to act on: whom it is for, and its members.
    fn names(&self) -> impl Iterator<Item = &Identity> {
        std::iter::once(&self.header.dst).chain(self.members.iter().map(Member::id))
    }

    fn with_members(&self, members: &[Member<Identity>]) -> Result<Vec<u8>, Refused> {
        let mut bytes = self.header_bytes.to_vec();
        bytes.put_u16(u16::try_from(members.len()).expect("fewer than the u16 that it was parsed with"));
        for member in members {
            Codec.encode_member(member, &mut bytes).map_err(|error| Refused(error.to_string()))?;
        }
        bytes.extend_from_slice(self.broadcasts);
        Ok(bytes)
    }
}

fn config(cluster_size: usize) -> foca::Config {
    let size = NonZeroU32::new(u32::try_from(cluster_size.max(5)).unwrap_or(u32::MAX)).expect("at least 5");
    let count = |n: usize| NonZeroUsize::new(n).expect("not zero");
    let mut config = foca::Config::new_lan(size);
    config.max_packet_size = count(PACKET_LEN_MAX);
    config.remove_down_after = Some(FORGET_AFTER);
    config.notify_down_members = true;
    config.max_transmissions = config.max_transmissions.max(TRANSMISSIONS_MIN);
    config.periodic_announce_to_down_members =
        Some(PeriodicParams { frequency: Duration::from_secs(5), num_members: count(2) });
    config
}

/// A QUIC datagram on a path with the smallest legal MTU of 1,200 bytes holds a little more.
const PACKET_LEN_MAX: usize = 1100;
/// Legal traffic keeps three per dead peer and a dozen besides; a flood is refused until some have fired.
const TIMERS_MAX: usize = 4 * PEERS_MAX;
/// Of 200 simulated crashes among five nodes, foca's own count (3) let 4 go unnoticed by one node for 5 s more, because the
/// rumour had died out before it came there and only the suspecting node has a timer.
const TRANSMISSIONS_MIN: NonZeroU8 = NonZeroU8::new(15).expect("not zero");
/// A day, as foca's authors recommend: long enough that no old rumour can bring the dead back.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// A broadcast reaches only those who are there; this is for those who came late.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
/// And this for those who have just come, together.
const ANNOUNCE_TO_NEW_AFTER: Duration = Duration::from_secs(1);
/// A peer that was cut off is back so soon after the cut ends, as the healing of the others takes about as long.
const LONELY_EVERY: Duration = Duration::from_secs(2);
/// As many as a probe asks for help.
const LONELY_PEERS: usize = 3;
/// Two processes with one name outbid one another no faster than this.
const ADOPT_EVERY: Duration = Duration::from_secs(1);
/// What is wrong once stays wrong for long, and gossip comes several times a second.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Each round tells three peers at random, who tell the others.
const LEAVE_ROUNDS: usize = 2;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::RngExt;

    use super::*;

    /// Nodes on a virtual clock and a network that delays, loses and cuts.
    struct World {
        start: Instant,
        now: Instant,
        nodes: Vec<Option<Swim>>,
        boots: Vec<u64>,
        wire: BTreeMap<(Instant, u64), (usize, NodeId, Bytes)>,
        sent: u64,
        cut: BTreeSet<(usize, usize)>,
        rng: StdRng,
        loss: f64,
        log: Vec<String>,
    }

    impl World {
        fn new(count: usize, seed: u64) -> Self {
            let start = Instant::now();
            let mut world = Self {
                start,
                now: start,
                nodes: (0..count).map(|_| None).collect(),
                boots: vec![0; count],
                wire: BTreeMap::new(),
                sent: 0,
                cut: BTreeSet::new(),
                rng: StdRng::seed_from_u64(seed),
                loss: 0.0,
                log: Vec::new(),
            };
            (0..count).for_each(|i| world.boot(i));
            world
        }

        fn boot(&mut self, i: usize) {
            self.boots[i] += 1;
            let seed = self.rng.random();
            let mut swim = Swim::new(identity(i, self.boots[i]), seed, self.now);
            if i > 0 || self.boots[i] > 1 {
                swim.announce_to(identity(usize::from(i == 0), 0), self.now);
            }
            self.nodes[i] = Some(swim);
        }

        fn run_for(&mut self, ms: u64) {
            let end = self.now + Duration::from_millis(ms);
            loop {
                self.flush();
                let timeout = self.nodes.iter().flatten().filter_map(Swim::poll_timeout).min();
                let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
                let Some(next) = timeout.into_iter().chain(arrival).min().filter(|next| *next <= end) else { break };
                self.now = self.now.max(next);
                while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                    let (to, from, data) = entry.remove();
                    if let Some(swim) = &mut self.nodes[to] {
                        let _ = swim.handle_data(from, &data, self.now);
                    }
                }
                for swim in self.nodes.iter_mut().flatten() {
                    swim.handle_timeout(self.now);
                }
            }
            self.now = end;
        }

        fn flush(&mut self) {
            for i in 0..self.nodes.len() {
                let Some(swim) = &mut self.nodes[i] else { continue };
                while swim.poll_learned().is_some() {}
                if let Some(liveness) = swim.poll_liveness(self.now) {
                    let up: Vec<_> = liveness.iter().map(|(node, state)| format!("{node}:{}", state.up)).collect();
                    self.log.push(format!("{:?} n{i} {}", self.now - self.start, up.join(" ")));
                }
                while let Some((to, data)) = swim.poll_send() {
                    let to = to.as_str()[1..].parse::<usize>().expect("a test node");
                    if self.cut.contains(&(i, to)) || self.rng.random_bool(self.loss) {
                        continue;
                    }
                    let at = self.now + Duration::from_millis(self.rng.random_range(1..6));
                    self.sent += 1;
                    self.wire.insert((at, self.sent), (to, name(i), data));
                }
            }
        }

        fn isolate(&mut self, i: usize) {
            let others = (0..self.nodes.len()).filter(|j| *j != i);
            self.cut.extend(others.flat_map(|j| [(i, j), (j, i)]));
        }

        /// Who is up in the eyes of `i`, as a string of names' numbers.
        fn up(&self, i: usize) -> String {
            let swim = self.nodes[i].as_ref().expect("it runs");
            swim.liveness().iter().filter(|(_, state)| state.up).map(|(node, _)| &node.as_str()[1..]).collect()
        }

        fn swim(&mut self, i: usize) -> &mut Swim {
            self.nodes[i].as_mut().expect("it runs")
        }
    }

    fn name(i: usize) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn identity(i: usize, boot: u64) -> Identity {
        let host = u8::try_from(i).expect("few test nodes");
        Identity::new(name(i), ([10, 0, 0, host], 7000).into(), boot)
    }

    #[test]
    fn five_nodes_find_each_other_through_one() {
        let mut world = World::new(5, 1);
        world.run_for(3000);
        for i in 0..5 {
            assert_eq!(world.up(i), "01234", "in the eyes of n{i}");
        }
    }

    #[test]
    fn a_crash_is_noticed_by_all_within_ten_seconds_and_a_restart_undoes_it() {
        for seed in 0..10 {
            let mut world = World::new(5, seed);
            world.run_for(5000);
            world.nodes[3] = None;
            world.run_for(1000);
            assert_eq!(world.up(0), "01234", "no hasty verdict");
            world.run_for(9000);
            for i in [0, 1, 2, 4] {
                assert_eq!(world.up(i), "0124", "seed {seed}, in the eyes of n{i}");
            }
            world.boot(3);
            world.run_for(2000);
            for i in 0..5 {
                assert_eq!(world.up(i), "01234", "seed {seed}, in the eyes of n{i}");
            }
        }
    }

    #[test]
    fn a_restart_before_anybody_noticed_is_not_published_as_down() {
        let mut world = World::new(5, 3);
        world.run_for(5000);
        let events = world.log.len();
        world.nodes[2] = None;
        world.run_for(500);
        world.boot(2);
        world.run_for(20_000);
        let news = world.log[events..].iter().filter(|line| !line.contains(" n2 ")).cloned().collect::<Vec<_>>();
        assert_eq!(news, Vec::<String>::new());
        assert_eq!(world.up(2), "01234");
    }

    #[test]
    fn a_healed_partition_of_one_against_four_settles_within_ten_seconds() {
        for seed in 0..10 {
            let mut world = World::new(5, seed);
            world.run_for(5000);
            world.isolate(4);
            world.run_for(30_000);
            assert_eq!((world.up(0).as_str(), world.up(4).as_str()), ("0123", "4"), "seed {seed}");
            world.cut.clear();
            world.run_for(10_000);
            for i in 0..5 {
                assert_eq!(world.up(i), "01234", "seed {seed}, in the eyes of n{i}");
            }
        }
    }

    #[test]
    fn two_nodes_that_gave_each_other_up_find_together_again() {
        let mut world = World::new(2, 7);
        world.run_for(3000);
        world.isolate(1);
        world.run_for(60_000);
        assert_eq!((world.up(0).as_str(), world.up(1).as_str()), ("0", "1"));
        world.cut.clear();
        world.run_for(10_000);
        assert_eq!((world.up(0).as_str(), world.up(1).as_str()), ("01", "01"));
    }

    #[test]
    fn loss_of_one_packet_in_five_brings_nobody_down() {
        let mut world = World::new(5, 11);
        world.run_for(5000);
        world.loss = 0.2;
        let events = world.log.len();
        world.run_for(60_000);
        assert_eq!(world.log[events..], [] as [String; 0]);
    }

    #[test]
    fn a_node_that_leaves_is_gone_at_once() {
        let mut world = World::new(5, 5);
        world.run_for(5000);
        let now = world.now;
        world.swim(1).leave(now);
        world.flush();
        assert_eq!(world.swim(1).poll_timeout(), None);
        world.nodes[1] = None;
        world.run_for(2500);
        for i in [0, 2, 3, 4] {
            assert_eq!(world.up(i), "0234", "in the eyes of n{i}");
        }
    }

    #[test]
    fn a_node_whose_boots_went_back_in_time_is_believed_again() {
        let mut world = World::new(4, 13);
        world.boots[2] = 40;
        world.boot(2);
        world.run_for(5000);
        world.nodes[2] = None;
        world.run_for(12_000);
        assert_eq!(world.up(0), "013");
        world.boots[2] = 0;
        world.boot(2);
        world.run_for(20_000);
        assert_eq!(world.swim(2).identity().boot, 41, "the wiped directory's 1 could never win");
        for i in 0..4 {
            assert_eq!(world.up(i), "0123", "in the eyes of n{i}");
        }
    }

    #[test]
    fn a_node_that_comes_back_elsewhere_is_known_under_its_new_address() {
        let mut world = World::new(3, 17);
        world.run_for(3000);
        let moved = Identity { addr: ([10, 9, 9, 9], 7001).into(), ..identity(2, 2) };
        let mut swim = Swim::new(moved, [9; 32], world.now);
        swim.announce_to(identity(0, 0), world.now);
        world.nodes[2] = Some(swim);
        world.run_for(3000);
        for i in 0..2 {
            assert_eq!(world.swim(i).liveness()[&name(2)].addr, moved.addr, "in the eyes of n{i}");
        }
    }

    #[test]
    fn layout_announcements_reach_everybody_also_who_comes_late() {
        let mut world = World::new(5, 19);
        world.nodes[4] = None;
        world.run_for(3000);
        let now = world.now;
        world.swim(0).announce_layout(LayoutVersion(1), 77, now);
        world.run_for(3000);
        for i in 1..4 {
            let digests = world.swim(i).poll_digests().expect("news");
            assert_eq!(digests.get(&name(0)), Some(&(LayoutVersion(1), 77)), "in the eyes of n{i}");
        }
        world.boot(4);
        world.run_for(5000);
        let digests = world.swim(4).poll_digests().expect("news");
        assert_eq!(digests.get(&name(0)), Some(&(LayoutVersion(1), 77)));
    }

    #[test]
    fn the_same_seed_tells_the_same_story() {
        let story = |seed| {
            let mut world = World::new(5, seed);
            world.loss = 0.1;
            world.run_for(5000);
            world.isolate(2);
            world.nodes[1] = None;
            world.run_for(15_000);
            world.cut.clear();
            world.boot(1);
            world.run_for(15_000);
            (world.log, world.sent)
        };
        assert_eq!(story(23), story(23));
        assert_ne!(story(23), story(24));
    }

    #[test]
    fn nobody_speaks_in_another_name() {
        let mut world = World::new(3, 29);
        world.run_for(3000);
        let now = world.now;
        world.swim(1).announce_to(identity(0, 1), now);
        let (_, data) = world.swim(1).poll_send().expect("an announcement");
        let refused = world.swim(0).handle_data(name(2), &data, now).expect_err("n2 is not n1");
        assert!(refused.to_string().contains("n2 speaks in the name of n1"), "{refused}");
        world.swim(0).handle_data(name(1), &data, now).expect("n1 is");
    }

    #[test]
    fn a_crowd_is_refused_without_hurting_those_who_are_known() {
        let now = Instant::now();
        let mut swim = Swim::new(identity(0, 1), [0; 32], now);
        let crowd =
            |i: usize| Identity::new(NodeId::new(&format!("x{i}")).expect("legal"), ([10, 0, 0, 9], 7000).into(), 1);
        let ping = |src: Identity, members: &[Member<Identity>]| {
            let header = Header { src, src_incarnation: 0, dst: identity(0, 1), message: Message::Ping(1) };
            let mut bytes = Vec::new();
            Codec.encode_header(&header, &mut bytes).expect("a Vec grows");
            bytes.put_u16(u16::try_from(members.len()).expect("few"));
            members.iter().for_each(|member| Codec.encode_member(member, &mut bytes).expect("a Vec grows"));
            bytes
        };
        for first in (1..PEERS_MAX + 200).step_by(20) {
            let members: Vec<_> = (first..first + 20).map(|i| Member::alive(crowd(i))).collect();
            swim.handle_data(crowd(0).node, &ping(crowd(0), &members), now).expect("the sender is known");
            while let Some((to, _)) = swim.poll_send() {
                assert_eq!(to, crowd(0).node, "it still gets its answers");
            }
        }
        assert_eq!(swim.foca.iter_membership_state().len(), PEERS_MAX);
        let stranger = crowd(PEERS_MAX * 2);
        let refused = swim.handle_data(stranger.node, &ping(stranger, &[]), now).expect_err("no room");
        assert!(refused.to_string().contains("1000 peers"), "{refused}");
        swim.poll_liveness(now);
        assert_eq!(swim.liveness().len(), PEERS_MAX + 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            let mut swim = Swim::new(identity(0, 1), [0; 32], Instant::now());
            let _ = swim.handle_data(name(1), &bytes, Instant::now());
            prop_assert!(swim.alone() || bytes.len() > 20);
        }

        #[test]
        fn damaged_packets_never_panic(seed: u64, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut world = World::new(3, seed);
            world.run_for(1500);
            let now = world.now;
            for (_, (to, from, data)) in std::mem::take(&mut world.wire) {
                let mut data = data.to_vec();
                for (at, value) in &flips {
                    let at = at.index(data.len());
                    data[at] = *value;
                }
                let _ = world.swim(to).handle_data(from, &data, now);
            }
            world.run_for(3000);
        }
    }
}

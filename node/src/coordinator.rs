//! Runs client requests for data: checks them, forwards what belongs to others, and drives the state machines of
//! [`quorate_core::put`] and [`quorate_core::get`] over the own replica and the peers.
//!
//! A request is coordinated by a primary of its key. A node that is none forwards it, once: to the best primary it can
//! reach, to another one only if no byte of it was sent (or, for a read, if it failed), so that a write never has two
//! coordinators after an ambiguous failure. When no primary can be reached at all the node coordinates a sloppy request itself,
//! with the hints of the fallbacks; but a write of which an earlier attempt may have been minted elsewhere only if it is here
//! that it was.
//!
//! Modules in reading order: `write` and `read` drive one request each, `monotonic` and `repair` write back what a read has
//! found, `hedge` says when a replica is late, `background` holds what goes on after the reply, `stats` the counters.

mod write;

mod errands;

mod read;

mod monotonic;
mod repair;

mod hedge;

mod background;
mod stats;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_transport::budget::{NoRoom, Room};
use quorate_wire::Quorum;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, LayoutVersion, NodeId, OpId, Partition, key_hash};
use quorate_wire::key::KeyParts;
use quorate_wire::{
    Acks, Asked, BucketId, CONTEXT_LEN_MAX, Evidence, Failure, KEY_LEN_MAX, Key, Located, Located1, NotApplied,
    QuorumReport, Reply, Request, RequestBody, Response, RouteTable, VALUE_LEN_MAX, Write,
};
use quorate_wire::{buggify, sometimes};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use self::background::Background;
use self::errands::{Errands, Whose};
use self::hedge::Hedging;
pub(crate) use self::read::{SCAN_LIMIT_MAX, entries_len};
use self::repair::Repairs;
pub(crate) use self::stats::RequestStats;
use crate::layouts::{Current, Layouts};
use crate::membership::{Liveness, Membership};
use crate::peer_wire::Forward;
use crate::peers::{AskError, Peers};
use crate::recovery::Reading;
use crate::replica::Replica;
use crate::request_memory::{OVERLOADED, RECORD_LEN};
use quorate_core::context_keys::Rejected;
use quorate_core::layout::Layout;
use quorate_core::ownership::{Label, Role, View};
use quorate_core::quorum::Group;
use quorate_core::transition::LIVE_MAX;
use quorate_core::version::Context;

/// What a coordinator is made of.
pub(crate) struct CoordinatorParts {
    pub(crate) me: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) layouts: Layouts,
    pub(crate) membership: Membership,
    pub(crate) replica: Replica,
    pub(crate) peers: Peers,
    pub(crate) defaults: Defaults,
    pub(crate) mechanisms: Mechanisms,
    pub(crate) wall_clock: WallClock,
}

/// The quorums of requests that name none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) r: Quorum,
    pub(crate) w: Quorum,
}

/// Where a request came from, which decides whether it may be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From a client: may be forwarded once.
    Client,
    /// Forwarded by a peer: never forwarded again.
    Peer(NodeId),
}

/// Runs requests for data on one node. Clones are the same coordinator.
#[derive(Clone)]
pub(crate) struct Coordinator(Arc<Inner>);

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coordinator({})", self.0.me)
    }
}

struct Inner {
    me: NodeId,
    cluster: ClusterId,
    layouts: Layouts,
    liveness: watch::Receiver<Arc<Liveness>>,
    replica: Replica,
    peers: Peers,
    defaults: Defaults,
    mechanisms: Mechanisms,
    wall_clock: WallClock,
    background: Background,
    hedging: Hedging,
    repairs: Repairs,
    errands: Errands,
    stats: RequestStats,
    started: Instant,
    /// When a client was last served here, directly or through a peer, in milliseconds after `started`.
    last_served_ms: AtomicU64,
}

/// One request on this node: when it came, how long it may take, and where its key lives.
#[derive(Debug, Clone)]
struct Turn {
    request_id: u64,
    origin: Origin,
    start: Instant,
    /// When this node answers at the latest: before its client, or the node that forwarded it, gives up.
    deadline: Instant,
    current: Arc<Current>,
    partition: Partition,
    /// Who serves the partition.
    view: Arc<View>,
    /// The owners of each live version, and how many of them the request needs.
    groups: Arc<[Group]>,
    /// What may be used for it; as long as anything goes on for it.
    room: Room,
}

impl Coordinator {
    pub(crate) fn new(parts: CoordinatorParts) -> Self {
        let CoordinatorParts { me, cluster, layouts, membership, replica, peers, defaults, mechanisms, wall_clock } =
            parts;
        Self(Arc::new(Inner {
            me,
            cluster,
            layouts,
            liveness: membership.liveness(),
            replica,
            peers,
            defaults,
            mechanisms,
            wall_clock,
            background: Background::new(),
            hedging: Hedging::new(),
            repairs: Repairs::new(),
            errands: Errands::new(Instant::now()),
            stats: RequestStats::default(),
            started: Instant::now(),
            last_served_ms: AtomicU64::new(0),
        }))
    }

    /// Runs a request for data: a write, a read, a scan or a question where a key lives.
    ///
    /// `timeout` is what is left for the whole request where it came from; the answer is made somewhat earlier, so that it
    /// arrives before that. What is read and written for it is taken from `room`. Dropping the future does not stop a write.
    ///
    /// # Errors
    /// [`Failure::NotApplied`] of everything that was refused before a mint, [`Failure::Indeterminate`] of a write after it.
    pub(crate) async fn handle(
        &self,
        request: &Request,
        timeout: Duration,
        origin: Origin,
        room: Room,
    ) -> Result<Reply, Failure> {
        let id = request.request_id;
        let span = match origin {
            Origin::Client => tracing::debug_span!("request", id = %format_args!("{id:016x}")),
            Origin::Peer(by) => tracing::debug_span!("request", id = %format_args!("{id:016x}"), forwarded_by = %by),
        };
        self.run(request, timeout, origin, room).instrument(span).await
    }

    /// Where a key lives, as this node knows it.
    ///
    /// # Errors
    /// When the key is not legal, or there is no layout.
    pub(crate) fn locate(&self, key: &Key) -> Result<Located, NotApplied> {
        check_served(key)?;
        let current = self.0.current()?;
        let partition = current.partition_of(key);
        let view = current.view(partition);
        let liveness = self.0.liveness.borrow().clone();
        let place = |node: &NodeId| {
            let member = current.layout.member(*node)?;
            let state = liveness.get(node);
            let addr = state.map_or(member.addr, |state| state.addr);
            let up = *node == self.0.me || state.is_some_and(|state| state.up);
            Some(Located1 { node: *node, addr, zone: member.zone.clone(), up })
        };
        Ok(Located {
            hash: key_hash(key),
            partition,
            layout: current.layout.version,
            preference: current.preference_list(partition).iter().filter_map(place).collect(),
            n: view.n(),
        })
    }

    /// The route table of a layout, with the addresses at which the members are now: the layout names those at which they were when it
    /// was made.
    pub(crate) fn routes(&self, current: &Current) -> RouteTable {
        let mut table = (*current.table).clone();
        let liveness = self.0.liveness.borrow().clone();
        for (node, addr) in &mut table.members {
            *addr = liveness.get(node).map_or(*addr, |state| state.addr);
        }
        table
    }

    /// The wall clock, for timestamps that people read.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    /// A client is being served: here, or by a peer that asks this node for its part.
    pub(crate) fn note_service(&self) {
        self.0.last_served_ms.store(self.0.uptime_ms(), Ordering::Relaxed);
    }

    /// Whether clients were served a moment ago, so that what can wait should take its time.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.uptime_ms().saturating_sub(self.0.last_served_ms.load(Ordering::Relaxed)) < BUSY_MS
    }

    /// Counters of what this node has coordinated, refused and forwarded.
    pub(crate) fn stats(&self) -> &RequestStats {
        &self.0.stats
    }

    /// Takes no more writes, gives what is running or goes on after its reply so much time, then ends it.
    pub(crate) async fn shutdown(&self, grace: Duration) {
        self.0.background.shutdown(grace).await;
    }

    /// Runs a request, and once more from the beginning when it has failed and its partition has other owners by then (rule L10): what was
    /// minted keeps its dot, which the repetition finds by the operation's id.
    async fn run(&self, request: &Request, timeout: Duration, origin: Origin, room: Room) -> Result<Reply, Failure> {
        let start = Instant::now();
        let deadline = start + timeout.saturating_sub((timeout / HOP_MARGIN_SHARE).min(HOP_MARGIN_MAX));
        let deadline = buggify!("coordinator: the answer is due early", deadline, start + timeout / 4);
        self.note_service();
        if let Origin::Peer(_) = origin {
            self.0.stats.forwarded_in.add(1);
        }
        let mut request = Cow::Borrowed(request);
        let (mut attempts, mut minted) = (1, None);
        loop {
            let planned = self.0.layouts.current();
            let outcome = match (self.attempt(&request, (start, deadline), origin, &room).await, minted) {
                // What an earlier attempt has minted is there, whatever is said of this one.
                (Err(Failure::NotApplied(refusal)), Some((op_id, need))) => {
                    Err(Failure::Indeterminate { op_id, need, acks: Acks::default(), why: plain(&refusal) })
                }
                (outcome, _) => outcome,
            };
            let Err(failure) = &outcome else { return outcome };
            if attempts == ATTEMPTS_MAX || !self.0.has_moved(planned, &request, failure, deadline).await {
                return outcome;
            }
            sometimes!("coordinator: a request began anew under another layout");
            attempts += 1;
            room.release();
            if let Failure::Indeterminate { op_id, need, .. } = failure
                && let RequestBody::Write(write) = &mut request.to_mut().body
            {
                let since = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                write.first_sent_ms = Some(write.first_sent_ms.unwrap_or(0).saturating_add(since));
                minted = Some((*op_id, *need));
            }
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        (start, deadline): (Instant, Instant),
        origin: Origin,
        room: &Room,
    ) -> Result<Reply, Failure> {
        let turn = |current: Arc<Current>, partition, groups: Groups, quorum| {
            let view = current.view(partition);
            let groups = groups(&view, quorum)?.into();
            let (request_id, room) = (request.request_id, room.clone());
            Ok(Turn { request_id, origin, start, deadline, current, partition, view, groups, room })
        };
        match &request.body {
            RequestBody::Write(write) => {
                let planned = match check_write(write).and_then(|()| self.0.current()) {
                    Ok(current) => {
                        let partition = current.partition_of(&write.key);
                        turn(current, partition, View::write_groups, write.w.unwrap_or(self.0.defaults.w))
                    }
                    Err(refusal) => Err(refusal),
                };
                let planned = match planned {
                    Ok(turn) => self.0.cause(write, deadline).await.map(|cause| (turn, cause)),
                    Err(refusal) => Err(refusal),
                };
                let (turn, cause) = planned.inspect_err(|_| self.0.stats.puts_not_applied.add(1))?;
                if self.0.is_mine(&turn, write).await? {
                    self.0.may_repeat(&turn, write)?;
                    return write::coordinate(&self.0, turn, write, cause).await;
                }
                let former = write.first_sent_ms.is_some() && !turn.counts(self.0.me);
                if former && let Some(passed_on) = write::pass_on(&self.0, &turn, write, &cause).await {
                    return passed_on;
                }
                let whose = self.0.whose(write);
                let to = match whose {
                    Whose::Nobodys => self.0.nearest_primaries(&turn),
                    Whose::Of(node) => vec![node],
                    Whose::Forgotten => Vec::new(),
                };
                match self.0.forward(request, &turn, Some(write.op_id), to).await {
                    Forwarded::Answer(answer) => return answer,
                    Forwarded::Nobody(refusal) => self.0.may_coordinate(&turn, write, whose, refusal)?,
                }
                sometimes!("write: a fallback coordinated", !turn.counts(self.0.me));
                self.0.stats.fallback_coordinated.add(1);
                self.0.errands.note(write.op_id, self.0.me, Instant::now());
                let coordinated = write::coordinate(&self.0, turn, write, cause).await;
                if let (Err(Failure::NotApplied(_)), None) = (&coordinated, write.first_sent_ms) {
                    self.0.errands.settle(write.op_id);
                }
                coordinated
            }
            RequestBody::Read(read) => {
                let planned = check_served(&read.key).and_then(|()| {
                    let current = self.0.current()?;
                    let partition = current.partition_of(&read.key);
                    turn(current, partition, View::read_groups, read.r.unwrap_or(self.0.defaults.r))
                });
                let turn = planned.inspect_err(|_| self.0.stats.gets_failed.add(1))?;
                if !self.0.is_primary(&turn) {
                    match self.0.forward(request, &turn, None, self.0.nearest_primaries(&turn)).await {
                        Forwarded::Answer(answer) => return answer,
                        Forwarded::Nobody(refusal) if read.strict || !self.0.stands_in(&turn) => {
                            return Err(refusal.into());
                        }
                        Forwarded::Nobody(_) => {}
                    }
                    sometimes!("read: a fallback coordinated", !turn.view.is_primary(self.0.me));
                    self.0.stats.fallback_coordinated.add(1);
                }
                read::coordinate_read(&self.0, &turn, read).await.map_err(Failure::from)
            }
            RequestBody::Scan(scan) => {
                let planned = self.0.current().and_then(|current| {
                    read::check_scan(scan, &current)?;
                    turn(current, scan.from.partition, View::read_groups, scan.r.unwrap_or(self.0.defaults.r))
                });
                let turn = planned.inspect_err(|_| self.0.stats.scans_failed.add(1))?;
                // It goes through partitions of many primaries, so that whoever is asked does it.
                read::coordinate_scan(&self.0, &turn, scan).await.map_err(Failure::from)
            }
            RequestBody::Locate { key } => Ok(Reply::Located(self.locate(key)?)),
            RequestBody::Route | RequestBody::Status | RequestBody::Layout(_) | RequestBody::Repair(_) => {
                let why = "only requests for data are coordinated or forwarded: write, read, scan, locate";
                Err(NotApplied::Unsupported { why: why.into() }.into())
            }
        }
    }
}

/// The owners of a partition whose quorum a request needs.
type Groups = fn(&View, Quorum) -> Result<Vec<Group>, NotApplied>;

/// What came of forwarding a request.
enum Forwarded {
    /// A primary has answered, or may have begun.
    Answer(Result<Reply, Failure>),
    /// No primary can be reached or serves: definitely nothing happened.
    Nobody(NotApplied),
}

/// Which mechanisms a node uses. All of them belong to what it promises; a simulation leaves some out, because each of them
/// hides what is wrong with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mechanisms {
    /// Fallbacks stand in for primaries, and keep hints for them.
    pub fallbacks: bool,
    /// Reads mend the replicas that they find stale.
    pub read_repair: bool,
}

impl Default for Mechanisms {
    fn default() -> Self {
        Self { fallbacks: true, read_repair: true }
    }
}

/// Tells the time of day, for timestamps that people read.
pub(crate) type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

impl Inner {
    /// # Errors
    /// When this node has no layout.
    fn current(&self) -> Result<Arc<Current>, NotApplied> {
        self.layouts.current().ok_or_else(|| {
            let why = self.layouts.not_serving().unwrap_or_else(|| "there is no layout yet".into());
            NotApplied::NotServing { node: self.me, why }
        })
    }

    /// Whether a request that has failed may do better now, because this node has learned of other owners of its partition. If others have
    /// told of a newer layout meanwhile, that is waited for.
    async fn has_moved(
        &self,
        planned: Option<Arc<Current>>,
        request: &Request,
        failure: &Failure,
        deadline: Instant,
    ) -> bool {
        let about_nodes = match failure {
            Failure::NotApplied(refusal) => is_of_one_node(refusal),
            Failure::Indeterminate { .. } => true,
        };
        let Some(planned) = planned.filter(|_| about_nodes) else { return false };
        let left = deadline.saturating_duration_since(Instant::now());
        self.layouts.catch_up(Instant::now() + left / 2).await;
        let Some(current) = self.layouts.current() else { return false };
        let moved = |partition: &Partition| current.view(*partition) != planned.view(*partition);
        let moved = match &request.body {
            RequestBody::Write(write) => moved(&current.partition_of(&write.key)),
            RequestBody::Read(read) => moved(&current.partition_of(&read.key)),
            RequestBody::Scan(scan) => {
                let until = scan.until.0.min(current.partitions());
                (scan.from.partition.0..until).map(Partition).any(|partition| moved(&partition))
            }
            _ => false,
        };
        moved && Instant::now() < deadline
    }

    /// Takes note of a peer that refused a read because it has closed the version that was asked for.
    fn note_closed<T>(&self, (from, at): (NodeId, LayoutVersion), partition: Partition, reply: &Result<T, AskError>) {
        if let Err(AskError::Refused(NotApplied::StaleLayout { need, had })) = reply {
            // What was refused is the version of the read, or only that what is held counts for a write of it.
            match *had == at {
                true => self.layouts.hear_closed(from, partition, *need),
                false => self.layouts.hear_of(*need),
            }
        }
    }

    /// Takes note of a peer that refused a write because it knows a newer layout, or that an older one which the write names is over.
    fn note_stale<T>(&self, label: Label, reply: &Result<T, AskError>) {
        match reply {
            Err(AskError::Refused(NotApplied::StaleLayout { need, .. })) if *need > label.high => {
                self.layouts.hear_of(*need);
            }
            Err(AskError::Refused(NotApplied::StaleLayout { need, .. })) => self.layouts.hear_settled(*need),
            _ => {}
        }
    }

    /// What a write says that it replaces.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    async fn cause(&self, write: &Write, deadline: Instant) -> Result<Context, NotApplied> {
        match &write.context {
            None => Ok(Context::new()),
            Some(sealed) => self.open(sealed, &write.key, deadline).await,
        }
    }

    /// A context as clients get it.
    fn seal(&self, context: &Context, key: &[u8]) -> Blob {
        Blob(self.layouts.context_keys().seal(context, self.cluster, key))
    }

    /// A context as a client sent it (rule V5). If this node does not know the key that it was issued under, others may.
    ///
    /// # Errors
    /// [`NotApplied::BadContext`] if no node that can be asked has issued it for this key.
    async fn open(&self, sealed: &Blob, key: &[u8], deadline: Instant) -> Result<Context, NotApplied> {
        let mut rejected = match self.layouts.context_keys().open(sealed, self.cluster, key) {
            Ok(context) => return Ok(context),
            Err(rejected) => rejected,
        };
        if let Rejected::UnknownKey(name) = &rejected {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.layouts.look_for(name, left / 2).await {
                match self.layouts.context_keys().open(sealed, self.cluster, key) {
                    Ok(context) => return Ok(context),
                    Err(again) => rejected = again,
                }
            }
        }
        sometimes!("contexts: one was refused that no node had issued");
        let why = match rejected {
            Rejected::Bad(why) => why,
            Rejected::UnknownKey(name) => format!(
                "it claims to have been issued under context key {name}, which neither {} nor a node that it can ask knows",
                self.me
            ),
        };
        Err(NotApplied::BadContext { why })
    }

    /// Whether this node may coordinate a read: as an owner under any live version.
    fn is_primary(&self, turn: &Turn) -> bool {
        turn.view.is_primary(self.me) && !self.forwards(turn)
    }

    fn forwards(&self, turn: &Turn) -> bool {
        turn.origin == Origin::Client && buggify!("coordinator: a primary forwards a client's request")
    }

    /// Whether a node may be there, as far as the failure detector and the connections know. A node is not ruled out only because
    /// gossip has not told of it yet.
    fn is_reachable(&self, node: NodeId) -> bool {
        if node != self.me && buggify!("coordinator: somebody who is there is taken for gone") {
            return false;
        }
        if buggify!("coordinator: somebody who is gone is taken for there") {
            return true;
        }
        node == self.me
            || (self.liveness.borrow().get(&node).is_none_or(|state| state.up) && !self.peers.link_down(node))
    }

    /// The primaries of a request, best first: this node, then those that are up, then by round trip and preference.
    fn nearest_primaries(&self, turn: &Turn) -> Vec<NodeId> {
        let mut nearest = turn.view.primaries().to_vec();
        nearest.retain(|node| turn.counts(*node));
        nearest.sort_by_cached_key(|node| {
            let rtt = self.peers.rtt(*node).unwrap_or(Duration::MAX);
            (*node != self.me, Reverse(self.is_reachable(*node)), rtt)
        });
        if buggify!("coordinator: the worst primary goes first") {
            nearest.reverse();
        }
        nearest
    }

    /// Whether this node can stand in for the primaries of a request: it is a member and none of them.
    fn stands_in(&self, turn: &Turn) -> bool {
        let layout = &turn.current.layout;
        turn.origin == Origin::Client && self.mechanisms.fallbacks && layout.member(self.me).is_some()
    }

    /// The fallbacks of a request that can be reached, best first, without this node.
    fn fallbacks(&self, turn: &Turn) -> Vec<NodeId> {
        if !self.mechanisms.fallbacks {
            return Vec::new();
        }
        let fallbacks = turn.view.fallbacks().iter().copied();
        fallbacks.filter(|node| *node != self.me && self.is_reachable(*node)).collect()
    }

    /// Whether this node coordinates a write: as a primary, or because it has minted or keeps it already, as a fallback.
    async fn is_mine(&self, turn: &Turn, write: &Write) -> Result<bool, NotApplied> {
        let (retry, primary) = (write.first_sent_ms.is_some(), turn.counts(self.me));
        match self.whose(write) {
            Whose::Of(node) => return Ok(node == self.me),
            // What a primary is asked for again it may be minting at the moment.
            Whose::Nobodys | Whose::Forgotten if primary => {
                return Ok(retry || !self.forwards(turn));
            }
            Whose::Nobodys | Whose::Forgotten => {}
        }
        if !retry || write.strict || !self.stands_in(turn) {
            return Ok(false);
        }
        self.replica.knows_in_hints(turn.partition, &write.key, turn.view.primaries(), write.op_id).await
    }

    /// Whether this node may coordinate again what is its own: as a primary always. What it has minted as a fallback, in a hint, may be
    /// handed over at any time, so that nobody may mint it anew, not even a primary; and a fallback counts for nothing in a strict
    /// write. So whoever repeats it as a strict one can only be told that its outcome is unknown.
    fn may_repeat(&self, turn: &Turn, write: &Write) -> Result<(), Failure> {
        if turn.counts(self.me) || (!write.strict && self.mechanisms.fallbacks) {
            return Ok(());
        }
        sometimes!("write: a strict repetition of what a fallback had minted");
        let why = format!(
            "{} may have minted an earlier attempt as a fallback and keeps it for a primary, but only primaries count in a strict \
             write; repeat it without `strict`, or read the key later",
            self.me
        );
        Err(turn.unknown(write.op_id, why))
    }

    /// Who may have minted an earlier attempt of a write that was passed on from here.
    fn whose(&self, write: &Write) -> Whose {
        let first_sent = write.first_sent_ms.map(Duration::from_millis);
        first_sent.map_or(Whose::Nobodys, |first_sent| self.errands.whose(write.op_id, first_sent, Instant::now()))
    }

    /// Whether this node may mint a write that nobody was found for.
    fn may_coordinate(&self, turn: &Turn, write: &Write, whose: Whose, refusal: NotApplied) -> Result<(), Failure> {
        let unknown = |why: String| turn.unknown(write.op_id, why);
        match whose {
            Whose::Nobodys => {}
            Whose::Of(node) => {
                let why =
                    format!("{node} may have minted an earlier attempt, and cannot be asked now: {}", plain(&refusal));
                return Err(unknown(why));
            }
            Whose::Forgotten => {
                sometimes!("forward: a retry of what this node would not remember");
                let why = "an earlier attempt may have been passed on from here, and this node has started or forgotten since";
                return Err(unknown(why.into()));
            }
        }
        if write.strict || !self.stands_in(turn) {
            return Err(refusal.into());
        }
        if write.first_sent_ms.is_some() && !turn.counts(self.me) {
            // An earlier attempt may have been minted at a primary. A second dot here could outlive what replaces the first.
            sometimes!("write: a retry was not minted again by a fallback");
            let why = format!(
                "an earlier attempt may have reached a primary, and none can be asked now: {}",
                plain(&refusal)
            );
            return Err(unknown(why));
        }
        Ok(())
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now_ms(&self) -> u64 {
        let since = (self.wall_clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Hands a request to one of these, in their order. `op_id` is there for a write.
    async fn forward(&self, request: &Request, turn: &Turn, op_id: Option<OpId>, primaries: Vec<NodeId>) -> Forwarded {
        let definite = |refusal: NotApplied| Forwarded::Answer(Err(refusal.into()));
        if let Origin::Peer(by) = turn.origin {
            let why = format!(
                "{by} forwarded a request for partition {}, of which it is no primary in layout {}",
                turn.partition, turn.current.layout.version
            );
            return definite(NotApplied::NotServing { node: self.me, why });
        }
        let copied = match &request.body {
            RequestBody::Write(write) => write_len(write),
            _ => 0,
        };
        if copied > RECORD_LEN && turn.room.take(copied, turn.room_until()).await == Err(NoRoom) {
            return definite(OVERLOADED);
        }
        self.stats.forwards.add(1);
        sometimes!("forward: a write was forwarded", op_id.is_some());
        sometimes!("forward: a read was forwarded", matches!(request.body, RequestBody::Read(_)));
        // What is refused now says nothing of an earlier attempt.
        let first = matches!(&request.body, RequestBody::Write(write) if write.first_sent_ms.is_none());
        let settle = || op_id.filter(|_| first).into_iter().for_each(|op_id| self.errands.settle(op_id));
        let mut why = String::new();
        let mut candidates = primaries.iter().copied().enumerate();
        let mut next = candidates.next();
        while let Some((tried, primary)) = next {
            let left = turn.left();
            if left.is_zero() {
                break;
            }
            sometimes!("forward: a second primary was tried", tried > 0);
            // A write has one chance once a byte of it was sent; a read keeps time for the others.
            let share = if op_id.is_some() { left } else { left / (primaries.len() - tried) as u32 };
            if let Some(op_id) = op_id {
                // Before anything is sent: whoever waits for the answer may give up, and come again.
                self.errands.note(op_id, primary, Instant::now());
            }
            let forward = Forward { request: request.clone() };
            let (failed, ambiguous) = match self.peers.ask(primary, turn.request_id, forward, share).await {
                Ok(Response { body: Err(Failure::NotApplied(refusal)), .. }) | Err(AskError::Refused(refusal)) => {
                    if !is_of_one_node(&refusal) {
                        settle();
                        return definite(refusal);
                    }
                    (plain(&refusal), false)
                }
                Ok(Response { body, .. }) => {
                    let len = body.as_ref().map_or(0, reply_len);
                    // What a write has come to is told in any case. What was read is let go while it waits for room.
                    if op_id.is_some() || turn.room.covers(len, RECORD_LEN) {
                        return Forwarded::Answer(body);
                    }
                    drop(body);
                    turn.room.release();
                    match turn.room.take(len, turn.room_until()).await {
                        Ok(()) => continue,
                        Err(NoRoom) => return definite(OVERLOADED),
                    }
                }
                Err(AskError::NotSent(why)) => (why, false),
                Err(AskError::Unknown(why)) => (why, true),
            };
            tracing::debug!(%primary, why = %failed, "forwarding failed");
            let comma = if why.is_empty() { "" } else { ", " };
            why.push_str(&format!("{comma}{primary}: {failed}"));
            if !ambiguous {
                settle();
            }
            if let (Some(op_id), true) = (op_id, ambiguous) {
                sometimes!("forward: a write's outcome was lost on the way");
                return Forwarded::Answer(Err(turn.unknown(op_id, why)));
            }
            next = candidates.next();
        }
        // Whoever runs it here now needs something else.
        turn.room.release();
        let need = turn.need();
        match turn.left().is_zero() {
            true => definite(NotApplied::TimedOut { need, had: 0, why }),
            false => Forwarded::Nobody(NotApplied::Unavailable { need, alive: 0, why }),
        }
    }

    fn report(&self, turn: &Turn, need: u8, acks: Acks, floor: impl Fn(&Layout) -> u8) -> QuorumReport {
        let layout = turn.current.layout.version;
        QuorumReport { need, acks, degraded: acks.fallback > 0, below_floor: turn.is_below(floor), layout }
    }

    /// The part of a request's evidence that is the same for all; what a hedge, hint or repair adds is left empty.
    fn evidence(&self, turn: &Turn, asked: Vec<Asked>, decided_by: Option<NodeId>, dots: Vec<String>) -> Box<Evidence> {
        Box::new(Evidence {
            coordinator: self.me,
            forwarded_by: match turn.origin {
                Origin::Client => None,
                Origin::Peer(by) => Some(by),
            },
            partition: turn.partition,
            preference: turn.current.preference_list(turn.partition),
            n: turn.view.n(),
            asked,
            decided_by,
            dots,
            hedges: 0,
            hints: Vec::new(),
            repairs: Vec::new(),
            took_us: turn.at_us(),
        })
    }
}

impl Turn {
    /// How many replicas it needs of the newest version.
    fn need(&self) -> u8 {
        self.groups[0].need
    }

    /// Whether it needs fewer replicas of a version than this floor of that version's layout.
    fn is_below(&self, floor: impl Fn(&Layout) -> u8) -> bool {
        self.groups.iter().any(|group| group.need < floor(self.current.layout_of(group.version)))
    }

    /// Whether a node's answer counts: it owns the partition under a version that the request is made under.
    fn counts(&self, node: NodeId) -> bool {
        self.groups.iter().any(|group| group.primaries.contains(&node))
    }

    /// Which writes it must not miss as a read.
    fn reading(&self) -> Reading {
        self.current.reading(self.view.read_version(), self.need())
    }

    /// Whether this node may answer it as a read (rule L6).
    fn speaks(&self, me: NodeId) -> Result<(), NotApplied> {
        self.current.may_serve(me, self.partition, Role::Reads(self.view.read_version()))
    }

    /// Whether this node, which might answer it as a read, may do so still, now that it has looked at what it holds.
    fn still_speaks(&self, inner: &Inner) -> Result<(), NotApplied> {
        inner.layouts.still_speaks(&self.current, self.partition, self.view.read_version())
    }

    /// What is said of a write of which an earlier attempt may have been minted.
    fn unknown(&self, op_id: OpId, why: String) -> Failure {
        Failure::Indeterminate { op_id, need: self.need(), acks: Acks::default(), why }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long it may wait for room: the rest is for what it waits to do.
    fn room_until(&self) -> Instant {
        self.deadline - self.left() / 4
    }

    /// What is said of a request that has failed: for want of room, if there was none.
    fn failed(&self, refusal: NotApplied) -> NotApplied {
        if self.room.was_short() { OVERLOADED } else { refusal }
    }

    /// Takes what its answer is going to take with it once more, for what goes on after it; tells whether there is room for that.
    fn has_room_to_go_on(&self) -> bool {
        let taken = self.room.taken();
        taken == 0 || self.room.try_take(taken).is_ok()
    }

    /// Microseconds since the request came.
    fn at_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// How often a request is begun at most: under the layout that it met, and under the two others that may be live.
const ATTEMPTS_MAX: u32 = LIVE_MAX as u32;

/// A node answers an eighth of the time, but at most 20 ms, before its asker gives up: enough for the way back in one
/// data centre, little enough that two hops leave three quarters of a short timeout.
const HOP_MARGIN_SHARE: u32 = 8;
const HOP_MARGIN_MAX: Duration = Duration::from_millis(20);

/// A client that is served without a pause comes again within this time.
const BUSY_MS: u64 = 200;

/// What a write's value and context take.
fn write_len(write: &Write) -> usize {
    let len = |bytes: &Option<Blob>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    len(&write.value) + len(&write.context)
}

/// What can be refused of a write before anything else is looked at.
fn check_write(write: &Write) -> Result<(), NotApplied> {
    let len = |bytes: &Option<Blob>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    check_served(&write.key)?;
    check_len("value", VALUE_LEN_MAX, len(&write.value))?;
    check_len("context", CONTEXT_LEN_MAX, len(&write.context))
}

/// What the values and contexts of a reply take.
fn reply_len(reply: &Reply) -> usize {
    let record =
        |values: &[Blob], context: &Blob| values.iter().map(|value| value.len()).sum::<usize>() + context.len();
    match reply {
        Reply::Found(found) => record(&found.values, &found.context),
        Reply::Scanned(scanned) => {
            let entries = scanned.entries.iter();
            entries.map(|entry| entry.key.len() + record(&entry.values, &entry.context)).sum()
        }
        Reply::Written(written) => written.context.len(),
        Reply::Route(_) | Reply::Located(_) | Reply::Status(_) | Reply::Layout(_) | Reply::Repair(_) => 0,
    }
}

/// What a client asks about must be what this release serves: keys of the default bucket without a sort key. Their properties, and ways to
/// name others, are still to come; messages, disks and contexts have their places.
///
/// # Errors
/// As [`check_key`], and when it is any other key.
fn check_served(key: &[u8]) -> Result<(), NotApplied> {
    let parts = checked_parts(key)?;
    if parts.is_plain() {
        return Ok(());
    }
    let what = match (parts.bucket(), parts.sort_key()) {
        (BucketId::DEFAULT, _) => "the key has a sort key".to_owned(),
        (bucket, _) => format!("the key is in bucket {bucket}"),
    };
    Err(not_served(&what))
}

fn not_served(what: &str) -> NotApplied {
    let release = env!("CARGO_PKG_VERSION");
    NotApplied::Unsupported {
        why: format!("{what}, quorate {release} serves keys of bucket 0 without a sort key only"),
    }
}

/// That bytes are an encoded key, of any bucket, with or without a sort key: peers keep and merge what they do not serve.
///
/// # Errors
/// When it is none, or the user's key is empty or too long.
pub(crate) fn check_key(key: &[u8]) -> Result<(), NotApplied> {
    checked_parts(key).map(|_| ())
}

fn checked_parts(key: &[u8]) -> Result<KeyParts<'_>, NotApplied> {
    let parts = KeyParts::of(key).map_err(|error| NotApplied::Unsupported { why: error.to_string() })?;
    if parts.partition_key_len() == 0 {
        return Err(NotApplied::EmptyKey);
    }
    check_len("key", KEY_LEN_MAX, parts.len())?;
    Ok(parts)
}

fn check_len(what: &str, limit: usize, got: usize) -> Result<(), NotApplied> {
    if got <= limit {
        return Ok(());
    }
    Err(NotApplied::TooLarge { what: what.into(), limit: limit as u64, got: got as u64 })
}

/// Whether a refusal says something of the node that refused, so that another one may well serve the request.
fn is_of_one_node(refusal: &NotApplied) -> bool {
    match refusal {
        // A primary that cannot reach the others speaks of its own links.
        NotApplied::NotServing { .. }
        | NotApplied::Storage { .. }
        | NotApplied::StaleLayout { .. }
        | NotApplied::Unavailable { .. } => true,
        NotApplied::TimedOut { .. }
        | NotApplied::Overloaded { .. }
        | NotApplied::TooLarge { .. }
        | NotApplied::EmptyKey
        | NotApplied::QuorumImpossible { .. }
        | NotApplied::BadContext { .. }
        | NotApplied::TooManySiblings { .. }
        | NotApplied::Forbidden { .. }
        | NotApplied::Unsupported { .. }
        | NotApplied::Refused { .. } => false,
    }
}

/// A refusal inside a longer text, which says itself whether anything was changed.
fn plain(refusal: &NotApplied) -> String {
    refusal.reason()
}

#[cfg(test)]
#[path = "coordinator_test.rs"]
mod steps;

#[cfg(test)]
mod tests {
    use quorate_wire::ENCODED_KEY_LEN_MAX;

    use super::*;

    #[test]
    fn keys_and_values_beyond_their_limits_are_refused_with_both_numbers() {
        let refusal = NotApplied::TooLarge { what: "key".into(), limit: 1024, got: 1025 };
        // Every byte of it needs an escape, which does not count.
        for byte in [0, b'k'] {
            assert_eq!(check_key(&Key::plain([byte; KEY_LEN_MAX])), Ok(()));
            assert_eq!(check_key(&Key::plain([byte; KEY_LEN_MAX + 1])), Err(refusal.clone()));
        }
        let sorted = |len| Key::new(BucketId(1), b"k", &[0; KEY_LEN_MAX][..len]);
        assert_eq!(check_key(&sorted(KEY_LEN_MAX - 1)), Ok(()));
        assert_eq!(check_key(&sorted(KEY_LEN_MAX)), Err(refusal), "both parts count");
        assert!(Key::plain([0; KEY_LEN_MAX]).len() <= ENCODED_KEY_LEN_MAX);
        for empty in [Key::plain(""), Key::new(BucketId::DEFAULT, b"", b"s")] {
            assert_eq!(check_key(&empty), Err(NotApplied::EmptyKey));
        }
        for malformed in [&b""[..], b"k", b"\0\0\0\0k"] {
            assert!(matches!(check_key(malformed), Err(NotApplied::Unsupported { why }) if why.contains("malformed")));
        }
        assert_eq!(check_len("value", VALUE_LEN_MAX, VALUE_LEN_MAX), Ok(()));
        assert!(check_len("value", VALUE_LEN_MAX, VALUE_LEN_MAX + 1).is_err());
    }

    #[test]
    fn a_reason_inside_an_indeterminate_outcome_does_not_claim_that_nothing_was_changed() {
        let node = NodeId::new("n1").expect("legal");
        let text = plain(&NotApplied::Storage { node, why: "disk full".into() });
        assert_eq!(text, "storage failed on n1: disk full");
        assert_eq!(plain(&NotApplied::Overloaded { retry_after_ms: 5 }), "overloaded: try again in 5 ms");
    }

    #[test]
    fn a_request_is_not_given_to_the_next_primary_after_a_refusal_of_the_request_itself() {
        let node = NodeId::new("n1").expect("legal");
        assert!(is_of_one_node(&NotApplied::NotServing { node, why: "quarantined".into() }));
        assert!(!is_of_one_node(&NotApplied::EmptyKey));
        assert!(!is_of_one_node(&NotApplied::Overloaded { retry_after_ms: 5 }), "load is not passed round");
    }
}

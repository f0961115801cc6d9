//! Every order of steps of small worlds in which the owners of a partition change, with the shipped rules
//! (`quorate_core::transition`): a quorum read never misses an acknowledged quorum write, none is left with less than W copies, and from
//! every state the change can still come to its end with any one node dead. And each rule bent in turn, which must be found.
//!
//! What is abstracted, and why that is sound:
//!
//! - The versions exist from the start and nobody knows them: each node learns each at any time, in any order, or never. So all delay and
//!   loss of layout gossip is covered.
//! - What nodes say of themselves only grows, so that acting on an old copy is acting late, and acting late is explored.
//! - Coordinators are not nodes: any of them may use, at any time, any label that evidence has ever justified. Only replicas keep order.
//! - Writes are opaque and merging is union, so that one stands for all; one more may have been acknowledged before.
//! - Nodes that own the same versions are interchangeable; such states are explored once.
//!
//! The larger worlds take minutes: `QUORATE_LAYOUT_WORLDS=all cargo test --release -p quorate-core --test layout_change`.

mod explore;

use std::fmt;

use explore::{Model, Question, Verdict, explore};
use quorate_core::transition::{Change, Named, Owners, Places, Standing, Taken};

const NODES_MAX: usize = 6;

/// One rule of the world bent, as a node that gets it wrong would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bend {
    Nothing,
    /// A replica that knows a newer version still takes writes that name older ones only.
    NoFence,
    /// The fence is forgotten at a restart.
    FenceForgotten,
    /// The scan may open before the fence.
    ScanBeforeFence,
    /// A receiver confirms a push before it is durable, and loses it.
    PushNotDurable,
    /// An owner answers reads before it is ready.
    AnswersUnready,
    /// W owners of the newest version are enough for a write.
    NewestOnly,
    /// W owners of the oldest version are enough.
    OldestOnly,
    /// W owners of any version are enough.
    AnyOwners,
    /// Answers of owners of different versions are added up.
    MixedReads,
    /// A node that has closed still answers.
    ClosedAnswers,
    /// What was closed is forgotten at a restart.
    CloseForgotten,
    /// A node without a copy answers that there is nothing.
    DroppedAnswers,
    /// The old copy goes once one new owner holds it.
    DropAfterOne,
    /// The old copy goes once reads have moved.
    DropAfterClose,
    /// The old copy goes once the new version is known.
    DropAtOnce,
    /// Every push counts as one of an owner that was ready.
    AllStrong,
    /// A copy that was lost counts again once one other owner has given what it has.
    RecoveredFromOne,
    /// An owner may be restored by one other owner that is ready.
    RestoredFromOne,
    /// An owner may be restored by others that are not ready themselves.
    RestoredFromUnready,
    /// A copy that is lost is scanned and answers.
    LostSpeaks,
    /// Coordinators take what was closed in favour of a version that they do not know for a reason to leave one out.
    EvidenceUnbounded,
}

/// A bounded world.
#[derive(Clone)]
struct World {
    nodes: usize,
    /// By version, as a bit mask of nodes.
    owners: Vec<u8>,
    change: Change,
    /// What clients use, by version: R and W.
    client: Vec<(u8, u8)>,
    /// Of the oldest version, who is not ready for it.
    unready: u8,
    /// A write begins in this world; and another one was acknowledged before it began, so that whoever is ready holds it.
    writes: bool,
    earlier: bool,
    restarts: u8,
    deaths: u8,
    /// So many copies are lost in all. A write that is under way then does not count the node that loses it.
    losses: u8,
    dead_from_start: u8,
    bend: Bend,
}

/// What one node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    standing: Standing,
    /// The writes that it holds, a bit each; and those that it has acknowledged itself.
    data: u8,
    accepted: u8,
    dead: bool,
    /// Its copy is lost, and not yet brought back.
    lost: bool,
    /// The read under way has its answer.
    replied: bool,
    scan: Scan,
}

/// What a source has found, for the version of its fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Scan {
    open: bool,
    strong: bool,
    /// A push of it was confirmed, so that it is kept.
    pushed: bool,
    data: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    node: [Node; NODES_MAX],
    /// The versions that the write names; 0 before it begins.
    label: u8,
    acknowledged: bool,
    /// The read under way: its version, and which acknowledged writes no answer has shown yet. It is only followed while some are
    /// missing: one that has found all can break nothing.
    read_version: u8,
    missing: u8,
    /// Labels that evidence has ever justified, a bit for each set of versions.
    allowed: u8,
    restarts: u8,
    deaths: u8,
    losses: u8,
}

/// The write of this world, and the one that was acknowledged before.
const WRITE: u8 = 1;
const EARLIER: u8 = 2;

#[derive(Clone, Copy)]
enum Action {
    Learn { n: usize, v: usize },
    Scan { n: usize, v: usize },
    Push { from: usize, to: usize, v: usize },
    Close { n: usize, v: usize },
    Drop { n: usize },
    Restart { n: usize },
    Lose { n: usize, forgets: bool },
    Recover { n: usize, from: Places },
    Restore { n: usize, from: Places },
    Die { n: usize },
    Deliver { n: usize, label: u8 },
    Acknowledge,
    Reply { n: usize, v: usize },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |n: usize| char::from(b'A' + n as u8);
        let version = |v: usize| ["K", "K+1", "K+2"][v];
        match *self {
            Self::Learn { n, v } => write!(f, "{} learns {}", name(n), version(v)),
            Self::Scan { n, v } => write!(f, "{} opens its scan for {}", name(n), version(v)),
            Self::Push { from, to, v } => {
                write!(f, "{} completes its push to {} for {}", name(from), name(to), version(v))
            }
            Self::Close { n, v } => write!(f, "{} closes reads below {}", name(n), version(v)),
            Self::Drop { n } => write!(f, "{} drops its copy", name(n)),
            Self::Restart { n } => write!(f, "{} restarts", name(n)),
            Self::Lose { n, forgets: false } => write!(f, "{} loses its copy", name(n)),
            Self::Lose { n, forgets: true } => write!(f, "{} loses its copy and forgets what it has said", name(n)),
            Self::Recover { n, from } => {
                write!(f, "{} recovers from {}", name(n), from.iter().map(name).collect::<String>())
            }
            Self::Restore { n, from } => {
                write!(f, "{} is restored from {}", name(n), from.iter().map(name).collect::<String>())
            }
            Self::Die { n } => write!(f, "{} dies for ever", name(n)),
            Self::Deliver { n, label } => {
                let named: Vec<_> = (0..3).filter(|v| label >> v & 1 == 1).map(version).collect();
                write!(f, "{} accepts the write under {{{}}}", name(n), named.join(","))
            }
            Self::Acknowledge => f.write_str("the write is acknowledged to its client"),
            Self::Reply { n, v } => write!(f, "{} answers the read at {}", name(n), version(v)),
        }
    }
}

impl World {
    fn new(nodes: usize, owners: &[u8]) -> Self {
        let majority = |set: &u8| (set.count_ones() / 2 + 1) as u8;
        Self::of(nodes, owners, &owners.iter().map(|set| (majority(set), majority(set))).collect::<Vec<_>>(), 0)
    }

    fn of(nodes: usize, owners: &[u8], floors: &[(u8, u8)], unready: u8) -> Self {
        let places = |set: u8| Places::of((0..nodes).filter(|n| set >> n & 1 == 1));
        let version = |(set, (r, w)): (&u8, &(u8, u8))| Owners { places: places(*set), r: *r, w: *w };
        let change = Change::new(owners.iter().zip(floors).map(version).collect(), places(owners[0] & !unready));
        let (owners, client) = (owners.to_vec(), floors.to_vec());
        Self {
            nodes,
            owners,
            change,
            client,
            unready,
            writes: true,
            earlier: unready != 0,
            restarts: 0,
            deaths: 0,
            losses: 0,
            dead_from_start: 0,
            bend: Bend::Nothing,
        }
    }

    /// The same with other floors than clients use.
    fn promising(self, floors: &[(u8, u8)]) -> Self {
        let other = Self::of(self.nodes, &self.owners, floors, self.unready);
        Self { change: other.change, ..self }
    }

    /// The same without clients, in which one node may die for ever at any point.
    fn mortal(self) -> Self {
        let deaths = u8::from(self.dead_from_start == 0);
        Self { writes: false, earlier: false, deaths, ..self }
    }

    fn bent(self, bend: Bend) -> Self {
        Self { bend, ..self }
    }

    fn head(&self) -> usize {
        self.change.head()
    }

    fn owners_of(&self, v: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes).filter(move |n| self.change.owns(*n, v))
    }

    fn standings(&self, s: &State) -> [Standing; NODES_MAX] {
        s.node.map(|node| node.standing)
    }

    /// Adds what the nodes' standings justify now; evidence once seen stays valid.
    fn note_evidence(&self, s: &mut State) {
        let standings = self.standings(s);
        for high in 0..=self.head() {
            let bound = if self.bend == Bend::EvidenceUnbounded { self.head() } else { high };
            let left_out = |v: &usize| self.change.may_leave_out(&standings, *v, bound);
            for low in 0..=(0..high).take_while(left_out).count() {
                s.allowed |= 1 << Named::between(low, high).0;
            }
            s.allowed |= 1 << self.change.label(&standings, high).0;
        }
    }

    fn is_acknowledged(&self, s: &State) -> bool {
        let accepted = |set: u8| (0..self.nodes).filter(|n| set >> n & 1 == 1 && s.node[*n].accepted != 0).count();
        let met = |v: usize| accepted(self.owners[v]) >= usize::from(self.client[v].1);
        let mut named = (0..=self.head()).filter(|v| s.label >> v & 1 == 1);
        match self.bend {
            Bend::NewestOnly => named.next_back().is_some_and(met),
            Bend::OldestOnly => named.next().is_some_and(met),
            Bend::AnyOwners => accepted(named.fold(0, |set, v| set | self.owners[v])) >= usize::from(self.client[0].1),
            _ => named.all(met),
        }
    }

    fn node_steps(&self, s: &State, n: usize, out: &mut Vec<(Action, State)>) {
        let node = &s.node[n];
        let standings = self.standings(s);
        for v in usize::from(node.standing.fence) + 1..=self.head() {
            let mut t = *s;
            t.node[n].standing = self.change.learn(node.standing, n, v);
            if self.bend != Bend::ScanBeforeFence {
                t.node[n].scan = Scan::default();
            }
            // An earlier scan finds less, and so is the harder case. It saves states where three versions live.
            if self.head() == 2 && !node.lost && self.change.may_scan(&t.node[n].standing, n) {
                t.node[n].scan = self.snapshot(&t, n);
            }
            out.push((Action::Learn { n, v }, t));
        }
        if node.lost && self.bend != Bend::LostSpeaks {
            return;
        }
        if self.may_drop(&standings, n) {
            let mut t = *s;
            t.node[n].standing.dropped = true;
            (t.node[n].data, t.node[n].scan) = (0, Scan::default());
            out.push((Action::Drop { n }, t));
        }
        let early = self.bend == Bend::ScanBeforeFence && node.standing.fence == 0;
        let v = usize::from(node.standing.fence) + usize::from(early);
        if v == 0 {
            return;
        }
        let may_scan = self.change.may_scan(&Standing { fence: v as u8, ..node.standing }, n);
        let stronger = self.head() == 2 && !node.scan.strong && self.snapshot(s, n).strong;
        if (!node.scan.open || stronger) && may_scan {
            let mut t = *s;
            t.node[n].scan = self.snapshot(s, n);
            out.push((Action::Scan { n, v }, t));
        }
        for to in self.owners_of(v).filter(|_| node.scan.open) {
            let (receiver, strong) = (&s.node[to], node.scan.strong);
            if receiver.dead || receiver.lost || !self.change.wants(&receiver.standing, n, to, v, strong) {
                continue;
            }
            let mut t = *s;
            t.node[n].standing = self.change.confirmed(node.standing, to, v);
            t.node[n].scan.pushed = true;
            if self.bend != Bend::PushNotDurable {
                t.node[to].data |= node.scan.data;
            }
            t.node[to].standing = self.change.received(receiver.standing, n, v, strong || self.bend == Bend::AllStrong);
            out.push((Action::Push { from: n, to, v }, t));
        }
        if self.change.may_close(&standings, n) {
            let mut t = *s;
            t.node[n].standing.closed = node.standing.fence;
            out.push((Action::Close { n, v }, t));
        }
    }

    /// A node that has lost its copy brings it back from others, and one that is not ready is restored from others that are.
    fn heals(&self, s: &State, n: usize, out: &mut Vec<(Action, State)>) {
        let (node, standings) = (&s.node[n], self.standings(s));
        let fence = usize::from(node.standing.fence);
        let knows = |from: &usize| {
            let other = &s.node[*from];
            *from != n
                && !other.dead
                && !other.lost
                && !other.standing.dropped
                && other.standing.fence == node.standing.fence
        };
        let others: Vec<usize> = (0..self.nodes).filter(knows).collect();
        let ready = |from: usize, v: usize| self.change.is_ready(&standings, from, v);
        let data = |from: &Places| from.iter().fold(node.data, |data, from| data | s.node[from].data);
        let restorers = match self.bend {
            Bend::RestoredFromOne => 1,
            _ => self.change.restorers_needed(fence),
        };
        let newest = (0..=fence).rev().find(|v| self.change.owns(n, *v));
        let enough = |from: &Places| match (self.bend, newest) {
            (_, None) => true,
            (Bend::RecoveredFromOne, _) => from.len() == 1,
            (_, Some(newest)) => (0..=newest).all(|v| {
                let of = |v: usize| from.iter().filter(move |from| self.change.owns(*from, v));
                let later =
                    |v: usize| of(v).filter(|from| ready(*from, v)).count() >= self.change.restorers_needed(v).into();
                of(v).count() >= self.change.sources_needed(v).into() || (v + 1..=fence).any(later)
            }),
        };
        let sets = || {
            (1..1u32 << others.len())
                .map(|set| Places::of((0..others.len()).filter(|i| set >> i & 1 == 1).map(|i| others[i])))
        };
        if node.lost {
            let enough: Vec<Places> = sets().filter(enough).collect();
            // What more of them hold is more.
            let least = |set: &&Places| !enough.iter().any(|other| other != *set && other.and(**set) == *other);
            for from in enough.iter().filter(least) {
                let mut t = *s;
                (t.node[n].lost, t.node[n].data) = (false, data(from));
                out.push((Action::Recover { n, from: *from }, t));
            }
        } else if fence > 0 && self.change.owns(n, fence) && !ready(n, fence) {
            let unready = self.bend == Bend::RestoredFromUnready;
            let may = |from: usize| self.change.owns(from, fence) && (unready || ready(from, fence));
            for from in sets().filter(|set| set.len() == restorers && set.iter().all(may)) {
                let mut t = *s;
                (t.node[n].standing.restored, t.node[n].data) = (fence as u8, data(&from));
                out.push((Action::Restore { n, from }, t));
            }
        }
    }

    fn snapshot(&self, s: &State, n: usize) -> Scan {
        let strong = self.change.is_strong(&self.standings(s), n);
        Scan { open: true, strong, pushed: false, data: s.node[n].data }
    }

    fn may_drop(&self, standings: &[Standing], n: usize) -> bool {
        let standing = &standings[n];
        let (closed, fence) = (usize::from(standing.closed), usize::from(standing.fence));
        let leaves = |from: usize| from > 0 && !(from..=fence).any(|v| self.change.owns(n, v));
        let idle = standing.dropped || !(0..fence).any(|v| self.change.owns(n, v));
        match self.bend {
            Bend::DropAtOnce => !idle && leaves(fence),
            Bend::DropAfterClose => !idle && leaves(closed),
            Bend::DropAfterOne => {
                let held = |v: usize| self.owners_of(v).any(|to| standings[to].got[v - 1].contains(n));
                !idle && leaves(closed) && (closed..=fence).any(held)
            }
            _ => self.change.may_drop(standings, n),
        }
    }

    fn faults(&self, s: &State, n: usize, out: &mut Vec<(Action, State)>) {
        if s.restarts < self.restarts {
            let mut t = *s;
            t.restarts += 1;
            let node = &mut t.node[n];
            if !node.scan.pushed {
                node.scan = Scan::default();
            }
            if self.bend == Bend::FenceForgotten {
                node.standing.fence = 0;
            }
            if self.bend == Bend::CloseForgotten {
                node.standing.closed = 0;
            }
            out.push((Action::Restart { n }, t));
        }
        // What the write's coordinator has counted before the loss it would count for ever: that is not about a change of owners.
        let counted = s.node[n].accepted != 0 && !s.acknowledged;
        if s.losses < self.losses && !counted && !s.node[n].standing.dropped {
            for forgets in [false, true] {
                let mut t = *s;
                t.losses += 1;
                let node = &mut t.node[n];
                (node.lost, node.data, node.scan) = (true, 0, Scan::default());
                if forgets {
                    let Standing { fence, closed, passed_over, .. } = node.standing;
                    node.standing = Standing { fence, closed, passed_over, ..Standing::default() };
                }
                // It may have closed, and helped others, without knowing it any more.
                if (0..usize::from(node.standing.fence)).any(|v| self.change.owns(n, v)) {
                    node.standing.closed = node.standing.fence;
                }
                out.push((Action::Lose { n, forgets }, t));
            }
        }
        if s.deaths < self.deaths {
            let mut t = *s;
            t.deaths += 1;
            t.node[n].dead = true;
            out.push((Action::Die { n }, t));
        }
    }

    fn write_steps(&self, s: &State, out: &mut Vec<(Action, State)>) {
        if !self.writes || s.acknowledged {
            return; // Later deliveries only add copies.
        }
        // It begins with its first delivery: before that it has no effect, and labels once allowed stay allowed.
        let labels = if s.label == 0 { 1..8 } else { s.label..s.label + 1 };
        for label in labels.filter(|label| s.allowed >> label & 1 == 1) {
            for n in (0..self.nodes).filter(|n| !s.node[*n].dead && s.node[*n].accepted == 0) {
                let taken = self.change.takes(&s.node[n].standing, n, Named(label));
                let bent = self.bend == Bend::NoFence && taken == Taken::Stale && {
                    let owned = (0..=self.head()).any(|v| label >> v & 1 == 1 && self.change.owns(n, v));
                    owned && !s.node[n].standing.dropped
                };
                if taken == Taken::Yes || bent {
                    let mut t = *s;
                    t.label = label;
                    t.node[n].accepted |= WRITE;
                    t.node[n].data |= WRITE;
                    out.push((Action::Deliver { n, label }, t));
                }
            }
        }
    }

    /// One read, followed from its first answer. It may be of any version at any time: replicas decide whether they answer.
    fn read_steps(&self, s: &State, out: &mut Vec<(Action, State)>) {
        let running = s.missing != 0;
        let earlier = if self.earlier { EARLIER } else { 0 };
        let acknowledged = if s.acknowledged { WRITE | earlier } else { earlier };
        let owed = if running { s.missing } else { acknowledged };
        if owed == 0 || self.broken(s).is_some() {
            return;
        }
        let standings = self.standings(s);
        for v in 0..=self.head() {
            if running && v != usize::from(s.read_version) && self.bend != Bend::MixedReads {
                continue;
            }
            for n in self.owners_of(v) {
                let node = &s.node[n];
                let knows = usize::from(node.standing.fence) >= v;
                let open = usize::from(node.standing.closed) <= v;
                let speaks = match self.bend {
                    Bend::AnswersUnready => knows && open,
                    Bend::ClosedAnswers => self.change.is_ready(&standings, n, v),
                    Bend::DroppedAnswers if node.standing.dropped => knows,
                    _ => self.change.speaks(&standings, n, v),
                };
                let lost = node.lost && self.bend != Bend::LostSpeaks;
                if node.dead || lost || node.replied || !speaks {
                    continue;
                }
                let mut t = *s;
                t.missing = owed & !node.data;
                if t.missing == 0 {
                    t.read_version = 0;
                    t.node.iter_mut().for_each(|node| node.replied = false);
                } else {
                    t.read_version = if self.bend == Bend::MixedReads { 0 } else { v as u8 };
                    t.node[n].replied = true;
                }
                if t != *s {
                    out.push((Action::Reply { n, v }, t));
                }
            }
        }
    }

    /// The smallest of the states that differ by a renaming of nodes that own the same versions.
    fn rename(&self, s: &State, order: &mut [usize; NODES_MAX], place: usize, best: &mut Option<(Key, State)>) {
        if place == self.nodes {
            let renamed = |set: Places| Places::of((0..self.nodes).filter(|to| set.contains(order[*to])));
            let mut t = *s;
            for (to, node) in t.node.iter_mut().enumerate().take(self.nodes) {
                *node = s.node[order[to]];
                node.standing.got = node.standing.got.map(renamed);
                node.standing.strong = node.standing.strong.map(renamed);
            }
            let key = t.node.map(|node| local(&node, |set| set));
            if best.as_ref().is_none_or(|(least, _)| key < *least) {
                *best = Some((key, t));
            }
            return;
        }
        let class = |n: usize| {
            let owned = self.owners.iter().fold(0, |set, owners| set * 2 + u32::from(owners >> n & 1));
            owned * 4 + u32::from(self.dead_from_start >> n & 1) * 2 + u32::from(self.unready >> n & 1)
        };
        let counted = |n: usize| local(&s.node[n], |set| Places::of(0..usize::from(set.len())));
        let free = |n: &usize| !order[..place].contains(n) && class(*n) == class(place);
        let least = (0..self.nodes).filter(free).map(counted).min().expect("a place has a node of its class");
        for n in (0..self.nodes).filter(free).filter(|n| counted(*n) == least).collect::<Vec<_>>() {
            order[place] = n;
            self.rename(s, order, place + 1, best);
        }
    }
}

/// What orders nodes among each other.
type Key = [(u64, [Places; 4]); NODES_MAX];

fn local(node: &Node, places: impl Fn(Places) -> Places) -> (u64, [Places; 4]) {
    let Node { standing, data, accepted, dead, lost, replied, scan } = node;
    let flags = [
        standing.passed_over,
        standing.helped,
        standing.dropped,
        *dead,
        *lost,
        *replied,
        scan.open,
        scan.strong,
        scan.pushed,
    ];
    let small = [standing.fence, standing.closed, standing.restored, *data, *accepted, scan.data];
    let small = small.iter().fold(0, |word, value| word << 4 | u64::from(*value));
    let word = flags.iter().fold(small, |word, flag| word << 1 | u64::from(*flag));
    let ([a, b], [c, d]) = (standing.got, standing.strong);
    (word, [a, b, c, d].map(places))
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        let mut node = [Node::default(); NODES_MAX];
        for (n, node) in node.iter_mut().enumerate().take(self.nodes) {
            // A node learns from the first message the version in which it first appears.
            let first = (0..=self.head()).find(|v| self.change.owns(n, *v)).unwrap_or(0);
            node.standing.fence = first as u8;
            node.dead = self.dead_from_start >> n & 1 == 1;
            let ready = self.owners[0] >> n & 1 == 1 && self.unready >> n & 1 == 0;
            node.data = if self.earlier && ready { EARLIER } else { 0 };
        }
        // Whoever knows of nothing that was closed names all versions up to the newest one it knows.
        let allowed = (0..=self.head()).fold(0, |allowed, high| allowed | 1 << Named::between(0, high).0);
        let (label, acknowledged, read_version, missing) = (0, false, 0, 0);
        State { node, label, acknowledged, read_version, missing, allowed, restarts: 0, deaths: 0, losses: 0 }
    }

    fn successors(&self, s: &State, out: &mut Vec<(Action, State)>) {
        // The earliest acknowledgement obliges us most, so that no later one needs to be explored.
        if s.label != 0 && !s.acknowledged && self.is_acknowledged(s) {
            out.push((Action::Acknowledge, State { acknowledged: true, ..*s }));
            return;
        }
        for n in (0..self.nodes).filter(|n| !s.node[*n].dead) {
            self.node_steps(s, n, out);
            self.heals(s, n, out);
            self.faults(s, n, out);
        }
        self.write_steps(s, out);
        self.read_steps(s, out);
        for (_, state) in out.iter_mut() {
            self.note_evidence(state);
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        let replies = s.node.iter().filter(|node| node.replied).count();
        if s.missing != 0 && replies >= usize::from(self.client[usize::from(s.read_version)].0) {
            return Some("a quorum read misses an acknowledged write");
        }
        // What is being brought back is not counted as missing yet.
        let copies = s.node.iter().filter(|node| node.data & WRITE != 0 || node.lost).count();
        let least = self.client.iter().map(|(_, w)| usize::from(*w)).min().unwrap_or(1);
        (s.acknowledged && copies < least).then_some("an acknowledged write has less than W copies")
    }

    /// Only the newest version is left, all of its living owners may speak for it, and, where all of its owners live, no living former
    /// owner keeps a copy.
    fn goal(&self, s: &State) -> bool {
        let (head, standings) = (self.head(), self.standings(s));
        let alone = s.allowed >> Named::between(head, head).0 & 1 == 1;
        let owners_live = self.owners_of(head).all(|n| !s.node[n].dead);
        let former =
            |n: &usize| !self.change.owns(*n, head) && (0..head).any(|v| self.change.owns(*n, v)) && !s.node[*n].dead;
        let ready = self
            .owners_of(head)
            .all(|n| s.node[n].dead || (self.change.is_ready(&standings, n, head) && !s.node[n].lost));
        alone && ready && (!owners_live || (0..self.nodes).filter(former).all(|n| standings[n].dropped))
    }

    fn helpful(&self, action: &Action) -> bool {
        !matches!(
            action,
            Action::Restart { .. }
                | Action::Lose { .. }
                | Action::Die { .. }
                | Action::Deliver { .. }
                | Action::Reply { .. }
        )
    }

    fn canonical(&self, s: &State) -> State {
        let (mut order, mut best) = ([0; NODES_MAX], None);
        self.rename(s, &mut order, 0, &mut best);
        best.expect("the order as it is is one of them").1
    }
}

const ABC: u8 = 0b000_111;
const BCD: u8 = 0b001_110;
const CDE: u8 = 0b011_100;
const DEF: u8 = 0b111_000;

const STATES_MAX: usize = 40_000_000;

fn one_moves() -> World {
    World::new(4, &[ABC, BCD])
}

fn two_move() -> World {
    World::new(5, &[ABC, CDE])
}

fn all_move() -> World {
    World::new(6, &[ABC, DEF])
}

/// A second change is applied at any point of the first one.
fn forward() -> World {
    World::new(5, &[ABC, BCD, CDE])
}

/// The change is taken back at any point.
fn abort(child: u8) -> World {
    World::new(if child == BCD { 4 } else { 5 }, &[ABC, child, ABC])
}

fn all_worlds() -> bool {
    std::env::var("QUORATE_LAYOUT_WORLDS").is_ok_and(|worlds| worlds == "all")
}

#[track_caller]
fn holds(name: &str, world: &World, question: Question) {
    let report = explore(world, question, STATES_MAX);
    match report.verdict {
        Verdict::Holds => {}
        Verdict::Broken { property, trace } => panic!("{name}: {property}\n  {}", trace.join("\n  ")),
        Verdict::Undecided => panic!("{name}: there are more states than {STATES_MAX}"),
    }
}

#[track_caller]
fn is_found(name: &str, world: &World, question: Question, what: &str) {
    let report = explore(world, question, STATES_MAX);
    let Verdict::Broken { property, trace } = report.verdict else {
        panic!("{name}: not found in {} states", report.states)
    };
    assert!(property.contains(what), "{name}: {property}\n  {}", trace.join("\n  "));
}

#[test]
fn reads_find_what_was_acknowledged_while_one_owner_moves() {
    holds("one moves", &World { restarts: 1, ..one_moves() }, Question::Safety);
}

#[test]
fn reads_find_what_was_acknowledged_while_all_owners_move() {
    holds("all move", &all_move(), Question::Safety);
    if all_worlds() {
        holds("all move, restarts", &World { restarts: 2, ..all_move() }, Question::Safety);
        holds("two move", &World { restarts: 2, ..two_move() }, Question::Safety);
    }
}

#[test]
fn reads_find_what_was_acknowledged_while_n_changes() {
    for (name, nodes, from, to) in [("1 to 3", 3, 0b001, ABC), ("3 to 1", 3, ABC, 0b001), ("3 to 5", 5, ABC, 0b11111)] {
        holds(name, &World::new(nodes, &[from, to]), Question::Safety);
    }
    if all_worlds() {
        holds("5 to 3", &World::new(5, &[0b11111, ABC]), Question::Safety);
    }
}

#[test]
fn reads_find_what_was_acknowledged_with_other_quorums() {
    for (name, floors) in [("W=1 R=3", (3, 1)), ("W=3 R=1", (1, 3))] {
        let world = World::of(6, &[ABC, DEF], &[floors; 2], 0);
        holds(name, &world, Question::Safety);
        // Promised to majorities only, and used all the same: nobody has promised anything.
        let below = World::of(4, &[ABC, BCD], &[floors; 2], 0).promising(&[(2, 2); 2]);
        is_found(name, &below, Question::Safety, "misses");
    }
}

#[test]
fn reads_find_what_was_acknowledged_while_a_change_is_taken_back() {
    holds("taken back, two were never there", &World { dead_from_start: 0b11000, ..abort(CDE) }, Question::Safety);
    if all_worlds() {
        holds("taken back", &abort(BCD), Question::Safety);
        for n in 0..5 {
            let without = |world: World| World { dead_from_start: 1 << n, ..world };
            holds(&format!("two move and back, without {n}"), &without(abort(CDE)), Question::Safety);
            holds(&format!("two changes, without {n}"), &without(forward()), Question::Safety);
        }
    }
}

/// A change may follow one that has not come to its end: one of its owners has died, or has not received everything.
#[test]
fn an_owner_that_was_not_ready_before_the_change_is_no_source_of_what_is_older() {
    for (name, from, to) in [("it goes", BCD, ABC), ("it stays", ABC, BCD)] {
        let world = World::of(4, &[from, to], &[(2, 2); 2], 0b0100);
        holds(name, &world, Question::Safety);
        holds(name, &World { dead_from_start: 0b0100, ..world.clone() }, Question::Safety);
        holds(name, &World { dead_from_start: 0b0100, ..world }.mortal(), Question::Liveness);
    }
}

/// One owner loses its copy at any point, with or without its memory of what it has said.
#[test]
fn a_copy_that_is_lost_and_brought_back_changes_nothing() {
    let losing = |world: World| World { losses: 1, ..world };
    for (name, world) in
        [("one moves", one_moves()), ("all move", all_move()), ("as it was", World::new(3, &[ABC, ABC]))]
    {
        holds(name, &losing(world.clone()), Question::Safety);
        holds(name, &World { writes: false, ..losing(world) }, Question::Liveness);
    }
    if all_worlds() {
        for floors in [(3, 2), (2, 3), (1, 3)] {
            let world = World::of(4, &[ABC, BCD], &[floors; 2], 0);
            holds(&format!("one moves {floors:?}"), &losing(world), Question::Safety);
        }
        holds("two were never there", &losing(World { dead_from_start: 0b11000, ..abort(CDE) }), Question::Safety);
        holds("two move", &losing(two_move()), Question::Safety);
        holds("all move", &losing(all_move()), Question::Safety);
        holds("all move", &World { writes: false, ..losing(all_move()) }, Question::Liveness);
        holds("taken back", &losing(abort(BCD)), Question::Safety);
    }
    use Bend::*;
    let found = |bend: Bend, world: World| {
        is_found(&format!("{bend:?}"), &losing(world).bent(bend), Question::Safety, "acknowledged write");
    };
    [RecoveredFromOne, RestoredFromOne, LostSpeaks].into_iter().for_each(|bend| found(bend, one_moves()));
    if all_worlds() {
        found(RestoredFromUnready, all_move());
    }
}

#[test]
fn from_every_state_the_change_can_come_to_its_end_with_any_one_node_dead() {
    let worlds = [
        ("one moves", one_moves()),
        ("two move", two_move()),
        ("all move", all_move()),
        ("3 to 5", World::new(5, &[ABC, 0b11111])),
        ("taken back, two were never there", World { dead_from_start: 0b11000, ..abort(CDE) }),
    ];
    for (name, world) in worlds {
        holds(name, &world.mortal(), Question::Liveness);
    }
    if all_worlds() {
        holds("5 to 3", &World::new(5, &[0b11111, ABC]).mortal(), Question::Liveness);
        holds("taken back", &abort(BCD).mortal(), Question::Liveness);
        holds("two changes", &forward().mortal(), Question::Liveness);
    }
}

#[test]
fn each_rule_is_needed() {
    use Bend::*;
    let restarts = |world: World| World { restarts: 1, ..world };
    let missed = [
        (NoFence, one_moves()),
        (FenceForgotten, restarts(one_moves())),
        (ScanBeforeFence, one_moves()),
        (PushNotDurable, one_moves()),
        (AnswersUnready, one_moves()),
        (NewestOnly, one_moves()),
        (OldestOnly, one_moves()),
        (AnyOwners, one_moves()),
        (MixedReads, two_move()),
        (ClosedAnswers, one_moves()),
        (CloseForgotten, restarts(one_moves())),
        (DroppedAnswers, two_move()),
        (AllStrong, forward()),
        (EvidenceUnbounded, abort(CDE)),
    ];
    for (bend, world) in missed {
        is_found(&format!("{bend:?}"), &world.bent(bend), Question::Safety, "misses");
    }
    for (bend, world) in [(DropAfterClose, two_move()), (DropAtOnce, one_moves())] {
        is_found(&format!("{bend:?}"), &world.bent(bend), Question::Safety, "copies");
    }
    is_found("DropAfterOne", &all_move().bent(DropAfterOne).mortal(), Question::Liveness, "L1");
    // A push less than N - W + 1, a closer less than N - R + 1: floors that promise more than clients keep to.
    is_found("one source", &one_moves().promising(&[(2, 3), (2, 2)]), Question::Safety, "misses");
    is_found("retired on one close", &one_moves().promising(&[(3, 2), (2, 2)]), Question::Safety, "misses");
}

//! Does to a cluster what its plan says shall go wrong, and undoes it.
//!
//! Faults overlap. Those that last (cut links, bad cables, full and slow disks, wrong clocks) are a set, and what holds at a
//! moment is computed from all of the set; those that happen (a process is killed, a disk is exchanged) are steps in time.
//!
//! An atlas of what was destroyed keeps enough clean copies: a torn write damages a value that was there before, so that only so
//! many disks may meet one that every acknowledged write is whole on another. In plans whose disks lose something in turn, a disk counts
//! as whole again once all that it has lost is there again, by the harness's own look at the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::keyspace::{data_key, key_of_data};
use quorate_core::merkle;
use quorate_core::record::Record;
use quorate_node::replica::decode_hint;
use quorate_node::store::Tree;
use quorate_wire::ids::Partition;
use quorate_wire::random::Random;

use crate::cluster::{CLIENTS, Cluster, DISK_RESERVE, Process, name, random_of};
use crate::disk::{Crash, Durable, Image, SimDisk};
use crate::history::Reach;
use crate::layouts;
use crate::plan::{Aftermath, Broken, Fault, FaultClass, FaultKind, Hearing, Plan};
use crate::socket::PacketFaults;
use crate::trace::Trace;

/// Carries out the faults of one life.
#[derive(Debug)]
pub struct Nemesis {
    plan: Plan,
    trace: Trace,
    steps: Vec<(Duration, Step)>,
    next: usize,
    /// The faults that last at the moment, by their place in the plan.
    active: BTreeSet<usize>,
    /// What stays broken beyond the plan's faults.
    lasting: Vec<FaultKind>,
    /// How many faults keep a node's process from being started again.
    kept_down: BTreeMap<u8, u32>,
    /// When a process that ended of its own accord is started again.
    restarts: BTreeMap<u8, Duration>,
    /// Disks as they were, to be rolled back to.
    images: BTreeMap<usize, Image>,
    /// Nodes whose disks lack something that was synced, as far as is known.
    destroyed: BTreeSet<u8>,
    /// How many disks may.
    destroyed_max: usize,
    /// Nodes whose disks have lost something that was synced, whatever has come back.
    ever_destroyed: BTreeSet<u8>,
    /// What each of these disks held before, if it matters whether it has come back.
    lost: BTreeMap<u8, Vec<Held>>,
    /// The second record of a leaf, to be damaged by a fault that has damaged the first one, by the fault's place in the plan.
    neighbours: BTreeMap<usize, Bytes>,
    /// Nodes whose disks were set back and that have not been started since.
    set_back: BTreeSet<u8>,
    /// Nodes that an operator has stopped for good, and dead ones.
    retired: BTreeSet<u8>,
    /// Nodes that have died with their disks and never come back.
    dead: BTreeSet<u8>,
    injected: BTreeMap<FaultClass, u32>,
    full_at: BTreeMap<usize, u64>,
    random: Random,
    /// The latency between each two hosts, in milliseconds. It is drawn anew every now and then and else the same for every
    /// packet: were it drawn for each, no three packets would arrive in order, which no healthy network does to a sender.
    weather: BTreeMap<(u8, u8), u32>,
    weather_until: Duration,
}

/// A record, and whose it is: the disk's own, or what it keeps for another node.
#[derive(Debug, Clone)]
struct Held {
    owner: String,
    key: Bytes,
    record: Record,
}

#[derive(Debug, Clone)]
enum Step {
    Begin(usize),
    End(usize),
    /// A fault that comes and goes begins or ends for a while.
    Turn(usize, bool),
    Kill {
        node: u8,
        torn: bool,
    },
    Stop(u8),
    Start(u8),
    /// The node may not be started again, until it is let go.
    Keep(u8),
    LetGo(u8),
    FailSync(u8),
    FailInsert(u8),
    Corrupt(u8),
    /// One of two records of a leaf, and then the other one.
    CorruptFirst(usize, u8),
    CorruptSecond(usize, u8),
    Lie(u8),
    LosePower(u8),
    TakeImage(usize, u8),
    Wipe(u8),
    Die(u8),
    Move(u8),
    RollBack(usize, u8),
}

impl Nemesis {
    /// The faults of a plan, of which the times count from `start`.
    pub fn new(plan: &Plan, start: Duration, trace: Trace) -> Self {
        let mut steps = Vec::new();
        for (i, fault) in plan.faults.iter().enumerate() {
            steps.extend(steps_of(i, fault, plan.nodes()).into_iter().map(|(ms, step)| (start + millis(ms), step)));
        }
        let mut kept_down = BTreeMap::new();
        for (node, spare) in (plan.members()..).zip(&plan.spares) {
            let Some(from_ms) = spare.from_ms else { continue };
            kept_down.insert(node, 1);
            let at = start + millis(from_ms);
            steps.extend([(at, Step::LetGo(node)), (at, Step::Start(node))]);
        }
        // Stable: what one fault does at one moment stays in order.
        steps.sort_by_key(|(at, _)| *at);
        let w_least = plan.workload.quorums.iter().map(|(_, w)| w.count(plan.n)).min().unwrap_or(1);
        Self {
            plan: plan.clone(),
            trace,
            steps,
            next: 0,
            active: BTreeSet::new(),
            lasting: Vec::new(),
            kept_down,
            restarts: BTreeMap::new(),
            images: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            set_back: BTreeSet::new(),
            retired: BTreeSet::new(),
            dead: BTreeSet::new(),
            destroyed_max: usize::from(w_least.saturating_sub(1)),
            ever_destroyed: BTreeSet::new(),
            lost: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            injected: BTreeMap::new(),
            full_at: BTreeMap::new(),
            random: random_of(plan.seed, "weather", 0, 0),
            weather: BTreeMap::new(),
            weather_until: Duration::ZERO,
        }
    }

    /// How many faults it has begun, by class.
    pub fn injected(&self) -> &BTreeMap<FaultClass, u32> {
        &self.injected
    }

    /// The nodes whose disks have lost something that was synced.
    pub fn ever_destroyed(&self) -> &BTreeSet<u8> {
        &self.ever_destroyed
    }

    /// Who can reach whom now.
    pub fn reach(&self, cluster: &Cluster<'_>) -> Reach {
        let nodes = self.plan.nodes();
        let active: Vec<&FaultKind> = self.active_faults().collect();
        let parts = |one: u8, other: u8| {
            let held = |fault: &FaultKind| matches!(fault, FaultKind::Pause(node) if *node == one || *node == other);
            let cut = |fault: &FaultKind| cuts(fault, one, other, nodes) || cuts(fault, other, one, nodes);
            active.iter().copied().any(|fault| held(fault) || cut(fault))
        };
        let mut reach = Reach { from_us: micros(cluster.elapsed()), ..Reach::default() };
        for node in 0..nodes {
            // A disk that has lost something has not got it back as soon as it is whole.
            let ails = self.ever_destroyed.contains(&node) || active.iter().copied().any(|fault| ails(fault, node));
            if !cluster.machines()[usize::from(node)].serves() {
                reach.away.insert(name(node));
            } else if !ails {
                reach.sound.insert(name(node));
            }
            if parts(node, nodes) {
                reach.unreached.insert(name(node));
            }
            let parted = (node + 1..nodes).filter(|other| parts(node, *other));
            reach.parted.extend(parted.map(|other| (name(node), name(other))));
        }
        reach.slow = active.iter().any(|fault| fault.class().slows());
        reach
    }

    /// The faults that last at the moment.
    fn active_faults(&self) -> impl Iterator<Item = &FaultKind> {
        self.active.iter().map(|i| &self.plan.faults[*i].kind).chain(&self.lasting)
    }

    /// The nodes that have died with their disks and never come back.
    pub fn dead(&self) -> &BTreeSet<u8> {
        &self.dead
    }

    /// The nodes that are stopped for good, or dead.
    pub fn retired(&self) -> &BTreeSet<u8> {
        &self.retired
    }

    /// An operator stops a node for good.
    pub(crate) fn retire(&mut self, node: u8, cluster: &Cluster<'_>) {
        self.trace.event(cluster.elapsed(), "nemesis", format_args!("{} is stopped for good", name(node)));
        self.retired.insert(node);
        cluster.machines()[usize::from(node)].retire();
        cluster.stop(node);
    }

    /// Does what is due by now, and starts processes again that ended of their own accord.
    pub fn tick(&mut self, cluster: &mut Cluster<'_>) {
        let now = cluster.elapsed();
        if self.weather_until <= now {
            self.weather_until = now + WEATHER;
            self.draw_weather();
            self.apply(cluster);
        }
        while let Some((at, step)) = self.steps.get(self.next).filter(|(at, _)| *at <= now) {
            self.trace.event(now, "nemesis", format_args!("{step:?} at {at:?}"));
            let step = step.clone();
            self.next += 1;
            self.perform(step, cluster);
        }
        for node in 0..self.plan.nodes() {
            if self.kept_down.get(&node).copied().unwrap_or(0) > 0 || self.retired.contains(&node) {
                self.restarts.remove(&node);
                continue;
            }
            match cluster.process(node) {
                // Only other nodes can tell it that its disk was set back: while there is nobody, it would not know (README, "What
                // works, and what does not yet").
                Process::Down if self.set_back.contains(&node) && self.has_company(node, cluster) => {
                    self.start(node, cluster);
                }
                Process::Ended(_) => {
                    let due = *self.restarts.entry(node).or_insert(now + RESTART_AFTER);
                    if due <= now {
                        self.restarts.remove(&node);
                        cluster.start(node);
                    }
                }
                Process::Down | Process::Running => {
                    self.restarts.remove(&node);
                }
            }
        }
    }

    /// Ends everything: the network is whole, the disks are good, the clocks are right, and every node runs.
    pub fn heal(&mut self, cluster: &mut Cluster<'_>) {
        self.heal_but(None, cluster);
    }

    /// Ends everything, and breaks what an aftermath says.
    pub fn heal_but(&mut self, aftermath: Option<&Aftermath>, cluster: &mut Cluster<'_>) {
        self.trace.event(cluster.elapsed(), "nemesis", format_args!("heals all but {aftermath:?}"));
        self.next = self.steps.len();
        self.active.clear();
        self.kept_down.clear();
        cluster.machines().iter().for_each(|machine| machine.disk.set_lying(false));
        self.lasting = aftermath.map(|aftermath| lasting(aftermath, self.plan.nodes())).unwrap_or_default();
        if let Some(Aftermath { broken, how: Broken::Down, .. }) = aftermath {
            for node in broken {
                self.kept_down.insert(*node, 1);
                cluster.crash(*node, Crash::Clean);
            }
        }
        self.apply(cluster);
        let kept = |node: &u8| self.kept_down.contains_key(node) || self.retired.contains(node);
        for node in (0..self.plan.nodes()).filter(|node| !kept(node)) {
            cluster.start(node);
        }
    }

    /// Latencies near the least are the most frequent.
    fn draw_weather(&mut self) {
        let network = self.plan.network;
        let range = f64::from(network.latency_max_ms - network.latency_min_ms);
        for one in 0..=self.plan.nodes() {
            for other in one + 1..=self.plan.nodes() {
                let uniform = (self.random.u64() >> 11) as f64 / (1_u64 << 53) as f64;
                let share = (-(1.0 - uniform).ln() * 10.0 / f64::from(network.curve_x10)).min(1.0);
                self.weather.insert((one, other), network.latency_min_ms + (range * share) as u32);
            }
        }
    }

    fn perform(&mut self, step: Step, cluster: &mut Cluster<'_>) {
        match step {
            Step::Begin(i) => {
                *self.injected.entry(self.plan.faults[i].kind.class()).or_default() += 1;
                if let FaultKind::FullDisk(node) = self.plan.faults[i].kind {
                    self.full_at.insert(i, cluster.machines()[usize::from(node)].disk.bytes());
                }
                self.active.insert(i);
                self.apply(cluster);
            }
            Step::End(i) => {
                self.active.remove(&i);
                if let FaultKind::FailedInsert(node) = self.plan.faults[i].kind {
                    cluster.machines()[usize::from(node)].disk.set_fail_next_insert(false);
                }
                self.apply(cluster);
            }
            Step::Turn(i, on) => {
                if on {
                    self.active.insert(i);
                } else {
                    self.active.remove(&i);
                }
                self.apply(cluster);
            }
            Step::Kill { node, torn } => {
                let torn = torn && self.may_destroy(node, cluster);
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                let (before, held) = (disk.counts().torn, self.copies(torn, &disk));
                cluster.crash(node, if torn { Crash::Torn } else { Crash::Clean });
                if disk.counts().torn > before {
                    self.loses(node, held);
                }
            }
            Step::Stop(node) => cluster.stop(node),
            Step::Start(node) => {
                let waits = self.set_back.contains(&node) && !self.has_company(node, cluster);
                if !waits && self.kept_down.get(&node).copied().unwrap_or(0) == 0 {
                    self.start(node, cluster);
                }
            }
            Step::Move(node) => cluster.machines()[usize::from(node)].moves(),
            Step::Keep(node) => *self.kept_down.entry(node).or_default() += 1,
            Step::LetGo(node) => {
                let kept = self.kept_down.entry(node).or_default();
                *kept = kept.saturating_sub(1);
            }
            Step::FailInsert(node) => cluster.machines()[usize::from(node)].disk.set_fail_next_insert(true),
            Step::FailSync(node) => cluster.machines()[usize::from(node)].disk.fail_next_sync(),
            Step::LosePower(node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                if disk.is_lying() {
                    let held = self.copies(true, &disk);
                    disk.lose_power();
                    self.loses(node, held);
                    self.set_back.insert(node);
                }
            }
            Step::Corrupt(node)
            | Step::CorruptFirst(_, node)
            | Step::CorruptSecond(_, node)
            | Step::Lie(node)
            | Step::Wipe(node)
            | Step::Die(node)
            | Step::RollBack(_, node)
                if !self.may_destroy(node, cluster) => {}
            Step::Corrupt(node) => self.corrupt(node, cluster),
            Step::CorruptFirst(i, node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                let Some((first, second)) = self.pair_of_a_leaf(&disk) else { return };
                self.neighbours.insert(i, second);
                self.damage(node, &disk, &first);
            }
            Step::CorruptSecond(i, node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                let Some(second) = self.neighbours.remove(&i) else { return };
                self.damage(node, &disk, &second);
            }
            Step::Lie(node) => {
                self.loses(node, Vec::new());
                cluster.machines()[usize::from(node)].disk.set_lying(true);
            }
            Step::TakeImage(i, node) => {
                self.images.insert(i, cluster.machines()[usize::from(node)].disk.image());
            }
            Step::Wipe(node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                self.loses(node, self.copies(true, &disk));
                disk.wipe();
            }
            Step::Die(node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                cluster.crash(node, Crash::Clean);
                self.loses(node, self.copies(true, &disk));
                disk.wipe();
                self.dead.insert(node);
                self.retired.insert(node);
            }
            Step::RollBack(i, node) => {
                let disk = cluster.machines()[usize::from(node)].disk.clone();
                self.loses(node, self.copies(true, &disk));
                self.set_back.insert(node);
                disk.roll_back(self.images.get(&i).expect("it was taken before"));
            }
        }
    }

    /// A bad sector holds several records, and what is kept for others rots as well.
    fn corrupt(&mut self, node: u8, cluster: &Cluster<'_>) {
        let disk = &cluster.machines()[usize::from(node)].disk;
        let held = self.copies(true, disk);
        let before = disk.counts().corrupted;
        for _ in 0..=self.random.below(CORRUPT_MAX) {
            let hint = self.random.below(2) == 0 && disk.corrupt_one(Tree::Hints);
            if !hint {
                disk.corrupt_one(Tree::Data);
            }
        }
        if disk.counts().corrupted > before {
            self.loses(node, held);
        }
    }

    /// Damages one record.
    fn damage(&mut self, node: u8, disk: &SimDisk, slot: &Bytes) {
        let held = self.copies(true, disk);
        if disk.corrupt(Tree::Data, slot) {
            self.loses(node, held);
        }
    }

    /// Two drawn records of one leaf of a hash tree.
    fn pair_of_a_leaf(&self, disk: &SimDisk) -> Option<(Bytes, Bytes)> {
        let partitions = self.plan.partitions;
        let mut leaves: BTreeMap<(Partition, u8), Vec<Bytes>> = BTreeMap::new();
        for (slot, _) in disk.content(Tree::Data) {
            let hash = u64::from_be_bytes(*slot.first_chunk()?);
            let leaf = (Partition::of(hash, partitions), merkle::leaf_of(hash, partitions));
            leaves.entry(leaf).or_default().push(slot);
        }
        let pairs: Vec<_> = leaves.into_values().filter(|slots| slots.len() > 1).collect();
        let slots = pairs.get(self.random.below(pairs.len().max(1) as u64) as usize)?;
        let (first, other) = (self.random.below(slots.len() as u64), self.random.below(slots.len() as u64 - 1));
        let second = (first + 1 + other) % slots.len() as u64;
        Some((slots[first as usize].clone(), slots[second as usize].clone()))
    }

    /// A disk is about to lose part of what it held, or has.
    fn loses(&mut self, node: u8, held: Vec<Held>) {
        self.destroyed.insert(node);
        self.ever_destroyed.insert(node);
        self.lost.entry(node).or_default().extend(held);
    }

    /// What a disk holds; nothing if that is not `wanted`, or it will never be asked whether it has come back.
    fn copies(&self, wanted: bool, disk: &SimDisk) -> Vec<Held> {
        if !wanted || !self.plan.in_turn {
            return Vec::new();
        }
        let own = disk.content(Tree::Data).into_iter().filter_map(|(slot, value)| {
            let (owner, key) = (disk.identity().node.to_string(), key_of_data(&slot));
            Some(Held { owner, key, record: Record::decode(&value).ok()? })
        });
        let hints = disk.content(Tree::Hints).into_iter().filter_map(|(slot, value)| {
            let (target, key, record) = decode_hint(&slot, &value).ok()?;
            Some(Held { owner: target.to_string(), key, record })
        });
        own.chain(hints).collect()
    }

    /// Whether all that a disk has lost is there again, durably, where it belongs.
    fn is_whole_again(&self, node: u8, cluster: &Cluster<'_>) -> bool {
        let is_back = |Held { owner, key, record }: &Held| {
            let machine = cluster.machines().iter().find(|machine| machine.node().as_str() == owner);
            let durable = machine.map(|machine| machine.disk.durable(Tree::Data, &data_key(key)));
            let Some(Durable::Value(now)) = durable else { return false };
            // A record that has seen all of the lost one holds its values, or what has replaced them.
            Record::decode(&now).is_ok_and(|mut now| !now.context.join(&record.context.without_names()))
        };
        let lies = cluster.machines()[usize::from(node)].disk.is_lying();
        !lies && self.lost.get(&node).into_iter().flatten().all(is_back)
    }

    /// Damages records of one of the nodes that an aftermath spares, as long as clean copies are left.
    pub fn rot(&mut self, aftermath: &Aftermath, cluster: &Cluster<'_>) {
        let spared = (0..self.plan.nodes()).filter(|node| !aftermath.broken.contains(node));
        let possible: Vec<u8> = spared.filter(|node| self.may_destroy(*node, cluster)).collect();
        let (spoilt, whole): (Vec<_>, Vec<_>) = possible.into_iter().partition(|node| self.destroyed.contains(node));
        let from = if spoilt.is_empty() { whole } else { spoilt };
        if from.is_empty() {
            return;
        }
        let node = from[self.random.below(from.len() as u64) as usize];
        self.trace.event(cluster.elapsed(), "nemesis", format_args!("damages records of {}", name(node)));
        *self.injected.entry(FaultClass::CorruptRecord).or_default() += 1;
        self.corrupt(node, cluster);
    }

    fn start(&mut self, node: u8, cluster: &mut Cluster<'_>) {
        if self.retired.contains(&node) {
            return;
        }
        self.set_back.remove(&node);
        cluster.start(node);
    }

    /// Whether any other node runs that this one can ask when it starts, and that stays for as long as it waits.
    fn has_company(&self, node: u8, cluster: &Cluster<'_>) -> bool {
        let nodes = self.plan.nodes();
        let delays = |fault: &FaultKind| matches!(fault, FaultKind::Latency { .. });
        let until = cluster.elapsed() + if self.active_faults().any(delays) { SLOW_COMPANY } else { COMPANY };
        let soon =
            self.steps[self.next..].iter().take_while(|(at, _)| *at <= until).filter_map(|(_, step)| match step {
                Step::Begin(i) => Some(&self.plan.faults[*i].kind),
                _ => None,
            });
        let faults: Vec<&FaultKind> = self.active_faults().chain(soon).collect();
        let keeps_away = |fault: &FaultKind, other: u8| match fault {
            FaultKind::Partition(_)
            | FaultKind::Bridge { .. }
            | FaultKind::OneWay { .. }
            | FaultKind::Apart { .. }
            | FaultKind::CutFromPeers { .. } => cuts(fault, node, other, nodes) || cuts(fault, other, node, nodes),
            FaultKind::RollingRestart => true,
            // A slow one answers as well.
            FaultKind::SlowDisk { .. } | FaultKind::Latency { .. } | FaultKind::WrongClock { .. } => false,
            _ if fault.class().is_of_a_client() => false,
            _ => fault.nodes().contains(&other),
        };
        (0..nodes).any(|other| {
            let away = faults.iter().any(|fault| keeps_away(fault, other));
            // Who has never met it cannot tell.
            let knows = || self.plan.spares.is_empty() || layouts::knows(cluster, other, node);
            other != node && cluster.process(other) == Process::Running && !away && knows()
        })
    }

    /// Whether enough clean copies are left when this node's disk loses something.
    fn may_destroy(&mut self, node: u8, cluster: &Cluster<'_>) -> bool {
        if self.plan.in_turn {
            let whole: Vec<u8> =
                self.destroyed.iter().copied().filter(|node| self.is_whole_again(*node, cluster)).collect();
            for node in whole {
                self.destroyed.remove(&node);
                self.lost.remove(&node);
            }
        }
        self.plan.reckless || self.destroyed.contains(&node) || self.destroyed.len() < self.destroyed_max
    }

    /// Makes network, disks and clocks what all faults that last make of them.
    fn apply(&self, cluster: &Cluster<'_>) {
        let nodes = self.plan.nodes();
        let active: Vec<&FaultKind> = self.active_faults().collect();
        // Clients are the host after the last node.
        let hosts = 0..=nodes;
        let ip = |host: u8| -> IpAddr { cluster.network().lookup(host_name(host, nodes)) };
        for from in hosts.clone() {
            let cut =
                hosts.clone().filter(|to| active.iter().any(|fault| cuts(fault, from, *to, nodes))).map(ip).collect();
            cable(cluster, from).set_cut(cut);
        }
        let network = self.plan.network;
        for one in hosts.clone() {
            for other in one + 1..=nodes {
                let (a, b) = (host_name(one, nodes), host_name(other, nodes));
                let held =
                    |fault: &&FaultKind| matches!(fault, FaultKind::Pause(node) if *node == one || *node == other);
                // Each tells the network what it may know already, which changes nothing.
                if active.iter().any(held) {
                    cluster.network().hold(a.as_str(), b.as_str());
                } else {
                    cluster.network().release(a.as_str(), b.as_str());
                }
                let more: u32 = active
                    .iter()
                    .map(|fault| match fault {
                        FaultKind::Latency { node, more_ms } if *node == one || *node == other => *more_ms,
                        _ => 0,
                    })
                    .sum();
                let latency = self.weather.get(&(one, other)).copied().unwrap_or(network.latency_max_ms) + more;
                cluster.network().set_link_latency(a.as_str(), b.as_str(), millis(latency));
            }
        }
        for node in 0..nodes {
            let machine = &cluster.machines()[usize::from(node)];
            let (mut packets, mut latency_ms, mut offset_ms, mut bytes_max) =
                (PacketFaults::default(), 0, 0, None::<u64>);
            for i in &self.active {
                match &self.plan.faults[*i].kind {
                    FaultKind::Packets { node: whose, faults } if *whose == node => packets = worst(packets, *faults),
                    FaultKind::SlowDisk { node: whose, latency_ms: ms } if *whose == node => {
                        latency_ms = latency_ms.max(*ms);
                    }
                    FaultKind::WrongClock { node: whose, offset_ms: ms } if *whose == node => offset_ms = *ms,
                    FaultKind::FullDisk(whose) if *whose == node => {
                        let at = self.full_at.get(i).copied().unwrap_or(0);
                        // Some of the reserve is left at first, for deletes and what is handed over.
                        let at = at + DISK_RESERVE / 2;
                        bytes_max = Some(bytes_max.map_or(at, |bytes| bytes.min(at)));
                    }
                    _ => {}
                }
            }
            machine.cable.set_faults(packets);
            machine.disk.set_latency(millis(latency_ms));
            machine.set_clock_offset_ms(offset_ms);
            machine.disk.set_bytes_max(bytes_max);
        }
    }
}

/// What keeps the nodes of an aftermath broken; those that are down are kept so without it.
fn lasting(aftermath: &Aftermath, nodes: u8) -> Vec<FaultKind> {
    let Aftermath { broken, how, .. } = aftermath;
    // The host after the last node is the clients'.
    let others = |node: u8| (0..=nodes).filter(move |other| *other != node).map(move |other| (node, other));
    let pairs = || broken.iter().copied().flat_map(others);
    match how {
        Broken::Down => Vec::new(),
        Broken::Cut => vec![FaultKind::Partition(broken.clone())],
        Broken::Mute => pairs().map(|(from, to)| FaultKind::OneWay { from, to }).collect(),
        Broken::Deaf => pairs().map(|(to, from)| FaultKind::OneWay { from, to }).collect(),
        Broken::Paused => broken.iter().map(|node| FaultKind::Pause(*node)).collect(),
        Broken::FromPeers(hearing) => {
            broken.iter().map(|node| FaultKind::CutFromPeers { node: *node, hearing: *hearing }).collect()
        }
    }
}

/// What a fault does, and when, in milliseconds after the start.
fn steps_of(i: usize, fault: &Fault, nodes: u8) -> Vec<(u32, Step)> {
    let (from, to) = (fault.at_ms, fault.at_ms + fault.for_ms);
    let mut steps = vec![(from, Step::Begin(i))];
    let down = |steps: &mut Vec<(u32, Step)>, node: u8, torn: bool, from: u32, to: u32| {
        steps.extend([(from, Step::Keep(node)), (from, Step::Kill { node, torn })]);
        steps.extend([(to, Step::LetGo(node)), (to, Step::Start(node))]);
    };
    match &fault.kind {
        FaultKind::Partition(_)
        | FaultKind::Bridge { .. }
        | FaultKind::OneWay { .. }
        | FaultKind::Packets { .. }
        | FaultKind::Latency { .. }
        | FaultKind::Pause(_)
        | FaultKind::FullDisk(_)
        | FaultKind::SlowDisk { .. }
        | FaultKind::WrongClock { .. }
        | FaultKind::Apart { .. }
        | FaultKind::CutFromPeers { .. }
        // Done by a client: see `crate::bad_clients`.
        | FaultKind::UnreadAnswers(_)
        | FaultKind::UnfinishedRequests(_) => {}
        FaultKind::Flap(_) => {
            let turns = (from..to).step_by(FLAP_MS).enumerate().skip(1);
            steps.extend(turns.map(|(turn, at)| (at, Step::Turn(i, turn % 2 == 0))));
        }
        FaultKind::Crash { node, torn } => down(&mut steps, *node, *torn, from, to),
        FaultKind::CrashInRecovery { node, again_after_ms } => {
            let half = from + fault.for_ms / 2;
            down(&mut steps, *node, false, from, half);
            down(&mut steps, *node, false, (half + again_after_ms).min(to), to);
        }
        FaultKind::PowerCut(all) | FaultKind::OwnersDown(all) => {
            for node in all {
                down(&mut steps, *node, false, from, to);
            }
        }
        FaultKind::RollingRestart => {
            let share = fault.for_ms / u32::from(nodes);
            for node in 0..nodes {
                let at = from + share * u32::from(node);
                let again = at + share / 2;
                steps.extend([(at, Step::Keep(node)), (at, Step::Stop(node))]);
                // One that has not ended by then is killed.
                steps.extend([(again, Step::Kill { node, torn: false }), (again, Step::LetGo(node))]);
                steps.push((again, Step::Start(node)));
            }
        }
        FaultKind::FailedSync(node) => {
            steps.extend([(from, Step::Keep(*node)), (from, Step::FailSync(*node))]);
            // A node that had nothing to sync is killed, and never learns of it.
            steps.extend([(to, Step::Kill { node: *node, torn: false }), (to, Step::LetGo(*node))]);
            steps.push((to, Step::Start(*node)));
        }
        FaultKind::FailedInsert(node) => steps.push((from, Step::FailInsert(*node))),
        FaultKind::CorruptRecord(node) => steps.push((from, Step::Corrupt(*node))),
        FaultKind::CorruptLeaf(node) => {
            steps.extend([(from, Step::CorruptFirst(i, *node)), (to, Step::CorruptSecond(i, *node))]);
        }
        FaultKind::LyingDisk(node) => {
            let cut = from + fault.for_ms / 4 * 3;
            steps.push((from, Step::Lie(*node)));
            down(&mut steps, *node, false, cut, to);
            let killed = steps.len() - 2;
            steps.insert(killed, (cut, Step::LosePower(*node)));
        }
        FaultKind::Moves(node) => {
            down(&mut steps, *node, false, from, to);
            steps.insert(3, (from, Step::Move(*node)));
        }
        FaultKind::DiesForGood(node) => steps.push((from, Step::Die(*node))),
        FaultKind::EmptyDisk(node) => {
            down(&mut steps, *node, false, from, to);
            steps.insert(3, (from, Step::Wipe(*node)));
        }
        FaultKind::RolledBackDisk { node, back_ms } => {
            down(&mut steps, *node, false, from, to);
            steps.insert(3, (from, Step::RollBack(i, *node)));
            steps.insert(0, (from.saturating_sub(*back_ms), Step::TakeImage(i, *node)));
        }
    }
    steps.push((to, Step::End(i)));
    steps
}

/// Whether a fault keeps what one host sends from another one. The host after the last node is the clients'.
fn cuts(fault: &FaultKind, from: u8, to: u8, nodes: u8) -> bool {
    match fault {
        FaultKind::CutFromPeers { node, hearing } => {
            let of_it = |mute: bool, deaf: bool| mute && from == *node || deaf && to == *node;
            let peers = from != to && from < nodes && to < nodes;
            peers
                && match hearing {
                    Hearing::Neither => of_it(true, true),
                    Hearing::Deaf => of_it(false, true),
                    Hearing::Mute => of_it(true, false),
                }
        }
        FaultKind::Partition(side) => side.contains(&from) != side.contains(&to),
        FaultKind::Bridge { side, bridge } => {
            from != *bridge && to != *bridge && side.contains(&from) != side.contains(&to)
        }
        FaultKind::Apart { one, other } => {
            one.contains(&from) && other.contains(&to) || other.contains(&from) && one.contains(&to)
        }
        FaultKind::OneWay { from: mute, to: deaf } => (from, to) == (*mute, *deaf),
        FaultKind::Flap(node) => from != to && (from == *node || to == *node),
        _ => false,
    }
}

/// Whether a node that a fault is about may refuse what it is asked, and does so at once.
fn ails(fault: &FaultKind, node: u8) -> bool {
    match fault {
        FaultKind::FullDisk(whose)
        | FaultKind::FailedSync(whose)
        | FaultKind::FailedInsert(whose)
        | FaultKind::CorruptRecord(whose)
        | FaultKind::CorruptLeaf(whose)
        | FaultKind::LyingDisk(whose) => *whose == node,
        _ => false,
    }
}

/// The host after the last node is the clients'.
fn host_name(host: u8, nodes: u8) -> String {
    if host < nodes { name(host) } else { CLIENTS.to_owned() }
}

fn cable<'a>(cluster: &'a Cluster<'_>, host: u8) -> &'a crate::socket::Cable {
    match cluster.machines().get(usize::from(host)) {
        Some(machine) => &machine.cable,
        None => &cluster.clients().cable,
    }
}

fn worst(one: PacketFaults, other: PacketFaults) -> PacketFaults {
    PacketFaults {
        loss: one.loss.max(other.loss),
        duplication: one.duplication.max(other.duplication),
        corruption: one.corruption.max(other.corruption),
        truncation: one.truncation.max(other.truncation),
        reordering: one.reordering.max(other.reordering),
        delay_max_ms: one.delay_max_ms.max(other.delay_max_ms),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// How long a flapping node is away, and back.
const FLAP_MS: usize = 1000;

/// How long latencies stay.
const WEATHER: Duration = Duration::from_secs(1);

/// So many records are damaged at once at most.
const CORRUPT_MAX: u64 = 8;

/// How soon a process manager starts a process again that ended by itself.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// A node that starts waits for a second for the others to say how far its disk was; the dial takes its time before that.
const COMPANY: Duration = Duration::from_secs(2);

/// Where a handshake takes longer than that, it waits until somebody has said so, for ten seconds.
const SLOW_COMPANY: Duration = Duration::from_secs(11);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_sides_and_bridges_have_two_ends() {
        let split = FaultKind::Partition([0, 1].into());
        assert!(!cuts(&split, 0, 1, 4) && cuts(&split, 0, 2, 4) && cuts(&split, 2, 0, 4) && !cuts(&split, 2, 3, 4));
        let bridge = FaultKind::Bridge { side: [0, 1].into(), bridge: 2 };
        assert!(cuts(&bridge, 0, 3, 4) && !cuts(&bridge, 0, 2, 4) && !cuts(&bridge, 2, 3, 4));
        let one_way = FaultKind::OneWay { from: 0, to: 1 };
        assert!(cuts(&one_way, 0, 1, 4) && !cuts(&one_way, 1, 0, 4) && !cuts(&one_way, 0, 2, 4));
        let apart = FaultKind::Apart { one: [0, 1].into(), other: [2].into() };
        assert!(cuts(&apart, 0, 2, 4) && cuts(&apart, 2, 1, 4), "neither hears the other");
        assert!(!cuts(&apart, 0, 1, 4) && !cuts(&apart, 0, 3, 4) && !cuts(&apart, 3, 2, 4) && !cuts(&apart, 4, 0, 4));
    }

    #[test]
    fn an_aftermath_parts_the_broken_from_everybody_also_from_clients() {
        let reach = |how, from, to| {
            let broken = lasting(&Aftermath { broken: [1].into(), how, sudden: false, rots: false }, 3);
            !broken.iter().any(|fault| cuts(fault, from, to, 3))
        };
        for other in [0, 2, 3] {
            assert_eq!((reach(Broken::Cut, 1, other), reach(Broken::Cut, other, 1)), (false, false));
            assert_eq!((reach(Broken::Mute, 1, other), reach(Broken::Mute, other, 1)), (false, true));
            assert_eq!((reach(Broken::Deaf, 1, other), reach(Broken::Deaf, other, 1)), (true, false));
        }
        assert!(reach(Broken::Cut, 0, 2) && reach(Broken::Mute, 0, 3) && reach(Broken::Deaf, 2, 3));
        let paused = Aftermath { broken: [1].into(), how: Broken::Paused, sudden: false, rots: false };
        assert_eq!(lasting(&paused, 3), [FaultKind::Pause(1)]);
    }

    #[test]
    fn whoever_is_cut_off_from_its_peers_is_there_for_clients() {
        let cut = |hearing, from, to| cuts(&FaultKind::CutFromPeers { node: 1, hearing }, from, to, 3);
        for hearing in [Hearing::Neither, Hearing::Deaf, Hearing::Mute] {
            assert!(!cut(hearing, 1, 3) && !cut(hearing, 3, 1) && !cut(hearing, 0, 2) && !cut(hearing, 1, 1));
        }
        assert!(cut(Hearing::Neither, 1, 0) && cut(Hearing::Neither, 2, 1));
        assert!(!cut(Hearing::Deaf, 1, 0) && cut(Hearing::Deaf, 2, 1));
        assert!(cut(Hearing::Mute, 1, 0) && !cut(Hearing::Mute, 2, 1));
    }

    #[test]
    fn whatever_is_killed_or_kept_down_is_let_go_and_started_at_the_end() {
        let all: BTreeSet<FaultClass> = FaultClass::ALL.into_iter().collect();
        for seed in 0..200 {
            let plan = Plan::draw(seed, &all);
            for (i, fault) in plan.faults.iter().enumerate() {
                let steps = steps_of(i, fault, plan.nodes());
                let end = fault.at_ms + fault.for_ms;
                assert!(steps.iter().all(|(at, _)| *at <= end), "seed {seed}: {steps:?}");
                let count = |of: fn(&Step) -> bool| steps.iter().filter(|(_, step)| of(step)).count();
                let kept = count(|step| matches!(step, Step::Keep(_)));
                assert_eq!(kept, count(|step| matches!(step, Step::LetGo(_))), "seed {seed}: {steps:?}");
                assert_eq!(kept, count(|step| matches!(step, Step::Start(_))), "seed {seed}: {steps:?}");
                assert!(count(|step| matches!(step, Step::Kill { .. })) >= kept.min(1), "seed {seed}: {steps:?}");
            }
        }
    }
}

//! Stories: lives whose layout changes just so that it matters whether one rule of a change is kept.
//!
//! A rule of [`quorate_core::transition`] counts only where nodes know and hold different things: who has learned of the change, which
//! owners hold a write, who hears whom. Left to chance that is rare, and what heals replicas hides it. So in half of the lives with changes
//! one story is told: all keys have the same owners, quorums just overlap, replicas are not healed by anything else than the change, and
//! the faults are laid around one change. The other half are as chance has them, with crashes of those who have a part in a change.
//!
//! A story is drawn into an ordinary plan, which shrinks and replays as any other.

use std::collections::BTreeSet;

use quorate_wire::Quorum;
use quorate_wire::ids::Partition;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{
    ANY_PRIMARY, Fault, FaultClass, FaultKind, Floors, LayoutChange, Mechanisms, Mix, Plan, Spare, Staging, away,
    draw_nodes, draw_of, plenty_kib, rng,
};

/// What a story is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Story {
    /// A write lies with W owners only, which all are away while others take their places: those who are left and the new owners are
    /// enough for a read, and for no new owner to be ready (rules L5 and L6).
    HoldersAway,
    /// Writes below the floor lie with the owners that go and that are away during the change. They come back when it is over and have
    /// to hand all of it over before they drop it (rule L9).
    LateLeavers,
    /// The owners that go and those that come do not hear each other: no write is acknowledged by one side only that a read of the other
    /// one would miss (rule L1).
    Strangers,
    /// The same, but one of those that go hears those that come, and all of those that go (rule L1).
    GoBetween,
    /// The same, but those that go and hear those that come are parted from those that go and do not: few have closed (rule L8).
    FewClose,
    /// Owners that have closed an older layout lose their power and come back among themselves (rule L7).
    ClosersCrash,
    /// A coordinator that is far away goes on for seconds by the older layout (rule L2).
    FarCoordinator,
    /// Owners that have not made a layout their fence, because they still take something over, are asked for what they hold, and a far
    /// coordinator goes on by the layout before (rule L4).
    FenceWaits,
    /// A fallback keeps writes for an owner that goes, and the other owners are away (rule L12).
    KeptForWhoGoes,
    /// A node dies for good in the midst of a change, and operators have another one take its place.
    DiesForGood,
    /// Operators on both sides of a split want something else of one version (rule L13).
    Split,
}

impl Story {
    pub(super) const ALL: [Self; 11] = [
        Self::HoldersAway,
        Self::LateLeavers,
        Self::Strangers,
        Self::GoBetween,
        Self::FewClose,
        Self::ClosersCrash,
        Self::FarCoordinator,
        Self::FenceWaits,
        Self::KeptForWhoGoes,
        Self::DiesForGood,
        Self::Split,
    ];

    /// That of a seed whose layout changes, if it is a story.
    fn of(seed: u64) -> Option<Self> {
        let rng = &mut rng(seed, "story");
        rng.random_bool(0.5).then(|| one_of(rng, &Self::ALL))
    }
}

/// The nodes of a story.
#[derive(Debug)]
struct Cast {
    /// Who owns everything at first, in the order of the ring.
    owners: Vec<u8>,
    /// Members that own nothing.
    others: Vec<u8>,
    /// Who is not yet a member.
    spares: Vec<u8>,
}

impl Cast {
    fn owners(&self) -> BTreeSet<u8> {
        self.owners.iter().copied().collect()
    }

    fn bystanders(&self) -> BTreeSet<u8> {
        self.others.iter().copied().collect()
    }

    fn newcomers(&self) -> BTreeSet<u8> {
        self.spares.iter().copied().collect()
    }

    fn all(&self) -> BTreeSet<u8> {
        [&self.owners, &self.others, &self.spares].into_iter().flatten().copied().collect()
    }

    /// Members but for some.
    fn members_without(&self, without: &BTreeSet<u8>) -> BTreeSet<u8> {
        let members: BTreeSet<u8> = self.owners.iter().chain(&self.others).copied().collect();
        members.difference(without).copied().collect()
    }
}

impl Plan {
    /// Makes it one of the stories, if all that they need is allowed.
    pub(super) fn tell_a_story(&mut self, allowed: &BTreeSet<FaultClass>) -> bool {
        let needed = [
            FaultClass::Partition,
            FaultClass::Crash,
            FaultClass::Pause,
            FaultClass::PowerCut,
            FaultClass::Latency,
            FaultClass::EmptyDisk,
            FaultClass::OwnersDown,
            FaultClass::Apart,
            FaultClass::DiesForGood,
        ];
        let story = Story::of(self.seed).filter(|_| needed.iter().all(|class| allowed.contains(class)));
        if let Some(story) = story {
            self.tell(story, &mut rng(self.seed, "what happens in a story"));
        }
        story.is_some()
    }

    fn tell(&mut self, story: Story, rng: &mut StdRng) {
        (self.faults, self.changes, self.spares) = (Vec::new(), Vec::new(), Vec::new());
        (self.aftermath, self.in_turn) = (None, false);
        match story {
            Story::HoldersAway => self.holders_are_away(rng),
            Story::LateLeavers => self.leavers_come_late(rng),
            Story::Strangers | Story::GoBetween | Story::FewClose => self.owners_are_apart(story, rng),
            Story::ClosersCrash => self.closers_crash(rng),
            Story::FarCoordinator => self.coordinator_is_far(rng),
            Story::FenceWaits => self.fence_waits(rng),
            Story::KeptForWhoGoes => self.kept_for_who_goes(rng),
            Story::DiesForGood => self.dies_for_good(rng),
            Story::Split => self.split(rng),
        }
        self.faults.sort_by_key(|fault| fault.at_ms);
        self.changes.sort_by_key(|change| change.at_ms);
    }

    /// A cluster in which all keys have the same owners, and in which nothing but a change of layout brings them together.
    fn cast(&mut self, n: u8, (r, w): (u8, u8), (others, spares): (u8, u8)) -> Cast {
        let members = n + others;
        (self.n, self.partitions) = (n, 1);
        self.zones = (0..members).collect();
        self.spares = (members..members + spares).map(|zone| Spare { zone, from_ms: None }).collect();
        let majority = Quorum::Majority.count(n);
        self.floors = Some(Floors { r, w }).filter(|_| (r, w) != (majority, majority));
        self.mechanisms = Mechanisms {
            fallbacks: false,
            hints: false,
            read_repair: self.mechanisms.read_repair,
            anti_entropy: false,
        };
        self.request_memory_kib = plenty_kib();
        self.network.latency_max_ms = self.network.latency_max_ms.min(10);
        let workload = &mut self.workload;
        workload.quorums = vec![(Quorum::Exactly(r), Quorum::Exactly(w))];
        (workload.strict_percent, workload.monotonic_percent) = (100, 0);
        (workload.clients, workload.operations) = (workload.clients.clamp(4, 6), 300);
        (workload.keys, workload.skew_x1000) = (workload.keys.clamp(3, 10), 0);
        (workload.pause_max_ms, workload.timeout_ms) = (workload.pause_max_ms.min(20), 400);
        workload.value_len_max = workload.value_len_max.min(500);
        // A delete excuses whatever is missing.
        workload.mix = Mix { get: 6, put: 4, blind_put: 2, delete: 0, update: 1 };
        (workload.foreign_percent, workload.scan_percent, workload.repeat_percent) = (0, 0, 0);
        let ring = self.ring();
        let named = |node: &u8| crate::cluster::name(*node);
        let owners = ring.primaries(Partition(0)).iter();
        let owners = owners.filter_map(|owner| (0..members).find(|node| named(node) == owner.as_str()));
        let owners: Vec<u8> = owners.collect();
        let others = (0..members).filter(|node| !owners.contains(node)).collect();
        Cast { owners, others, spares: (members..members + spares).collect() }
    }

    fn fault(&mut self, from_ms: u32, to_ms: u32, kind: FaultKind) {
        self.faults.push(Fault { at_ms: from_ms, for_ms: to_ms - from_ms, kind });
    }

    fn change(&mut self, at_ms: u32, at: u8, stage: Vec<Staging>) {
        self.changes.push(LayoutChange { at_ms, at, stage, stops: false, insists: false });
    }

    fn holders_are_away(&mut self, rng: &mut StdRng) {
        let n = one_of(rng, &[3, 3, 3, 4]);
        let majority = Quorum::Majority.count(n);
        let w = if rng.random_bool(0.5) { majority } else { rng.random_range(1..n) };
        let r = if w == majority { majority } else { n + 1 - w };
        // Who decides is there while all holders are away.
        let others = (2 * w + 1).saturating_sub(n) + rng.random_range(0..=1);
        let cast = self.cast(n, (r, w), (others, w));
        let holders = draw_of(rng, &cast.owners(), w);
        let behind: BTreeSet<u8> = cast.owners().difference(&holders).copied().collect();
        let at_ms = rng.random_range(3_000..4_500);
        let turn_ms = at_ms + rng.random_range(2_500..4_500);
        let change_ms = turn_ms + rng.random_range(300..1_500);
        let back_ms = change_ms + rng.random_range(6_000..8_000);
        self.faults.extend(away(rng, &WAYS, &behind, at_ms, turn_ms));
        self.faults.extend(away(rng, &WAYS, &holders, turn_ms, back_ms));
        // So many have to come that a read can do without the holders.
        let least = (r + w).saturating_sub(n).max(1);
        let count = rng.random_range(least..=w);
        let moved = draw_of(rng, &holders, count);
        let operator = any(rng, &cast.members_without(&holders));
        self.change(change_ms, operator, replaced(moved, &cast.spares));
        self.active_ms = back_ms + rng.random_range(2_000..4_000);
    }

    fn leavers_come_late(&mut self, rng: &mut StdRng) {
        let (n, leaving, others) = one_of(rng, &[(3, 1, 0), (4, 2, 1), (5, 2, 0), (5, 2, 0)]);
        let majority = Quorum::Majority.count(n);
        let cast = self.cast(n, (majority, majority), (others + rng.random_range(0..=1), leaving));
        self.mechanisms.read_repair = false;
        self.workload.quorums.push((Quorum::One, Quorum::Exactly(leaving)));
        // What is written once more is not only with them.
        self.workload.keys = 150;
        let leavers = draw_of(rng, &cast.owners(), leaving);
        let stay: BTreeSet<u8> = cast.all().difference(&leavers).copied().collect();
        let at_ms = rng.random_range(2_500..3_500);
        let turn_ms = at_ms + rng.random_range(3_000..5_000);
        let change_ms = turn_ms + rng.random_range(300..1_500);
        let back_ms = change_ms + rng.random_range(6_000..8_000);
        // Clients are with those who leave, and then with those who stay.
        self.fault(at_ms, turn_ms, FaultKind::Partition(stay));
        self.faults.extend(away(rng, &WAYS, &leavers, turn_ms, back_ms));
        let operator = any(rng, &cast.members_without(&leavers));
        let stage = replaced(leavers.clone(), &cast.spares);
        let mut end_ms = back_ms;
        if leaving > 1 {
            // One disk may lose what it holds, as W have said that they hold it. It is the first owner's, to whom others turn first.
            let first = cast.owners[0];
            let heir = leavers.iter().position(|node| *node == first).map_or(first, |at| cast.spares[at]);
            let lost_ms = back_ms + rng.random_range(5_000..7_000);
            end_ms = lost_ms + rng.random_range(300..1_000);
            self.fault(lost_ms, end_ms, FaultKind::EmptyDisk(heir));
        }
        self.change(change_ms, operator, stage);
        self.active_ms = end_ms + rng.random_range(3_000..5_000);
    }

    fn owners_are_apart(&mut self, story: Story, rng: &mut StdRng) {
        let (n, floors, others) = match story {
            Story::Strangers => one_of(rng, &[(3, (2, 2), 2), (3, (2, 2), 2), (2, (2, 2), 2), (3, (1, 3), 2)]),
            Story::FewClose => one_of(rng, &[(3, (1, 3), 2), (3, (1, 3), 2), (4, (2, 3), 1)]),
            _ => (3, (1, 3), 2),
        };
        let cast = self.cast(n, floors, (others, n));
        let sources = if story == Story::Strangers { 0 } else { n - floors.1 + 1 };
        let between = draw_of(rng, &cast.owners(), sources);
        let old: BTreeSet<u8> = cast.owners().difference(&between).copied().collect();
        let at_ms = rng.random_range(2_500..4_000);
        let change_ms = at_ms + rng.random_range(500..2_500);
        let mut end_ms = change_ms + rng.random_range(6_000..9_000);
        if story == Story::FewClose {
            // Clients are with the others first, and then with those who have heard nothing.
            let turn_ms = change_ms + rng.random_range(3_000..5_000);
            end_ms = turn_ms + rng.random_range(4_000..6_000);
            self.fault(at_ms, turn_ms, FaultKind::Partition(old.clone()));
            self.fault(turn_ms, end_ms, FaultKind::Partition(cast.all().difference(&old).copied().collect()));
            // One that comes lacks what it has to take over, so that the older layout is not forgotten.
            let late = any(rng, &cast.newcomers());
            self.fault(at_ms, end_ms, FaultKind::Apart { one: [late].into(), other: between });
        } else {
            self.fault(at_ms, end_ms, FaultKind::Apart { one: old.clone(), other: cast.newcomers() });
        }
        let operator = any(rng, &cast.members_without(&old));
        self.change(change_ms, operator, replaced(cast.owners(), &cast.spares));
        self.begin_anywhere();
        self.active_ms = end_ms + rng.random_range(2_000..4_000);
    }

    fn closers_crash(&mut self, rng: &mut StdRng) {
        let cast = self.cast(3, (2, 2), (2, 3));
        let (old, late) = (cast.owners(), any(rng, &cast.newcomers()));
        let at_ms = rng.random_range(2_500..3_500);
        let change_ms = at_ms + rng.random_range(500..1_500);
        let cut_ms = change_ms + rng.random_range(4_000..6_000);
        let end_ms = cut_ms + rng.random_range(5_000..7_000);
        // One that comes lacks what it has to take over, so that the change goes on for as long as that.
        self.fault(at_ms, end_ms, FaultKind::Apart { one: old.clone(), other: [late].into() });
        self.fault(cut_ms, cut_ms + rng.random_range(300..800), FaultKind::PowerCut(old));
        // Clients are with those who go by then.
        self.fault(cut_ms, end_ms, FaultKind::Partition(cast.newcomers()));
        let operator = any(rng, &cast.bystanders());
        self.change(change_ms, operator, replaced(cast.owners(), &cast.spares));
        self.begin_anywhere();
        self.active_ms = end_ms + rng.random_range(2_000..4_000);
    }

    fn coordinator_is_far(&mut self, rng: &mut StdRng) {
        let cast = self.cast(3, (2, 2), (2, 3));
        let far = any(rng, &cast.owners());
        let near: BTreeSet<u8> = cast.owners().into_iter().filter(|node| *node != far).collect();
        let new = cast.newcomers();
        let (late, deaf) = (any(rng, &new), any(rng, &near));
        let at_ms = rng.random_range(2_500..3_500);
        let change_ms = at_ms + rng.random_range(3_000..5_000);
        let end_ms = change_ms + rng.random_range(8_000..10_000);
        self.fault(at_ms, end_ms, FaultKind::Latency { node: far, more_ms: rng.random_range(500..1_000) });
        // What it holds itself would be taken over when it has learned of the change.
        self.fault(at_ms, end_ms, FaultKind::Apart { one: [far].into(), other: new });
        // One that comes lacks what it has to take over, so that nobody drops anything meanwhile.
        self.fault(at_ms, end_ms, FaultKind::Apart { one: [late].into(), other: [deaf].into() });
        let operator = any(rng, &cast.bystanders());
        self.change(change_ms, operator, replaced(cast.owners(), &cast.spares));
        self.go_far();
        self.active_ms = end_ms + rng.random_range(2_000..4_000);
    }

    /// Clients wait for a coordinator that is seconds away, and some of them begin with it.
    fn go_far(&mut self) {
        (self.workload.timeout_ms, self.workload.clients) = (8_000, 8);
        self.begin_anywhere();
    }

    /// Writes begin with any owner that clients know.
    fn begin_anywhere(&mut self) {
        self.points.on.retain(|point| point.starts_with("change:") || point.starts_with("layouts:"));
        self.points.on.insert(ANY_PRIMARY.to_owned());
        self.points.per_mille = 500;
    }

    fn fence_waits(&mut self, rng: &mut StdRng) {
        let cast = self.cast(3, (2, 2), (2, 2));
        let mut owners: Vec<u8> = cast.owners.clone();
        // Whose place is taken first, whose second, and who keeps its own.
        let leaver = owners.remove(rng.random_range(0..3));
        let far = owners.remove(rng.random_range(0..2));
        let stays = owners[0];
        let at_ms = rng.random_range(2_500..3_500);
        let first_ms = at_ms + rng.random_range(2_500..4_000);
        let second_ms = first_ms + rng.random_range(1_000..2_500);
        let end_ms = second_ms + rng.random_range(12_000..15_000);
        // It is taken over from for seconds, and until then nobody who does that looks for a newer layout.
        self.fault(at_ms, end_ms, FaultKind::Latency { node: leaver, more_ms: rng.random_range(500..1_000) });
        self.fault(at_ms, end_ms, FaultKind::Latency { node: far, more_ms: rng.random_range(500..1_000) });
        let not_heard = cast.all().into_iter().filter(|node| ![far, stays].contains(node)).collect();
        self.fault(at_ms, end_ms, FaultKind::Apart { one: [far].into(), other: not_heard });
        let operator = any(rng, &cast.bystanders());
        self.change(first_ms, operator, replaced([leaver].into(), &cast.spares[..1]));
        self.change(second_ms, operator, replaced([far].into(), &cast.spares[1..]));
        self.changes[1].insists = true;
        self.go_far();
        self.active_ms = end_ms + rng.random_range(2_000..4_000);
    }

    fn kept_for_who_goes(&mut self, rng: &mut StdRng) {
        let cast = self.cast(3, (2, 2), (4, 1));
        (self.mechanisms.fallbacks, self.mechanisms.hints) = (true, true);
        let workload = &mut self.workload;
        workload.quorums = vec![(Quorum::One, Quorum::One)];
        (workload.strict_percent, workload.timeout_ms) = (0, 1_000);
        let at_ms = rng.random_range(2_500..3_500);
        // Others stand in once they are missed.
        let change_ms = at_ms + rng.random_range(8_000..10_000);
        let end_ms = change_ms + rng.random_range(4_000..6_000);
        let operator = any(rng, &cast.bystanders());
        let goes = if rng.random_bool(0.7) { cast.owners[0] } else { any(rng, &cast.owners()) };
        // What is kept for it is handed over once it is there again, or forgotten: before the others are.
        let back_ms = change_ms + rng.random_range(800..2_000);
        self.fault(at_ms, back_ms, FaultKind::Crash { node: goes, torn: false });
        let others = cast.owners().into_iter().filter(|node| *node != goes).collect();
        self.fault(at_ms, end_ms, FaultKind::OwnersDown(others));
        self.change(change_ms, operator, replaced([goes].into(), &cast.spares));
        self.active_ms = end_ms + rng.random_range(3_000..5_000);
    }

    fn dies_for_good(&mut self, rng: &mut StdRng) {
        let partitions = self.partitions;
        let (strict, hints, timeout_ms) =
            (self.workload.strict_percent, rng.random_bool(0.5), self.workload.timeout_ms);
        let n = one_of(rng, &[3, 3, 3, 4, 5]);
        let majority = Quorum::Majority.count(n);
        let cast = self.cast(n, (majority, majority), (rng.random_range(0..=2), 3));
        self.partitions = partitions;
        (self.mechanisms.fallbacks, self.mechanisms.hints) = (hints, hints);
        self.mechanisms.anti_entropy = rng.random_bool(0.5);
        self.workload.mix.delete = rng.random_range(0..=2);
        (self.workload.strict_percent, self.workload.timeout_ms) = (strict, timeout_ms.min(1_000));
        let members = cast.members_without(&BTreeSet::new());
        let goes = draw_of(rng, &members, 2);
        let stage = match rng.random_range(0..5) {
            0 => vec![Staging::Join(cast.spares[0])],
            1 => vec![Staging::Join(cast.spares[0]), Staging::Join(cast.spares[1])],
            2 => replaced(goes, &cast.spares[..2]),
            _ => replaced([any(rng, &members)].into(), &cast.spares[..1]),
        };
        let operators = draw_of(rng, &members, 2);
        let first = any(rng, &operators);
        // Whoever has a part in it may die: who gives, who takes, who proposes, who accepts.
        let mut parts: BTreeSet<u8> = stage.iter().flat_map(Staging::nodes).collect();
        if rng.random_bool(0.5) {
            parts = [if rng.random_bool(0.5) { first } else { any(rng, &members) }].into();
        }
        let dead = any(rng, &parts);
        let change_ms = rng.random_range(3_000..6_000);
        // From before it is learned of until copies are dropped.
        let dies_ms = change_ms + one_of(rng, &[100, 300, 700, 1_500, 4_000]) + rng.random_range(0..300);
        let second_ms = dies_ms + one_of(rng, &[100, 1_000, 4_000]) + rng.random_range(0..1_000);
        let alive = members.iter().copied().filter(|node| *node != dead).collect();
        let second = any(rng, &alive);
        self.change(change_ms, first, stage);
        self.change(second_ms, second, replaced([dead].into(), &cast.spares[2..]));
        self.changes[1].insists = true;
        self.fault(dies_ms, dies_ms, FaultKind::DiesForGood(dead));
        for _ in 0..rng.random_range(0..=2) {
            let at_ms = change_ms + rng.random_range(0..6_000);
            let (for_ms, node) = (rng.random_range(300..3_000), any(rng, &alive));
            self.fault(at_ms, at_ms + for_ms, FaultKind::Crash { node, torn: false });
        }
        let last = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(0);
        self.active_ms = last.max(second_ms) + rng.random_range(6_000..9_000);
    }

    fn split(&mut self, rng: &mut StdRng) {
        let (n, partitions) = (one_of(rng, &[3, 3, 4, 5]), self.partitions);
        let majority = Quorum::Majority.count(n);
        let cast = self.cast(n, (majority, majority), (rng.random_range(0..=2), 3));
        self.partitions = partitions;
        self.mechanisms.anti_entropy = rng.random_bool(0.5);
        let (all, members) = (cast.all(), cast.members_without(&BTreeSet::new()));
        let count = all.len() as u8;
        let one_side = rng.random_range(1..count);
        let side = draw_nodes(rng, count, one_side);
        let rest: BTreeSet<u8> = all.difference(&side).copied().collect();
        let at_ms = rng.random_range(3_000..5_000);
        let end_ms = at_ms + rng.random_range(2_000..8_000);
        let change_ms = at_ms - one_of(rng, &[0, 100, 300]);
        self.fault(at_ms, end_ms, FaultKind::Apart { one: side.clone(), other: rest });
        let mut operators = vec![any(rng, &members), any(rng, &members)];
        // One on each side, if there are members on both.
        for side in [&side & &members, &members - &side] {
            operators.extend((!side.is_empty()).then(|| any(rng, &side)));
        }
        for operator in operators.split_off(2).into_iter().chain(operators.pop().filter(|_| rng.random_bool(0.4))) {
            let at_ms = change_ms + one_of(rng, &[0, 50, 1_000]) + rng.random_range(0..200);
            let stage = self.draw_stage(rng, &mut members.clone());
            self.change(at_ms, operator, stage);
            self.changes.last_mut().expect("it was just made").insists = rng.random_bool(0.3);
        }
        // Whose process ends meanwhile forgets what it has proposed.
        if rng.random_bool(0.5) {
            let node = self.changes[rng.random_range(0..self.changes.len())].at;
            let at_ms = change_ms + rng.random_range(0..1_500);
            self.fault(at_ms, at_ms + rng.random_range(300..2_000), FaultKind::Crash { node, torn: false });
        }
        let last = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(0);
        self.active_ms = last.max(end_ms) + rng.random_range(5_000..8_000);
    }

    /// Crashes of those who have a part in a change: who gives, who takes, who proposes, who accepts, in each of its phases.
    pub(super) fn draw_parts_crash(&self, allowed: &BTreeSet<FaultClass>) -> Vec<Fault> {
        let rng = &mut rng(self.seed, "parts of a change");
        let mut faults = Vec::new();
        if !allowed.contains(&FaultClass::Crash) {
            return faults;
        }
        for change in &self.changes {
            for _ in 0..one_of(rng, &[0, 1, 1, 2]) {
                let named: BTreeSet<u8> = change.stage.iter().flat_map(Staging::nodes).collect();
                let node = match rng.random_range(0..4) {
                    0 => change.at,
                    1 => rng.random_range(0..self.members()),
                    _ => any(rng, &named),
                };
                // While it is decided, learned, taken over, closed, and dropped.
                let phase_ms = one_of(rng, &[0, 100, 300, 800, 2_000, 4_000]) + rng.random_range(0..300);
                let at_ms = (change.at_ms + phase_ms).min(self.active_ms - 1);
                let for_ms = rng.random_range(100..2_000).min(self.active_ms - at_ms);
                faults.push(Fault { at_ms, for_ms, kind: FaultKind::Crash { node, torn: false } });
            }
        }
        faults
    }
}

/// What keeps nodes away.
const WAYS: [FaultClass; 3] = [FaultClass::Crash, FaultClass::Partition, FaultClass::Pause];

fn one_of<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn any(rng: &mut StdRng, of: &BTreeSet<u8>) -> u8 {
    *of.iter().nth(rng.random_range(0..of.len())).expect("somebody has a part in a story")
}

/// Each of the old ones, in their order, by the next of the new ones.
fn replaced(old: BTreeSet<u8>, new: &[u8]) -> Vec<Staging> {
    old.into_iter().zip(new).map(|(old, new)| Staging::Replace { old, new: *new }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(story: Story, seed: u64) -> Plan {
        let mut plan = Plan::draw(seed, &BTreeSet::new());
        plan.tell(story, &mut rng(seed, "what happens in a story"));
        plan
    }

    fn all_told(of: &[Story]) -> Vec<(Story, Plan)> {
        of.iter().flat_map(|story| (0..60).map(|seed| (*story, told(*story, seed)))).collect()
    }

    /// Who is kept from doing anything at a moment by what lasts.
    fn away_at(plan: &Plan, ms: u32) -> BTreeSet<u8> {
        let lasts = plan.faults.iter().filter(|fault| (fault.at_ms..fault.at_ms + fault.for_ms).contains(&ms));
        let keeps = lasts.filter_map(|fault| match &fault.kind {
            FaultKind::Crash { node, .. } | FaultKind::Pause(node) => Some([*node].into()),
            FaultKind::Partition(nodes) | FaultKind::OwnersDown(nodes) => Some(nodes.clone()),
            _ => None,
        });
        keeps.flatten().collect()
    }

    fn owners(plan: &Plan) -> BTreeSet<u8> {
        plan.owners_of(&crate::workload::key_text(0))
    }

    fn moved(change: &LayoutChange) -> Vec<(u8, u8)> {
        let pair = |staging: &Staging| match staging {
            Staging::Replace { old, new } => (*old, *new),
            other => panic!("{other:?}"),
        };
        change.stage.iter().map(pair).collect()
    }

    #[test]
    fn every_story_can_be_played_by_operators_who_are_members_and_nothing_heals_beside_it() {
        for (story, plan) in all_told(&Story::ALL) {
            let of = || format!("{story:?} of seed {}: {plan:?}", plan.seed);
            assert_eq!(plan.problems(), [] as [String; 0], "{}", of());
            assert!(
                !plan.changes.is_empty() && plan.changes.iter().all(|change| change.at < plan.members()),
                "{}",
                of()
            );
            let chance = [Story::DiesForGood, Story::Split].contains(&story);
            assert!(chance || (!plan.mechanisms.anti_entropy && plan.partitions == 1), "{}", of());
            let last = plan.faults.iter().map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(0);
            assert!(last < plan.active_ms && plan.active_ms < 45_000, "{}", of());
        }
    }

    #[test]
    fn every_story_comes_up_in_lives_whose_layout_changes() {
        let all: BTreeSet<FaultClass> = FaultClass::ALL.into_iter().collect();
        let (mut lives, mut unhealed, mut told) = (0, 0, std::collections::BTreeMap::<Story, u32>::new());
        for seed in 0..2_000 {
            let plan = Plan::draw(seed, &all);
            if plan.changes.is_empty() {
                continue;
            }
            lives += 1;
            unhealed += u32::from(!plan.mechanisms.anti_entropy);
            if let Some(story) = Story::of(seed) {
                *told.entry(story).or_default() += 1;
            }
        }
        assert_eq!(told.len(), Story::ALL.len(), "{told:?}");
        assert!(told.values().all(|lives| *lives >= 10), "{told:?}");
        let stories: u32 = told.values().sum();
        assert!((lives * 2 / 5..lives * 3 / 5).contains(&stories), "{stories} of {lives}");
        assert!(
            (lives * 2 / 5..lives * 7 / 10).contains(&unhealed),
            "anti-entropy is off in {unhealed} of {lives} lives"
        );
    }

    #[test]
    fn those_who_are_left_of_holders_that_are_away_decide_and_could_be_read() {
        for (_, plan) in all_told(&[Story::HoldersAway]) {
            let (Floors { r, w }, change) = (plan.floors(), &plan.changes[0]);
            let away = away_at(&plan, change.at_ms);
            let (owners, moved) = (owners(&plan), moved(change));
            assert_eq!(away.len(), usize::from(w), "{plan:?}");
            assert!(away.is_subset(&owners) && !away.contains(&change.at), "{plan:?}");
            assert!(usize::from(plan.members()) > 2 * away.len(), "{plan:?}");
            assert!(moved.iter().all(|(old, _)| away.contains(old)), "{plan:?}");
            // They and the new owners: a quorum of reads that no write has met.
            assert!(owners.len() - away.len() + moved.len() >= usize::from(r), "{plan:?}");
            // Before that the others are away.
            let first = plan.faults.first().map_or(0, |fault| fault.at_ms);
            let before = away_at(&plan, first);
            assert!(before.is_disjoint(&away) && before.len() + away.len() == owners.len(), "{plan:?}");
        }
    }

    #[test]
    fn a_change_goes_on_without_late_leavers_who_have_taken_writes_below_the_floor() {
        for (_, plan) in all_told(&[Story::LateLeavers]) {
            let (Floors { r, w }, change) = (plan.floors(), &plan.changes[0]);
            let (away, owners) = (away_at(&plan, change.at_ms), owners(&plan));
            let goes: BTreeSet<u8> = moved(change).iter().map(|(old, _)| *old).collect();
            assert_eq!(away, goes, "{plan:?}");
            let least = plan.workload.quorums.iter().map(|(_, w)| w.count(plan.n)).min();
            assert_eq!(least.map(usize::from), Some(goes.len()), "{plan:?}");
            assert!(goes.len() < usize::from(w) && usize::from(plan.members()) > 2 * goes.len(), "{plan:?}");
            // Enough are left to give what W have taken, and to close.
            let left = owners.len() - goes.len();
            assert!(left > owners.len() - usize::from(w) && left > owners.len() - usize::from(r), "{plan:?}");
            let emptied = plan.faults.iter().filter(|fault| fault.kind.class() == FaultClass::EmptyDisk).count();
            assert_eq!(emptied, usize::from(goes.len() > 1), "{plan:?}");
        }
    }

    #[test]
    fn owners_of_both_sides_are_enough_for_reads_of_the_older_and_writes_of_the_newer_layout() {
        for (story, plan) in all_told(&[Story::Strangers, Story::GoBetween, Story::FewClose]) {
            let (Floors { r, w }, owners) = (plan.floors(), owners(&plan));
            let sides = plan.faults.iter().find_map(|fault| match &fault.kind {
                FaultKind::Apart { one, other } if story != Story::FewClose => Some((one.clone(), other.clone())),
                FaultKind::Partition(one) => {
                    Some((one.clone(), (0..plan.nodes()).filter(|node| !one.contains(node)).collect()))
                }
                _ => None,
            });
            let (old, new) = sides.expect("they are apart");
            assert!(old.is_subset(&owners) && old.len() >= usize::from(r), "{story:?}: {plan:?}");
            let taken = moved(&plan.changes[0]).iter().filter(|(_, taker)| new.contains(taker)).count();
            assert!(taken == owners.len() && taken >= usize::from(w), "{story:?}: {plan:?}");
            // Enough owners give what they hold, and too few of them close.
            let between = owners.len() - old.len();
            let closers = owners.len() - usize::from(r) + 1;
            let enough = between > owners.len() - usize::from(w);
            assert!(enough != (story == Story::Strangers) && between < closers, "{story:?}: {plan:?}");
        }
    }

    #[test]
    fn who_dies_for_good_is_none_of_the_last_layout_and_one_disk_is_spared() {
        let mut receivers = 0;
        for (_, plan) in all_told(&[Story::DiesForGood]) {
            let destroyed = plan.faults.iter().filter(|fault| fault.kind.class().destroys());
            let dead: Vec<u8> = destroyed.flat_map(|fault| fault.kind.nodes()).collect();
            let Floors { r, w } = plan.floors();
            assert!(dead.len() == 1 && r > 1 && w > 1, "{plan:?}");
            let (first, second) = (&plan.changes[0], &plan.changes[1]);
            let pair = moved(second);
            assert!(second.insists && pair.len() == 1 && pair[0].0 == dead[0] && second.at != dead[0], "{plan:?}");
            assert!(first.stage.iter().all(|staging| !staging.nodes().contains(&pair[0].1)), "{plan:?}");
            receivers += u32::from(dead[0] >= plan.members());
        }
        assert!(receivers > 5, "{receivers}");
    }

    #[test]
    fn a_node_that_dies_for_good_has_to_be_removed() {
        let mut plan = told(Story::DiesForGood, 1);
        plan.changes[1].insists = false;
        assert!(plan.problems().join("; ").contains("nobody insists"), "{:?}", plan.problems());
    }
}

//! Places where a simulation, and only it, makes the code behave badly on purpose; and states that it must have been in.
//!
//! A **point** is a place where something legal and unlikely can be made likely: a queue that is short, a timeout that fires
//! early, a retry that nobody needed, a pause between a read and a write ([`buggify!`](crate::buggify),
//! [`dawdle!`](crate::dawdle); after FoundationDB's `BUGGIFY`). A **mark** is a state that a simulation has to reach now and
//! then, or it tests nothing ([`sometimes!`](crate::sometimes)). Both have names, which the compiler looks up in the tables
//! below: a misspelt one does not compile, and a test holds the tables against the sources.
//!
//! # Cost
//! The macros are empty unless the crate is compiled with the feature `simulation`: no branch, no state, no name is left in the
//! program. Only `quorate-sim` asks for the feature. Cargo compiles a package once for all packages that one command names, so
//! `cargo test --workspace` runs nodes that have the points in them, switched off because nobody has `enter`ed; they
//! cost a look at a thread-local there. `cargo build`, `cargo install --path node` and whatever else names only the default
//! members compiles them out, and `scripts/check` sees to it that it stays so. (A `--cfg` would be as global as the
//! workspace, and a second package over the same sources would be compiled and named twice.)
//!
//! # Repeatability
//! Whether a point fires is a function of the life's seed, the point's name and how often it was passed before. Nothing is
//! drawn from anybody's generator, so that a point which is added, removed or switched off leaves all others as they were.

/// A place where a simulation may interfere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name: what happens when it fires.
    pub name: &'static str,
    /// What a user may notice of it.
    pub effect: Effect,
}

/// What a user may notice when a point fires, and so what must not be held against the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but time.
    Slows,
    /// A request may be refused, or end unknown, although everybody needed for it is there.
    Refuses,
    /// A replica forgets which operations were superseded, as in a restart: what is promised of retries is what is promised
    /// after one (see `quorate_node::core::mint`).
    Forgets,
}

use Effect::{Forgets, Refuses, Slows};

/// Every point.
pub const POINTS: &[Point] = &[
    // The client.
    point("client: acknowledged writes are sent again", Slows),
    point("client: writes go to any primary first", Slows),
    point("client: somebody who is no primary is asked first", Slows),
    point("client: an attempt's time is cut short", Refuses),
    point("client: the connection is closed after an answer", Refuses),
    point("client: a pause before a dial", Slows),
    // Lanes, which clients and nodes share.
    point("lanes: frames are written one by one", Slows),
    point("lanes: few calls at a time", Refuses),
    point("lanes: a pause before a request is handled", Slows),
    point("lanes: a pause before an answer is sent", Slows),
    // The node's port and its connections to peers.
    point("server: a request is refused for want of room", Refuses),
    point("peers: the connection is closed after an answer", Refuses),
    point("peers: few requests of a peer at a time", Slows),
    point("peers: a pause before a dial", Slows),
    point("peers: a pause before hello", Slows),
    point("peers: no back-off", Slows),
    point("peers: the longest back-off", Refuses),
    point("peers: needless connections are closed at once", Slows),
    point("peers: a gossip datagram is not sent", Slows),
    point("peers: a gossip datagram is not taken", Slows),
    // Coordinators.
    point("coordinator: a primary forwards a client's request", Refuses),
    point("coordinator: the worst primary goes first", Slows),
    point("coordinator: somebody who is there is taken for gone", Refuses),
    point("coordinator: somebody who is gone is taken for there", Refuses),
    point("coordinator: the answer is due early", Refuses),
    point("coordinator: few requests go on after their reply", Slows),
    point("write: a pause before the mint", Slows),
    point("write: a pause between the mint and a replica", Slows),
    point("write: a replica is sent the record twice", Slows),
    point("read: a hedge at once", Slows),
    point("read: late answers are not waited for", Slows),
    point("read: a pause before a replica is asked", Slows),
    point("scan: replicas are asked for one record at a time", Slows),
    point("scan: a page of few bytes", Slows),
    // Replicas and their disks.
    point("replica: a pause before a key is locked", Slows),
    point("replica: a pause with a key locked", Slows),
    point("replica: a pause between a merge and its acknowledgement", Slows),
    point("replica: a pause between a read and its answer", Slows),
    point("replica: a new actor for no reason", Slows),
    point("replica: few superseded operations are remembered", Forgets),
    point("replica: a page ends early", Slows),
    point("replica: the last page does not know that it is", Slows),
    point("hash trees: a pause in the middle of a leaf", Slows),
    point("exchange: short pages", Slows),
    point("exchange: few bytes in flight", Slows),
    point("exchange: an answer of few bytes", Slows),
    point("anti-entropy: passes follow at once", Slows),
    point("anti-entropy: a pause before an answer", Slows),
    point("store: a pause before a sync", Slows),
    point("store: a ticket syncs for itself", Slows),
    // Hints and their handoff.
    point("write: replicas count as late at once", Slows),
    point("hints: there is little room", Refuses),
    point("hints: they are handed over one by one", Slows),
    point("handoff: a pause before a page is sent", Slows),
    point("handoff: an acknowledged page is sent again", Slows),
    point("repair: a pause before a stale replica is mended", Slows),
    point("repair: there is no budget", Slows),
    // Who is up, and who owns what.
    point("membership: a down is published at once", Refuses),
    point("membership: seeds are asked again and again", Slows),
    point("layouts: a pause before a layout is stored", Slows),
    point("layouts: others are asked at once", Slows),
];

/// Every mark.
pub const MARKS: &[&str] = &[
    // The disk.
    "store: the reserve of the disk is touched",
    "store: there is room again",
    "replica: a value was refused, the disk's reserve was touched",
    // The client.
    "client: an unknown write was acknowledged by a retry",
    "client: an unknown write was repeated where it had gone",
    "client: a request went to a second node",
    "client: a write ended indeterminate",
    "client: the budget for retries was empty",
    "client: a newer route table came with an answer",
    "client: a member has moved",
    "client: a node that had refused is asked after the others",
    "client: a silent connection was given up",
    "update: siblings were merged in another round",
    "lanes: a call failed before it was sent",
    "lanes: a call failed after it was sent",
    "lanes: a request was refused while it arrived",
    "lanes: a request that did not arrive was cut off",
    "lanes: a request's time was over before it had arrived",
    "lanes: a request waited for its turn",
    "lanes: a request waited in vain for its turn",
    "lanes: a large request was let in",
    "lanes: answers that were not taken were cut off",
    "budget: a request waited for room",
    "budget: a request was refused for want of room",
    // The node's port and its connections to peers.
    "peers: two connections to one peer",
    "peers: a needless connection was closed",
    "peers: the connections of an earlier life were closed",
    "peers: a call failed in a back-off",
    "server: a request was answered before there was a layout",
    // Coordinators.
    "forward: a write was forwarded",
    "forward: a read was forwarded",
    "forward: a second primary was tried",
    "forward: a write's outcome was lost on the way",
    "write: refused, too few primaries can be reached",
    "write: acknowledged before every primary answered",
    "write: ended indeterminate",
    "write: the deadline passed during the mint",
    "write: a replica failed, the quorum was met",
    "write: a primary acknowledged after the reply",
    "write: the reply waited for room in the background",
    "write: a coordinator made siblings",
    "read: met a stale replica",
    "read: merged what no replica had whole",
    "read: another replica was asked in place of one that failed",
    "read: a hedge answered first",
    "read: timed out",
    "read: a deleted key",
    "read: replicas disagreed whether there is a key",
    "scan: a page ended where another replica's did",
    "scan: a page of several partitions",
    "scan: a page ended before a partition that could not be read",
    // Replicas and their disks.
    "mint: a retry returned the first dot",
    "mint: a retry found its operation superseded",
    "mint: a retry of what this node would not remember",
    "mint: a retry of another coordinator's write",
    "mint: an actor was drawn anew beside an earlier one",
    "mint: a context was ahead of its actor",
    "mint: an insert failed and nobody knows whether it is there",
    "mint: the disk was full",
    "merge: dropped a superseded sibling",
    "merge: kept a superseded operation out",
    "merge: made siblings",
    "merge: one operation with two dots",
    "merge: replaced a corrupt record",
    "merge: a record was ahead of its actor",
    "replica: found a corrupt record",
    "replica: forgot an operation before its time",
    "hash trees: a partition was summed up at once",
    "hash trees: a leaf was summed up",
    "hash trees: taken over from a clean stop",
    "exchange: an answer had no room for all",
    "exchange: a record went back",
    "exchange: records went both ways",
    "anti-entropy: a whole pass",
    "anti-entropy: a difference lasted",
    "anti-entropy: a difference did not last",
    "anti-entropy: sums differed where lists were equal",
    "anti-entropy: repaired what was missed",
    "anti-entropy: repaired what was corrupt",
    "anti-entropy: repaired what was wiped",
    "scrub: a whole round",
    "scrub: found a corrupt record",
    "beacons: a disk was found to be set back",
    "beacons: a start did not hear of every member",
    "recovery: a read was refused",
    "recovery: a record was lost while others of its leaf were being recovered",
    "recovery: a partition is whole again",
    "recovery: one owner was not enough",
    "recovery: an owner could not be asked",
    "store: writes shared a sync",
    "store: a sync failed",
    // Fallbacks, hints and their handoff, read repair.
    "write: a fallback stood in for a primary that was down",
    "write: a fallback stood in for a primary that was late",
    "write: a fallback's acknowledgement completed the quorum",
    "write: a fallback coordinated",
    "write: the coordinator kept a hint itself",
    "write: a strict repetition of what a fallback had minted",
    "write: a second fallback was asked for one hint",
    "write: nobody would keep a hint",
    "forward: a retry went where its write had gone",
    "forward: a retry of what this node would not remember",
    "write: a retry was not minted again by a fallback",
    "read: a fallback's hint counted",
    "read: a fallback had nothing to say",
    "read: a fallback coordinated",
    "read: a stand-in had deleted what too few primaries have seen",
    "read: a digest spared a record",
    "read: a monotonic read wrote back",
    "hints: one was merged with an earlier one",
    "hints: one was refused for want of room",
    "hints: a damaged one was let go",
    "hints: one had grown while it was handed over",
    "hints: an actor went with one",
    "handoff: a page was delivered",
    "handoff: a target failed in the middle",
    "repair: a stale replica was mended",
    "repair: a key was being mended already",
    // Who is up, and who owns what.
    "membership: a peer was published as down",
    "membership: a peer came back",
    "membership: a flapping peer was held back",
    "membership: outlived a later life of its own",
    "layouts: chosen by asking",
    "layouts: learned from a peer",
    "layouts: one could not be stored for now",
    "layouts: offered to a member that was away",
    "contexts: keys were exchanged with a node that held others",
    "contexts: a key was asked for and found",
    "contexts: one was refused that no node had issued",
];

const fn point(name: &'static str, effect: Effect) -> Point {
    Point { name, effect }
}

/// The place of a point in [`POINTS`]; the macros ask for it at compile time.
#[doc(hidden)]
pub const fn point_named(name: &str) -> usize {
    let mut index = 0;
    while index < POINTS.len() {
        if same(POINTS[index].name, name) {
            return index;
        }
        index += 1;
    }
    panic!("there is no such point in `quorate_client::chaos::POINTS`")
}

/// The place of a mark in [`MARKS`]; the macros ask for it at compile time.
#[doc(hidden)]
pub const fn mark_named(name: &str) -> usize {
    let mut index = 0;
    while index < MARKS.len() {
        if same(MARKS[index], name) {
            return index;
        }
        index += 1;
    }
    panic!("there is no such mark in `quorate_client::chaos::MARKS`")
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// Whether a point fires; with two more expressions, the first one's value, or the second one's if it does.
///
/// ```ignore
/// let limit = buggify!("scan: replicas are asked for one record at a time", limit, 1);
/// ```
#[cfg(feature = "simulation")]
#[doc(hidden)]
#[macro_export]
macro_rules! buggify {
    ($point:literal) => {
        $crate::chaos::fires(const { $crate::chaos::point_named($point) })
    };
    ($point:literal, $usual:expr, $odd:expr) => {
        if $crate::buggify!($point) { $odd } else { $usual }
    };
}

/// Whether a point fires; with two more expressions, the first one's value, or the second one's if it does.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
macro_rules! buggify {
    ($point:literal) => {{
        const _: usize = $crate::chaos::point_named($point);
        false
    }};
    ($point:literal, $usual:expr, $odd:expr) => {
        if $crate::buggify!($point) { $odd } else { $usual }
    };
}

/// Sleeps for a while if a point fires; for async code that holds no lock but those that the pause is about.
#[cfg(feature = "simulation")]
#[doc(hidden)]
#[macro_export]
macro_rules! dawdle {
    ($point:literal) => {
        $crate::chaos::pause(const { $crate::chaos::point_named($point) }).await
    };
}

/// Sleeps for a while if a point fires; for async code that holds no lock but those that the pause is about.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
macro_rules! dawdle {
    ($point:literal) => {{
        const _: usize = $crate::chaos::point_named($point);
    }};
}

/// Notes that a state was reached; with a condition, only if that holds. The condition is evaluated in simulations only and
/// must have no effect.
#[cfg(feature = "simulation")]
#[doc(hidden)]
#[macro_export]
macro_rules! sometimes {
    ($mark:literal) => {
        $crate::chaos::reached(const { $crate::chaos::mark_named($mark) })
    };
    ($mark:literal, $when:expr) => {
        if $crate::chaos::is_entered() && $when {
            $crate::sometimes!($mark);
        }
    };
}

/// Notes that a state was reached; with a condition, only if that holds. The condition is evaluated in simulations only and
/// must have no effect.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
macro_rules! sometimes {
    ($mark:literal) => {{
        const _: usize = $crate::chaos::mark_named($mark);
    }};
    // A closure that nobody calls is type-checked and leaves nothing behind.
    ($mark:literal, $when:expr) => {{
        $crate::sometimes!($mark);
        let _ = || -> bool { $when };
    }};
}

#[cfg(feature = "simulation")]
pub use self::life::{Chaos, Report, calm, drawn, enter, enter_with, fires, is_entered, pause, reached, report};

#[cfg(feature = "simulation")]
mod life {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::marker::PhantomData;
    use std::time::Duration;

    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::{MARKS, POINTS};

    thread_local! {
        static LIFE: RefCell<Option<Life>> = const { RefCell::new(None) };
    }

    struct Life {
        /// A point fires when the number drawn for it is below this.
        below: u64,
        points: Vec<PointState>,
        reached: Vec<u64>,
    }

    struct PointState {
        on: bool,
        /// Where the point's own sequence begins.
        seed: u64,
        passed: u64,
        fired: u64,
    }

    /// The points and marks of this thread are alive until it is dropped; belongs to its thread.
    #[must_use = "points and marks are dead again when it is dropped"]
    #[derive(Debug)]
    pub struct Chaos(PhantomData<*const ()>);

    /// What happened at the points and marks of one life, by their names; those where nothing happened are there with 0.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct Report {
        /// How often each point fired.
        pub fired: BTreeMap<&'static str, u64>,
        /// How often each mark was reached.
        pub reached: BTreeMap<&'static str, u64>,
    }

    impl Report {
        /// Adds another life's figures, for a swarm.
        pub fn add(&mut self, other: &Self) {
            for (mine, others) in [(&mut self.fired, &other.fired), (&mut self.reached, &other.reached)] {
                for (name, count) in others {
                    *mine.entry(name).or_default() += count;
                }
            }
        }

        /// The marks that were never reached and the points that never fired, in the order of their names.
        pub fn never(&self) -> Vec<&'static str> {
            let never = |counts: &BTreeMap<&'static str, u64>| {
                counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect::<Vec<_>>()
            };
            [never(&self.reached), never(&self.fired)].concat()
        }
    }

    /// Brings this thread's points and marks to life. Each point is on or off for the whole life, by the seed (see [`drawn`]);
    /// one that is on fires in `rate` of all cases that pass it. With a rate of 0 only the marks are alive.
    ///
    /// # Panics
    /// When the thread has entered already, or the rate is not between 0 and 1.
    pub fn enter(seed: u64, rate: f64) -> Chaos {
        enter_with(seed, rate, &drawn(seed))
    }

    /// As [`enter`], with exactly these points on: for shrinking a plan. They fire as they do when all are on.
    ///
    /// # Panics
    /// As [`enter`]; when a name is not that of a point.
    pub fn enter_with(seed: u64, rate: f64, on: &[&str]) -> Chaos {
        assert!((0.0..=1.0).contains(&rate), "a rate of {rate} is not between 0 and 1");
        if let Some(stranger) = on.iter().find(|name| POINTS.iter().all(|point| point.name != **name)) {
            panic!("there is no point {stranger:?}");
        }
        let state = |name: &'static str| PointState {
            on: on.contains(&name),
            seed: xxh3_64_with_seed(name.as_bytes(), seed),
            passed: 0,
            fired: 0,
        };
        // A rate of 1 saturates to just below certainty.
        let below = (rate * 2f64.powi(64)) as u64;
        let points = POINTS.iter().map(|point| state(point.name)).collect();
        let life = Life { below, points, reached: vec![0; MARKS.len()] };
        let before = LIFE.with_borrow_mut(|slot| slot.replace(life));
        assert!(before.is_none(), "this thread's points and marks are alive already");
        Chaos(PhantomData)
    }

    /// The points that a seed switches on: a quarter of them on average, so that lives differ in what goes wrong.
    pub fn drawn(seed: u64) -> Vec<&'static str> {
        let on = |name: &&'static str| mix(xxh3_64_with_seed(name.as_bytes(), !seed)).is_multiple_of(ON_ONE_IN);
        POINTS.iter().map(|point| point.name).filter(on).collect()
    }

    /// No point fires for the rest of this life: liveness is judged from here on. Marks stay alive.
    pub fn calm() {
        LIFE.with_borrow_mut(|life| {
            if let Some(life) = life {
                life.below = 0;
            }
        });
    }

    /// What has happened in this life so far; all zero on a thread that has not entered.
    pub fn report() -> Report {
        LIFE.with_borrow(|life| {
            let fired = |index: usize| life.as_ref().map_or(0, |life| life.points[index].fired);
            let reached = |index: usize| life.as_ref().map_or(0, |life| life.reached[index]);
            Report {
                fired: POINTS.iter().enumerate().map(|(index, point)| (point.name, fired(index))).collect(),
                reached: MARKS.iter().enumerate().map(|(index, mark)| (*mark, reached(index))).collect(),
            }
        })
    }

    impl Drop for Chaos {
        fn drop(&mut self) {
            LIFE.with_borrow_mut(Option::take);
        }
    }

    /// What [`buggify!`](crate::buggify) asks.
    #[doc(hidden)]
    pub fn fires(point: usize) -> bool {
        draw(point).is_some()
    }

    /// What [`dawdle!`](crate::dawdle) waits for.
    #[doc(hidden)]
    pub async fn pause(point: usize) {
        if let Some(drawn) = draw(point) {
            let longest = PAUSES_MAX_US[(drawn % PAUSES_MAX_US.len() as u64) as usize];
            tokio::time::sleep(Duration::from_micros(mix(drawn) % longest)).await;
        }
    }

    /// What [`sometimes!`](crate::sometimes) says.
    #[doc(hidden)]
    pub fn reached(mark: usize) {
        with_life(|life| life.reached[mark] += 1);
    }

    /// Whether anybody counts.
    #[doc(hidden)]
    pub fn is_entered() -> bool {
        with_life(|_| ()).is_some()
    }

    /// Nothing unless the point fires; else a number for whatever else there is to decide.
    fn draw(point: usize) -> Option<u64> {
        with_life(|life| {
            let state = &mut life.points[point];
            if !state.on {
                return None;
            }
            state.passed += 1;
            let drawn = mix(state.seed.wrapping_add(state.passed.wrapping_mul(GOLDEN)));
            if drawn >= life.below {
                return None;
            }
            state.fired += 1;
            tracing::debug!(point = POINTS[point].name, "fires");
            Some(mix(drawn))
        })
        .flatten()
    }

    /// Tasks are dropped, and so may pass points, also while a thread ends and its life is gone.
    fn with_life<T>(with: impl FnOnce(&mut Life) -> T) -> Option<T> {
        LIFE.try_with(|life| life.borrow_mut().as_mut().map(with)).ok().flatten()
    }

    /// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
    fn mix(mut bits: u64) -> u64 {
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// 2^64 divided by the golden ratio: the step of splitmix64.
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    /// As in FoundationDB.
    const ON_ONE_IN: u64 = 4;
    /// Pauses of a packet's way, of a sync, of a hedge, and long enough to miss a deadline now and then.
    const PAUSES_MAX_US: [u64; 4] = [1_000, 8_000, 40_000, 600_000];

    #[cfg(test)]
    mod tests {
        use super::*;

        const POINT: &str = "read: a hedge at once";
        const MARK: &str = "read: timed out";

        fn fired(seed: u64, rate: f64, on: &[&str]) -> Vec<bool> {
            let _chaos = enter_with(seed, rate, on);
            (0..200).map(|_| crate::buggify!("read: a hedge at once")).collect()
        }

        #[test]
        fn nothing_happens_on_a_thread_that_has_not_entered() {
            assert!((0..100).all(|_| !crate::buggify!("read: a hedge at once")));
            crate::sometimes!("read: timed out");
            crate::sometimes!("read: timed out", unreachable!("conditions are for simulations"));
            let report = report();
            assert!(report.fired.values().chain(report.reached.values()).all(|count| *count == 0));
            assert_eq!(report.never().len(), POINTS.len() + MARKS.len());
        }

        #[test]
        fn a_seed_decides_and_other_points_change_nothing() {
            let all: Vec<&str> = POINTS.iter().map(|point| point.name).collect();
            let alone = fired(7, 0.25, &[POINT]);
            assert_eq!(alone, fired(7, 0.25, &all));
            assert_ne!(alone, fired(8, 0.25, &all));
            let count = alone.iter().filter(|fired| **fired).count();
            assert!((25..=75).contains(&count), "{count} of 200 at a rate of a quarter");
            assert!(fired(7, 0.25, &[]).iter().all(|fired| !fired), "off for the whole life");
            assert!(fired(7, 0.0, &all).iter().all(|fired| !fired), "a rate of 0");
            assert!(fired(7, 1.0, &all).iter().all(|fired| *fired), "a rate of 1");
        }

        #[test]
        fn lives_differ_in_the_points_that_are_on() {
            let lives: Vec<Vec<&str>> = (0..200).map(drawn).collect();
            let mean = lives.iter().map(Vec::len).sum::<usize>() / lives.len();
            assert!((POINTS.len() / 5..=POINTS.len() / 3).contains(&mean), "{mean} of {}", POINTS.len());
            for point in POINTS {
                let count = lives.iter().filter(|life| life.contains(&point.name)).count();
                assert!((20..=80).contains(&count), "{} is on in {count} of 200 lives", point.name);
            }
        }

        #[test]
        fn what_happened_is_counted_until_the_guard_is_dropped() {
            let chaos = enter_with(1, 1.0, &[POINT]);
            let seen = 7;
            for _ in 0..3 {
                assert_eq!(crate::buggify!("read: a hedge at once", 1, 2), 2);
                crate::sometimes!("read: timed out", seen == 7);
                crate::sometimes!("read: timed out", seen == 8);
            }
            calm();
            assert_eq!(crate::buggify!("read: a hedge at once", 1, 2), 1);
            let mut sum = report();
            assert_eq!((sum.fired[POINT], sum.reached[MARK]), (3, 3));
            sum.add(&report());
            assert_eq!((sum.fired[POINT], sum.reached[MARK]), (6, 6));
            assert_eq!(sum.never().len(), POINTS.len() + MARKS.len() - 2);
            drop(chaos);
            assert_eq!(report().fired[POINT], 0);
        }

        #[tokio::test(start_paused = true)]
        async fn pauses_are_mostly_short_and_bounded() {
            let _chaos = enter_with(3, 1.0, &["write: a pause before the mint"]);
            let (mut longest, mut short) = (Duration::ZERO, 0);
            for _ in 0..200 {
                let begun = tokio::time::Instant::now();
                crate::dawdle!("write: a pause before the mint");
                longest = longest.max(begun.elapsed());
                short += u32::from(begun.elapsed() <= Duration::from_millis(41));
            }
            assert!(longest > Duration::from_millis(200) && longest < Duration::from_millis(602), "{longest:?}");
            assert!(short >= 120, "{short} of 200");
        }
    }
}

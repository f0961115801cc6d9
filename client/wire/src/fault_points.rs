//! Places where a simulation, and only it, makes the code behave badly on purpose; and states that it must have been in.
//!
//! A **point** is a place where something legal and unlikely can be made likely: a queue that is short, a timeout that fires
//! early, a retry that nobody needed, a pause between a read and a write ([`buggify!`](crate::buggify),
//! [`dawdle!`](crate::dawdle); after FoundationDB's `BUGGIFY`). A **mark** is a state that a simulation has to reach now and
//! then, or it tests nothing ([`sometimes!`](crate::sometimes)). Both have names, which the compiler looks up in the [`Table`] of
//! the crate that uses them, its module `fault_points`: a misspelt one does not compile, and a test holds the tables against the
//! sources. A simulation takes all tables together.
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
    /// after one (see `quorate_core::mint`).
    Forgets,
}

/// The points and marks of one crate. The macros find it by the path `crate::fault_points::TABLE`.
#[derive(Debug)]
pub struct Table {
    /// Its points.
    pub points: &'static [Point],
    /// Its marks.
    pub marks: &'static [&'static str],
}

/// A point, for tables.
pub const fn point(name: &'static str, effect: Effect) -> Point {
    Point { name, effect }
}

/// The place of a point in its crate's table; the macros ask for it at compile time.
#[doc(hidden)]
pub const fn point_named(points: &[Point], name: &str) -> usize {
    let mut index = 0;
    while index < points.len() {
        if same(points[index].name, name) {
            return index;
        }
        index += 1;
    }
    panic!("there is no such point in `fault_points::POINTS` of this crate")
}

/// The place of a mark in its crate's table; the macros ask for it at compile time.
#[doc(hidden)]
pub const fn mark_named(marks: &[&str], name: &str) -> usize {
    let mut index = 0;
    while index < marks.len() {
        if same(marks[index], name) {
            return index;
        }
        index += 1;
    }
    panic!("there is no such mark in `fault_points::MARKS` of this crate")
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
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! buggify {
    ($point:literal) => {
        $crate::fault_points::fires(
            &crate::fault_points::TABLE,
            const { $crate::fault_points::point_named(crate::fault_points::POINTS, $point) },
        )
    };
    ($point:literal, $usual:expr, $odd:expr) => {
        if $crate::buggify!($point) { $odd } else { $usual }
    };
}

/// Whether a point fires; with two more expressions, the first one's value, or the second one's if it does.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! buggify {
    ($point:literal) => {{
        const _: usize = $crate::fault_points::point_named(crate::fault_points::POINTS, $point);
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
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! dawdle {
    ($point:literal) => {
        $crate::fault_points::pause(
            &crate::fault_points::TABLE,
            const { $crate::fault_points::point_named(crate::fault_points::POINTS, $point) },
        )
        .await
    };
}

/// Sleeps for a while if a point fires; for async code that holds no lock but those that the pause is about.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! dawdle {
    ($point:literal) => {{
        const _: usize = $crate::fault_points::point_named(crate::fault_points::POINTS, $point);
    }};
}

/// Notes that a state was reached; with a condition, only if that holds. The condition is evaluated in simulations only and
/// must have no effect.
#[cfg(feature = "simulation")]
#[doc(hidden)]
#[macro_export]
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! sometimes {
    ($mark:literal) => {
        $crate::fault_points::reached(
            &crate::fault_points::TABLE,
            const { $crate::fault_points::mark_named(crate::fault_points::MARKS, $mark) },
        )
    };
    ($mark:literal, $when:expr) => {
        if $crate::fault_points::is_entered() && $when {
            $crate::sometimes!($mark);
        }
    };
}

/// Notes that a state was reached; with a condition, only if that holds. The condition is evaluated in simulations only and
/// must have no effect.
#[cfg(not(feature = "simulation"))]
#[doc(hidden)]
#[macro_export]
#[expect(clippy::crate_in_macro_def, reason = "the table is that of the crate which uses the macro")]
macro_rules! sometimes {
    ($mark:literal) => {{
        const _: usize = $crate::fault_points::mark_named(crate::fault_points::MARKS, $mark);
    }};
    // A closure that nobody calls is type-checked and leaves nothing behind.
    ($mark:literal, $when:expr) => {{
        $crate::sometimes!($mark);
        let _ = || -> bool { $when };
    }};
}

#[cfg(feature = "simulation")]
pub use self::life::{Chaos, Report, calm, drawn, enter, fires, is_entered, pause, reached, report};

#[cfg(feature = "simulation")]
mod life {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::marker::PhantomData;
    use std::time::Duration;

    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::Table;

    thread_local! {
        static LIFE: RefCell<Option<Life>> = const { RefCell::new(None) };
    }

    struct Life {
        /// A point fires when the number drawn for it is below this.
        below: u64,
        tables: Vec<TableState>,
    }

    struct TableState {
        table: &'static Table,
        points: Vec<PointState>,
        reached: Vec<u64>,
    }

    impl Life {
        /// The state of a table; nothing if the simulation has not named it.
        fn of(&mut self, table: &'static Table) -> Option<&mut TableState> {
            self.tables.iter_mut().find(|state| std::ptr::eq(state.table, table))
        }
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

    /// Brings the points and marks of these tables to life on this thread. The points in `on` (see [`drawn`]) fire in `rate` of
    /// all cases that pass them; a point fires alike whichever others are on. With a rate of 0 only the marks are alive.
    ///
    /// # Panics
    /// When the thread has entered already, the rate is not between 0 and 1, or a name is not that of a point.
    pub fn enter(tables: &[&'static Table], seed: u64, rate: f64, on: &[&str]) -> Chaos {
        assert!((0.0..=1.0).contains(&rate), "a rate of {rate} is not between 0 and 1");
        let named = |name: &str| tables.iter().any(|table| table.points.iter().any(|point| point.name == name));
        if let Some(stranger) = on.iter().find(|name| !named(name)) {
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
        let tables = tables.iter().map(|table| TableState {
            table,
            points: table.points.iter().map(|point| state(point.name)).collect(),
            reached: vec![0; table.marks.len()],
        });
        let life = Life { below, tables: tables.collect() };
        let before = LIFE.with_borrow_mut(|slot| slot.replace(life));
        assert!(before.is_none(), "this thread's points and marks are alive already");
        Chaos(PhantomData)
    }

    /// The points that a seed switches on: a quarter of them on average, so that lives differ in what goes wrong.
    pub fn drawn(tables: &[&'static Table], seed: u64) -> Vec<&'static str> {
        let on = |name: &&'static str| mix(xxh3_64_with_seed(name.as_bytes(), !seed)).is_multiple_of(ON_ONE_IN);
        tables.iter().flat_map(|table| table.points).map(|point| point.name).filter(on).collect()
    }

    /// No point fires for the rest of this life: liveness is judged from here on. Marks stay alive.
    pub fn calm() {
        LIFE.with_borrow_mut(|life| {
            if let Some(life) = life {
                life.below = 0;
            }
        });
    }

    /// What has happened in this life so far; empty on a thread that has not entered.
    pub fn report() -> Report {
        let mut report = Report::default();
        with_life(|life| {
            for TableState { table, points, reached } in &life.tables {
                report.fired.extend(table.points.iter().zip(points).map(|(point, state)| (point.name, state.fired)));
                report.reached.extend(table.marks.iter().copied().zip(reached.iter().copied()));
            }
        });
        report
    }

    impl Drop for Chaos {
        fn drop(&mut self) {
            LIFE.with_borrow_mut(Option::take);
        }
    }

    /// What [`buggify!`](crate::buggify) asks.
    #[doc(hidden)]
    pub fn fires(table: &'static Table, point: usize) -> bool {
        draw(table, point).is_some()
    }

    /// What [`dawdle!`](crate::dawdle) waits for.
    #[doc(hidden)]
    pub async fn pause(table: &'static Table, point: usize) {
        if let Some(drawn) = draw(table, point) {
            let longest = PAUSES_MAX_US[(drawn % PAUSES_MAX_US.len() as u64) as usize];
            tokio::time::sleep(Duration::from_micros(mix(drawn) % longest)).await;
        }
    }

    /// What [`sometimes!`](crate::sometimes) says.
    #[doc(hidden)]
    pub fn reached(table: &'static Table, mark: usize) {
        with_life(|life| {
            if let Some(state) = life.of(table) {
                state.reached[mark] += 1;
            }
        });
    }

    /// Whether anybody counts.
    #[doc(hidden)]
    pub fn is_entered() -> bool {
        with_life(|_| ()).is_some()
    }

    /// Nothing unless the point fires; else a number for whatever else there is to decide.
    fn draw(table: &'static Table, point: usize) -> Option<u64> {
        with_life(|life| {
            let below = life.below;
            let state = &mut life.of(table)?.points[point];
            if !state.on {
                return None;
            }
            state.passed += 1;
            let drawn = mix(state.seed.wrapping_add(state.passed.wrapping_mul(GOLDEN)));
            if drawn >= below {
                return None;
            }
            state.fired += 1;
            tracing::debug!(point = table.points[point].name, "fires");
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
        use super::super::{MARKS, POINTS, TABLE};
        use super::*;

        const POINT: &str = "point 7";
        const MARK: &str = "mark 0";

        fn fired(seed: u64, rate: f64, on: &[&str]) -> Vec<bool> {
            let _chaos = enter(&[&TABLE], seed, rate, on);
            (0..200).map(|_| crate::buggify!("point 7")).collect()
        }

        #[test]
        fn nothing_happens_on_a_thread_that_has_not_entered() {
            assert!((0..100).all(|_| !crate::buggify!("point 7")));
            crate::sometimes!("mark 0");
            crate::sometimes!("mark 0", unreachable!("conditions are for simulations"));
            assert_eq!(report(), Report::default());
        }

        #[test]
        fn nothing_happens_at_points_of_a_table_that_is_not_entered() {
            static OTHER: Table = Table { points: &[], marks: &[] };
            let _chaos = enter(&[&OTHER], 7, 1.0, &[]);
            assert!(!crate::buggify!("point 7"));
            crate::sometimes!("mark 0");
            assert_eq!(report(), Report::default());
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
            let lives: Vec<Vec<&str>> = (0..200).map(|seed| drawn(&[&TABLE], seed)).collect();
            let mean = lives.iter().map(Vec::len).sum::<usize>() / lives.len();
            assert!((POINTS.len() / 5..=POINTS.len() / 3).contains(&mean), "{mean} of {}", POINTS.len());
            for point in POINTS {
                let count = lives.iter().filter(|life| life.contains(&point.name)).count();
                assert!((20..=80).contains(&count), "{} is on in {count} of 200 lives", point.name);
            }
        }

        #[test]
        fn what_happened_is_counted_until_the_guard_is_dropped() {
            let chaos = enter(&[&TABLE], 1, 1.0, &[POINT]);
            let seen = 7;
            for _ in 0..3 {
                assert_eq!(crate::buggify!("point 7", 1, 2), 2);
                crate::sometimes!("mark 0", seen == 7);
                crate::sometimes!("mark 0", seen == 8);
            }
            calm();
            assert_eq!(crate::buggify!("point 7", 1, 2), 1);
            let mut sum = report();
            assert_eq!((sum.fired[POINT], sum.reached[MARK]), (3, 3));
            sum.add(&report());
            assert_eq!((sum.fired[POINT], sum.reached[MARK]), (6, 6));
            assert_eq!(sum.never().len(), POINTS.len() + MARKS.len() - 2);
            drop(chaos);
            assert_eq!(report(), Report::default());
        }

        #[test]
        #[should_panic(expected = "there is no point \"point 99\"")]
        fn a_point_that_is_not_there_cannot_be_switched_on() {
            let _chaos = enter(&[&TABLE], 1, 1.0, &["point 99"]);
        }

        #[tokio::test(start_paused = true)]
        async fn pauses_are_mostly_short_and_bounded() {
            let _chaos = enter(&[&TABLE], 3, 1.0, &[POINT]);
            let (mut longest, mut short) = (Duration::ZERO, 0);
            for _ in 0..200 {
                let begun = tokio::time::Instant::now();
                crate::dawdle!("point 7");
                longest = longest.max(begun.elapsed());
                short += u32::from(begun.elapsed() <= Duration::from_millis(41));
            }
            assert!(longest > Duration::from_millis(200) && longest < Duration::from_millis(602), "{longest:?}");
            assert!(short >= 120, "{short} of 200");
        }
    }
}

/// The points and marks of this crate's own tests.
#[cfg(all(test, feature = "simulation"))]
static TABLE: Table = Table { points: POINTS, marks: MARKS };
#[cfg(all(test, feature = "simulation"))]
const MARKS: &[&str] = &["mark 0", "mark 1"];
#[cfg(all(test, feature = "simulation"))]
const POINTS: &[Point] = &[
    point("point 0", Effect::Slows),
    point("point 1", Effect::Slows),
    point("point 2", Effect::Slows),
    point("point 3", Effect::Slows),
    point("point 4", Effect::Slows),
    point("point 5", Effect::Slows),
    point("point 6", Effect::Slows),
    point("point 7", Effect::Slows),
    point("point 8", Effect::Slows),
    point("point 9", Effect::Slows),
    point("point 10", Effect::Slows),
    point("point 11", Effect::Slows),
    point("point 12", Effect::Slows),
    point("point 13", Effect::Slows),
    point("point 14", Effect::Slows),
    point("point 15", Effect::Slows),
];

//! `quorate-sim swarm`: many lives on all cores; each failure comes with the line that reproduces it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use quorate_sim::checker::served::Judged;
use quorate_sim::life::{self, Changes, Outcomes, Report};
use quorate_sim::plan::FaultClass;
use quorate_sim::trace::Trace;
use quorate_wire::fault_points;

use super::{HUNG_AFTER, Stopwatch, plan_of};

#[derive(Debug, Clone, Args)]
pub(crate) struct Swarm {
    /// Which lives, as `0..500`: the end is not among them.
    #[arg(long, value_parser = range)]
    seeds: Range<u64>,
    /// Begin no further life after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// How many lives at once; as many as there are cores if it is not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Also print the seed and the hash of each life, in the order of the seeds.
    #[arg(long)]
    hashes: bool,
    /// Begin no further life after one that failed.
    #[arg(long)]
    stop_at_first: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is no range of seeds like 0..500"))
}

pub(crate) fn swarm(arguments: &Swarm) -> io::Result<bool> {
    let Swarm { seeds, minutes, jobs, hashes, stop_at_first } = arguments.clone();
    let started = Stopwatch::start();
    let limit = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let jobs = jobs.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1).max(1);
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let sums = Mutex::new(Sums::default());
    let running: Mutex<BTreeMap<u64, Duration>> = Mutex::default();
    // Nobody sees it where stderr is no terminal.
    let bar = ProgressBar::new(seeds.end - seeds.start).with_style(style());
    let say = |what: &str| {
        // A closed pipe must not end the swarm.
        bar.suspend(|| _ = writeln!(io::stdout().lock(), "{what}"));
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| {
                    while limit.is_none_or(|limit| started.elapsed() < limit)
                        && !(stop_at_first && failed.load(Ordering::Relaxed))
                    {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            break;
                        }
                        running.lock().expect("no panic while it is held").insert(seed, started.elapsed());
                        let report = life::run(&plan_of(seed), Trace::new());
                        running.lock().expect("no panic while it is held").remove(&seed);
                        if !report.is_good() {
                            failed.store(true, Ordering::Relaxed);
                            let what = match (&report.failure, report.violations.first()) {
                                (Some(failure), _) => failure.clone(),
                                (None, Some(violation)) => violation.to_string(),
                                (None, None) => unreachable!("it is not good"),
                            };
                            say(&format!("seed {seed}: {what}\n  reproduce: quorate-sim run --seed {seed}"));
                        }
                        sums.lock().expect("no panic while it is held").add(&report);
                    }
                })
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(20));
            let lives = sums.lock().expect("no panic while it is held").lives;
            bar.set_position(lives);
            let now = started.elapsed();
            let running = running.lock().expect("no panic while it is held");
            if let Some((seed, _)) = running.iter().find(|(_, since)| now.saturating_sub(**since) > HUNG_AFTER) {
                // A thread cannot be ended from outside, so that the whole swarm has to.
                say(&format!("seed {seed}: hangs in real time\n  reproduce: quorate-sim run --seed {seed}"));
                std::process::exit(1);
            }
        }
    });
    bar.finish_and_clear();
    let sums = sums.into_inner().expect("no panic while it was held");
    let mut out = io::stdout().lock();
    if hashes {
        for (seed, hash) in &sums.hashes {
            writeln!(out, "{seed} {hash}")?;
        }
    }
    sums.print(&mut out, started.elapsed())?;
    Ok(!failed.load(Ordering::Relaxed))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos} of {len} lives, {eta} left").expect("it is a template")
}

/// What all lives of a swarm come to.
#[derive(Default)]
struct Sums {
    lives: u64,
    failed: BTreeSet<u64>,
    hashes: BTreeMap<u64, String>,
    simulated: Duration,
    outcomes: Outcomes,
    served: Judged,
    changes: Changes,
    injected: BTreeMap<FaultClass, u32>,
    packets: u64,
    points: fault_points::Report,
}

impl Sums {
    fn add(&mut self, report: &Report) {
        self.lives += 1;
        self.hashes.insert(report.plan.seed, report.hash.to_string());
        if !report.is_good() {
            self.failed.insert(report.plan.seed);
        }
        self.simulated += report.simulated;
        self.packets += report.counts.packets;
        self.points.add(&report.points);
        self.served.add(report.served);
        self.changes.add(report.changes);
        let more = report.outcomes();
        let Outcomes { written, found, not_applied, unknown } = &mut self.outcomes;
        *written += more.written;
        *found += more.found;
        *not_applied += more.not_applied;
        *unknown += more.unknown;
        for (class, count) in &report.injected {
            *self.injected.entry(*class).or_default() += count;
        }
    }

    fn print(&self, out: &mut impl Write, took: Duration) -> io::Result<()> {
        let Outcomes { written, found, not_applied, unknown } = self.outcomes;
        let injected: Vec<String> = self.injected.iter().map(|(class, count)| format!("{class} {count}")).collect();
        writeln!(out, "faults: {}", injected.join(", "))?;
        // What never happens is not tested, whatever else is green.
        let never = self.points.never();
        let all = self.points.fired.len() + self.points.reached.len();
        writeln!(out, "points that fired and marks that were reached: {} of {all}", all - never.len())?;
        for name in never {
            writeln!(out, "  never: {name}")?;
        }
        writeln!(out, "operations: {written} written, {found} read, {not_applied} not applied, {unknown} unknown")?;
        let Judged { operations, broken, lives } = self.served;
        writeln!(
            out,
            "served if a coordinator in reach can: {operations} operations of {lives} lives were judged, {broken} of them while \
             something was broken"
        )?;
        writeln!(out, "changes of the layout: {}", self.changes)?;
        writeln!(
            out,
            "{} lives, {} failed {:?}; {} s simulated in {:.1} s ({:.1} lives/s, {} packets)",
            self.lives,
            self.failed.len(),
            self.failed,
            self.simulated.as_secs(),
            took.as_secs_f64(),
            self.lives as f64 / took.as_secs_f64().max(0.001),
            self.packets,
        )
    }
}

//! `quorate-sim`: runs simulated lives of clusters, one or many, and tells how to reproduce what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use quorate_client::chaos;
use quorate_sim::life::{self, Outcomes, Report};
use quorate_sim::plan::{FaultClass, Plan};
use quorate_sim::trace::Trace;

/// Simulates whole Quorate clusters, reproducibly.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One life: its plan, its faults, the verdict, and a hash of all that happened.
    Run {
        /// Which life.
        #[arg(long)]
        seed: u64,
        /// Write a line for every packet and event to this file, to be compared with another run's.
        #[arg(long, value_name = "FILE")]
        lines: Option<PathBuf>,
        /// Write the history (every operation, every replica at the end) to this file, as JSON, a line each.
        #[arg(long, value_name = "FILE")]
        history: Option<PathBuf>,
        /// Print the plan as JSON and run nothing.
        #[arg(long)]
        plan: bool,
    },
    /// Many lives on all cores; tells how to reproduce each failure.
    Swarm {
        /// Which lives, as `0..500`: the end is not among them.
        #[arg(long, value_parser = seeds)]
        seeds: std::ops::Range<u64>,
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
    },
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is no range of seeds like 0..500"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    life::note_panics();
    let ended = match cli.command {
        Command::Run { seed, lines, history, plan } => run(seed, lines.as_deref(), history.as_deref(), plan),
        Command::Swarm { seeds, minutes, jobs, hashes, stop_at_first } => {
            swarm(seeds, minutes, jobs, hashes, stop_at_first)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "quorate-sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all was well.
fn run(seed: u64, lines: Option<&Path>, history: Option<&Path>, only_plan: bool) -> io::Result<bool> {
    let plan = plan_of(seed);
    let mut out = io::stdout().lock();
    if only_plan {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(true);
    }
    let trace = match lines {
        Some(path) => Trace::with_lines(BufWriter::new(create(path)?)),
        None => Trace::new(),
    };
    let report = life::run(&plan, trace.clone());
    trace.flush()?;
    if let Some(path) = history {
        report.history.write_lines(BufWriter::new(create(path)?))?;
    }
    writeln!(out, "{report}")?;
    Ok(report.is_good())
}

fn swarm(
    seeds: std::ops::Range<u64>,
    minutes: Option<f64>,
    jobs: Option<usize>,
    hashes: bool,
    stop_at_first: bool,
) -> io::Result<bool> {
    let started = Stopwatch::start();
    let limit = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let jobs = jobs.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1).max(1);
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let sums = Mutex::new(Sums::default());
    let running: Mutex<BTreeMap<u64, Duration>> = Mutex::default();
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
                            // A closed pipe must not end the swarm.
                            let _ = writeln!(
                                io::stdout().lock(),
                                "seed {seed}: {what}\n  reproduce: quorate-sim run --seed {seed}"
                            );
                        }
                        sums.lock().expect("no panic while it is held").add(&report);
                    }
                })
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(20));
            let now = started.elapsed();
            let running = running.lock().expect("no panic while it is held");
            if let Some((seed, _)) = running.iter().find(|(_, since)| now.saturating_sub(**since) > HUNG_AFTER) {
                // A thread cannot be ended from outside, so that the whole swarm has to.
                let _ = writeln!(
                    io::stdout().lock(),
                    "seed {seed}: hangs in real time\n  reproduce: quorate-sim run --seed {seed}"
                );
                std::process::exit(1);
            }
        }
    });
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

/// What all lives of a swarm come to.
#[derive(Default)]
struct Sums {
    lives: u64,
    failed: BTreeSet<u64>,
    hashes: BTreeMap<u64, String>,
    simulated: Duration,
    outcomes: Outcomes,
    injected: BTreeMap<FaultClass, u32>,
    packets: u64,
    chaos: chaos::Report,
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
        self.chaos.add(&report.chaos);
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
        let never = self.chaos.never();
        let all = self.chaos.fired.len() + self.chaos.reached.len();
        writeln!(out, "points that fired and marks that were reached: {} of {all}", all - never.len())?;
        for name in never {
            writeln!(out, "  never: {name}")?;
        }
        writeln!(out, "operations: {written} written, {found} read, {not_applied} not applied, {unknown} unknown")?;
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

/// The life of a seed. Faults that a cluster has to heal by itself are left out as long as it does not.
fn plan_of(seed: u64) -> Plan {
    Plan::draw(seed, &FaultClass::survivable())
}

fn create(path: &Path) -> io::Result<File> {
    File::create(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A life takes seconds. One that takes so long blocks its thread or goes round in a circle within one moment.
const HUNG_AFTER: Duration = Duration::from_secs(300);

/// The only place where real time is read: how long a swarm has taken. No life sees it.
struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "it measures the simulator, not what is simulated")]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

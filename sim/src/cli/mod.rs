//! The commands, one a file, and what they share. Each says whether all was well.

pub(crate) mod explain;
pub(crate) mod run;
pub(crate) mod scenario;
pub(crate) mod shrink;
pub(crate) mod swarm;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use quorate_sim::life::{self, Report};
use quorate_sim::plan::{FaultClass, Plan};
use quorate_sim::trace::Trace;

/// Which life: that of a seed, or that of a file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The life of this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// The life of the plan in this file: JSON, as `run --print-plan` and `shrink` write it.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

impl Which {
    /// # Errors
    /// When there is no such file, or it is not that of a possible plan.
    pub(crate) fn plan(&self) -> io::Result<Plan> {
        match (&self.seed, &self.plan) {
            (Some(seed), _) => Ok(plan_of(*seed)),
            (None, Some(path)) => read_plan(path),
            (None, None) => unreachable!("clap demands one of the two"),
        }
    }

    /// How it is named on the command line.
    pub(crate) fn argument(&self) -> String {
        match (&self.seed, &self.plan) {
            (Some(seed), _) => format!("--seed {seed}"),
            (None, path) => format!("--plan {}", path.as_deref().unwrap_or(Path::new("-")).display()),
        }
    }
}

/// The life of a seed. Faults that a cluster has to heal by itself are left out as long as it does not.
pub(crate) fn plan_of(seed: u64) -> Plan {
    Plan::draw(seed, &FaultClass::survivable())
}

fn read_plan(path: &Path) -> io::Result<Plan> {
    let file = File::open(path).map_err(|error| about(path, &error))?;
    let plan: Plan = serde_json::from_reader(BufReader::new(file))
        .map_err(|error| about(path, &format_args!("it is no plan: {error}")))?;
    let problems = plan.problems();
    match problems.is_empty() {
        true => Ok(plan),
        false => Err(about(path, &format_args!("the plan is not possible: {}", problems.join("; ")))),
    }
}

pub(crate) fn create(path: &Path) -> io::Result<File> {
    File::create(path).map_err(|error| about(path, &error))
}

pub(crate) fn about(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", path.display()))
}

/// Runs a plan; nothing if it hangs in real time, that is, blocks its thread or goes round in a circle within one moment. The
/// thread is left behind then: it cannot be ended from outside.
pub(crate) fn run_within(plan: &Plan, limit: Duration) -> Option<Report> {
    let (send, received) = mpsc::sync_channel(1);
    let plan = plan.clone();
    thread::spawn(move || {
        // Nobody waits any more when it took too long.
        let _ = send.send(life::run(&plan, Trace::new()));
    });
    received.recv_timeout(limit).ok()
}

/// A life takes seconds.
pub(crate) const HUNG_AFTER: Duration = Duration::from_secs(300);

/// The only place where real time is read: how long a command has taken. No life sees it.
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "it measures the simulator, not what is simulated")]
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

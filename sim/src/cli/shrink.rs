//! `quorate-sim shrink`: the simplest plan that fails in the same way.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use quorate_sim::shrink::{self, Symptom, Try};

use super::{HUNG_AFTER, Stopwatch, Which, about, run_within};

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    #[command(flatten)]
    which: Which,
    /// Where to write the shrunk plan, as JSON; `shrunk-SEED.json` if it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Try so many lives at most.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Begin no further life after so many minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// Whether it had nothing to shrink: a life that fails is no good, however small.
pub(crate) fn shrink(arguments: &Shrink) -> io::Result<bool> {
    let started = Stopwatch::start();
    let limit = Duration::try_from_secs_f64(arguments.minutes * 60.0)
        .map_err(|_| io::Error::other(format!("{} minutes are not possible", arguments.minutes)))?;
    let plan = arguments.which.plan()?;
    let mut out = io::stdout().lock();
    let hangs =
        || io::Error::other(format!("it hangs in real time, for more than {HUNG_AFTER:?}: look with a debugger"));
    let report = run_within(&plan, HUNG_AFTER).ok_or_else(hangs)?;
    let Some(symptom) = Symptom::of(&report) else {
        writeln!(out, "nothing to shrink: every promise is kept by {}", arguments.which.argument())?;
        return Ok(true);
    };
    writeln!(out, "{} has {symptom}", arguments.which.argument())?;
    let mut hung = false;
    let fails = |plan: &_| match run_within(plan, HUNG_AFTER) {
        Some(report) => symptom.shows_in(&report),
        None => {
            hung = true;
            false
        }
    };
    let mut stderr = io::stderr().lock();
    let shrunk = shrink::shrink(&plan, arguments.tries, fails, |tried: Try<'_>| {
        let plan = tried.plan;
        // Whoever does not want to see the progress closes stderr.
        let _ = writeln!(
            stderr,
            "try {:>3}, {:>4} s: {} nodes, {} clients, {} operations, {} keys, {} faults{}",
            tried.number,
            started.elapsed().as_secs(),
            plan.nodes(),
            plan.workload.clients,
            plan.workload.operations,
            plan.workload.keys,
            plan.faults.len(),
            if tried.fails { " - still fails" } else { "" },
        );
        started.elapsed() < limit
    });
    let out_file = arguments.out.clone().unwrap_or_else(|| format!("shrunk-{}.json", plan.seed).into());
    let json = serde_json::to_string_pretty(&shrunk.plan)? + "\n";
    fs::write(&out_file, json).map_err(|error| about(&out_file, &error))?;
    for line in shrink::differences(&plan, &shrunk.plan) {
        writeln!(out, "  {line}")?;
    }
    for fault in &shrunk.plan.faults {
        writeln!(out, "  left: at {} ms for {} ms {:?}", fault.at_ms, fault.for_ms, fault.kind)?;
    }
    for point in &shrunk.plan.points.on {
        writeln!(out, "  left: the point {point:?}")?;
    }
    let end = if shrunk.is_minimal { "nothing simpler fails" } else { "stopped early, simpler plans may fail as well" };
    writeln!(out, "after {} lives: {end}", shrunk.tries)?;
    writeln!(out, "reproduce: quorate-sim run --plan {}", out_file.display())?;
    if hung {
        writeln!(out, "note: some simpler plan hung in real time and was left out")?;
    }
    Ok(false)
}

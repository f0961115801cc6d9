//! `quorate-sim run`: one life.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use quorate_sim::life;
use quorate_sim::plan::Plan;
use quorate_sim::report;
use quorate_sim::story::Story;
use quorate_sim::tale::Tale;
use quorate_sim::trace::Trace;
use quorate_sim::workload::key_text;

use super::explain::Explain;
use super::{Which, about, create};

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    explain: Explain,
    /// Draw what happened into this file: one page of HTML that needs nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "print_plan")]
    report: Option<PathBuf>,
    /// Write a line for every packet and event to this file, to be compared with another run's.
    #[arg(long, value_name = "FILE", conflicts_with = "print_plan")]
    lines: Option<PathBuf>,
    /// Write the history (every operation, every replica at the end) to this file, as JSON, a line each.
    #[arg(long, value_name = "FILE", conflicts_with = "print_plan")]
    history: Option<PathBuf>,
    /// Print the plan as JSON and run nothing.
    #[arg(long, conflicts_with = "key")]
    print_plan: bool,
}

pub(crate) fn run(arguments: &Run) -> io::Result<bool> {
    let plan = arguments.which.plan()?;
    let mut out = io::stdout().lock();
    if arguments.print_plan {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(true);
    }
    if let Some(key) = &arguments.explain.key {
        check_key(key, &plan)?;
    }
    let trace = match &arguments.lines {
        Some(path) => Trace::with_lines(BufWriter::new(create(path)?)),
        None => Trace::new(),
    };
    // What cannot be written is better known before the life than after it.
    let page = arguments.report.as_ref().map(|path| create(path).map(|_| path)).transpose()?;
    let story = (arguments.explain.key.is_some() || page.is_some()).then(Story::new);
    let report = life::run_told(&plan, trace.clone(), story.clone());
    trace.flush()?;
    if let Some(path) = &arguments.history {
        report.history.write_lines(BufWriter::new(create(path)?))?;
    }
    if let Some(story) = story {
        let tale = Tale::of_life(&report, &story);
        if let Some(path) = page {
            fs::write(path, report::page(&tale)).map_err(|error| about(path, &error))?;
        }
        if let Some(text) = arguments.explain.text(&tale)? {
            writeln!(out, "{text}")?;
        }
    }
    writeln!(out, "{report}")?;
    Ok(report.is_good())
}

/// # Errors
/// When no client will touch the key.
fn check_key(key: &str, plan: &Plan) -> io::Result<()> {
    let keys = plan.workload.keys;
    if (0..keys).any(|index| key_text(index) == key) {
        return Ok(());
    }
    let known = match keys {
        1 => format!("only the key {}", key_text(0)),
        _ => format!("the keys {} to {}", key_text(0), key_text(keys - 1)),
    };
    Err(io::Error::other(format!("there is no key {key:?} in this life: it has {known}")))
}

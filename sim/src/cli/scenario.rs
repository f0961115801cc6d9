//! `quorate-sim scenario`: the stories that have names.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use quorate_sim::scenarios::{self, ALL};
use quorate_sim::{explain, report};

use super::{about, create};

#[derive(Debug, Args)]
pub(crate) struct Scenario {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What there is, and what one learns from it.
    List,
    /// Runs a story and tells what happens.
    Run {
        /// Which one, as `list` calls it.
        name: String,
        /// Also tell all that happened to one key, step by step.
        #[arg(long, value_name = "KEY")]
        explain: Option<String>,
        /// Draw what happened into this file: one page of HTML that needs nothing else.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
}

pub(crate) fn scenario(arguments: &Scenario) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match &arguments.command {
        Command::List => {
            let width = ALL.iter().map(|story| story.name.len()).max().unwrap_or(0);
            for story in ALL {
                writeln!(out, "{:width$}  {}", story.name, story.about)?;
            }
            Ok(true)
        }
        Command::Run { name, explain, report } => {
            let Some(story) = scenarios::named(name) else {
                let names: Vec<_> = ALL.iter().map(|story| story.name).collect();
                return Err(io::Error::other(format!("there is no scenario {name:?}, only: {}", names.join(", "))));
            };
            let page = report.as_ref().map(|path| create(path).map(|_| path)).transpose()?;
            let ending = (story.play)();
            if let Some(path) = page {
                fs::write(path, report::page(&ending.tale)).map_err(|error| about(path, &error))?;
            }
            writeln!(out, "{ending}")?;
            if let Some(key) = explain {
                write!(out, "\n{}", explain::explain(&ending.tale, key))?;
            }
            Ok(ending.is_good())
        }
    }
}

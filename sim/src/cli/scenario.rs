//! `quorate-sim scenario`: the stories that have names.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quorate_sim::report::{self, Entry};
use quorate_sim::scenarios::{self, ALL};

use super::explain::Explain;
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
    /// Runs a story and tells what happens, or runs all of them.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Which one, as `list` calls it.
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// Every story there is, with a line for each.
    #[arg(long, conflicts_with_all = ["name", "key"])]
    all: bool,
    #[command(flatten)]
    explain: Explain,
    /// Draw what happened into this file: one page of HTML that needs nothing else. With `--all`, into this directory: a page
    /// for each story, and index.html, which leads to them.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn scenario(arguments: &Scenario) -> io::Result<bool> {
    match &arguments.command {
        Command::List => list(),
        Command::Run(arguments) => match &arguments.name {
            Some(name) => run(name, arguments),
            None => run_all(arguments.report.as_deref()),
        },
    }
}

fn list() -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let width = name_width();
    for story in ALL {
        writeln!(out, "{:width$}  {}", story.name, story.about)?;
    }
    Ok(true)
}

fn run(name: &str, arguments: &Run) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let Some(story) = scenarios::named(name) else {
        let names: Vec<_> = ALL.iter().map(|story| story.name).collect();
        return Err(io::Error::other(format!("there is no scenario {name:?}, only: {}", names.join(", "))));
    };
    let page = arguments.report.as_ref().map(|path| create(path).map(|_| path)).transpose()?;
    let ending = (story.play)();
    if let Some(path) = page {
        fs::write(path, report::page(&ending.tale)).map_err(|error| about(path, &error))?;
    }
    let told = arguments.explain.text(&ending.tale)?;
    writeln!(out, "{ending}")?;
    if let Some(text) = told {
        write!(out, "\n{text}")?;
    }
    Ok(ending.is_good())
}

/// Whether all of them went as they should.
fn run_all(directory: Option<&Path>) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    // What cannot be written is better known before the stories than after them.
    let index = match directory {
        Some(directory) => {
            fs::create_dir_all(directory).map_err(|error| about(directory, &error))?;
            let index = directory.join("index.html");
            create(&index)?;
            Some((directory, index))
        }
        None => None,
    };
    let width = name_width();
    let mut endings = Vec::new();
    for story in ALL {
        let ending = (story.play)();
        writeln!(out, "{:width$}  {}", story.name, ending.tale.verdict)?;
        endings.push((story, ending));
    }
    let entries: Vec<Entry<'_>> = endings
        .iter()
        .map(|(story, ending)| Entry { name: story.name, about: story.about, tale: &ending.tale })
        .collect();
    let bad = endings.iter().filter(|(_, ending)| !ending.is_good()).count();
    if let Some((directory, index)) = &index {
        for entry in &entries {
            let path = directory.join(entry.file_name());
            fs::write(&path, report::page(entry.tale)).map_err(|error| about(&path, &error))?;
        }
        fs::write(index, report::index("scenarios", &entries)).map_err(|error| about(index, &error))?;
        writeln!(out, "\nthe pages are in {}", index.display())?;
    }
    match bad {
        0 => writeln!(out, "verdict: all {} went well", ALL.len())?,
        bad => writeln!(out, "verdict: {bad} of {} did not go well", ALL.len())?,
    }
    Ok(bad == 0)
}

fn name_width() -> usize {
    ALL.iter().map(|story| story.name.len()).max().unwrap_or(0)
}

//! `quorate-sim`: runs simulated lives of clusters, one or many, tells what happened in them, and how to reproduce what goes wrong.

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quorate_sim::life;

use crate::cli::run::Run;
use crate::cli::scenario::Scenario;
use crate::cli::shrink::Shrink;
use crate::cli::swarm::Swarm;

/// Simulates whole Quorate clusters, reproducibly.
///
/// Exits with 0 when every promise was kept, with 1 when one was broken, with 2 when a command could not be carried out.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One life: its plan, its faults, the verdict, and a hash of all that happened.
    Run(Run),
    /// Many lives on all cores; tells how to reproduce each failure.
    Swarm(Swarm),
    /// Finds the simplest plan that fails in the same way as a life: fewest nodes, clients, operations and faults.
    Shrink(Shrink),
    /// Readable, named stories of what can happen to a cluster.
    Scenario(Scenario),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    life::note_panics();
    let ended = match &cli.command {
        Command::Run(arguments) => cli::run::run(arguments),
        Command::Swarm(arguments) => cli::swarm::swarm(arguments),
        Command::Shrink(arguments) => cli::shrink::shrink(arguments),
        Command::Scenario(arguments) => cli::scenario::scenario(arguments),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Whoever has closed the pipe has seen enough; and nobody is left to tell if this fails.
            if error.kind() != io::ErrorKind::BrokenPipe {
                let _ = writeln!(io::stderr(), "quorate-sim: {error}");
            }
            ExitCode::from(2)
        }
    }
}

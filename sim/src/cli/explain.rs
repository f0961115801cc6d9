//! `--explain KEY`, and the options that say which lines of the story are wanted.

use std::io;

use clap::Args;
use quorate_sim::explain::{self, Filter, Kind};
use quorate_sim::history::OpNo;
use quorate_sim::tale::Tale;

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Tell the story of one key, as in `--explain key:17`: every operation, decision, merge and read, and what went wrong.
    #[arg(long = "explain", value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Of the story, only lines of these kinds.
    #[arg(long, value_name = "KINDS", value_delimiter = ',', hide_possible_values = true, requires = "key")]
    #[arg(help = format!("Of the story, only lines of these kinds: {}", kinds()))]
    only: Vec<Kind>,
    /// Of the story, only what these nodes and clients did, as in `--node n2,alice`, and the faults that concern them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "key")]
    node: Vec<String>,
    /// Of the story, only what was done for these operations, as in `--operation 17,18`.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "key")]
    operation: Vec<OpNo>,
    /// Of the story, only what happened from this moment on, in simulated time: 3s, 2.5s, 3200ms.
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "key")]
    from: Option<u64>,
    /// Of the story, only what happened until this moment.
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "key")]
    to: Option<u64>,
}

impl Explain {
    /// The story, if one is wanted.
    ///
    /// # Errors
    /// When something is asked for that is not in it.
    pub(crate) fn text(&self, tale: &Tale) -> io::Result<Option<String>> {
        let Some(key) = &self.key else { return Ok(None) };
        let filter = Filter {
            only: self.only.iter().copied().collect(),
            who: self.node.iter().cloned().collect(),
            operations: self.operation.iter().copied().collect(),
            from_us: self.from,
            to_us: self.to,
        };
        match filter.problem(tale, key) {
            Some(problem) => Err(io::Error::other(problem)),
            None => Ok(Some(explain::explain_some(tale, key, &filter))),
        }
    }
}

fn kinds() -> String {
    use clap::ValueEnum;
    Kind::value_variants().iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// A moment of simulated time, in microseconds.
fn moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no moment: write it as 3s, 2.5s or 3200ms");
    let (number, unit_us) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e3),
        (None, Some(number)) => (number, 1e6),
        (None, None) => return Err(wrong()),
    };
    let digits = number.starts_with(|char: char| char.is_ascii_digit());
    let number: f64 = number.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    if number * unit_us > DAY_US { Err(format!("{text:?} is more than a day")) } else { Ok((number * unit_us) as u64) }
}

/// No life lasts so long.
const DAY_US: f64 = 86_400e6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_units() {
        assert_eq!(moment("3s"), Ok(3_000_000));
        assert_eq!(moment("2.5s"), Ok(2_500_000));
        assert_eq!(moment("3200ms"), Ok(3_200_000));
        assert_eq!(moment("0.1ms"), Ok(100));
        for wrong in ["3", "s", "ms", "-3s", "infs", "nans", "3 s", "3m", "", "+3s"] {
            assert!(moment(wrong).is_err(), "{wrong:?}");
        }
        assert!(moment("1e9s").expect_err("it is years").contains("more than a day"));
    }
}

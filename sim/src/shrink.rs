//! From a plan that fails to the simplest one that fails in the same way (delta debugging: Zeller, Hildebrandt, 2002).
//!
//! [`Plan::simpler`] proposes, the caller's closure disposes. What was tried once is not tried again: a life is a function of
//! its plan.

use std::collections::BTreeSet;
use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

use crate::checker::Property;
use crate::life::Report;
use crate::plan::Plan;

/// In which way a life fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Symptom {
    /// It breaks this promise.
    Violates(Property),
    /// It does not come to its end; the text is the same for failures of one kind.
    Fails(String),
}

impl Symptom {
    /// Of a life; nothing if all was well. Of several violations the first one counts.
    pub fn of(report: &Report) -> Option<Self> {
        match (&report.failure, report.violations.first()) {
            (Some(why), _) => Some(Self::Fails(kind_of(why))),
            (None, Some(violation)) => Some(Self::Violates(violation.property)),
            (None, None) => None,
        }
    }

    /// Whether a life shows it, maybe among others.
    pub fn shows_in(&self, report: &Report) -> bool {
        match (self, &report.failure) {
            (Self::Violates(property), _) => report.violations.iter().any(|it| it.property == *property),
            (Self::Fails(kind), Some(why)) => *kind == kind_of(why),
            (Self::Fails(_), None) => false,
        }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violates(property) => write!(f, "a violation of {property:?}"),
            Self::Fails(kind) => write!(f, "a failure: {kind}"),
        }
    }
}

/// One try.
#[derive(Debug)]
pub struct Try<'a> {
    /// How many there were, with this one.
    pub number: u32,
    /// What was tried.
    pub plan: &'a Plan,
    /// It fails in the same way: shrinking goes on from it.
    pub fails: bool,
}

/// What shrinking has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shrunk {
    /// The simplest plan that was found to fail.
    pub plan: Plan,
    /// How many lives that took.
    pub tries: u32,
    /// None of the plans that are simpler by one step fails; otherwise the tries or the caller's patience were over.
    pub is_minimal: bool,
}

/// Goes from simpler plan to simpler plan, as long as `fails` says that they fail in the same way. Ends when none does, after
/// `tries_max` tries, or when `after_try` says so by returning false.
///
/// `plan` itself is not tried: the caller knows that it fails.
pub fn shrink(
    plan: &Plan,
    tries_max: u32,
    mut fails: impl FnMut(&Plan) -> bool,
    mut after_try: impl FnMut(Try<'_>) -> bool,
) -> Shrunk {
    let mut shrunk = Shrunk { plan: plan.clone(), tries: 0, is_minimal: false };
    let mut known = BTreeSet::from([identity(plan)]);
    // Each round goes on where the one before has succeeded: what failed to be left out before that rarely can be now, and is
    // tried last.
    let mut first = 0;
    loop {
        let mut candidates = shrunk.plan.simpler();
        first %= candidates.len().max(1);
        candidates.rotate_left(first);
        let mut simpler = None;
        for (at, candidate) in candidates.into_iter().enumerate() {
            if !known.insert(identity(&candidate)) {
                continue;
            }
            if shrunk.tries == tries_max {
                return shrunk;
            }
            shrunk.tries += 1;
            let fails = fails(&candidate);
            let goes_on = after_try(Try { number: shrunk.tries, plan: &candidate, fails });
            if fails {
                simpler = Some((at, candidate));
            }
            match (goes_on, simpler.is_some()) {
                (true, false) => {}
                (true, true) => break,
                (false, _) => {
                    shrunk.plan = simpler.map_or(shrunk.plan, |(_, plan)| plan);
                    return shrunk;
                }
            }
        }
        match simpler {
            Some((at, plan)) => {
                shrunk.plan = plan;
                first += at;
            }
            None => {
                shrunk.is_minimal = true;
                return shrunk;
            }
        }
    }
}

/// What two plans differ in, a line each, for people: from the first to the second.
pub fn differences(from: &Plan, to: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |what: &str, from: String, to: String| {
        if from != to {
            lines.push(format!("{what}: {from} -> {to}"));
        }
    };
    let (was, is) = (&from.workload, &to.workload);
    line("faults", from.faults.len().to_string(), to.faults.len().to_string());
    line("points of misbehaviour", from.points.on.len().to_string(), to.points.on.len().to_string());
    line("aftermath", format!("{:?}", from.aftermath), format!("{:?}", to.aftermath));
    line("healing", format!("{:?}", from.mechanisms), format!("{:?}", to.mechanisms));
    line("nodes", from.nodes().to_string(), to.nodes().to_string());
    line("clients", was.clients.to_string(), is.clients.to_string());
    line("operations of each client", was.operations.to_string(), is.operations.to_string());
    line("keys", was.keys.to_string(), is.keys.to_string());
    line("floors", format!("{:?}", from.floors), format!("{:?}", to.floors));
    line("quorums", was.quorums.len().to_string(), is.quorums.len().to_string());
    line("longest value", was.value_len_max.to_string(), is.value_len_max.to_string());
    line("partitions", from.partitions.to_string(), to.partitions.to_string());
    line("zones", format!("{:?}", from.zones), format!("{:?}", to.zones));
    line("mix", format!("{:?}", was.mix), format!("{:?}", is.mix));
    line("network", format!("{:?}", from.network), format!("{:?}", to.network));
    line("active for (ms)", from.active_ms.to_string(), to.active_ms.to_string());
    lines
}

/// Failures whose texts differ in numbers only (which operations hang), or in what follows on a colon (who was asked, and said
/// what), are of one kind. A panic is told by its place, which is its text's first line.
fn kind_of(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    if line.starts_with("panic: panicked at") {
        return line.to_owned();
    }
    let head = line.split_once(": ").map_or(line, |(head, _)| head);
    let words = head.split(' ').map(|word| word.trim_matches(|char: char| !char.is_alphabetic()));
    words
        .filter(|word| !word.is_empty() && !word.contains(|char: char| char.is_ascii_digit()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn identity(plan: &Plan) -> u128 {
    xxh3_128(&serde_json::to_vec(plan).expect("a plan is plain data"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{FaultClass, FaultKind};

    fn plan() -> Plan {
        let all = FaultClass::ALL.into_iter().collect();
        let with = |seed| Some(Plan::draw(seed, &all)).filter(|plan| crashes(plan) && plan.faults.len() > 3);
        (0..2000).find_map(with).expect("there is one among so many")
    }

    /// A stand-in for a bug that needs a crash of node 0 and two clients.
    fn crashes(plan: &Plan) -> bool {
        plan.workload.clients >= 2 && plan.faults.iter().any(|it| matches!(it.kind, FaultKind::Crash { node: 0, .. }))
    }

    #[test]
    fn what_is_not_needed_goes_and_nothing_is_tried_twice() {
        let from = plan();
        let mut seen = BTreeSet::new();
        let mut last = None;
        let fails = |plan: &Plan| {
            assert!(seen.insert(identity(plan)), "tried twice: {plan:?}");
            crashes(plan)
        };
        let shrunk = shrink(&from, 2000, fails, |tried| {
            last = tried.fails.then(|| tried.plan.clone()).or(last.take());
            true
        });
        assert!(shrunk.is_minimal && crashes(&shrunk.plan));
        assert_eq!(last.as_ref(), Some(&shrunk.plan), "the last one that failed is the result");
        assert_eq!(seen.len(), shrunk.tries as usize);
        let workload = &shrunk.plan.workload;
        assert_eq!((shrunk.plan.faults.len(), workload.clients, workload.operations, workload.keys), (1, 2, 1, 1));
        assert_eq!(shrunk.plan.nodes(), shrunk.plan.n);
        let told = differences(&from, &shrunk.plan);
        assert!(told.iter().any(|line| line.starts_with("faults: ") && line.ends_with("-> 1")), "{told:?}");
        assert_eq!(differences(&from, &from), [] as [String; 0]);
    }

    #[test]
    fn tries_and_patience_are_bounds() {
        let from = plan();
        let bounded = shrink(&from, 5, crashes, |_| true);
        assert_eq!((bounded.tries, bounded.is_minimal), (5, false));
        let mut tries = 0;
        let ended = shrink(&from, 2000, crashes, |_| {
            tries += 1;
            tries < 3
        });
        assert_eq!((ended.tries, ended.is_minimal), (3, false));
        assert!(crashes(&ended.plan), "whatever is given back fails");
        let stubborn = shrink(&from, 2000, |_| false, |_| true);
        assert!(stubborn.is_minimal);
        assert_eq!(stubborn.plan, from);
    }

    #[test]
    fn failures_are_told_apart_by_their_kind() {
        let hang = |text: &str| kind_of(text);
        assert_eq!(hang("operations [3, 17] hang 60 s after it"), hang("operations [5] hang 9 s after it"));
        assert_ne!(hang("operations [3] hang 60 s after it"), hang("the audit takes longer than 600s"));
        assert_eq!(hang("there is no layout after 60s: tried n1, n2"), hang("there is no layout after 60s: tried n1"));
        let panic = |place: &str| kind_of(&format!("panic: panicked at {place}:\nassertion {} failed", place.len()));
        assert_eq!(panic("node/src/a.rs:12:5"), panic("node/src/a.rs:12:5"));
        assert_ne!(panic("node/src/a.rs:12:5"), panic("node/src/a.rs:13:5"));
    }
}

//! A breadth-first explicit-state explorer, for models that run the shipped rules.
//!
//! It keeps every state exactly (no hash compaction), so a verdict "holds" is a proof for the bounded model, and the first
//! counterexample it meets is a shortest one. Liveness is the branching-time property `AG EF goal`: from *every* reachable
//! state a goal can still be reached by helpful steps alone. In a finite graph that is what "completes under fairness" comes
//! to, and the linear-time `eventually` of common checkers does not express it; this is why the explorer is our own.

use std::fmt::Display;
use std::hash::{Hash, Hasher};

/// What the explorer asks of a model.
pub(crate) trait Model {
    type State: Copy + Eq + Hash;
    type Action: Copy + Display;

    fn initial(&self) -> Self::State;
    fn successors(&self, state: &Self::State, out: &mut Vec<(Self::Action, Self::State)>);
    /// The safety property that this state breaks, if any.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether the protocol has come to its good end here.
    fn goal(&self, state: &Self::State) -> bool;
    /// Whether a fair scheduler owes us this step. Faults and clients' wishes are not owed.
    fn helpful(&self, action: &Self::Action) -> bool;
    /// States that differ only in the names of interchangeable nodes may be explored once: any fixed choice among them will do.
    fn canonical(&self, state: &Self::State) -> Self::State {
        *state
    }
    /// Whether liveness is owed from this state (a bounded model may have run out of tries).
    fn owed(&self, _state: &Self::State) -> bool {
        true
    }
}

/// Which properties a run is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Safety,
    Liveness,
}

pub(crate) enum Verdict {
    Holds,
    /// A shortest path to a state that breaks `property`.
    Broken {
        property: &'static str,
        trace: Vec<String>,
    },
    /// The bound on states was reached before an answer was.
    Undecided,
}

pub(crate) struct Report {
    pub(crate) states: usize,
    pub(crate) verdict: Verdict,
}

/// Explores `model` to the end, to a counterexample or to `states_max` states.
pub(crate) fn explore<M: Model>(model: &M, question: Question, states_max: usize) -> Report {
    let mut seen = Seen::new();
    let mut parents: Vec<u32> = vec![0];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut next = Vec::new();
    seen.insert(model.canonical(&model.initial()));

    let mut at = 0;
    while at < seen.states.len() {
        let state = seen.states[at];
        if question == Question::Safety
            && let Some(property) = model.broken(&state)
        {
            let trace = trace(model, &seen.states, &parents, at);
            return Report { states: seen.states.len(), verdict: Verdict::Broken { property, trace } };
        }
        if seen.states.len() > states_max {
            return Report { states: seen.states.len(), verdict: Verdict::Undecided };
        }
        next.clear();
        model.successors(&state, &mut next);
        for (action, successor) in next.drain(..) {
            let (id, new) = seen.insert(model.canonical(&successor));
            if new {
                parents.push(at as u32);
            }
            if question == Question::Liveness && model.helpful(&action) {
                edges.push((id as u32, at as u32));
            }
        }
        at += 1;
    }

    let stuck = if question == Question::Liveness { first_stuck(model, &seen.states, edges) } else { None };
    let verdict = match stuck {
        Some((at, property)) => Verdict::Broken { property, trace: trace(model, &seen.states, &parents, at) },
        None => Verdict::Holds,
    };
    Report { states: seen.states.len(), verdict }
}

/// The first state, in breadth-first order, from which no goal can be reached. L2 when not even one helpful step is left.
fn first_stuck<M: Model>(model: &M, states: &[M::State], mut edges: Vec<(u32, u32)>) -> Option<(usize, &'static str)> {
    edges.sort_unstable();
    edges.dedup();
    let mut can_move = vec![false; states.len()];
    edges.iter().for_each(|&(to, from)| can_move[from as usize] |= to != from);
    let mut good: Vec<bool> = states.iter().map(|state| model.goal(state)).collect();
    let mut work: Vec<u32> = (0..states.len() as u32).filter(|&id| good[id as usize]).collect();
    while let Some(id) = work.pop() {
        let first = edges.partition_point(|&(to, _)| to < id);
        for &(to, from) in &edges[first..] {
            if to != id {
                break;
            }
            if !good[from as usize] {
                good[from as usize] = true;
                work.push(from);
            }
        }
    }
    let at = (0..states.len()).find(|&id| !good[id] && model.owed(&states[id]))?;
    Some((
        at,
        if can_move[at] { "L1 the change can no longer complete" } else { "L2 deadlock before the change is complete" },
    ))
}

/// Replays the path to `at` with concrete node names: the stored states are canonical, so each step looks for an action whose
/// canonical result is the next stored state.
fn trace<M: Model>(model: &M, states: &[M::State], parents: &[u32], at: usize) -> Vec<String> {
    let mut path = vec![at];
    while path[path.len() - 1] != 0 {
        path.push(parents[path[path.len() - 1]] as usize);
    }
    let mut lines = Vec::new();
    let mut state = model.initial();
    let mut next = Vec::new();
    for &id in path.iter().rev().skip(1) {
        next.clear();
        model.successors(&state, &mut next);
        let &(action, successor) = next
            .iter()
            .find(|(_, s)| model.canonical(s) == states[id])
            .expect("a stored state has a step that leads to it");
        lines.push(action.to_string());
        state = successor;
    }
    lines
}

/// Every state once, in the order of discovery, with an open-addressing index over them.
struct Seen<S> {
    states: Vec<S>,
    slots: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

impl<S: Copy + Eq + Hash> Seen<S> {
    fn new() -> Self {
        Seen { states: Vec::new(), slots: vec![EMPTY; 1 << 16] }
    }

    /// The state's number, and whether it is new.
    fn insert(&mut self, state: S) -> (usize, bool) {
        if self.states.len() * 2 > self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut slot = fingerprint(&state) as usize & mask;
        loop {
            match self.slots[slot] {
                EMPTY => {
                    let id = u32::try_from(self.states.len()).expect("fewer than 2^32 states");
                    self.slots[slot] = id;
                    self.states.push(state);
                    return (id as usize, true);
                }
                id if self.states[id as usize] == state => return (id as usize, false),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn grow(&mut self) {
        let mask = self.slots.len() * 2 - 1;
        self.slots = vec![EMPTY; mask + 1];
        for (id, state) in self.states.iter().enumerate() {
            let mut slot = fingerprint(state) as usize & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = id as u32;
        }
    }
}

fn fingerprint<S: Hash>(state: &S) -> u64 {
    let mut hasher = Mix(0);
    state.hash(&mut hasher);
    let x = hasher.0 ^ (hasher.0 >> 32);
    let x = x.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^ (x >> 29)
}

/// A fast multiply-rotate hash; equality is always checked on the whole state, so its quality costs time only.
struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, i: u8) {
        self.add(u64::from(i));
    }
    fn write_u64(&mut self, i: u64) {
        self.add(i);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

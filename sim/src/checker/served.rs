//! **Served**: a request ends well if some coordinator that its client can reach could serve it, also while others are broken.
//!
//! Of an operation that ended badly it is asked: during all of it, and for [`MARGIN_US`] before, was there an owner of the key that
//! clients reached, and that reached enough others for what was asked, all of them with nothing wrong? So long before, because those who
//! were away must have noticed that they are back. What happens to all other nodes is no excuse: whoever asks them first is refused by
//! them, or goes on when they do not answer.
//!
//! What is unsure is not judged. A write whose outcome is unknown stays with the coordinator that may have minted it (rule V6), so that
//! it counts only where clients reached every node, and nothing at all changed for long enough: those that cannot serve it have known
//! so, and clients have given up their connections to nodes that have started since (`CLIENT_MARGIN_US`). Where any node is slow nothing
//! is judged.
//! (README, "Always writable"; Gilbert and Lynch, "Brewer's conjecture", 2002: every request that a non-failing node receives ends in a
//! response. Here other nodes have to be asked for that.)

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::history::{Action, History, Operation, Outcome, Reach};

/// What a life promises of requests that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// No point is on at which the code refuses what it could do.
    pub means_it: bool,
    /// Others than owners stand in for them.
    pub fallbacks: bool,
    /// What an operation must have been given, in microseconds, to be served at a second or third coordinator.
    pub time_us: u64,
}

/// How much was judged. A checker that judges nothing finds nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Operations that some coordinator in reach could serve.
    pub operations: u64,
    /// Of these, those that were asked for while something else was broken.
    pub broken: u64,
    /// Lives with any.
    pub lives: u64,
}

impl Judged {
    /// Adds what was judged of other lives.
    pub fn add(&mut self, more: Self) {
        let Self { operations, broken, lives } = more;
        (self.operations, self.broken, self.lives) =
            (self.operations + operations, self.broken + broken, self.lives + lives);
    }
}

/// Every operation that a coordinator in reach could have served, and that was not. `owners` has those of each key, by layout. Nothing is
/// judged while the layout changes.
pub fn check(
    history: &History,
    owners: &BTreeMap<u64, BTreeMap<String, BTreeSet<String>>>,
    terms: &Terms,
) -> (Vec<Violation>, Judged) {
    let (mut violations, mut judged) = (Vec::new(), Judged::default());
    for operation in history.operations.values().filter(|_| terms.means_it) {
        let Some((reach, steady)) = in_order(history, operation, terms) else { continue };
        let owners = reach.layout.and_then(|layout| owners.get(&layout)?.get(&operation.key));
        let Some(owners) = owners else { continue };
        let Some(coordinator) = coordinator(operation, &reach, owners, terms) else { continue };
        let all_reached = reach.unreached.is_empty() && reach.away.is_empty();
        // Each of them may be asked first, and takes half of the time that is left.
        let silent = owners.iter().filter(|owner| reach.unreached.contains(*owner) || reach.away.contains(*owner));
        if silent.count() > IN_VAIN_MAX {
            continue;
        }
        let why = match &operation.outcome {
            Outcome::Unknown(_) if !steady || !all_reached => continue,
            Outcome::Unknown(why) | Outcome::NotApplied(why) => Some(why),
            Outcome::Written | Outcome::Found(_) => None,
        };
        judged.operations += 1;
        judged.broken += u64::from(!all_reached || !reach.parted.is_empty());
        violations.extend(why.map(|why| Violation {
            property: Property::Served,
            key: operation.key.clone(),
            operations: vec![operation.no],
            what: format!(
                "operation {} failed ({why}), though for {} s before and all the time {coordinator} was in reach and could serve it",
                operation.no,
                MARGIN_US / 1_000_000
            ),
        }));
    }
    judged.lives = u64::from(judged.operations > 0);
    (violations, judged)
}

/// Who could reach whom all the time, and whether that was the same all the time; if nobody was slow, and the operation had time enough.
fn in_order(history: &History, operation: &Operation, terms: &Terms) -> Option<(Reach, bool)> {
    let (time_us, to_us) = (operation.time_us?, operation.returned_us? + TICK_US);
    let from_us = operation.invoked_us.checked_sub(MARGIN_US)?;
    let quiet_from_us = operation.invoked_us.saturating_sub(CLIENT_MARGIN_US);
    let changed = |reach: &Reach| (quiet_from_us..=to_us).contains(&reach.from_us);
    // What there was at the beginning of the life is no change.
    let steady = !history.reach.iter().skip(1).any(changed);
    let first = history.reach.partition_point(|reach| reach.from_us <= from_us).checked_sub(1)?;
    let mut all = history.reach[first..].iter().take_while(|reach| reach.from_us <= to_us);
    let mut worst = all.next()?.clone();
    for Reach { sound, away, parted, unreached, slow, layout, .. } in all {
        worst.layout = worst.layout.filter(|_| worst.layout == *layout);
        worst.sound.retain(|node| sound.contains(node));
        worst.away.extend(away.iter().cloned());
        worst.parted.extend(parted.iter().cloned());
        worst.unreached.extend(unreached.iter().cloned());
        worst.slow |= slow;
    }
    (time_us >= terms.time_us && !worst.slow).then_some((worst, steady))
}

/// An owner that could serve an operation.
fn coordinator<'a>(
    operation: &Operation,
    reach: &Reach,
    owners: &'a BTreeSet<String>,
    terms: &Terms,
) -> Option<&'a String> {
    let n = u8::try_from(owners.len()).ok()?;
    let (need, sloppy) = match operation.action {
        Action::Get { monotonic: false } => (operation.asked, false),
        // What it returns has to be on so many owners that no later read misses it.
        Action::Get { monotonic: true } => {
            (operation.asked.max((n + 1).saturating_sub(operation.asked)).max(n / 2 + 1), false)
        }
        Action::Put { .. } | Action::Delete { .. } => (operation.asked, !operation.strict && terms.fallbacks),
    };
    let linked = |one: &String, other: &String| {
        let pair = if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
        one == other || !reach.parted.contains(&pair)
    };
    // Who reaches nobody since its start does not know whether its disk is an old one, and answers no read for longer than this checker
    // waits (README, "What works, and what does not yet").
    let alone = |one: &String| !reach.sound.iter().any(|node| node != one && linked(one, node));
    owners.iter().find(|coordinator| {
        let others = reach.sound.iter().filter(|node| sloppy || owners.contains(*node));
        let reached = others.filter(|node| linked(coordinator, node)).count();
        reach.sound.contains(*coordinator)
            && !reach.unreached.contains(*coordinator)
            && reached >= usize::from(need)
            && !(matches!(operation.action, Action::Get { .. }) && alone(coordinator))
    })
}

/// A connection that is silent is given up after 4 s, and a node that does not answer is taken for down after 6; whoever is back is
/// dialled after 2 s at the latest.
pub const MARGIN_US: u64 = 8_000_000;

/// A client that asks a node seldom notices only after so long that its connection is one to a process that has ended: what it sends on
/// it until then is lost, and a write is unknown (README, "What works, and what does not yet").
const CLIENT_MARGIN_US: u64 = 30_000_000;

/// A change is seen when the millisecond is over in which it happens.
const TICK_US: u64 = 2_000;

/// Owners that may not answer at all.
const IN_VAIN_MAX: usize = 2;

/// An operation goes to two coordinators in vain, each of which takes half of what is left, and from the third one to the others and
/// back: of the rest that is two round trips for itself, and one to be sure.
pub const LATENCIES: u64 = 24;

/// And so long for everything that is not the network.
pub const TIME_LEAST_US: u64 = 200_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{KEY, Story, proofs};

    const TERMS: Terms = Terms { means_it: true, fallbacks: true, time_us: 500_000 };

    /// Three owners and a fourth node, of which everybody reaches everybody, but for these.
    fn reach(from_us: u64, parted: &[(&str, &str)], unreached: &[&str], ailing: &[&str]) -> Reach {
        let nodes = ["n1", "n2", "n3", "n4"].iter().filter(|node| !ailing.contains(node));
        Reach {
            from_us,
            sound: nodes.map(|node| (*node).to_owned()).collect(),
            parted: parted.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect(),
            unreached: unreached.iter().map(|node| (*node).to_owned()).collect(),
            layout: Some(0),
            ..Reach::default()
        }
    }

    fn owners() -> BTreeMap<u64, BTreeMap<String, BTreeSet<String>>> {
        [(0, [(KEY.to_owned(), ["n1", "n2", "n3"].map(str::to_owned).into())].into())].into()
    }

    /// A strict read and a strict write of majorities and a sloppy write, all of them refused long after everything began to be as it is.
    fn refused(reach: &[Reach]) -> (History, [u64; 3]) {
        let mut story = Story::new();
        let three = [story.get([]), story.put(None), story.put(None)];
        for no in three {
            story.not_applied(no);
            story.edit(no, |operation| {
                operation.invoked_us += 2 * MARGIN_US;
                operation.returned_us = operation.returned_us.map(|us| us + 2 * MARGIN_US);
                operation.time_us = Some(1_000_000);
                operation.strict = no != three[2];
            });
        }
        let mut history = story.history();
        history.reach = reach.to_vec();
        (history, three)
    }

    fn blamed(history: &History) -> BTreeSet<Vec<u64>> {
        proofs(check(history, &owners(), &TERMS).0)
    }

    #[test]
    fn whoever_reaches_enough_others_must_serve() {
        let (history, [read, strict, sloppy]) = refused(&[reach(0, &[], &[], &[])]);
        assert_eq!(blamed(&history), [vec![read], vec![strict], vec![sloppy]].into());
        // n3 is cut off from its peers and not from clients; n1 and n2 are enough.
        let cut = [("n1", "n3"), ("n2", "n3"), ("n3", "n4")];
        let (history, _) = refused(&[reach(0, &cut, &[], &[])]);
        assert_eq!(blamed(&history).len(), 3);
        assert_eq!(check(&history, &owners(), &TERMS).1, Judged { operations: 3, broken: 3, lives: 1 });
        // Nor do clients reach n1, and n2 is enough all the same.
        let (history, _) = refused(&[reach(0, &cut, &["n1"], &[])]);
        assert_eq!(blamed(&history).len(), 3);
        // Now n2 has no owner beside it, but somebody to stand in.
        let alone = [("n1", "n2"), ("n1", "n3"), ("n2", "n3"), ("n3", "n4"), ("n1", "n4")];
        let (history, _) = refused(&[reach(0, &alone, &["n1"], &[])]);
        assert_eq!(blamed(&history), [vec![sloppy]].into());
        let (history, _) = refused(&[reach(0, &alone, &["n1", "n2", "n3"], &[])]);
        assert_eq!(blamed(&history), [].into(), "no owner is in reach");
        let (history, _) = refused(&[reach(0, &[], &[], &["n1", "n2"])]);
        assert_eq!(blamed(&history), [vec![sloppy]].into(), "those with something wrong count for nothing");
    }

    #[test]
    fn what_is_unsure_is_not_judged() {
        let nothing = |history: &History| assert_eq!(check(history, &owners(), &TERMS), (vec![], Judged::default()));
        let (history, _) = refused(&[]);
        nothing(&history);
        let whole = |from_us| reach(from_us, &[], &[], &[]);
        // Too many were away a little while ago, or went when it was asked for.
        let few = |from_us| reach(from_us, &[], &[], &["n2", "n3", "n4"]);
        let (history, _) = refused(&[few(0), whole(MARGIN_US + 60)]);
        nothing(&history);
        let (history, _) = refused(&[whole(0), few(2 * MARGIN_US + 1), whole(2 * MARGIN_US + 2)]);
        nothing(&history);
        let (history, _) = refused(&[whole(0), Reach { slow: true, ..whole(MARGIN_US + 60) }, whole(MARGIN_US + 61)]);
        nothing(&history);
        for layout in [None, Some(1)] {
            let (history, _) = refused(&[whole(0), Reach { layout, ..whole(MARGIN_US + 60) }]);
            nothing(&history);
        }
        let (mut history, _) = refused(&[whole(0)]);
        history.operations.values_mut().for_each(|operation| operation.time_us = None);
        nothing(&history);
        let (mut history, _) = refused(&[whole(0)]);
        history.operations.values_mut().for_each(|operation| operation.time_us = Some(TERMS.time_us - 1));
        nothing(&history);
        let (history, _) = refused(&[whole(0)]);
        assert_eq!(check(&history, &owners(), &Terms { means_it: false, ..TERMS }).0, []);
    }

    #[test]
    fn an_unknown_write_counts_where_every_node_can_be_asked() {
        let cut = [("n1", "n3"), ("n2", "n3"), ("n3", "n4")];
        for (unreached, blames) in [(&[][..], true), (&["n3"][..], false)] {
            let (mut history, [read, write, sloppy]) = refused(&[reach(0, &cut, unreached, &[])]);
            let unknown = |operation: &mut Operation| operation.outcome = Outcome::Unknown("late".to_owned());
            history.operations.values_mut().filter(|operation| operation.writes()).for_each(unknown);
            let writes = [vec![write], vec![sloppy]].into_iter().filter(|_| blames);
            assert_eq!(blamed(&history), writes.chain([vec![read]]).collect::<BTreeSet<_>>());
            // One that has just been cut off may have minted it; and connections may be older than the process at their other end.
            history.reach.insert(0, reach(0, &[], unreached, &[]));
            for changed_us in [MARGIN_US + 100, MARGIN_US - 100] {
                history.reach[1].from_us = changed_us;
                assert_eq!(blamed(&history), [vec![read]].into());
            }
        }
    }

    #[test]
    fn a_monotonic_read_needs_those_that_it_writes_back_to() {
        let of_one = |operation: &mut Operation| {
            (operation.asked, operation.action) = (1, Action::Get { monotonic: true });
        };
        let (mut history, [read, ..]) = refused(&[reach(0, &[], &[], &["n3"])]);
        history.operations.retain(|no, _| *no == read);
        history.operations.values_mut().for_each(of_one);
        assert_eq!(blamed(&history), [].into(), "all three owners have to hold it");
        history.reach = vec![reach(0, &[], &[], &[])];
        assert_eq!(blamed(&history), [vec![read]].into());
    }

    #[test]
    fn a_read_of_one_that_is_alone_is_not_judged() {
        let cut = [("n1", "n2"), ("n1", "n3"), ("n1", "n4"), ("n2", "n3"), ("n2", "n4"), ("n3", "n4")];
        let (mut history, [read, strict, _]) = refused(&[reach(0, &cut, &[], &[])]);
        history.operations.values_mut().for_each(|operation| (operation.asked, operation.strict) = (1, true));
        history.operations.retain(|no, _| [read, strict].contains(no));
        assert_eq!(blamed(&history), [vec![strict]].into(), "a write needs no disk that is in order");
        history.reach = vec![reach(0, &cut[..5], &[], &[])];
        assert_eq!(blamed(&history), [vec![read], vec![strict]].into());
    }

    #[test]
    fn what_ended_well_is_counted() {
        let (mut history, _) = refused(&[reach(0, &[], &[], &[])]);
        history.operations.values_mut().for_each(|operation| operation.outcome = Outcome::Written);
        assert_eq!(check(&history, &owners(), &TERMS), (vec![], Judged { operations: 3, broken: 0, lives: 1 }));
    }
}

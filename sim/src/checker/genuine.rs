//! **Genuine**: whoever reads a value reads what somebody asked to write, to that key, and was not told that it never happened.
//!
//! "Not applied" is definite: it is said before the mint, or when no byte was sent. A write that was refused and is seen all
//! the same would let a client that tries again write twice.

use super::{Property, Violation};
use crate::history::{Action, History, OpNo, Operation, Outcome};

/// Every value that a read returned or that is left at the end, though nobody can have written it.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut forged = |key: &str, value: OpNo, reader: Option<&Operation>| {
        let why = match history.operations.get(&value) {
            None => "which nobody wrote",
            Some(write) if !matches!(write.action, Action::Put { .. }) => "which carries the number of no put",
            Some(write) if write.key != key => "which was written to another key",
            Some(write) if matches!(write.outcome, Outcome::NotApplied(_)) => {
                "whose writer was told that it was not applied"
            }
            Some(write) if reader.is_some_and(|reader| reader.before(write)) => "which was asked for only later",
            Some(_) => return,
        };
        let place =
            reader.map_or_else(|| "at the end there is".to_owned(), |reader| format!("read {} returned", reader.no));
        violations.push(Violation {
            property: Property::Genuine,
            key: key.to_owned(),
            operations: reader.map(|reader| reader.no).into_iter().chain([value]).collect(),
            what: format!("{place} value {value}, {why}"),
        });
    };
    for read in history.operations.values() {
        read.found().into_iter().flatten().for_each(|value| forged(&read.key, *value, Some(read)));
    }
    for (key, values) in &history.merged {
        values.iter().for_each(|value| forged(key, *value, None));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn unknown_writes_may_be_seen() {
        let mut story = Story::new();
        let write = story.put(None);
        story.unknown(write);
        story.get([write]);
        story.left([write]);
        assert_eq!(check(&story.history()), []);
    }

    #[test]
    fn refused_writes_must_not_be_seen() {
        let mut story = Story::new();
        let write = story.put(None);
        story.not_applied(write);
        let read = story.get([write]);
        story.left([write]);
        assert_eq!(proofs(check(&story.history())), [vec![read, write], vec![write]].into());
    }

    #[test]
    fn values_from_nowhere_elsewhere_and_the_future_are_found() {
        let mut story = Story::new();
        let nowhere = story.get([77]);
        let other = story.put(None);
        story.edit(other, |write| write.key = "another".to_owned());
        let elsewhere = story.get([other]);
        let early = story.get([5]);
        let late = story.put(None);
        assert_eq!(late, 5);
        let delete = story.delete(None);
        let odd = story.get([delete]);
        let expected = [vec![nowhere, 77], vec![elsewhere, other], vec![early, late], vec![odd, delete]];
        assert_eq!(proofs(check(&story.history())), expected.into());
    }
}

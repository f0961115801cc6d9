//! **Contexts belong to their key**: a write with the context of another key is refused before anything happens.
//!
//! Taken for the key's own, such a context covers dots that the writer never saw, of which some may be this key's: actors count
//! by partition. (DESIGN, rule V5.)

use super::{Property, Violation};
use crate::history::{History, Operation, Outcome};

/// Every write with a foreign context that was acknowledged, and every one that is seen.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let foreign = |write: &&Operation| {
        let giver = write.cause().and_then(|cause| history.operations.get(&cause));
        giver.is_some_and(|giver| giver.key != write.key)
    };
    for write in history.operations.values().filter(foreign) {
        let mut report = |reader: Option<&Operation>, what: String| {
            violations.push(Violation {
                property: Property::OwnContext,
                key: write.key.clone(),
                operations: [write.no].into_iter().chain(reader.map(|reader| reader.no)).collect(),
                what: format!("write {} came with the context of another key, {what}", write.no),
            });
        };
        if write.outcome == Outcome::Written {
            report(None, "and was acknowledged".to_owned());
        }
        let shows = |read: &&Operation| read.found().is_some_and(|values| values.contains(&write.no));
        if let Some(read) = history.operations.values().find(shows) {
            report(Some(read), format!("and read {} shows it", read.no));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_write_with_another_keys_context_must_be_refused() {
        let mut story = Story::new();
        let other = story.put(None);
        story.edit(other, |other| other.key = "another".to_owned());
        let own = story.put(None);
        let good = story.put(Some(own));
        let bad = story.put(Some(other));
        assert!(good < bad);
        assert_eq!(proofs(check(&story.history())), [vec![bad]].into());
        story.unknown(bad);
        assert_eq!(check(&story.history()), []);
        let read = story.get([good, bad]);
        assert_eq!(proofs(check(&story.history())), [vec![bad, read]].into());
        story.edit(read, |read| read.outcome = Outcome::Found([good].into()));
        story.not_applied(bad);
        assert_eq!(check(&story.history()), []);
    }
}

//! **Replaced by what is there**: a record says that a write was replaced only if it holds what has replaced it, or if that was deleted.
//!
//! A context that covers what nobody has seen takes a write away as soon as replicas exchange; one that travels without the values that it
//! owes its knowledge to does so as soon as they are lost: a lost update before it happens, seen on one disk. (Rules V1 to V6 in ARCHITECTURE.md
//! exist for nothing else; Shapiro et al., "Conflict-free Replicated Data Types", 2011, section 4, for why contexts and values must
//! travel together.)

use super::keys::OfKey;
use super::{Property, Violation};
use crate::history::{Action, History, Replaced};

/// Every write that some record calls replaced without holding what has replaced it.
pub fn check(history: &History, keys: &[OfKey<'_>]) -> Vec<Violation> {
    let unfounded = |replaced: &&Replaced| {
        keys.iter().filter(|of_key| of_key.key == replaced.key).all(|of_key| {
            let held = replaced.by.iter().any(|by| of_key.causality.covers(*by, replaced.no));
            !held
                && !of_key.operations.iter().any(|operation| {
                    matches!(operation.action, Action::Delete { .. })
                        && operation.may_have_happened()
                        && operation.invoked_us <= replaced.at_us
                        && of_key.causality.covers(operation.no, replaced.no)
                })
        })
    };
    let violation = |replaced: &Replaced| {
        let Replaced { no, key, place, by, .. } = replaced;
        Violation {
            property: Property::ReplacedByWhatIsThere,
            key: key.clone(),
            operations: vec![*no],
            what: format!(
                "the record at {place} calls write {no} replaced, and holds {by:?}, which did not replace it"
            ),
        }
    };
    history.replaced.iter().filter(unfounded).map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::keys::of_keys;
    use crate::checker::story::{Story, proofs};
    use crate::history::Causality;

    #[test]
    fn a_record_that_calls_replaced_what_nothing_in_it_replaced_is_found() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        story.replaced("n1", one, [two]);
        let three = story.put(None);
        story.replaced("n1 for n2", one, [three]);
        story.replaced("n2", two, []);
        let four = story.put(Some(two));
        story.replaced("n3", one, [three, four]);
        let refused = story.delete(Some(three));
        story.not_applied(refused);
        story.replaced("n3", three, [two]);
        let history = story.history();
        let causality = Causality::of(&history);
        let found = proofs(check(&history, &of_keys(&history, &causality)));
        assert_eq!(found, [vec![one], vec![two], vec![three]].into());
    }

    #[test]
    fn what_was_deleted_left_nothing_to_hold() {
        let mut story = Story::new();
        let one = story.put(None);
        story.replaced("n1", one, []);
        let delete = story.delete(Some(one));
        story.unknown(delete);
        let other = story.put(None);
        story.replaced("n2", one, [other]);
        let history = story.history();
        let causality = Causality::of(&history);
        let violations = check(&history, &of_keys(&history, &causality));
        assert_eq!(violations.len(), 1, "a delete that comes later replaces nothing: {violations:?}");
        assert!(violations[0].what.contains("n1"), "{violations:?}");
    }
}

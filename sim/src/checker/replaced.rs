//! **Replaced by somebody**: a record says that a write was replaced only when somebody who knew of the write has replaced it.
//!
//! A context that covers what nobody has seen takes a write away as soon as replicas exchange: the moment before a lost update, and
//! seen on one disk. (Rules V1, V2, V4 and V5 of DESIGN exist for nothing else; Shapiro et al., "Conflict-free Replicated Data Types",
//! 2011, section 4, for why contexts and values must travel together.)

use super::keys::OfKey;
use super::{Property, Violation};
use crate::history::{History, Replaced};

/// Every write that some record calls replaced though nobody had replaced it.
pub fn check(history: &History, keys: &[OfKey<'_>]) -> Vec<Violation> {
    let unfounded = |replaced: &&Replaced| {
        keys.iter().filter(|of_key| of_key.key == replaced.key).all(|of_key| {
            !of_key.operations.iter().any(|operation| {
                operation.may_have_happened()
                    && operation.invoked_us <= replaced.at_us
                    && of_key.causality.covers(operation.no, replaced.no)
            })
        })
    };
    let violation = |replaced: &Replaced| Violation {
        property: Property::ReplacedBySomebody,
        key: replaced.key.clone(),
        operations: vec![replaced.no],
        what: format!("{} calls write {} replaced, and nobody has replaced it", replaced.node, replaced.no),
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
    fn a_record_that_calls_replaced_what_nobody_replaced_is_found() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        story.replaced("n1", one);
        let three = story.put(None);
        story.replaced("n2", two);
        story.put(Some(two));
        let delete = story.delete(Some(three));
        story.not_applied(delete);
        story.replaced("n3", three);
        let history = story.history();
        let causality = Causality::of(&history);
        let found = proofs(check(&history, &of_keys(&history, &causality)));
        assert_eq!(found, [vec![two], vec![three]].into(), "who replaces it later, or is refused, is nobody");
    }
}

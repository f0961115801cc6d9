//! **Durable**: a write that was acknowledged is there at the end, or something is that knew of it.
//!
//! The first half of "an acknowledged write survives": nothing of the key is left, or only what the write itself replaced. Where
//! another write stands in its place, it is [`super::lost_update`]. (README, "What each mode promises", last row.)

use super::keys::OfKey;
use super::{Property, Violation};

/// Acknowledged puts that vanished without anything in their place.
pub fn check(keys: &[OfKey<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for of_key in keys {
        let left = of_key.left;
        for write in of_key.lost() {
            if left.iter().all(|value| of_key.causality.covers(write.no, *value)) {
                violations.push(Violation {
                    property: Property::Durable,
                    key: of_key.key.to_owned(),
                    operations: vec![write.no],
                    what: format!("write {} was acknowledged and is gone; left is {left:?}", write.no),
                });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::keys::of_keys;
    use crate::checker::story::{Story, proofs};
    use crate::history::Causality;

    fn judged(story: &Story) -> std::collections::BTreeSet<Vec<u64>> {
        let history = story.history();
        proofs(check(&of_keys(&history, &Causality::of(&history))))
    }

    #[test]
    fn a_write_that_vanished_is_found() {
        let mut story = Story::new();
        let write = story.put(None);
        assert_eq!(judged(&story), [vec![write]].into());
        story.left([write]);
        assert_eq!(judged(&story), [].into());
    }

    #[test]
    fn a_write_that_gave_way_to_what_it_replaced_is_found() {
        let mut story = Story::new();
        let old = story.put(None);
        let new = story.put(Some(old));
        story.left([old]);
        assert_eq!(judged(&story), [vec![new]].into());
    }

    #[test]
    fn replaced_and_deleted_writes_may_go() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        story.left([two]);
        assert_eq!(judged(&story), [].into());
        let delete = story.delete(Some(two));
        story.unknown(delete);
        story.left([]);
        assert_eq!(judged(&story), [].into(), "the delete may have happened");
        story.not_applied(delete);
        assert_eq!(judged(&story), [vec![one], vec![two]].into(), "it did not");
    }

    #[test]
    fn nothing_is_promised_of_unknown_writes() {
        let mut story = Story::new();
        let write = story.put(None);
        story.unknown(write);
        assert_eq!(judged(&story), [].into());
    }

    #[test]
    fn a_blind_delete_deletes_nothing() {
        let mut story = Story::new();
        let write = story.put(None);
        story.delete(None);
        assert_eq!(judged(&story), [vec![write]].into());
    }
}

//! **No lost update**: a write replaces what it names, and nothing else. Writes that did not know of each other both stand.
//!
//! What last-write-wins does to carts; the reason for siblings. (DeCandia et al., "Dynamo", 2007, section 4.4; ARCHITECTURE.md, rules
//! V2 and V4: a blind writer's next put must not erase a sibling that it never saw.)

use super::keys::OfKey;
use super::{Property, Violation};

/// Acknowledged puts in whose place a write stands that did not know of them.
pub fn check(keys: &[OfKey<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for of_key in keys {
        for write in of_key.lost() {
            let usurper = of_key.left.iter().find(|value| !of_key.causality.covers(write.no, **value));
            if let Some(usurper) = usurper {
                violations.push(Violation {
                    property: Property::NoLostUpdate,
                    key: of_key.key.to_owned(),
                    operations: vec![write.no, *usurper],
                    what: format!("write {} was acknowledged; {usurper} stands without having known of it", write.no),
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
    fn the_last_of_two_blind_writes_must_not_win() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(None);
        story.left([two]);
        assert_eq!(judged(&story), [vec![one, two]].into());
        story.left([one, two]);
        assert_eq!(judged(&story), [].into());
    }

    #[test]
    fn two_updates_of_one_read_must_both_stand() {
        let mut story = Story::new();
        let base = story.put(None);
        let read = story.get([base]);
        let one = story.put(Some(read));
        let two = story.put(Some(read));
        story.left([two]);
        assert_eq!(judged(&story), [vec![one, two]].into());
    }

    #[test]
    fn a_blind_writers_next_put_must_not_erase_what_it_never_saw() {
        let mut story = Story::new();
        let other = story.put(None);
        let blind = story.put(None);
        let next = story.put(Some(blind));
        story.left([next]);
        assert_eq!(judged(&story), [vec![other, next]].into());
        story.left([other, next]);
        assert_eq!(judged(&story), [].into());
    }
}

//! **Regular register**: a read that begins after a write was acknowledged returns that write or one that knew of it.
//!
//! Promised where the quorums must meet in a primary: R + W > N, neither degraded. Not linearizable: two reads may see a
//! write that is under way in opposite order. (Lamport, "On Interprocess Communication", 1986; README, "What each mode
//! promises", first row.)

use super::keys::OfKey;
use super::{Property, Violation};

/// Every read that misses an acknowledged write.
pub fn check(keys: &[OfKey<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for of_key in keys {
        for write in of_key.acknowledged_puts() {
            for (read, _) in of_key.reads_that_met(write) {
                if of_key.misses(read, write.no) {
                    violations.push(Violation {
                        property: Property::RegularRegister,
                        key: of_key.key.to_owned(),
                        operations: vec![write.no, read.no],
                        what: format!(
                            "write {} was acknowledged before read {} began, which misses it",
                            write.no, read.no
                        ),
                    });
                }
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
    fn a_read_that_misses_an_acknowledged_write_is_found() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        let stale = story.get([one]);
        let empty = story.get([]);
        assert_eq!(judged(&story), [vec![one, empty], vec![two, empty], vec![two, stale]].into());
    }

    #[test]
    fn a_successor_or_a_delete_excuses() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(Some(one));
        story.get([two]);
        let delete = story.delete(Some(two));
        story.unknown(delete);
        story.get([]);
        assert_eq!(judged(&story), [].into());
    }

    #[test]
    fn a_delete_that_was_asked_for_after_the_read_is_no_excuse() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = story.get([]);
        story.delete(Some(write));
        assert_eq!(judged(&story), [vec![write, read]].into());
    }

    #[test]
    fn nothing_is_promised_beside_a_write_or_without_meeting_quorums() {
        let mut story = Story::new();
        let write = story.put(None);
        let read = story.get([]);
        story.edit(write, |write| write.returned_us = Some(1000));
        assert_eq!(judged(&story), [].into(), "they overlap");
        story.edit(write, |write| write.returned_us = Some(20));
        assert_eq!(judged(&story), [vec![write, read]].into());
        story.edit(read, |read| read.quorum.as_mut().expect("it has one").need = 1);
        assert_eq!(judged(&story), [].into(), "R + W = N");
    }
}

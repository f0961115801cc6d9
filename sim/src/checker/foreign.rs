//! **Contexts belong to whom they were issued for**: a write with a context that no node has issued for its key is refused before
//! anything happens, and one with a context that a node has issued for it is not refused for it. (ARCHITECTURE.md, rule V5.)
//!
//! Taken for the key's own, a context of another key covers dots that the writer never saw, of which some may be this key's: actors
//! count by partition. One that was made up covers whatever its maker likes, also what others have still to write.

use super::{Property, Violation};
use crate::history::{History, Operation, Outcome};

/// Every write with a foreign or forged context that was acknowledged, and every one that is seen; and every write that was refused
/// for a context that its client was given for its key. Where keys were `rotated`, a node that has not heard of the newest one
/// may say that.
pub fn check(history: &History, rotated: bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    let giver = |write: &Operation| write.cause().and_then(|cause| history.operations.get(&cause));
    let foreign = |write: &Operation| write.forged || giver(write).is_some_and(|giver| giver.key != write.key);
    let writes = || history.operations.values().filter(|operation| operation.writes());
    for write in writes().filter(|write| foreign(write)) {
        let mut report = |reader: Option<&Operation>, what: String| {
            violations.push(Violation {
                property: Property::OwnContext,
                key: write.key.clone(),
                operations: [write.no].into_iter().chain(reader.map(|reader| reader.no)).collect(),
                what: format!("write {} came with a context that no node had issued for its key, {what}", write.no),
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
    for write in writes().filter(|write| !foreign(write)) {
        let (Some(giver), Outcome::NotApplied(why)) = (giver(write), &write.outcome) else { continue };
        if why.contains(REFUSED) && !(rotated && why.contains(NOT_KNOWN)) {
            violations.push(Violation {
                property: Property::OwnContext,
                key: write.key.clone(),
                operations: vec![giver.no, write.no],
                what: format!("write {} was refused for the context that {} had been given: {why}", write.no, giver.no),
            });
        }
    }
    violations
}

/// What a node says of a context that it does not take.
const REFUSED: &str = "the context is refused";
/// What it says when it has not heard of the key that the context was issued under.
const NOT_KNOWN: &str = "nor a node that it can ask knows";

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
        assert_eq!(proofs(check(&story.history(), false)), [vec![bad]].into());
        story.unknown(bad);
        assert_eq!(check(&story.history(), false), []);
        let read = story.get([good, bad]);
        assert_eq!(proofs(check(&story.history(), false)), [vec![bad, read]].into());
        story.edit(read, |read| read.outcome = Outcome::Found([good].into()));
        story.not_applied(bad);
        assert_eq!(check(&story.history(), false), []);
    }

    #[test]
    fn a_write_with_a_forged_context_must_be_refused() {
        let mut story = Story::new();
        let own = story.put(None);
        let bad = story.put(Some(own));
        assert_eq!(check(&story.history(), false), []);
        story.edit(bad, |bad| bad.forged = true);
        assert_eq!(proofs(check(&story.history(), false)), [vec![bad]].into());
        story.edit(bad, |bad| bad.outcome = Outcome::NotApplied(format!("{REFUSED}: it belongs to another key")));
        assert_eq!(check(&story.history(), false), []);
    }

    #[test]
    fn a_write_with_the_context_that_it_was_given_must_not_be_refused_for_that() {
        let mut story = Story::new();
        let own = story.put(None);
        let write = story.put(Some(own));
        story.not_applied(write);
        assert_eq!(check(&story.history(), false), [], "it was refused for something else");
        for (why, rotated, bad) in
            [("retired", false, true), ("retired", true, true), (NOT_KNOWN, true, false), (NOT_KNOWN, false, true)]
        {
            story.edit(write, |write| write.outcome = Outcome::NotApplied(format!("{REFUSED}: {why}")));
            let proof = if bad { [vec![own, write]].into() } else { [].into() };
            assert_eq!(proofs(check(&story.history(), rotated)), proof, "{why}, {rotated}");
        }
    }
}

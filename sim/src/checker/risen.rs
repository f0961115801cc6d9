//! **Superseded stays superseded**: a replica that has seen a write replaced, and forgets nothing, does not hold its value again.
//!
//! Whoever repeats a write by its operation id may have it minted a second time, by a coordinator that knows nothing of the first one. Who has
//! replaced the write remembers its operation, and names it in the record, and so keeps the second dot out. (ARCHITECTURE.md, rules V6 and
//! V7; `quorate_core::mint`, "never at a replica that remembers or names it".)

use super::{Property, Violation};
use crate::history::{History, Risen};

/// Every value that came back to a node that had seen it replaced.
pub fn check(history: &History) -> Vec<Violation> {
    let violation = |Risen { no, key, node }: &Risen| Violation {
        property: Property::SupersededStays,
        key: key.clone(),
        operations: vec![*no],
        what: format!("{node} holds write {no} again, which it had seen replaced"),
    };
    history.risen.iter().map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_value_that_comes_back_to_who_had_seen_it_replaced_is_found() {
        let mut story = Story::new();
        let one = story.put(None);
        story.put(Some(one));
        assert_eq!(check(&story.history()), []);
        story.risen("n1", one);
        assert_eq!(proofs(check(&story.history())), [vec![one]].into());
    }
}

//! **Handed over**: whoever keeps a hint lets it go only when all that it holds is durable at its target.
//!
//! Else the write that it stood for is on one disk less than was acknowledged, and nobody knows it any more. (DeCandia et al.,
//! "Dynamo", 2007, section 4.6.)

use super::{Property, Violation};
use crate::history::{History, LetGo};

/// Every hint that was let go too early.
pub fn check(history: &History) -> Vec<Violation> {
    let early = history.let_go.iter().filter(|let_go| !let_go.arrived);
    let violation = |let_go: &LetGo| Violation {
        property: Property::HandedOver,
        key: let_go.key.clone(),
        operations: let_go.values.iter().copied().collect(),
        what: format!("{} let go what it kept for {}, on whose disk it is not yet", let_go.holder, let_go.target),
    };
    early.map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_hint_that_went_too_early_is_found() {
        let mut story = Story::new();
        let (one, two) = (story.put(None), story.put(None));
        story.let_go("n4", "n1", one, true);
        assert_eq!(check(&story.history()), []);
        story.let_go("n4", "n1", two, false);
        assert_eq!(proofs(check(&story.history())), [vec![two]].into());
    }
}

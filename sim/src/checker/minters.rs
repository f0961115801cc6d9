//! **One minter**: a write takes its dots from one node, and each life of that node mints it once.
//!
//! A client that does not know what became of a write stays with the coordinator that may have minted it, and nobody else mints it for
//! it. Else one dot can be replaced while the other one stands, and the write rises beside its successor. A client that has only been
//! given the write's operation id cannot know whom to stay with, and is promised less: see [`super::keys::Retries`]. (ARCHITECTURE.md, rule V6.)

use super::{Property, Violation};
use crate::history::{History, Minters};

/// Every write that was minted again, though all that was sent of it came from one client.
pub fn check(history: &History) -> Vec<Violation> {
    let violation = |minters: &Minters| Violation {
        property: Property::OneMinter,
        key: minters.key.clone(),
        operations: vec![minters.no],
        what: format!("write {} was minted as each of {:?}", minters.no, minters.dots),
    };
    let elsewhere = |minters: &Minters| history.operations.get(&minters.no).is_some_and(|write| write.elsewhere);
    let twice = |minters: &&Minters| minters.dots.len() > 1 && !elsewhere(minters);
    history.minters.iter().filter(twice).map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn a_write_that_was_minted_twice_is_found() {
        let mut story = Story::new();
        let (one, two) = (story.put(None), story.put(None));
        story.minters(one, ["n1/1#1"]);
        assert_eq!(check(&story.history()), []);
        story.minters(two, ["n1/1#2", "n2/3#1"]);
        assert_eq!(proofs(check(&story.history())), [vec![two]].into());
        story.edit(two, |two| two.elsewhere = true);
        assert_eq!(check(&story.history()), []);
    }
}

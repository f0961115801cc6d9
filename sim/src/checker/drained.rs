//! **Hints drained**: once everybody is there, what was kept for a node has been handed over, and nobody keeps it any longer.
//!
//! That nothing was lost on the way is [`durable`](super::durable)'s to say: hints count there like replicas. (DeCandia et al.,
//! "Dynamo", 2007, section 4.6.)

use super::{Property, Violation};
use crate::history::History;

/// Every hint that somebody still keeps.
pub fn check(history: &History) -> Vec<Violation> {
    let hints = history.replicas.iter().flat_map(|replica| replica.hints.iter().map(|hint| (&replica.node, hint)));
    let violation = |(holder, hint): (&String, &crate::history::Hint)| Violation {
        property: Property::HintsDrained,
        key: hint.key.clone(),
        operations: hint.dots.values().copied().collect(),
        what: format!("{holder} still keeps it for {}, who is there", hint.target),
    };
    hints.map(violation).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checker::story::{KEY, Story};
    use crate::history::Hint;

    #[test]
    fn a_hint_that_is_left_is_told_with_its_holder() {
        let mut story = Story::new();
        let write = story.put(None);
        story.replica("n1", [("a#1", write)]);
        let mut history = story.history();
        assert_eq!(check(&history), []);
        let dots = BTreeMap::from([("a#1".to_owned(), write)]);
        history.replicas[0].hints.push(Hint { target: "n2".into(), key: KEY.into(), dots });
        let violations = check(&history);
        assert_eq!((violations.len(), &violations[0].operations[..]), (1, &[write][..]));
        assert_eq!(violations[0].what, "n1 still keeps it for n2, who is there");
    }
}

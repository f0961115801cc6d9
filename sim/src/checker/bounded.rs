//! **Bounded cost**: a client that takes no answers, or completes no requests, is cut off; and when all clients have gone a node has
//! given back every byte that their requests took.
//!
//! Otherwise whoever has a certificate can fill a node's memory: by going on for ever, or by coming again and again.

use super::{Property, Violation};
use crate::history::{Cost, History};

/// Every cost that clients could cause and should not.
pub fn check(history: &History) -> Vec<Violation> {
    let violation = |cost: &Cost| Violation {
        property: Property::BoundedCost,
        key: String::new(),
        operations: Vec::new(),
        what: format!("{}: {}", cost.node, cost.what),
    };
    history.costs.iter().map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_told_with_its_node() {
        let mut history = History::default();
        assert_eq!(check(&history), []);
        history.costs.push(Cost { node: "n2".into(), what: "7 bytes are not given back".into() });
        let violations = check(&history);
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].what, "n2: 7 bytes are not given back");
    }
}

//! **Availability**: every operation ends, and where the life promised it, every operation succeeds.
//!
//! The windows are those in which a healthy core of nodes can reach each other, some time after the faults in it stopped.
//! (TigerBeetle's liveness mode: <https://docs.tigerbeetle.com/about/vopr>.)

use super::{Property, Violation, Window};
use crate::history::{History, Outcome};

/// Every operation that never ended, and every failure inside a window.
pub fn check(history: &History, windows: &[Window]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for operation in history.operations.values() {
        let promised = windows.iter().any(|window| {
            let inside = window.from_us..window.to_us;
            inside.contains(&operation.invoked_us) && operation.returned_us.is_some_and(|us| inside.contains(&us))
        });
        let what = match (&operation.outcome, operation.returned_us) {
            (_, None) => "never ended".to_owned(),
            (Outcome::NotApplied(why) | Outcome::Unknown(why), Some(_)) if promised => format!("failed: {why}"),
            (Outcome::Written | Outcome::Found(_) | Outcome::NotApplied(_) | Outcome::Unknown(_), Some(_)) => continue,
        };
        violations.push(Violation {
            property: Property::Availability,
            key: operation.key.clone(),
            operations: vec![operation.no],
            what: format!("operation {} {what}", operation.no),
        });
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::story::{Story, proofs};

    #[test]
    fn failures_count_inside_the_windows_only() {
        let mut story = Story::new();
        let (early, inside, late) = (story.put(None), story.put(None), story.put(None));
        for no in [early, inside, late] {
            story.not_applied(no);
        }
        let window = Window { from_us: 25, to_us: 45 };
        assert_eq!(proofs(check(&story.history(), &[window])), [vec![inside]].into());
        story.unknown(inside);
        assert_eq!(proofs(check(&story.history(), &[window])), [vec![inside]].into());
        assert_eq!(check(&story.history(), &[]), []);
    }

    #[test]
    fn what_never_ends_is_always_found() {
        let mut story = Story::new();
        let hung = story.get([]);
        story.edit(hung, |read| read.returned_us = None);
        assert_eq!(proofs(check(&story.history(), &[])), [vec![hung]].into());
    }
}

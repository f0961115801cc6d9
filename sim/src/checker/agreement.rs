//! **One layout per version**: no two nodes ever hold different layouts of one version, and no disk goes back to an older one.
//!
//! Each version is decided once, by the members of the version before, whatever operators propose at the same time and whoever crashes.
//! Only a disk that has lost what it had synced may know less than before. (Lamport, "Paxos Made Simple", 2001; rule L13.)

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::history::History;

/// Every layout that contradicts another one of its version, and every disk that went back.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let violation = |what: String| Violation {
        property: Property::OneLayoutPerVersion,
        key: String::new(),
        operations: Vec::new(),
        what,
    };
    let mut first: BTreeMap<u64, (&str, &str)> = BTreeMap::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for known in &history.layouts {
        let node = known.node.as_str();
        for (version, hash) in &known.layouts {
            let (other, of_other) = *first.entry(*version).or_insert((node, hash));
            if of_other != hash {
                violations.push(violation(format!("layout {version} is {of_other} at {other} and {hash} at {node}")));
            }
        }
        let now = known.layouts.last().map_or(0, |(version, _)| *version);
        let before = newest.insert(node, now).unwrap_or(0);
        if now < before && !known.spoilt {
            violations.push(violation(format!("{node} knew layout {before} durably, and knows {now} now")));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::KnownLayouts;

    fn known(node: &str, layouts: &[(u64, &str)], spoilt: bool) -> KnownLayouts {
        let layouts = layouts.iter().map(|(version, hash)| (*version, (*hash).to_owned())).collect();
        KnownLayouts { from_us: 0, node: node.to_owned(), layouts, spoilt }
    }

    fn judged(layouts: Vec<KnownLayouts>) -> Vec<String> {
        let history = History { layouts, ..History::default() };
        check(&history).into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn two_layouts_of_one_version_are_found() {
        let good = vec![known("n1", &[(1, "a")], false), known("n2", &[(1, "a"), (2, "b")], false)];
        assert_eq!(judged(good.clone()), [] as [String; 0]);
        let mut bad = good;
        bad.push(known("n3", &[(2, "c")], true));
        assert_eq!(judged(bad), ["layout 2 is b at n2 and c at n3"]);
    }

    #[test]
    fn a_disk_that_goes_back_is_found() {
        let back = |spoilt| vec![known("n1", &[(2, "b")], false), known("n1", &[(1, "a")], spoilt)];
        assert_eq!(judged(back(false)), ["n1 knew layout 2 durably, and knows 1 now"]);
        assert_eq!(judged(back(true)), [] as [String; 0]);
        assert_eq!(
            judged(vec![known("n1", &[(1, "a"), (2, "b")], false), known("n1", &[(2, "b")], false)]),
            [] as [String; 0]
        );
    }
}

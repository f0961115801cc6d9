//! What two replicas have to send each other, from sorted lists of what each of them holds.
//!
//! Lists come in pages. A window is the part of the hash range that the newest pages of both sides cover, so that neither side
//! has to hold more than a page of the other's list:
//!
//! ```text
//!   ours     a b   d e f | g ..      a page that ends at f
//!   theirs   a   c d e           |   the last page
//!   window   [ ......... f ]         only ours: b, f    only theirs: c    next window: after f
//! ```

use std::cmp::Ordering;

use quorate_wire::codec::Blob;
use quorate_wire::ids::key_hash;

/// One record of a list: its key and its [digest](super::record::Record::digest).
pub type Listed = (Blob, u128);

/// A page of a list, in the order of (key hash, key).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    entries: Vec<Listed>,
    done: bool,
}

/// Where two replicas differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Blob,
    /// What this replica holds; nothing if it has no record.
    pub ours: Option<u128>,
    /// What the other one holds.
    pub theirs: Option<u128>,
}

impl Page {
    /// A page that follows the key `after`; `done` if nothing follows on it.
    ///
    /// # Errors
    /// When it is not in order, does not follow `after`, or is empty and not the last one: whoever went on from there would
    /// not come forward.
    pub fn new(entries: Vec<Listed>, done: bool, after: Option<&Blob>) -> Result<Self, String> {
        let first = entries.first().map(|(key, _)| key);
        if let (Some(after), Some(first)) = (after, first)
            && order(after, first) != Ordering::Less
        {
            return Err("a list goes back behind where it was to go on".into());
        }
        if entries.windows(2).any(|pair| order(&pair[0].0, &pair[1].0) != Ordering::Less) {
            return Err("a list is out of order".into());
        }
        if entries.is_empty() && !done {
            return Err("a page is empty and not the last one".into());
        }
        Ok(Self { entries, done })
    }

    /// The last key that it tells of; nothing if it tells of all that follows.
    fn end(&self) -> Option<&Blob> {
        if self.done { None } else { self.entries.last().map(|(key, _)| key) }
    }
}

/// The differences within the window of two pages that begin at the same place, and where the next window begins; nothing
/// if this was the last one.
pub fn differences(ours: &Page, theirs: &Page) -> (Vec<Difference>, Option<Blob>) {
    let end = match (ours.end(), theirs.end()) {
        (Some(ours), Some(theirs)) => Some(if order(ours, theirs) == Ordering::Less { ours } else { theirs }),
        (Some(end), None) | (None, Some(end)) => Some(end),
        (None, None) => None,
    };
    let inside = |(key, _): &&Listed| end.is_none_or(|end| order(key, end) != Ordering::Greater);
    let mut ours = ours.entries.iter().take_while(inside).peekable();
    let mut theirs = theirs.entries.iter().take_while(inside).peekable();
    let mut found = Vec::new();
    loop {
        let side = match (ours.peek(), theirs.peek()) {
            (Some((ours, _)), Some((theirs, _))) => order(ours, theirs),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return (found, end.cloned()),
        };
        let our = if side == Ordering::Greater { None } else { ours.next() };
        let their = if side == Ordering::Less { None } else { theirs.next() };
        let (ours, theirs) = (our.map(|(_, digest)| *digest), their.map(|(_, digest)| *digest));
        if ours != theirs {
            let key = our.or(their).map(|(key, _)| key.clone()).expect("one side has it");
            found.push(Difference { key, ours, theirs });
        }
    }
}

/// The order of lists, which is the store's.
pub fn order(one: &[u8], other: &[u8]) -> Ordering {
    key_hash(one).cmp(&key_hash(other)).then_with(|| one.cmp(other))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    type Held = BTreeMap<u8, u128>;

    fn blob(key: u8) -> Blob {
        Blob::copy_from(&[b'k', key])
    }

    /// What a replica answers to the question for a page.
    fn page(held: &Held, after: Option<&Blob>, limit: usize) -> Page {
        let mut all: Vec<Listed> = held.iter().map(|(key, digest)| (blob(*key), *digest)).collect();
        all.sort_by(|(one, _), (other, _)| order(one, other));
        all.retain(|(key, _)| after.is_none_or(|after| order(after, key) == Ordering::Less));
        let done = all.len() <= limit;
        all.truncate(limit);
        Page::new(all, done, after).expect("in order")
    }

    proptest! {
        #[test]
        fn windows_find_every_difference_once(
            ours in btree_map(any::<u8>(), 0u128..3, 0..40),
            theirs in btree_map(any::<u8>(), 0u128..3, 0..40),
            our_limit in 1usize..9,
            their_limit in 1usize..9,
        ) {
            let mut expected = Vec::new();
            for key in 0..=u8::MAX {
                let (ours, theirs) = (ours.get(&key).copied(), theirs.get(&key).copied());
                if ours != theirs {
                    expected.push(Difference { key: blob(key), ours, theirs });
                }
            }
            expected.sort_by(|one, other| order(&one.key, &other.key));
            let (mut found, mut after) = (Vec::new(), None);
            for _ in 0..100 {
                let pages = (page(&ours, after.as_ref(), our_limit), page(&theirs, after.as_ref(), their_limit));
                let (some, next) = differences(&pages.0, &pages.1);
                found.extend(some);
                after = next;
                if after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(after, None, "it comes to an end");
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let [one, other] = {
            let mut keys = [blob(1), blob(2)];
            keys.sort_by(|one, other| order(one, other));
            keys
        };
        let listed = |keys: &[&Blob]| keys.iter().map(|key| ((*key).clone(), 1)).collect::<Vec<_>>();
        assert!(Page::new(listed(&[&one, &other]), true, None).is_ok());
        assert!(Page::new(listed(&[&other, &one]), true, None).expect_err("wrong").contains("out of order"));
        assert!(Page::new(listed(&[&one, &one]), true, None).is_err(), "twice the same");
        assert!(Page::new(listed(&[&one]), true, Some(&one)).expect_err("wrong").contains("goes back"));
        assert!(Page::new(Vec::new(), false, None).expect_err("wrong").contains("empty"));
        assert!(Page::new(Vec::new(), true, Some(&one)).is_ok());
        assert!(Page::new(listed(&[&one, &other]), true, Some(&one)).is_err(), "it begins where it was to go on");
    }

    #[test]
    fn a_window_reaches_to_the_last_key_of_the_shorter_page() {
        let mut keys: Vec<Blob> = (0..4).map(blob).collect();
        keys.sort_by(|one, other| order(one, other));
        let page = |which: &[usize], done| {
            Page::new(which.iter().map(|at| (keys[*at].clone(), 1)).collect(), done, None).expect("in order")
        };
        let (found, next) = differences(&page(&[0, 1, 2], false), &page(&[0, 3], false));
        assert_eq!(found.iter().map(|difference| &difference.key).collect::<Vec<_>>(), [&keys[1], &keys[2]]);
        assert_eq!(next, Some(keys[2].clone()), "of what follows the first page says nothing");
    }
}

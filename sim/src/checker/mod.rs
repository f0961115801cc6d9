//! The judgement: one file a property, each a pure function of the history.
//!
//! A checker reports each violation with the operations that prove it. None of them trusts a node's word but what a client
//! was told and what was on the disks at the end.

pub mod keys;

pub mod foreign;
pub mod genuine;
pub mod honest;

pub mod handed_over;
pub mod held;

pub mod durable;
pub mod lost_update;
pub mod replaced;
pub mod resurrection;
pub mod risen;

pub mod false_concurrency;
pub mod siblings;

pub mod regular;
pub mod session;

pub mod agreement;
pub mod convergence;
pub mod dots;
pub mod drained;
pub mod mended;
pub mod minters;
pub mod placement;

pub mod availability;
pub mod bounded;
pub mod served;

#[cfg(test)]
pub(crate) mod story;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use self::keys::{Retries, of_keys};
use crate::history::{Causality, History, OpNo};
use crate::plan::Floors;

/// What can be violated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Property {
    /// See [`genuine`].
    Genuine,
    /// See [`foreign`].
    OwnContext,
    /// See [`honest`].
    HonestReply,
    /// See [`held`].
    Held,
    /// See [`handed_over`].
    HandedOver,
    /// See [`durable`].
    Durable,
    /// See [`replaced`].
    ReplacedByWhatIsThere,
    /// See [`risen`].
    SupersededStays,
    /// See [`lost_update`].
    NoLostUpdate,
    /// See [`resurrection`].
    NoResurrection,
    /// See [`false_concurrency`].
    NoFalseConcurrency,
    /// See [`siblings`].
    BoundedSiblings,
    /// See [`regular`].
    RegularRegister,
    /// See [`session`].
    SessionOrder,
    /// See [`convergence`].
    Convergence,
    /// See [`dots`].
    UniqueDots,
    /// See [`minters`].
    OneMinter,
    /// See [`availability`].
    Availability,
    /// See [`served`].
    Served,
    /// See [`bounded`].
    BoundedCost,
    /// See [`drained`].
    HintsDrained,
    /// See [`placement`].
    Placement,
    /// See [`mended`].
    Mended,
    /// See [`agreement`].
    OneLayoutPerVersion,
    /// A change of the layout that operators have asked for is decided, and comes to its end, once all is healed.
    ChangeEnds,
}

/// A proof that a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which promise.
    pub property: Property,
    /// On which key.
    pub key: String,
    /// The operations that prove it.
    pub operations: Vec<OpNo>,
    /// What happened, for people.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of key {}: {} (operations {:?})", self.property, self.key, self.what, self.operations)
    }
}

/// What this life promised, beyond what every life does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectations {
    /// Replicas of each key.
    pub n: u8,
    /// The layout's floors.
    pub floors: Floors,
    /// The most values that one read may return.
    pub siblings_max: usize,
    /// The faults were over and every replica had the time to catch up, so that replicas must be equal.
    pub converged: bool,
    /// Replicas also tell each other which operations they name as replaced: they compare themselves, or reads mend them.
    pub names_spread: bool,
    /// Everybody was there for long enough that nobody keeps anything for anybody any more.
    pub drained: bool,
    /// Who has to hold each key when replicas are equal, and nobody else.
    pub owners: BTreeMap<String, BTreeSet<String>>,
    /// Somebody sends contexts that claim what nobody has seen.
    pub forged: bool,
    /// New context keys were made, which a node that was cut off may not know.
    pub rotated: bool,
    /// When every operation had to succeed.
    pub available: Vec<Window>,
    /// What may come of retries.
    pub retries: Retries,
}

/// A span of simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its first microsecond.
    pub from_us: u64,
    /// The first microsecond after it.
    pub to_us: u64,
}

/// Everything that is wrong with a history.
///
/// When clients read what nobody wrote, nothing else is asked: what causes what is not known then.
pub fn judge(history: &History, expectations: &Expectations) -> Vec<Violation> {
    let forged = genuine::check(history);
    if !forged.is_empty() {
        return forged;
    }
    let causality = Causality::of(history);
    let keys = of_keys(history, &causality);
    let mut violations = durable::check(&keys);
    violations.extend(lost_update::check(&keys));
    if !expectations.forged {
        violations.extend(replaced::check(history, &keys));
    }
    violations.extend(resurrection::check(&keys, expectations.retries));
    violations.extend(false_concurrency::check(&keys, expectations.retries));
    violations.extend(foreign::check(history, expectations.rotated));
    violations.extend(honest::check(history, expectations.floors));
    violations.extend(held::check(history));
    violations.extend(handed_over::check(history));
    violations.extend(siblings::check(history, expectations.siblings_max));
    violations.extend(regular::check(&keys));
    violations.extend(session::check(&keys));
    violations.extend(dots::check(history));
    violations.extend(minters::check(history));
    violations.extend(risen::check(history));
    violations.extend(availability::check(history, &expectations.available));
    violations.extend(bounded::check(history));
    violations.extend(agreement::check(history));
    if expectations.drained {
        violations.extend(drained::check(history));
    }
    if expectations.converged {
        violations.extend(convergence::check(history, expectations.n, expectations.names_spread));
        violations.extend(placement::check(history, &expectations.owners));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::story::Story;
    use super::*;

    #[test]
    fn a_good_life_is_not_blamed() {
        let mut story = Story::new();
        let one = story.put(None);
        let two = story.put(None);
        let read = story.get([one, two]);
        let merged = story.put(Some(read));
        let delete = story.delete(Some(merged));
        story.get([]);
        let again = story.put(Some(delete));
        let unknown = story.put(Some(again));
        story.unknown(unknown);
        story.get([again]);
        story.left([unknown]);
        for node in ["n1", "n2", "n3"] {
            story.replica(node, [("a#7", unknown)]);
        }
        let window = Window { from_us: 0, to_us: 100 };
        let expectations = Expectations {
            n: 3,
            floors: Floors { r: 2, w: 2 },
            siblings_max: 2,
            converged: true,
            names_spread: true,
            drained: true,
            owners: BTreeMap::new(),
            forged: false,
            rotated: false,
            available: vec![window],
            retries: Retries::default(),
        };
        assert_eq!(judge(&story.history(), &expectations), []);
    }

    #[test]
    fn a_value_from_nowhere_ends_the_judgement() {
        let mut story = Story::new();
        story.get([99]);
        let expectations = Expectations {
            n: 3,
            floors: Floors { r: 2, w: 2 },
            siblings_max: 2,
            converged: true,
            names_spread: true,
            drained: true,
            owners: BTreeMap::new(),
            forged: false,
            rotated: false,
            available: Vec::new(),
            retries: Retries::default(),
        };
        let violations = judge(&story.history(), &expectations);
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].property, Property::Genuine);
    }
}

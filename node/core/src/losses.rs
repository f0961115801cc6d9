//! What a replica has lost of one partition, and which owners have made up for it: the arithmetic of recovery.
//!
//! A leaf of the hash tree that was lost is served again when it was exchanged completely with enough owners:
//!
//! ```text
//!   lost        no read is served      -- `need` owners that can speak for it -->  partly recovered
//!   partly      reads above the floor  -- all the other owners, in any state  -->  whole
//!   whole       every read                                             (from lost as well: nobody holds more)
//! ```

use std::collections::BTreeMap;
use std::fmt;

use quorate_wire::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::merkle::Leaves;

/// Why something is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// A record failed its checksum.
    Corrupt,
    /// The last stop was unclean, and writes had been acknowledged before they were synced.
    Unclean,
    /// A peer remembers this node further ahead than its disk is: the disk was rolled back or cloned, or is an old one.
    RolledBack,
    /// The layout names this node with another disk: this one was emptied or exchanged.
    OtherDisk,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "a record was corrupt",
            Self::OtherDisk => "the disk is not the one that the layout names",
            Self::Unclean => "the last stop was unclean, with writes that were not synced",
            Self::RolledBack => "a peer remembers this node further ahead than its disk is",
        })
    }
}

/// Which writes a read must not miss. R + W > N promises to a read of R every write that N - R + 1 or more owners have acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Those are at or above the layout's floor for writes.
    AboveFloor,
    /// Some of them may be below it.
    BelowFloor,
}

impl Reading {
    /// A read of `r` of `n` replicas, in a layout whose floor for writes is `w`.
    pub fn of(n: u8, w: u8, r: u8) -> Self {
        if u16::from(n) + 1 >= u16::from(w) + u16::from(r) { Self::AboveFloor } else { Self::BelowFloor }
    }
}

/// What is lost of one partition.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// Counts losses: what was read before one and is answered after it may be wrong, and an exchange that began before one does not
    /// count.
    count: u64,
    /// What is still lost or only partly recovered.
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone)]
struct UnderWay {
    reason: Reason,
    /// No read of these is served.
    leaves: Leaves,
    /// Reads [above the floor](Reading::AboveFloor) of these are served, and no others.
    partly: Leaves,
    /// Per owner: the leaves that were exchanged completely with it, and those of them for which it could speak.
    exchanged: BTreeMap<NodeId, (Leaves, Leaves)>,
}

/// What has to be exchanged of a partition; tells a later loss from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The leaves, those that are partly recovered included.
    pub leaves: Leaves,
    loss: u64,
}

/// The state of the losses of a partition, to be kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The gravest reason.
    pub reason: Reason,
    /// No read of these is served.
    pub leaves: Leaves,
    /// Reads [above the floor](Reading::AboveFloor) of these are served, and no others.
    pub partly: Leaves,
    /// The partition was served before, to some reads at least.
    pub begins: bool,
    loss: u64,
}

impl Note {
    /// Nothing is lost any more: the note on the disk is to be removed.
    pub fn is_over(&self) -> bool {
        self.leaves.or(&self.partly).is_empty()
    }
}

/// A look at what is lost, to be confirmed after what was looked at has been read.
#[derive(Debug, Clone, Copy)]
pub struct Look(u64);

/// Why a read cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    /// Some of what it reads is lost.
    Lost(Reason),
    /// Some of what it reads is only partly recovered: some owners are still to be asked for writes below the floor.
    Partly(Reason),
}

impl Losses {
    /// What an earlier process has noted and this one has read.
    pub fn restored(reason: Reason, leaves: Leaves, partly: Leaves) -> Self {
        Self { count: 1, under_way: Some(UnderWay { reason, leaves, partly, exchanged: BTreeMap::new() }) }
    }

    /// These leaves are lost, now: what owners have told before does not count for any of the partition. The note is to be on its way
    /// to the disk before anything takes the place of what is lost.
    pub(super) fn lose(&mut self, leaves: &Leaves, reason: Reason) -> Note {
        self.count += 1;
        let before = self.under_way.take();
        let begins = before.as_ref().is_none_or(|before| before.leaves.is_empty());
        let (leaves, partly, reason) = match before {
            Some(before) => (before.leaves.or(leaves), before.partly.without(leaves), before.reason.max(reason)),
            None => (*leaves, Leaves::NONE, reason),
        };
        self.under_way = Some(UnderWay { reason, leaves, partly, exchanged: BTreeMap::new() });
        Note { reason, leaves, partly, begins, loss: self.count }
    }

    /// Counts losses.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether all of these leaves are known to be lost.
    pub fn is_lost(&self, leaves: &Leaves) -> bool {
        self.under_way.as_ref().is_some_and(|under_way| leaves.without(&under_way.leaves).is_empty())
    }

    /// Whether anything was lost since this process started, or still was when it did. What has come from others since need not tell
    /// of all that this node has done.
    pub fn ever(&self) -> bool {
        self.count > 0
    }

    /// Whether these leaves may be served to such a read, to be asked before they are read.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self, leaves: &Leaves, reading: Reading) -> Result<Look, Unserved> {
        if let Some(under_way) = &self.under_way {
            if !under_way.leaves.and(leaves).is_empty() {
                return Err(Unserved::Lost(under_way.reason));
            }
            if reading == Reading::BelowFloor && !under_way.partly.and(leaves).is_empty() {
                return Err(Unserved::Partly(under_way.reason));
            }
        }
        Ok(Look(self.count))
    }

    /// Whether nothing was lost since that look: what was read in between may be served.
    pub fn confirm(&self, look: Look) -> bool {
        self.count == look.0
    }

    /// The leaves for which this replica cannot speak, not even of writes at or above the floor.
    pub fn recovering(&self) -> Leaves {
        self.under_way.as_ref().map_or(Leaves::NONE, |under_way| under_way.leaves)
    }

    /// Whether something is lost, or only partly recovered.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The gravest reason for which something is lost or only partly recovered.
    pub fn gravest(&self) -> Option<Reason> {
        self.under_way.as_ref().map(|under_way| under_way.reason)
    }

    /// The reason why a leaf is lost, or only partly recovered.
    pub fn reason(&self, leaf: u8) -> Option<Reason> {
        let lost = |under_way: &&UnderWay| under_way.leaves.or(&under_way.partly).contains(leaf);
        self.under_way.as_ref().filter(lost).map(|under_way| under_way.reason)
    }

    /// What is to be exchanged.
    pub fn lost(&self) -> Option<Lost> {
        let leaves = |under_way: &UnderWay| under_way.leaves.or(&under_way.partly);
        self.under_way.as_ref().map(|under_way| Lost { leaves: leaves(under_way), loss: self.count })
    }

    /// What is to be exchanged with one owner: what is partly recovered need not be exchanged with the same one again.
    pub fn to_ask(&self, owner: NodeId) -> Option<Lost> {
        let under_way = self.under_way.as_ref()?;
        let complete = under_way.exchanged.get(&owner).map_or(Leaves::NONE, |(complete, _)| *complete);
        let leaves = under_way.leaves.or(&under_way.partly.without(&complete));
        (!leaves.is_empty()).then_some(Lost { leaves, loss: self.count })
    }

    /// The leaves of `lost` were exchanged completely with an owner that could not speak for `recovering` of them, and what came is
    /// durable here. `need` such owners that can speak make a leaf partly whole, all the `others` make it whole. If that changes
    /// what is served there is a note, which holds as soon as the disk has [taken](Self::noted) it.
    pub fn exchanged(
        &mut self,
        lost: Lost,
        with: NodeId,
        recovering: &Leaves,
        need: usize,
        others: usize,
    ) -> Option<Note> {
        let under_way = self.under_way.as_mut().filter(|_| lost.loss == self.count)?;
        let (complete, serving) = under_way.exchanged.entry(with).or_default();
        *complete = complete.or(&lost.leaves);
        *serving = serving.without(&lost.leaves).or(&lost.leaves.without(recovering));
        let all = under_way.leaves.or(&under_way.partly);
        let whole: Leaves = all.iter().filter(|leaf| under_way.complete(*leaf) >= others).collect();
        let served = under_way.leaves.iter().filter(|leaf| under_way.serving(*leaf) >= need).collect::<Leaves>();
        let served = served.without(&whole);
        let leaves = under_way.leaves.without(&whole).without(&served);
        let partly = under_way.partly.or(&served).without(&whole);
        let changed = (leaves, partly) != (under_way.leaves, under_way.partly);
        let begins = false;
        changed.then_some(Note { reason: under_way.reason, leaves, partly, begins, loss: self.count })
    }

    /// The disk has taken the note of an exchange. One that was overtaken by a loss changes nothing.
    pub fn noted(&mut self, note: &Note) {
        let Some(under_way) = self.under_way.as_mut().filter(|_| note.loss == self.count) else { return };
        (under_way.leaves, under_way.partly) = (note.leaves, note.partly);
        if note.is_over() {
            self.under_way = None;
        }
    }
}

impl UnderWay {
    /// With how many owners a leaf was exchanged.
    fn complete(&self, leaf: u8) -> usize {
        self.exchanged.values().filter(|(complete, _)| complete.contains(leaf)).count()
    }

    /// How many of them could speak for it.
    fn serving(&self, leaf: u8) -> usize {
        self.exchanged.values().filter(|(_, serving)| serving.contains(leaf)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(i: u32) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn leaves(some: &[u8]) -> Leaves {
        some.iter().copied().collect()
    }

    /// An exchange that the disk takes note of; whether all is served again.
    fn exchange(losses: &mut Losses, with: u32, recovering: &[u8], need: usize, others: usize) -> bool {
        let lost = losses.lost().expect("something is lost");
        if let Some(note) = losses.exchanged(lost, node(with), &leaves(recovering), need, others) {
            losses.noted(&note);
        }
        losses.recovering().is_empty()
    }

    #[test]
    fn enough_owners_that_can_speak_make_it_partly_whole_and_all_make_it_whole() {
        let mut losses = Losses::default();
        assert!(!losses.ever() && losses.look(&Leaves::ALL, Reading::BelowFloor).is_ok());
        losses.lose(&leaves(&[3, 4]), Reason::OtherDisk);
        assert!(!exchange(&mut losses, 1, &[], 2, 3));
        assert!(!exchange(&mut losses, 1, &[], 2, 3), "no owner counts twice");
        assert!(!exchange(&mut losses, 2, &[4], 2, 3), "it cannot speak for leaf 4");
        assert_eq!(losses.recovering(), leaves(&[4]));
        assert!(losses.look(&leaves(&[3]), Reading::AboveFloor).is_ok());
        let partly = losses.look(&leaves(&[3]), Reading::BelowFloor).expect_err("not yet");
        assert_eq!(partly, Unserved::Partly(Reason::OtherDisk));
        let lost = losses.look(&leaves(&[3, 4]), Reading::AboveFloor).expect_err("lost");
        assert_eq!(lost, Unserved::Lost(Reason::OtherDisk));
        assert!(exchange(&mut losses, 3, &[4], 2, 3), "all others, in any state");
        assert!(!losses.is_under_way() && losses.ever());
        assert!(losses.look(&Leaves::ALL, Reading::BelowFloor).is_ok());
    }

    #[test]
    fn a_loss_takes_back_what_owners_have_told_and_what_was_partly_recovered() {
        let mut losses = Losses::default();
        losses.lose(&leaves(&[3, 4]), Reason::Unclean);
        assert!(exchange(&mut losses, 1, &[], 1, 2));
        let (early, look) = (losses.lost().expect("partly"), losses.look(&leaves(&[3]), Reading::AboveFloor));
        let look = look.expect("served");
        assert!(losses.confirm(look) && losses.to_ask(node(1)).is_none());
        let note = losses.lose(&leaves(&[3]), Reason::Corrupt);
        assert_eq!((note.reason, note.leaves, note.partly), (Reason::Unclean, leaves(&[3]), leaves(&[4])));
        assert!(!losses.confirm(look) && losses.is_lost(&leaves(&[3])) && !losses.is_lost(&leaves(&[3, 4])));
        assert_eq!(losses.exchanged(early, node(2), &Leaves::NONE, 1, 2), None, "it began before the loss");
        assert_eq!(losses.to_ask(node(1)).map(|lost| lost.leaves), Some(leaves(&[3, 4])));
        assert!(exchange(&mut losses, 1, &[], 1, 2) && exchange(&mut losses, 2, &[], 1, 2));
        assert!(!losses.is_under_way());
    }

    #[test]
    fn an_exchange_holds_when_the_disk_has_taken_note_of_it_and_no_loss_has_overtaken_it() {
        let mut losses = Losses::restored(Reason::Corrupt, leaves(&[3]), leaves(&[4]));
        assert!(losses.ever() && losses.is_lost(&leaves(&[3])));
        let lost = losses.lost().expect("lost");
        let note = losses.exchanged(lost, node(1), &Leaves::NONE, 1, 1).expect("all is whole");
        assert!(note.is_over() && losses.is_lost(&leaves(&[3])), "the disk has not taken it yet");
        let again = losses.exchanged(lost, node(1), &Leaves::NONE, 1, 1).expect("it is to be done again");
        losses.lose(&leaves(&[5]), Reason::Corrupt);
        losses.noted(&again);
        assert_eq!(losses.recovering(), leaves(&[3, 5]));
        assert_eq!(losses.reason(4), Some(Reason::Corrupt));
        assert_eq!(losses.reason(6), None);
    }

    #[test]
    fn a_read_must_find_what_its_counterpart_may_have_written() {
        for n in 1..=7u8 {
            for w in n / 2 + 1..=n {
                for r in 1..=n {
                    // The smallest W with R + W > N is below the floor.
                    let below = n - r + 1 < w;
                    assert_eq!(Reading::of(n, w, r) == Reading::BelowFloor, below, "n={n} w={w} r={r}");
                }
            }
        }
        assert_eq!(Reading::of(255, 255, 255), Reading::BelowFloor);
    }
}

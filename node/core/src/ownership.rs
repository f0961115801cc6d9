//! Who may serve what: the gate for every question between nodes that is about data.
//!
//! A question names the layout versions that it is made under. A node answers for a partition in the role that the live versions give it
//! there: see [`live`](crate::live). It refuses what was made under older versions only: whoever asks then learns the newer one and asks
//! anew. A refusal never counts as an acknowledgement, or as absence.

use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{NotApplied, Quorum};
use serde::{Deserialize, Serialize};

use crate::live::Live;
use crate::quorum::{Group, required};
use crate::ring::N_MAX;

/// The live layout versions that a question about data names, both ends included (rule L1 of the layout change). As long as
/// version 1 is the only one, both ends are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The oldest version whose owners are asked.
    pub low: LayoutVersion,
    /// The newest one; a replica that knows a newer one refuses.
    pub high: LayoutVersion,
}

impl Label {
    /// While one version is live.
    pub fn of(version: LayoutVersion) -> Self {
        Self { low: version, high: version }
    }
}

/// Who serves a partition: what a request for one of its keys is made under, and who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The versions that a write names.
    pub label: Label,
    /// The owners under each version that a write names, the newest first; there is one as long as no change is under way.
    pub(crate) owners: Vec<Owners>,
    /// The owners under the version that reads are made at.
    pub(crate) reads: Owners,
    /// All owners under any live version, those of the newest first.
    pub(crate) primaries: Vec<NodeId>,
    /// Members that own the partition in no live version and stand in for those that do: other zones first, then in the order of the
    /// ring's walk.
    pub(crate) fallbacks: Vec<NodeId>,
}

/// The owners of a partition under one layout version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owners {
    pub(crate) version: LayoutVersion,
    pub(crate) primaries: Vec<NodeId>,
}

/// How many fallbacks of a partition are ever asked: as many as there can be primaries, so that each of them can have one.
pub(crate) const FALLBACKS_MAX: usize = N_MAX as usize;

impl View {
    /// All owners of the partition, under whichever live version.
    pub fn primaries(&self) -> &[NodeId] {
        &self.primaries
    }

    /// Whether a node owns the partition under a live version.
    pub fn is_primary(&self, node: NodeId) -> bool {
        self.primaries.contains(&node)
    }

    /// Who stands in for the primaries, best first; at most nine.
    pub fn fallbacks(&self) -> &[NodeId] {
        &self.fallbacks
    }

    /// How many replicas a record has under the newest version.
    pub fn n(&self) -> u8 {
        count(&self.owners[0].primaries)
    }

    /// The version that reads are made at.
    pub fn read_version(&self) -> LayoutVersion {
        self.reads.version
    }

    /// Whose answers count for a read.
    pub fn readers(&self) -> &[NodeId] {
        &self.reads.primaries
    }

    /// The owners of each version that a write names, and how many of them make this quorum: it needs all of these quorums (L1).
    ///
    /// # Errors
    /// [`NotApplied::QuorumImpossible`] when it needs nobody, or more than there are.
    pub fn write_groups(&self, w: Quorum) -> Result<Vec<Group>, NotApplied> {
        self.owners.iter().map(|owners| owners.group("W", w)).collect()
    }

    /// The owners whose answers count for a read, and how many of them make this quorum (L6).
    ///
    /// # Errors
    /// As [`write_groups`](Self::write_groups).
    pub fn read_groups(&self, r: Quorum) -> Result<Vec<Group>, NotApplied> {
        Ok(vec![self.reads.group("R", r)?])
    }
}

impl Owners {
    fn group(&self, what: &str, quorum: Quorum) -> Result<Group, NotApplied> {
        let need = required(what, quorum, count(&self.primaries))?;
        Ok(Group { version: self.version, primaries: self.primaries.clone(), need })
    }
}

fn count(primaries: &[NodeId]) -> u8 {
    u8::try_from(primaries.len()).expect("a layout has at most 255 replicas of a record")
}

/// What a node is asked to be to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One of its primaries: to merge a write that names these versions.
    Writes(Label),
    /// One of its primaries: to answer a read at this version.
    Reads(LayoutVersion),
    /// One of its primaries under any live version: to compare and exchange what it holds with a node that holds some of the partition.
    Owner,
    /// One of its fallbacks: to keep a write for this primary.
    FallbackFor(NodeId),
}

impl Live {
    /// Refuses what `me` is not to `partition`.
    ///
    /// # Errors
    /// Which node lacks which role in which layout, or that the question is too old.
    pub fn may_serve(&self, me: NodeId, partition: Partition, role: Role) -> Result<(), NotApplied> {
        let newest = self.newest();
        let version = newest.version();
        if partition.0 >= newest.ring().partitions() {
            let why = format!("there is no partition {partition} in layout {version}");
            return Err(NotApplied::Unsupported { why });
        }
        let moving = self.partition(partition);
        match role {
            Role::Writes(label) => moving.takes(me, label),
            Role::Reads(at) => moving.speaks(me, at),
            Role::Owner => match moving.keeps_copy(me) {
                true => Ok(()),
                false => {
                    let why = format!("{me} is no primary of partition {partition} in layout {version}");
                    Err(NotApplied::NotServing { node: me, why })
                }
            },
            Role::FallbackFor(target) => {
                let owners = moving.owners();
                if !owners.contains(&target) || owners.contains(&me) || newest.layout.member(me).is_none() {
                    let why = format!("{me} is no fallback for {target} in partition {partition}");
                    return Err(NotApplied::Unsupported { why });
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use quorate_wire::ids::{ClusterId, DiskId};

    use super::*;
    use crate::live::Placed;
    use crate::staging::{Staged, StagedMember};

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn five() -> Live {
        let mut staged = Staged::default();
        for i in 1..=5 {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i));
            staged.join(id(i), StagedMember { disk: DiskId(i.into()), addr, zone: "z".into(), weight: 1 });
        }
        staged.settings(Some(3), Some(8), None, None);
        let placed = Placed::new(staged.layout(ClusterId(7))).expect("possible");
        Live::new(vec![Arc::new(placed)], BTreeMap::new())
    }

    #[test]
    fn a_view_names_the_owners_those_who_stand_in_and_the_quorum() {
        let live = five();
        let view = live.partition(Partition(3)).view();
        let preference = live.newest().ring().preference_list(Partition(3));
        assert_eq!((view.primaries(), view.fallbacks()), (&preference[..3], &preference[3..]));
        assert_eq!((view.n(), view.label, view.read_version()), (3, Label::of(LayoutVersion(1)), LayoutVersion(1)));
        assert!(view.is_primary(preference[2]) && !view.is_primary(preference[3]));
        let groups = [Group { version: LayoutVersion(1), primaries: preference[..3].to_vec(), need: 2 }];
        assert_eq!(view.write_groups(Quorum::Majority).expect("possible"), groups);
        assert_eq!(view.read_groups(Quorum::Majority).expect("possible"), groups);
    }

    #[test]
    fn an_impossible_quorum_is_refused_with_both_numbers() {
        let view = five().partition(Partition(0)).view();
        for asked in [0, 4, 255] {
            let refused = |what: &str| NotApplied::QuorumImpossible { what: what.into(), asked, n: 3 };
            assert_eq!(view.write_groups(Quorum::Exactly(asked)), Err(refused("W")));
            assert_eq!(view.read_groups(Quorum::Exactly(asked)), Err(refused("R")));
        }
    }

    #[test]
    fn what_was_made_under_older_layouts_alone_is_too_old() {
        let live = five();
        let owner = live.owners(Partition(0))[0];
        let label = |low, high| Label { low: LayoutVersion(low), high: LayoutVersion(high) };
        let writes = |label| live.may_serve(owner, Partition(0), Role::Writes(label));
        assert_eq!(writes(Label::of(LayoutVersion(1))), Ok(()));
        assert_eq!(writes(label(0, 1)), Ok(()));
        assert_eq!(writes(label(1, 2)), Ok(()), "it counts for layout 1");
        let stale = NotApplied::StaleLayout { need: LayoutVersion(1), had: LayoutVersion(0) };
        assert_eq!(writes(label(0, 0)), Err(stale.clone()));
        assert_eq!(live.may_serve(owner, Partition(0), Role::Reads(LayoutVersion(0))), Err(stale));
    }

    #[test]
    fn each_node_has_exactly_the_roles_that_the_ring_gives_it() {
        let live = five();
        for partition in (0..8).map(Partition) {
            let primaries = live.owners(partition);
            for me in (1..=5).map(id) {
                let owner = primaries.contains(&me);
                let may = |role| live.may_serve(me, partition, role).is_ok();
                assert_eq!(may(Role::Writes(Label::of(LayoutVersion(1)))), owner);
                assert_eq!(may(Role::Reads(LayoutVersion(1))), owner);
                assert_eq!(may(Role::Owner), owner);
                for other in (1..=5).map(id) {
                    assert_eq!(may(Role::FallbackFor(other)), !owner && primaries.contains(&other));
                }
            }
        }
    }

    #[test]
    fn strangers_keep_nothing_and_no_partition_lies_beyond_the_last() {
        let live = five();
        let target = live.owners(Partition(0))[0];
        let stranger = live.may_serve(id(9), Partition(0), Role::FallbackFor(target));
        assert!(matches!(stranger, Err(NotApplied::Unsupported { why }) if why.contains("n9 is no fallback")));
        let beyond = live.may_serve(target, Partition(8), Role::Owner);
        assert!(matches!(beyond, Err(NotApplied::Unsupported { why }) if why.contains("no partition 8")));
        let other = live.may_serve(id(9), Partition(0), Role::Owner);
        assert!(
            matches!(other, Err(NotApplied::NotServing { node, why }) if node == id(9) && why.starts_with("n9 is"))
        );
    }
}

//! Who may serve what: the gate for every question between nodes that is about data.
//!
//! A question names the layout versions that it is made under. A node answers for a partition in the role that its own layout gives it
//! there, and refuses what was made under older versions only: whoever asks then learns the newer one and asks anew. A newer version
//! than the node's own is none of its business yet. A refusal never counts as an acknowledgement, or as absence.

use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{NotApplied, Quorum};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::quorum::{Group, required};
use crate::ring::{N_MAX, Ring};

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
    /// The live versions.
    pub label: Label,
    /// The owners under each live version, the newest first; there is one as long as no change is under way.
    owners: Vec<Owners>,
    /// All owners, those of the newest version first.
    primaries: Vec<NodeId>,
    /// Members that own the partition in no live version and stand in for those that do: other zones first, then in the order of the
    /// ring's walk.
    fallbacks: Vec<NodeId>,
}

/// The owners of a partition under one layout version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owners {
    version: LayoutVersion,
    primaries: Vec<NodeId>,
}

/// How many fallbacks of a partition are ever asked: as many as there can be primaries, so that each of them can have one.
const FALLBACKS_MAX: usize = N_MAX as usize;

impl View {
    /// While this layout is the only live one; `ring` is its ring.
    pub fn of(layout: &Layout, ring: &Ring, partition: Partition) -> Self {
        let primaries = ring.primaries(partition).to_vec();
        let mut fallbacks = ring.preference_list(partition).split_off(primaries.len());
        fallbacks.truncate(FALLBACKS_MAX);
        let owners = vec![Owners { version: layout.version, primaries: primaries.clone() }];
        Self { label: Label::of(layout.version), owners, primaries, fallbacks }
    }

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

    /// The owners of each live version, and how many of them make this quorum. `what` is `R` or `W`.
    ///
    /// # Errors
    /// [`NotApplied::QuorumImpossible`] when it needs nobody, or more than there are.
    pub fn groups(&self, what: &str, quorum: Quorum) -> Result<Vec<Group>, NotApplied> {
        let group = |owners: &Owners| {
            let need = required(what, quorum, count(&owners.primaries))?;
            Ok(Group { version: owners.version, primaries: owners.primaries.clone(), need })
        };
        self.owners.iter().map(group).collect()
    }
}

fn count(primaries: &[NodeId]) -> u8 {
    u8::try_from(primaries.len()).expect("a layout has at most 255 replicas of a record")
}

/// What a node is asked to be to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One of its primaries: to merge, give or list records.
    Primary,
    /// One of its primaries, asked by another one: to compare and exchange what both hold.
    PrimaryBeside(NodeId),
    /// One of its fallbacks: to keep a write for this primary.
    FallbackFor(NodeId),
}

/// Refuses a question that was made under older layouts only.
///
/// # Errors
/// With both versions.
pub fn up_to_date(layout: &Layout, label: Label) -> Result<(), NotApplied> {
    match layout.version {
        version if label.high < version => Err(NotApplied::StaleLayout { need: version, had: label.high }),
        _ => Ok(()),
    }
}

/// Refuses what `me` is not to `partition` in a layout, of which `ring` is the ring.
///
/// # Errors
/// Which node lacks which role in which layout.
pub fn may_serve(layout: &Layout, ring: &Ring, me: NodeId, partition: Partition, role: Role) -> Result<(), NotApplied> {
    if partition.0 >= ring.partitions() {
        let why = format!("there is no partition {partition} in layout {}", layout.version);
        return Err(NotApplied::Unsupported { why });
    }
    let primaries = ring.primaries(partition);
    let stranger = match role {
        Role::Primary => (!primaries.contains(&me)).then_some(me),
        Role::PrimaryBeside(other) => [me, other].into_iter().find(|node| !primaries.contains(node)),
        Role::FallbackFor(target) => {
            if !primaries.contains(&target) || primaries.contains(&me) || layout.member(me).is_none() {
                let why = format!("{me} is no fallback for {target} in partition {partition}");
                return Err(NotApplied::Unsupported { why });
            }
            None
        }
    };
    let Some(stranger) = stranger else { return Ok(()) };
    let why = format!("{stranger} is no primary of partition {partition} in layout {}", layout.version);
    Err(NotApplied::NotServing { node: me, why })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use quorate_wire::ids::{ClusterId, DiskId};

    use super::*;
    use crate::staging::{Staged, StagedMember};

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn five() -> (Layout, Ring) {
        let mut staged = Staged::default();
        for i in 1..=5 {
            let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i));
            staged.join(id(i), StagedMember { disk: DiskId(i.into()), addr, zone: "z".into(), weight: 1 });
        }
        staged.settings(Some(3), Some(8), None, None);
        let layout = staged.layout(ClusterId(7));
        let ring = layout.ring().expect("possible");
        (layout, ring)
    }

    #[test]
    fn a_view_names_the_owners_those_who_stand_in_and_the_quorum() {
        let (layout, ring) = five();
        let view = View::of(&layout, &ring, Partition(3));
        let preference = ring.preference_list(Partition(3));
        assert_eq!((view.primaries(), view.fallbacks()), (&preference[..3], &preference[3..]));
        assert_eq!((view.n(), view.label), (3, Label::of(LayoutVersion(1))));
        assert!(view.is_primary(preference[2]) && !view.is_primary(preference[3]));
        let groups = view.groups("W", Quorum::Majority).expect("possible");
        assert_eq!(groups, [Group { version: LayoutVersion(1), primaries: preference[..3].to_vec(), need: 2 }]);
    }

    #[test]
    fn an_impossible_quorum_is_refused_with_both_numbers() {
        let (layout, ring) = five();
        for asked in [0, 4, 255] {
            let refusal =
                View::of(&layout, &ring, Partition(0)).groups("W", Quorum::Exactly(asked)).expect_err("refused");
            assert_eq!(refusal, NotApplied::QuorumImpossible { what: "W".into(), asked, n: 3 });
        }
    }

    #[test]
    fn only_what_was_made_under_older_layouts_alone_is_too_old() {
        let (layout, _) = five();
        let label = |low, high| Label { low: LayoutVersion(low), high: LayoutVersion(high) };
        assert_eq!(up_to_date(&layout, Label::of(LayoutVersion(1))), Ok(()));
        assert_eq!(up_to_date(&layout, label(0, 1)), Ok(()));
        assert_eq!(up_to_date(&layout, label(1, 2)), Ok(()), "a newer one is none of its business yet");
        let stale = NotApplied::StaleLayout { need: LayoutVersion(1), had: LayoutVersion(0) };
        assert_eq!(up_to_date(&layout, label(0, 0)), Err(stale));
    }

    #[test]
    fn each_node_has_exactly_the_roles_that_the_ring_gives_it() {
        let (layout, ring) = five();
        for partition in (0..8).map(Partition) {
            let primaries = ring.primaries(partition);
            for me in (1..=5).map(id) {
                let owner = primaries.contains(&me);
                let may = |role| may_serve(&layout, &ring, me, partition, role).is_ok();
                assert_eq!(may(Role::Primary), owner);
                for other in (1..=5).map(id) {
                    let both = owner && primaries.contains(&other);
                    assert_eq!(may(Role::PrimaryBeside(other)), both);
                    assert_eq!(may(Role::FallbackFor(other)), !owner && primaries.contains(&other));
                }
            }
        }
    }

    #[test]
    fn strangers_keep_nothing_and_no_partition_lies_beyond_the_last() {
        let (layout, ring) = five();
        let target = ring.primaries(Partition(0))[0];
        let stranger = may_serve(&layout, &ring, id(9), Partition(0), Role::FallbackFor(target));
        assert!(matches!(stranger, Err(NotApplied::Unsupported { why }) if why.contains("n9 is no fallback")));
        let beyond = may_serve(&layout, &ring, target, Partition(8), Role::Primary);
        assert!(matches!(beyond, Err(NotApplied::Unsupported { why }) if why.contains("no partition 8")));
        let other = may_serve(&layout, &ring, target, Partition(0), Role::PrimaryBeside(id(9)));
        assert!(
            matches!(other, Err(NotApplied::NotServing { node, why }) if node == target && why.starts_with("n9 is"))
        );
    }
}

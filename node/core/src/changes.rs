//! What an operator wants to change of a layout that is in force, the layout that this makes, and what would move.
//!
//! Changes are applied in their order, so that each sees what those before it have made; the layout itself is only made when all of
//! them are possible. What moves follows from the two rings and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use quorate_wire::Quorum;
use quorate_wire::ids::{DiskId, LayoutVersion, NodeId};
use serde::{Deserialize, Serialize};

use super::chain::problems_after;
use super::layout::{Layout, Member};
use super::ring::Ring;

/// One change of the member set or of its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A node becomes a member.
    Join {
        /// Its name, which no member has.
        node: NodeId,
        /// Its disk, as it says itself.
        disk: DiskId,
        /// Where it listens.
        addr: SocketAddr,
        /// Its failure domain.
        zone: String,
        /// Its share of the data.
        weight: u32,
    },
    /// A member gives all that it owns to the others.
    Leave(NodeId),
    /// A node takes the place of a member, dead or alive: the same tokens, zone and weight, so that nothing else moves.
    Replace {
        /// Who goes.
        old: NodeId,
        /// Who comes; no member has this name.
        new: NodeId,
        /// Its disk.
        disk: DiskId,
        /// Where it listens.
        addr: SocketAddr,
    },
    /// A member owns more, or less, of the data.
    Weight(NodeId, u32),
    /// A member moves to another failure domain.
    Zone(NodeId, String),
    /// Replicas of each record, and the floors. A floor that is not named is a majority of a new N, and else stays.
    Replicas {
        /// N.
        n: Option<u8>,
        /// The floor for reads.
        r: Option<u8>,
        /// The floor for writes.
        w: Option<u8>,
    },
}

/// The layout that follows on `parent` when all of these are made.
///
/// # Errors
/// The first change that is not possible, or everything that stands against the layout that they make.
pub fn layout_after(parent: &Layout, changes: &[Change]) -> Result<Layout, String> {
    let layout = draft(parent, changes)?;
    match problems_of(parent, &layout) {
        problems if problems.is_empty() => Ok(layout),
        problems => Err(problems.join("; ")),
    }
}

/// What these changes make of `parent` so far; it need not be possible yet, as when N has grown and the members are still to be staged.
///
/// # Errors
/// The first change that is not possible.
pub fn draft(parent: &Layout, changes: &[Change]) -> Result<Layout, String> {
    let mut layout = Layout { version: LayoutVersion(parent.version.0 + 1), previous: parent.hash(), ..parent.clone() };
    for change in changes {
        make(&mut layout, change)?;
    }
    layout.members.sort_by_key(|member| member.node);
    Ok(layout)
}

/// Everything that stands against applying a draft on `parent`.
pub fn problems_of(parent: &Layout, draft: &Layout) -> Vec<String> {
    let same = Layout { version: parent.version, previous: parent.previous, ..draft.clone() } == *parent;
    if same {
        return vec!["it would be the layout that is in force".into()];
    }
    problems_after(parent, draft)
}

/// Adds a change to those that are staged. A join of a node that was staged to join takes the place of the earlier one; that a node leaves or
/// is replaced is staged once, however often it is said.
pub fn stage(staged: &mut Vec<Change>, change: Change) {
    let joins = |other: &Change, name: NodeId| matches!(other, Change::Join { node, .. } if *node == name);
    if let Change::Join { node, .. } = &change
        && let Some(before) = staged.iter_mut().find(|before| joins(before, *node))
    {
        *before = change;
        return;
    }
    let goes = |other: &Change| match other {
        Change::Leave(node) | Change::Join { node, .. } | Change::Replace { old: node, .. } => Some(*node),
        Change::Weight(..) | Change::Zone(..) | Change::Replicas { .. } => None,
    };
    if goes(&change).is_some() && staged.iter().rev().find(|other| goes(other) == goes(&change)) == Some(&change) {
        return;
    }
    staged.push(change);
}

/// How a layout differs from the one before, for people.
pub fn difference(before: &Layout, after: &Layout) -> String {
    let mut parts = Vec::new();
    let gone = |member: &&Member| after.member(member.node).is_none();
    let heir = |old: &Member| after.members.iter().find(|new| new.token_seed == old.token_seed);
    for old in before.members.iter().filter(gone) {
        parts.push(match heir(old) {
            Some(new) => format!("{} takes the place of {}", new.node, old.node),
            None => format!("{} leaves", old.node),
        });
    }
    for new in &after.members {
        let Some(old) = before.member(new.node) else {
            if !before.members.iter().any(|old| old.token_seed == new.token_seed) {
                parts.push(format!("{} joins", new.node));
            }
            continue;
        };
        if old.weight != new.weight {
            parts.push(format!("the weight of {} is {}", new.node, new.weight));
        }
        if old.zone != new.zone {
            parts.push(format!("the zone of {} is {}", new.node, new.zone));
        }
    }
    if (before.n, before.r, before.w) != (after.n, after.r, after.w) {
        parts.push(format!("N={}, floors R={} W={}", after.n, after.r, after.w));
    }
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}

fn make(layout: &mut Layout, change: &Change) -> Result<(), String> {
    let place = |layout: &Layout, node: NodeId| {
        let place = layout.members.iter().position(|member| member.node == node);
        place.ok_or_else(|| format!("{node} is no member of the layout"))
    };
    let vacant = |layout: &Layout, node: NodeId| match layout.member(node) {
        Some(member) => Err(format!("{node} is a member already, at {}", member.addr)),
        None => Ok(()),
    };
    match change {
        Change::Join { node, disk, addr, zone, weight } => {
            vacant(layout, *node)?;
            let (node, disk, addr, zone, weight) = (*node, *disk, *addr, zone.clone(), *weight);
            // Its own tokens may be another one's, who has once taken its place.
            if let Some(heir) = layout.members.iter().find(|member| member.token_seed == node) {
                return Err(format!(
                    "{} has replaced a node of the name {node} and has its tokens: give the new node another name",
                    heir.node
                ));
            }
            layout.members.push(Member { node, disk, token_seed: node, addr, zone, weight });
        }
        Change::Leave(node) => {
            let place = place(layout, *node)?;
            layout.members.remove(place);
        }
        Change::Replace { old, new, disk, addr } => {
            vacant(layout, *new)?;
            let member = place(layout, *old)?;
            let member = &mut layout.members[member];
            (member.node, member.disk, member.addr) = (*new, *disk, *addr);
        }
        Change::Weight(node, weight) => {
            let member = place(layout, *node)?;
            layout.members[member].weight = *weight;
        }
        Change::Zone(node, zone) => {
            let member = place(layout, *node)?;
            layout.members[member].zone.clone_from(zone);
        }
        Change::Replicas { n, r, w } => {
            if let Some(n) = n {
                let majority = Quorum::Majority.count(*n);
                (layout.n, layout.r, layout.w) = (*n, majority, majority);
            }
            layout.r = r.unwrap_or(layout.r);
            layout.w = w.unwrap_or(layout.w);
        }
    }
    Ok(())
}

/// What a change of the layout moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Movement {
    /// For each member of either layout: how many partitions it owns before and after.
    pub loads: BTreeMap<NodeId, (u32, u32)>,
    /// How many partitions a node gets in place of another one; in place of nobody, where N has grown.
    pub gets: BTreeMap<(Option<NodeId>, NodeId), u32>,
    /// How many partitions keep none of their owners.
    pub all_owners_change: u32,
}

impl Movement {
    /// From one ring to another one, of as many partitions.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn between(before: &Ring, after: &Ring) -> Self {
        assert_eq!(before.partitions(), after.partitions(), "the number of partitions never changes");
        let mut movement = Self::default();
        for (node, load) in before.members().iter().zip(before.loads()) {
            movement.loads.entry(*node).or_default().0 = load;
        }
        for (node, load) in after.members().iter().zip(after.loads()) {
            movement.loads.entry(*node).or_default().1 = load;
        }
        for partition in (0..before.partitions()).map(quorate_wire::ids::Partition) {
            let (old, new) = (before.primaries(partition), after.primaries(partition));
            let mut goes = old.iter().filter(|node| !new.contains(node));
            for node in new.iter().filter(|node| !old.contains(node)) {
                *movement.gets.entry((goes.next().copied(), *node)).or_default() += 1;
            }
            movement.all_owners_change += u32::from(old.iter().all(|node| !new.contains(node)));
        }
        movement
    }

    /// How many replicas of partitions are to be copied.
    pub fn replicas(&self) -> u32 {
        self.gets.values().sum()
    }

    /// The least that any change to the same loads would copy.
    pub fn least(&self) -> u32 {
        self.loads.values().map(|(before, after)| after.saturating_sub(*before)).sum()
    }
}

#[cfg(test)]
mod tests {
    use quorate_wire::ids::ClusterId;

    use super::*;
    use crate::staging::{Staged, StagedMember};

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn addr(i: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000 + i))
    }

    fn first(members: u16) -> Layout {
        let mut staged = Staged::default();
        for i in 1..=members {
            let zone = format!("z{i}");
            staged.join(id(i), StagedMember { disk: DiskId(i.into()), addr: addr(i), zone, weight: 1 });
        }
        staged.settings(Some(3), Some(256), None, None);
        staged.layout(ClusterId(7))
    }

    fn join(i: u16) -> Change {
        Change::Join { node: id(i), disk: DiskId(i.into()), addr: addr(i), zone: format!("z{i}"), weight: 1 }
    }

    fn replace(old: u16, new: u16) -> Change {
        Change::Replace { old: id(old), new: id(new), disk: DiskId(new.into()), addr: addr(new) }
    }

    fn movement(before: &Layout, after: &Layout) -> Movement {
        Movement::between(&before.ring().expect("possible"), &after.ring().expect("possible"))
    }

    #[test]
    fn a_node_that_joins_gets_its_share_and_little_else_moves() {
        let before = first(4);
        let after = layout_after(&before, &[join(5)]).expect("possible");
        assert_eq!((after.version, after.previous), (LayoutVersion(2), before.hash()));
        let moved = movement(&before, &after);
        let got: u32 = moved.gets.iter().filter(|((_, to), _)| *to == id(5)).map(|(_, count)| count).sum();
        assert_eq!((0, got), moved.loads[&id(5)]);
        assert_eq!(moved.least(), got, "nobody else owns more than before");
        assert!(moved.replicas() <= got + got / 5, "a few more move among the others: {moved:?}");
        assert_eq!(moved.all_owners_change, 0);
    }

    #[test]
    fn a_node_that_leaves_gives_all_and_one_that_is_replaced_all_to_one() {
        let before = first(5);
        let moved = movement(&before, &layout_after(&before, &[Change::Leave(id(2))]).expect("possible"));
        let given: u32 = moved.gets.iter().filter(|((from, _), _)| *from == Some(id(2))).map(|(_, count)| count).sum();
        assert_eq!((given, moved.loads[&id(2)].1), (moved.loads[&id(2)].0, 0));

        let after = layout_after(&before, &[replace(2, 6)]).expect("possible");
        let member = after.member(id(6)).expect("a member");
        assert_eq!((member.token_seed, member.zone.as_str(), after.member(id(2))), (id(2), "z2", None));
        let moved = movement(&before, &after);
        assert_eq!(moved.gets.keys().collect::<Vec<_>>(), [&(Some(id(2)), id(6))], "nothing else moves");
        assert_eq!(moved.replicas(), moved.loads[&id(2)].0);
    }

    #[test]
    fn more_replicas_come_from_nobody_in_particular() {
        let before = first(5);
        let more = Change::Replicas { n: Some(4), r: None, w: None };
        let after = layout_after(&before, &[more]).expect("possible");
        assert_eq!((after.n, after.r, after.w), (4, 3, 3), "the floors are a majority of the new N");
        let new: u32 =
            movement(&before, &after).gets.iter().filter(|((from, _), _)| from.is_none()).map(|(_, n)| n).sum();
        assert_eq!(new, 256, "one more replica of each partition");
        let floors = Change::Replicas { n: None, r: Some(1), w: Some(3) };
        let after = layout_after(&before, &[floors]).expect("possible");
        assert_eq!((after.n, after.r, after.w), (3, 1, 3));
        assert_eq!(movement(&before, &after).replicas(), 0);
    }

    #[test]
    fn all_owners_of_a_partition_may_change_at_once() {
        let before = first(3);
        let after = layout_after(&before, &[replace(1, 4), replace(2, 5), replace(3, 6)]).expect("possible");
        assert_eq!(movement(&before, &after).all_owners_change, 256);
    }

    #[test]
    fn changes_see_what_those_before_them_have_made() {
        let before = first(4);
        let twice = [replace(1, 5), Change::Weight(id(5), 3), Change::Zone(id(5), "other".into())];
        let after = layout_after(&before, &twice).expect("possible");
        let member = after.member(id(5)).expect("a member");
        assert_eq!((member.weight, member.zone.as_str(), member.token_seed), (3, "other", id(1)));
        let names: Vec<NodeId> = after.members.iter().map(|member| member.node).collect();
        assert_eq!(names, [2, 3, 4, 5].map(id), "sorted by name");
    }

    #[test]
    fn a_difference_is_told_in_words() {
        let before = first(4);
        let told = |changes: &[Change]| difference(&before, &layout_after(&before, changes).expect("possible"));
        assert_eq!(told(&[join(5), Change::Leave(id(2))]), "n2 leaves, n5 joins");
        assert_eq!(told(&[replace(1, 6)]), "n6 takes the place of n1");
        let all = [
            Change::Weight(id(3), 2),
            Change::Zone(id(4), "z9".into()),
            Change::Replicas { n: Some(4), r: None, w: Some(4) },
        ];
        assert_eq!(told(&all), "the weight of n3 is 2, the zone of n4 is z9, N=4, floors R=3 W=4");
        assert_eq!(difference(&before, &before), "nothing");
    }

    #[test]
    fn a_draft_may_have_problems_and_a_second_join_replaces_the_first() {
        let before = first(3);
        let mut staged = vec![];
        stage(&mut staged, Change::Replicas { n: Some(5), r: None, w: None });
        stage(&mut staged, join(4));
        let draft_of = draft(&before, &staged).expect("each is possible");
        assert!(problems_of(&before, &draft_of)[0].contains("there are only 4 members"));
        assert!(layout_after(&before, &staged).is_err());
        stage(&mut staged, join(5));
        assert_eq!(layout_after(&before, &staged).expect("possible").members.len(), 5);
        let moved = Change::Join { node: id(4), disk: DiskId(4), addr: addr(40), zone: "z4".into(), weight: 2 };
        stage(&mut staged, moved);
        let after = layout_after(&before, &staged).expect("possible");
        let member = after.member(id(4)).expect("a member");
        assert_eq!((staged.len(), member.weight, member.addr), (3, 2, addr(40)));
        stage(&mut staged, Change::Leave(id(4)));
        stage(&mut staged, Change::Leave(id(4)));
        assert_eq!(staged.len(), 4, "it is staged to leave already");
        stage(&mut staged, Change::Leave(id(9)));
        assert_eq!(staged.len(), 5);
        assert!(draft(&before, &staged).expect_err("n9").contains("n9 is no member"));
    }

    #[test]
    fn what_is_not_possible_is_refused_by_name() {
        let before = first(4);
        let heir = layout_after(&before, &[replace(1, 5)]).expect("possible");
        for (parent, changes, why) in [
            (&before, vec![join(2)], "n2 is a member already, at 127.0.0.1:7002"),
            (&before, vec![Change::Leave(id(9))], "n9 is no member"),
            (&before, vec![replace(9, 5)], "n9 is no member"),
            (&before, vec![replace(1, 2)], "n2 is a member already"),
            (&before, vec![Change::Weight(id(9), 2)], "n9 is no member"),
            (&before, vec![Change::Weight(id(1), 0)], "n1 has weight 0"),
            (&before, vec![Change::Zone(id(9), "z".into())], "n9 is no member"),
            (&before, vec![Change::Leave(id(1)), Change::Leave(id(2))], "there are only 2 members"),
            (&before, vec![], "it would be the layout that is in force"),
            (&before, vec![Change::Weight(id(1), 1)], "it would be the layout that is in force"),
            (
                &before,
                vec![
                    Change::Leave(id(1)),
                    Change::Join { node: id(1), disk: DiskId(9), addr: addr(1), zone: "z1".into(), weight: 1 },
                ],
                "let the node leave first",
            ),
            (&heir, vec![join(1)], "n5 has replaced a node of the name n1"),
        ] {
            let refused = layout_after(parent, &changes).expect_err(why);
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }
}

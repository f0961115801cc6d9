//! What an operator has staged for the first layout, and the layout that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use quorate_wire::Quorum;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, LayoutHash, Member};

/// Members and settings that were staged and not applied yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    members: BTreeMap<NodeId, StagedMember>,
    n: Option<u8>,
    partitions: Option<u16>,
    r: Option<u8>,
    w: Option<u8>,
}

/// A member that is to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedMember {
    /// Its disk, as it said itself.
    pub disk: DiskId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its failure domain.
    pub zone: String,
    /// Its share of the data.
    pub weight: u32,
}

/// Replicas of each record, if nothing else is staged: the least number of which one may be down while a majority stands.
pub const DEFAULT_N: u8 = 3;
/// Partitions, if nothing else is staged: enough to balance some twenty members, few enough to walk over.
pub const DEFAULT_PARTITIONS: u16 = 1024;

impl Staged {
    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many members are staged.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Stages a member; one that was staged by that name before is replaced.
    pub fn join(&mut self, node: NodeId, member: StagedMember) {
        self.members.insert(node, member);
    }

    /// Stages settings; what is absent stays as it is.
    pub fn settings(&mut self, n: Option<u8>, partitions: Option<u16>, r: Option<u8>, w: Option<u8>) {
        self.n = n.or(self.n);
        self.partitions = partitions.or(self.partitions);
        self.r = r.or(self.r);
        self.w = w.or(self.w);
    }

    /// A floor that no request can meet, and that no further member makes possible: what it is, and of how many replicas.
    pub fn impossible_floor(&self) -> Option<(&'static str, u8, u8)> {
        let n = self.n.unwrap_or(DEFAULT_N);
        let floors = [("the floor of R", self.r), ("the floor of W", self.w)];
        floors.into_iter().find_map(|(what, floor)| Some((what, floor.filter(|floor| *floor > n)?, n)))
    }

    /// The first layout that this makes. The floors are a majority of N each unless they were staged.
    pub fn layout(&self, cluster: ClusterId) -> Layout {
        let n = self.n.unwrap_or(DEFAULT_N);
        let majority = Quorum::Majority.count(n);
        let member = |(node, member): (&NodeId, &StagedMember)| Member {
            node: *node,
            disk: member.disk,
            token_seed: *node,
            addr: member.addr,
            zone: member.zone.clone(),
            weight: member.weight,
        };
        Layout {
            cluster,
            version: LayoutVersion(1),
            previous: LayoutHash::default(),
            members: self.members.iter().map(member).collect(),
            n,
            partitions: self.partitions.unwrap_or(DEFAULT_PARTITIONS),
            r: self.r.unwrap_or(majority),
            w: self.w.unwrap_or(majority),
        }
    }
}

/// Things about a layout that are possible and deserve a second look.
pub fn warnings(layout: &Layout) -> Vec<String> {
    let mut warnings = Vec::new();
    let (n, count) = (usize::from(layout.n), layout.members.len());
    if n == 1 && count > 0 {
        warnings.push(
            "N is 1: there is one copy of each record, and a lost disk loses its share of the data; a node that is dead then cannot be \
             taken out of the layout"
                .into(),
        );
    }
    warnings.extend(needs_every_owner(layout));
    if n == 2 {
        warnings
            .push("N is 2: a majority is both replicas, so that any node that is down stops part of the writes".into());
    }
    let zones: BTreeSet<&str> = layout.members.iter().map(|member| member.zone.as_str()).collect();
    if zones.len() > 1 && zones.len() < n {
        warnings.push(format!(
            "there are {} zones and N is {n}: some zones hold several replicas of a record, and may hold a majority",
            zones.len()
        ));
    }
    let held = usize::from(layout.partitions) * n / count.max(1);
    if count > n && held < PARTITIONS_HELD_WARN {
        warnings.push(format!(
            "a member holds {held} partitions on average: with so few, one more or less is felt; more than {} partitions \
             would be better, and their number never changes later",
            layout.partitions
        ));
    }
    warnings
}

/// Why one node that is down holds up a change from this layout to the next, if it does: N - R + 1 owners of a partition have to refuse reads
/// of the older layout, and N - W + 1 have to give what they hold to the new ones, where R and W are the older layout's floors. With N = 1 that
/// goes without saying.
pub fn needs_every_owner(layout: &Layout) -> Option<String> {
    let floor = match layout {
        Layout { n: 0 | 1, .. } => return None,
        Layout { r: 1, .. } => "R",
        Layout { w: 1, .. } => "W",
        _ => return None,
    };
    Some(format!(
        "the floor of {floor} is 1 in layout {}: to move a partition to other nodes takes every one of its {} owners, so that one which is \
         down holds up a change of this layout, and all later ones, until it is back",
        layout.version, layout.n
    ))
}

/// Below this, one partition more or less is more than 2 % of a member's load.
const PARTITIONS_HELD_WARN: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_staged_has_its_default() {
        let mut staged = Staged::default();
        assert!(staged.is_empty());
        staged.join(id(1), member(1, "a"));
        assert!(!staged.is_empty());
        let layout = staged.layout(ClusterId(7));
        assert_eq!((layout.n, layout.partitions, layout.r, layout.w), (3, 1024, 2, 2));
        assert_eq!(layout.problems().len(), 1, "{:?}", layout.problems());
        staged.settings(Some(5), None, None, Some(4));
        staged.settings(None, Some(64), None, None);
        let layout = staged.layout(ClusterId(7));
        assert_eq!((layout.n, layout.partitions, layout.r, layout.w), (5, 64, 3, 4));
        assert_eq!(staged.impossible_floor(), None);
        staged.settings(Some(3), None, None, None);
        assert_eq!(staged.impossible_floor(), Some(("the floor of W", 4, 3)));
        staged.settings(None, None, Some(4), Some(3));
        assert_eq!(staged.impossible_floor(), Some(("the floor of R", 4, 3)));
    }

    #[test]
    fn a_later_join_of_a_node_replaces_the_earlier_one() {
        let mut staged = Staged::default();
        for (i, zone) in [(2, "a"), (1, "a"), (2, "b")] {
            staged.join(id(i), member(i, zone));
        }
        let layout = staged.layout(ClusterId(7));
        let members: Vec<(NodeId, &str)> = layout.members.iter().map(|m| (m.node, m.zone.as_str())).collect();
        assert_eq!(members, [(id(1), "a"), (id(2), "b")]);
    }

    #[test]
    fn the_order_of_staging_does_not_change_the_hash() {
        let (mut one, mut other) = (Staged::default(), Staged::default());
        for i in 0..4 {
            one.join(id(i), member(i, "a"));
            other.join(id(3 - i), member(3 - i, "a"));
        }
        assert_eq!(one.layout(ClusterId(7)).hash(), other.layout(ClusterId(7)).hash());
    }

    #[test]
    fn what_deserves_a_second_look_is_said() {
        let mut staged = Staged::default();
        for i in 0..4 {
            staged.join(id(i), member(i, ["a", "b"][usize::from(i % 2)]));
        }
        assert!(warnings(&staged.layout(ClusterId(7)))[0].contains("there are 2 zones and N is 3"));
        staged.settings(Some(1), Some(16), None, None);
        let texts = warnings(&staged.layout(ClusterId(7)));
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[0].starts_with("N is 1")
                && texts[0].contains("taken out")
                && texts[1].contains("4 partitions on average"),
            "{texts:?}"
        );
    }

    #[test]
    fn a_floor_of_one_deserves_a_second_look_as_a_change_needs_every_owner_then() {
        let warned = |n, r, w| {
            let mut staged = Staged::default();
            (0..3).for_each(|i| staged.join(id(i), member(i, "a")));
            staged.settings(Some(n), Some(1024), Some(r), Some(w));
            let layout = staged.layout(ClusterId(7));
            assert_eq!(layout.problems(), Vec::<String>::new());
            needs_every_owner(&layout)
        };
        let text = warned(3, 1, 3).expect("every owner has to close");
        assert!(text.contains("floor of R is 1 in layout 1") && text.contains("3 owners"), "{text}");
        assert!(warned(3, 3, 1).expect("every owner has to push").contains("floor of W is 1"));
        assert!(warned(2, 1, 2).is_some());
        for (n, r, w) in [(3, 2, 2), (3, 3, 2), (2, 2, 2), (1, 1, 1)] {
            assert_eq!(warned(n, r, w), None, "N {n}, R {r}, W {w}");
        }
    }

    #[test]
    fn a_second_look_is_asked_for_where_it_begins_and_not_before() {
        let staged = |members: u8, zones: &[&str], n, partitions| {
            let mut staged = Staged::default();
            for i in 0..members {
                staged.join(id(i), member(i, zones[usize::from(i) % zones.len()]));
            }
            staged.settings(Some(n), Some(partitions), Some(n), Some(n.min(2)));
            assert_eq!(staged.len(), usize::from(members));
            let layout = staged.layout(ClusterId(7));
            assert_eq!((layout.r, layout.w), (n, n.min(2)));
            warnings(&layout)
        };
        let none = Vec::<String>::new();
        assert_eq!(staged(0, &["a"], 1, 1024), none, "nobody is there yet");
        assert!(staged(1, &["a"], 1, 8)[0].starts_with("N is 1"));
        assert!(staged(2, &["a"], 2, 8)[0].starts_with("N is 2"));
        assert_eq!(staged(2, &["a"], 2, 8).len(), 1, "each holds all, whatever the number");
        assert_eq!(staged(3, &["a"], 3, 8), none, "one zone is none");
        assert_eq!(staged(3, &["a", "b", "c"], 3, 8), none, "as many zones as replicas");
        assert_eq!(staged(3, &["a", "b"], 3, 8).len(), 1);
        assert_eq!(staged(6, &["a"], 3, 100), none, "50 partitions each");
        assert_eq!(staged(6, &["a"], 3, 99).len(), 1, "49");
    }

    fn id(i: u8) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn member(i: u8, zone: &str) -> StagedMember {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + u16::from(i)));
        StagedMember { disk: DiskId(i.into()), addr, zone: zone.into(), weight: 1 }
    }
}

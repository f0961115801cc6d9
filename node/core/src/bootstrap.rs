//! How a cluster agrees on its first layout (rules L13 and L14): what one node may accept, and when it is chosen.
//!
//! ```text
//!   nothing --offer--> accepted --a majority holds it--> chosen
//!      \____________a peer says that it is chosen__________^
//! ```
//!
//! - A node accepts one version 1, ever. What it has accepted is durable before anybody is told of it.
//! - A layout is chosen once a majority of the members that it names have accepted it, each with the disk that it is named
//!   with. Two layouts over the same members can therefore not both be chosen, and what is chosen stays chosen.
//! - A node that is named with another disk than the one it has (it was wiped, or exchanged) is not that member: it accepts
//!   nothing and counts for nothing. It learns what is in force, as everybody does, and takes writes under it; what it may say
//!   of its data is another question (`quorate_node::recovery`).
//!
//! This is one acceptor's state and its arithmetic. It calls nobody and stores nothing: the caller makes each step durable
//! and then says so ([`Bootstrap::stored`]).

use std::collections::BTreeSet;

use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};

use super::layout::{Layout, LayoutHash};

/// One node's part in the agreement.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    me: Me,
    first: Option<First>,
    /// Why a layout that is in force cannot be this node's, if one was met.
    shut_out: Option<String>,
}

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Me {
    /// Its name.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Its cluster.
    pub cluster: ClusterId,
}

/// The one version 1 that was accepted.
#[derive(Debug, Clone)]
struct First {
    layout: Layout,
    hash: LayoutHash,
    chosen: bool,
    /// The members that are known to hold it durably.
    holders: BTreeSet<NodeId>,
}

/// What to do with an offered layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Make it durable, say so with [`Bootstrap::stored`], then acknowledge.
    Store,
    /// It is held already: acknowledge.
    Held,
}

/// What follows from what a peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// A majority holds the accepted layout: store that it is chosen.
    Choose,
    /// Store this layout as accepted and chosen.
    Learn(Layout),
    /// What it holds cannot be this node's layout.
    Refused(String),
}

impl Bootstrap {
    /// Goes on from what was stored: the accepted layout, and whether it is chosen.
    pub fn new(me: Me, stored: Option<(Layout, bool)>) -> Self {
        let mut bootstrap = Self { me, first: None, shut_out: None };
        if let Some((layout, chosen)) = stored {
            match bootstrap.other_disk(&layout) {
                // The store was copied from another data directory: what was accepted there does not speak for this disk.
                Some(why) if !chosen => bootstrap.shut_out = Some(why),
                Some(_) | None => bootstrap.stored(layout, chosen),
            }
        }
        bootstrap
    }

    /// Whether this node may accept a layout that somebody proposes.
    ///
    /// # Errors
    /// When it has accepted another one (both hashes are named), is not a member with its disk, or the layout is none that
    /// could be applied. Nothing is accepted then.
    pub fn offer(&self, layout: &Layout) -> Result<Offer, String> {
        let hash = layout.hash();
        match &self.first {
            Some(first) if first.hash == hash => return Ok(Offer::Held),
            Some(first) => return Err(self.two_hashes(first.hash, hash)),
            None => {}
        }
        self.check(layout)?;
        self.other_disk(layout).map_or(Ok(()), Err)?;
        if layout.member(self.me.node).is_none() {
            return Err(format!("{} is no member of layout 1 ({})", self.me.node, hash.short()));
        }
        Ok(Offer::Store)
    }

    /// The layout is durable here. What was accepted before must be the same.
    pub fn stored(&mut self, layout: Layout, chosen: bool) {
        let hash = layout.hash();
        match &mut self.first {
            Some(first) => {
                assert_eq!(first.hash, hash, "a node accepts one first layout ever");
                first.chosen |= chosen;
            }
            None => {
                let own = layout.member(self.me.node).filter(|member| member.disk == self.me.disk);
                let holders = own.map(|member| member.node).into_iter().collect();
                self.first = Some(First { layout, hash, chosen, holders });
                self.shut_out = None;
            }
        }
    }

    /// A peer has said what it has accepted, and whether that is chosen; or it has just accepted what it was offered.
    pub fn hear(&mut self, from: NodeId, accepted: Option<&Layout>, chosen: bool) -> Heard {
        let hash = accepted.map(Layout::hash);
        let Some(first) = &mut self.first else {
            return match accepted {
                Some(layout) if chosen => match self.check(layout) {
                    Ok(()) => Heard::Learn(layout.clone()),
                    Err(why) => Heard::Refused(why),
                },
                _ => Heard::Nothing,
            };
        };
        if hash != Some(first.hash) {
            first.holders.remove(&from);
            let Some(other) = hash else { return Heard::Nothing };
            let why = self.two_hashes(self.first.as_ref().expect("seen above").hash, other);
            if chosen && !self.is_chosen() {
                self.shut_out = Some(why.clone());
            }
            return Heard::Refused(why);
        }
        if first.layout.member(from).is_some() {
            first.holders.insert(from);
        }
        // A peer that says "chosen" has counted a majority itself.
        let majority = first.holders.len() >= first.layout.majority();
        if !first.chosen && (majority || chosen) { Heard::Choose } else { Heard::Nothing }
    }

    /// The accepted layout and its hash.
    pub fn accepted(&self) -> Option<(&Layout, LayoutHash)> {
        self.first.as_ref().map(|first| (&first.layout, first.hash))
    }

    /// Whether the accepted layout is chosen.
    pub fn is_chosen(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.chosen)
    }

    /// Whether the members that are known to hold the accepted layout, itself included, are a majority.
    pub fn has_majority(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.holders.len() >= first.layout.majority())
    }

    /// The members that are known to hold the accepted layout durably, by name.
    pub fn holding(&self) -> Vec<NodeId> {
        self.first.iter().flat_map(|first| first.holders.iter().copied()).collect()
    }

    /// The members, other than this node, that are not known to hold the accepted layout, by name.
    pub fn missing(&self) -> Vec<NodeId> {
        let lacks = |first: &First, node: NodeId| node != self.me.node && !first.holders.contains(&node);
        let first = self.first.iter();
        first
            .flat_map(|first| first.layout.members.iter().map(|member| member.node).filter(|node| lacks(first, *node)))
            .collect()
    }

    /// Why this node serves no data as things stand; nothing if it does. `live` are the layouts that are live once the first one is chosen,
    /// oldest first: a node may be a member of a later one only, or of the first one no longer.
    pub fn not_serving(&self, live: &[Layout]) -> Option<String> {
        if let Some(why) = &self.shut_out {
            return Some(why.clone());
        }
        let Some(first) = &self.first else {
            return Some("there is no layout yet: stage the members and apply version 1".into());
        };
        if !first.chosen {
            return Some(format!(
                "layout 1 ({}) is accepted and not yet in force: {} of {} members are known to hold it, {} are needed",
                first.hash.short(),
                first.holders.len(),
                first.layout.members.len(),
                first.layout.majority()
            ));
        }
        let live = if live.is_empty() { std::slice::from_ref(&first.layout) } else { live };
        let named = |layout: &Layout| layout.member(self.me.node).is_some();
        let newest = live.last().expect("one at least").version;
        match live.iter().any(named) {
            true => None,
            false if named(&first.layout) => {
                Some(format!("{} is no member of layout {newest}: it has left or was replaced", self.me.node))
            }
            false => Some(format!("{} is no member of layout {newest}", self.me.node)),
        }
    }

    /// What holds for every layout that this node stores, whether it is proposed or in force.
    fn check(&self, layout: &Layout) -> Result<(), String> {
        if layout.cluster != self.me.cluster {
            return Err(format!("the layout is of cluster {}, this is {}", layout.cluster, self.me.cluster));
        }
        if layout.version != LayoutVersion(1) {
            return Err(format!("the layout has version {}, the first one has version 1", layout.version));
        }
        let problems = layout.problems();
        if !problems.is_empty() {
            return Err(format!("the layout cannot be applied: {}", problems.join("; ")));
        }
        Ok(())
    }

    fn other_disk(&self, layout: &Layout) -> Option<String> {
        let member = layout.member(self.me.node).filter(|member| member.disk != self.me.disk)?;
        Some(format!(
            "layout {} names {} with disk {}, and this node's disk is {}: its data directory was emptied or exchanged, so \
             that it is not that member and must not speak for it",
            layout.version, member.node, member.disk, self.me.disk
        ))
    }

    fn two_hashes(&self, accepted: LayoutHash, other: LayoutHash) -> String {
        format!(
            "{} has accepted {accepted} as layout 1 and never accepts another one, the other one is {other}",
            self.me.node
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::layout::Member;

    #[test]
    fn a_majority_of_the_named_members_chooses() {
        let layout = layout(5, 64);
        let mut node = bootstrap(0);
        assert_eq!(
            node.not_serving(&[]).expect("nothing yet"),
            "there is no layout yet: stage the members and apply version 1"
        );
        assert_eq!(node.offer(&layout), Ok(Offer::Store));
        assert!(node.accepted().is_none(), "not before it is durable");
        node.stored(layout.clone(), false);
        assert_eq!(node.hear(id(1), Some(&layout), false), Heard::Nothing);
        assert!(
            node.not_serving(&[]).expect("a minority").contains("2 of 5 members are known to hold it, 3 are needed")
        );
        assert_eq!(node.hear(id(1), Some(&layout), false), Heard::Nothing, "nobody counts twice");
        assert_eq!(node.hear(id(9), Some(&layout), false), Heard::Nothing, "a stranger does not count");
        assert_eq!(node.hear(id(2), None, false), Heard::Nothing, "nor does one without it");
        assert!(!node.has_majority());
        assert_eq!(node.hear(id(4), Some(&layout), false), Heard::Choose);
        assert!(!node.is_chosen(), "not before that is durable");
        node.stored(layout, true);
        assert!(node.is_chosen());
        assert_eq!(node.not_serving(&[]), None);
        assert_eq!((node.holding(), node.missing()), (vec![id(0), id(1), id(4)], vec![id(2), id(3)]));
    }

    #[test]
    fn one_hash_ever() {
        let (one, other) = (layout(3, 64), layout(3, 128));
        let mut node = bootstrap(0);
        node.stored(one.clone(), false);
        assert_eq!(node.offer(&one), Ok(Offer::Held), "the same one may come as often as it likes");
        let mut restarted = Bootstrap::new(me(0), Some((one.clone(), false)));
        for node in [&mut node, &mut restarted] {
            let why = node.offer(&other).expect_err("another one");
            assert!(why.contains(&one.hash().to_string()) && why.contains(&other.hash().to_string()), "{why}");
            assert_eq!(node.accepted().expect("still").1, one.hash());
        }
    }

    #[test]
    fn holders_of_another_hash_do_not_count() {
        let (one, other) = (layout(3, 64), layout(3, 128));
        let mut node = Bootstrap::new(me(0), Some((one.clone(), false)));
        assert!(matches!(node.hear(id(1), Some(&other), false), Heard::Refused(_)));
        assert!(!node.has_majority());
        assert!(matches!(node.hear(id(2), Some(&other), true), Heard::Refused(_)), "not even if theirs is in force");
        assert!(!node.is_chosen());
        assert!(node.not_serving(&[]).expect("shut out").contains(&other.hash().to_string()));
    }

    #[test]
    fn a_wiped_node_accepts_nothing_counts_for_nothing_and_learns_what_is_in_force() {
        let layout = layout(3, 64);
        let mut wiped = Bootstrap::new(Me { disk: DiskId(77), ..me(2) }, None);
        let why = wiped.offer(&layout).expect_err("another disk");
        assert!(why.contains("disk 00000000000000000000000000000002"), "{why}");
        assert!(
            wiped.not_serving(&[]).expect("nothing yet").contains("no layout yet"),
            "a proposal may still be mended"
        );
        assert_eq!(wiped.hear(id(0), Some(&layout), false), Heard::Nothing);
        assert!(wiped.accepted().is_none());

        let mut node = Bootstrap::new(me(0), Some((layout.clone(), false)));
        assert_eq!(node.hear(id(2), wiped.accepted().map(|(layout, _)| layout), wiped.is_chosen()), Heard::Nothing);
        assert!(!node.has_majority());

        assert_eq!(wiped.hear(id(0), Some(&layout), true), Heard::Learn(layout.clone()));
        wiped.stored(layout.clone(), true);
        assert_eq!((wiped.not_serving(&[]), wiped.holding()), (None, vec![]));
        let restarted = Bootstrap::new(Me { disk: DiskId(77), ..me(2) }, Some((layout, true)));
        assert_eq!((restarted.not_serving(&[]), restarted.holding()), (None, vec![]));
    }

    #[test]
    fn a_member_that_lost_it_does_not_count_any_more() {
        let layout = layout(5, 64);
        let mut node = Bootstrap::new(me(0), Some((layout.clone(), false)));
        node.hear(id(1), Some(&layout), false);
        node.hear(id(1), None, false);
        assert_eq!(node.hear(id(2), Some(&layout), false), Heard::Nothing);
        assert_eq!(node.holding(), [id(0), id(2)]);
    }

    #[test]
    fn a_store_of_another_disk_does_not_speak_for_this_one() {
        let node = Bootstrap::new(Me { disk: DiskId(77), ..me(0) }, Some((layout(3, 64), false)));
        assert!(node.accepted().is_none());
        assert!(node.not_serving(&[]).expect("shut out").contains("emptied or exchanged"));
    }

    #[test]
    fn who_has_nothing_learns_what_is_chosen_and_only_that() {
        let layout = layout(3, 64);
        for mut node in [bootstrap(2), bootstrap(9)] {
            assert_eq!(node.hear(id(0), Some(&layout), false), Heard::Nothing, "accepted is not chosen");
            assert_eq!(node.hear(id(0), Some(&layout), true), Heard::Learn(layout.clone()));
            node.stored(layout.clone(), true);
            assert!(node.is_chosen());
        }
        let mut foreign = layout.clone();
        foreign.cluster = ClusterId(8);
        let mut broken = layout.clone();
        broken.r = 0;
        let mut later = layout.clone();
        later.version = LayoutVersion(2);
        for (bad, why) in [(foreign, "of cluster"), (broken, "the floor r is 0"), (later, "version 2")] {
            let heard = bootstrap(2).hear(id(0), Some(&bad), true);
            assert!(matches!(&heard, Heard::Refused(text) if text.contains(why)), "{heard:?}");
            assert!(bootstrap(2).offer(&bad).expect_err("bad").contains(why));
        }
    }

    #[test]
    fn a_stranger_accepts_no_proposal_and_does_not_serve() {
        let layout = layout(3, 64);
        let mut stranger = bootstrap(9);
        assert!(stranger.offer(&layout).expect_err("no member").contains("n9 is no member"));
        stranger.stored(layout, true);
        assert_eq!(stranger.not_serving(&[]).expect("no member"), "n9 is no member of layout 1");
        assert!(stranger.holding().is_empty(), "it does not count");
    }

    #[test]
    fn a_node_serves_while_any_live_layout_names_it() {
        let first = layout(3, 64);
        let later = |version: u64, members: &[usize]| {
            let named =
                layout(9, 64).members.into_iter().filter(|member| members.iter().any(|i| id(*i) == member.node));
            Layout { version: LayoutVersion(version), members: named.collect(), ..first.clone() }
        };
        let node = |i: usize| Bootstrap::new(me(i), Some((first.clone(), true)));
        let (second, third) = (later(2, &[1, 2, 3]), later(3, &[1, 3, 4]));
        let why = |i: usize, live: &[Layout]| node(i).not_serving(live);
        assert_eq!(why(0, &[first.clone(), second.clone()]), None, "it has still to give what it owns");
        let left = "n0 is no member of layout 3: it has left or was replaced";
        assert_eq!(why(0, &[second.clone(), third.clone()]).as_deref(), Some(left));
        assert_eq!(why(3, &[first.clone(), second.clone()]), None, "it has joined");
        assert_eq!(why(4, &[first.clone(), second.clone()]).as_deref(), Some("n4 is no member of layout 2"));
        assert_eq!(why(4, &[second, third]), None);
    }

    #[test]
    fn one_who_says_chosen_is_enough_for_one_who_accepted_the_same() {
        let layout = layout(5, 64);
        let mut node = Bootstrap::new(me(4), Some((layout.clone(), false)));
        assert_eq!(node.hear(id(0), Some(&layout), true), Heard::Choose);
    }

    /// Every order in which five nodes, each restarted in the middle, hear of each other ends with the one layout that a
    /// majority accepted, also when the others were offered another one first.
    #[test]
    fn two_layouts_are_never_both_chosen() {
        let layouts = [layout(5, 64), layout(5, 128)];
        for split in 0u8..32 {
            let mut nodes: Vec<Bootstrap> = (0..5).map(bootstrap).collect();
            for (i, node) in nodes.iter_mut().enumerate() {
                let layout = &layouts[usize::from(split >> i & 1)];
                assert_eq!(node.offer(layout), Ok(Offer::Store));
                *node = Bootstrap::new(me(i), Some((layout.clone(), false)));
            }
            for _ in 0..2 {
                for i in 0..5 {
                    for j in (0..5).filter(|j| *j != i) {
                        let (accepted, chosen) =
                            (nodes[j].accepted().map(|(layout, _)| layout.clone()), nodes[j].is_chosen());
                        if nodes[i].hear(id(j), accepted.as_ref(), chosen) == Heard::Choose {
                            let layout = nodes[i].accepted().expect("chosen").0.clone();
                            nodes[i].stored(layout, true);
                        }
                    }
                }
            }
            let winner = layouts[usize::from(split.count_ones() >= 3)].hash();
            for node in &nodes {
                let held = node.accepted().expect("everybody accepted one").1;
                assert_eq!(node.is_chosen(), held == winner, "split {split:05b}");
            }
        }
    }

    fn id(i: usize) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn me(i: usize) -> Me {
        Me { node: id(i), disk: DiskId(i as u128), cluster: ClusterId(7) }
    }

    fn bootstrap(i: usize) -> Bootstrap {
        Bootstrap::new(me(i), None)
    }

    fn layout(count: u16, partitions: u16) -> Layout {
        let member = |i: u16| Member {
            node: id(i.into()),
            disk: DiskId(i.into()),
            token_seed: id(i.into()),
            addr: SocketAddr::from(([127, 0, 0, 1], 7000 + i)),
            zone: "z".into(),
            weight: 1,
        };
        Layout {
            cluster: ClusterId(7),
            version: LayoutVersion(1),
            previous: LayoutHash::default(),
            members: (0..count).map(member).collect(),
            n: 3,
            partitions,
            r: 2,
            w: 2,
        }
    }
}

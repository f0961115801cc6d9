//! How far a change of layout is, for people: what has moved, and who is waited for.

use std::collections::{BTreeMap, BTreeSet};

use quorate_wire::ids::{NodeId, Partition};

use crate::live::Live;

/// How far a change is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many partitions have moved.
    pub moved: u32,
    /// How many there are.
    pub partitions: u32,
    /// For whom the others wait.
    pub waits: BTreeMap<NodeId, Wait>,
    /// Who takes something over, and how far each of them is.
    pub receivers: BTreeMap<NodeId, Taken>,
}

/// Of how many partitions something was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Of so many it was.
    pub done: u32,
    /// Of so many it is to be.
    pub of: u32,
}

/// What one node has still to do, in how many partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wait {
    /// To act on the newest layout.
    pub learns: u32,
    /// To take over what older owners hold.
    pub takes_over: u32,
    /// Those whose part is still missing there.
    pub from: BTreeSet<NodeId>,
    /// To refuse reads of older layouts.
    pub closes: u32,
}

impl Wait {
    /// In how many partitions, at most.
    pub fn partitions(&self) -> u32 {
        self.learns.max(self.takes_over).max(self.closes)
    }
}

impl Progress {
    /// How far the change between the live layouts is, as far as one knows what the nodes have said.
    pub fn of(live: &Live) -> Self {
        let partitions = live.newest().ring().partitions();
        let mut progress = Self { partitions: partitions.into(), ..Self::default() };
        for partition in (0..partitions).map(Partition) {
            progress.look_at(live, partition);
        }
        progress
    }

    /// Of whom a node takes something over, and how far it is with each of them. From whom it can do without, because it has become ready
    /// without that, nothing more is to be taken over.
    pub fn sources(live: &Live, me: NodeId) -> BTreeMap<NodeId, Taken> {
        let mut sources: BTreeMap<NodeId, Taken> = BTreeMap::new();
        for partition in live.newest().ring().owned_by(me) {
            let moving = live.partition(partition);
            if !moving.takes_over(me) {
                continue;
            }
            let pushed = moving.pushed(me);
            for from in &pushed {
                let taken = sources.entry(*from).or_default();
                (taken.done, taken.of) = (taken.done + 1, taken.of + 1);
            }
            if moving.is_ready(me, live.newest().version()) {
                continue;
            }
            for from in moving.lacks(me).into_iter().filter(|from| !pushed.contains(from)) {
                sources.entry(from).or_default().of += 1;
            }
        }
        sources
    }

    fn look_at(&mut self, live: &Live, partition: Partition) {
        let (moving, newest) = (live.partition(partition), live.newest());
        for node in newest.ring().primaries(partition).iter().filter(|node| moving.takes_over(**node)) {
            let taken = self.receivers.entry(*node).or_default();
            taken.of += 1;
            taken.done += u32::from(moving.is_ready(*node, newest.version()));
        }
        if moving.is_over() {
            self.moved += 1;
            return;
        }
        let behind = |node: NodeId| live.said().get(&node).is_none_or(|said| said.fence < newest.version());
        let mut late = BTreeSet::new();
        for node in newest.ring().primaries(partition) {
            if moving.is_ready(*node, newest.version()) {
                continue;
            }
            if behind(*node) {
                late.insert(*node);
                continue;
            }
            let wait = self.waits.entry(*node).or_default();
            wait.takes_over += 1;
            wait.from.extend(moving.lacks(*node));
        }
        if moving.is_readable(newest.version()) {
            let named = moving.named();
            let older = live.versions().iter().filter(|placed| placed.version() < newest.version());
            let owners = older.filter(|placed| named.contains(&placed.version()));
            let owners: BTreeSet<NodeId> =
                owners.flat_map(|placed| placed.ring().primaries(partition)).copied().collect();
            for node in owners {
                let closed = live.said().get(&node).map(|said| said.part(partition).closed).unwrap_or_default();
                if behind(node) {
                    late.insert(node);
                } else if closed < newest.version() {
                    self.waits.entry(node).or_default().closes += 1;
                }
            }
        }
        for node in late {
            self.waits.entry(node).or_default().learns += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion};

    use super::*;
    use crate::changes::{Change, layout_after};
    use crate::live::{Got, Placed, Said};
    use crate::staging::{Staged, StagedMember};

    const V2: LayoutVersion = LayoutVersion(2);

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    /// A node by its number, and what it says.
    type Says<'a> = (u16, &'a dyn Fn(&mut Said));

    fn progress(said: &[Says<'_>]) -> Progress {
        Progress::of(&live(said))
    }

    /// n4 takes the place of n1, of four partitions.
    fn live(said: &[Says<'_>]) -> Live {
        let addr = |i: u16| SocketAddr::from(([127, 0, 0, 1], 7000 + i));
        let mut staged = Staged::default();
        for i in 1..=3 {
            let zone = format!("z{i}");
            staged.join(id(i), StagedMember { disk: DiskId(i.into()), addr: addr(i), zone, weight: 1 });
        }
        staged.settings(Some(3), Some(4), None, None);
        let first = staged.layout(ClusterId(7));
        let replace = Change::Replace { old: id(1), new: id(4), disk: DiskId(4), addr: addr(4) };
        let second = layout_after(&first, &[replace]).expect("possible");
        let placed = |layout| Arc::new(Placed::new(layout).expect("possible"));
        let mut known = BTreeMap::new();
        for (node, say) in said {
            let mut said = Said { fence: V2, ..Said::default() };
            say(&mut said);
            known.insert(id(*node), Arc::new(said));
        }
        Live::new(vec![placed(first), placed(second)], known)
    }

    fn everywhere(said: &mut Said, change: impl Fn(&mut crate::live::Part)) {
        for partition in (0..4).map(Partition) {
            let mut part = said.part(partition);
            change(&mut part);
            said.set(partition, part);
        }
    }

    #[test]
    fn who_is_waited_for_is_told_from_the_first_moment_to_the_last() {
        let waits = |progress: &Progress| -> Vec<(NodeId, Wait)> { progress.waits.clone().into_iter().collect() };
        let learns = |node: u16| (id(node), Wait { learns: 4, ..Wait::default() });
        let none = progress(&[]);
        assert_eq!((none.moved, none.partitions), (0, 4));
        assert_eq!(waits(&none), [learns(2), learns(3), learns(4)], "nobody has heard of it");

        let early = progress(&[(2, &|_: &mut Said| {})]);
        assert_eq!(waits(&early), [learns(3), learns(4)], "one of the new owners can answer: nobody has to close yet");

        // n4 waits for two of the three, of which one does not say anything.
        let nothing = |_: &mut Said| {};
        let takes_over = Wait { takes_over: 4, from: [1, 2, 3].map(id).into(), ..Wait::default() };
        let some = progress(&[(2, &nothing), (3, &nothing), (4, &nothing)]);
        let closes = |node: u16| (id(node), Wait { closes: 4, ..Wait::default() });
        assert_eq!(waits(&some), [learns(1), closes(2), closes(3), (id(4), takes_over)]);

        let got = |said: &mut Said| {
            everywhere(said, |part| {
                part.got.extend([2, 3].map(|from| Got { version: V2, from: id(from), strong: true }));
            });
        };
        let closed = |said: &mut Said| everywhere(said, |part| part.closed = V2);
        let one = progress(&[(2, &closed), (3, &nothing), (4, &got)]);
        assert_eq!(waits(&one), [learns(1), closes(3)], "one of the two is enough");
        // Nobody waits for n1 any more: n4 can do without what it has.
        let takes_over = Wait { takes_over: 4, from: [1, 2, 3].map(id).into(), ..Wait::default() };
        assert_eq!(waits(&progress(&[(2, &closed), (3, &closed), (4, &nothing)])), [(id(4), takes_over)]);
        let over = progress(&[(2, &closed), (3, &closed), (4, &got)]);
        assert_eq!((over.moved, waits(&over)), (4, Vec::new()));
    }

    #[test]
    fn who_takes_over_is_counted_by_partition_and_by_source() {
        let nothing = |_: &mut Said| {};
        let got = |partitions: u16, from: &'static [u16]| {
            move |said: &mut Said| {
                for partition in (0..partitions).map(Partition) {
                    let mut part = said.part(partition);
                    part.got.extend(from.iter().map(|from| Got { version: V2, from: id(*from), strong: true }));
                    said.set(partition, part);
                }
            }
        };
        let of = |said: &[Says<'_>]| {
            let live = live(said);
            let sources = Progress::sources(&live, id(4));
            let sources: Vec<_> = sources.into_iter().map(|(from, taken)| (from, taken.done, taken.of)).collect();
            (Progress::of(&live).receivers, sources)
        };
        let n4 = |done| BTreeMap::from([(id(4), Taken { done, of: 4 })]);
        let (receivers, sources) = of(&[]);
        assert_eq!(receivers, n4(0), "it is counted before n4 has heard of it");
        assert_eq!(sources, [], "whom it asks it knows when it acts on the layout");
        let all = |says: &dyn Fn(&mut Said)| of(&[(1, &nothing), (2, &nothing), (3, &nothing), (4, says)]);
        assert_eq!(all(&nothing), (n4(0), vec![(id(1), 0, 4), (id(2), 0, 4), (id(3), 0, 4)]));
        assert_eq!(all(&got(3, &[2])), (n4(0), vec![(id(1), 0, 4), (id(2), 3, 4), (id(3), 0, 4)]));
        // Two of three are enough: what the third one has of these partitions is not waited for.
        assert_eq!(all(&got(3, &[2, 3])), (n4(3), vec![(id(1), 0, 1), (id(2), 3, 4), (id(3), 3, 4)]));
        assert_eq!(all(&got(4, &[1, 3])), (n4(4), vec![(id(1), 4, 4), (id(3), 4, 4)]));
    }

    #[test]
    fn a_node_is_waited_for_in_as_many_partitions_as_its_longest_task_has() {
        for (learns, takes_over, closes) in [(3, 1, 2), (1, 3, 2), (1, 2, 3)] {
            assert_eq!(Wait { learns, takes_over, closes, ..Wait::default() }.partitions(), 3);
        }
    }
}

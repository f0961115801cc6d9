//! What lies on disks of layouts: who knows which, and whether a change is over. By the harness's own look, without asking a node.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::keyspace;
use quorate_core::layout::Layout;
use quorate_core::live::{Live, Placed, Said};
use quorate_core::ring::Ring;
use quorate_node::layouts::{FIRST_KEY, stored_layouts};
use quorate_node::store::Tree;
use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{Key, codec};

use crate::cluster::{Cluster, Machine, Process};
use crate::disk::Durable;
use crate::history::KnownLayouts;

/// Looks at layouts on disks, and remembers what it has seen.
#[derive(Debug, Default)]
pub struct Watch {
    /// What each disk held when it was last looked at, undecoded.
    raw: BTreeMap<NodeId, [Option<Bytes>; 2]>,
    /// The live layouts of each disk, oldest first.
    known: BTreeMap<NodeId, Vec<Layout>>,
    /// Every layout that was seen, by its version, with its ring.
    seen: BTreeMap<u64, (Layout, Ring)>,
}

impl Watch {
    /// Looks at all disks; what has changed on each of them.
    ///
    /// # Errors
    /// When what lies there are no layouts.
    pub fn look(&mut self, cluster: &Cluster<'_>, spoilt: &BTreeSet<u8>) -> Result<Vec<KnownLayouts>, String> {
        let from_us = u64::try_from(cluster.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut news = Vec::new();
        for (number, machine) in (0..).zip(cluster.machines()) {
            let raw = raw(machine);
            if self.raw.get(&machine.node()) == Some(&raw) {
                continue;
            }
            let [first, chain] = &raw;
            let stored = stored_layouts(first.as_ref(), chain.as_ref());
            let layouts = stored.map_err(|why| format!("the layouts on {}'s disk: {why}", machine.node()))?;
            self.raw.insert(machine.node(), raw);
            if self.known.get(&machine.node()) == Some(&layouts) {
                continue;
            }
            for layout in &layouts {
                if let Entry::Vacant(place) = self.seen.entry(layout.version.0) {
                    place.insert((layout.clone(), layout.ring()?));
                }
            }
            let named = layouts.iter().map(|layout| (layout.version.0, layout.hash().to_string())).collect();
            self.known.insert(machine.node(), layouts);
            let (node, spoilt) = (machine.node().to_string(), spoilt.contains(&number));
            news.push(KnownLayouts { from_us, node, layouts: named, spoilt });
        }
        Ok(news)
    }

    /// The newest layout that any disk has held, and its ring.
    pub fn newest(&self) -> Option<&(Layout, Ring)> {
        self.seen.last_key_value().map(|(_, newest)| newest)
    }

    /// Every layout that any disk has held, oldest first.
    pub fn seen(&self) -> impl Iterator<Item = &(Layout, Ring)> {
        self.seen.values()
    }

    /// The layouts that are live on a disk, oldest first.
    pub fn known(&self, node: NodeId) -> &[Layout] {
        self.known.get(&node).map_or(&[], Vec::as_slice)
    }

    /// The owners of a key under each layout that is live on a disk.
    pub(crate) fn owners_known(&self, node: NodeId, key: &[u8]) -> Vec<&[NodeId]> {
        let ring = |layout: &Layout| self.seen.get(&layout.version.0).map(|(_, ring)| ring);
        let rings = self.known(node).iter().filter_map(ring);
        rings.map(|ring| ring.primaries(ring.partition_of(key))).collect()
    }

    /// The newest layout, if it is the only one that is live on the disk of each of its members, and of each other node that runs.
    pub fn settled(&self, cluster: &Cluster<'_>) -> Option<u64> {
        let (newest, _) = self.newest()?;
        self.behind(cluster, newest).is_none().then_some(newest.version.0)
    }

    /// What is still to be done until the newest layout is the only one, if anything is.
    pub fn unsettled(&self, cluster: &Cluster<'_>) -> Option<String> {
        let Some((newest, _)) = self.newest() else { return Some("there is no layout".to_owned()) };
        let node = self.behind(cluster, newest)?;
        let known: Vec<u64> = self.known(node).iter().map(|layout| layout.version.0).collect();
        let waits = self.waits_for(cluster).map_or(String::new(), |what| format!("; {what}"));
        Some(format!("{node} knows {known:?}, the newest is {}{waits}", newest.version))
    }

    /// A node for which the newest layout is not the only one, or that does not know it. Asked in each moment of a life's end: what is
    /// to be told of that costs more.
    fn behind(&self, cluster: &Cluster<'_>, newest: &Layout) -> Option<NodeId> {
        let is_behind = |machine: &&Machine| {
            let member = newest.member(machine.node()).is_some();
            let known = self.known(machine.node());
            // A node that never was a member need not know any.
            let runs = machine.process() == Process::Running && !known.is_empty();
            (member || runs) && known.iter().map(|layout| layout.version).ne([newest.version])
        };
        cluster.machines().iter().find(is_behind).map(|machine| machine.node())
    }

    /// A partition that has not moved yet, and what its owners say of it, for people.
    fn waits_for(&self, cluster: &Cluster<'_>) -> Option<String> {
        let chains = cluster.machines().iter().map(|machine| self.known(machine.node()));
        let known = chains.max_by_key(|known| (known.last().map(|newest| newest.version), known.len()))?;
        let placed: Result<Vec<_>, _> = known.iter().map(|layout| Placed::new(layout.clone()).map(Arc::new)).collect();
        let said = cluster.machines().iter().filter_map(|machine| {
            let stored = machine.disk.present(Tree::Meta, SAID_KEY)?;
            Some((machine.node(), Arc::new(codec::decode::<Said>(&stored).ok()?)))
        });
        let live = Live::new(placed.ok()?, said.collect());
        let partitions = live.newest().ring().partitions();
        let partition = (0..partitions).map(Partition).find(|partition| !live.partition(*partition).is_over());
        let Some(partition) = partition else {
            return Some("by what lies on the disks every partition has moved".into());
        };
        let moving = live.partition(partition);
        let view = moving.view();
        let mut what = format!("partition {partition}, which writes name {} to {} of", view.label.low, view.label.high);
        for node in moving.owners() {
            let of = live.versions().iter().filter(|placed| placed.ring().primaries(partition).contains(node));
            let of: Vec<u64> = of.map(|placed| placed.version().0).collect();
            let ready = moving.is_ready(*node, live.newest().version());
            let said = live.said().get(node).map(|said| (said.fence, said.settled, said.part(partition)));
            what +=
                &format!("; {node} owns it in {of:?}, ready {ready}, lacks {:?}, says {said:?}", moving.lacks(*node));
        }
        Some(what)
    }

    /// What lies on a disk that belongs to others by the newest layout, if anything does: a record of such a partition, or a hint.
    pub fn left_over(&self, machine: &Machine) -> Option<String> {
        let (_, ring) = self.newest()?;
        let owned: BTreeSet<Partition> = ring.owned_by(machine.node()).into_iter().collect();
        for (place, _) in machine.disk.content(Tree::Data) {
            let key = keyspace::key_of_data(&place);
            let partition = ring.partition_of(&key);
            if !owned.contains(&partition) {
                return Some(format!("{} holds a record of partition {partition}", machine.node()));
            }
        }
        let hints = machine.disk.content(Tree::Hints).len();
        (hints > 0).then(|| format!("{} keeps {hints} hints", machine.node()))
    }
}

/// Whether the newest layout on a node's disk names another one.
pub(crate) fn knows(cluster: &Cluster<'_>, who: u8, whom: u8) -> bool {
    let machines = cluster.machines();
    let [first, chain] = raw(&machines[usize::from(who)]);
    let layouts = stored_layouts(first.as_ref(), chain.as_ref()).unwrap_or_default();
    let newest = layouts.last();
    newest.is_some_and(|newest| newest.member(machines[usize::from(whom)].node()).is_some())
}

/// The owners of a key, by name.
pub(crate) fn owners(ring: &Ring, key: &str) -> BTreeSet<String> {
    ring.primaries(ring.partition_of(&Key::plain(key))).iter().map(ToString::to_string).collect()
}

/// Where nodes keep what they say of a change: for people only, so that nobody is misled when it lies elsewhere.
const SAID_KEY: &[u8] = b"layout/said";

fn raw(machine: &Machine) -> [Option<Bytes>; 2] {
    [FIRST_KEY, quorate_node::layouts::CHAIN_KEY].map(|key| match machine.disk.durable(Tree::Meta, key) {
        Durable::Value(value) => Some(value),
        Durable::Absent | Durable::Damaged => None,
    })
}

//! The layouts in force, and what follows from them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use quorate_wire::{NotApplied, RouteTable};

use crate::recovery::Reading;
use quorate_core::layout::{Layout, LayoutHash, Member};
use quorate_core::live::{Live, Placed, Said};
use quorate_core::ownership::{Label, Role, View};
use quorate_core::progress::{Progress, Taken};

/// The live layout versions and what follows from them, as this node knows them at one moment.
#[derive(Debug)]
pub struct Current {
    /// The newest layout.
    pub layout: Arc<Layout>,
    /// Its hash.
    pub hash: LayoutHash,
    live: Live,
    /// What clients are told of the newest layout.
    pub table: Arc<RouteTable>,
    /// Who serves each partition, found when it is first asked for.
    views: Vec<OnceLock<Arc<View>>>,
    /// How far the change is, found when it is first asked for.
    progress: OnceLock<Progress>,
    /// From whom this node takes over, likewise.
    sources: OnceLock<BTreeMap<NodeId, Taken>>,
}

impl Current {
    /// These layouts are live, oldest first; `before` is spared the work for those that it knows.
    ///
    /// # Errors
    /// When one of them has no ring.
    pub(super) fn new(
        layouts: &[Layout],
        said: BTreeMap<NodeId, Arc<Said>>,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let known = |layout: &Layout| {
            let known = before.iter().flat_map(|before| before.live.versions());
            known.into_iter().find(|placed| placed.layout == *layout).cloned()
        };
        let placed = |layout: &Layout| match known(layout) {
            Some(placed) => Ok(placed),
            None => Placed::new(layout.clone()).map(Arc::new),
        };
        let versions: Vec<Arc<Placed>> = layouts.iter().map(placed).collect::<Result<_, _>>()?;
        let newest = versions.last().expect("a layout is in force");
        let table = Arc::new(newest.layout.table_of(newest.ring()));
        let (layout, hash) = (Arc::new(newest.layout.clone()), newest.hash);
        let (progress, sources) = (OnceLock::new(), OnceLock::new());
        Ok(Self { layout, hash, table, views: unlooked(newest), progress, sources, live: Live::new(versions, said) })
    }

    /// The same layouts, and what the nodes have said since.
    pub(super) fn with_said(&self, said: BTreeMap<NodeId, Arc<Said>>) -> Self {
        let mut live = Live::new(self.live.versions().to_vec(), said);
        if let Some(over) = self.live.known_over() {
            live = live.over(over);
        }
        let (views, progress, sources) = (unlooked(live.newest()), OnceLock::new(), OnceLock::new());
        Self { layout: self.layout.clone(), hash: self.hash, live, table: self.table.clone(), views, progress, sources }
    }

    /// Every change up to this version is over, as a peer has said.
    pub(super) fn over(&self, version: LayoutVersion) -> Self {
        let live = self.live.clone().over(version);
        let (views, progress, sources) = (unlooked(live.newest()), OnceLock::new(), OnceLock::new());
        Self { layout: self.layout.clone(), hash: self.hash, live, table: self.table.clone(), views, progress, sources }
    }

    /// The live versions, and what the nodes have said of their part.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// A member, of the newest live version that names it.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.live.versions().iter().rev().find_map(|placed| placed.layout.member(node))
    }

    /// How far the change under way is, if there is one.
    pub fn progress(&self) -> Option<&Progress> {
        self.live.is_changing().then(|| self.progress.get_or_init(|| Progress::of(&self.live)))
    }

    /// Of whom this node, which is always the same, takes something over, found when it is first asked for.
    pub(crate) fn sources(&self, me: NodeId) -> &BTreeMap<NodeId, Taken> {
        self.sources.get_or_init(|| Progress::sources(&self.live, me))
    }

    /// The newest version.
    pub fn version(&self) -> LayoutVersion {
        self.layout.version
    }

    /// The live versions, for a question that is about no partition's quorum.
    pub fn label(&self) -> Label {
        Label { low: self.live.oldest().version(), high: self.version() }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        self.layout.partitions
    }

    /// The partitions that a node owns under any live version, in their order.
    pub fn owned_by(&self, node: NodeId) -> Vec<Partition> {
        self.live.owned_by(node)
    }

    /// The owners of a partition under the newest version.
    pub fn primaries(&self, partition: Partition) -> &[NodeId] {
        self.live.newest().ring().primaries(partition)
    }

    /// The owners of a partition under any live version, those of newer ones first.
    pub fn owners(&self, partition: Partition) -> Vec<NodeId> {
        self.live.owners(partition)
    }

    /// The owners of a partition under any live version that keep a copy of it.
    pub fn keepers(&self, partition: Partition) -> Vec<NodeId> {
        if !self.live.is_changing() {
            return self.primaries(partition).to_vec();
        }
        let moving = self.live.partition(partition);
        moving.owners().iter().copied().filter(|node| moving.keeps_copy(*node)).collect()
    }

    /// All members as the ring offers a partition to them; the owners come first.
    pub fn preference_list(&self, partition: Partition) -> Vec<NodeId> {
        self.live.newest().ring().preference_list(partition)
    }

    /// The partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> Partition {
        self.live.newest().ring().partition_of(key)
    }

    /// See [`Live::may_serve`].
    ///
    /// # Errors
    /// When `me` has not this role there.
    pub fn may_serve(&self, me: NodeId, partition: Partition, role: Role) -> Result<(), NotApplied> {
        self.live.may_serve(me, partition, role)
    }

    /// So many owners of a partition under a version hold, between them, every write that w of them have acknowledged.
    pub fn complete(&self, version: LayoutVersion) -> usize {
        let layout = self.layout_of(version);
        usize::from(layout.n - layout.w) + 1
    }

    /// The layout of a live version.
    pub(crate) fn layout_of(&self, version: LayoutVersion) -> &Layout {
        let live = self.live.versions().iter().find(|placed| placed.version() == version);
        live.map_or(&*self.layout, |placed| &placed.layout)
    }

    /// Which writes a read of `r` replicas at a version must not miss.
    pub fn reading(&self, version: LayoutVersion, r: u8) -> Reading {
        let layout = self.layout_of(version);
        Reading::of(layout.n, layout.w, r)
    }

    /// Who serves a partition.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn view(&self, partition: Partition) -> Arc<View> {
        let of = || Arc::new(self.live.partition(partition).view());
        self.views[usize::from(partition.0)].get_or_init(of).clone()
    }
}

fn unlooked(newest: &Placed) -> Vec<OnceLock<Arc<View>>> {
    (0..newest.ring().partitions()).map(|_| OnceLock::new()).collect()
}

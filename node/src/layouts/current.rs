//! A chosen layout, and what follows from it.

use std::sync::{Arc, OnceLock};

use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{NotApplied, RouteTable};

use crate::recovery::Reading;
use quorate_core::layout::{Layout, LayoutHash};
use quorate_core::ownership::{self, Label, Role, View};
use quorate_core::ring::Ring;

/// A chosen layout and what follows from it.
#[derive(Debug, Clone)]
pub struct Current {
    /// The layout.
    pub layout: Layout,
    /// Its hash.
    pub hash: LayoutHash,
    ring: Ring,
    /// What clients are told of it.
    pub table: RouteTable,
    /// Who serves each partition, found when it is first asked for.
    views: Vec<OnceLock<Arc<View>>>,
}

impl Current {
    pub(super) fn new(layout: Layout) -> Result<Self, String> {
        let ring = layout.ring()?;
        let views = (0..ring.partitions()).map(|_| OnceLock::new()).collect();
        Ok(Self { hash: layout.hash(), table: layout.table_of(&ring), ring, layout, views })
    }

    /// What a question is made under that is asked now.
    pub fn label(&self) -> Label {
        Label::of(self.layout.version)
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        self.ring.partitions()
    }

    /// The partitions that a node owns, in their order.
    pub fn owned_by(&self, node: NodeId) -> Vec<Partition> {
        self.ring.owned_by(node)
    }

    /// The owners of a partition.
    pub fn primaries(&self, partition: Partition) -> &[NodeId] {
        self.ring.primaries(partition)
    }

    /// All members as the ring offers a partition to them; the owners come first.
    pub fn preference_list(&self, partition: Partition) -> Vec<NodeId> {
        self.ring.preference_list(partition)
    }

    /// The partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> Partition {
        self.ring.partition_of(key)
    }

    /// See [`ownership::may_serve`].
    ///
    /// # Errors
    /// When `me` has not this role there.
    pub fn may_serve(&self, me: NodeId, partition: Partition, role: Role) -> Result<(), NotApplied> {
        ownership::may_serve(&self.layout, &self.ring, me, partition, role)
    }

    /// Which writes a read of `r` replicas must not miss.
    pub fn reading(&self, r: u8) -> Reading {
        Reading::of(self.layout.n, self.layout.w, r)
    }

    /// Who serves a partition.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn view(&self, partition: Partition) -> Arc<View> {
        let of = || Arc::new(View::of(&self.layout, &self.ring, partition));
        self.views[usize::from(partition.0)].get_or_init(of).clone()
    }
}

//! A chosen layout, and what follows from it.

use std::sync::OnceLock;

use quorate_wire::ids::{NodeId, Partition};
use quorate_wire::{NotApplied, RouteTable};

use crate::recovery::Reading;
use quorate_core::layout::{Layout, LayoutHash};
use quorate_core::ownership::{self, Label, Role};
use quorate_core::ring::{N_MAX, Ring};

/// A chosen layout and what follows from it.
#[derive(Debug, Clone)]
pub struct Current {
    /// The layout.
    pub layout: Layout,
    /// Its hash.
    pub hash: LayoutHash,
    /// Its ring.
    pub ring: Ring,
    /// What clients are told of it.
    pub table: RouteTable,
    /// The best fallbacks of each partition, found when they are first asked for.
    fallbacks: Vec<OnceLock<Vec<NodeId>>>,
}

/// How many fallbacks of a partition are ever asked: as many as there can be primaries, so that each of them can have one.
const FALLBACKS_MAX: usize = N_MAX as usize;

impl Current {
    pub(super) fn new(layout: Layout) -> Result<Self, String> {
        let ring = layout.ring()?;
        let fallbacks = (0..ring.partitions()).map(|_| OnceLock::new()).collect();
        Ok(Self { hash: layout.hash(), table: layout.table_of(&ring), ring, layout, fallbacks })
    }

    /// What a question is made under that is asked now.
    pub fn label(&self) -> Label {
        Label::of(self.layout.version)
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

    /// Who stands in for the primaries of a partition: other zones first, then in the order of the ring's walk; at most nine.
    pub fn fallbacks(&self, partition: Partition) -> &[NodeId] {
        self.fallbacks[usize::from(partition.0)].get_or_init(|| {
            let mut list = self.ring.preference_list(partition).split_off(usize::from(self.ring.n()));
            list.truncate(FALLBACKS_MAX);
            list
        })
    }
}

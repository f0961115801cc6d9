//! What a node tells of itself and of its peers: the answer to `quorate status`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use quorate_core::layout::LayoutHash;
use quorate_wire::ids::{ClusterId, NodeId, Partition};
use quorate_wire::{NodeStatus, OtherLayout, PeerStatus};
use tokio::time::Instant;

use crate::anti_entropy::AntiEntropy;
use crate::certificate::Certificate;
use crate::coordinator::WallClock;
use crate::handoff::Handoff;
use crate::layouts::{Current, Layouts};
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::peer_wire::Hello;
use crate::replica::HINT_BYTES_MAX;
use crate::store::{DiskRoom, Identity, Store};

/// Makes reports. Clones share everything.
#[derive(Clone)]
pub(crate) struct Status {
    pub(crate) cluster: ClusterId,
    pub(crate) identity: Identity,
    pub(crate) started: Instant,
    pub(crate) durability: &'static str,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) layouts: Layouts,
    pub(crate) membership: Membership,
    pub(crate) metrics: Metrics,
    pub(crate) quarantined: Option<Arc<str>>,
    pub(crate) handoff: Handoff,
    pub(crate) anti_entropy: AntiEntropy,
    pub(crate) wall_clock: WallClock,
    pub(crate) room: DiskRoom,
    pub(crate) certificate: Certificate,
    pub(crate) other_layouts: OtherLayouts,
}

/// Who has accepted another layout 1 than this node, as their last hellos said. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct OtherLayouts(Arc<Mutex<BTreeMap<NodeId, OtherLayout>>>);

impl OtherLayouts {
    /// A hello has come, with its node's layout 1, if it has accepted one; `own` is this node's.
    pub(crate) fn heard(&self, hello: &Hello, own: Option<LayoutHash>) {
        let mut others = self.0.lock().expect("nothing panics while it holds this lock");
        match (own, hello.first_layout) {
            (Some(own), Some(other)) if own != other => {
                if others.len() < OTHERS_MAX || others.contains_key(&hello.node) {
                    let other =
                        OtherLayout { node: hello.node, addr: hello.addr, hash: other.short(), own: own.short() };
                    others.insert(hello.node, other);
                }
            }
            _ => {
                others.remove(&hello.node);
            }
        }
    }

    fn get(&self) -> Vec<OtherLayout> {
        self.0.lock().expect("nothing panics while it holds this lock").values().cloned().collect()
    }
}

/// More nodes than any sensible cluster has.
const OTHERS_MAX: usize = 256;

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({})", self.identity.node)
    }
}

impl Status {
    /// Why this node does not serve data, if it does not.
    pub(crate) fn not_serving(&self) -> Option<String> {
        match &self.quarantined {
            Some(why) => Some(why.to_string()),
            None => self.layouts.not_serving(),
        }
    }

    /// Why this node must not be sent whatever comes: it serves no data, or takes no new values.
    pub(crate) fn not_ready(&self) -> Option<String> {
        self.not_serving().or_else(|| self.room.why())
    }

    /// Whether a node that is no member still holds something: one that has left may be stopped for good when it does not.
    fn what_is_left(&self, now_ms: u64) -> String {
        let member = |current: &Current| current.live().members().contains(&self.identity.node);
        if self.quarantined.is_some() || self.layouts.current().is_none_or(|current| member(&current)) {
            return String::new();
        }
        match self.anti_entropy.of_others() {
            Some(0) if self.handoff.status(now_ms).is_empty() => "; it holds no data".into(),
            Some(0) => "; it holds hints, which it hands over".into(),
            Some(partitions) => {
                format!("; it holds data of {partitions} partitions, which it hands over to their owners")
            }
            None => "; what it holds is being looked at".into(),
        }
    }

    /// The report.
    pub(crate) fn report(&self) -> NodeStatus {
        let current = self.layouts.current();
        let liveness = Arc::clone(&self.membership.liveness().borrow());
        let held = Arc::clone(&self.membership.layout_digests().borrow());
        let now = Instant::now();
        let me = self.identity.node;
        let up = |node: NodeId| node == me || liveness.get(&node).is_some_and(|peer| peer.up);

        let mut names: Vec<NodeId> = liveness.keys().copied().collect();
        names.extend(current.iter().flat_map(|current| current.layout.members.iter().map(|member| member.node)));
        names.push(me);
        names.sort_unstable();
        names.dedup();
        let peers = names
            .into_iter()
            .filter_map(|node| {
                let member = current.as_ref().and_then(|current| current.layout.member(node));
                let seen = liveness.get(&node);
                let primaries = match (&current, member) {
                    (Some(current), Some(_)) => current.owned_by(node).len() as u32,
                    _ => 0,
                };
                Some(PeerStatus {
                    node,
                    addr: seen.map(|peer| peer.addr).or(member.map(|member| member.addr))?,
                    member: member.is_some(),
                    zone: member.map(|member| member.zone.clone()).unwrap_or_default(),
                    weight: member.map_or(0, |member| member.weight),
                    primaries,
                    up: up(node),
                    since_ms: seen.map_or(0, |peer| now.saturating_duration_since(peer.since).as_millis() as u64),
                    layout: match (node == me, &current) {
                        (true, Some(current)) => Some(current.layout.version),
                        _ => held.get(&node).map(|(version, _)| *version),
                    },
                })
            })
            .collect();

        let mut reachable = Vec::new();
        if let Some(current) = &current {
            reachable = vec![0; usize::from(current.layout.n) + 1];
            for partition in 0..current.layout.partitions {
                // While the layout changes, requests need a quorum of the owners under each live one.
                let live = current.live().versions().iter().map(|placed| placed.ring().primaries(Partition(partition)));
                let least = live.map(|primaries| primaries.iter().filter(|node| up(**node)).count()).min();
                reachable[least.unwrap_or(0).min(usize::from(current.layout.n))] += 1;
            }
        }

        let stats = self.store.stats();
        let now_ms = (self.wall_clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let layout = current.as_ref().map(|current| &current.layout);
        let (certificate_left_s, authority_left_s) = self.certificate.left_s();
        NodeStatus {
            node: me,
            cluster: self.cluster,
            disk: self.identity.disk,
            release: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: now.saturating_duration_since(self.started).as_millis() as u64,
            storage: format!("{}, {}", stats.engine, self.durability),
            records: stats.records_estimate,
            disk_bytes: stats.disk_bytes,
            not_serving: self.not_serving().map(|why| format!("{why}{}", self.what_is_left(now_ms))),
            layout: layout.map(|layout| layout.version).unwrap_or_default(),
            layout_hash: current.as_ref().map(|current| current.hash.short()).unwrap_or_default(),
            n: layout.map_or(0, |layout| layout.n),
            r: layout.map_or(0, |layout| layout.r),
            w: layout.map_or(0, |layout| layout.w),
            partitions: layout.map_or(0, |layout| layout.partitions),
            peers,
            hints: self.handoff.status(now_ms),
            hint_bytes_max: HINT_BYTES_MAX,
            recovering: self.anti_entropy.recovering(),
            reachable,
            counters: self.metrics.snapshot(),
            disk_full: self.room.why(),
            certificate_left_s: Some(certificate_left_s),
            authority_left_s: Some(authority_left_s),
            other_layouts: self.other_layouts.get(),
            change: self.layouts.progress(),
            transfers: self.anti_entropy.transfers(),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_wire::ids::{DiskId, LayoutVersion};

    use super::*;

    #[test]
    fn a_node_with_another_layout_1_is_told_of_until_it_has_none_or_ours() {
        let hash = |byte: u8| LayoutHash([byte; 32]);
        let hello = |first_layout| Hello {
            cluster: ClusterId(1),
            node: NodeId::new("n3").expect("legal"),
            disk: DiskId(1),
            boot: 1,
            addr: "127.0.0.1:7403".parse().expect("an address"),
            layout: LayoutVersion::NONE,
            first_layout,
            release: "test".into(),
            life: 1,
            beacon: 0,
            remembers: Vec::new(),
        };
        let others = OtherLayouts::default();
        others.heard(&hello(Some(hash(1))), Some(hash(1)));
        others.heard(&hello(Some(hash(2))), None);
        assert_eq!(others.get(), []);
        others.heard(&hello(Some(hash(2))), Some(hash(1)));
        let told = others.get();
        assert_eq!((told.len(), told[0].node.as_str()), (1, "n3"));
        assert_eq!((&*told[0].hash, &*told[0].own), ("0202020202020202", "0101010101010101"));
        others.heard(&hello(None), Some(hash(1)));
        assert_eq!(others.get(), [], "its disk was emptied");
    }
}

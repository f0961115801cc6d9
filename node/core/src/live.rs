//! The live layout versions, and what every node has said of its part in the change from one to the next.
//!
//! One version is live most of the time. From the moment when a node learns of the next one until every partition has moved there are two,
//! or three when another change has begun meanwhile. What each node does for a partition follows from the owners under each live version
//! and from what the nodes have [said](Said), by the rules of [`transition`], which this module applies to real
//! layouts: it names nodes and versions where those rules count places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_wire::NotApplied;
use quorate_wire::ids::{LayoutVersion, NodeId, Partition};
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, LayoutHash};
use crate::ownership::{FALLBACKS_MAX, Label, Owners, View};
use crate::ring::Ring;
use crate::transition::{self, Change, LIVE_MAX, Named, Places, Standing, Taken};

/// What a node says of its part in the changes under way. It is durable before it is said, and only grows: whoever acts on an old copy acts
/// late, and not wrongly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The newest version that it knows and acts on: writes that name only older ones it refuses, and none of them is under way any more.
    pub fence: LayoutVersion,
    /// Every change up to this version has come to its end.
    pub settled: LayoutVersion,
    /// Of partitions where it has done or received anything.
    pub partitions: BTreeMap<Partition, Part>,
}

/// What a node says of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// It answers no read below this version; 0 if it has closed nothing.
    pub closed: LayoutVersion,
    /// The complete pushes that it holds.
    pub got: BTreeSet<Got>,
    /// The version that it has passed over for ever, if any. Said until the version after the next one is settled: who learns late that the
    /// next one is, finds by this that nothing was to be had from the one that was passed over.
    pub passed_over: Option<LayoutVersion>,
    /// It has confirmed a push for the version of its fence to an owner that cannot do without.
    pub helped: bool,
    /// It has dropped its copy, which others hold.
    pub dropped: bool,
    /// It has lost its copy, and so has closed without a look at whether others are ready.
    pub lost: bool,
    /// The version for which it was restored from other owners that were ready for it, if any.
    pub restored: LayoutVersion,
    /// The newest version for which it has found itself ready. Who is an owner under the oldest live version, and has never said so of that
    /// one, has lost its memory: all owners were ready when the change before was over.
    pub ready: LayoutVersion,
}

/// A complete push: all that the source held of a partition after it had refused every write that does not name the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Got {
    /// The version that it is for.
    pub version: LayoutVersion,
    /// Whose it is.
    pub from: NodeId,
    /// The source was ready for the version before.
    pub strong: bool,
}

impl Part {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Said {
    /// The partitions of which it has lost its memory: it owns them under a version up to which every change is over, and never found
    /// itself ready for that one. To be asked before that is [settled](Self::settle). Nothing of the first layout, for which nobody has to
    /// be ready.
    pub fn forgotten(&self, me: NodeId, base: &Placed) -> Vec<Partition> {
        let version = base.version();
        if version <= LayoutVersion(1) || version <= self.settled {
            return Vec::new();
        }
        let mut owned = base.ring.owned_by(me);
        owned.retain(|partition| self.partitions.get(partition).is_none_or(|part| part.ready < version));
        owned
    }

    /// What it says of a partition.
    pub fn part(&self, partition: Partition) -> Part {
        self.partitions.get(&partition).cloned().unwrap_or_default()
    }

    /// To tell whether one knows it already. It is compared within one release only.
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&quorate_wire::codec::encode(self))
    }

    /// Replaces what it says of a partition.
    pub fn set(&mut self, partition: Partition, part: Part) {
        if part.is_empty() {
            self.partitions.remove(&partition);
        } else {
            self.partitions.insert(partition, part);
        }
    }

    /// Every change up to this version is over: what was said of them says nothing any more.
    pub fn settle(&mut self, version: LayoutVersion) {
        if version <= self.settled {
            return;
        }
        self.settled = version;
        for part in self.partitions.values_mut() {
            part.got.retain(|got| got.version > version);
            if part.closed <= version {
                (part.closed, part.dropped, part.lost) = (LayoutVersion::NONE, false, false);
            }
            part.passed_over = part.passed_over.filter(|passed| passed.0.saturating_add(1) >= version.0);
            part.restored = if part.restored <= version { LayoutVersion::NONE } else { part.restored };
            part.ready = if part.ready <= version { LayoutVersion::NONE } else { part.ready };
        }
        self.partitions.retain(|_, part| !part.is_empty());
    }
}

/// A layout with its ring.
#[derive(Debug)]
pub struct Placed {
    /// The layout.
    pub layout: Layout,
    /// Its hash.
    pub hash: LayoutHash,
    /// Its ring.
    pub(crate) ring: Ring,
}

impl Placed {
    /// Builds the ring.
    ///
    /// # Errors
    /// As [`Layout::ring`].
    pub fn new(layout: Layout) -> Result<Self, String> {
        Ok(Self { hash: layout.hash(), ring: layout.ring()?, layout })
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Its version.
    pub fn version(&self) -> LayoutVersion {
        self.layout.version
    }
}

/// The live versions and what is known of every node's part.
#[derive(Debug, Clone)]
pub struct Live {
    /// Oldest first; their versions follow on each other.
    versions: Vec<Arc<Placed>>,
    said: BTreeMap<NodeId, Arc<Said>>,
    /// Every change up to this version is over, as a peer has said: requests name no older one, whatever else is known of these here.
    over: Option<LayoutVersion>,
}

impl Live {
    /// These versions, oldest first.
    ///
    /// # Panics
    /// When there are none or more than [`LIVE_MAX`], or one does not follow on the one before.
    pub fn new(versions: Vec<Arc<Placed>>, said: BTreeMap<NodeId, Arc<Said>>) -> Self {
        assert!((1..=LIVE_MAX).contains(&versions.len()), "1 to {LIVE_MAX} versions are live");
        let follows = |pair: &[Arc<Placed>]| pair[1].version().0 == pair[0].version().0 + 1;
        assert!(versions.windows(2).all(follows), "a layout follows on the one before");
        Self { versions, said, over: None }
    }

    /// As before, and every change up to this version is over, as a peer has said.
    #[must_use]
    pub fn over(mut self, version: LayoutVersion) -> Self {
        if self.oldest().version() < version && version <= self.newest().version() {
            self.over = self.over.max(Some(version));
        }
        self
    }

    /// The newest version up to which every change is over, as peers have said.
    pub fn known_over(&self) -> Option<LayoutVersion> {
        self.over
    }

    /// The live versions, oldest first.
    pub fn versions(&self) -> &[Arc<Placed>] {
        &self.versions
    }

    /// The newest one.
    pub fn newest(&self) -> &Arc<Placed> {
        self.versions.last().expect("there is one")
    }

    /// The oldest one.
    pub fn oldest(&self) -> &Arc<Placed> {
        &self.versions[0]
    }

    /// Whether a change is under way.
    pub fn is_changing(&self) -> bool {
        self.versions.len() > 1
    }

    /// What is known of each node's part.
    pub fn said(&self) -> &BTreeMap<NodeId, Arc<Said>> {
        &self.said
    }

    /// The members of any live version.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.versions.iter().flat_map(|placed| placed.layout.members.iter().map(|member| member.node)).collect()
    }

    /// The owners of a partition under any live version, those of newer ones first.
    pub fn owners(&self, partition: Partition) -> Vec<NodeId> {
        let mut owners: Vec<NodeId> = Vec::new();
        for node in self.versions.iter().rev().flat_map(|placed| placed.ring.primaries(partition)) {
            if !owners.contains(node) {
                owners.push(*node);
            }
        }
        owners
    }

    /// The partitions that a node owns under any live version, in their order.
    pub fn owned_by(&self, node: NodeId) -> Vec<Partition> {
        let owned = self.versions.iter().flat_map(|placed| placed.ring.owned_by(node));
        owned.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A partition, as its owners change.
    pub fn partition(&self, partition: Partition) -> Moving<'_> {
        let nodes = self.owners(partition);
        let place = |node: &NodeId| nodes.iter().position(|other| other == node).expect("it is an owner");
        let owners = self.versions.iter().map(|placed| transition::Owners {
            places: Places::of(placed.ring.primaries(partition).iter().map(place)),
            r: placed.layout.r,
            w: placed.layout.w,
        });
        let owners: Vec<_> = owners.collect();
        let ready_at_base = owners[0].places;
        let standings = nodes.iter().map(|node| self.standing(*node, partition, &nodes)).collect();
        Moving { live: self, partition, change: Change::new(owners, ready_at_base), nodes, standings }
    }

    fn standing(&self, node: NodeId, partition: Partition, nodes: &[NodeId]) -> Standing {
        let Some(said) = self.said.get(&node) else { return Standing::default() };
        let (base, head) = (self.oldest().version().0, self.versions.len() as u64 - 1);
        // Newer versions than are known here are none of the rules' business yet.
        let relative = |version: LayoutVersion, most: u64| version.0.saturating_sub(base).min(most) as u8;
        let mut standing = Standing { fence: relative(said.fence, head), ..Standing::default() };
        let Some(part) = said.partitions.get(&partition) else { return standing };
        // Closed for a version that is not known here: no read is answered, and no label may be made of it.
        standing.closed = relative(part.closed, head + 1);
        for got in &part.got {
            let place = nodes.iter().position(|node| *node == got.from);
            let (Some(place), true) = (place, (base + 1..=base + head).contains(&got.version.0)) else { continue };
            let index = (got.version.0 - base - 1) as usize;
            standing.got[index] = standing.got[index].with(place);
            if got.strong {
                standing.strong[index] = standing.strong[index].with(place);
            }
        }
        standing.passed_over = part.passed_over == Some(LayoutVersion(base + 1));
        standing.helped = part.helped;
        standing.dropped = part.dropped;
        standing.restored = relative(part.restored, head + 1);
        standing
    }

    /// Whether the change has come to its end: every partition [has](Moving::is_over).
    pub fn is_over(&self) -> bool {
        (0..self.newest().ring.partitions()).map(Partition).all(|partition| self.partition(partition).is_over())
    }
}

/// One partition, as its owners change.
#[derive(Debug)]
pub struct Moving<'a> {
    live: &'a Live,
    partition: Partition,
    change: Change,
    /// The owners under any live version.
    nodes: Vec<NodeId>,
    /// What each of them says, in the same order.
    standings: Vec<Standing>,
}

impl Moving<'_> {
    fn place(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|other| *other == node)
    }

    /// The place of a live version in their list.
    fn index(&self, version: LayoutVersion) -> Option<usize> {
        let index = version.0.checked_sub(self.live.oldest().version().0)?;
        usize::try_from(index).ok().filter(|index| *index <= self.change.head())
    }

    fn version(&self, index: usize) -> LayoutVersion {
        self.live.versions[index].version()
    }

    fn owners_of(&self, index: usize) -> Owners {
        let placed = &self.live.versions[index];
        Owners { version: placed.version(), primaries: placed.ring.primaries(self.partition).to_vec() }
    }

    /// The owners under any live version, those of newer ones first.
    pub fn owners(&self) -> &[NodeId] {
        &self.nodes
    }

    /// What requests for the partition are made under: writes (L1) name every version that is not retired, reads (L6) the newest one whose
    /// owners can answer.
    pub fn view(&self) -> View {
        let head = self.change.head();
        let named = self.change.label(&self.standings, head);
        let void = self.change.is_void(&self.standings);
        let over = self.live.over.map_or(0, |over| self.index(over).unwrap_or(0));
        let named = Named(named.0 & Named::between(over, head).0);
        let lowest = (0..=head).find(|version| named.contains(*version)).expect("a label names the newest version");
        // Who has closed what is older has seen it readable.
        let closed = |version: usize| {
            let seen = |(node, standing): (&NodeId, &Standing)| {
                usize::from(standing.closed) == version && !standing.dropped && !self.has_lost(*node)
            };
            self.nodes.iter().zip(&self.standings).any(seen)
        };
        let readable = |version: &usize| {
            let readable = self.change.is_readable(&self.standings, *version) || (*version > 0 && closed(*version));
            readable && !(void && *version == 1)
        };
        let reads = (lowest..=head).rev().find(readable).unwrap_or(lowest);
        let newest = &self.live.newest().ring;
        let mut fallbacks = newest.preference_list(self.partition);
        fallbacks.retain(|node| !self.nodes.contains(node));
        fallbacks.truncate(FALLBACKS_MAX);
        View {
            label: Label { low: self.version(lowest), high: self.version(head) },
            owners: (0..=head).rev().filter(|version| named.contains(*version)).map(|v| self.owners_of(v)).collect(),
            reads: self.owners_of(reads),
            primaries: self.nodes.clone(),
            fallbacks,
        }
    }

    /// Whether a node takes a write that is made under these versions (L2).
    ///
    /// # Errors
    /// Why not: it is too old, or the node owns the partition under none of them, or has dropped its copy.
    pub fn takes(&self, me: NodeId, label: Label) -> Result<(), NotApplied> {
        let Some(place) = self.place(me) else { return Err(self.no_owner(me, label)) };
        let (base, head) = (self.live.oldest().version(), self.change.head());
        let fence = self.version(usize::from(self.standings[place].fence));
        let (low, high) = (label.low.max(base), label.high.min(self.version(head)));
        let (Some(low), Some(high)) = (self.index(low.min(high)), self.index(high)) else {
            return Err(NotApplied::StaleLayout { need: base, had: label.high });
        };
        // A version that it knows and has not yet made its fence is no obstacle: what names it counts for it.
        let standing = Standing { fence: self.standings[place].fence.max(high as u8), ..self.standings[place] };
        match self.change.takes(&standing, place, Named::between(low, high)) {
            Taken::Yes => Ok(()),
            Taken::Stale => Err(NotApplied::StaleLayout { need: fence, had: label.high }),
            Taken::LearnFirst | Taken::NotMine => Err(self.no_owner(me, label)),
        }
    }

    /// Who asks a node that owns nothing here learns first what it does not know: the newest layout, or that an older one is over, which
    /// is then the oldest one that it names.
    fn no_owner(&self, me: NodeId, label: Label) -> NotApplied {
        let (oldest, newest) = (self.live.oldest().version(), self.live.newest().version());
        match label {
            Label { high, .. } if high < newest => NotApplied::StaleLayout { need: newest, had: high },
            Label { low, .. } if low < oldest => NotApplied::StaleLayout { need: oldest, had: low },
            _ => self.not_mine(me),
        }
    }

    fn not_mine(&self, me: NodeId) -> NotApplied {
        let why =
            format!("{me} is no primary of partition {} in layout {}", self.partition, self.live.newest().version());
        NotApplied::NotServing { node: me, why }
    }

    /// Whether a node may answer a read at a version (L6).
    ///
    /// # Errors
    /// Why not: the version is closed there, or not known, or the node is no owner, or has not yet received all that it needs.
    pub fn speaks(&self, me: NodeId, version: LayoutVersion) -> Result<(), NotApplied> {
        let Some(place) = self.place(me) else { return Err(self.not_mine(me)) };
        let Some(index) = self.index(version) else {
            let (oldest, newest) = (self.live.oldest().version(), self.live.newest().version());
            let need = if version < oldest { oldest } else { newest };
            return Err(NotApplied::StaleLayout { need, had: version });
        };
        let said = self.live.said.get(&me);
        if usize::from(self.standings[place].closed) > index {
            let need = said.map_or(version, |said| said.part(self.partition).closed);
            return Err(NotApplied::StaleLayout { need, had: version });
        }
        if !self.accounts_for_base(me) {
            let oldest = self.live.oldest().version();
            let why = format!("{me} has yet to look whether it holds what layout {oldest} gives to it");
            return Err(NotApplied::NotServing { node: me, why });
        }
        if !self.change.owns(place, index) {
            return Err(self.not_mine(me));
        }
        if !self.change.is_ready(&self.standings, place, index) {
            let why = format!("{me} has not yet received partition {} for layout {version}", self.partition);
            return Err(NotApplied::NotServing { node: me, why });
        }
        Ok(())
    }

    /// Whether a node keeps a copy: it is an owner under a live version and has not dropped it, or has to fill it again.
    pub fn keeps_copy(&self, node: NodeId) -> bool {
        self.place(node).is_some_and(|place| {
            let standing = &self.standings[place];
            let again =
                (usize::from(standing.closed)..=self.change.head()).any(|version| self.change.owns(place, version));
            !standing.dropped || again
        })
    }

    /// Whether a node owned the partition before the newest version, so that what it holds of that time counts.
    pub fn is_former_owner(&self, node: NodeId) -> bool {
        self.place(node).is_some_and(|place| (0..self.change.head()).any(|version| self.change.owns(place, version)))
    }

    /// Whether a node has looked whether it holds what it must under the oldest version. It does when it says that the change before is over,
    /// unless it has found itself ready for that version in the midst of that change.
    fn accounts_for_base(&self, me: NodeId) -> bool {
        let oldest = self.live.oldest().version();
        let accounts = |said: &Arc<Said>| said.settled >= oldest || said.part(self.partition).ready >= oldest;
        oldest <= LayoutVersion(1) || self.live.said.get(&me).is_some_and(accounts)
    }

    /// The live versions for which a node is ready and holds a copy. Whether it still answers reads of them is another question.
    pub fn held_for(&self, node: NodeId) -> Vec<LayoutVersion> {
        let versions = self.live.versions().iter().map(|placed| placed.version());
        let keeps = self.keeps_copy(node) && self.accounts_for_base(node);
        versions.filter(|version| keeps && self.is_ready(node, *version)).collect()
    }

    /// Whether a node has lost its copy since the change began, whether or not it holds one again.
    fn has_lost(&self, node: NodeId) -> bool {
        let said = self.live.said.get(&node);
        said.and_then(|said| said.partitions.get(&self.partition)).is_some_and(|part| part.lost)
    }

    /// So many owners of a live version hold, between them, every write that names it and that W of them have acknowledged.
    pub fn sources_needed(&self, version: LayoutVersion) -> usize {
        self.index(version).map_or(usize::MAX, |index| self.change.sources_needed(index).into())
    }

    /// See [`Change::restorers_needed`].
    pub fn restorers_needed(&self, version: LayoutVersion) -> usize {
        self.index(version).map_or(usize::MAX, |index| self.change.restorers_needed(index).into())
    }

    /// The versions that a write has to name now (L1). An older one is retired: who speaks for a newer one holds what it held.
    pub fn named(&self) -> Vec<LayoutVersion> {
        let named = self.change.label(&self.standings, self.change.head());
        (0..=self.change.head()).filter(|index| named.contains(*index)).map(|index| self.version(index)).collect()
    }

    /// Whether a node is ready for a version (L5).
    pub fn is_ready(&self, node: NodeId, version: LayoutVersion) -> bool {
        match (self.place(node), self.index(version)) {
            (Some(place), Some(index)) => self.change.is_ready(&self.standings, place, index),
            _ => false,
        }
    }

    /// Whether reads at a version can succeed.
    pub fn is_readable(&self, version: LayoutVersion) -> bool {
        self.index(version).is_some_and(|index| self.change.is_readable(&self.standings, index))
    }

    /// The owners that this node has still to receive a push from for the newest version (L4), if it has made that its fence. One
    /// that is now ready for the version before pushes again.
    pub fn lacks(&self, me: NodeId) -> Vec<NodeId> {
        let head = self.change.head();
        let Some(place) = self.place(me).filter(|_| head > 0) else { return Vec::new() };
        let receiver = &self.standings[place];
        let wanted = |from: &usize| {
            let strong = self.change.is_ready(&self.standings, *from, head - 1);
            let owned = (0..head).any(|version| self.change.owns(*from, version));
            owned && !self.standings[*from].dropped && self.change.wants(receiver, *from, place, head, strong)
        };
        (0..self.nodes.len()).filter(wanted).map(|from| self.nodes[from]).collect()
    }

    /// Whether a node owns the partition under the newest version and cannot be ready for that without something of others, however the
    /// change goes.
    pub fn takes_over(&self, node: NodeId) -> bool {
        let head = self.change.head();
        let fresh = vec![Standing { fence: head as u8, ..Standing::default() }; self.nodes.len()];
        let owner = self.place(node).filter(|place| self.change.owns(*place, head));
        owner.is_some_and(|place| !self.change.is_ready(&fresh, place, head))
    }

    /// Whose complete pushes for the newest version a node holds.
    pub fn pushed(&self, me: NodeId) -> Vec<NodeId> {
        let Some(got) =
            self.change.head().checked_sub(1).and_then(|last| Some(self.standings[self.place(me)?].got[last]))
        else {
            return Vec::new();
        };
        got.iter().map(|from| self.nodes[from]).collect()
    }

    /// Whether an owner of the newest version that is not ready may take the partition over from other owners of that version: so many of
    /// them are ready as [that takes](Change::restorers_needed).
    pub fn may_be_restored(&self, me: NodeId) -> bool {
        let head = self.change.head();
        let ready = |node: &usize| self.change.is_ready(&self.standings, *node, head);
        let Some(place) = self.place(me).filter(|place| head > 0 && self.change.owns(*place, head)) else {
            return false;
        };
        let fenced = usize::from(self.standings[place].fence) == head;
        let others = (0..self.nodes.len()).filter(|node| *node != place && ready(node)).count();
        fenced && !ready(&place) && others >= self.change.restorers_needed(head).into()
    }

    /// Whether what a node gives now counts as the push of an owner that is ready for the version before that of its fence (L4); nothing if
    /// it has nothing to push.
    pub fn pushes(&self, me: NodeId) -> Option<bool> {
        let place = self.place(me).filter(|_| self.accounts_for_base(me))?;
        let may = self.change.may_scan(&self.standings[place], place);
        may.then(|| self.change.is_strong(&self.standings, place))
    }

    /// Whether a receiver of a push could not do without it, so that its source has helped the version.
    pub fn needs(&self, to: NodeId, version: LayoutVersion) -> bool {
        match (self.place(to), self.index(version)) {
            (Some(to), Some(index @ 1..)) => self.change.confirmed(Standing::default(), to, index).helped,
            _ => false,
        }
    }

    /// Whether a node that makes the newest version its fence passes over the one before (L11); the version.
    pub fn passes_over(&self, me: NodeId) -> Option<LayoutVersion> {
        let (place, head) = (self.place(me)?, self.change.head());
        let standing = self.standings[place];
        if usize::from(standing.fence) >= head {
            return None;
        }
        let after = self.change.learn(standing, place, head);
        (after.passed_over && !standing.passed_over).then(|| self.version(1))
    }

    /// Whether a node has to refuse reads below its fence from now on (L7); the fence.
    pub fn may_close(&self, me: NodeId) -> Option<LayoutVersion> {
        let place = self.place(me)?;
        let may = self.change.may_close(&self.standings, place);
        may.then(|| self.version(usize::from(self.standings[place].fence)))
    }

    /// Whether the change has come to its end for this partition: writes name the newest version only, and every owner of it is ready. It
    /// can be the oldest version of the next change then, with all of its owners ready. A former owner that still has a copy hands that
    /// over and drops it when it can; nobody waits for it.
    pub fn is_over(&self) -> bool {
        let head = self.change.head();
        let ready = |place: usize| self.change.is_ready(&self.standings, place, head);
        self.change.label(&self.standings, head) == Named::between(head, head)
            && (0..self.nodes.len()).filter(|place| self.change.owns(*place, head)).all(ready)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use quorate_wire::Quorum;
    use quorate_wire::ids::{ClusterId, DiskId};

    use super::*;
    use crate::changes::{self, layout_after};
    use crate::ownership::Role;
    use crate::quorum::Group;
    use crate::staging::{Staged, StagedMember};

    const P: Partition = Partition(0);
    const V1: LayoutVersion = LayoutVersion(1);
    const V2: LayoutVersion = LayoutVersion(2);
    const V3: LayoutVersion = LayoutVersion(3);

    fn id(i: u16) -> NodeId {
        NodeId::new(&format!("n{i}")).expect("legal")
    }

    fn addr(i: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000 + i))
    }

    /// Three layouts: n1 to n3 own everything, then n4 takes the place of n1, then that is taken back.
    fn layouts(r: u8, w: u8) -> Vec<Arc<Placed>> {
        let mut staged = Staged::default();
        for i in 1..=3 {
            let zone = format!("z{i}");
            staged.join(id(i), StagedMember { disk: DiskId(i.into()), addr: addr(i), zone, weight: 1 });
        }
        staged.settings(Some(3), Some(4), Some(r), Some(w));
        let first = staged.layout(ClusterId(7));
        let replace = changes::Change::Replace { old: id(1), new: id(4), disk: DiskId(4), addr: addr(4) };
        let second = layout_after(&first, &[replace]).expect("possible");
        let third = Layout { version: V3, previous: second.hash(), ..first.clone() };
        [first, second, third].map(|layout| Arc::new(Placed::new(layout).expect("possible"))).to_vec()
    }

    /// n1 to n3 own everything, and then n4 takes the place of n1.
    fn replacing() -> Live {
        live_of(&layouts(2, 2)[..2])
    }

    fn live_of(layouts: &[Arc<Placed>]) -> Live {
        Live::new(layouts.to_vec(), BTreeMap::new())
    }

    /// With what one node says now.
    fn says(live: &mut Live, node: u16, change: impl FnOnce(&mut Said)) {
        let mut said = live.said.get(&id(node)).map(|said| (**said).clone()).unwrap_or_default();
        change(&mut said);
        live.said.insert(id(node), Arc::new(said));
    }

    fn fences(live: &mut Live, nodes: &[u16]) {
        for node in nodes {
            says(live, *node, |said| said.fence = V2);
        }
    }

    fn changes(live: &mut Live, node: u16, change: impl FnOnce(&mut Part)) {
        says(live, node, |said| {
            let mut part = said.part(P);
            change(&mut part);
            said.set(P, part);
        });
    }

    fn gets(live: &mut Live, node: u16, from: &[u16]) {
        let got = from.iter().map(|from| Got { version: V2, from: id(*from), strong: true });
        changes(live, node, |part| part.got.extend(got));
    }

    fn closes(live: &mut Live, nodes: &[u16]) {
        for node in nodes {
            assert_eq!(live.partition(P).may_close(id(*node)), Some(V2), "n{node}");
            changes(live, *node, |part| part.closed = V2);
        }
    }

    fn owners(group: &Group) -> BTreeSet<NodeId> {
        group.primaries.iter().copied().collect()
    }

    #[test]
    fn writes_name_both_versions_and_reads_the_old_one_until_enough_is_moved() {
        let mut live = replacing();
        let (old, new) = ([1, 2, 3].map(id), [2, 3, 4].map(id));
        let view = live.partition(P).view();
        assert_eq!((view.label, view.read_version()), (Label { low: V1, high: V2 }, V1));
        let groups = view.write_groups(Quorum::Majority).expect("possible");
        assert_eq!(groups.iter().map(|group| (group.version, group.need)).collect::<Vec<_>>(), [(V2, 2), (V1, 2)]);
        assert_eq!((owners(&groups[0]), owners(&groups[1])), (new.into(), old.into()));
        assert_eq!(view.readers().iter().copied().collect::<BTreeSet<_>>(), old.into());
        assert!((1..=4).all(|i| view.is_primary(id(i))));

        // Those that stay are ready as soon as they have raised their fence; so two of three are, and reads may move.
        fences(&mut live, &[1, 2, 3, 4]);
        assert!(live.partition(P).is_ready(id(2), V2) && !live.partition(P).is_ready(id(4), V2));
        assert_eq!(live.partition(P).view().read_version(), V2);
        assert_eq!(live.partition(P).view().label, Label { low: V1, high: V2 }, "nobody has closed the old one");
        closes(&mut live, &[1, 2]);
        assert_eq!(live.partition(P).view().label, Label::of(V2), "no two owners are left to answer at the old one");
        assert!(!live.partition(P).is_over(), "n4 is not ready");
        gets(&mut live, 4, &[1, 2]);
        assert!(live.partition(P).is_over());
        assert!(!live.is_over(), "there are other partitions");
    }

    #[test]
    fn a_new_owner_speaks_once_it_holds_enough_pushes_and_an_old_one_until_it_closes() {
        let mut live = replacing();
        let reads = |live: &Live, node: u16, at| live.may_serve(id(node), P, Role::Reads(at));
        assert_eq!(reads(&live, 1, V1), Ok(()));
        assert!(matches!(reads(&live, 1, V2), Err(NotApplied::NotServing { why, .. }) if why.contains("no primary")));
        fences(&mut live, &[1, 2, 3, 4]);
        assert_eq!(live.partition(P).lacks(id(4)).into_iter().collect::<BTreeSet<_>>(), [1, 2, 3].map(id).into());
        assert_eq!(live.partition(P).lacks(id(2)), [id(1)], "what stays is compared with what goes");
        gets(&mut live, 4, &[1]);
        assert!(matches!(reads(&live, 4, V2), Err(NotApplied::NotServing { why, .. }) if why.contains("not yet")));
        gets(&mut live, 4, &[3]);
        assert_eq!((reads(&live, 4, V2), live.partition(P).lacks(id(4))), (Ok(()), vec![id(2)]));
        closes(&mut live, &[3]);
        assert_eq!(reads(&live, 3, V1), Err(NotApplied::StaleLayout { need: V2, had: V1 }));
        assert_eq!((reads(&live, 3, V2), reads(&live, 2, V1)), (Ok(()), Ok(())));
        let unknown = LayoutVersion(3);
        assert_eq!(reads(&live, 3, unknown), Err(NotApplied::StaleLayout { need: V2, had: unknown }));
    }

    #[test]
    fn an_owner_takes_what_names_a_version_that_it_owns_and_nothing_older_than_its_fence() {
        let mut live = replacing();
        let takes = |live: &Live, node: u16, low, high| live.may_serve(id(node), P, Role::Writes(Label { low, high }));
        let stale = |need, had| Err(NotApplied::StaleLayout { need, had });
        assert_eq!((takes(&live, 1, V1, V1), takes(&live, 1, V1, V2)), (Ok(()), Ok(())));
        assert_eq!(takes(&live, 4, V1, V2), Ok(()));
        assert!(
            matches!(takes(&live, 1, V2, V2), Err(NotApplied::NotServing { .. })),
            "n1 owns nothing of it any more"
        );
        fences(&mut live, &[1, 2]);
        assert_eq!((takes(&live, 1, V1, V1), takes(&live, 2, V1, V1)), (stale(V2, V1), stale(V2, V1)));
        assert_eq!(takes(&live, 3, V1, V1), Ok(()), "n3 has not raised its fence");
        assert_eq!(takes(&live, 9, V1, V1), stale(V2, V1), "whoever asks a stranger learns the newest layout first");
        changes(&mut live, 1, |part| (part.closed, part.dropped) = (V2, true));
        assert!(matches!(takes(&live, 1, V1, V2), Err(NotApplied::NotServing { .. })), "it has dropped its copy");
        assert!(!live.partition(P).keeps_copy(id(1)) && live.partition(P).keeps_copy(id(4)));

        // Another node knows that the change is over, which who still names the old version learns.
        let after = Live::new(vec![live.newest().clone()], live.said.clone());
        assert_eq!(takes(&after, 1, V1, V2), stale(V2, V1));
        assert_eq!(takes(&after, 2, V1, V2), Ok(()));
    }

    #[test]
    fn a_copy_that_was_lost_is_no_source_and_is_filled_again() {
        let mut live = replacing();
        fences(&mut live, &[1, 2, 3, 4]);
        assert_eq!(live.partition(P).pushes(id(2)), Some(true));
        changes(&mut live, 2, |part| (part.closed, part.dropped) = (V2, true));
        let moving = live.partition(P);
        assert_eq!(moving.pushes(id(2)), None);
        assert!(!moving.is_ready(id(2), V2) && moving.keeps_copy(id(2)));
        assert!(!moving.lacks(id(4)).contains(&id(2)));
        assert_eq!(moving.lacks(id(2)).into_iter().collect::<BTreeSet<_>>(), [1, 3].map(id).into(), "it kept nothing");
        gets(&mut live, 2, &[1, 3]);
        assert!(live.partition(P).is_ready(id(2), V2));
        assert_eq!(live.may_serve(id(2), P, Role::Reads(V1)), Err(NotApplied::StaleLayout { need: V2, had: V1 }));
    }

    #[test]
    fn layouts_follow_on_each_other_and_three_are_live_at_most() {
        let of = |versions: &[usize]| {
            let all = layouts(2, 2);
            let versions: Vec<_> = versions.iter().map(|at| all[*at].clone()).collect();
            std::panic::catch_unwind(|| live_of(&versions)).is_ok()
        };
        assert!(of(&[0]) && of(&[1, 2]) && of(&[0, 1, 2]));
        assert!(!of(&[]) && !of(&[0, 2]) && !of(&[1, 0]) && !of(&[0, 0]));
        let live = replacing();
        let owners = live.owners(P);
        assert_eq!((&owners[..3], &owners[3..]), (live.newest().ring().primaries(P), &[id(1)][..]), "newer ones first");
        assert_eq!(live.members(), (1..=4).map(id).collect());
        assert_eq!((live.owned_by(id(1)).len(), live.owned_by(id(9)).len()), (4, 0));
    }

    #[test]
    fn a_change_that_a_peer_knows_to_be_over_is_named_by_nothing_whatever_is_known_here() {
        let all = layouts(2, 2);
        let over =
            |versions: &[u64]| versions.iter().fold(live_of(&all), |live, version| live.over(LayoutVersion(*version)));
        assert_eq!(over(&[]).partition(P).view().label, Label { low: V1, high: V3 });
        for (told, known) in [(&[1][..], None), (&[4], None), (&[2], Some(V2)), (&[3], Some(V3)), (&[3, 2], Some(V3))] {
            assert_eq!(over(told).known_over(), known, "{told:?}");
        }
        let view = over(&[2]).partition(P).view();
        assert_eq!((view.label, view.read_version()), (Label { low: V2, high: V3 }, V2));
        let view = over(&[2, 3]).partition(P).view();
        assert_eq!((view.label, view.read_version()), (Label::of(V3), V3));
    }

    #[test]
    fn who_owns_what_an_older_change_gave_to_it_and_never_found_itself_ready_has_forgotten_that() {
        let all = layouts(2, 2);
        let mut said = Said::default();
        let every: Vec<Partition> = (0..4).map(Partition).collect();
        assert_eq!(said.forgotten(id(4), &all[1]), every);
        assert_eq!((said.forgotten(id(1), &all[1]), said.forgotten(id(3), &all[0])), (vec![], vec![]));
        said.set(P, Part { ready: V1, ..Part::default() });
        assert_eq!(said.forgotten(id(4), &all[1]), every, "that was for an older one");
        said.set(P, Part { ready: V2, ..Part::default() });
        assert_eq!(said.forgotten(id(4), &all[1]), every[1..]);
        said.settle(V1);
        assert_eq!(said.forgotten(id(4), &all[1]), every[1..]);
        said.settle(V2);
        assert_eq!(said.forgotten(id(4), &all[1]), [], "it has been asked for");
        assert_eq!(said.forgotten(id(3), &all[2]), every);
    }

    #[test]
    fn a_node_that_has_yet_to_look_at_what_the_oldest_layout_gave_to_it_neither_speaks_nor_gives() {
        let all = layouts(2, 2);
        let mut live = live_of(&all[1..]);
        let reads = |live: &Live, node: u16| live.may_serve(id(node), P, Role::Reads(V2));
        let silent = |live: &Live, node: u16| {
            let moving = live.partition(P);
            assert_eq!((moving.held_for(id(node)), moving.pushes(id(node))), (vec![], None));
            matches!(reads(live, node), Err(NotApplied::NotServing { why, .. }) if why.contains("has yet to look"))
        };
        assert!(silent(&live, 2) && silent(&live, 4), "nothing is known of them");
        for node in [2, 4] {
            says(&mut live, node, |said| (said.fence, said.settled) = (V3, V1));
        }
        assert!(silent(&live, 2) && silent(&live, 4));
        changes(&mut live, 2, |part| part.ready = V2);
        says(&mut live, 4, |said| said.settled = V2);
        for node in [2, 4] {
            assert_eq!((reads(&live, node), live.partition(P).pushes(id(node))), (Ok(()), Some(true)), "n{node}");
        }
        assert_eq!(live.partition(P).held_for(id(4)), [V2], "it owns nothing of the newest one");
        assert_eq!(live.partition(P).held_for(id(2)), [V2, V3]);
        let older = live.may_serve(id(2), P, Role::Reads(V1));
        assert_eq!(older, Err(NotApplied::StaleLayout { need: V2, had: V1 }));
    }

    #[test]
    fn a_node_holds_what_it_is_ready_for_until_it_drops_its_copy() {
        let mut live = replacing();
        let held = |live: &Live, node: u16| live.partition(P).held_for(id(node));
        assert_eq!(
            (held(&live, 1), held(&live, 2), held(&live, 4), held(&live, 9)),
            (vec![V1], vec![V1], vec![], vec![])
        );
        fences(&mut live, &[1, 2, 4]);
        assert_eq!((held(&live, 1), held(&live, 2), held(&live, 4)), (vec![V1], vec![V1, V2], vec![]));
        gets(&mut live, 4, &[1, 2]);
        assert_eq!(held(&live, 4), [V2]);
        changes(&mut live, 1, |part| (part.closed, part.dropped) = (V2, true));
        assert_eq!(held(&live, 1), []);
        let former = |node: u16| live.partition(P).is_former_owner(id(node));
        assert!(former(1) && former(2) && !former(4) && !former(9));
    }

    #[test]
    fn what_is_said_of_layouts_and_nodes_that_are_not_known_here_counts_for_nothing() {
        let mut live = replacing();
        fences(&mut live, &[1, 2, 3, 4]);
        let got = |version: u64, from: u16| Got { version: LayoutVersion(version), from: id(from), strong: true };
        changes(&mut live, 4, |part| {
            part.got = [got(1, 1), got(1, 2), got(3, 1), got(3, 2), got(2, 9), got(2, 1)].into()
        });
        assert!(!live.partition(P).is_ready(id(4), V2), "one push is of this change and of an owner");
        changes(&mut live, 4, |part| part.got.extend([got(2, 3)]));
        assert!(live.partition(P).is_ready(id(4), V2));

        // What names no newer version than is known here is refused by one that acts on a newer one, and so is every read.
        says(&mut live, 2, |said| said.fence = LayoutVersion(5));
        changes(&mut live, 2, |part| part.closed = LayoutVersion(5));
        let writes = live.may_serve(id(2), P, Role::Writes(Label::of(V1)));
        assert_eq!(writes, Err(NotApplied::StaleLayout { need: V2, had: V1 }));
        let reads = live.may_serve(id(2), P, Role::Reads(V2));
        assert_eq!(reads, Err(NotApplied::StaleLayout { need: LayoutVersion(5), had: V2 }));
    }

    #[test]
    fn reads_follow_one_that_has_closed_what_is_older_unless_it_has_lost_its_copy() {
        let mut live = replacing();
        fences(&mut live, &[2]);
        assert_eq!(live.partition(P).view().read_version(), V1, "one owner is known to be ready");
        changes(&mut live, 2, |part| part.closed = V2);
        assert_eq!(live.partition(P).view().read_version(), V2, "it has seen enough of them ready");
        changes(&mut live, 2, |part| part.lost = true);
        assert_eq!(live.partition(P).view().read_version(), V1, "it has closed because it had lost its copy");
        changes(&mut live, 2, |part| (part.lost, part.dropped) = (false, true));
        assert_eq!(live.partition(P).view().read_version(), V1, "or had none");
    }

    #[test]
    fn an_owner_is_restored_from_as_many_ready_owners_as_a_read_and_a_write_take() {
        for (r, w, sources, restorers) in [(2, 2, 2, 2), (3, 2, 2, 3), (1, 3, 1, 1), (3, 1, 3, 3)] {
            let live = live_of(&layouts(r, w)[..2]);
            for version in [V1, V2] {
                let needed = (live.partition(P).sources_needed(version), live.partition(P).restorers_needed(version));
                assert_eq!(needed, (sources, restorers), "R {r}, W {w}");
            }
            assert_eq!(live.partition(P).sources_needed(V3), usize::MAX);
            assert_eq!(live.partition(P).restorers_needed(V3), usize::MAX);
        }
        let mut live = replacing();
        let may = |live: &Live, node: u16| live.partition(P).may_be_restored(id(node));
        fences(&mut live, &[1, 2, 3]);
        assert!(!may(&live, 4), "it still takes what names layout 1 only");
        fences(&mut live, &[4]);
        assert!(may(&live, 4));
        assert!(!may(&live, 1) && !may(&live, 2) && !may(&live, 9), "one that leaves, one that is ready, a stranger");
        let mut fewer = replacing();
        fences(&mut fewer, &[1, 2, 4]);
        assert!(!may(&fewer, 4), "one other owner is ready");
        gets(&mut live, 4, &[1, 2]);
        assert!(!may(&live, 4), "it is ready");
        assert!((1..=3).all(|node| !may(&live_of(&layouts(2, 2)[..1]), node)), "nothing changes");
    }

    #[test]
    fn only_an_owner_that_kept_nothing_cannot_do_without_a_push() {
        let live = replacing();
        let needs = |node: u16, version| live.partition(P).needs(id(node), version);
        assert!(needs(4, V2));
        assert!(!needs(1, V2) && !needs(2, V2) && !needs(4, V1) && !needs(4, V3) && !needs(9, V2));
    }

    #[test]
    fn a_version_that_is_taken_back_is_passed_over_by_owners_that_have_done_nothing_for_it() {
        let mut live = live_of(&layouts(2, 2));
        let passes = |live: &Live, node: u16| live.partition(P).passes_over(id(node));
        assert_eq!([1, 2, 4, 9].map(|node| passes(&live, node)), [Some(V2), Some(V2), None, None]);
        assert_eq!(replacing().partition(P).passes_over(id(1)), None, "nothing is taken back");
        fences(&mut live, &[1, 2, 3]);
        assert_eq!([1, 2, 3].map(|node| passes(&live, node)), [Some(V2); 3]);
        changes(&mut live, 1, |part| part.helped = true);
        changes(&mut live, 2, |part| part.closed = V2);
        changes(&mut live, 3, |part| part.passed_over = Some(V2));
        assert_eq!([1, 2, 3].map(|node| passes(&live, node)), [None; 3]);
        let mut live = live_of(&layouts(2, 2));
        says(&mut live, 1, |said| said.fence = V3);
        assert_eq!(passes(&live, 1), None, "it has made up its mind");
    }

    #[test]
    fn a_version_that_too_many_have_passed_over_is_read_by_nobody() {
        let mut live = live_of(&layouts(2, 2));
        for node in [1, 2, 3] {
            says(&mut live, node, |said| said.fence = V3);
            changes(&mut live, node, |part| part.passed_over = Some(V2));
        }
        let view = live.partition(P).view();
        assert_eq!(view.label, Label { low: V1, high: V3 });
        assert_eq!(view.owners.iter().map(|owners| owners.version).collect::<Vec<_>>(), [V3, V1]);
        assert!([V1, V3].contains(&view.read_version()));
        assert_eq!(live.partition(P).named(), [V1, V3]);
    }

    #[test]
    fn what_was_said_of_a_change_says_nothing_once_it_is_over() {
        let mut said = Said { fence: V2, ..Said::default() };
        let newer = Got { version: LayoutVersion(3), from: id(1), strong: false };
        let got = [Got { version: V2, ..newer }, newer].into();
        said.set(
            P,
            Part {
                closed: V2,
                got,
                passed_over: Some(V2),
                helped: false,
                dropped: true,
                lost: true,
                ready: V2,
                restored: V2,
            },
        );
        let before = said.digest();
        said.settle(V2);
        let left = Part { got: [newer].into(), passed_over: Some(V2), ..Part::default() };
        assert_eq!((said.settled, said.part(P)), (V2, left));
        assert_ne!(said.digest(), before);
        said.settle(V1);
        assert_eq!(said.settled, V2, "it never goes back");
        said.settle(LayoutVersion(3));
        assert_eq!(said.part(P), Part { passed_over: Some(V2), ..Part::default() }, "it was passed over for this one");
        said.settle(LayoutVersion(4));
        assert!(said.partitions.is_empty());
    }

    #[test]
    fn who_hears_late_that_a_version_was_passed_over_is_ready_for_the_one_after_it() {
        let replaced = replacing();
        let back = Layout {
            version: LayoutVersion(3),
            previous: replaced.newest().layout.hash(),
            ..replaced.oldest().layout.clone()
        };
        let mut versions = replaced.versions.clone();
        versions.push(Arc::new(Placed::new(back).expect("possible")));
        let mut live = Live::new(versions, BTreeMap::new());
        for node in [1, 2, 3] {
            says(&mut live, node, |said| said.fence = LayoutVersion(3));
        }
        assert!(!live.partition(P).is_ready(id(1), LayoutVersion(3)), "it lacks what named version 2 alone");
        // Two of three pass version 2 over, and the change is over for them.
        for node in [2, 3] {
            changes(&mut live, node, |part| part.passed_over = Some(V2));
            says(&mut live, node, |said| said.settle(LayoutVersion(3)));
        }
        assert!(live.partition(P).is_ready(id(1), LayoutVersion(3)));
    }
}

//! One partition while its owners change: who may take writes, answer reads, push, close and drop, and when.
//!
//! ```text
//!   K:   a b c        every owner learns K+1 (its fence), scans what it holds, and pushes it to the owners of K+1
//!   K+1:   b c d      d is ready once it has pushes from N - W + 1 owners of K; b and c are, as they have kept theirs
//!                     R owners of K+1 are ready: the owners of K close, they answer no read at K any more
//!                     N - R + 1 of them have closed: writes need not name K any more
//!                     all of K+1 are ready and hold what a held: a drops its copy
//! ```
//!
//! The promise: a read of R owners of a version never misses a write that W owners of every version that it names have acknowledged,
//! whatever crashes, and however many owners move at once; and no write is left with less than W copies when one is dropped.
//!
//! # Rules
//!
//! - **L1 Label.** A write names the live versions, and needs W owners of each. A version u may be left out up to a version h once
//!   N - R + 1 owners of u have closed it in favour of one that is not above h ([`Change::may_leave_out`]).
//! - **L2 Fence.** A replica that knows v refuses what names only versions below v; what names a newer one it learns of first
//!   ([`Change::takes`]).
//! - **L3, L4 Push.** A node scans, pushes and closes for the newest version that it knows, and opens its scan only after its fence is
//!   durable: so it holds all that it will ever hold of writes which do not name that version ([`Change::may_scan`]).
//! - **L5 Ready**, said by the receiver ([`Change::is_ready`]). An owner that has lost its copy when those that had given it to it hold nothing
//!   any more takes it over from owners of the same version that are ready ([`Change::restorers_needed`]).
//! - **L6 Read.** A replica answers at v if it owns v, is ready for it, and has closed nothing above ([`Change::speaks`]).
//! - **L7 Close** once R owners of the newer version are ready ([`Change::may_close`]).
//! - **L9 Drop** ([`Change::may_drop`]).
//! - **L11 Abort.** A third version with the owners of the first one takes the second one back. An owner of the first one that has helped no
//!   new owner of the second and closed nothing passes over it, for ever; once max(R, W) have, the second one is void
//!   ([`Change::is_void`]).
//!
//! This is arithmetic over what the nodes say of themselves ([`Standing`]). All of that only grows and is durable before it is said, so
//! that whoever acts on an old copy acts late and not wrongly. `tests/layout_change.rs` explores every order of steps of small worlds with
//! these functions, and bends each rule in turn.

use super::ring::N_MAX;

/// So many versions may be live at a time: a layout, its successor, and one that takes that back or goes on from it.
pub const LIVE_MAX: usize = 3;

/// So many nodes may own a partition under the live versions.
pub const NODES_MAX: usize = LIVE_MAX * N_MAX as usize;

/// Some of the nodes that own a partition under a live version: a bit each, by their place in a list of all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Places(u32);

impl Places {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// These places.
    ///
    /// # Panics
    /// When one is not below [`NODES_MAX`].
    pub fn of(places: impl IntoIterator<Item = usize>) -> Self {
        places.into_iter().fold(Self::NONE, Self::with)
    }

    /// With this one.
    ///
    /// # Panics
    /// When it is not below [`NODES_MAX`].
    #[must_use]
    pub fn with(self, place: usize) -> Self {
        assert!(place < NODES_MAX, "the live versions have at most {NODES_MAX} owners of a partition");
        Self(self.0 | 1 << place)
    }

    /// Whether this one is among them.
    pub fn contains(self, place: usize) -> bool {
        self.0 >> place & 1 == 1
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// How many there are.
    pub fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of them, in their order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..NODES_MAX).filter(move |place| self.contains(*place))
    }
}

/// A live version, of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    /// Who owns the partition under it.
    pub places: Places,
    /// The layout's floor for reads: what is promised holds for reads of so many owners, or more.
    pub r: u8,
    /// The layout's floor for writes.
    pub w: u8,
}

/// What one node says of itself, of one partition. Versions are counted from the oldest live one, which is 0. All of it only grows, and
/// is durable before it is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Standing {
    /// The newest version that it knows.
    pub fence: u8,
    /// It answers no read below this version.
    pub closed: u8,
    /// For each version but the oldest: whose complete pushes it holds.
    pub got: [Places; LIVE_MAX - 1],
    /// Of these, those that were ready for the version before when they opened their scan.
    pub strong: [Places; LIVE_MAX - 1],
    /// It has passed over the middle one of three versions.
    pub passed_over: bool,
    /// It has confirmed a push, for the version of its fence, to an owner that cannot do without.
    pub helped: bool,
    /// It has dropped its copy.
    pub dropped: bool,
    /// It has taken over, durably, what so many other owners of this version [hold between them](Change::restorers_needed) as the rule says,
    /// each of them ready for it; 0 if it never had to.
    pub restored: u8,
}

/// The live versions of a partition, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    versions: Vec<Owners>,
    /// The owners of the oldest version that are ready for it: all of them where the change before has come to its end.
    ready_at_base: Places,
}

/// The versions that a write names: a bit each, the oldest live one being the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named(pub u8);

impl Named {
    /// These and all between.
    pub fn between(low: usize, high: usize) -> Self {
        Self((low..=high).fold(0, |named, version| named | 1 << version))
    }

    /// Whether it names a version.
    pub fn contains(self, version: usize) -> bool {
        self.0 >> version & 1 == 1
    }

    /// The newest one that it names.
    ///
    /// # Panics
    /// When it names none.
    pub fn newest(self) -> usize {
        self.0.checked_ilog2().expect("a write names a version") as usize
    }
}

/// What a replica does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It merges it and acknowledges.
    Yes,
    /// It names older versions only than this node knows: whoever sent it has to learn, and ask anew.
    Stale,
    /// It names a newer version than this node knows, which has to learn first.
    LearnFirst,
    /// The node owns the partition in none of them, or has dropped its copy.
    NotMine,
}

impl Change {
    /// The live versions, oldest first, and who is ready for the oldest one.
    ///
    /// # Panics
    /// When there are none or more than [`LIVE_MAX`], or a quorum is none of its version.
    pub fn new(versions: Vec<Owners>, ready_at_base: Places) -> Self {
        assert!((1..=LIVE_MAX).contains(&versions.len()), "1 to {LIVE_MAX} versions are live");
        let possible = |owners: &Owners| {
            let all = 1..=owners.places.len();
            all.contains(&owners.r) && all.contains(&owners.w)
        };
        assert!(versions.iter().all(possible), "a quorum is at least 1 and at most N");
        Self { versions, ready_at_base }
    }

    /// The newest version.
    pub fn head(&self) -> usize {
        self.versions.len() - 1
    }

    /// Whether a node owns the partition under a version.
    pub fn owns(&self, node: usize, version: usize) -> bool {
        self.versions[version].places.contains(node)
    }

    /// N - W + 1: so many owners hold between them every write that W of them have acknowledged.
    pub fn sources_needed(&self, version: usize) -> u8 {
        let Owners { places, w, .. } = self.versions[version];
        places.len() - w + 1
    }

    /// N - R + 1: when so many owners refuse to answer, no read at the version can succeed.
    fn closers_needed(&self, version: usize) -> u8 {
        let Owners { places, r, .. } = self.versions[version];
        places.len() - r + 1
    }

    /// Whether an owner of both `from` and `to` can rely on what it has kept: any R owners of `to` that own `from` as well meet every
    /// write quorum of `from`.
    fn keeping_suffices(&self, from: usize, to: usize) -> bool {
        self.versions[to].r >= self.sources_needed(from)
    }

    /// Whether the last of three versions takes the middle one back.
    fn is_abort(&self) -> bool {
        self.versions.len() == 3 && self.versions[0] == self.versions[2]
    }

    /// L11: whether the middle one of three versions counts for nothing any more.
    pub fn is_void(&self, standings: &[Standing]) -> bool {
        let Owners { places, r, w } = self.versions[0];
        let votes = places.iter().filter(|node| standings[*node].passed_over).count();
        self.is_abort() && votes >= usize::from(r.max(w))
    }

    /// L5: whether a node may speak for a version. It owns it, its fence has reached it, and one of these holds:
    ///
    /// - it is *covered* from every older live version: it holds complete pushes of N - W + 1 owners of that one, itself included, or it
    ///   owned that one, has kept its copy, and can rely on it: any R owners of the version that owned that one as well meet every write
    ///   quorum of it. A void version need not be covered;
    /// - it was ready for the version before, and can rely on what it has kept;
    /// - it holds pushes of N - W + 1 owners of the version before that were ready themselves;
    /// - it was [restored](Self::restorers_needed) for the version.
    pub fn is_ready(&self, standings: &[Standing], node: usize, version: usize) -> bool {
        let standing = &standings[node];
        if !self.owns(node, version) || usize::from(standing.fence) < version {
            return false;
        }
        let Some(before) = version.checked_sub(1) else {
            return self.ready_at_base.contains(node) && !standing.dropped;
        };
        let direct = (self.owns(node, before) && self.keeping_suffices(before, version))
            && self.is_ready(standings, node, before);
        let strong = standing.strong[before].and(self.may_cover(before));
        let void = self.is_void(standings);
        let covered = (0..version).all(|from| (void && from == 1) || self.is_covered(standing, node, from, version));
        let restored = usize::from(standing.restored) == version;
        covered || direct || restored || strong.len() >= self.sources_needed(before)
    }

    /// From so many other owners of a version, each ready for it, another owner of it can take over what makes it ready: any R of them show
    /// every older write, and N - W + 1 of them hold every write that names the version, as W have acknowledged it. It is no way round the
    /// pushes: who gives must be ready, and with R = N nobody has so many others.
    pub fn restorers_needed(&self, version: usize) -> u8 {
        self.versions[version].r.max(self.sources_needed(version))
    }

    /// Who counts as a source of what a version holds.
    fn may_cover(&self, version: usize) -> Places {
        let owners = self.versions[version].places;
        if version == 0 { owners.and(self.ready_at_base) } else { owners }
    }

    fn is_covered(&self, standing: &Standing, node: usize, from: usize, to: usize) -> bool {
        let sources = self.may_cover(from);
        let kept = sources.contains(node) && (from > 0 || !standing.dropped);
        if kept && self.keeping_suffices(from, to) {
            return true;
        }
        let own = if kept { Places::NONE.with(node) } else { Places::NONE };
        standing.got[to - 1].or(own).and(sources).len() >= self.sources_needed(from)
    }

    /// Whether R owners of a version are ready, so that reads at it can succeed.
    pub fn is_readable(&self, standings: &[Standing], version: usize) -> bool {
        let Owners { places, r, .. } = self.versions[version];
        places.iter().filter(|node| self.is_ready(standings, *node, version)).count() >= usize::from(r)
    }

    /// L6: whether a node may answer a read at a version.
    pub fn speaks(&self, standings: &[Standing], node: usize, version: usize) -> bool {
        usize::from(standings[node].closed) <= version && self.is_ready(standings, node, version)
    }

    /// L2: what a replica does with a write that names these versions.
    pub fn takes(&self, standing: &Standing, node: usize, named: Named) -> Taken {
        let (fence, newest) = (usize::from(standing.fence), named.newest());
        let held = |version: usize| {
            let kept = !standing.dropped || version >= usize::from(standing.closed);
            named.contains(version) && self.owns(node, version) && kept
        };
        match () {
            () if newest < fence => Taken::Stale,
            () if newest > fence => Taken::LearnFirst,
            () if (0..=newest).any(held) => Taken::Yes,
            () => Taken::NotMine,
        }
    }

    /// L1: whether a write that names versions up to `high` may leave `version` out, as far as closing goes.
    pub fn may_leave_out(&self, standings: &[Standing], version: usize, high: usize) -> bool {
        // Nobody closes anything in favour of a void version once it is one.
        let least = if version == 0 && high == 2 && self.is_void(standings) { 2 } else { version + 1 };
        let closed = |node: &usize| (least..=high).contains(&usize::from(standings[*node].closed));
        self.versions[version].places.iter().filter(closed).count() >= self.closers_needed(version).into()
    }

    /// L1: the fewest versions that a write of one who knows all versions up to `high` has to name.
    pub fn label(&self, standings: &[Standing], high: usize) -> Named {
        let void = high == 2 && self.is_void(standings);
        let left_out = |version: &usize| (void && *version == 1) || self.may_leave_out(standings, *version, high);
        let low = (0..high).take_while(left_out).count();
        let named = Named::between(low, high);
        if void { Named(named.0 & !0b10) } else { named }
    }

    /// What becomes of a node that learns a version; to be durable before anything is done with it. Its scan, if it has one open, is void.
    pub fn learn(&self, standing: Standing, node: usize, version: usize) -> Standing {
        assert!(usize::from(standing.fence) < version && version <= self.head(), "a node learns what is newer");
        let passes = version == 2 && self.is_abort() && self.owns(node, 0) && standing.closed == 0 && !standing.helped;
        let passed_over = standing.passed_over || passes;
        Standing { fence: version as u8, passed_over, helped: false, ..standing }
    }

    /// L3, L4: whether a node has something to scan for the version of its fence.
    pub fn may_scan(&self, standing: &Standing, node: usize) -> bool {
        !standing.dropped && self.owned_before(standing, node)
    }

    fn owned_before(&self, standing: &Standing, node: usize) -> bool {
        (0..usize::from(standing.fence)).any(|version| self.owns(node, version))
    }

    /// L4: whether what a scan finds now counts as the push of an owner that is ready for the version before that of its fence.
    pub fn is_strong(&self, standings: &[Standing], node: usize) -> bool {
        let before = usize::from(standings[node].fence).checked_sub(1);
        before.is_some_and(|before| self.is_ready(standings, node, before))
    }

    /// Whether `to` needs what `from` has scanned for a version: it owns it, has learned it, and holds no such push. A source that has
    /// become ready since pushes again.
    pub fn wants(&self, receiver: &Standing, from: usize, to: usize, version: usize, strong: bool) -> bool {
        // Who has lost its copy needs what it had kept.
        let kept = |older: usize| !receiver.dropped && self.owns(to, older) && self.keeping_suffices(older, version);
        let useful = || !self.owns(from, version) || (0..version).any(|older| self.owns(from, older) && !kept(older));
        let held = receiver.got[version - 1].contains(from) && (!strong || receiver.strong[version - 1].contains(from));
        from != to && self.owns(to, version) && usize::from(receiver.fence) >= version && !held && useful()
    }

    /// What becomes of a receiver that holds a whole push durably.
    pub fn received(&self, receiver: Standing, from: usize, version: usize, strong: bool) -> Standing {
        let mut receiver = receiver;
        receiver.got[version - 1] = receiver.got[version - 1].with(from);
        if strong {
            receiver.strong[version - 1] = receiver.strong[version - 1].with(from);
        }
        receiver
    }

    /// What becomes of a source when a receiver has confirmed its push.
    pub fn confirmed(&self, source: Standing, to: usize, version: usize) -> Standing {
        let needless = self.owns(to, version - 1) && self.keeping_suffices(version - 1, version);
        Standing { helped: source.helped || !needless, ..source }
    }

    /// L7: whether a node has to refuse reads below its fence from now on.
    pub fn may_close(&self, standings: &[Standing], node: usize) -> bool {
        let standing = &standings[node];
        let version = usize::from(standing.fence);
        version > standing.closed.into() && self.owned_before(standing, node) && self.is_readable(standings, version)
    }

    /// L9: whether a node may drop its copy: it has closed, owns the partition under no version from there to its fence, and under one of
    /// these every owner is ready and holds all that it had scanned.
    pub fn may_drop(&self, standings: &[Standing], node: usize) -> bool {
        let standing = &standings[node];
        let (closed, fence) = (usize::from(standing.closed), usize::from(standing.fence));
        if closed == 0 || standing.dropped || (closed..=fence).any(|version| self.owns(node, version)) {
            return false;
        }
        let holds = |version: usize, owner: usize| {
            standings[owner].got[version - 1].contains(node) && self.is_ready(standings, owner, version)
        };
        (closed..=fence).any(|version| self.versions[version].places.iter().all(|owner| holds(version, owner)))
    }

    /// Whether the change has come to its end: every owner of the newest version is ready for it, no write names an older one, and no
    /// former owner holds a copy. The newest version is then the oldest one of the next change, with all of its owners ready.
    pub fn is_over(&self, standings: &[Standing]) -> bool {
        let head = self.head();
        let all = self.versions.iter().fold(Places::NONE, |all, owners| all.or(owners.places));
        let settled = |node: usize| match self.owns(node, head) {
            true => self.is_ready(standings, node, head),
            false => standings[node].dropped,
        };
        self.label(standings, head) == Named::between(head, head) && all.iter().all(settled)
    }
}

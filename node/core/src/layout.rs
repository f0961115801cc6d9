//! Layouts: the versioned member set, N, Q and the floors. A layout determines the ring.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use quorate_wire::address;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::{LayoutView, MemberView, RouteTable};
use serde::{Deserialize, Serialize};

use super::ring::{MEMBERS_MAX, N_MAX, PARTITIONS_MAX, Ring, RingMember, WEIGHT_MAX, WEIGHT_TOTAL_MAX};

/// SHA-256 of a layout's canonical encoding; each layout names the hash of the one before (the chain).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayoutHash(pub [u8; 32]);

impl LayoutHash {
    /// The first 16 hexadecimal digits: enough for people to compare.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for LayoutHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LayoutHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node that a layout names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// Its disk: the same node with another disk is not this member.
    pub disk: DiskId,
    /// Whose tokens it has: its own name, or that of the node that it replaced.
    pub token_seed: NodeId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its failure domain: 1 to [`ZONE_LEN_MAX`] bytes.
    pub zone: String,
    /// Its share of the data, relative to the other members.
    pub weight: u32,
}

/// The members of the cluster and how they share the data, agreed on by all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Whose layout it is.
    pub cluster: ClusterId,
    /// Counted from 1.
    pub version: LayoutVersion,
    /// The hash of the layout before; all zeros in version 1.
    pub previous: LayoutHash,
    /// Sorted by name.
    pub members: Vec<Member>,
    /// Replicas of each record (N).
    pub n: u8,
    /// How many slices the hash space is cut into (Q).
    pub partitions: u16,
    /// The floor for reads: with `w`, what strict requests must ask for to be safe across a change of the layout.
    pub r: u8,
    /// The floor for writes; `r + w > n`.
    pub w: u8,
}

/// The longest name of a zone, in bytes.
pub const ZONE_LEN_MAX: usize = 63;

/// The version of the canonical encoding that is hashed.
const ENCODING_VERSION: u8 = 1;

impl Layout {
    /// The hash that names this layout, in every handshake and in the next layout.
    pub fn hash(&self) -> LayoutHash {
        let digest = ::ring::digest::digest(&::ring::digest::SHA256, &self.canonical());
        LayoutHash(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// What is hashed: every field in its order, numbers big-endian, texts behind their length. Written by hand, so that no
    /// library's next release can change the hash of a layout that is in force.
    fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + 128 * self.members.len());
        bytes.extend_from_slice(b"quorate layout");
        bytes.push(ENCODING_VERSION);
        bytes.extend_from_slice(&self.cluster.0.to_be_bytes());
        bytes.extend_from_slice(&self.version.0.to_be_bytes());
        bytes.extend_from_slice(&self.previous.0);
        bytes.push(self.n);
        bytes.extend_from_slice(&self.partitions.to_be_bytes());
        bytes.push(self.r);
        bytes.push(self.w);
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        bytes.extend_from_slice(&(self.members.len() as u64).to_be_bytes());
        for member in &self.members {
            text(&mut bytes, member.node.as_str());
            bytes.extend_from_slice(&member.disk.0.to_be_bytes());
            text(&mut bytes, member.token_seed.as_str());
            // An address has one text for each value, flow label and scope included.
            text(&mut bytes, &member.addr.to_string());
            if let SocketAddr::V6(addr) = member.addr {
                bytes.extend_from_slice(&addr.flowinfo().to_be_bytes());
            }
            text(&mut bytes, &member.zone);
            bytes.extend_from_slice(&member.weight.to_be_bytes());
        }
        bytes
    }

    /// Every reason why it cannot be applied; none if it can.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Self { n, partitions, r, w, .. } = *self;
        if self.version == LayoutVersion::NONE {
            problems.push("its version is 0, the first layout has version 1".into());
        }
        if (self.version <= LayoutVersion(1)) != (self.previous == LayoutHash::default()) {
            problems.push(format!(
                "version {} names {} as the hash of the layout before; only version 1 has none",
                self.version, self.previous
            ));
        }
        if n == 0 || n > N_MAX {
            problems.push(format!("N is {n}, 1 to {N_MAX} are possible"));
        }
        if partitions == 0 || partitions > PARTITIONS_MAX {
            problems.push(format!("there are {partitions} partitions, 1 to {PARTITIONS_MAX} are possible"));
        }
        for (name, floor) in [("r", r), ("w", w)] {
            if floor == 0 || floor > n {
                problems.push(format!("the floor {name} is {floor}, with N={n} it must be 1 to {n}"));
            }
        }
        if u16::from(r) + u16::from(w) <= u16::from(n) {
            problems.push(format!("the floors r={r} and w={w} do not overlap: r + w must be above N={n}"));
        }
        self.member_problems(&mut problems);
        problems
    }

    fn member_problems(&self, problems: &mut Vec<String>) {
        let members = &self.members;
        if members.len() < usize::from(self.n) {
            problems.push(format!(
                "N is {}, and there are only {} members: stage {} more, or a smaller N",
                self.n,
                members.len(),
                usize::from(self.n) - members.len()
            ));
        }
        if members.len() > MEMBERS_MAX {
            problems.push(format!("there are {} members, at most {MEMBERS_MAX} are possible", members.len()));
        }
        let mut total = 0u64;
        for member in members {
            let Member { node, zone, weight, .. } = member;
            if zone.is_empty() || zone.len() > ZONE_LEN_MAX {
                problems.push(format!("the zone of {node} has {} bytes, 1 to {ZONE_LEN_MAX} are possible", zone.len()));
            }
            if *weight == 0 || *weight > WEIGHT_MAX {
                problems.push(format!("{node} has weight {weight}, 1 to {WEIGHT_MAX} are possible"));
            }
            if member.addr.port() == 0 {
                problems.push(format!("nobody can reach {node} at {}", member.addr));
            } else if let Err(why) = address::check_dial(member.addr) {
                problems.push(format!("nobody can reach {node} at {}: {why}", member.addr));
            }
            total += u64::from(*weight);
        }
        if total > u64::from(WEIGHT_TOTAL_MAX) {
            problems.push(format!("the weights add up to {total}, at most {WEIGHT_TOTAL_MAX} are possible"));
        }
        if members.windows(2).any(|pair| pair[0].node > pair[1].node) {
            problems.push("the members are not sorted by name".into());
        }
        doubles(members, "node", |member| member.node, problems);
        doubles(members, "disk", |member| member.disk, problems);
        doubles(members, "token seed", |member| member.token_seed, problems);
        doubles(members, "address", |member| member.addr, problems);
    }

    /// The ring that follows from it.
    ///
    /// # Errors
    /// As [`Ring::build`]; never when there are no [`problems`](Self::problems).
    pub fn ring(&self) -> Result<Ring, String> {
        let members = self.members.iter().map(|member| RingMember {
            node: member.node,
            token_seed: member.token_seed,
            zone: member.zone.clone(),
            weight: member.weight,
        });
        Ring::build(&members.collect::<Vec<_>>(), self.n, self.partitions)
    }

    /// The member of this name.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// More than half of the members.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// What clients need to find the primaries of a key.
    ///
    /// # Errors
    /// As [`ring`](Self::ring).
    pub fn table(&self) -> Result<RouteTable, String> {
        Ok(self.table_of(&self.ring()?))
    }

    /// As [`table`](Self::table), with the ring that was built from this layout.
    pub fn table_of(&self, ring: &Ring) -> RouteTable {
        let by_name: BTreeMap<NodeId, SocketAddr> =
            self.members.iter().map(|member| (member.node, member.addr)).collect();
        let addr = |node: &NodeId| by_name.get(node).copied().expect("the ring was built from these members");
        RouteTable {
            version: self.version,
            members: ring.members().iter().map(|node| (*node, addr(node))).collect(),
            partitions: ring.partitions(),
            n: ring.n(),
            primaries: ring.primary_indices().to_vec(),
        }
    }

    /// The layout as people look at it. Nobody is a primary of anything if no ring can be built yet.
    pub fn view(&self) -> LayoutView {
        self.view_of(self.ring().ok().as_ref())
    }

    /// As [`view`](Self::view), where its ring is known already.
    pub fn view_of(&self, ring: Option<&Ring>) -> LayoutView {
        let loads = |ring: &Ring| ring.members().iter().copied().zip(ring.loads()).collect();
        let loads: BTreeMap<NodeId, u32> = ring.map(loads).unwrap_or_default();
        let view = |member: &Member| MemberView {
            node: member.node,
            disk: member.disk,
            addr: member.addr,
            zone: member.zone.clone(),
            weight: member.weight,
            primaries: loads.get(&member.node).copied().unwrap_or(0),
        };
        LayoutView {
            version: self.version,
            hash: self.hash().to_string(),
            n: self.n,
            partitions: self.partitions,
            r: self.r,
            w: self.w,
            members: self.members.iter().map(view).collect(),
        }
    }

    /// What is shown while there is no layout.
    pub fn none_view() -> LayoutView {
        LayoutView {
            version: LayoutVersion::NONE,
            hash: String::new(),
            n: 0,
            partitions: 0,
            r: 0,
            w: 0,
            members: Vec::new(),
        }
    }
}

/// Names each value that several members have, with all who have it.
fn doubles<T: Ord + fmt::Display>(
    members: &[Member],
    what: &str,
    value: impl Fn(&Member) -> T,
    problems: &mut Vec<String>,
) {
    let mut owners: BTreeMap<T, Vec<&str>> = BTreeMap::new();
    for member in members {
        owners.entry(value(member)).or_default().push(member.node.as_str());
    }
    for (value, owners) in owners.iter().filter(|(_, owners)| owners.len() > 1) {
        problems.push(format!("the {what} {value} is named {} times: by {}", owners.len(), owners.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use quorate_wire::ids::Partition;

    use super::*;

    #[test]
    fn the_hash_is_fixed_for_ever() {
        assert_eq!(sample(3).hash().to_string(), HASH_OF_THE_SAMPLE);
        assert_eq!(sample(3).hash().short(), HASH_OF_THE_SAMPLE[..16]);
    }

    /// Computed once; another hash for the same layout would split a running cluster.
    const HASH_OF_THE_SAMPLE: &str = "c76f8643b3f48b1ef62e469130aa18bd5f93583227c5d98750d03831c0043907";

    #[test]
    fn every_field_changes_the_hash() {
        type Bend = fn(&mut Layout);
        let bends: [Bend; 18] = [
            |layout| layout.cluster.0 += 1,
            |layout| layout.version.0 += 1,
            |layout| layout.previous.0[31] = 1,
            |layout| layout.n = 2,
            |layout| layout.partitions += 1,
            |layout| layout.r += 1,
            |layout| layout.w += 1,
            |layout| layout.members[1].node = id("n11"),
            |layout| layout.members[1].disk.0 += 1,
            |layout| layout.members[1].token_seed = id("n11"),
            |layout| layout.members[1].addr = "10.0.0.1:9".parse().expect("an address"),
            |layout| layout.members[1].addr = "[fe80::1%7]:9".parse().expect("an address"),
            |layout| layout.members[1].addr = std::net::SocketAddrV6::new([1; 8].into(), 9, 5, 7).into(),
            |layout| layout.members[1].addr = std::net::SocketAddrV6::new([1; 8].into(), 9, 6, 7).into(),
            |layout| layout.members[1].zone.push('1'),
            |layout| layout.members[1].weight += 1,
            |layout| layout.members.swap(0, 1),
            |layout| drop(layout.members.pop()),
        ];
        let mut hashes = vec![sample(3).hash()];
        for bend in bends {
            let mut layout = sample(3);
            bend(&mut layout);
            assert!(!hashes.contains(&layout.hash()), "{layout:?}");
            hashes.push(layout.hash());
        }
    }

    #[test]
    fn every_problem_is_named() {
        assert_eq!(sample(3).problems(), Vec::<String>::new());
        type Bend = fn(&mut Layout);
        let cases: &[(Bend, &str)] = &[
            (|l| drop(l.members.pop()), "N is 3, and there are only 2 members: stage 1 more"),
            (|l| l.n = 0, "N is 0, 1 to 9"),
            (|l| l.n = 10, "N is 10, 1 to 9"),
            (|l| l.partitions = 0, "0 partitions, 1 to 32768"),
            (|l| l.partitions = 40_000, "40000 partitions, 1 to 32768"),
            (|l| l.r = 0, "the floor r is 0"),
            (|l| l.w = 4, "the floor w is 4, with N=3 it must be 1 to 3"),
            (|l| l.w = 1, "r=2 and w=1 do not overlap"),
            (|l| l.version.0 = 0, "its version is 0"),
            (|l| l.version.0 = 2, "version 2 names 0000"),
            (|l| l.previous.0[0] = 0xab, "version 1 names ab00"),
            (|l| l.members[1].node = id("n0"), "the node n0 is named 2 times: by n0, n0"),
            (|l| l.members[1].disk = DiskId(0), "named 2 times: by n0, n1"),
            (|l| l.members[1].token_seed = id("n0"), "the token seed n0 is named 2 times: by n0, n1"),
            (|l| l.members[1].addr = l.members[0].addr, "the address 127.0.0.1:7000 is named 2 times"),
            (|l| l.members.swap(0, 1), "not sorted"),
            (|l| l.members[2].zone.clear(), "the zone of n2 has 0 bytes"),
            (|l| l.members[2].zone = "z".repeat(65), "the zone of n2 has 65 bytes"),
            (|l| l.members[2].weight = 0, "n2 has weight 0"),
            (|l| l.members[2].weight = 1001, "n2 has weight 1001"),
            (|l| l.members[2].addr = "0.0.0.0:70".parse().expect("an address"), "nobody can reach n2 at 0.0.0.0:70"),
            (
                |l| l.members[2].addr = "[ff02::1]:70".parse().expect("an address"),
                "nobody can reach n2 at [ff02::1]:70",
            ),
            (|l| l.members[2].addr = "10.0.0.1:0".parse().expect("an address"), "nobody can reach n2 at 10.0.0.1:0"),
            (|l| *l = sample(1001), "there are 1001 members"),
            (|l| l.members.iter_mut().for_each(|m| m.weight = 1500), "the weights add up to 4500"),
        ];
        for (bend, problem) in cases {
            let mut layout = sample(3);
            bend(&mut layout);
            let problems = layout.problems();
            assert!(problems.iter().any(|text| text.contains(problem)), "{problem}: {problems:?}");
        }
    }

    #[test]
    fn what_is_just_possible_is_no_problem() {
        let mut layout = sample(u16::try_from(MEMBERS_MAX).expect("a thousand"));
        (layout.n, layout.r, layout.w, layout.partitions) = (N_MAX, N_MAX, 1, PARTITIONS_MAX);
        layout.members[2].zone = "z".repeat(ZONE_LEN_MAX);
        layout.members[3].weight = WEIGHT_MAX;
        let rest = WEIGHT_TOTAL_MAX - layout.members.iter().map(|member| member.weight).sum::<u32>();
        for member in &mut layout.members[4..][..5] {
            member.weight += rest / 5;
        }
        layout.members[4].weight += rest % 5;
        assert_eq!(layout.members.iter().map(|member| member.weight).sum::<u32>(), WEIGHT_TOTAL_MAX);
        assert_eq!(layout.problems(), Vec::<String>::new());
        layout.members[4].weight += 1;
        assert_eq!(layout.problems().len(), 1);
        let doubled = |layout: &mut Layout| layout.members[1].node = layout.members[0].node;
        let mut layout = sample(3);
        doubled(&mut layout);
        assert_eq!(layout.problems().len(), 1, "{:?}", layout.problems());
        let mut layout = sample(3);
        layout.members.swap(1, 2);
        assert_eq!(layout.problems(), ["the members are not sorted by name"]);
    }

    #[test]
    fn no_problems_means_that_there_is_a_ring() {
        let layout = sample(5);
        let ring = layout.ring().expect("builds");
        let table = layout.table().expect("builds");
        assert_eq!((table.version, table.partitions, table.n), (LayoutVersion(1), 64, 3));
        for (partition, row) in (0..64).map(Partition).zip(table.primaries.chunks(3)) {
            let names: Vec<NodeId> = row.iter().map(|&index| table.members[usize::from(index)].0).collect();
            assert_eq!(names, ring.primaries(partition));
        }
        let view = layout.view();
        assert_eq!(view.members.iter().map(|member| member.primaries).sum::<u32>(), 3 * 64);
        assert_eq!(view.hash, layout.hash().to_string());
        let mut too_few = layout.clone();
        too_few.members.truncate(2);
        assert!(too_few.view().members.iter().all(|member| member.primaries == 0));
        let none = Layout::none_view();
        assert_eq!((none.version, none.n, none.partitions, none.r, none.w), (LayoutVersion::NONE, 0, 0, 0, 0));
        assert_eq!((layout.majority(), sample(4).majority()), (3, 3));
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn sample(count: u16) -> Layout {
        let mut members: Vec<Member> = (0..count)
            .map(|i| Member {
                node: id(&format!("n{i}")),
                disk: DiskId(u128::from(i)),
                token_seed: id(&format!("n{i}")),
                addr: SocketAddr::from(([127, 0, 0, 1], 7000 + i)),
                zone: format!("z{}", i % 3),
                weight: 1,
            })
            .collect();
        members.sort_by_key(|member| member.node);
        Layout {
            cluster: ClusterId(7),
            version: LayoutVersion(1),
            previous: LayoutHash::default(),
            members,
            n: 3,
            partitions: 64,
            r: 2,
            w: 2,
        }
    }
}

//! From a key to the nodes that can coordinate its requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use quorate_wire::RouteTable;
use quorate_wire::ids::{LayoutVersion, NodeId, Partition, key_hash};
use quorate_wire::random::Random;

/// A route table that was checked: every index in it points somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routes(RouteTable);

impl Routes {
    /// Checks a table that a node sent.
    ///
    /// # Errors
    /// What is wrong with it. A table that is refused changes nothing: the client goes on with the one that it has.
    pub(crate) fn check(table: RouteTable) -> Result<Self, String> {
        let (members, n) = (table.members.len(), usize::from(table.n));
        if table.version == LayoutVersion::NONE {
            return Err("it is of layout 0, which no cluster has".into());
        }
        if members == 0 || members > MEMBERS_MAX {
            return Err(format!("it has {members} members, 1 to {MEMBERS_MAX} are possible"));
        }
        if table.partitions == 0 {
            return Err("it has no partitions".into());
        }
        if n == 0 || n > members {
            return Err(format!("it has N={n} with {members} members"));
        }
        if table.members.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len() != members {
            return Err("it names a member twice".into());
        }
        let expected = usize::from(table.partitions) * n;
        if table.primaries.len() != expected {
            return Err(format!("it has {} primaries where {expected} are needed", table.primaries.len()));
        }
        for (partition, primaries) in table.primaries.chunks_exact(n).enumerate() {
            let distinct: BTreeSet<_> = primaries.iter().collect();
            if distinct.len() != n || primaries.iter().any(|index| usize::from(*index) >= members) {
                return Err(format!("the primaries of partition {partition} are not {n} different members"));
            }
        }
        Ok(Self(table))
    }

    pub(crate) fn table(&self) -> &RouteTable {
        &self.0
    }

    /// Where a member is.
    pub(crate) fn addr_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.0.members.iter().find(|(member, _)| *member == node).map(|(_, addr)| *addr)
    }

    /// The same table with other addresses for some members.
    pub(crate) fn moved(&self, moved: &[(NodeId, SocketAddr)]) -> Self {
        let mut table = self.0.clone();
        for (node, addr) in &mut table.members {
            if let Some((_, now)) = moved.iter().find(|(member, _)| member == node) {
                *addr = *now;
            }
        }
        Self(table)
    }

    fn primaries(&self, partition: Partition) -> impl Iterator<Item = Target> + '_ {
        let n = usize::from(self.0.n);
        let first = usize::from(partition.0) * n;
        self.0.primaries[first..first + n].iter().map(|index| {
            let (node, addr) = self.0.members[usize::from(*index)];
            Target { node: Some(node), addr }
        })
    }
}

/// A node to send to: by its name, if the route table named it, or just whoever listens at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) node: Option<NodeId>,
    pub(crate) addr: SocketAddr,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node} at {}", self.addr),
            None => self.addr.fmt(f),
        }
    }
}

/// What a request is about, as far as its way to a node is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination<'a> {
    /// The replicas of an encoded key.
    Key(&'a [u8]),
    /// The replicas of a partition.
    Partition(Partition),
    /// Any node will do.
    Any,
}

/// Whether the order of the primaries matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Writes go to the best primary, always the same one: siblings come from concurrent coordinators more often than from
    /// one.
    Best,
    /// Reads are spread over the primaries.
    Spread,
}

/// Whom to ask, in which order: primaries, then a few other members, who pass the request on; those that lately failed go
/// last, but are not left out, since nobody knows whether they still do.
///
/// Without a table there is nobody to name, and the seeds are asked by the caller.
pub(crate) fn coordinators(
    routes: Option<&Arc<Routes>>,
    destination: Destination<'_>,
    order: Order,
    random: &Random,
    failing: impl Fn(SocketAddr) -> bool,
) -> Vec<Target> {
    let Some(routes) = routes else { return Vec::new() };
    let partition = match destination {
        Destination::Key(key) => Some(Partition::of(key_hash(key), routes.0.partitions)),
        Destination::Partition(partition) if partition.0 < routes.0.partitions => Some(partition),
        Destination::Partition(_) | Destination::Any => None,
    };
    let mut targets: Vec<Target> = partition.map(|partition| routes.primaries(partition).collect()).unwrap_or_default();
    if order == Order::Spread {
        shuffle(&mut targets, random);
    }
    // From a random place on, so that nobody is the one whom everybody turns to.
    let (members, primaries) = (&routes.0.members, targets.len());
    let start = random.below(members.len() as u64) as usize;
    let mut spare = Vec::new();
    for &(node, addr) in members[start..].iter().chain(&members[..start]) {
        let target = Target { node: Some(node), addr };
        if targets.len() == primaries + OTHERS_MAX {
            break;
        }
        if !targets.contains(&target) {
            if failing(addr) { spare.push(target) } else { targets.push(target) }
        }
    }
    spare.truncate(primaries + OTHERS_MAX - targets.len());
    targets.extend(spare);
    targets.sort_by_key(|target| failing(target.addr));
    targets
}

/// Puts a list into a random order (Fisher and Yates).
pub(crate) fn shuffle<T>(list: &mut [T], random: &Random) {
    for last in (1..list.len()).rev() {
        list.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// More members than any cluster has for which the ring is made (a table of 4,096 takes 200 KB).
const MEMBERS_MAX: usize = 4096;

/// How many members that are not primaries are tried: each passes the request on, or stands in for the primaries. Those that lately
/// failed are the last choice, so that four find one that can be reached where there is any.
const OTHERS_MAX: usize = 4;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use quorate_wire::{BucketId, Key};

    use super::*;

    /// `members` members on ports from 1000 on, each partition on the next `n` of them.
    pub(crate) fn table(version: u64, members: u16, partitions: u16, n: u8) -> RouteTable {
        RouteTable {
            version: LayoutVersion(version),
            members: (0..members)
                .map(|i| {
                    let node = NodeId::new(&format!("n{i}")).expect("legal");
                    (node, SocketAddr::from(([127, 0, 0, 1], 1000 + i)))
                })
                .collect(),
            partitions,
            n,
            primaries: (0..partitions).flat_map(|p| (0..u16::from(n)).map(move |i| (p + i) % members)).collect(),
        }
    }

    fn ports(targets: &[Target]) -> Vec<u16> {
        targets.iter().map(|target| target.addr.port()).collect()
    }

    #[test]
    fn malformed_tables_are_refused_with_the_reason() {
        type Bend = fn(&mut RouteTable);
        let bends: [(&str, Bend); 10] = [
            ("layout 0", |t| t.version = LayoutVersion::NONE),
            ("0 members", |t| t.members.clear()),
            ("no partitions", |t| t.partitions = 0),
            ("N=0", |t| t.n = 0),
            ("N=6", |t| t.n = 6),
            ("twice", |t| t.members[1].0 = t.members[0].0),
            ("47 primaries", |t| t.primaries.truncate(47)),
            ("49 primaries", |t| t.primaries.push(0)),
            ("partition 0", |t| t.primaries[0] = 5),
            ("partition 15", |t| t.primaries[47] = t.primaries[46]),
        ];
        assert!(Routes::check(table(1, 5, 16, 3)).is_ok());
        for (expected, bend) in bends {
            let mut bent = table(1, 5, 16, 3);
            bend(&mut bent);
            let why = Routes::check(bent).expect_err(expected);
            assert!(why.contains(expected), "{why:?} should mention {expected:?}");
        }
    }

    #[test]
    fn writes_keep_the_order_of_the_primaries() {
        let routes = Arc::new(Routes::check(table(1, 8, 16, 3)).expect("well formed"));
        let random = Random::from_seed(1);
        for _ in 0..20 {
            let to = Destination::Partition(Partition(2));
            let targets = coordinators(Some(&routes), to, Order::Best, &random, |_| false);
            assert_eq!(ports(&targets)[..3], [1002, 1003, 1004]);
            assert_eq!(targets.len(), 3 + OTHERS_MAX);
        }
    }

    #[test]
    fn reads_are_spread_over_the_primaries() {
        let routes = Arc::new(Routes::check(table(1, 8, 16, 3)).expect("well formed"));
        let random = Random::from_seed(1);
        let mut first = [0u32; 3];
        for _ in 0..3000 {
            let to = Destination::Partition(Partition(2));
            let targets = coordinators(Some(&routes), to, Order::Spread, &random, |_| false);
            first[usize::from(ports(&targets)[0] - 1002)] += 1;
        }
        assert!(first.iter().all(|count| (900..1100).contains(count)), "{first:?}");
    }

    #[test]
    fn those_that_fail_go_last_but_are_not_left_out() {
        let routes = Arc::new(Routes::check(table(1, 4, 16, 3)).expect("well formed"));
        let random = Random::from_seed(1);
        let to = Destination::Partition(Partition(0));
        let targets = coordinators(Some(&routes), to, Order::Best, &random, |addr| addr.port() == 1000);
        assert_eq!(ports(&targets), [1001, 1002, 1003, 1000]);
        let targets = coordinators(Some(&routes), to, Order::Best, &random, |_| true);
        assert_eq!(ports(&targets), [1000, 1001, 1002, 1003]);
    }

    #[test]
    fn a_partition_beyond_the_table_goes_to_any_member() {
        let routes = Arc::new(Routes::check(table(1, 3, 16, 3)).expect("well formed"));
        let random = Random::from_seed(1);
        for to in [Destination::Partition(Partition(16)), Destination::Any] {
            assert_eq!(coordinators(Some(&routes), to, Order::Best, &random, |_| false).len(), 3);
        }
        assert!(coordinators(None, Destination::Any, Order::Best, &random, |_| false).is_empty());
    }

    proptest! {
        #[test]
        fn a_key_goes_to_the_primaries_of_its_partition(key: Vec<u8>, partitions in 1u16..500) {
            let routes = Arc::new(Routes::check(table(1, 9, partitions, 3)).expect("well formed"));
            let (key, sorted) = (Key::plain(&key), Key::new(BucketId::DEFAULT, &key, b"sort key"));
            let partition = Partition::of(key_hash(&key), partitions);
            let targets =
                coordinators(Some(&routes), Destination::Key(&key), Order::Best, &Random::from_seed(0), |_| false);
            let expected = [0, 1, 2].map(|i| 1000 + (partition.0 + i) % 9);
            prop_assert_eq!(&ports(&targets)[..3], expected);
            let to = Destination::Key(&sorted);
            let targets = coordinators(Some(&routes), to, Order::Best, &Random::from_seed(0), |_| false);
            prop_assert_eq!(&ports(&targets)[..3], expected, "all of a partition key goes to one partition");
        }

        #[test]
        fn any_table_is_checked_without_a_panic(
            version in 0u64..3, partitions in 0u16..5, n in 0u8..5, primaries in proptest::collection::vec(0u16..6, 0..20),
        ) {
            let bent = RouteTable { version: LayoutVersion(version), partitions, n, primaries, ..table(1, 4, 4, 3) };
            if let Ok(routes) = Routes::check(bent) {
                let routes = Arc::new(routes);
                let targets = coordinators(
                    Some(&routes), Destination::Key(b"k"), Order::Spread, &Random::from_seed(0), |_| false,
                );
                prop_assert!(targets.len() >= usize::from(n));
            }
        }
    }
}

//! No request, however odd, reaches a panic, and each is answered: arbitrary requests of clients and of a legal peer to a small cluster of
//! real nodes. A panic in any task ends the simulation, and with it the test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use quorate_client::options::RequestOptions;
use quorate_client::{Blind, Error};
use quorate_core::chain::Ballot;
use quorate_core::context_keys::{ContextKeys, SECRET_LEN, taken_apart};
use quorate_core::layout::{Layout, LayoutHash, Member};
use quorate_core::merkle::Leaves;
use quorate_core::record::Record;
use quorate_core::version::{Actor, Context, Dot};
use quorate_node::beacons::Beacons;
use quorate_node::peer_wire::heal::{Exchange, Groups, HealRequest, LeafSet, List, Offer, Recount, Roots, Sum};
use quorate_node::peer_wire::{
    ALPN_PEER, AcceptFirstLayout, AcceptLayout, Fetch, FetchHint, FetchRange, Forward, GetLayout, GetLayouts, HandOver,
    Heal, Hello, KeepHint, Label, LayoutState, LearnLayouts, LiveLayouts, PeerBody, PeerReply, PrepareLayout,
    Replicate, ShareKeys, class,
};
use quorate_node::peers::{Peers, PeersConfig};
use quorate_node::request_memory::{Pools, RequestMemory};
use quorate_node::store::{Committer, Durability, Executor, MemoryStore, Store};
use quorate_sim::cluster::{CLUSTER, ClientMachine, Cluster, Machine, Process, name};
use quorate_sim::disk::Crash;
use quorate_sim::interpose;
use quorate_sim::plan::{Mechanisms, Plan};
use quorate_sim::socket::SimRuntime;
use quorate_sim::trace::Trace;
use quorate_sim::workload;
use quorate_transport::quic;
use quorate_transport::tls;
use quorate_transport::{Link, Seams};
use quorate_wire::Quorum;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId, Partition};
use quorate_wire::random::Random;
use quorate_wire::{
    BucketId, CONTEXT_LEN_MAX, KEY_LEN_MAX, Key, KeyPrefix, LayoutCommand, Read, RepairCommand, Reply, Request,
    RequestBody, Scan, ScanPosition, VALUE_LEN_MAX, Write,
};
use tokio::sync::mpsc;

const NODES: u8 = 5;
/// Its certificate is the legal peer's.
const PLAYED: u8 = 4;
const PARTITIONS: u16 = 8;

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn odd_requests_are_answered_and_reach_no_panic(
        stand_ins in any::<bool>(),
        early in vec(before_a_layout(), 0..10),
        steps in vec(step(), 100..250),
    ) {
        let ended = played(stand_ins, early, steps);
        prop_assert!(ended.is_ok(), "{}", ended.unwrap_err());
    }
}

/// A sloppy write is minted by a fallback; its repetition is strict, at a node that may not coordinate such a write.
#[test]
fn a_strict_repetition_of_a_write_that_a_fallback_has_minted_is_answered() {
    let write = |at, strict, first_sent_ms| {
        Step::Client(Asked {
            at,
            admin: false,
            timeout_ms: 3000,
            body: Body::Write {
                key: Key::plain("k1"),
                value: Some(blob("v")),
                context: Shown::Nothing,
                op: 3,
                first_sent_ms,
                w: Some(Quorum::One),
                strict,
                explain: true,
            },
        })
    };
    // Of five nodes three own the key; whoever is left stands in.
    for owners in [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]] {
        let left = (0..PLAYED).find(|node| !owners.contains(node)).expect("one of four");
        let mut steps: Vec<Step> = owners.into_iter().map(Step::Down).collect();
        steps.extend([
            Step::Wait(12_000),
            write(left, false, None),
            write(left, true, Some(500)),
            write(left, true, None),
        ]);
        steps.extend([write(left, false, Some(1000)), Step::Wait(1000)]);
        played(true, Vec::new(), steps).expect("every request is answered");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Client(Asked),
    Peer { to: u8, body: Said },
    Down(u8),
    Up(u8),
    Wait(u32),
}

#[derive(Debug, Clone)]
struct Asked {
    at: u8,
    admin: bool,
    timeout_ms: u32,
    body: Body,
}

/// What a client asks for; contexts are made when they are sent.
#[derive(Debug, Clone)]
enum Body {
    Write {
        key: Key,
        value: Option<Blob>,
        context: Shown,
        op: u128,
        first_sent_ms: Option<u64>,
        w: Option<Quorum>,
        strict: bool,
        explain: bool,
    },
    Other(RequestBody),
}

/// The context that a write is sent with.
#[derive(Debug, Clone)]
enum Shown {
    Nothing,
    /// One that was given to a client before, of whatever key.
    Given(Index),
    Flipped(Index, Index),
    /// The inside of a given one.
    Unsealed(Index),
    Raw(Vec<u8>),
    TooLong,
}

/// What the legal peer asks for.
#[derive(Debug, Clone)]
enum Said {
    Plain(PeerBody),
    Forward(Body),
    /// The layout that the node has accepted, with keys of its own making.
    SameLayout(ContextKeys),
}

fn blob(text: &str) -> Blob {
    Blob::copy_from(text.as_bytes())
}

fn node(number: u8) -> NodeId {
    NodeId::new(&name(number)).expect("legal")
}

fn key() -> impl Strategy<Value = Key> {
    let other = (0..3u32, 0..4u8, select(vec!["", "s", "t"])).prop_map(|(bucket, number, sort_key)| {
        Key::new(BucketId(bucket), format!("k{number}").as_bytes(), sort_key.as_bytes())
    });
    prop_oneof![
        12 => (0..4u8).prop_map(|number| Key::plain(format!("k{number}"))),
        1 => Just(Key::plain("")),
        1 => Just(Key::plain([b'k'; KEY_LEN_MAX])),
        1 => Just(Key::plain([b'k'; KEY_LEN_MAX + 1])),
        1 => vec(any::<u8>(), 1..20).prop_map(Key::plain),
        2 => other,
    ]
}

/// Peers may send bytes that are no key.
fn key_bytes() -> impl Strategy<Value = Blob> {
    prop_oneof![
        12 => key().prop_map(Blob::from),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| Blob(bytes.into())),
    ]
}

fn prefix() -> impl Strategy<Value = KeyPrefix> {
    prop_oneof![
        4 => Just(KeyPrefix::default()),
        4 => key().prop_map(|key| KeyPrefix::new(key.parts().bucket(), &key.partition_key())),
        1 => key().prop_map(|key| KeyPrefix::of_partition_key(key.parts().bucket(), &key.partition_key(), b"s")),
    ]
}

fn quorum() -> impl Strategy<Value = Option<Quorum>> {
    let odd = select(vec![0u8, 1, 2, 3, 4, 255]).prop_map(Quorum::Exactly);
    option::of(prop_oneof![Just(Quorum::One), Just(Quorum::Majority), Just(Quorum::All), odd])
}

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        6 => Just(Shown::Nothing),
        6 => any::<Index>().prop_map(Shown::Given),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(which, bit)| Shown::Flipped(which, bit)),
        1 => any::<Index>().prop_map(Shown::Unsealed),
        1 => vec(any::<u8>(), 0..80).prop_map(Shown::Raw),
        1 => Just(Shown::TooLong),
    ]
}

fn write() -> impl Strategy<Value = Body> {
    let value = prop_oneof![
        3 => Just(None),
        9 => (0..3u8).prop_map(|number| Some(blob(&format!("v{number}")))),
        1 => Just(Some(blob(""))),
        1 => Just(Some(Blob(vec![7; VALUE_LEN_MAX + 1].into()))),
    ];
    let first_sent = select(vec![None, None, Some(0), Some(500), Some(40_000), Some(u64::MAX)]);
    (key(), value, shown(), 0..6u128, first_sent, quorum(), any::<bool>(), any::<bool>()).prop_map(
        |(key, value, context, op, first_sent_ms, w, strict, explain)| Body::Write {
            key,
            value,
            context,
            op,
            first_sent_ms,
            w,
            strict,
            explain,
        },
    )
}

fn layout_command() -> impl Strategy<Value = LayoutCommand> {
    let small = || option::of(select(vec![0u8, 1, 3, 255]));
    let partitions = option::of(select(vec![0u16, 1, 8, u16::MAX]));
    let zone = select(vec![String::new(), "z".to_owned(), "z".repeat(65)]);
    prop_oneof![
        2 => Just(LayoutCommand::Show),
        1 => (0..9u8, any::<u16>(), zone, select(vec![0u32, 1, u32::MAX])).prop_map(|(number, port, zone, weight)| {
            let addr = SocketAddr::from(([192, 168, 9, number], port));
            LayoutCommand::StageJoin { node: node(number), addr, zone, weight }
        }),
        2 => (small(), partitions, small(), small())
            .prop_map(|(n, partitions, r, w)| LayoutCommand::StageSettings { n, partitions, r, w }),
        1 => Just(LayoutCommand::Revert),
        1 => Just(LayoutCommand::History),
        1 => (0..9u8).prop_map(|number| LayoutCommand::StageLeave { node: node(number) }),
        1 => (0..9u8, 0..9u8, any::<u16>()).prop_map(|(old, new, port)| {
            let addr = SocketAddr::from(([192, 168, 9, new], port));
            LayoutCommand::StageReplace { old: node(old), new: node(new), addr }
        }),
        1 => (0..9u8, select(vec![0u32, 1, 2, u32::MAX]))
            .prop_map(|(number, weight)| LayoutCommand::StageWeight { node: node(number), weight }),
        1 => (0..9u8, select(vec![String::new(), "z".to_owned(), "z".repeat(65)]))
            .prop_map(|(number, zone)| LayoutCommand::StageZone { node: node(number), zone }),
        1 => select(vec![0u64, 1, 2, u64::MAX])
            .prop_map(|version| LayoutCommand::Apply { version: LayoutVersion(version) }),
        1 => select(vec![None, Some(0u64), Some(1), Some(2), Some(u64::MAX)])
            .prop_map(|version| LayoutCommand::Abort { version: version.map(LayoutVersion) }),
        1 => Just(LayoutCommand::RotateContextKey),
    ]
}

fn scan() -> impl Strategy<Value = Scan> {
    let limit = select(vec![0u32, 1, 3, 10_000, 10_001, u32::MAX]);
    (partition(), option::of(key_bytes()), partition(), limit, prefix(), any::<bool>(), quorum()).prop_map(
        |(partition, after, until, limit, prefix, keys_only, r)| {
            let from = ScanPosition { partition, after };
            Scan { from, until, limit, prefix, keys_only, r }
        },
    )
}

fn look() -> impl Strategy<Value = RequestBody> {
    let repair = select(vec![RepairCommand::Start, RepairCommand::Status, RepairCommand::Pause, RepairCommand::Resume]);
    prop_oneof![
        6 => (key(), quorum(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(key, r, strict, monotonic, explain)| {
            RequestBody::Read(Read { key, r, strict, monotonic, explain })
        }),
        4 => scan().prop_map(RequestBody::Scan),
        1 => Just(RequestBody::Route),
        1 => key().prop_map(|key| RequestBody::Locate { key }),
        1 => Just(RequestBody::Status),
        1 => repair.prop_map(RequestBody::Repair),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        10 => write(),
        8 => look().prop_map(Body::Other),
        2 => layout_command().prop_map(|command| Body::Other(RequestBody::Layout(command))),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    (0..PLAYED, any::<bool>(), select(vec![0u32, 1, 20, 300, 2000]), body())
        .prop_map(|(at, admin, timeout_ms, body)| Asked { at, admin, timeout_ms, body })
}

/// Nothing that would accept a layout, which is for ever.
fn before_a_layout() -> impl Strategy<Value = Step> {
    let harmless = |body: &Body| !matches!(body, Body::Other(RequestBody::Layout(LayoutCommand::Apply { .. })));
    asked().prop_filter("an apply is for ever", move |asked| harmless(&asked.body)).prop_map(Step::Client)
}

fn partition() -> impl Strategy<Value = Partition> {
    prop_oneof![8 => 0..PARTITIONS, 1 => Just(PARTITIONS), 1 => Just(u16::MAX)].prop_map(Partition)
}

fn label() -> impl Strategy<Value = Label> {
    let version =
        || prop_oneof![8 => Just(1u64), 1 => Just(0), 1 => Just(2), 1 => Just(u64::MAX)].prop_map(LayoutVersion);
    (version(), version()).prop_map(|(low, high)| Label { low, high })
}

fn dot() -> impl Strategy<Value = Dot> {
    (0..6u8, 0..3u64, select(vec![1u64, 2, 3, 1 << 40, u64::MAX - 1, u64::MAX]))
        .prop_map(|(number, incarnation, counter)| Dot { actor: Actor { node: node(number), incarnation }, counter })
}

/// Mostly records that a node could have, with dots of everybody's actors; sometimes bytes.
fn record() -> impl Strategy<Value = Blob> {
    let writes = vec((dot(), 0..6u128, option::of(0..3u8), option::of(dot())), 0..5);
    let made = writes.prop_map(|writes| {
        let mut record = Record::default();
        for (dot, op, value, seen) in writes {
            let mut cause = Context::new();
            seen.into_iter().for_each(|seen| _ = cause.insert(seen));
            record.mint(dot, OpId(op), value.map(|value| blob(&format!("r{value}"))), &cause);
        }
        Blob(record.encode())
    });
    prop_oneof![9 => made, 1 => vec(any::<u8>(), 0..40).prop_map(|bytes| Blob(bytes.into()))]
}

fn sum() -> impl Strategy<Value = Option<Sum>> {
    option::of(any::<u128>().prop_map(Sum))
}

fn leaves() -> impl Strategy<Value = LeafSet> {
    prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(|leaves| LeafSet(leaves.into_iter().collect())),
        Just(LeafSet(Leaves::ALL))
    ]
}

fn heal() -> impl Strategy<Value = HealRequest> {
    let offer =
        (key_bytes(), sum(), option::of(record())).prop_map(|(key, digest, record)| Offer { key, digest, record });
    prop_oneof![
        vec((partition(), sum()), 0..20).prop_map(|roots| HealRequest::Roots(Roots { roots })),
        (partition(), vec(sum(), 300..301)).prop_map(|(partition, sums)| HealRequest::Roots(Roots {
            roots: sums.into_iter().map(|sum| (partition, sum)).collect()
        })),
        (partition(), prop_oneof![vec(sum(), 16..17), vec(sum(), 0..20)])
            .prop_map(|(partition, groups)| HealRequest::Groups(Groups { partition, groups })),
        (partition(), leaves(), option::of(key_bytes()))
            .prop_map(|(partition, leaves, after)| HealRequest::List(List { partition, leaves, after })),
        (partition(), vec(offer, 0..5))
            .prop_map(|(partition, offers)| HealRequest::Exchange(Exchange { partition, offers })),
        (partition(), leaves()).prop_map(|(partition, leaves)| HealRequest::Recount(Recount { partition, leaves })),
    ]
}

fn context_keys() -> impl Strategy<Value = ContextKeys> {
    vec((select(vec![0u32, 1, 2, 9, u32::MAX]), any::<u8>()), 0..4).prop_map(|keys| {
        let keys: Vec<_> =
            keys.into_iter().map(|(number, secret)| (number, Blob(vec![secret; SECRET_LEN].into()))).collect();
        keys.try_into().expect("few, and of the right length")
    })
}

fn version() -> impl Strategy<Value = LayoutVersion> {
    select(vec![0u64, 1, 2, 3, u64::MAX]).prop_map(LayoutVersion)
}

fn ballot() -> impl Strategy<Value = Ballot> {
    // None that later ones could not outrun: whoever has a node's certificate may not stop all decisions either, but that is for rights.
    (select(vec![0u64, 1, 2, 1000]), 0..6u8, any::<u64>()).prop_map(|(round, proposer, nonce)| Ballot {
        round,
        proposer: node(proposer),
        nonce,
    })
}

/// One that cannot follow on the cluster's own, or has problems of its own: what it names is wrong in some way.
fn odd_layout() -> impl Strategy<Value = Layout> {
    let member = (0..9u8, any::<u16>(), select(vec![0u32, 1, u32::MAX])).prop_map(|(number, port, weight)| Member {
        node: node(number),
        disk: DiskId(number.into()),
        token_seed: node(number),
        addr: SocketAddr::from(([192, 168, 9, number], port)),
        zone: "z".into(),
        weight,
    });
    let small = || select(vec![0u8, 1, 3, 255]);
    (version(), any::<[u8; 32]>(), vec(member, 0..6), small(), partition(), small(), small()).prop_map(
        |(version, previous, members, n, Partition(partitions), r, w)| Layout {
            cluster: CLUSTER,
            version,
            previous: LayoutHash(previous),
            members,
            n,
            partitions,
            r,
            w,
        },
    )
}

fn of_layouts() -> impl Strategy<Value = PeerBody> {
    prop_oneof![
        (version(), any::<[u8; 32]>(), ballot()).prop_map(|(version, previous, ballot)| {
            PeerBody::PrepareLayout(PrepareLayout { version, previous: LayoutHash(previous), ballot })
        }),
        (ballot(), odd_layout()).prop_map(|(ballot, layout)| PeerBody::AcceptLayout(AcceptLayout { ballot, layout })),
        (vec(odd_layout(), 0..5), version()).prop_map(|(layouts, oldest)| {
            // A node believes what a peer says was chosen: no legal peer says that every change is over.
            let oldest = oldest.min(LayoutVersion(1));
            PeerBody::LearnLayouts(LearnLayouts { chain: LiveLayouts { layouts, oldest } })
        }),
        version().prop_map(|after| PeerBody::GetLayouts(GetLayouts { after })),
    ]
}

fn peer_body() -> impl Strategy<Value = PeerBody> {
    let limit = select(vec![0u32, 1, 3, 10_000, u32::MAX]);
    prop_oneof![
        4 => (label(), key_bytes(), record()).prop_map(|(label, key, record)| PeerBody::Replicate(Replicate { label, key, record })),
        4 => (label(), 0..6u8, key_bytes(), record())
            .prop_map(|(label, target, key, record)| PeerBody::Hint(KeepHint { label, target: node(target), key, record })),
        3 => (label(), vec((key_bytes(), record()), 0..4)).prop_map(|(label, entries)| PeerBody::Handoff(HandOver { label, entries })),
        2 => (label(), key_bytes(), option::of(any::<u128>()), any::<bool>())
            .prop_map(|(label, key, held, durable)| PeerBody::Fetch(Fetch { at: label.high, under: label.high, key, held, durable, r: 2 })),
        2 => key_bytes().prop_map(|key| PeerBody::FetchHint(FetchHint { key })),
        3 => (label(), partition(), option::of(key_bytes()), limit)
            .prop_map(|(label, partition, after, limit)| PeerBody::FetchRange(FetchRange { at: label.high, partition, after, limit, r: 2 })),
        8 => (label(), heal()).prop_map(|(label, request)| PeerBody::Heal(Heal { label, request })),
        1 => Just(PeerBody::LayoutState(GetLayout)),
        3 => of_layouts(),
        1 => context_keys().prop_map(|keys| PeerBody::ContextKeys(ShareKeys { keys })),
        1 => any::<u64>().prop_map(|number| PeerBody::Hello(hello(number, SocketAddr::from(([1, 2, 3, 4], 5)), DiskId(1)))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![
        8 => peer_body().prop_map(Said::Plain),
        4 => body().prop_map(Said::Forward),
        1 => context_keys().prop_map(Said::SameLayout),
    ];
    prop_oneof![
        40 => asked().prop_map(Step::Client),
        40 => (0..PLAYED, said).prop_map(|(to, body)| Step::Peer { to, body }),
        1 => (0..PLAYED).prop_map(Step::Down),
        2 => (0..PLAYED).prop_map(Step::Up),
        1 => select(vec![100u32, 3000, 8000]).prop_map(Step::Wait),
    ]
}

/// Plays it on a thread of its own, as every simulation.
fn played(stand_ins: bool, early: Vec<Step>, steps: Vec<Step>) -> Result<(), String> {
    let life = thread::Builder::new().stack_size(16 << 20).spawn(move || play(stand_ins, early, steps));
    life.expect("the system gives a thread").join().map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
    })?
}

fn play(stand_ins: bool, early: Vec<Step>, steps: Vec<Step>) -> Result<(), String> {
    let _guard = interpose::enter(1);
    let mut plan = Plan::draw(1, &BTreeSet::new()).plain();
    (plan.zones, plan.n, plan.partitions) = ((0..NODES).collect(), 3, PARTITIONS);
    plan.mechanisms = Mechanisms { fallbacks: stand_ins, hints: stand_ins, ..Mechanisms::ALL };
    (plan.network.latency_min_ms, plan.network.latency_max_ms) = (1, 1);
    let mut cluster = Cluster::new(&plan, Trace::new());
    let (down, ended) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(None)));
    let (clients, machines) = (cluster.clients().clone(), cluster.machines().to_vec());
    let player = Player { clients, machines, down: down.clone(), given: Vec::new(), random: Random::from_seed(1) };
    let tell = ended.clone();
    cluster.run_clients(async move {
        let outcome = player.play(plan, early, steps).await;
        *tell.lock().expect("not poisoned") = Some(outcome);
        Ok(())
    });
    loop {
        for node in 0..NODES {
            let down = down.lock().expect("not poisoned").contains(&node);
            match cluster.process(node) {
                Process::Running if down => cluster.crash(node, Crash::Clean),
                Process::Down if !down => cluster.start(node),
                Process::Ended(why) if !why.is_empty() => return Err(format!("{} has ended: {why}", name(node))),
                Process::Running | Process::Down | Process::Ended(_) => {}
            }
        }
        cluster.step().map_err(|error| error.to_string())?;
        if let Some(outcome) = ended.lock().expect("not poisoned").take() {
            return outcome;
        }
        if cluster.elapsed() > Duration::from_secs(20_000) {
            return Err("a request has no answer".into());
        }
    }
}

struct Player {
    clients: ClientMachine,
    machines: Vec<Machine>,
    down: Arc<Mutex<BTreeSet<u8>>>,
    /// Contexts that clients were given.
    given: Vec<Bytes>,
    random: Random,
}

impl Player {
    async fn play(mut self, plan: Plan, early: Vec<Step>, steps: Vec<Step>) -> Result<(), String> {
        let why = |error: Error| error.to_string();
        let timeout = Duration::from_secs(5);
        // Nobody can be connected to before a node listens.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let user = self.clients.connect(1, false, timeout).await.map_err(why)?;
        let admin = self.clients.connect(2, true, timeout).await.map_err(why)?;
        for step in early {
            if let Step::Client(asked) = step {
                self.ask(if asked.admin { &admin } else { &user }, asked).await?;
            }
        }
        for machine in &self.machines {
            let revert = RequestBody::Layout(LayoutCommand::Revert);
            admin.request_at(machine.addr(), revert, RequestOptions::default()).await.map_err(why)?;
        }
        workload::bootstrap(&self.clients, &self.machines, &plan, Duration::from_secs(60)).await?;
        self.order(PLAYED, true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let peers = self.peer().await?;
        for step in steps {
            match step {
                Step::Client(asked) => self.ask(if asked.admin { &admin } else { &user }, asked).await?,
                Step::Peer { to, body } => self.tell(&peers, to, body).await?,
                Step::Down(node) => self.order(node, true),
                Step::Up(node) => self.order(node, false),
                Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
            }
        }
        // What was said goes on having effects: hints go home, replicas compare, the scrub reads everything.
        peers.shutdown();
        (0..NODES).for_each(|node| self.order(node, false));
        tokio::time::sleep(Duration::from_secs(40)).await;
        for machine in &self.machines {
            admin.status_at(machine.addr()).await.map_err(|error| format!("{}: {error}", machine.node()))?;
        }
        user.put("at the end", "v", Blind).await.map_err(|error| format!("an ordinary write: {error}"))?;
        let read = user.get("at the end").await.map_err(|error| format!("an ordinary read: {error}"))?;
        if read.siblings() != [Bytes::from("v")] {
            return Err(format!("an ordinary read shows {:?}", read.siblings()));
        }
        Ok(())
    }

    fn order(&self, node: u8, down: bool) {
        let mut ordered = self.down.lock().expect("not poisoned");
        if down {
            ordered.insert(node)
        } else {
            ordered.remove(&node)
        };
    }

    async fn ask(&mut self, client: &quorate_client::Client, asked: Asked) -> Result<(), String> {
        let (addr, body) = (self.machines[usize::from(asked.at)].addr(), self.resolved(asked.body));
        let options = RequestOptions::default().timeout(Duration::from_millis(asked.timeout_ms.into()));
        match client.request_at(addr, body.clone(), options).await {
            Ok(Reply::Written(written)) => self.give(written.context.0),
            Ok(Reply::Found(found)) => self.give(found.context.0),
            Ok(_) => {}
            Err(Error::Codec { why }) => return Err(format!("no answer that is understood to {body:?}: {why}")),
            Err(_) => {}
        }
        Ok(())
    }

    fn give(&mut self, context: Bytes) {
        if self.given.len() < 64 {
            self.given.push(context);
        } else {
            let at = self.random.below(64) as usize;
            self.given[at] = context;
        }
    }

    fn resolved(&self, body: Body) -> RequestBody {
        match body {
            Body::Other(body) => body,
            Body::Write { key, value, context, op, first_sent_ms, w, strict, explain } => {
                let given = |which: Index| (!self.given.is_empty()).then(|| which.get(&self.given).clone());
                let context = match context {
                    Shown::Nothing => None,
                    Shown::Given(which) => given(which),
                    Shown::Flipped(which, bit) => given(which).map(|context| {
                        let (mut bytes, bit) = (context.to_vec(), bit.index(context.len() * 8));
                        bytes[bit / 8] ^= 1 << (bit % 8);
                        bytes.into()
                    }),
                    Shown::Unsealed(which) => {
                        given(which).map(|context| taken_apart(&context).expect("a node has given it")[1].clone())
                    }
                    Shown::Raw(bytes) => Some(bytes.into()),
                    Shown::TooLong => Some(vec![2; CONTEXT_LEN_MAX + 1].into()),
                };
                let (context, op_id) = (context.map(Blob), OpId(op));
                RequestBody::Write(Write { key, value, context, op_id, first_sent_ms, w, strict, explain })
            }
        }
    }

    async fn tell(&self, peers: &Peers, to: u8, said: Said) -> Result<(), String> {
        let timeout = Duration::from_secs(5);
        let call = |class, body| peers.call(node(to), class, 1, body, timeout);
        let (class, body) = match said {
            Said::Plain(body) => (class::BULK, body),
            Said::Forward(body) => {
                let request = Request { layout: LayoutVersion(1), request_id: 1, body: self.resolved(body) };
                (class::FORWARD, PeerBody::Forward(Forward { request }))
            }
            Said::SameLayout(keys) => match call(class::CONTROL, PeerBody::LayoutState(GetLayout)).await {
                Ok(PeerReply::LayoutState(LayoutState { accepted: Some(layout), .. })) => {
                    (class::CONTROL, PeerBody::AcceptFirstLayout(AcceptFirstLayout { layout, keys }))
                }
                _ => return Ok(()),
            },
        };
        let up = !self.down.lock().expect("not poisoned").contains(&to);
        match call(class, body.clone()).await {
            Ok(_) => Ok(()),
            // Of a node that has been started a moment ago nothing can be demanded.
            Err(_) if !up || !peers.connected(node(to)) => Ok(()),
            Err(error) => Err(format!("no answer to {body:?}: {error}")),
        }
    }

    /// A pool of connections whose certificate is a member's.
    async fn peer(&self) -> Result<Peers, String> {
        let machine = &self.machines[usize::from(PLAYED)];
        let seams = Seams {
            runtime: Arc::new(SimRuntime),
            random: Random::from_seed(2),
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
            wall_clock: Arc::new(|| {
                std::time::UNIX_EPOCH + turmoil::since_epoch().unwrap_or(Duration::from_secs(interpose::EPOCH_SECS))
            }),
        };
        let addr = SocketAddr::new(turmoil::lookup("clients"), 0);
        let socket = self.clients.cable.bind(addr).await.map_err(|error| error.to_string())?;
        let own = machine.credentials();
        let endpoint = quic::endpoint(&seams, socket, None).map_err(|error| error.to_string())?;
        let at = endpoint.local_addr().map_err(|error| error.to_string())?;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let fatal = Arc::new(|why| panic!("{why}"));
        let every = Duration::from_secs(1);
        let committer = Committer::start(store.clone(), Executor::Inline, Durability::Group, every, fatal);
        let peers = Peers::start(PeersConfig {
            me: machine.node(),
            cluster: CLUSTER,
            endpoint,
            dial: tls::client_config(&seams, &own, ALPN_PEER, Link::Peer).map_err(|error| error.to_string())?,
            random: seams.random.fork(),
            hello: Arc::new(move |_| hello(99, at, DiskId(99))),
            beacons: Beacons::open(&*store, 99, committer),
            check: Arc::new(|_| Ok(())),
            datagrams: mpsc::channel(16).0,
            pools: Pools::new(RequestMemory::default()),
        });
        for machine in &self.machines[..usize::from(PLAYED)] {
            peers.learn(machine.node(), machine.addr());
        }
        Ok(peers)
    }
}

fn hello(number: u64, addr: SocketAddr, disk: DiskId) -> Hello {
    Hello {
        cluster: ClusterId(CLUSTER.0),
        node: node(PLAYED),
        disk,
        boot: number,
        addr,
        layout: LayoutVersion(1),
        first_layout: None,
        release: "a test".into(),
        life: number,
        beacon: 0,
        remembers: Vec::new(),
    }
}

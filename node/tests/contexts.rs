//! Contexts cannot be made up (rule V5), over real nodes: what no node has issued for a key is refused and changes nothing; what one
//! has issued is taken, also after restarts and rotations.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::Blind;
use quorate_client::error::Error;
use quorate_core::context_keys::{ContextKeys, KEYS_MAX, taken_apart};
use quorate_core::version::{Actor, Context, Dot};
use quorate_node::layouts::{FIRST_KEY, stored_context_keys};
use quorate_node::store::{Store, Tree};
use quorate_wire::Quorum;
use quorate_wire::codec::{self, Blob};
use quorate_wire::ids::{ClusterId, LayoutVersion, OpId};
use quorate_wire::{Key, LayoutCommand, LayoutReport, NotApplied, Read, Reply, RequestBody, Write};

use cluster::{CLUSTER, Cluster, RETRIES, node, options};

/// Two writes with contexts of thousands of invented dots, at the same moment, to two coordinators: merged, they would be more than a
/// key can ever be written with again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_contexts_do_not_make_a_key_unusable() {
    let cluster = Cluster::start(3).await;
    let (key, db) = ("shared", cluster.client(false).await);
    let written = db.put(key, "a value of somebody's", Blind).await.expect("written");
    let genuine = written.context().to_bytes();
    let invented = |from: u64| {
        let mut context = Context::new();
        for incarnation in from..from + 5_000 {
            let actor = Actor { node: node(9), incarnation };
            context.insert(Dot { actor, counter: 1 });
        }
        context
    };
    for round in 0..FORGERIES {
        let (one, two) = (forged(round, &invented(0), key, &genuine), forged(round, &invented(10_000), key, &genuine));
        let (one, two) = tokio::join!(cluster.write_at(0, key, "x", one), cluster.write_at(1, key, "x", two));
        bad_context(one);
        bad_context(two);
    }
    let read = db.get(key).r(Quorum::All).await.expect("readable");
    assert_eq!(read.siblings(), [Bytes::from("a value of somebody's")]);
    assert_eq!(read.context().to_bytes(), genuine, "nothing was claimed of it");
    db.put(key, "again", Blind).await.expect("writable");
    db.delete(key, Blind).await.expect("deletable");
}

/// A client that may write a key claims to have seen what the key's other coordinator will mint next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_made_up_context_does_not_swallow_what_others_write_later() {
    let cluster = Cluster::start(3).await;
    let key = "k";
    let first = cluster.write_at(0, key, "first", None).await.expect("written");
    // Actors are in every context.
    let [_, body, _] = taken_apart(&first).expect("a context");
    let seen = Context::open(&body, CLUSTER, &Key::plain(key)).expect("the key's");
    let mut claim = seen.clone();
    for actor in seen.actors() {
        for counter in 2..1000 {
            claim.insert(Dot { actor, counter });
        }
    }
    for round in 0..FORGERIES {
        bad_context(cluster.write_at(1, key, "eve", forged(round, &claim, key, &first)).await);
    }
    cluster.write_at(0, key, "joe", Some(first)).await.expect("acknowledged");
    let db = cluster.client(false).await;
    let read = db.get(key).r(Quorum::All).await.expect("readable");
    assert_eq!(read.siblings(), [Bytes::from("joe")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_that_was_changed_anywhere_is_refused() {
    let cluster = Cluster::start(1).await;
    let genuine = cluster.write_at(0, "k", "first", None).await.expect("written");
    let of_other = cluster.write_at(0, "other", "first", None).await.expect("written");
    let elsewhere = ContextKeys::first([1; 32]).seal(&Context::new(), ClusterId(8), &Key::plain("k"));
    bad_context(cluster.write_at(0, "k", "x", Some(of_other)).await);
    bad_context(cluster.write_at(0, "k", "x", Some(elsewhere)).await);
    for at in 0..genuine.len() {
        let mut changed = genuine.to_vec();
        changed[at] ^= 1 << (at % 8);
        bad_context(cluster.write_at(0, "k", "x", Some(changed.into())).await);
        bad_context(cluster.write_at(0, "k", "x", Some(genuine.slice(..at))).await);
    }
    let db = cluster.client(false).await;
    let read = db.get("k").await.expect("readable");
    assert_eq!(read.siblings(), [Bytes::from("first")]);
    cluster.write_at(0, "k", "second", Some(genuine)).await.expect("taken");
    assert_eq!(db.get("k").await.expect("readable").siblings(), [Bytes::from("second")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_outlives_a_restart_of_every_node() {
    let mut cluster = Cluster::start(3).await;
    let context = cluster.write_at(0, "k", "first", None).await.expect("written");
    for at in 0..3 {
        cluster.stop(at).await;
    }
    for at in 0..3 {
        cluster.run(at).await;
    }
    cluster.settled().await;
    for at in 0..3 {
        cluster.write_at(at, "k", "second", Some(context.clone())).await.expect("taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_reaches_every_node_and_old_contexts_are_taken_until_their_key_is_retired() {
    let cluster = Cluster::start(3).await;
    let old = cluster.write_at(0, "k", "first", None).await.expect("written");
    for rotation in 1..KEYS_MAX {
        let report = cluster.rotate(rotation % 3).await;
        assert_eq!((report.holding.len(), report.missing.len()), (3, 0), "{report:?}");
        assert_eq!((report.context_keys.len(), report.warnings.len()), (rotation + 1, 0), "{report:?}");
        for issuer in 0..3 {
            let new = cluster.read_at(issuer, "k").await;
            let taker = (issuer + 1) % 3;
            cluster.write_at(taker, "k", "x", Some(new)).await.expect("issued by another node");
            cluster.write_at(taker, "k", "y", Some(old.clone())).await.expect("issued under the first key");
        }
    }
    let report = cluster.rotate(0).await;
    assert_eq!(report.context_keys.len(), KEYS_MAX);
    assert!(report.warnings[0].contains("context key 1 ") && report.warnings[0].contains("retired"), "{report:?}");
    for at in 0..3 {
        let why = bad_context(cluster.write_at(at, "k", "z", Some(old.clone())).await);
        assert!(why.contains("retired"), "{why}");
    }
    let db = cluster.client(false).await;
    let context = quorate_client::Context::from_bytes(old).expect("it looks like one");
    let error = db.put("k", "z", context).await.expect_err("refused");
    assert!(!error.is_retryable() && !error.may_have_applied());
    assert!(error.to_string().contains("read the key again"), "{error}");
    let read = db.get("k").await;
    let seen = match &read {
        Ok(read) => read.context(),
        Err(error) => error.context().expect("siblings have one"),
    };
    db.put("k", "z", seen.clone()).await.expect("a fresh context");
}

/// It asks when it is shown a context under a key that it does not know, and has the key without being shown any soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_a_rotation_learns_of_it() {
    let mut cluster = Cluster::start(3).await;
    cluster.write_at(0, "k", "first", None).await.expect("written");
    cluster.stop(2).await;
    let report = cluster.rotate(0).await;
    assert_eq!((report.holding.len(), report.missing.len()), (2, 1), "{report:?}");
    assert_eq!(report.missing[0].0, node(2));
    let new = cluster.read_at(0, "k").await;
    cluster.run(2).await;
    cluster.settled().await;
    // The first ones may come before it can reach anybody.
    for _ in 0..RETRIES {
        match cluster.write_at(2, "k", "second", Some(new.clone())).await {
            Ok(_) => break,
            Err(Error::NotApplied(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
    }
    cluster.write_at(2, "k", "second", Some(new)).await.expect("it has asked");

    cluster.stop(1).await;
    cluster.rotate(2).await;
    cluster.run(1).await;
    cluster.all_hold(&[0, 1, 2], 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rotations_at_once_end_in_the_same_keys() {
    let cluster = Cluster::start(3).await;
    let old = cluster.write_at(1, "k", "first", None).await.expect("written");
    let (one, two) = tokio::join!(cluster.rotate(0), cluster.rotate(2));
    assert!(one.context_keys.len() >= 2 && two.context_keys.len() >= 2, "{one:?} {two:?}");
    cluster.all_hold(&[0, 1, 2], 3).await;
    for issuer in 0..3 {
        let new = cluster.read_at(issuer, "k").await;
        for taker in 0..3 {
            cluster.write_at(taker, "k", "x", Some(new.clone())).await.expect("known to all");
            cluster.write_at(taker, "k", "y", Some(old.clone())).await.expect("known to all");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_administrators_rotate_and_nobody_is_told_a_secret() {
    let cluster = Cluster::start(1).await;
    let joe = cluster.client(false).await;
    let rotate = RequestBody::Layout(LayoutCommand::RotateContextKey);
    let refused = joe.request_at(cluster.addr(0), rotate, options()).await;
    assert!(matches!(&refused, Err(Error::NotApplied(NotApplied::Forbidden { .. }))), "{refused:?}");
    cluster.rotate(0).await;
    let stored = cluster.stores[0].get(Tree::Meta, FIRST_KEY).expect("readable").expect("there");
    let secrets: Vec<(u32, Blob)> = stored_context_keys(&stored).expect("well formed").into();
    assert_eq!(secrets.len(), 2);
    let read = Read { key: Key::plain("k"), r: None, strict: false, monotonic: false, explain: true };
    for body in [
        RequestBody::Layout(LayoutCommand::Show),
        RequestBody::Route,
        RequestBody::Status,
        RequestBody::Locate { key: Key::plain("k") },
        RequestBody::Read(read),
    ] {
        let reply = joe.request_at(cluster.addr(0), body, options()).await.expect("answered");
        let (encoded, shown) = (codec::encode(&reply), format!("{reply:?}"));
        for (_, secret) in &secrets {
            assert!(!encoded.windows(secret.len()).any(|window| window == &secret[..]), "{reply:?}");
            let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&hex), "{reply:?}");
        }
    }
}

/// A context that claims `claim`, made by somebody who has been given a genuine one for the key, in one of [`FORGERIES`] ways.
fn forged(way: usize, claim: &Context, key: &str, genuine: &Bytes) -> Option<Bytes> {
    let body = claim.seal(CLUSTER, &Key::plain(key));
    let [head, _, tag] = taken_apart(genuine).expect("a context");
    let stranger = ContextKeys::first([0x5a; 32]).seal(claim, CLUSTER, &Key::plain(key));
    let [strange_head, _, strange_tag] = taken_apart(&stranger).expect("a context");
    Some(match way {
        0 => body,
        1 => [head, body, tag].concat().into(),
        2 => [head, body, Bytes::from(vec![0; 16])].concat().into(),
        3 => [head, body, strange_tag].concat().into(),
        _ => [strange_head, body, strange_tag].concat().into(),
    })
}

const FORGERIES: usize = 5;

fn bad_context<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::NotApplied(NotApplied::BadContext { why })) => why,
        other => panic!("it must be refused: {other:?}"),
    }
}

impl Cluster {
    /// Every node is an owner of everything.
    async fn start(count: usize) -> Self {
        let mut cluster = Self::new(count);
        for at in 0..count {
            cluster.run(at).await;
        }
        let admin = cluster.client(true).await;
        let joins = (0..count).map(|at| cluster.join(at));
        let n = Some(count as u8);
        let settings = LayoutCommand::StageSettings { n, partitions: Some(8), r: None, w: None };
        for command in joins.chain([settings, LayoutCommand::Apply { version: LayoutVersion(1) }]) {
            admin.request_at(cluster.addr(0), RequestBody::Layout(command), options()).await.expect("carried out");
        }
        cluster.settled().await;
        cluster
    }

    /// Every node that runs serves.
    async fn settled(&self) {
        let admin = self.client(true).await;
        for at in self.running() {
            while admin.status_at(self.addr(at)).await.map_or(true, |status| status.not_serving.is_some()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// These nodes come to know the same keys, so many of them.
    async fn all_hold(&self, nodes: &[usize], count: usize) {
        let admin = self.client(true).await;
        let mut seen = Vec::new();
        for _ in 0..RETRIES {
            seen.clear();
            for at in nodes {
                let shown = RequestBody::Layout(LayoutCommand::Show);
                let reply = admin.request_at(self.addr(*at), shown, options()).await.expect("shown");
                let Reply::Layout(report) = reply else { panic!("{reply:?}") };
                seen.push(report.context_keys);
            }
            let different: BTreeSet<_> = seen.iter().collect();
            if different.len() == 1 && seen[0].len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("they hold different keys, or not {count}: {seen:?}");
    }

    async fn write_at(&self, at: usize, key: &str, value: &str, context: Option<Bytes>) -> Result<Bytes, Error> {
        let body = RequestBody::Write(Write {
            key: Key::plain(key),
            value: Some(Blob::copy_from(value.as_bytes())),
            context: context.map(Blob),
            op_id: OpId(self.seams.random.u128()),
            first_sent_ms: None,
            w: None,
            strict: false,
            explain: false,
        });
        match self.client(false).await.request_at(self.addr(at), body, options()).await? {
            Reply::Written(written) => Ok(written.context.0),
            other => panic!("{other:?}"),
        }
    }

    /// The context of a read at one node.
    async fn read_at(&self, at: usize, key: &str) -> Bytes {
        let key = Key::plain(key);
        let body = RequestBody::Read(Read { key, r: None, strict: false, monotonic: false, explain: false });
        let reply = self.client(false).await.request_at(self.addr(at), body, options()).await.expect("readable");
        let Reply::Found(found) = reply else { panic!("{reply:?}") };
        found.context.0
    }

    async fn rotate(&self, at: usize) -> LayoutReport {
        let rotate = RequestBody::Layout(LayoutCommand::RotateContextKey);
        let reply = self.client(true).await.request_at(self.addr(at), rotate, options()).await.expect("rotated");
        let Reply::Layout(report) = reply else { panic!("{reply:?}") };
        *report
    }
}

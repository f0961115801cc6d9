//! The client: connecting, and carrying one request through its attempts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::config;
use crate::error::{Error, Tried};
use crate::options::{Profile, Quorum, RequestOptions, TIMEOUT_DEFAULT, TIMEOUT_MAX};
use crate::pool::{Pool, Transport};
use crate::read::{Cause, Read};
use crate::request::{Delete, Get, Put, Update};
use crate::retry::{Budget, End, Kind, Next, Outcome, Plan, Unknown};
use crate::route::{self, Destination, Order, Routes, Target};
use crate::scan::Scanner;
use crate::unsettled::{Sent, Unsettled};
use crate::value::{IntoChange, IntoValue};
use quorate_transport::quic;
use quorate_transport::rpc::{CallError, class};
use quorate_transport::tls::{self, Credentials, Subject};
use quorate_transport::{Link, Seams};
use quorate_wire::address;
use quorate_wire::codec;
use quorate_wire::ids::{LayoutVersion, NodeId, OpId};
use quorate_wire::random::Random;
use quorate_wire::{
    ALPN_CLIENT, Failure, Key, LayoutCommand, Located, NodeStatus, NotApplied, Reply, Request, RequestBody, Response,
    RouteTable,
};
use quorate_wire::{buggify, sometimes, story, tell};

/// A connection to a cluster. Clones share everything; it can be used from many tasks at once.
///
/// ```no_run
/// use quorate_client::{Blind, Client, Quorum};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let db = Client::from_config("client.toml")?.connect().await?;
/// db.put("greeting", "hello", Blind).await?;
/// let read = db.get("greeting").r(Quorum::All).await?;
/// assert_eq!(read.one()?, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<dyn Transport>,
    seeds: Vec<Seed>,
    /// What the seeds' names were last resolved to.
    seed_addrs: Mutex<Vec<SocketAddr>>,
    routes: RwLock<Option<Arc<Routes>>>,
    /// When the members' addresses may be asked for again, and the pause after that.
    refresh: Mutex<(Instant, Duration)>,
    /// Nodes that have refused a request for want of others, and until when they are asked last.
    cut_off: Mutex<BTreeMap<SocketAddr, Instant>>,
    budget: Mutex<Budget>,
    unsettled: Unsettled,
    random: Random,
    /// For names of writes, which tell when they were made.
    wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    defaults: Defaults,
}

/// What requests ask for unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) r: Quorum,
    pub(crate) w: Quorum,
    pub(crate) strict: bool,
    pub(crate) timeout: Duration,
}

impl Client {
    /// Begins with the nodes to ask first: addresses, or `host:port` texts that are resolved when they are needed.
    ///
    /// One reachable seed is enough; the cluster then tells where all the others are.
    pub fn builder<S: Into<Seed>>(seeds: impl IntoIterator<Item = S>) -> ClientBuilder {
        ClientBuilder {
            seeds: seeds.into_iter().map(Into::into).collect(),
            credentials: None,
            r: Profile::default().r(),
            w: Profile::default().w(),
            strict: Profile::default().strict(),
            timeout: TIMEOUT_DEFAULT,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            seams: None,
            socket: None,
        }
    }

    /// Begins with a file as `quorate dev` writes it, and as the command line tool reads it:
    ///
    /// ```toml
    /// seeds = ["10.0.0.1:7400", "10.0.0.2:7400"]
    /// ca = "ca.pem"           # relative paths are relative to the file
    /// cert = "alice.pem"
    /// key = "alice.key"
    /// # What may be left out:
    /// profile = "balanced"    # or fast, safe; what r, w and strictness are unless they are said
    /// r = "majority"
    /// w = 2
    /// timeout = "1s"
    /// output = "text"         # only the tool looks at it
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] when a file cannot be read or holds something else; the text names the file.
    pub fn from_config(path: impl AsRef<Path>) -> Result<ClientBuilder, Error> {
        config::read(path.as_ref())
    }

    /// Begins with what the environment says, as the command line tool does: the variables `QUORATE_SEEDS` (comma separated),
    /// `QUORATE_CA`, `QUORATE_CERT`, `QUORATE_KEY`, `QUORATE_PROFILE`, `QUORATE_R`, `QUORATE_W` and `QUORATE_TIMEOUT`; for what
    /// they leave out the file that `QUORATE_CONFIG` names; and then as [`from_default`](Self::from_default).
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config); the text names the variable or the file.
    pub fn from_env() -> Result<ClientBuilder, Error> {
        config::from_env()
    }

    /// Begins with the user's own file, `quorate/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`, or, if that names no cluster,
    /// with the one that `quorate dev` runs on this machine.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config), and when neither is there.
    pub fn from_default() -> Result<ClientBuilder, Error> {
        config::from_default()
    }

    /// Begins with the cluster that `quorate dev` runs on this machine: its file is `client.toml` in the directory
    /// `QUORATE_DEV_DIR`, or in `quorate/dev` of the user's state directory.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config); most likely because no such cluster runs.
    pub fn from_dev() -> Result<ClientBuilder, Error> {
        let file = config::dev_file()?;
        if !file.exists() {
            return Err(Error::misuse(format!("{} is not there: start a cluster with `quorate dev`", file.display())));
        }
        config::read(&file)
    }

    /// Reads a key; await it. A key without a value is [`Error::NotFound`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Get {
        Get::new(self.clone(), key.as_ref())
    }

    /// Writes a key; await it. It replaces what its cause has seen, and stands as a sibling beside anything else.
    ///
    /// Bytes and text are stored as they are; wrap anything else as [`Typed(&value)`](crate::Typed).
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl IntoValue, cause: impl Into<Cause>) -> Put {
        Put::new(self.clone(), key.as_ref(), value.into_value(), cause.into())
    }

    /// Deletes what its cause has seen of a key; await it. Values that the cause has not seen stay.
    ///
    /// A delete that has seen nothing would delete nothing. So with [`Blind`](crate::Blind) it reads the key first, and deletes
    /// what that read has seen. A cause that saw no value gives [`Error::NotFound`] without a request.
    pub fn delete(&self, key: impl AsRef<[u8]>, cause: impl Into<Cause>) -> Delete {
        Delete::new(self.clone(), key.as_ref(), cause.into())
    }

    /// Reads a key, lets `change` make a new value of what is there, and writes it; await it. If another writer was faster,
    /// it does so again, a bounded number of times, and ends in [`Error::Contended`] rather than with a false success.
    ///
    /// `change` sees all siblings (none if the key is absent) and must merge them: what it returns replaces them all. It may
    /// run several times; what it then sees, and what that means for a change that must not be made twice, is said at
    /// [`Update`].
    pub fn update<'a, C: IntoChange>(
        &self,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(&Read) -> C + Send + 'a,
    ) -> Update<'a> {
        Update::new(self.clone(), key.as_ref(), Box::new(move |read| change(read).into_change()))
    }

    /// Reads all keys, or those with a prefix, page by page or as a stream.
    pub fn scan(&self) -> Scanner {
        Scanner::new(self.clone())
    }

    /// Where a key lives, as some node sees it.
    ///
    /// # Errors
    /// As every request that changes nothing.
    pub async fn locate(&self, key: impl AsRef<[u8]>) -> Result<Located, Error> {
        let key = Key::plain(key);
        match self.request(RequestBody::Locate { key }, RequestOptions::default()).await? {
            Reply::Located(located) => Ok(located),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node at an address knows of itself and its peers.
    ///
    /// # Errors
    /// As every request that changes nothing.
    pub async fn status_at(&self, addr: impl Into<Seed>) -> Result<NodeStatus, Error> {
        match self.request_at(addr, RequestBody::Status, RequestOptions::default()).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// The members that the client knows of, by its route table; none before a cluster has its first layout.
    pub fn nodes(&self) -> Vec<(NodeId, SocketAddr)> {
        self.routes().map(|routes| routes.table().members.clone()).unwrap_or_default()
    }

    /// The route table that the client goes by, if the cluster has a layout.
    pub fn route_table(&self) -> Option<RouteTable> {
        self.routes().map(|routes| routes.table().clone())
    }

    /// Sends any request to the node that suits it best: for tools.
    ///
    /// The body is sent as it is, without the client's default quorums. Requests for a key or a partition go to its
    /// primaries, others to any node, with the same retries as everything else.
    ///
    /// # Errors
    /// See [`Error`]; what a reply means is for the caller to judge.
    pub async fn request(&self, body: RequestBody, options: RequestOptions) -> Result<Reply, Error> {
        self.exchange(body, options.timeout.unwrap_or(self.inner.defaults.timeout), None).await
    }

    /// Sends any request to one node and no other, be it a member or not: for tools.
    ///
    /// # Errors
    /// As [`request`](Self::request), and [`Error::Misuse`] when the text is not an address or has no such name.
    pub async fn request_at(
        &self,
        addr: impl Into<Seed>,
        body: RequestBody,
        options: RequestOptions,
    ) -> Result<Reply, Error> {
        let time = options.timeout.unwrap_or(self.inner.defaults.timeout);
        let seed = addr.into();
        let started = Instant::now();
        let addrs = match timeout(time, seed.resolve()).await {
            Ok(resolved) => resolved?,
            Err(_) => return Err(Error::misuse(format!("the name in {:?} was not resolved in time", seed.0))),
        };
        let mut targets: Vec<Target> = addrs.into_iter().map(|addr| Target { node: None, addr }).collect();
        // A name may have addresses that the node does not listen at.
        if targets.len() > 1
            && let Some(first) = self.inner.transport.first_reachable(&targets, time / 2).await
        {
            targets.swap(0, first);
        }
        let left = time.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
        self.exchange(body, left, Some(targets)).await
    }

    /// Ends all connections and waits for a moment until the nodes know. Requests under way fail; dropping the last clone
    /// does the same without waiting.
    pub async fn close(self) {
        self.inner.transport.closed().await;
    }

    pub(crate) fn defaults(&self) -> Defaults {
        self.inner.defaults
    }

    pub(crate) fn random(&self) -> &Random {
        &self.inner.random
    }

    /// A name for a new write.
    pub(crate) fn new_op_id(&self) -> OpId {
        let now = (self.inner.wall_clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        OpId::new(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), self.inner.random.u128())
    }

    pub(crate) fn with_transport(
        transport: Arc<dyn Transport>,
        seeds: Vec<Seed>,
        random: Random,
        wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
        defaults: Defaults,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                transport,
                seeds,
                seed_addrs: Mutex::default(),
                routes: RwLock::default(),
                refresh: Mutex::new((Instant::now(), REFRESH_PAUSE)),
                cut_off: Mutex::default(),
                budget: Mutex::new(Budget::new(Instant::now())),
                unsettled: Unsettled::default(),
                random,
                wall_clock,
                defaults,
            }),
        }
    }

    /// Finds a seed that answers, and gets the first route table if there is one.
    pub(crate) async fn enter(&self, within: Duration) -> Result<(), Error> {
        let started = Instant::now();
        let mut targets = self.resolve_seeds(within / 4).await?;
        route::shuffle(&mut targets, &self.inner.random);
        let left = within.saturating_sub(started.elapsed());
        // A seed that is down must not delay those that are up.
        if let Some(first) = self.inner.transport.first_reachable(&targets, left / 2).await {
            targets.swap(0, first);
        }
        let left = within.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
        match self.exchange(RequestBody::Route, left, Some(targets)).await {
            Ok(Reply::Route(table)) => {
                let _news = self.learn(table);
                Ok(())
            }
            Ok(other) => Err(unexpected(&other)),
            // A cluster without a layout serves no data, but its layout can be made through this client.
            Err(Error::NotApplied(NotApplied::NotServing { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Carries a request out: to the given targets, or to those that suit it.
    pub(crate) async fn exchange(
        &self,
        mut body: RequestBody,
        time: Duration,
        only: Option<Vec<Target>>,
    ) -> Result<Reply, Error> {
        if time.is_zero() || time > TIMEOUT_MAX {
            let allowed = TIMEOUT_MAX.as_secs();
            return Err(Error::misuse(format!("a time-out of {time:?} is not possible, up to {allowed} s are")));
        }
        let fixed = only.is_some();
        let targets = only.unwrap_or_else(|| self.targets(&body));
        if targets.is_empty() {
            return Err(Error::NoNodeReachable { tried: Vec::new() });
        }
        self.budget(Budget::deposit);
        let repeated = match &body {
            RequestBody::Write(write) => write.first_sent_ms.map(Duration::from_millis),
            _ => None,
        };
        let mut plan = Plan::new(kind(&body), repeated, targets.len(), Instant::now(), time);
        let request_id = self.inner.random.u64();
        let (mut at, mut tried) = (0, Vec::new());
        loop {
            let layout = self.routes().map_or(LayoutVersion::NONE, |routes| routes.table().version);
            let mut slice = plan.slice(Instant::now());
            if buggify!("client: an attempt's time is cut short") {
                slice.whole /= 4;
            }
            if let RequestBody::Write(write) = &mut body
                && plan.may_be_there()
            {
                // It may be sent as late as there is time to connect.
                write.first_sent_ms = Some(millis(plan.age(Instant::now()) + slice.connect));
            }
            // Borrowing the body would need a second type for the wire; its bytes are shared, not copied.
            let frame = codec::encode(&Request { layout, request_id, body: body.clone() });
            self.tell_question(targets[at], request_id, &body);
            let called = self.inner.transport.call(targets[at], class_of(&body), frame, slice).await;
            self.tell_answer(targets[at], request_id, &body, &called);
            let (outcome, what) = match self.judge(&body, called) {
                Ok(reply) => {
                    self.serves(targets[at]);
                    sometimes!("client: a request went to a second node", at > 0);
                    sometimes!("client: an unknown write was acknowledged by a retry", plan.is_unknown());
                    if let RequestBody::Write(write) = &mut body
                        && buggify!("client: acknowledged writes are sent again")
                    {
                        // As if the answer had been lost; what the repetition says must be as good.
                        write.first_sent_ms = Some(millis(plan.age(Instant::now()) + slice.connect));
                        let frame = codec::encode(&Request { layout, request_id, body: body.clone() });
                        let again = self.inner.transport.call(targets[at], class_of(&body), frame, slice).await;
                        return Ok(self.judge(&body, again).unwrap_or(reply));
                    }
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            tracing::debug!(request_id, target = %targets[at], what, "attempt failed");
            match &outcome {
                Outcome::NotSent if !matches!(body, RequestBody::Route) => self.refresh(),
                Outcome::Refused(NotApplied::Unavailable { .. } | NotApplied::NotServing { .. }) => {
                    self.is_cut_off(targets[at]);
                }
                Outcome::NotSent | Outcome::Refused(_) | Outcome::Unknown(_) | Outcome::Indeterminate(_) => {}
            }
            tried.push(Tried { node: targets[at].to_string(), what });
            let jitter = self.inner.random.u64();
            match self.budget(|budget| plan.after(outcome, Instant::now(), jitter, budget)) {
                Next::Try { candidate, after } => {
                    at = candidate;
                    // Even a sleep of nothing may take a tick of the timer.
                    if !after.is_zero() {
                        sleep(after).await;
                    }
                }
                Next::GiveUp => break,
            }
        }
        let now = Instant::now();
        if let RequestBody::Write(write) = &body
            && plan.is_unknown()
        {
            // After the first unknown outcome an attempt goes nowhere else.
            self.inner.unsettled.note(write.op_id, Sent { to: targets[at], age: plan.age(now), noted: now });
        }
        let end = plan.end(now);
        if end == End::Unreachable && !fixed {
            self.resolve_again();
        }
        Err(self.failed(end, &body, tried))
    }

    /// Where an earlier request of this client has left a write whose outcome is unknown, and how long ago it was first sent.
    pub(crate) fn unsettled(&self, op_id: OpId) -> Option<(Target, Duration)> {
        let sent = self.inner.unsettled.of(op_id)?;
        let mut to = sent.to;
        // A node may have come back under another address.
        let routes = self.routes();
        let members = routes.iter().flat_map(|routes| &routes.table().members);
        if let Some((_, addr)) = members.into_iter().find(|(node, _)| Some(*node) == to.node) {
            to.addr = *addr;
        }
        sometimes!("client: an unknown write was repeated where it had gone");
        Some((to, sent.age()))
    }

    /// The write was acknowledged.
    pub(crate) fn settled(&self, op_id: OpId) {
        self.inner.unsettled.settle(op_id);
    }

    /// See [`story`].
    fn tell_question(&self, to: Target, request: u64, body: &RequestBody) {
        if let Some((what, key)) = story::asked(body) {
            let op_id = if let RequestBody::Write(write) = body { Some(write.op_id) } else { None };
            let op_id = op_id.map(tracing::field::display);
            tell!(act = "ask", key = %story::text(key), to = %to.addr, request, what, op_id);
        }
    }

    fn tell_answer(&self, from: Target, request: u64, body: &RequestBody, called: &Result<Bytes, CallError>) {
        if let Some((what, key)) = story::asked(body) {
            let said = || match called {
                Ok(frame) => codec::decode::<Response>(frame)
                    .map_or_else(|error| error.to_string(), |response| story::said(&response.body)),
                Err(error) => format!("no answer: {error}"),
            };
            tell!(act = "told", key = %story::text(key), from = %from.addr, request, what,
                said = said(), came = called.is_ok());
        }
    }

    /// What an answer, or the lack of one, means.
    fn judge(&self, body: &RequestBody, called: Result<Bytes, CallError>) -> Result<Reply, (Outcome, String)> {
        let unknown = |why: String| (Outcome::Unknown(why.clone()), why);
        let frame = called.map_err(|error| match error {
            CallError::NotSent(why) => (Outcome::NotSent, why),
            CallError::Unknown(why) => unknown(why),
        })?;
        let response: Response =
            codec::decode(&frame).map_err(|error| unknown(format!("its answer is not understood: {error}")))?;
        if let Some(table) = response.table {
            let _news = self.learn(table);
        }
        match response.body {
            Ok(reply) if answers(body, &reply) => Ok(reply),
            Ok(reply) => Err(unknown(unexpected(&reply).to_string())),
            Err(Failure::NotApplied(refusal)) => {
                let what = refusal.to_string();
                Err((Outcome::Refused(refusal), what))
            }
            Err(Failure::Indeterminate { need, acks, why, .. }) => {
                let what = format!("outcome unknown: {why}");
                Err((Outcome::Indeterminate(Unknown { need: Some(need), acks, why }), what))
            }
        }
    }

    fn failed(&self, end: End, body: &RequestBody, tried: Vec<Tried>) -> Error {
        match end {
            End::Refused(refusal) => refusal.into(),
            End::NoAnswer(waited) => Error::NoAnswer { waited, tried },
            End::Unreachable => Error::NoNodeReachable { tried },
            End::Indeterminate(Unknown { need, acks, why }) => match body {
                RequestBody::Write(write) => {
                    let n = self.routes().map(|routes| routes.table().n);
                    let need = need.or_else(|| Some(write.w?.count(n?)));
                    sometimes!("client: a write ended indeterminate");
                    Error::Indeterminate { op_id: write.op_id, need, acks, why }
                }
                _ => Error::OutcomeUnknown { why },
            },
        }
    }

    /// Whom to ask of what may be with one of them: that one, then the others.
    pub(crate) fn targets_after(&self, first: Target, body: &RequestBody) -> Vec<Target> {
        let others = self.targets(body).into_iter().filter(|other| other.addr != first.addr);
        [first].into_iter().chain(others).collect()
    }

    /// Whom to ask: the coordinators that the table names, then some seeds, which may know a newer table.
    fn targets(&self, body: &RequestBody) -> Vec<Target> {
        let (destination, order) = match body {
            RequestBody::Write(write) => {
                let order = buggify!("client: writes go to any primary first", Order::Best, Order::Spread);
                (Destination::Key(&write.key), order)
            }
            RequestBody::Read(read) => (Destination::Key(&read.key), Order::Spread),
            RequestBody::Locate { key } => (Destination::Key(key), Order::Spread),
            RequestBody::Scan(scan) => (Destination::Partition(scan.from.partition), Order::Spread),
            RequestBody::Route | RequestBody::Status | RequestBody::Layout(_) | RequestBody::Repair(_) => {
                (Destination::Any, Order::Spread)
            }
        };
        let routes = self.routes();
        let cut_off = self.cut_off_now();
        let failing = |addr| self.inner.transport.failing(addr) || cut_off.contains(&addr);
        let mut targets = route::coordinators(routes.as_ref(), destination, order, &self.inner.random, failing);
        if targets.iter().any(|target| self.inner.transport.failing(target.addr)) && !matches!(body, RequestBody::Route)
        {
            self.refresh();
        }
        let seeds = self.inner.seed_addrs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut seeds: Vec<Target> = (seeds.into_iter())
            .filter(|seed| targets.iter().all(|target| target.addr != *seed))
            .map(|addr| Target { node: None, addr })
            .collect();
        route::shuffle(&mut seeds, &self.inner.random);
        seeds.sort_by_key(|seed| failing(seed.addr));
        seeds.truncate(if targets.is_empty() { SEEDS_MAX } else { SEEDS_BESIDE_TABLE });
        targets.extend(seeds);
        if buggify!("client: somebody who is no primary is asked first") {
            targets.reverse();
        }
        targets
    }

    /// A node has served a request.
    fn serves(&self, target: Target) {
        let mut cut_off = self.inner.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        if !cut_off.is_empty() {
            cut_off.remove(&target.addr);
        }
        drop(cut_off);
        // It answers under another name than the table says: a member has moved to where another one was.
        let other = |node| self.inner.transport.node_at(target.addr).is_some_and(|there| there != node);
        if target.node.is_some_and(other) {
            self.refresh();
        }
    }

    /// A node has refused a request because it cannot reach others, or does not serve: it is asked after the others for a while.
    fn is_cut_off(&self, target: Target) {
        let now = Instant::now();
        let mut cut_off = self.inner.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        cut_off.retain(|_, until| *until > now);
        if cut_off.len() < CUT_OFF_MAX {
            sometimes!("client: a node that had refused is asked after the others");
            cut_off.insert(target.addr, now + CUT_OFF_FOR);
        }
    }

    fn cut_off_now(&self) -> Vec<SocketAddr> {
        let (now, cut_off) = (Instant::now(), self.inner.cut_off.lock().unwrap_or_else(PoisonError::into_inner));
        cut_off.iter().filter(|(_, until)| **until > now).map(|(addr, _)| *addr).collect()
    }

    /// Asks for the members' addresses in the background: one of them cannot be reached where the table says. As long as the answers
    /// bring nothing new, they are asked for more and more rarely.
    fn refresh(&self) {
        let now = Instant::now();
        {
            let mut refresh = self.inner.refresh.lock().unwrap_or_else(PoisonError::into_inner);
            let (from, pause) = *refresh;
            if now < from {
                return;
            }
            *refresh = (now + pause, (pause * 2).min(REFRESH_PAUSE_MAX));
        }
        let client = self.clone();
        tokio::spawn(async move {
            let asked = Box::pin(client.exchange(RequestBody::Route, REFRESH_TIME, None)).await;
            if let Ok(Reply::Route(table)) = asked
                && client.learn(table)
            {
                client.inner.refresh.lock().unwrap_or_else(PoisonError::into_inner).1 = REFRESH_PAUSE;
            }
        });
    }

    /// Takes a route table over if it is newer and well formed; of one of the same layout the addresses of members that are not where
    /// they were. What one node says of the others may be older than what is known, so that a member that can be reached stays where
    /// it is. Tells whether anything was news.
    pub(crate) fn learn(&self, table: RouteTable) -> bool {
        if let Some(routes) = self.routes().filter(|routes| routes.table().version >= table.version) {
            let moved = |(node, addr): &&(NodeId, SocketAddr)| {
                let Some(was) = routes.addr_of(*node).filter(|was| was != addr) else { return false };
                let gone = self.inner.transport.node_at(was).is_some_and(|there| there != *node);
                gone || self.inner.transport.failing(was) || self.inner.transport.node_at(*addr) == Some(*node)
            };
            let moved: Vec<_> = table.members.iter().filter(moved).copied().collect();
            if routes.table().version == table.version && !moved.is_empty() {
                sometimes!("client: a member has moved");
                tracing::debug!(?moved, "members have other addresses");
                let mut current = self.inner.routes.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(known) = current.as_ref().filter(|known| known.table().version == table.version) {
                    *current = Some(Arc::new(known.moved(&moved)));
                    return true;
                }
            }
            return false;
        }
        match Routes::check(table) {
            Ok(newer) => {
                let mut routes = self.inner.routes.write().unwrap_or_else(PoisonError::into_inner);
                if routes.as_ref().is_none_or(|routes| routes.table().version < newer.table().version) {
                    tracing::debug!(version = %newer.table().version, "new route table");
                    sometimes!("client: a newer route table came with an answer", routes.is_some());
                    *routes = Some(Arc::new(newer));
                    return true;
                }
                false
            }
            Err(why) => {
                tracing::warn!(why, "a node sent a malformed route table; it is ignored");
                false
            }
        }
    }

    fn routes(&self) -> Option<Arc<Routes>> {
        self.inner.routes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn budget<T>(&self, with: impl FnOnce(&mut Budget) -> T) -> T {
        with(&mut self.inner.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves the seeds and remembers what they mean. A name that is not resolved within the time is left out, unless none is.
    async fn resolve_seeds(&self, within: Duration) -> Result<Vec<Target>, Error> {
        let (mut addrs, mut trouble, mut names) = (Vec::new(), None, JoinSet::new());
        for seed in &self.inner.seeds {
            match seed.0.parse() {
                Ok(addr) => addrs.push(addr),
                Err(_) => {
                    let seed = seed.clone();
                    names.spawn(async move { seed.resolve().await });
                }
            }
        }
        let end = Instant::now() + within;
        while !names.is_empty() {
            // Names that take long are waited for only as long as there is nothing else to go by.
            let left = end.saturating_duration_since(Instant::now());
            let left = if addrs.is_empty() { left.max(within * 2) } else { left };
            match timeout(left, names.join_next()).await {
                Ok(Some(Ok(Ok(more)))) => addrs.extend(more),
                Ok(Some(Ok(Err(error)))) => {
                    tracing::warn!("a seed is left out: {error}");
                    trouble = Some(error);
                }
                Ok(Some(Err(_)) | None) => {}
                Err(_) => {
                    tracing::warn!(
                        names = names.len(),
                        "the names of some seeds were not resolved in time, and are left out"
                    );
                    break;
                }
            }
        }
        addrs.sort_unstable();
        addrs.dedup();
        addrs.truncate(SEEDS_MAX);
        match (addrs.is_empty(), trouble) {
            (true, Some(error)) => return Err(error),
            (true, None) if self.inner.seeds.is_empty() => {
                return Err(Error::misuse("a client needs at least one seed"));
            }
            (true, None) => return Err(Error::misuse("the names of the seeds were not resolved in time")),
            (false, _) => {}
        }
        *self.inner.seed_addrs.lock().unwrap_or_else(PoisonError::into_inner) = addrs.clone();
        Ok(addrs.into_iter().map(|addr| Target { node: None, addr }).collect())
    }

    /// Nobody could be reached: the names of the seeds may mean other addresses by now. Not waited for.
    fn resolve_again(&self) {
        if self.inner.seeds.iter().all(|seed| seed.0.parse::<SocketAddr>().is_ok()) {
            return;
        }
        let client = self.clone();
        tokio::spawn(async move {
            // It stays as it was if this fails, and is tried again after the next failure.
            let _ = client.resolve_seeds(CONNECT_TIMEOUT_DEFAULT / 4).await;
        });
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("seeds", &self.inner.seeds).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.transport.close();
    }
}

/// How a client is made; see [`Client::builder`].
#[must_use = "it does nothing until `connect` is awaited"]
pub struct ClientBuilder {
    seeds: Vec<Seed>,
    credentials: Option<Credentials>,
    r: Quorum,
    w: Quorum,
    strict: bool,
    timeout: Duration,
    connect_timeout: Duration,
    seams: Option<Seams>,
    socket: Option<Arc<dyn AsyncUdpSocket>>,
}

impl ClientBuilder {
    /// The certificate with which the client shows who it is, and the authority that it trusts. There is no client without.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// What requests ask for unless they say otherwise; sets R, W and strictness together.
    pub fn profile(self, profile: Profile) -> Self {
        self.r(profile.r()).w(profile.w()).strict(profile.strict())
    }

    /// How many replicas must answer a read.
    pub fn r(mut self, r: Quorum) -> Self {
        self.r = r;
        self
    }

    /// How many replicas must hold a write before it is acknowledged.
    pub fn w(mut self, w: Quorum) -> Self {
        self.w = w;
        self
    }

    /// Whether only primaries count for R and W.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// How long a request may take, retries included: 1 s if nothing is said, 5 minutes at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long [`connect`](Self::connect) may take: 5 s if nothing is said.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Replaces what QUIC and TLS take from the system: for simulations.
    pub fn seams(mut self, seams: Seams) -> Self {
        self.seams = Some(seams);
        self
    }

    /// Uses this socket instead of binding one: for simulations.
    pub fn socket(mut self, socket: Arc<dyn AsyncUdpSocket>) -> Self {
        self.socket = Some(socket);
        self
    }

    /// Reaches the cluster through any seed and learns where everything is. A cluster that has no layout yet can be
    /// connected to as well: that is how it gets one.
    ///
    /// # Errors
    /// [`Error::Misuse`] without seeds or credentials, with an expired certificate or impossible defaults;
    /// [`Error::NoNodeReachable`] when no seed answers.
    pub async fn connect(self) -> Result<Client, Error> {
        let seams = self.seams.clone().unwrap_or_else(Seams::system);
        for seed in &self.seeds {
            seed.check()?;
        }
        if self.seeds.is_empty() {
            return Err(Error::misuse(
                "a client needs at least one seed: the address of some node, as in `10.0.0.1:7070`",
            ));
        }
        for (what, time) in [("time-out", self.timeout), ("time-out for connecting", self.connect_timeout)] {
            if time.is_zero() || time > TIMEOUT_MAX {
                let allowed = TIMEOUT_MAX.as_secs();
                return Err(Error::misuse(format!("a {what} of {time:?} is not possible, up to {allowed} s are")));
            }
        }
        if self.r.count(1) == 0 || self.w.count(1) == 0 {
            return Err(Error::misuse("R and W must be at least 1"));
        }
        let Some(credentials) = &self.credentials else {
            return Err(Error::misuse(
                "a client needs credentials: `quorate cert client` makes them, `tls::Credentials::from_pem` reads them",
            ));
        };
        if let Subject::Node { node, .. } = credentials.subject() {
            return Err(Error::misuse(format!(
                "this is the certificate of node {node}, and a client needs one of its own: make it with `quorate cert client NAME`"
            )));
        }
        credentials.check_validity((seams.wall_clock)()).map_err(|error| Error::misuse(error.to_string()))?;
        let misuse = |error: &dyn fmt::Display| Error::misuse(error.to_string());
        let config =
            tls::client_config(&seams, credentials, ALPN_CLIENT, Link::Client).map_err(|error| misuse(&error))?;
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => quic::bind_any().map_err(|error| misuse(&error))?,
        };
        let endpoint = quic::endpoint(&seams, socket, None).map_err(|error| misuse(&error))?;
        let pool = Pool::new(endpoint, config, seams.random.fork());
        let defaults = Defaults { r: self.r, w: self.w, strict: self.strict, timeout: self.timeout };
        let client =
            Client::with_transport(Arc::new(pool), self.seeds, seams.random.fork(), seams.wall_clock, defaults);
        client.enter(self.connect_timeout).await?;
        Ok(client)
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, r, w, strict, timeout, .. } = self;
        let mut debug = f.debug_struct("ClientBuilder");
        debug.field("seeds", seeds).field("r", r).field("w", w).field("strict", strict);
        debug.field("timeout", timeout).finish_non_exhaustive()
    }
}

/// Where to find a node: an address, or `host:port`, of which the name is resolved when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed(String);

impl Seed {
    fn check(&self) -> Result<(), Error> {
        address::check_no_scope(&self.0).map_err(Error::misuse)?;
        let named = |(host, port): (&str, &str)| !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok();
        if let Ok(addr) = self.0.parse::<SocketAddr>() {
            return address::check_dial(addr).map_err(Error::misuse);
        }
        if self.0.rsplit_once(':').is_some_and(named) {
            return Ok(());
        }
        Err(Error::misuse(format!(
            "{:?} is not an address: `host:port`, `1.2.3.4:port` or `[::1]:port` is one",
            self.0
        )))
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        if let Ok(addr) = self.0.parse() {
            return Ok(vec![addr]);
        }
        self.check()?;
        let addrs: Vec<_> = match tokio::net::lookup_host(&self.0).await {
            Ok(addrs) => addrs.take(SEEDS_MAX).collect(),
            Err(error) => return Err(Error::misuse(format!("the name in {:?} cannot be resolved: {error}", self.0))),
        };
        if addrs.is_empty() {
            return Err(Error::misuse(format!("the name in {:?} has no address", self.0)));
        }
        Ok(addrs)
    }
}

impl From<&str> for Seed {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Seed {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&String> for Seed {
    fn from(text: &String) -> Self {
        Self(text.clone())
    }
}

impl From<SocketAddr> for Seed {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string())
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn kind(body: &RequestBody) -> Kind {
    match body {
        RequestBody::Write(_) => Kind::Write,
        RequestBody::Read(_)
        | RequestBody::Scan(_)
        | RequestBody::Route
        | RequestBody::Locate { .. }
        | RequestBody::Status
        | RequestBody::Layout(LayoutCommand::Show | LayoutCommand::History | LayoutCommand::Abort { version: None })
        | RequestBody::Repair(_) => Kind::Read,
        RequestBody::Layout(
            LayoutCommand::StageJoin { .. }
            | LayoutCommand::StageLeave { .. }
            | LayoutCommand::StageReplace { .. }
            | LayoutCommand::StageWeight { .. }
            | LayoutCommand::StageZone { .. }
            | LayoutCommand::StageSettings { .. }
            | LayoutCommand::Revert
            | LayoutCommand::Apply { .. }
            | LayoutCommand::Abort { version: Some(_) }
            | LayoutCommand::RotateContextKey,
        ) => Kind::Command,
    }
}

fn class_of(body: &RequestBody) -> u8 {
    match body {
        RequestBody::Scan(_) | RequestBody::Layout(_) => class::BULK,
        RequestBody::Write(_)
        | RequestBody::Read(_)
        | RequestBody::Route
        | RequestBody::Locate { .. }
        | RequestBody::Status
        | RequestBody::Repair(_) => class::REQUEST,
    }
}

fn answers(body: &RequestBody, reply: &Reply) -> bool {
    matches!(
        (body, reply),
        (RequestBody::Write(_), Reply::Written(_))
            | (RequestBody::Read(_), Reply::Found(_))
            | (RequestBody::Scan(_), Reply::Scanned(_))
            | (RequestBody::Route, Reply::Route(_))
            | (RequestBody::Locate { .. }, Reply::Located(_))
            | (RequestBody::Status, Reply::Status(_))
            | (RequestBody::Layout(_), Reply::Layout(_))
            | (RequestBody::Repair(_), Reply::Repair(_))
    )
}

pub(crate) fn unexpected(reply: &Reply) -> Error {
    let what = match reply {
        Reply::Written(_) => "a write",
        Reply::Found(_) => "a read",
        Reply::Scanned(_) => "a scan",
        Reply::Route(_) => "a question for routes",
        Reply::Located(_) => "a question for a key's place",
        Reply::Status(_) => "a question for its status",
        Reply::Layout(_) => "a layout command",
        Reply::Repair(_) => "a repair command",
    };
    Error::Codec { why: format!("the node answered {what}, which was not what it was asked") }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long connecting may take: a cold start with some seeds that are down.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// As many addresses of seeds are kept: one of them is likely to be up, also in a list that has grown old.
const SEEDS_MAX: usize = 128;

/// How long a node that has refused for want of others is asked last: long enough that it costs one request in hundreds an attempt more,
/// short enough that it is used again soon after its links are back.
pub(crate) const CUT_OFF_FOR: Duration = Duration::from_secs(1);

/// More nodes than are cut off at a time.
const CUT_OFF_MAX: usize = 512;

/// How soon the members' addresses are asked for again while one of them cannot be reached; doubled each time that they have not changed.
pub(crate) const REFRESH_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: how long a member that has been away for long is not found at another address.
const REFRESH_PAUSE_MAX: Duration = Duration::from_secs(8);
/// How long it may take.
const REFRESH_TIME: Duration = Duration::from_secs(2);

/// Seeds that are asked after the members of the table: only they can help when all members have moved.
const SEEDS_BESIDE_TABLE: usize = 2;

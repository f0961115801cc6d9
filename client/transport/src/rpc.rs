//! Requests and answers over long-lived QUIC streams ("lanes"), multiplexed and coalesced.
//!
//! The side that calls opens a few bidirectional streams for each class of requests, on first use. A lane begins with one
//! byte that names its class; then frames (see [`crate::frame`]) go both ways for as long as the connection lives. One task
//! a lane and side writes everything that is ready in one go, another one reads: with many callers on one connection this
//! costs half of what a stream for each request does. Both sides of a connection may call.
//!
//! ```text
//!  callers -> queue -> writer ==== lane ====> reader -> a task each -> handler
//!     ^                                                                   |
//!     +---- pending <- reader <=== lane ===== writer <- queue <-----------+
//! ```
//!
//! # What one end can cost the other
//! The serving side counts every byte that it keeps because of a request (see [`ClassLimits`]): a body while it arrives, the
//! request while it is served, what is read for it, and its answer until the other end has acknowledged it. A body for which
//! there is no room while it arrives is thrown away, and the request refused at once; one that has arrived waits for a moment, in
//! which nothing more is read from its lane, and is refused then. Whatever is begun must go on: at [`RATE_MIN`] at least, on an average over
//! [`STALL`], in both directions; a lane on which it does not costs the other end its connection.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::budget::{Budget, Charge, Pot, Room};
use crate::close::{self, explain_connection_error};
use crate::frame::{COPY_MAX, Deframer, Direction, FREE_LEN, Frame, FrameError, Framer, PART_LEN, Received};
use quorate_wire::time_text;
use quorate_wire::{buggify, dawdle, sometimes};

/// Classes of requests that clients send; each has lanes and a budget of its own.
pub mod class {
    /// Reads and writes of single keys, routes, status.
    pub const REQUEST: u8 = 0;
    /// Scans and layout commands: whatever may be large or slow.
    pub const BULK: u8 = 1;
}

/// Bounds of the calling side.
#[derive(Debug, Clone)]
pub struct LanesConfig {
    /// Streams for each class. All small requests go by the first: spread over two lanes they shared fewer packets, and cost
    /// 2.5 times the CPU when it was measured. Requests above [`PART_LEN`] go by the others, if there are any.
    pub lanes_per_class: usize,
    /// The largest answer that is taken, in bytes.
    pub answer_max: usize,
    /// Calls under way on one lane; further ones fail at once, with [`CallError::NotSent`].
    pub in_flight_max: usize,
}

impl Default for LanesConfig {
    /// Two lanes; answers of up to a key with 100 siblings of 1 MiB and some room; 1,024 calls a lane, 50 ms of work at the
    /// rate at which a connection's callers were measured to be served.
    fn default() -> Self {
        Self { lanes_per_class: 2, answer_max: 112 << 20, in_flight_max: 1024 }
    }
}

/// Calls over one connection. Clones share it; it stays open as long as somebody holds it.
#[derive(Clone)]
pub struct Lanes(Arc<Caller>);

impl Lanes {
    /// Opens no stream yet.
    pub fn new(connection: Connection, config: LanesConfig) -> Self {
        assert!(config.lanes_per_class > 0, "calls need a lane to go by");
        Self(Arc::new(Caller {
            link: Arc::new(Link { connection, silence: Mutex::new(Silence { received: 0, since: Instant::now() }) }),
            config,
            classes: Mutex::new(BTreeMap::new()),
        }))
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.0.link.connection
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        let classes = lock(&self.0.classes);
        classes.values().flatten().flatten().map(|lane| lane.shared.calls().waiting.len()).sum()
    }

    /// One request, one answer. Dropping the future forgets the call; the other end may still carry it out.
    ///
    /// A deadline that passes while the other end has been silent altogether closes the connection, so that the next call
    /// need not wait for the idle time-out.
    ///
    /// # Errors
    /// See [`CallError`]; the difference is exact.
    pub async fn call(&self, class: u8, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + timeout;
        let (call, answer) = self.0.register(class, body.len())?;
        if call.lane.queue.try_send(Outgoing { id: call.id, deadline, body }).is_err() {
            return Err(CallError::NotSent("the lane is stalled: more calls wait for it than it can queue".into()));
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Unknown("the lane was dropped".into())),
            Err(_) => {
                self.0.link.close_if_silent();
                match call.lane.shared.calls().waiting.remove(&call.id) {
                    Some(Call { sent: false, .. }) => {
                        let within = time_text(timeout);
                        Err(CallError::NotSent(format!("could not be sent within {within}: the lane is stalled")))
                    }
                    _ => Err(CallError::Unknown(format!("no answer within {}", time_text(timeout)))),
                }
            }
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({})", self.connection().remote_address())
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No byte of it was handed to the stream: it was certainly not carried out.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, at least in part: it may have been carried out, or may yet be.
    #[error("{0}")]
    Unknown(String),
}

/// Carries requests out.
pub trait Handler: Clone + Send + Sync + 'static {
    /// One request. The future is dropped when its time is over (nobody waits for the answer any more) and when the connection
    /// ends. A panic costs the caller this lane, and no one else anything.
    fn handle(&self, request: Arrived) -> impl Future<Output = Bytes> + Send;

    /// The answer to a request that there was no room or no time for: it was not looked at.
    fn refuse(&self, class: u8) -> Bytes;
}

/// A request that has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// The class of its lane.
    pub class: u8,
    /// The message. It is counted as long as anybody refers to a part of it.
    pub body: Bytes,
    /// How long its caller still waits.
    pub timeout: Duration,
    /// What it may use for what it reads and for its answer. An answer of up to [`REQUEST_LEN`] is taken care of already; a larger
    /// one takes with it what is taken here.
    pub room: Room,
}

/// Bounds of the serving side, for each connection.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// By class number; there are no others.
    pub classes: Vec<ClassLimits>,
    /// Counts what was refused or cut off; shared by whoever is to be counted together.
    pub counts: Arc<Counts>,
}

impl ServeLimits {
    /// What a node grants a client, without a bound on bytes. Requests are taken at twice the size of the largest legal one, so
    /// that what is just too large gets an answer that says so.
    pub fn client() -> Self {
        let class = |in_flight_max| ClassLimits::unbounded(2 << 20, in_flight_max);
        Self { classes: vec![class(1024), class(256)], counts: Arc::default() }
    }
}

/// Bounds of one class.
#[derive(Debug, Clone)]
pub struct ClassLimits {
    /// The largest request, in bytes.
    pub request_max: usize,
    /// Requests under way, counting one for each 16 KiB or part thereof. When it is reached, no more is read from the
    /// class's lanes: the caller is slowed down, not refused.
    pub in_flight_max: u32,
    /// For bodies while they arrive, and for lanes that wait. What it has no room for is refused.
    pub arriving: Budget,
    /// For requests that have arrived, until their answers have departed. They wait for it, but for no more than an eighth of their
    /// time: those behind them on the lane wait too. A large one takes it before the rest of it is read.
    pub serving: Pot,
    /// For what is read for a request, and for its answer until it has departed.
    pub answering: Pot,
}

impl ClassLimits {
    /// Without a bound on bytes.
    pub const fn unbounded(request_max: usize, in_flight_max: u32) -> Self {
        Self {
            request_max,
            in_flight_max,
            arriving: Budget::unbounded(),
            serving: Pot::unbounded(),
            answering: Pot::unbounded(),
        }
    }
}

/// What the serving side has refused or cut off.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests refused because there was no room for them, or none in time.
    pub refused: AtomicU64,
    /// Requests given up because their time was over before they had arrived.
    pub expired: AtomicU64,
    /// Connections ended because something that had been begun did not arrive.
    pub arrivals_cut: AtomicU64,
    /// Connections ended because answers did not depart.
    pub departures_cut: AtomicU64,
}

/// Serves the requests of a connection until it ends, and tells why it did.
///
/// An end that breaks the protocol (garbage, an oversize frame, an unknown class, requests that do not arrive, answers that are
/// not read) loses the connection and is told why.
pub async fn serve<H: Handler>(connection: Connection, handler: H, limits: ServeLimits) -> String {
    let permits = limits.classes.iter().map(|class| Arc::new(Semaphore::new(class.in_flight_max as usize))).collect();
    let server = Arc::new(Server { handler, limits, permits });
    let mut lanes: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = lanes.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    tracing::warn!(from = %connection.remote_address(), "connection closed: {why}");
                    connection.close(close::PROTOCOL, why.as_bytes());
                    return why;
                }
                Err(error) => tracing::error!("a lane has failed: {error}"),
            },
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    lanes.spawn(server.clone().lane(send, recv));
                }
                Err(error) => return explain_connection_error(&error),
            },
        }
    }
}

/// How long the other end may leave something unfinished that it has begun, without any progress: a lane's first byte, a frame, a
/// body in parts, reading an answer. Far above any real delay of a living link.
pub const STALL: Duration = Duration::from_secs(10);

/// The least progress, in bytes a second: one part of a body in [`STALL`]. A byte buys the time that it takes at this rate, and no more than
/// [`STALL`] is ever in hand, so that one byte every few seconds buys nothing.
pub const RATE_MIN: u64 = PART_LEN as u64 / STALL.as_secs();

/// What a request takes beside its body, from its arrival until its answer has departed: its tasks, a small record and a small answer.
pub const REQUEST_LEN: usize = 8 << 10;

/// The longest time that a request is worked on, whatever its caller says.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How long the other end must have been silent before a missed deadline closes the connection. A living one acknowledges
/// within 25 ms and a round trip; this allows for a pause of the process, and is well below the idle time-out.
const SILENCE: Duration = Duration::from_millis(500);

/// Frames that a writer takes from its queue at once: enough for one write of many small ones.
const BATCH: usize = 128;

/// Answers that wait for the writer of a lane; beyond it handlers wait.
const ANSWERS: usize = 256;

/// Chunks that are taken from a stream at once; a chunk is at most a packet.
const CHUNKS: usize = 8;

/// Requests count one for each of so many bytes.
const UNIT: usize = 16 << 10;

/// How long before its caller gives up a request is refused that still waits for its turn: the way back.
const REFUSAL_MARGIN: Duration = Duration::from_millis(20);

struct Caller {
    link: Arc<Link>,
    config: LanesConfig,
    /// The lanes of each class, opened on first use.
    classes: Mutex<BTreeMap<u8, Vec<Option<Arc<Lane>>>>>,
}

impl Caller {
    /// Picks a lane, opens it if need be, and enters a call there.
    fn register(&self, class: u8, len: usize) -> Result<(Registered, oneshot::Receiver<Answer>), CallError> {
        if let Some(error) = self.link.connection.close_reason() {
            return Err(CallError::NotSent(format!("the connection is closed: {}", explain_connection_error(&error))));
        }
        let mut classes = lock(&self.classes);
        let lanes = classes.entry(class).or_insert_with(|| vec![None; self.config.lanes_per_class]);
        let slot = if len <= PART_LEN || lanes.len() == 1 {
            0
        } else {
            let waiting = |slot: &usize| lanes[*slot].as_ref().map_or(0, |lane| lane.shared.calls().waiting.len());
            (1..lanes.len()).min_by_key(waiting).expect("there are at least two")
        };
        let open = lanes[slot].take().filter(|lane| !lane.shared.calls().dead);
        let lane = open.unwrap_or_else(|| Arc::new(Lane::open(self.link.clone(), class, &self.config)));
        lanes[slot] = Some(lane.clone());
        drop(classes);

        let (sender, answer) = oneshot::channel();
        let mut calls = lane.shared.calls();
        if calls.dead {
            return Err(CallError::NotSent("the lane has just failed".into()));
        }
        let most = buggify!("lanes: few calls at a time", self.config.in_flight_max, 2);
        if calls.waiting.len() >= most {
            return Err(CallError::NotSent(format!(
                "{most} calls are under way on this lane, and no more are allowed"
            )));
        }
        let id = calls.next_id;
        calls.next_id += 1;
        calls.waiting.insert(id, Call { answer: sender, sent: false });
        drop(calls);
        Ok((Registered { lane, id }, answer))
    }
}

/// The connection, and since when nothing has come from it although something was sent.
struct Link {
    connection: Connection,
    silence: Mutex<Silence>,
}

/// At `since` something was sent, and up to then `received` datagrams had come in all. Kept when more is sent and nothing
/// has come in between, so that `since` is the first send of the silence.
struct Silence {
    received: u64,
    since: Instant,
}

impl Link {
    fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    fn note_send(&self, now: Instant) {
        let received = self.received();
        let mut silence = lock(&self.silence);
        if silence.received != received {
            *silence = Silence { received, since: now };
        }
    }

    fn close_if_silent(&self) {
        let silent = {
            let silence = lock(&self.silence);
            silence.received == self.received() && silence.since.elapsed() >= SILENCE.max(4 * self.connection.rtt())
        };
        if silent {
            self.connection.close(close::SILENT, b"a deadline passed and nothing at all was heard from you");
        }
    }
}

/// The calling end of a lane. Dropping it ends its tasks.
struct Lane {
    queue: mpsc::Sender<Outgoing>,
    shared: Arc<LaneShared>,
    task: AbortHandle,
}

struct Outgoing {
    id: u64,
    deadline: Instant,
    body: Bytes,
}

struct LaneShared {
    link: Arc<Link>,
    calls: Mutex<Calls>,
}

struct Calls {
    dead: bool,
    next_id: u64,
    /// Calls without an answer yet; bounded by `in_flight_max`. Ordered, so that a failing lane wakes them in order.
    waiting: BTreeMap<u64, Call>,
}

type Answer = Result<Bytes, CallError>;

struct Call {
    answer: oneshot::Sender<Answer>,
    /// Set by the writer before it hands over the first byte. A call that is taken out of the map before is skipped there.
    sent: bool,
}

/// Forgets a call when its caller does.
struct Registered {
    lane: Arc<Lane>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.lane.shared.calls().waiting.remove(&self.id);
    }
}

impl Lane {
    fn open(link: Arc<Link>, class: u8, config: &LanesConfig) -> Self {
        // As long as the map of waiting calls is: it is full only when the writer lags behind calls that gave up.
        let (queue, outgoing) = mpsc::channel(config.in_flight_max);
        let calls = Mutex::new(Calls { dead: false, next_id: 0, waiting: BTreeMap::new() });
        let shared = Arc::new(LaneShared { link, calls });
        let task = tokio::spawn(shared.clone().run(class, outgoing, config.answer_max)).abort_handle();
        Self { queue, shared, task }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LaneShared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        lock(&self.calls)
    }

    async fn run(self: Arc<Self>, class: u8, outgoing: mpsc::Receiver<Outgoing>, answer_max: usize) {
        let why = match self.link.connection.open_bi().await {
            Err(error) => explain_connection_error(&error),
            Ok((send, recv)) => {
                let mut halves = JoinSet::new();
                halves.spawn(self.clone().write(class, send, outgoing));
                halves.spawn(self.clone().read(recv, answer_max));
                match halves.join_next().await.expect("two tasks were spawned") {
                    Ok(why) => why,
                    Err(error) => error.to_string(),
                }
            }
        };
        let mut calls = self.calls();
        calls.dead = true;
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for call in waiting.into_values() {
            let error = if call.sent { CallError::Unknown(why.clone()) } else { CallError::NotSent(why.clone()) };
            sometimes!("lanes: a call failed before it was sent", !call.sent);
            sometimes!("lanes: a call failed after it was sent", call.sent);
            // Fails only when the caller has gone.
            let _ = call.answer.send(Err(error));
        }
    }

    async fn write(self: Arc<Self>, class: u8, mut send: SendStream, mut outgoing: mpsc::Receiver<Outgoing>) -> String {
        let mut framer = Framer::new(Direction::Request);
        let mut batch = Vec::with_capacity(BATCH);
        let mut first = Some(Bytes::copy_from_slice(&[class]));
        loop {
            if framer.is_empty() {
                if outgoing.recv_many(&mut batch, BATCH).await == 0 {
                    return "the lane was dropped".into();
                }
                others_first().await;
            }
            let most = buggify!("lanes: frames are written one by one", BATCH, 1);
            while batch.len() < most && !framer.is_backed_up() {
                let Ok(more) = outgoing.try_recv() else { break };
                batch.push(more);
            }
            let now = Instant::now();
            let mut marked = Vec::with_capacity(batch.len());
            {
                let mut calls = self.calls();
                for Outgoing { id, deadline, body } in batch.drain(..) {
                    // Whoever is not waiting any more was told that nothing was sent.
                    let Some(call) = calls.waiting.get_mut(&id) else { continue };
                    call.sent = true;
                    marked.push(id);
                    let left = deadline.saturating_duration_since(now).as_millis();
                    framer.push(id, left.clamp(1, u128::from(u32::MAX)) as u32, body);
                }
            }
            if framer.is_empty() {
                continue;
            }
            self.link.note_send(now);
            let mut chunks: Vec<Bytes> = first.take().into_iter().chain(framer.take()).collect();
            let mut rest = &mut chunks[..];
            let mut nothing_written = true;
            while !rest.is_empty() {
                match send.write_chunks(rest).await {
                    Ok(written) => {
                        nothing_written &= written.bytes == 0;
                        rest = &mut rest[written.chunks..];
                    }
                    Err(error) => {
                        if nothing_written {
                            let mut calls = self.calls();
                            for id in marked {
                                calls.waiting.get_mut(&id).into_iter().for_each(|call| call.sent = false);
                            }
                        }
                        return self.why(&error.to_string());
                    }
                }
            }
        }
    }

    async fn read(self: Arc<Self>, recv: RecvStream, answer_max: usize) -> String {
        let mut reader = Reader::new(recv, Direction::Answer, answer_max, Budget::unbounded());
        let mut answered = Vec::new();
        loop {
            match reader.fill().await {
                Ok(Filled::Bytes | Filled::Expired) => {}
                Ok(Filled::End) => return self.why("it has ended the lane"),
                Err(ReadFailure::Lost(why)) => return self.why(&why),
                Err(ReadFailure::Stalled(why)) => return self.close(&why),
            }
            {
                let mut calls = self.calls();
                loop {
                    let frame = match reader.deframer.next_frame() {
                        Ok(Some(Received::Whole(frame, _))) => frame,
                        // It has no bound on bytes that could be reached.
                        Ok(Some(Received::Refused { .. })) => continue,
                        Ok(None) => break,
                        Err(error) => {
                            drop(calls);
                            return self.close(&error.to_string());
                        }
                    };
                    if frame.id >= calls.next_id {
                        drop(calls);
                        return self.close("an answer to a request that was never made");
                    }
                    // An answer that comes after its caller's deadline finds nobody.
                    if let Some(call) = calls.waiting.remove(&frame.id) {
                        answered.push((call.answer, frame.body));
                    }
                }
            }
            for (answer, body) in answered.drain(..) {
                // Fails only when the caller has gone.
                let _ = answer.send(Ok(body));
            }
        }
    }

    /// The connection's end says more than the stream's.
    fn why(&self, otherwise: &str) -> String {
        match self.link.connection.close_reason() {
            Some(error) => explain_connection_error(&error),
            None => otherwise.to_owned(),
        }
    }

    fn close(&self, why: &str) -> String {
        self.link.connection.close(close::PROTOCOL, why.as_bytes());
        format!("it broke the protocol: {why}")
    }
}

/// The receiving half of a lane, either way.
struct Reader {
    recv: RecvStream,
    deframer: Deframer,
    chunks: Vec<Bytes>,
    unfinished: Option<Unfinished>,
    /// When it last gave something: what passes until it is asked again is not held against the other end.
    gave: Instant,
}

/// Something that the other end has begun.
#[derive(Debug, Clone, Copy)]
struct Unfinished {
    which: u64,
    since: Instant,
    pace: Pace,
    /// Nobody waits for it any more.
    expired: bool,
}

/// What a [`Reader`] has come to.
enum Filled {
    /// There is more to look at.
    Bytes,
    /// The time of the request that is arriving is over: what has come of it was thrown away, and the rest will be.
    Expired,
    /// The other end has ended the stream.
    End,
}

enum ReadFailure {
    /// The stream or the connection ended.
    Lost(String),
    /// The other end does not go on with what it has begun.
    Stalled(String),
}

/// Demands progress: see [`RATE_MIN`].
#[derive(Debug, Clone, Copy)]
struct Pace {
    until: Instant,
    bytes: u64,
}

impl Pace {
    /// From now on; so many bytes have gone before.
    fn begin(bytes: u64, now: Instant) -> Self {
        Self { until: now + STALL, bytes }
    }

    /// So many bytes have gone in all.
    fn note(&mut self, bytes: u64, now: Instant) {
        let gained = Duration::from_micros((bytes - self.bytes).saturating_mul(1_000_000) / RATE_MIN);
        self.bytes = bytes;
        self.until = (self.until + gained).min(now + STALL);
    }
}

impl Reader {
    fn new(recv: RecvStream, direction: Direction, body_max: usize, budget: Budget) -> Self {
        let deframer = Deframer::new(direction, body_max, budget);
        Self { recv, deframer, chunks: vec![Bytes::new(); CHUNKS], unfinished: None, gave: Instant::now() }
    }

    /// Waits for bytes and hands them to the deframer. Loses nothing when it is dropped.
    async fn fill(&mut self) -> Result<Filled, ReadFailure> {
        let now = Instant::now();
        self.unfinished = match (self.deframer.owed(), self.unfinished) {
            (None, _) => None,
            (Some(owed), Some(mut before)) if owed.which == before.which => {
                before.pace.until += now - self.gave;
                before.pace.note(owed.bytes, now);
                Some(before)
            }
            (Some(owed), _) => {
                Some(Unfinished { which: owed.which, since: now, pace: Pace::begin(owed.bytes, now), expired: false })
            }
        };
        let read = self.recv.read_chunks(&mut self.chunks);
        let read = match self.unfinished {
            None => read.await,
            Some(unfinished) => {
                let timeout_ms = self.deframer.owed().and_then(|owed| owed.timeout_ms);
                let expires = timeout_ms.filter(|_| !unfinished.expired).map(|ms| unfinished.since + allowed(ms));
                let until = expires.map_or(unfinished.pace.until, |expires| expires.min(unfinished.pace.until));
                match timeout_at(until, read).await {
                    Ok(read) => read,
                    Err(_) if until < unfinished.pace.until => {
                        self.unfinished = Some(Unfinished { expired: true, ..unfinished });
                        self.deframer.discard();
                        self.gave = Instant::now();
                        return Ok(Filled::Expired);
                    }
                    Err(_) => {
                        let why = format!("what was begun did not go on: at least {RATE_MIN} bytes/s are demanded");
                        return Err(ReadFailure::Stalled(why));
                    }
                }
            }
        };
        self.gave = Instant::now();
        match read {
            Ok(Some(count)) => {
                for chunk in &mut self.chunks[..count] {
                    self.deframer.push(std::mem::take(chunk));
                }
                Ok(Filled::Bytes)
            }
            // Also within a frame: a caller that goes away while it writes ends its lane anywhere.
            Ok(None) => Ok(Filled::End),
            Err(error) => Err(ReadFailure::Lost(error.to_string())),
        }
    }
}

impl Reader {
    /// Whether a request is arriving that is larger than this, and that anybody still waits for.
    fn is_large(&self, large_from: usize) -> bool {
        let expired = self.unfinished.is_some_and(|unfinished| {
            unfinished.expired && self.deframer.owed().is_some_and(|owed| owed.which == unfinished.which)
        });
        self.deframer.partial_len() > large_from && !expired
    }
}

/// Lets every task run that is ready, before a writer takes what is queued: it is woken by the first message, and would send a packet for
/// that one alone while those that come next to it are about to be queued. Costs nothing where nobody else has anything to do.
async fn others_first() {
    tokio::task::yield_now().await;
}

/// How long a request is worked on whose caller waits for so long.
fn allowed(timeout_ms: u32) -> Duration {
    Duration::from_millis(timeout_ms.into()).min(TIMEOUT_MAX)
}

struct Server<H> {
    handler: H,
    limits: ServeLimits,
    permits: Vec<Arc<Semaphore>>,
}

/// Why a lane is not served any more.
enum End {
    /// It is over, as lanes are.
    Over,
    /// What the other end did wrong.
    Violation(String),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Violation(error.to_string())
    }
}

impl<H: Handler> Server<H> {
    /// Serves a lane until it ends.
    async fn lane(self: Arc<Self>, send: SendStream, recv: RecvStream) -> Result<(), String> {
        match self.serve(send, recv).await {
            Ok(()) | Err(End::Over) => Ok(()),
            Err(End::Violation(why)) => Err(why),
        }
    }

    async fn serve(self: Arc<Self>, send: SendStream, mut recv: RecvStream) -> Result<(), End> {
        let mut first = [0];
        match timeout(STALL, recv.read_exact(&mut first)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(End::Violation(format!("a stream was opened and nothing came within {STALL:?}"))),
        }
        let class = first[0];
        let Some(limits) = self.limits.classes.get(usize::from(class)) else {
            let known = self.limits.classes.len();
            return Err(End::Violation(format!(
                "requests of class {class}, this side knows the classes below {known}"
            )));
        };
        let (answers, queue) = mpsc::channel(ANSWERS);
        let mut writer = JoinSet::new();
        writer.spawn(write_answers(send, queue, self.limits.counts.clone()));
        let panicked = Arc::new(Notify::new());
        let mut requests = JoinSet::new();
        let mut serving = Serving { server: self.clone(), class, limits, answers, writer, large: None, patience: None };
        let mut reader = Reader::new(recv, Direction::Request, limits.request_max, limits.arriving.clone());
        loop {
            tokio::select! {
                biased;
                Some(ended) = serving.writer.join_next() => return ended.unwrap_or(Ok(())),
                () = panicked.notified() => {
                    tracing::error!(class, "a request's handler has panicked; its lane is closed");
                    return Ok(());
                }
                filled = reader.fill() => match filled {
                    Ok(Filled::Bytes) => {}
                    Ok(Filled::Expired) => {
                        sometimes!("lanes: a request's time was over before it had arrived");
                        self.limits.counts.expired.fetch_add(1, Ordering::Relaxed);
                        serving.large = None;
                    }
                    Ok(Filled::End) | Err(ReadFailure::Lost(_)) => return Ok(()),
                    Err(ReadFailure::Stalled(why)) => {
                        sometimes!("lanes: a request that did not arrive was cut off");
                        self.limits.counts.arrivals_cut.fetch_add(1, Ordering::Relaxed);
                        return Err(End::Violation(why));
                    }
                },
            }
            while requests.try_join_next().is_some() {}
            while let Some(received) = reader.deframer.next_frame()? {
                let at = Instant::now();
                let (frame, arriving) = match received {
                    Received::Whole(frame, charge) => (frame, charge),
                    Received::Refused { id } => {
                        sometimes!("lanes: a request was refused while it arrived");
                        serving.refuse(&mut reader, id).await?;
                        continue;
                    }
                };
                let until = at + allowed(frame.timeout_ms);
                let Some((permit, mut charge)) = serving.turn(&mut reader, frame.body.len(), at, until).await? else {
                    sometimes!("lanes: a request waited in vain for its turn");
                    serving.refuse(&mut reader, frame.id).await?;
                    continue;
                };
                drop(arriving);
                let (server, answers) = (self.clone(), serving.answers.clone());
                let (room, panic_guard) = (Room::new(limits.answering.clone()), PanicGuard(panicked.clone()));
                requests.spawn(async move {
                    let _panic_guard = panic_guard;
                    let _permit = permit;
                    let Frame { id, body, .. } = frame;
                    let body = charge.split(body.len()).guard(body);
                    let work = async {
                        dawdle!("lanes: a pause before a request is handled");
                        let timeout = until.saturating_duration_since(Instant::now());
                        let request = Arrived { class, body, timeout, room: room.clone() };
                        let answer = server.handler.handle(request).await;
                        dawdle!("lanes: a pause before an answer is sent");
                        answer
                    };
                    if let Ok(answer) = timeout_at(until, work).await {
                        let mut charges =
                            if answer.len() > REQUEST_LEN { room.split(answer.len()) } else { Vec::new() };
                        charges.push(charge);
                        // What is over is free, unless somebody goes on with it.
                        drop(room);
                        // Fails only when the lane ends.
                        let _ = answers.send(Departing { id, body: answer, charges }).await;
                    }
                });
            }
            if serving.large.is_none() && reader.is_large(limits.serving.large_from) {
                sometimes!("lanes: a large request was let in");
                reader.deframer.detach();
                serving.large = Some(serving.unless_ended(limits.serving.large.take(limits.request_max)).await?);
            }
        }
    }
}

/// The serving end of a lane.
struct Serving<'a, H> {
    server: Arc<Server<H>>,
    class: u8,
    limits: &'a ClassLimits,
    answers: mpsc::Sender<Departing>,
    writer: JoinSet<Result<(), End>>,
    /// What was taken for a large request that is arriving.
    large: Option<Charge>,
    /// Until when requests wait for room, as long as there is none: those behind one that has waited in vain are refused at once.
    patience: Option<Instant>,
}

impl<H: Handler> Serving<'_, H> {
    /// Waits until a request of so many bytes may be served; nothing if that takes too long.
    ///
    /// A large one takes its bytes before its place among those that are under way, all others the other way round: whoever waits
    /// for the one never holds what somebody waits for who holds the other.
    async fn turn(
        &mut self,
        reader: &mut Reader,
        len: usize,
        at: Instant,
        until: Instant,
    ) -> Result<Option<(OwnedSemaphorePermit, Charge)>, End> {
        let units = (1 + len / UNIT).min(self.limits.in_flight_max as usize) as u32;
        let permits = self.server.permits[usize::from(self.class)].clone();
        let (bytes, budget) = (len + REQUEST_LEN, self.limits.serving.of(len).clone());
        let (is_large, large) = (len > self.limits.serving.large_from, self.large.take());
        if !is_large
            && let Ok(permit) = permits.clone().try_acquire_many_owned(units)
            && let Some(charge) = budget.try_take(bytes)
        {
            self.patience = None;
            return Ok(Some((permit, charge)));
        }
        // Also what waits takes room.
        let Some(_waiting) = self.waiting(reader) else { return Ok(None) };
        sometimes!("lanes: a request waited for its turn");
        let patience = *self.patience.get_or_insert(at + (until - at) / 8);
        let turn = async {
            let large = match large {
                None if is_large => Some(budget.take(bytes).await),
                large => large.filter(|_| is_large),
            };
            let permit = permits.acquire_many_owned(units).await.expect("the semaphore is never closed");
            let charge = match large {
                Some(charge) => charge,
                None => timeout_at(patience, budget.take(bytes)).await.ok()?,
            };
            Some((permit, charge))
        };
        // Early enough that its caller still hears of it.
        let until = until - ((until - at) / 8).min(REFUSAL_MARGIN);
        let turn = self.unless_ended(async { timeout_at(until, turn).await.ok().flatten() }).await?;
        if turn.is_some() {
            self.patience = None;
        }
        Ok(turn)
    }

    /// Answers that a request is not carried out. Whoever takes no answers is not told.
    async fn refuse(&mut self, reader: &mut Reader, id: u64) -> Result<(), End> {
        self.server.limits.counts.refused.fetch_add(1, Ordering::Relaxed);
        let refusal = Departing { id, body: self.server.handler.refuse(self.class), charges: Vec::new() };
        let Err(mpsc::error::TrySendError::Full(refusal)) = self.answers.try_send(refusal) else { return Ok(()) };
        let Some(_waiting) = self.waiting(reader) else { return Ok(()) };
        let answers = self.answers.clone();
        // Fails only when the lane ends.
        self.unless_ended(async move { drop(answers.send(refusal).await) }).await
    }

    /// What a lane takes while it waits: what it has read and not looked at, and a body that is too small to be counted else.
    fn waiting(&self, reader: &mut Reader) -> Option<Charge> {
        self.limits.arriving.try_take(reader.deframer.detach() + FREE_LEN)
    }

    /// Waits for something as long as the lane lives.
    async fn unless_ended<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            Some(ended) = self.writer.join_next() => Err(ended.unwrap_or(Ok(())).err().unwrap_or(End::Over)),
            done = wait => Ok(done),
        }
    }
}

/// Tells the lane when the request's task unwinds.
struct PanicGuard(Arc<Notify>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

/// An answer that is to be sent.
struct Departing {
    id: u64,
    body: Bytes,
    charges: Vec<Charge>,
}

/// The last bytes of a write: they are counted, with what is given back, when the other end has acknowledged them.
struct InTransit {
    bytes: Bytes,
    _charges: Vec<Charge>,
    len: u64,
    departed: Arc<AtomicU64>,
}

impl AsRef<[u8]> for InTransit {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for InTransit {
    fn drop(&mut self) {
        self.departed.fetch_add(self.len, Ordering::Relaxed);
    }
}

/// The sending half of a lane's serving end.
struct Departures {
    framer: Framer,
    /// Taken for small answers, which are copied.
    small: Vec<Charge>,
    /// How many bytes were given to the stream.
    written: u64,
    /// How many of them the other end has acknowledged.
    departed: Arc<AtomicU64>,
    pace: Option<Pace>,
    /// How many bytes have to be acknowledged for all that was to be sent when the pace began.
    mark: u64,
}

impl Departures {
    fn push(&mut self, Departing { id, body, charges }: Departing) {
        if body.len() <= COPY_MAX {
            self.small.extend(charges);
            self.framer.push(id, 0, body);
        } else {
            self.framer.push(id, 0, charges.into_iter().fold(body, |body, charge| charge.guard(body)));
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        let mut chunks = self.framer.take();
        let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if let Some(last) = chunks.pop() {
            let (_charges, departed) = (std::mem::take(&mut self.small), self.departed.clone());
            chunks.push(Bytes::from_owner(InTransit { bytes: last, _charges, len, departed }));
        }
        chunks
    }

    /// When the next progress is due, if `rest` is still to be given to the stream; nothing if nothing is to be sent or acknowledged.
    fn due(&mut self, rest: &[Bytes]) -> Option<Instant> {
        let departed = self.departed.load(Ordering::Relaxed);
        if rest.is_empty() && self.framer.is_empty() && departed == self.written {
            self.pace = None;
            return None;
        }
        // Bytes count twice, when they are taken and when they are acknowledged: a pace is made by either.
        let (bytes, now) = (self.written + departed, Instant::now());
        let pace = match &mut self.pace {
            Some(pace) if departed < self.mark => {
                pace.note(bytes, now);
                pace
            }
            // Whatever waited has been taken, perhaps long ago and while nobody looked. What waits now has its own time: a trickle of
            // small answers, of which one is always under way, makes no pace and holds nothing up.
            pace => {
                self.mark = self.written + rest.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
                pace.insert(Pace::begin(bytes, now))
            }
        };
        Some(pace.until)
    }
}

async fn write_answers(
    mut send: SendStream,
    mut queue: mpsc::Receiver<Departing>,
    counts: Arc<Counts>,
) -> Result<(), End> {
    let (framer, departed) = (Framer::new(Direction::Answer), Arc::default());
    let mut departures = Departures { framer, small: Vec::new(), written: 0, departed, pace: None, mark: 0 };
    let mut batch = Vec::with_capacity(BATCH);
    let cut = || {
        sometimes!("lanes: answers that were not taken were cut off");
        counts.departures_cut.fetch_add(1, Ordering::Relaxed);
        Err(End::Violation(format!("answers were not taken: at least {RATE_MIN} bytes/s are demanded")))
    };
    loop {
        let rested = departures.framer.is_empty();
        while departures.framer.is_empty() && batch.is_empty() {
            let due = departures.due(&[]);
            tokio::select! {
                biased;
                count = queue.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if departures.due(&[]).is_some_and(|due| due <= Instant::now()) {
                        return cut();
                    }
                }
            }
        }
        if rested {
            others_first().await;
        }
        while batch.len() < BATCH && !departures.framer.is_backed_up() {
            let Ok(more) = queue.try_recv() else { break };
            batch.push(more);
        }
        batch.drain(..).for_each(|departing| departures.push(departing));
        let mut chunks = departures.take();
        let mut rest = &mut chunks[..];
        while !rest.is_empty() {
            let due = departures.due(rest).expect("there is something to be sent");
            match timeout_at(due, send.write_chunks(rest)).await {
                Ok(Ok(written)) => {
                    departures.written += written.bytes as u64;
                    rest = &mut rest[written.chunks..];
                }
                // The lane or the connection has ended; whoever reads notices too.
                Ok(Err(_)) => return Ok(()),
                Err(_) if departures.due(rest).is_some_and(|due| due > Instant::now()) => {}
                Err(_) => return cut(),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn departures() -> Departures {
        let (framer, departed) = (Framer::new(Direction::Answer), Arc::default());
        Departures { framer, small: Vec::new(), written: 0, departed, pace: None, mark: 0 }
    }

    impl Departures {
        /// A small answer is given to the stream; when the other end would be cut off, and what is to be dropped as it acknowledges.
        fn sends(&mut self) -> (Instant, Vec<Bytes>) {
            self.push(Departing { id: 1, body: Bytes::from_static(b"yes"), charges: Vec::new() });
            let chunks = self.take();
            let due = self.due(&chunks).expect("there is something to be sent");
            self.written += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
            (due, chunks)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_own_time_however_long_ago_the_one_before_was_taken() {
        let mut departures = departures();
        let (due, first) = departures.sends();
        assert_eq!(due, Instant::now() + STALL);
        drop(first);
        // Nobody has looked since. A round trip takes longer than what is left of the first one's time.
        advance(STALL - Duration::from_millis(1)).await;
        let (due, second) = departures.sends();
        assert_eq!(due, Instant::now() + STALL);
        drop(second);
        assert_eq!(departures.due(&[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_of_which_something_is_always_under_way_is_taken_in_time() {
        let mut departures = departures();
        let (_, mut under_way) = departures.sends();
        for _ in 0..100 {
            advance(Duration::from_millis(200)).await;
            let (due, next) = departures.sends();
            assert!(due > Instant::now() + STALL / 2, "{:?} are left", due - Instant::now());
            under_way = next;
        }
        // From here on nothing is taken.
        let due = departures.due(&[]).expect("an answer is under way");
        for _ in 0..20 {
            advance(Duration::from_millis(200)).await;
            let (later, kept) = departures.sends();
            under_way.extend(kept);
            assert!(later < due + Duration::from_millis(200), "what is sent and not taken buys nothing");
        }
    }
}

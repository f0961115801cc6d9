//! Requests and answers over long-lived QUIC streams ("lanes"), multiplexed and coalesced.
//!
//! The side that calls opens a few bidirectional streams for each class of requests, on first use. A lane begins with one
//! byte that names its class; then frames (see [`crate::frame`]) go both ways for as long as the connection lives. One task
//! a lane and side writes everything that is ready in one go, another one reads: with many callers on one connection this
//! costs half of what a stream for each request does (DESIGN.md, Transport). Both sides of a connection may call.
//!
//! ```text
//!  callers -> queue -> writer ==== lane ====> reader -> a task each -> handler
//!     ^                                                                   |
//!     +---- pending <- reader <=== lane ===== writer <- queue <-----------+
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use crate::frame::{Deframer, Direction, Frame, Framer, PART_LEN};
use crate::tls::explain_connection_error;
use crate::{buggify, dawdle, sometimes};

/// Classes of requests that clients send; each has lanes and a budget of its own.
pub mod class {
    /// Reads and writes of single keys, routes, status.
    pub const REQUEST: u8 = 0;
    /// Scans and layout commands: whatever may be large or slow.
    pub const BULK: u8 = 1;
}

/// Why this side closes a connection: the application error codes that go to the other end, with a text.
pub mod close {
    use quinn::VarInt;

    /// All is done.
    pub const DONE: VarInt = VarInt::from_u32(0);
    /// The other end broke the protocol; the text says how.
    pub const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// Nothing was heard from the other end for too long.
    pub const SILENT: VarInt = VarInt::from_u32(2);
    /// This side stops.
    pub const SHUTDOWN: VarInt = VarInt::from_u32(3);
    /// The other end may not connect; the text says why.
    pub const REFUSED: VarInt = VarInt::from_u32(4);
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
                        Err(CallError::NotSent(format!("could not be sent within {timeout:?}: the lane is stalled")))
                    }
                    _ => Err(CallError::Unknown(format!("no answer within {timeout:?}"))),
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
    /// One request. The future is dropped when `timeout` is over (nobody waits for the answer any more) and when the
    /// connection ends. A panic costs the caller this lane, and no one else anything.
    fn handle(&self, class: u8, body: Bytes, timeout: Duration) -> impl Future<Output = Bytes> + Send;
}

/// Bounds of the serving side, for each connection.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// By class number; there are no others.
    pub classes: Vec<ClassLimits>,
}

impl ServeLimits {
    /// What a node grants a client. Requests are taken at twice the size of the largest legal one, so that what is just
    /// too large gets an answer that says so; what is under way is bounded to 16 MiB and to 4 MiB.
    pub fn client() -> Self {
        Self {
            classes: vec![
                ClassLimits { request_max: 2 << 20, in_flight_max: 1024 },
                ClassLimits { request_max: 2 << 20, in_flight_max: 256 },
            ],
        }
    }
}

/// Bounds of one class.
#[derive(Debug, Clone, Copy)]
pub struct ClassLimits {
    /// The largest request, in bytes.
    pub request_max: usize,
    /// Requests under way, counting one for each 16 KiB or part thereof. When it is reached, no more is read from the
    /// class's lanes: the caller is slowed down, not refused.
    pub in_flight_max: u32,
}

/// Serves the requests of a connection until it ends, and tells why it did.
///
/// An end that breaks the protocol (garbage, an oversize frame, an unknown class, a frame that is not completed within
/// [`STALL`], answers that are not read) loses the connection and is told why.
pub async fn serve<H: Handler>(connection: Connection, handler: H, limits: ServeLimits) -> String {
    let permits = limits.classes.iter().map(|class| Arc::new(Semaphore::new(class.in_flight_max as usize))).collect();
    let server = Arc::new(Server { handler, limits, permits });
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = lanes.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(Violation(why))) => {
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

/// How long the other end may leave something unfinished that it has begun: a lane's first byte, a frame, a body in parts,
/// reading an answer. Far above any real delay of a living link, as each part is at most 64 KiB.
pub const STALL: Duration = Duration::from_secs(10);

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
const CHUNKS: usize = 32;

/// Requests count one for each of so many bytes.
const UNIT: usize = 16 << 10;

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
            if framer.is_empty() && outgoing.recv_many(&mut batch, BATCH).await == 0 {
                return "the lane was dropped".into();
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
        let mut reader = Reader::new(recv, Direction::Answer, answer_max);
        let mut answered = Vec::new();
        loop {
            match reader.fill().await {
                Ok(true) => {}
                Ok(false) => return self.why("it has ended the lane"),
                Err(ReadFailure::Lost(why)) => return self.why(&why),
                Err(ReadFailure::Violation(why)) => return self.close(&why),
            }
            {
                let mut calls = self.calls();
                loop {
                    let frame = match reader.deframer.next_frame() {
                        Ok(Some(frame)) => frame,
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
    /// What is owed, and since when.
    owed: Option<(u64, Instant)>,
}

enum ReadFailure {
    /// The stream or the connection ended.
    Lost(String),
    /// The other end broke the protocol.
    Violation(String),
}

impl Reader {
    fn new(recv: RecvStream, direction: Direction, body_max: usize) -> Self {
        Self { recv, deframer: Deframer::new(direction, body_max), chunks: vec![Bytes::new(); CHUNKS], owed: None }
    }

    /// Waits for bytes and hands them to the deframer; false at the end of the stream. Loses nothing when it is dropped.
    async fn fill(&mut self) -> Result<bool, ReadFailure> {
        self.owed = match (self.deframer.owed(), self.owed) {
            (None, _) => None,
            (Some(now), Some((before, since))) if now == before => Some((before, since)),
            (Some(now), _) => Some((now, Instant::now())),
        };
        let read = self.recv.read_chunks(&mut self.chunks);
        let read = match self.owed {
            None => read.await,
            Some((_, since)) => match timeout_at(since + STALL, read).await {
                Ok(read) => read,
                Err(_) => return Err(ReadFailure::Violation(format!("a frame was not completed within {STALL:?}"))),
            },
        };
        match read {
            Ok(Some(count)) => {
                for chunk in &mut self.chunks[..count] {
                    self.deframer.push(&std::mem::take(chunk));
                }
                Ok(true)
            }
            // Also within a frame: a caller that goes away while it writes ends its lane anywhere.
            Ok(None) => Ok(false),
            Err(error) => Err(ReadFailure::Lost(error.to_string())),
        }
    }
}

struct Server<H> {
    handler: H,
    limits: ServeLimits,
    permits: Vec<Arc<Semaphore>>,
}

/// What the other end did wrong.
struct Violation(String);

impl<H: Handler> Server<H> {
    async fn lane(self: Arc<Self>, send: SendStream, mut recv: RecvStream) -> Result<(), Violation> {
        let mut first = [0];
        match timeout(STALL, recv.read_exact(&mut first)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Violation(format!("a stream was opened and nothing came within {STALL:?}"))),
        }
        let class = first[0];
        let Some(limits) = self.limits.classes.get(usize::from(class)) else {
            let known = self.limits.classes.len();
            return Err(Violation(format!("requests of class {class}, this side knows the classes below {known}")));
        };
        let (answers, queue) = mpsc::channel(ANSWERS);
        let mut writer = JoinSet::new();
        writer.spawn(write_answers(send, queue));
        let panicked = Arc::new(Notify::new());
        let mut requests = JoinSet::new();
        let mut reader = Reader::new(recv, Direction::Request, limits.request_max);
        loop {
            tokio::select! {
                biased;
                Some(ended) = writer.join_next() => return ended.unwrap_or(Ok(())),
                () = panicked.notified() => {
                    tracing::error!(class, "a request's handler has panicked; its lane is closed");
                    return Ok(());
                }
                filled = reader.fill() => match filled {
                    Ok(true) => {}
                    Ok(false) | Err(ReadFailure::Lost(_)) => return Ok(()),
                    Err(ReadFailure::Violation(why)) => return Err(Violation(why)),
                },
            }
            while requests.try_join_next().is_some() {}
            while let Some(Frame { id, timeout_ms, body }) =
                reader.deframer.next_frame().map_err(|error| Violation(error.to_string()))?
            {
                let received = Instant::now();
                let units = (1 + body.len() / UNIT).min(limits.in_flight_max as usize) as u32;
                let permits = self.permits[usize::from(class)].clone();
                let permit = tokio::select! {
                    biased;
                    Some(ended) = writer.join_next() => return ended.unwrap_or(Ok(())),
                    permit = permits.acquire_many_owned(units) => permit.expect("the semaphore is never closed"),
                };
                let (server, answers) = (self.clone(), answers.clone());
                let panic_guard = PanicGuard(panicked.clone());
                requests.spawn(async move {
                    let _panic_guard = panic_guard;
                    let _permit = permit;
                    let allowed = Duration::from_millis(timeout_ms.into()).min(TIMEOUT_MAX);
                    let work = async {
                        dawdle!("lanes: a pause before a request is handled");
                        let left = allowed.saturating_sub(received.elapsed());
                        let answer = server.handler.handle(class, body, left).await;
                        dawdle!("lanes: a pause before an answer is sent");
                        answer
                    };
                    if let Ok(answer) = timeout_at(received + allowed, work).await {
                        // Fails only when the lane ends.
                        let _ = answers.send((id, answer)).await;
                    }
                });
            }
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

async fn write_answers(mut send: SendStream, mut queue: mpsc::Receiver<(u64, Bytes)>) -> Result<(), Violation> {
    let mut framer = Framer::new(Direction::Answer);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if framer.is_empty() && queue.recv_many(&mut batch, BATCH).await == 0 {
            return Ok(());
        }
        while batch.len() < BATCH && !framer.is_backed_up() {
            let Ok(more) = queue.try_recv() else { break };
            batch.push(more);
        }
        for (id, answer) in batch.drain(..) {
            framer.push(id, 0, answer);
        }
        let mut chunks = framer.take();
        let mut rest = &mut chunks[..];
        while !rest.is_empty() {
            match timeout(STALL, send.write_chunks(rest)).await {
                Ok(Ok(written)) => rest = &mut rest[written.chunks..],
                // The lane or the connection has ended; whoever reads notices too.
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Violation(format!("answers were not read for {STALL:?}"))),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

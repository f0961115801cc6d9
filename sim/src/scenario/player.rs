//! A named client of a scenario: what it is told to do, and what it says of it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::{Blind, Cause, Client, Context, Error, Quorum, Read, Written};
use quorate_wire::ids::OpId;
use quorate_wire::{self as wire, Evidence, Role};
use tokio::sync::{mpsc, oneshot};

use super::Broken;
use super::stage::{Board, Orders};
use crate::cluster::ClientMachine;
use crate::history::{Action, OpNo, Outcome};
use crate::story;
use crate::workload::{Asked, Notebook, Who, now_us};

/// A client. Clones are the same client.
#[derive(Clone)]
pub struct Player(Rc<Inner>);

struct Inner {
    name: String,
    number: u32,
    orders: RefCell<Option<Orders>>,
    board: Rc<RefCell<Board>>,
    notebook: Notebook,
}

/// A write to come: await it, or [`start`](Self::start) it and go on.
#[must_use = "it does nothing until it is awaited or started"]
#[derive(Clone)]
pub struct Putting {
    player: Player,
    write: Write,
}

/// A delete to come, as [`Putting`].
pub type Deleting = Putting;

/// A read to come: await it, or [`start`](Self::start) it and go on.
#[must_use = "it does nothing until it is awaited or started"]
#[derive(Clone)]
pub struct Getting {
    player: Player,
    key: String,
    r: Quorum,
    strict: bool,
    timeout_ms: u64,
}

/// Something that is under way; await it for its end.
#[must_use = "its end is worth waiting for"]
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<T>);

/// How a write ended.
#[derive(Clone)]
pub struct Wrote {
    putting: Putting,
    no: OpNo,
    op_id: Option<OpId>,
    context: Option<Context>,
    outcome: Outcome,
    /// How many values the key had then, as far as the reply says.
    siblings: u32,
    /// Somebody stood in for a primary.
    degraded: bool,
}

/// How a read ended.
#[derive(Debug, Clone)]
pub struct Saw {
    who: String,
    key: String,
    /// The operation that saw it.
    no: OpNo,
    values: Vec<String>,
    context: Option<Context>,
    outcome: Outcome,
}

/// What a write is, again for each of its tries.
#[derive(Clone)]
struct Write {
    key: String,
    /// Nothing for a delete.
    value: Option<String>,
    /// The context, and the operation that gave it.
    cause: Option<(Context, OpNo)>,
    w: Quorum,
    strict: bool,
    timeout_ms: u64,
    again: Option<(OpNo, OpId)>,
}

/// What a client is told to do.
pub(super) enum Order {
    Connect,
    Write(Putting, oneshot::Sender<Wrote>),
    Read(Getting, oneshot::Sender<Saw>),
}

impl Player {
    pub(super) fn new(name: &str, number: u32, orders: Orders, board: Rc<RefCell<Board>>, notebook: Notebook) -> Self {
        Self(Rc::new(Inner { name: name.to_owned(), number, orders: RefCell::new(Some(orders)), board, notebook }))
    }

    /// Writes a value, having seen nothing; see [`Putting::after`]. W is a majority unless said otherwise.
    pub fn put(&self, key: &str, value: &str) -> Putting {
        self.write(key, Some(value.to_owned()))
    }

    /// Deletes what was seen, which has to be said with [`after`](Putting::after): a delete that has seen nothing deletes nothing.
    pub fn delete(&self, key: &str) -> Deleting {
        self.write(key, None)
    }

    /// Reads. R is a majority unless said otherwise.
    pub fn get(&self, key: &str) -> Getting {
        let (player, key, r) = (self.clone(), key.to_owned(), Quorum::Majority);
        Getting { player, key, r, strict: false, timeout_ms: TIMEOUT_MS }
    }

    pub(super) async fn connect(&self) {
        self.order(Order::Connect);
    }

    pub(super) fn leave(&self) {
        self.0.orders.borrow_mut().take();
    }

    fn write(&self, key: &str, value: Option<String>) -> Putting {
        let (key, w) = (key.to_owned(), Quorum::Majority);
        let write = Write { key, value, cause: None, w, strict: false, timeout_ms: TIMEOUT_MS, again: None };
        Putting { player: self.clone(), write }
    }

    fn order(&self, order: Order) {
        let orders = self.0.orders.borrow();
        let orders = orders.as_ref().expect("clients stay until the script is over");
        assert!(orders.try_send(order).is_ok(), "{} has too much to do at a time", self.0.name);
    }

    fn says(&self, what: &str) {
        self.0.board.borrow_mut().line(&self.0.name, what);
    }

    fn who(&self) -> Who {
        Who { client: self.0.number, session: 1 }
    }
}

impl Putting {
    /// The write replaces what this read, or this write, has seen.
    ///
    /// # Panics
    /// When what is given failed: it has seen nothing then, and the script should have noticed.
    pub fn after(mut self, seen: &impl Seen) -> Self {
        let (context, no) = seen.seen();
        self.write.cause = Some((context.expect("what failed has seen nothing: demand its success first"), no));
        self
    }

    /// How many replicas must hold it.
    pub fn w(mut self, w: Quorum) -> Self {
        self.write.w = w;
        self
    }

    /// Only primaries count.
    pub fn strict(mut self) -> Self {
        self.write.strict = true;
        self
    }

    /// When to give up; after a second if nothing is said.
    pub fn timeout_ms(mut self, ms: u64) -> Self {
        self.write.timeout_ms = ms;
        self
    }

    /// Begins now; the script goes on meanwhile.
    pub fn start(self) -> Pending<Wrote> {
        let (done, pending) = oneshot::channel();
        self.player.clone().order(Order::Write(self, done));
        Pending(pending)
    }

    async fn perform(self, client: &Client) -> Wrote {
        let Write { key, value, cause, w, strict, timeout_ms, again } = self.write.clone();
        let player = self.player.clone();
        let giver = cause.as_ref().map(|(_, giver)| *giver);
        let action = match &value {
            Some(_) => Action::Put { cause: giver },
            None => Action::Delete { cause: giver },
        };
        let no = match again {
            Some((no, _)) => no,
            None => player.0.notebook.begin(player.who(), &key, Asked { quorum: w, strict }, action, now_us()),
        };
        story::begins(player.0.number, no);
        let begun_us = now_us();
        let seen = match giver {
            None => ", having seen nothing".to_owned(),
            Some(giver) => format!(", having seen the answer to {giver}"),
        };
        let what = match &value {
            Some(value) => format!("put {key} = {value:?}"),
            None => format!("delete {key}"),
        };
        let retry = if again.is_some() { "the same operation again: " } else { "" };
        player.says(&format!("{no}: {retry}{what}{seen}, W = {w}{}", if strict { ", strict" } else { "" }));
        let (cause, timeout) = match cause {
            Some((context, _)) => (Cause::from(context), Duration::from_millis(timeout_ms)),
            None => (Cause::from(Blind), Duration::from_millis(timeout_ms)),
        };
        let op_id = again.map(|(_, op_id)| op_id);
        let written = match &value {
            Some(value) => {
                player.0.board.borrow_mut().values.insert(no, value.clone());
                let mut put = client.put(&key, bytes(no, value), cause).w(w).timeout(timeout).explain();
                put = if strict { put.strict() } else { put };
                put = if let Some(op_id) = op_id { put.op_id(op_id) } else { put };
                put.await
            }
            None => {
                let mut delete = client.delete(&key, cause).w(w).timeout(timeout).explain();
                delete = if strict { delete.strict() } else { delete };
                delete = if let Some(op_id) = op_id { delete.op_id(op_id) } else { delete };
                delete.await
            }
        };
        self.ended(no, begun_us, written)
    }

    fn ended(&self, no: OpNo, begun_us: u64, written: Result<Written, Error>) -> Wrote {
        let player = &self.player;
        let quorum = written.as_ref().ok().map(Written::quorum);
        let outcome = match &written {
            Ok(_) => Outcome::Written,
            Err(error) => failed(error),
        };
        let how = match (&written, &outcome) {
            (Ok(written), _) => {
                let beside = match written.siblings() {
                    0 | 1 => String::new(),
                    more => format!("; {more} values stand beside each other now"),
                };
                format!("acknowledged{}{beside}", evidence(written.evidence()))
            }
            (Err(_), Outcome::Unknown(why)) => format!("UNKNOWN: {why}"),
            (Err(_), Outcome::NotApplied(why)) => format!("NOT APPLIED: {why}"),
            (Err(error), Outcome::Written | Outcome::Found(_)) => unreachable!("{error}"),
        };
        player.says(&format!("{no}: {how}"));
        player.0.notebook.end(no, outcome.clone(), quorum);
        let tried = (begun_us, now_us(), outcome.clone());
        player.0.board.borrow_mut().tries.entry(no).or_default().push(tried);
        let op_id = match &written {
            Ok(written) => Some(written.op_id()),
            Err(error) => error.op_id(),
        };
        let siblings = written.as_ref().map_or(0, Written::siblings);
        let degraded = written.as_ref().is_ok_and(|written| written.quorum().degraded);
        let context = written.ok().map(|written| written.context().clone());
        Wrote { putting: self.clone(), no, op_id, context, outcome, siblings, degraded }
    }
}

impl Getting {
    /// How many replicas must answer.
    pub fn r(mut self, r: Quorum) -> Self {
        self.r = r;
        self
    }

    /// Only primaries count.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// When to give up; after a second if nothing is said.
    pub fn timeout_ms(mut self, ms: u64) -> Self {
        self.timeout_ms = ms;
        self
    }

    /// Begins now; the script goes on meanwhile.
    pub fn start(self) -> Pending<Saw> {
        let (done, pending) = oneshot::channel();
        self.player.clone().order(Order::Read(self, done));
        Pending(pending)
    }

    async fn perform(self, client: &Client) -> Saw {
        let Self { player, key, r, strict, timeout_ms } = self;
        let no = player.0.notebook.begin(
            player.who(),
            &key,
            Asked { quorum: r, strict },
            Action::Get { monotonic: false },
            now_us(),
        );
        player.says(&format!("{no}: get {key}, R = {r}{}", if strict { ", strict" } else { "" }));
        let mut get = client.get(&key).r(r).timeout(Duration::from_millis(timeout_ms)).explain();
        get = if strict { get.strict() } else { get };
        let read = get.allow_absent().await;
        let outcome = match &read {
            Ok(read) => Outcome::Found(read.siblings().iter().map(|value| number(value)).collect::<BTreeSet<_>>()),
            Err(error) => failed(error),
        };
        let mut values: Vec<String> =
            read.as_ref().map(|read| read.siblings().iter().map(|value| text(value)).collect()).unwrap_or_default();
        values.sort();
        let how = match &read {
            Ok(read) => format!("finds {}{}", shown(&values), evidence(read.evidence())),
            Err(error) => format!("FAILED: {error}"),
        };
        player.says(&format!("{no}: {how}"));
        player.0.notebook.end(no, outcome.clone(), read.as_ref().ok().map(Read::quorum));
        let context = read.ok().map(|read| read.context().clone());
        Saw { who: player.0.name.clone(), key, no, values, context, outcome }
    }
}

impl IntoFuture for Putting {
    type Output = Wrote;
    type IntoFuture = Pin<Box<dyn Future<Output = Wrote>>>;

    fn into_future(self) -> Self::IntoFuture {
        self.start().into_future()
    }
}

impl IntoFuture for Getting {
    type Output = Saw;
    type IntoFuture = Pin<Box<dyn Future<Output = Saw>>>;

    fn into_future(self) -> Self::IntoFuture {
        self.start().into_future()
    }
}

impl<T: 'static> IntoFuture for Pending<T> {
    type Output = T;
    type IntoFuture = Pin<Box<dyn Future<Output = T>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.0.await.expect("a client ends what it has begun") })
    }
}

/// What can be the cause of a write: a read or a write that succeeded.
pub trait Seen {
    /// The context, and the operation that gave it.
    #[doc(hidden)]
    fn seen(&self) -> (Option<Context>, OpNo);
}

impl Seen for Saw {
    fn seen(&self) -> (Option<Context>, OpNo) {
        (self.context.clone(), self.no)
    }
}

impl Seen for Wrote {
    fn seen(&self) -> (Option<Context>, OpNo) {
        (self.context.clone(), self.no)
    }
}

impl Wrote {
    /// Demands that it was acknowledged.
    ///
    /// # Errors
    /// When it was not.
    pub fn acknowledged(self) -> Result<Self, Broken> {
        match self.outcome {
            Outcome::Written => Ok(self),
            _ => Err(self.broken("acknowledged")),
        }
    }

    /// Demands that it was refused: it has not happened and will not.
    ///
    /// # Errors
    /// When it may have happened.
    pub fn refused(self) -> Result<Self, Broken> {
        match self.outcome {
            Outcome::NotApplied(_) => Ok(self),
            _ => Err(self.broken("refused")),
        }
    }

    /// Demands that its outcome is unknown: it may have happened.
    ///
    /// # Errors
    /// When the client knows.
    pub fn unknown(self) -> Result<Self, Broken> {
        match self.outcome {
            Outcome::Unknown(_) => Ok(self),
            _ => Err(self.broken("of unknown outcome")),
        }
    }

    /// How many values stood beside each other after it; 0 when it failed.
    pub fn siblings(&self) -> u32 {
        self.siblings
    }

    /// Whether somebody stood in for a primary, so that it is not yet where it belongs.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }

    /// The same operation once more, by its operation id: however often it is made, it happens once.
    ///
    /// # Panics
    /// When it was refused, so that there is nothing to repeat.
    pub fn again(&self) -> Putting {
        let op_id = self.op_id.expect("only a write that may have happened is repeated; a refused one is made anew");
        let mut putting = self.putting.clone();
        putting.write.again = Some((self.no, op_id));
        putting
    }

    fn broken(&self, wanted: &str) -> Broken {
        let Inner { name, .. } = &*self.putting.player.0;
        let was = match &self.outcome {
            Outcome::Written => "it was acknowledged".to_owned(),
            Outcome::NotApplied(why) => format!("it was refused: {why}"),
            Outcome::Unknown(why) => format!("its outcome is unknown: {why}"),
            Outcome::Found(_) => unreachable!("it is a write"),
        };
        Broken(format!("the write {} of {name} to {} should be {wanted}, but {was}", self.no, self.putting.write.key))
    }
}

impl Saw {
    /// Demands that it found exactly these values, in any order; none for a key that is absent.
    ///
    /// # Errors
    /// When it found others, or failed.
    pub fn shows(self, values: &[&str]) -> Result<Self, Broken> {
        let mut wanted: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        wanted.sort();
        let found = matches!(self.outcome, Outcome::Found(_));
        if found && self.values == wanted {
            return Ok(self);
        }
        Err(self.broken(&format!("find {}", shown(&wanted))))
    }

    /// Demands that it failed.
    ///
    /// # Errors
    /// When it was answered.
    pub fn failed(self) -> Result<Self, Broken> {
        match self.outcome {
            Outcome::Found(_) => Err(self.broken("fail")),
            Outcome::Written | Outcome::NotApplied(_) | Outcome::Unknown(_) => Ok(self),
        }
    }

    /// What it found, in order; several are siblings.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn broken(&self, wanted: &str) -> Broken {
        let was = match &self.outcome {
            Outcome::NotApplied(why) | Outcome::Unknown(why) => format!("failed: {why}"),
            Outcome::Found(_) | Outcome::Written => format!("found {}", shown(&self.values)),
        };
        Broken(format!("the read {} of {} by {} should {wanted}, but it {was}", self.no, self.key, self.who))
    }
}

macro_rules! debug_by_name {
    ($($type:ty: $name:expr),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name: fn(&Self) -> String = $name;
                write!(f, "{}({})", stringify!($type), name(self))
            }
        }
    )*};
}

debug_by_name!(
    Player: |player| player.0.name.clone(),
    Putting: |putting| putting.write.key.clone(),
    Getting: |getting| getting.key.clone(),
    Wrote: |wrote| format!("{}: {:?}", wrote.no, wrote.outcome)
);

/// A client's machine: carries out its orders, beside each other, until there will be no more.
pub(super) async fn live(
    machine: ClientMachine,
    number: u16,
    mut orders: mpsc::Receiver<Order>,
    player: Player,
) -> turmoil::Result {
    let mut connected: Option<Client> = None;
    // The player keeps a sender, which is not to keep this going.
    let player = Rc::downgrade(&player.0);
    while let Some(order) = orders.recv().await {
        let Some(inner) = player.upgrade() else { break };
        let client = match connected.take() {
            Some(client) => client,
            None => match machine.connect(number, false, Duration::from_millis(TIMEOUT_MS)).await {
                Ok(client) => client,
                Err(error) => {
                    Player(inner.clone()).says(&format!("cannot connect: {error}"));
                    return Err(error.into());
                }
            },
        };
        connected = Some(client.clone());
        let client_number = inner.number;
        let perform = async move {
            match order {
                Order::Connect => inner.board.borrow_mut().ready += 1,
                // Whoever asked may not wait for the end.
                Order::Write(putting, done) => drop(done.send(putting.perform(&client).await)),
                Order::Read(getting, done) => drop(done.send(getting.perform(&client).await)),
            }
        };
        tokio::task::spawn_local(story::by_client(client_number, perform));
    }
    Ok(())
}

fn failed(error: &Error) -> Outcome {
    if error.may_have_applied() { Outcome::Unknown(error.to_string()) } else { Outcome::NotApplied(error.to_string()) }
}

fn evidence(evidence: Option<&Evidence>) -> String {
    let Some(evidence) = evidence else { return String::new() };
    let name = |asked: &wire::Asked| match asked.role {
        Role::Primary => asked.node.to_string(),
        Role::Fallback => format!("{} (stands in)", asked.node),
    };
    let counted: Vec<_> = evidence.asked.iter().filter(|asked| asked.counted).map(name).collect();
    format!(" by {}, coordinated by {}", counted.join(" "), evidence.coordinator)
}

fn shown(values: &[String]) -> String {
    match values {
        [] => "nothing".to_owned(),
        values => values.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(" | "),
    }
}

/// A value carries its operation's number before its text.
fn bytes(no: OpNo, text: &str) -> Bytes {
    [&no.to_be_bytes()[..], text.as_bytes()].concat().into()
}

/// The operation that wrote a value; a number that no operation has for what is none.
pub(super) fn number(value: &[u8]) -> OpNo {
    value.first_chunk::<8>().map_or(OpNo::MAX, |no| OpNo::from_be_bytes(*no))
}

pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.get(8..).unwrap_or_default()).into_owned()
}

/// The client's own default.
const TIMEOUT_MS: u64 = 1000;

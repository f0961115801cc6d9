//! Requests for one key: builders that are awaited.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::options::Quorum;
use crate::pool::BoxFuture;
use crate::read::{Cause, Context, Known, Read, Written};
use crate::retry::backoff;
use crate::value::Change;
use quorate_wire::ids::OpId;
use quorate_wire::sometimes;
use quorate_wire::{self as wire, KEY_LEN_MAX, Key, NotApplied, Reply, RequestBody, VALUE_LEN_MAX};

/// The key and what all requests for one have in common.
#[derive(Clone)]
struct Common {
    client: Client,
    /// A slice of the encoded key, unless that has escapes.
    key: Bytes,
    encoded: Key,
    r: Quorum,
    w: Quorum,
    strict: bool,
    monotonic: bool,
    explain: bool,
    timeout: Duration,
}

impl Common {
    fn new(client: Client, key: &[u8]) -> Self {
        let (defaults, encoded) = (client.defaults(), Key::plain(key));
        Self {
            key: encoded.partition_key(),
            encoded,
            r: defaults.r,
            w: defaults.w,
            strict: defaults.strict,
            monotonic: false,
            explain: false,
            timeout: defaults.timeout,
            client,
        }
    }

    /// A read that may find nothing.
    async fn read(&self) -> Result<Read, Error> {
        self.check("R", self.r)?;
        let body = RequestBody::Read(wire::Read {
            key: self.encoded.clone(),
            r: Some(self.r),
            strict: self.strict,
            monotonic: self.monotonic,
            explain: self.explain,
        });
        match self.client.exchange(body, self.timeout, None).await? {
            Reply::Found(found) => Read::new(self.key.clone(), found),
            other => Err(unexpected(&other)),
        }
    }

    async fn write(&self, value: Option<Bytes>, context: Option<&Context>, again: Again) -> Result<Written, Error> {
        let op_id = again.op_id.unwrap_or_else(|| self.client.new_op_id());
        self.check("W", self.w)?;
        if let Some(len) = value.as_ref().map(Bytes::len).filter(|len| *len > VALUE_LEN_MAX) {
            return Err(too_large("value", VALUE_LEN_MAX, len));
        }
        // To whom another client has sent it is not known.
        let earlier = again.op_id.and_then(|op_id| self.client.unsettled(op_id));
        let age = again.op_id.map(|_| earlier.map_or(again.first_sent, |(_, age)| age));
        let body = RequestBody::Write(wire::Write {
            key: self.encoded.clone(),
            value: value.map(Into::into),
            context: context.map(|context| context.to_bytes().into()),
            op_id,
            first_sent_ms: age.map(|age| age.as_millis() as u64),
            w: Some(self.w),
            strict: self.strict,
            explain: self.explain,
        });
        // It goes where the earlier attempt went.
        let targets = earlier.map(|(to, _)| match again.any_coordinator {
            true => self.client.targets_after(to, &body),
            false => vec![to],
        });
        match self.client.exchange(body, self.timeout, targets).await? {
            Reply::Written(written) => {
                if again.op_id.is_some() {
                    self.client.settled(op_id);
                }
                Written::new(self.key.clone(), op_id, written)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// What any node would refuse, without asking one.
    fn check(&self, what: &str, quorum: Quorum) -> Result<(), Error> {
        match self.key.len() {
            0 => return Err(NotApplied::EmptyKey.into()),
            1..=KEY_LEN_MAX => {}
            len => return Err(too_large("key", KEY_LEN_MAX, len)),
        }
        if quorum == Quorum::Exactly(0) {
            return Err(Error::misuse(format!("{what}=0 is not possible, {what} must be at least 1")));
        }
        Ok(())
    }
}

/// Whether there was an attempt before.
#[derive(Debug, Clone, Copy)]
struct Again {
    op_id: Option<OpId>,
    /// How long ago at most, if there was one.
    first_sent: Duration,
    /// If the one that may have minted it is not reached, another one may.
    any_coordinator: bool,
}

impl Default for Again {
    fn default() -> Self {
        Self { op_id: None, first_sent: REPEATED_WITHIN, any_coordinator: false }
    }
}

/// How long ago the first attempt was at most, unless it is said. Coordinators remember for twice as long what they have superseded.
const REPEATED_WITHIN: Duration = Duration::from_secs(300);

/// Setters that builders share.
macro_rules! settings {
    (again) => {
        /// How long ago the first attempt was sent at most, if [`op_id`](Self::op_id) says that there was one; five minutes if
        /// nothing is said. It matters if another client had sent it. A coordinator that has not lived for so long, and half a minute more, may
        /// have forgotten what became of the write, and then leaves it indeterminate; what is older than is said here can be
        /// written a second time.
        pub fn first_sent(mut self, ago: Duration) -> Self {
            self.again.first_sent = ago;
            self
        }

        /// Lets another node carry out the repetition that [`op_id`](Self::op_id) makes of this, when the one that may have
        /// carried out the first attempt cannot be reached: a write whose coordinator has died need not wait for it.
        ///
        /// The write may then be carried out more than once. Reads show that as one, and a successor replaces all of it, once the replicas
        /// have exchanged. Until then, or for good where the replicas have forgotten the first successor (after ten minutes, or 16 more
        /// successors), a value that was replaced can stand beside its successor as a sibling. Values that are written once only have no
        /// such trouble.
        pub fn any_coordinator(mut self) -> Self {
            self.again.any_coordinator = true;
            self
        }
    };
    (r) => {
        /// How many replicas must answer the read.
        pub fn r(mut self, r: Quorum) -> Self {
            self.common.r = r;
            self
        }
    };
    (w) => {
        /// How many replicas must hold the write before it is acknowledged.
        pub fn w(mut self, w: Quorum) -> Self {
            self.common.w = w;
            self
        }
    };
    (common) => {
        /// Only primaries count: see [what each mode promises](crate#what-each-mode-promises).
        pub fn strict(mut self) -> Self {
            self.common.strict = true;
            self
        }

        /// Fallbacks may stand in for primaries: undoes a client's strict default.
        pub fn sloppy(mut self) -> Self {
            self.common.strict = false;
            self
        }

        /// How long it may take, retries included: more than nothing, at most 5 minutes.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.common.timeout = timeout;
            self
        }
    };
    (explain) => {
        /// Asks for the evidence: who was asked, in which role, what each said and when.
        pub fn explain(mut self) -> Self {
            self.common.explain = true;
            self
        }
    };
}

/// A read; see [`Client::get`]. Await it.
#[must_use = "it does nothing until it is awaited"]
#[derive(Clone)]
pub struct Get {
    common: Common,
}

impl Get {
    pub(crate) fn new(client: Client, key: &[u8]) -> Self {
        Self { common: Common::new(client, key) }
    }

    settings!(r);
    settings!(common);
    settings!(explain);

    /// Answers once what it returns is durable on N - R + 1 of the key's primaries, and on a majority of them at least: no later read
    /// of as many primaries, or of a majority of them, misses it (the write-back of Attiya, Bar-Noy and Dolev, "Sharing Memory
    /// Robustly in Message-Passing Systems", 1995). It takes one round trip more where replicas differ, and with R = 1 it needs every
    /// primary. In the durability mode `interval` a replica says so before its sync, as it does of writes.
    pub fn monotonic(mut self) -> Self {
        self.common.monotonic = true;
        self
    }

    /// Reads; nothing if the key has no value.
    ///
    /// # Errors
    /// As awaiting it, except [`Error::NotFound`].
    pub async fn optional(self) -> Result<Option<Read>, Error> {
        Ok(Some(self.allow_absent().await?).filter(|read| !read.is_absent()))
    }

    /// Reads; a key without a value gives a [`Read`] without values, which is a good cause for its first put.
    ///
    /// # Errors
    /// As awaiting it, except [`Error::NotFound`].
    pub async fn allow_absent(self) -> Result<Read, Error> {
        self.common.read().await
    }
}

impl IntoFuture for Get {
    type Output = Result<Read, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let read = self.allow_absent().await?;
            if read.is_absent() { Err(read.not_found()) } else { Ok(read) }
        })
    }
}

/// A write; see [`Client::put`]. Await it.
#[must_use = "it does nothing until it is awaited"]
#[derive(Clone)]
pub struct Put {
    common: Common,
    value: Result<Bytes, Error>,
    cause: Cause,
    again: Again,
}

impl Put {
    pub(crate) fn new(client: Client, key: &[u8], value: Result<Bytes, Error>, cause: Cause) -> Self {
        Self { common: Common::new(client, key), value, cause, again: Again::default() }
    }

    settings!(w);
    settings!(common);
    settings!(explain);

    /// Makes this the retry of an [indeterminate](Error::Indeterminate) write: give the same id, the same bytes and the same
    /// cause, at most five minutes after the first attempt. It ends acknowledged or indeterminate: that this repetition was refused
    /// says nothing of the first attempt. Without it every put is a new write.
    ///
    /// A client (all its clones) remembers to which node its newest 16,384 unknown writes went and asks that one again, since
    /// another one might write the value a second time; while that node is away the repetition stays indeterminate, unless you allow
    /// [`any_coordinator`](Self::any_coordinator). Another client, in another process perhaps, does not know, and asks whoever is best:
    /// see [`first_sent`](Self::first_sent).
    pub fn op_id(mut self, op_id: OpId) -> Self {
        self.again.op_id = Some(op_id);
        self
    }

    settings!(again);
}

impl IntoFuture for Put {
    type Output = Result<Written, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let context = self.cause.context_for(&self.common.key)?;
            self.common.write(Some(self.value?), context, self.again).await
        })
    }
}

/// A delete; see [`Client::delete`]. Await it.
#[must_use = "it does nothing until it is awaited"]
#[derive(Clone)]
pub struct Delete {
    common: Common,
    cause: Cause,
    again: Again,
}

impl Delete {
    pub(crate) fn new(client: Client, key: &[u8], cause: Cause) -> Self {
        Self { common: Common::new(client, key), cause, again: Again::default() }
    }

    settings!(r);
    settings!(w);
    settings!(common);
    settings!(explain);

    /// As [`Put::op_id`]. It needs a cause other than [`Blind`](crate::Blind), since another read may see something else.
    pub fn op_id(mut self, op_id: OpId) -> Self {
        self.again.op_id = Some(op_id);
        self
    }

    settings!(again);
}

impl IntoFuture for Delete {
    type Output = Result<Written, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { common, cause, again } = self;
            common.check("W", common.w)?;
            let seen = match cause.context_for(&common.key)? {
                Some(context) => {
                    if let Known::Seen { absent: true, .. } = cause.0 {
                        let (key, quorum) = (common.key.clone(), Default::default());
                        return Err(Error::NotFound { key, context: context.clone(), quorum });
                    }
                    context.clone()
                }
                None if again.op_id.is_some() => {
                    return Err(Error::misuse(
                        "a blind delete cannot be retried with an operation id: it would delete what another read sees",
                    ));
                }
                None => {
                    let read = common.read().await?;
                    if read.is_absent() {
                        return Err(read.not_found());
                    }
                    read.context().clone()
                }
            };
            common.write(None, Some(&seen), again).await
        })
    }
}

/// A bounded read-merge-write; see [`Client::update`]. Await it.
///
/// Each round reads the key, runs the function on what is there, and writes its result with that read as the cause. If the
/// write's reply shows no other value, the update is done. If it shows siblings, another writer was concurrent, and the
/// next round merges. In that round the function does not see its own earlier result, but in its place what that result
/// was made from, beside what the other writers left: nothing that anybody wrote is left out, and its change is not made on
/// top of itself. (Among values that are equal byte by byte it makes no difference which one was its own.) If the earlier
/// result is gone from the key, somebody who saw it has merged it already, and the update is done.
///
/// So under contention the change is made at least once, and mostly just once: a rival may have merged an earlier result
/// before it was replaced, and then the value that this rival wrote holds the change already. Where that would be wrong,
/// make the change recognisable (a set of order numbers rather than a sum).
///
/// A write whose outcome is unknown is repeated with the same bytes and the same operation id, never made anew; if it stays
/// unknown, the update ends in [`Error::Indeterminate`].
///
/// It gives the receipt of the last write, or nothing if the function decided to [keep](Change::Keep) what is there.
#[must_use = "it does nothing until it is awaited"]
pub struct Update<'a> {
    common: Common,
    change: ChangeFn<'a>,
    rounds_max: u32,
}

/// What an update's function comes to.
type ChangeFn<'a> = Box<dyn FnMut(&Read) -> Result<Change, Error> + Send + 'a>;

impl<'a> Update<'a> {
    pub(crate) fn new(client: Client, key: &[u8], change: ChangeFn<'a>) -> Self {
        Self { common: Common::new(client, key), change, rounds_max: ROUNDS_MAX_DEFAULT }
    }

    settings!(r);
    settings!(w);

    /// Only primaries count: see [what each mode promises](crate#what-each-mode-promises).
    pub fn strict(mut self) -> Self {
        self.common.strict = true;
        self
    }

    /// How long each read and each write of it may take, retries included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.common.timeout = timeout;
        self
    }

    /// How many rounds of read, merge and write are tried, at least one: 8 if nothing is said.
    pub fn rounds_max(mut self, rounds: u32) -> Self {
        self.rounds_max = rounds.max(1);
        self
    }
}

impl<'a> IntoFuture for Update<'a> {
    type Output = Result<Option<Written>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { common, mut change, rounds_max } = self;
        Box::pin(async move {
            let mut read = common.read().await?;
            for round in 1..=rounds_max {
                let value = match change(&read)? {
                    Change::Keep => return Ok(None),
                    Change::Put(value) => Some(value),
                    Change::Delete => None,
                };
                let own = u32::from(value.is_some());
                let written = common.write(value.clone(), Some(read.context()), Again::default()).await;
                let written = written.map_err(|error| after(&common, round - 1, error))?;
                if written.siblings() <= own {
                    return Ok(Some(written));
                }
                if round == rounds_max {
                    break;
                }
                let random = common.client.random();
                sleep(backoff(round - 1, random.u64())).await;
                let now = common.read().await.map_err(|error| after(&common, round, error))?;
                match value {
                    None => read = now,
                    Some(value) => match without(now.siblings(), &value) {
                        None => return Ok(Some(written)),
                        Some(others) if others.is_empty() => return Ok(Some(written)),
                        Some(others) => {
                            sometimes!("update: siblings were merged in another round");
                            let merged = read.siblings().iter().cloned().chain(others).collect();
                            read = now.with_values(merged);
                        }
                    },
                }
            }
            Err(Error::Contended { key: common.key, attempts: rounds_max })
        })
    }
}

/// What an update ends in that fails after so many of its writes were acknowledged: "nothing was changed" is true of its last
/// request only.
fn after(common: &Common, acknowledged: u32, error: Error) -> Error {
    match acknowledged {
        0 => error,
        _ if error.may_have_applied() => error,
        attempts => Error::Contended { key: common.key.clone(), attempts },
    }
}

/// All values but one that equals `own`; nothing if there is none such.
fn without(values: &[Bytes], own: &Bytes) -> Option<Vec<Bytes>> {
    let at = values.iter().position(|value| value == own)?;
    Some(values[..at].iter().chain(&values[at + 1..]).cloned().collect())
}

fn too_large(what: &str, limit: usize, got: usize) -> Error {
    NotApplied::TooLarge { what: what.into(), limit: limit as u64, got: got as u64 }.into()
}

macro_rules! debug_as_request {
    ($($request:ty),*) => {$(
        impl fmt::Debug for $request {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($request)).field("key", &self.common.key).finish_non_exhaustive()
            }
        }
    )*};
}

debug_as_request!(Get, Put, Delete, Update<'_>);

/// With the pauses between them, eight rounds last about a second: enough for some ten writers that compete for one key.
const ROUNDS_MAX_DEFAULT: u32 = 8;

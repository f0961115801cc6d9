//! Every short history of one key, played on the real records, contexts, mint rules and memory of operations, beside a plain causal
//! model.
//!
//! The model knows writes and who had seen what when writing: a set of operations for each replica and, for each operation,
//! the set of those before it. What a replica has to show is then a one-liner: the operations that it has heard of, without
//! deletes and without those that are before another one that it has heard of. The explorer takes every step from every
//! reachable state, breadth-first, and compares after each one:
//!
//! - no acknowledged or unacknowledged write is lost, no value is shown beside its successor, none comes back: a replica,
//!   and a read of any two, shows exactly what the model says;
//! - one operation is shown once, no dot is given to two operations, no coordinator that remembers mints one operation twice;
//! - replicas that go on exchanging records end up equal, and show what the model says of all of them together.
//!
//! Steps: writes and deletes, blind, with the context of a session (its last read or its last reply), with the context of a
//! fresh read here or elsewhere; a lost reply before the sync, and any number of retries anywhere at any time; every message
//! delivered to anybody, late, again or never; exchanges; a copy handed off and dropped; a copy lost; a restart, which loses
//! what was not synced and all memory. Equal states are visited once (128-bit hashes of the exact state), and untouched
//! replicas are interchangeable.
//!
//! The one excuse is a retry that took a second dot somewhere else (see `quorate_core::mint`): the value of such an
//! operation may show again beside its successor at a replica that does not remember, until it has exchanged records with one that
//! names the operation (rule V7). In the end nobody shows it, unless a record was lost. Where retries go to the coordinator of the first
//! attempt only, as a client's do, nothing excuses it: a coordinator that may have forgotten answers "unknown".
//!
//! For each rule there is a world that leaves it out, in which the explorer must find a violation.
//!
//! Out of scope: memory that is full or older than the window (`core::operations` evicts it: that is a restart's loss of memory), an
//! operation id that is used again for another write, and dots given to two values (a record's test). A step takes longer than a
//! retry may travel, and all steps together less than the window.
//!
//! `QUORATE_MODEL_DEPTH=8 cargo test --release -p quorate-core --test record_model` looks further, as do
//! `QUORATE_MODEL_FAULTS` and `QUORATE_MODEL_WRITES`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_core::mint::{self, Minter};
use quorate_core::operations::{OPERATION_WINDOW, Operations, TRAVEL_MAX};
use quorate_core::record::Record;
use quorate_core::version::{Actor, Context, Dot};
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, NodeId, OpId};
use xxhash_rust::xxh3::xxh3_128;

/// Operations, one bit each.
type Ops = u16;

/// How far to look.
#[derive(Clone, Copy)]
struct Scope {
    replicas: usize,
    depth: usize,
    writes: usize,
    /// Hand-offs, losses and restarts.
    faults: usize,
    /// Writes whose reply is lost, and which are retried.
    lost_replies: usize,
    /// Contexts of other keys and forged ones, failing inserts.
    hostile: bool,
    /// Retries go to any replica, not only to the one that was asked first.
    retries_anywhere: bool,
    /// Operation ids tell when they began, so that records name them (rule V7).
    named: bool,
}

/// A rule, or the part of one, that a world leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    V1NewActorAfterRestart,
    V1NewActorAfterLoss,
    V1NewActorAfterHandOff,
    V2OneMint,
    V2RecordHeld,
    V2CauseJoins,
    V2DeleteLeavesContext,
    V3CoveredDotsGo,
    V3ContextsJoin,
    V3EveryDotIsNamed,
    V4RepliesCoverWhatWasSeen,
    V5OneKey,
    V5OwnCounter,
    V6LookAmongSiblings,
    V6LookAmongSuperseded,
    V6MergeDropsSuperseded,
    V6RememberAfterTheWrite,
    V6CoverOneCoverAll,
    V6ShownOnce,
    V6SupersededAsAWhole,
    V6MemoryGoesWithTheCopy,
    V6UnknownIfForgotten,
    V7NamesInRecords,
    V7NamesInContexts,
    V7MintTakesNames,
    V7MergeDropsNamed,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { at: usize, cause: Cause, delete: bool, reply: Reply },
    Retry { at: usize, session: bool },
    Read { at: usize },
    Deliver { message: usize, to: usize },
    Exchange { from: usize, to: usize },
    HandOff { from: usize, to: usize },
    Lose { at: usize },
    Restart { at: usize },
    DiskFull { at: usize, session: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Blind,
    Session,
    FreshRead(usize),
    /// Names the coordinator's own dots, and two that do not exist yet.
    Forged,
    /// The context of another key with a much higher counter of the coordinator.
    OtherKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    ToSession,
    ToOther,
    /// Neither synced nor answered: the client will retry.
    Lost,
}

/// A record and what it should stand for.
#[derive(Debug)]
struct Copy {
    record: Record,
    heard_of: Ops,
    hash: u128,
}

/// What a client holds and what it should stand for.
#[derive(Debug)]
struct Seen {
    context: Context,
    ops: Ops,
    hash: u128,
}

#[derive(Clone, Debug)]
struct Replica {
    copy: Arc<Copy>,
    synced: Arc<Copy>,
    minter: Option<Minter>,
    drawn: u64,
    operations: Operations,
    /// When it started last.
    started: Duration,
    /// What it has minted since it last lost its memory.
    minted: Ops,
    /// As in the [`Scope`].
    named: bool,
}

/// A write whose reply was lost, and which is retried.
#[derive(Clone, Debug)]
struct Pending {
    op: u8,
    delete: bool,
    cause: Arc<Seen>,
    /// Who was asked first, and when.
    asked: usize,
    at: Duration,
}

#[derive(Clone, Debug)]
struct State {
    replicas: Vec<Replica>,
    session: Arc<Seen>,
    now: Duration,
    pending: Option<Pending>,
    messages: Vec<Arc<Copy>>,
    /// For each operation, those before it.
    before: Vec<Ops>,
    deletes: Ops,
    dots: Vec<(Dot, u8)>,
    touched: usize,
    faults: usize,
    /// Faults that took away a record, not only what was not synced of it.
    losses: usize,
    lost_replies: usize,
}

impl Copy {
    fn new(record: Record, heard_of: Ops) -> Arc<Self> {
        let hash = xxh3_128(&record.encode()) ^ u128::from(heard_of);
        Arc::new(Self { record, heard_of, hash })
    }
}

impl Seen {
    fn new(context: Context, ops: Ops) -> Arc<Self> {
        let hash = xxh3_128(&context.seal(CLUSTER, KEY)) ^ u128::from(ops);
        Arc::new(Self { context, ops, hash })
    }
}

impl Replica {
    /// What it takes for the time: since its start.
    fn clock(&self, now: Duration) -> Duration {
        now - self.started
    }

    fn remembers(&self, op_id: &OpId, now: Duration) -> Option<Dot> {
        self.operations.dot_of(KEY_HASH, op_id, self.clock(now))
    }

    fn remember(&mut self, dropped: &[(Dot, OpId)], now: Duration) {
        let now = self.clock(now);
        for (dot, op_id) in dropped {
            self.operations.remember(KEY_HASH, *op_id, *dot, now, Ops::BITS as usize);
        }
    }

    /// Those of the operations so far that it remembers as superseded.
    fn remembered_ops(&self, now: Duration) -> Ops {
        if self.operations.is_empty() {
            return 0;
        }
        let known = |op: &usize| self.remembers(&op_id(self.named, *op), now).is_some();
        (0..Ops::BITS as usize).filter(known).fold(0, |ops, op| ops | 1 << op)
    }
}

impl State {
    fn new(Scope { replicas, named, .. }: Scope) -> Self {
        let nothing = Copy::new(Record::default(), 0);
        let replica = Replica {
            copy: nothing.clone(),
            synced: nothing,
            minter: None,
            drawn: 0,
            operations: Operations::default(),
            started: Duration::ZERO,
            minted: 0,
            named,
        };
        Self {
            replicas: vec![replica; replicas],
            session: Seen::new(Context::new(), 0),
            now: STEP,
            pending: None,
            messages: Vec::new(),
            before: Vec::new(),
            deletes: 0,
            dots: Vec::new(),
            touched: 0,
            faults: 0,
            losses: 0,
            lost_replies: 0,
        }
    }

    /// What has to be shown by somebody who has heard of these operations.
    fn live(&self, heard_of: Ops) -> Ops {
        let superseded = bits(heard_of).fold(0, |all, op| all | self.before[op]);
        heard_of & !superseded & !self.deletes
    }

    /// Whether a replica may have lost the memory of a write since it was first asked for.
    fn may_have_forgotten(&self, replica: &Replica, pending: &Pending) -> bool {
        !replica.operations.remembers_since(self.now - pending.at, replica.clock(self.now))
    }

    /// Operations that have more than one dot.
    fn minted_again(&self) -> Ops {
        let (mut once, mut again) = (0, 0);
        for (_, op) in &self.dots {
            again |= once & (1 << op);
            once |= 1 << op;
        }
        again
    }

    /// Forgets what can make no difference any more, so that states that differ in nothing else are one.
    fn settle(&mut self, scope: Scope) {
        let writes_over = self.before.len() == scope.writes;
        if writes_over {
            self.session = Seen::new(Context::new(), 0);
            if self.lost_replies == 0 {
                self.pending = None;
            }
        }
        let pending: Ops = self.pending.as_ref().map_or(0, |pending| 1 << pending.op);
        let faults_over = self.faults == scope.faults;
        for replica in &mut self.replicas {
            if writes_over {
                replica.minted &= pending;
            }
            if faults_over {
                replica.synced = replica.copy.clone();
            }
        }
    }

    fn hash(&self, bytes: &mut Vec<u8>) -> u128 {
        bytes.clear();
        let mut put = |part: &[u8]| bytes.extend_from_slice(part);
        let dot = |dot: &Dot| {
            let node = dot.actor.node.as_str().as_bytes()[1];
            [node, dot.actor.incarnation as u8, dot.counter as u8]
        };
        for replica in &self.replicas {
            put(&replica.copy.hash.to_be_bytes());
            put(&replica.synced.hash.to_be_bytes());
            let remembered: Vec<_> = (0..self.before.len() as u8)
                .filter_map(|op| replica.remembers(&op_id(replica.named, op.into()), self.now).map(|of| (op, of)))
                .collect();
            put(&[replica.drawn as u8, replica.minter.is_some().into(), remembered.len() as u8]);
            if let Some(minter) = &replica.minter {
                put(&dot(&minter.clone().next_dot()));
            }
            for (op, of) in &remembered {
                put(&[*op]);
                put(&dot(of));
            }
            put(&replica.minted.to_be_bytes());
            // Of all times only this makes a difference: whatever is asked for from now on is asked for after all that was forgotten.
            put(&[self.pending.as_ref().is_some_and(|pending| self.may_have_forgotten(replica, pending)).into()]);
        }
        put(&self.session.hash.to_be_bytes());
        if let Some(Pending { op, delete, cause, asked, .. }) = &self.pending {
            put(&[*op, u8::from(*delete), *asked as u8]);
            put(&cause.hash.to_be_bytes());
        }
        for message in &self.messages {
            put(&message.hash.to_be_bytes());
        }
        for before in &self.before {
            put(&before.to_be_bytes());
        }
        for (of, op) in &self.dots {
            put(&dot(of));
            put(&[*op]);
        }
        put(&self.deletes.to_be_bytes());
        put(&[self.messages.len() as u8, self.before.len() as u8, self.dots.len() as u8]);
        put(&[self.faults as u8, self.losses as u8, self.lost_replies as u8, self.touched as u8]);
        xxh3_128(bytes)
    }
}

/// The rules as they are, or without one.
struct World {
    scope: Scope,
    without: Without,
    /// What merges have come to, by both sides and what the receiver remembers: most steps are merges, and few are new.
    merges: RefCell<HashMap<(u128, u128, Ops), Arc<MergedCopy>>>,
    /// What reads of two copies show, in the same way.
    reads: RefCell<HashMap<(u128, u128), Result<Ops, String>>>,
}

struct MergedCopy {
    copy: Arc<Copy>,
    dropped: Vec<(Dot, OpId)>,
}

impl World {
    fn new(scope: Scope, without: Without) -> Self {
        Self { scope, without, merges: RefCell::default(), reads: RefCell::default() }
    }

    fn steps(&self, state: &State) -> Vec<Step> {
        let scope = self.scope;
        let mut steps = Vec::with_capacity(64);
        let reachable = scope.replicas.min(state.touched + 1);
        for at in 0..reachable {
            if state.before.len() < scope.writes {
                self.writes(state, at, &mut steps);
            }
            if state.pending.as_ref().is_some_and(|pending| scope.retries_anywhere || pending.asked == at) {
                steps.push(Step::Retry { at, session: false });
                if state.before.len() < scope.writes {
                    steps.push(Step::Retry { at, session: true });
                }
            }
            if at == state.touched {
                steps.extend((0..at).map(|from| Step::Exchange { from, to: at }));
            } else {
                if state.before.len() < scope.writes {
                    steps.push(Step::Read { at });
                }
                for to in (0..reachable).filter(|to| *to != at) {
                    steps.push(Step::Exchange { from: at, to });
                    if state.faults < scope.faults {
                        steps.push(Step::HandOff { from: at, to });
                    }
                }
                if state.faults < scope.faults {
                    steps.push(Step::Lose { at });
                    steps.push(Step::Restart { at });
                }
                if scope.hostile {
                    steps.push(Step::DiskFull { at, session: true });
                    steps.push(Step::DiskFull { at, session: false });
                }
            }
            steps.extend((0..state.messages.len()).map(|message| Step::Deliver { message, to: at }));
        }
        steps
    }

    fn writes(&self, state: &State, at: usize, steps: &mut Vec<Step>) {
        let mut causes = vec![Cause::Blind];
        if !state.session.context.is_empty() {
            causes.push(Cause::Session);
        }
        let mut read = Vec::new();
        for from in 0..state.touched {
            let copy = &state.replicas[from].copy;
            if !copy.record.context.is_empty() && !read.contains(&copy.hash) {
                read.push(copy.hash);
                causes.push(Cause::FreshRead(from));
            }
        }
        if self.scope.hostile && at < state.touched {
            causes.extend([Cause::Forged, Cause::OtherKey]);
        }
        let last = state.before.len() + 1 == self.scope.writes;
        for cause in causes {
            let replies: &[Reply] = match cause {
                // Nobody will use what the session learns.
                Cause::Blind if last => &[Reply::ToOther, Reply::Lost],
                Cause::Blind => &[Reply::ToSession, Reply::ToOther, Reply::Lost],
                Cause::Session => &[Reply::ToSession, Reply::Lost],
                Cause::FreshRead(_) => &[Reply::ToOther, Reply::Lost],
                Cause::Forged | Cause::OtherKey => &[Reply::ToOther],
            };
            for reply in replies {
                if *reply == Reply::Lost && state.lost_replies == self.scope.lost_replies {
                    continue;
                }
                steps.push(Step::Write { at, cause, delete: false, reply: *reply });
                if cause != Cause::Blind {
                    steps.push(Step::Write { at, cause, delete: true, reply: *reply });
                }
            }
        }
    }

    /// Takes a step. `Err`: the model is violated.
    fn take(&self, state: &State, step: Step) -> Result<State, String> {
        let mut next = state.clone();
        next.now += STEP;
        let now = next.now;
        let changed = match step {
            Step::Write { at, cause, delete, reply } => {
                let Some(cause) = self.cause(&next, at, cause) else { return Ok(next) };
                let op = next.before.len();
                next.before.push(cause.ops);
                next.deletes |= Ops::from(delete) << op;
                if reply == Reply::Lost {
                    next.lost_replies += 1;
                    next.pending = Some(Pending { op: op as u8, delete, cause: cause.clone(), asked: at, at: now });
                }
                self.coordinate(&mut next, at, op, delete, &cause, reply)?;
                at
            }
            Step::Retry { at, session } => {
                let pending = next.pending.clone().expect("only then is it a step");
                let reply = if session { Reply::ToSession } else { Reply::ToOther };
                if self.is_refused(&next, &next.replicas[at], &pending) {
                    return Ok(next);
                }
                let Pending { op, delete, cause, .. } = pending;
                self.coordinate(&mut next, at, usize::from(op), delete, &cause, reply)?;
                at
            }
            Step::Read { at } => {
                let copy = &next.replicas[at].copy;
                next.session = Seen::new(self.seen(&copy.record), copy.heard_of);
                return Ok(next);
            }
            Step::Deliver { message, to } => {
                let message = next.messages[message].clone();
                self.merge(&mut next.replicas[to], &message, now);
                to
            }
            Step::Exchange { from, to } => {
                let copy = next.replicas[from].copy.clone();
                self.merge(&mut next.replicas[to], &copy, now);
                to
            }
            Step::HandOff { from, to } => {
                let copy = next.replicas[from].copy.clone();
                self.merge(&mut next.replicas[to], &copy, now);
                self.lose(&mut next, from, self.without != Without::V1NewActorAfterHandOff);
                to
            }
            Step::Lose { at } => {
                self.lose(&mut next, at, self.without != Without::V1NewActorAfterLoss);
                at
            }
            Step::Restart { at } => {
                next.faults += 1;
                let replica = &mut next.replicas[at];
                replica.copy = replica.synced.clone();
                replica.operations = Operations::default();
                replica.started = now;
                replica.minted = 0;
                replica.minter = None;
                if self.without == Without::V1NewActorAfterRestart {
                    replica.drawn = 0;
                }
                at
            }
            Step::DiskFull { at, session } => {
                let replica = &mut next.replicas[at];
                let cause = if session { &next.session.context } else { &replica.copy.record.context };
                if self.without == Without::V6RememberAfterTheWrite {
                    let covered = replica.copy.record.siblings.iter().filter(|(dot, _)| cause.covers(dot));
                    let covered: Vec<_> = covered.map(|(dot, sibling)| (*dot, sibling.op_id)).collect();
                    replica.remember(&covered, now);
                }
                at
            }
        };
        next.touched = next.touched.max(changed + 1);
        if !self.same(state, &next) {
            self.check(&next, changed)?;
        }
        Ok(next)
    }

    /// A message that the receiver has merged already, by far the most frequent step.
    fn changes_nothing(&self, state: &State, step: Step) -> bool {
        let (from, to) = match step {
            Step::Deliver { message, to } => (&state.messages[message], to),
            Step::Exchange { from, to } => (&state.replicas[from].copy, to),
            _ => return false,
        };
        let replica = &state.replicas[to];
        let merged = self.merged(replica, from, state.now);
        merged.copy.hash == replica.copy.hash
            && replica.synced.hash == replica.copy.hash
            && merged.dropped.iter().all(|(_, op_id)| replica.remembers(op_id, state.now).is_some())
    }

    /// The step was a merge that changed nothing, or the like: there is nothing new to check.
    fn same(&self, before: &State, after: &State) -> bool {
        let mut pairs = before.replicas.iter().zip(&after.replicas);
        before.dots.len() == after.dots.len()
            && before.before.len() == after.before.len()
            && pairs.all(|(a, b)| a.copy.hash == b.copy.hash && a.operations.len() == b.operations.len())
    }

    fn cause(&self, state: &State, at: usize, cause: Cause) -> Option<Arc<Seen>> {
        let copy = &state.replicas[at].copy;
        match cause {
            Cause::Blind => Some(Seen::new(Context::new(), 0)),
            Cause::Session => Some(state.session.clone()),
            Cause::FreshRead(from) => {
                let copy = &state.replicas[from].copy;
                Some(Seen::new(self.seen(&copy.record), copy.heard_of))
            }
            Cause::Forged => {
                let dot = state.replicas[at].minter.clone()?.next_dot();
                let own = state.dots.iter().filter(|(of, _)| of.actor == dot.actor);
                let ops = own.fold(0, |ops, (_, op)| ops | 1 << op | state.before[usize::from(*op)]);
                assert_eq!(ops & !copy.heard_of, 0, "a coordinator has all that its actor minted");
                let mut context = Context::new();
                context.advance(dot.actor, dot.counter + 1);
                Some(Seen::new(context, ops))
            }
            Cause::OtherKey => {
                let mut context = Context::new();
                context.advance(state.replicas[at].minter.as_ref()?.actor(), 9);
                let sealed = context.seal(CLUSTER, b"another key");
                let key: &[u8] = if self.without == Without::V5OneKey { b"another key" } else { KEY };
                // That key's writes have nothing to do with this one's: nothing of it has been seen.
                Context::open(&sealed, CLUSTER, key).ok().map(|context| Seen::new(context, 0))
            }
        }
    }

    /// Whether the answer to a retry is "unknown", and nothing is done: it is not known here, and may have been before the memory of
    /// the replica was lost. A retried delete leaves nothing that could come back.
    fn is_refused(&self, state: &State, replica: &Replica, pending: &Pending) -> bool {
        let (op_id, record) = (op_id(self.scope.named, pending.op.into()), &replica.copy.record);
        let known = !record.dots_of(&op_id).is_empty()
            || record.superseded(&op_id).is_some()
            || replica.remembers(&op_id, state.now).is_some();
        let forgotten = || state.may_have_forgotten(replica, pending);
        !known && !pending.delete && forgotten() && self.without != Without::V6UnknownIfForgotten
    }

    /// What `replica` does under the key's lock, with the same pure functions.
    fn coordinate(
        &self,
        state: &mut State,
        at: usize,
        op: usize,
        delete: bool,
        cause: &Arc<Seen>,
        reply: Reply,
    ) -> Result<(), String> {
        let op_id = op_id(self.scope.named, op);
        let replica = &state.replicas[at];
        let mut looked_in = replica.copy.record.clone();
        if self.without == Without::V6LookAmongSiblings {
            looked_in.siblings.clear();
        }
        let remembered = |op_id: &OpId| match self.without {
            Without::V6LookAmongSuperseded => None,
            _ => replica.remembers(op_id, state.now),
        };
        let mut context = match mint::repeated(&looked_in, &op_id, &cause.context, remembered) {
            Some(repeated) => repeated.context,
            None => self.mint(state, at, op, delete, cause)?,
        };
        let heard_of = state.replicas[at].copy.heard_of;
        let replica = &mut state.replicas[at];
        if self.without == Without::V4RepliesCoverWhatWasSeen {
            context = self.seen(&replica.copy.record);
        }
        if self.without == Without::V7NamesInContexts {
            context = context.without_names();
        }
        if reply == Reply::Lost {
            return Ok(());
        }
        replica.synced = replica.copy.clone();
        if reply == Reply::ToSession {
            let alone = state.live(heard_of) & !(1 << op) == 0;
            let ops = if alone { heard_of } else { cause.ops | 1 << op };
            state.session = Seen::new(context, ops);
        }
        Ok(())
    }

    fn mint(&self, state: &mut State, at: usize, op: usize, delete: bool, cause: &Seen) -> Result<Context, String> {
        let replica = &mut state.replicas[at];
        if replica.minted & (1 << op) != 0 && !delete {
            return Err(format!("n{at} remembers, and minted operation {op} twice"));
        }
        replica.minted |= 1 << op;
        let held = &replica.copy.record;
        let check = self.without != Without::V5OwnCounter && self.without != Without::V5OneKey;
        if check && replica.minter.as_ref().is_some_and(|minter| !minter.is_ahead_of(held, &cause.context)) {
            replica.minter = None;
        }
        if replica.minter.is_none() {
            let node = NodeId::new(&format!("n{at}")).expect("legal");
            replica.minter = Some(Minter::new(Actor { node, incarnation: replica.drawn }));
            replica.drawn += 1;
        }
        let minter = replica.minter.as_mut().expect("just drawn");
        let dot = minter.next_dot();
        if state.dots.iter().any(|(taken, _)| *taken == dot) {
            return Err(format!("{dot} was minted twice"));
        }
        state.dots.push((dot, op as u8));
        let (op_id, value) = (op_id(self.scope.named, op), (!delete).then(|| Blob::copy_from(&[op as u8])));
        let cause_taken = match self.without {
            Without::V7MintTakesNames => cause.context.without_names(),
            _ => cause.context.clone(),
        };
        let fresh = mint::mint(held.clone(), dot, op_id, value.clone(), &cause_taken);
        let (mut record, context, mut dropped) = (fresh.record, fresh.context, fresh.dropped.writes);
        match self.without {
            Without::V2CauseJoins => {
                record.context = held.context.clone();
                record.context.advance(dot.actor, dot.counter);
            }
            Without::V2DeleteLeavesContext if record.siblings.is_empty() => record = Record::default(),
            Without::V6CoverOneCoverAll => {
                let uncovered = held.siblings.iter().filter(|(dot, _)| !cause.context.covers(dot));
                record.siblings.extend(uncovered.map(|(dot, sibling)| (*dot, sibling.clone())));
                dropped.retain(|(dot, _)| cause.context.covers(dot));
                record.context = record.context.without_names();
            }
            Without::V7NamesInRecords => record.context = record.context.without_names(),
            _ => {}
        }
        let heard_of = replica.copy.heard_of | cause.ops | 1 << op;
        let heard_alone = cause.ops | 1 << op;
        replica.copy = Copy::new(record, heard_of);
        replica.remember(&dropped, state.now);
        let mut sent = replica.copy.clone();
        match self.without {
            // A mint at a node that does not hold the record: it sends the value and the writer's context only, with the
            // context that its own actor would have had.
            Without::V2RecordHeld => {
                let alone = mint::mint(Record::default(), dot, op_id, value, &cause.context);
                sent = Copy::new(alone.record, heard_alone);
            }
            Without::V3EveryDotIsNamed => {
                let mut delta = sent.record.clone();
                delta.siblings.retain(|of, _| *of == dot);
                sent = Copy::new(delta, heard_of);
            }
            // Everybody who gets the write mints it again.
            Without::V2OneMint => {
                let to = (at + 1) % state.replicas.len();
                let other = &mut state.replicas[to];
                let node = NodeId::new(&format!("n{to}")).expect("legal");
                let incarnation = other.drawn;
                let minter = other.minter.get_or_insert_with(|| Minter::new(Actor { node, incarnation }));
                let held = other.copy.record.clone();
                let again = mint::mint(held, minter.next_dot(), op_id, value, &cause.context);
                other.copy = Copy::new(again.record, other.copy.heard_of | heard_alone);
                state.touched = state.touched.max(to + 1);
            }
            _ => {}
        }
        if !state.messages.iter().any(|message| message.hash == sent.hash) {
            state.messages.push(sent);
            state.messages.sort_by_key(|message| message.hash);
        }
        Ok(context)
    }

    fn merge(&self, replica: &mut Replica, other: &Copy, now: Duration) {
        let merged = self.merged(replica, other, now);
        replica.copy = merged.copy.clone();
        replica.synced = merged.copy.clone();
        replica.remember(&merged.dropped, now);
    }

    fn merged(&self, replica: &Replica, other: &Copy, now: Duration) -> Arc<MergedCopy> {
        let superseded = replica.remembered_ops(now);
        let both = (replica.copy.hash, other.hash, superseded);
        if let Some(known) = self.merges.borrow().get(&both) {
            return known.clone();
        }
        let mut record = replica.copy.record.clone();
        let remembered =
            |op_id: &OpId| self.without != Without::V6MergeDropsSuperseded && superseded & (1 << op_id.0 as u8) != 0;
        let dropped = match self.without {
            Without::V3CoveredDotsGo => {
                record.siblings.extend(other.record.siblings.clone());
                record.context.join(&other.record.context);
                Vec::new()
            }
            Without::V3ContextsJoin => {
                let context = record.context.clone();
                let dropped = mint::merge(&mut record, &other.record, &remembered).0.writes;
                record.context = context;
                record.siblings.keys().for_each(|dot| {
                    record.context.insert(*dot);
                });
                dropped
            }
            Without::V6SupersededAsAWhole => {
                let dropped = record.merge(&other.record, &remembered).0.writes;
                record.context = record.context.without_names();
                dropped
            }
            Without::V7NamesInRecords => {
                let dropped = mint::merge(&mut record, &other.record, &remembered).0.writes;
                record.context = record.context.without_names();
                dropped
            }
            // The names are there, and what they name is kept.
            Without::V7MergeDropsNamed => {
                let unnamed = |record: &Record| Record { context: record.context.without_names(), ..record.clone() };
                let (names, theirs) = (record.context.clone(), unnamed(&other.record));
                record = unnamed(&record);
                let dropped = mint::merge(&mut record, &theirs, &remembered).0.writes;
                record.context.join(&names);
                record.context.join(&other.record.context);
                dropped
            }
            _ => mint::merge(&mut record, &other.record, &remembered).0.writes,
        };
        let copy = Copy::new(record, replica.copy.heard_of | other.heard_of);
        let merged = Arc::new(MergedCopy { copy, dropped });
        self.merges.borrow_mut().insert(both, merged.clone());
        merged
    }

    fn lose(&self, state: &mut State, at: usize, give_up: bool) {
        state.faults += 1;
        state.losses += 1;
        let nothing = Copy::new(Record::default(), 0);
        let replica = &mut state.replicas[at];
        replica.synced = nothing.clone();
        replica.copy = nothing;
        replica.minted = 0;
        if give_up {
            replica.minter = None;
        }
        if self.without != Without::V6MemoryGoesWithTheCopy {
            replica.operations.forget_key(KEY_HASH, replica.clock(state.now));
        }
    }

    fn check(&self, state: &State, changed: usize) -> Result<(), String> {
        let minted_again = state.minted_again();
        for (at, replica) in state.replicas.iter().enumerate() {
            if at != changed && self.without != Without::V2OneMint {
                continue;
            }
            let extra = self.compare(state, &replica.copy, &replica.copy, || format!("n{at}"))?;
            if extra & replica.remembered_ops(state.now) != 0 {
                return Err(format!("n{at} remembers that {extra:b} is superseded, and shows it"));
            }
        }
        let here = &state.replicas[changed].copy;
        for (at, there) in state.replicas.iter().enumerate().filter(|(at, _)| *at != changed) {
            self.compare(state, here, &there.copy, || format!("a read of n{changed} and n{at}"))?;
        }
        if minted_again != 0 {
            self.converge(state)?;
        }
        Ok(())
    }

    /// Compares what a read of two copies shows. Returns superseded values that are shown with an excuse.
    fn compare(&self, state: &State, a: &Copy, b: &Copy, who: impl Fn() -> String) -> Result<Ops, String> {
        let shown = self.reads.borrow().get(&(a.hash, b.hash)).cloned();
        let shown = shown.unwrap_or_else(|| {
            let (mut record, mut other) = (a.record.clone(), b.record.clone());
            if self.without == Without::V7MergeDropsNamed {
                record.context = record.context.without_names();
                other.context = other.context.without_names();
            }
            record.merge(&other, &|_| false);
            let shown = self.shown(&record);
            self.reads.borrow_mut().insert((a.hash, b.hash), shown.clone());
            shown
        });
        let shown = shown.map_err(|why| format!("{} {why}", who()))?;
        let live = state.live(a.heard_of | b.heard_of);
        let extra = shown & !live;
        if live & !shown != 0 {
            return Err(format!("{} has lost {:b}: shows {shown:b} instead of {live:b}", who(), live & !shown));
        }
        let excused = if self.scope.retries_anywhere { state.minted_again() } else { 0 };
        if extra & !excused != 0 {
            return Err(format!("{} shows superseded {extra:b}: {shown:b} instead of {live:b}", who()));
        }
        Ok(extra)
    }

    fn shown(&self, record: &Record) -> Result<Ops, String> {
        let values = match self.without {
            Without::V6ShownOnce => record.siblings.values().map(|sibling| sibling.value.clone()).collect(),
            _ => record.values(),
        };
        values.iter().try_fold(0, |shown, value| match shown & (1 << value[0]) {
            0 => Ok(shown | 1 << value[0]),
            _ => Err(format!("shows operation {} twice", value[0])),
        })
    }

    fn converge(&self, state: &State) -> Result<(), String> {
        let mut replicas = state.replicas.clone();
        loop {
            let before: Vec<u128> = replicas.iter().map(|replica| replica.copy.hash).collect();
            if before.windows(2).all(|pair| pair[0] == pair[1]) {
                break;
            }
            for from in 0..replicas.len() {
                for to in (0..replicas.len()).filter(|to| *to != from) {
                    let copy = replicas[from].copy.clone();
                    self.merge(&mut replicas[to], &copy, state.now);
                }
            }
            if replicas.iter().map(|replica| replica.copy.hash).eq(before) {
                return Err("replicas stay different for ever".into());
            }
        }
        let copy = &replicas[0].copy;
        let extra = self.compare(state, copy, copy, || "everybody in the end".to_owned())?;
        if extra != 0 && self.scope.named && state.losses == 0 {
            return Err(format!("everybody shows superseded {extra:b} in the end, and nobody has lost a record"));
        }
        if extra != 0 && state.faults == 0 {
            return Err(format!("everybody remembers, and shows superseded {extra:b} in the end"));
        }
        Ok(())
    }

    /// What a client has seen that is shown a record.
    fn seen(&self, record: &Record) -> Context {
        match self.without {
            Without::V7NamesInContexts => record.seen().without_names(),
            _ => record.seen(),
        }
    }
}

/// Takes every step from every state. Returns how many states there are, or the story of a violation.
fn explore(world: &World) -> Result<usize, String> {
    let ends = STEP * (world.scope.depth as u32 + 1) + TRAVEL_MAX;
    assert!(ends < OPERATION_WINDOW, "a history of {} steps outlasts the memory of operations", world.scope.depth);
    let mut bytes = Vec::new();
    let mut visited = HashSet::new();
    // How each state of the frontier was reached: an index into `paths`, whose entries name the one before.
    let mut paths: Vec<(usize, Step)> = Vec::new();
    let mut frontier = vec![(usize::MAX, State::new(world.scope))];
    for depth in 1..=world.scope.depth {
        let mut next = Vec::new();
        for (path, state) in &frontier {
            for step in world.steps(state) {
                if world.changes_nothing(state, step) {
                    continue;
                }
                let mut reached = world.take(state, step).map_err(|why| story(&paths, *path, step, &why))?;
                if depth == world.scope.depth {
                    continue;
                }
                reached.settle(world.scope);
                if visited.insert(reached.hash(&mut bytes)) {
                    paths.push((*path, step));
                    next.push((paths.len() - 1, reached));
                }
            }
        }
        frontier = next;
    }
    Ok(visited.len())
}

fn story(paths: &[(usize, Step)], mut path: usize, last: Step, why: &str) -> String {
    let mut steps = vec![last];
    while path != usize::MAX {
        steps.push(paths[path].1);
        path = paths[path].0;
    }
    steps.reverse();
    let told: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
    format!("{why} after\n{}", told.join("\n"))
}

fn bits(ops: Ops) -> impl Iterator<Item = usize> {
    (0..Ops::BITS as usize).filter(move |op| ops & (1 << op) != 0)
}

/// The number of an operation; if it tells when it began, that is its number as well.
fn op_id(named: bool, op: usize) -> OpId {
    let number = op as u128;
    if named { OpId::new(op as u64, number) } else { OpId(number) }
}

const CLUSTER: ClusterId = ClusterId(1);
const KEY: &[u8] = b"key";
/// What operations are remembered by.
const KEY_HASH: u128 = 1;
/// How long a step takes: a retry that was sent before it has arrived when it is over.
const STEP: Duration = TRAVEL_MAX.saturating_add(Duration::from_secs(1));

/// A number from the environment, to look further than a test run has time for.
fn or(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {number:?}")),
        Err(_) => default,
    }
}

fn scope(replicas: usize, depth: usize, faults: usize, lost_replies: usize) -> Scope {
    Scope {
        replicas,
        depth: or("QUORATE_MODEL_DEPTH", depth),
        writes: or("QUORATE_MODEL_WRITES", 3),
        faults: or("QUORATE_MODEL_FAULTS", faults),
        lost_replies,
        hostile: false,
        retries_anywhere: true,
        named: true,
    }
}

fn assert_clean(scope: Scope) {
    match explore(&World::new(scope, Without::Nothing)) {
        Ok(states) => assert!(states > 1000, "a world of {states} states proves nothing"),
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn two_replicas_never_lose_duplicate_or_resurrect_a_write() {
    assert_clean(scope(2, 7, 1, 1));
}

#[test]
fn three_replicas_never_lose_duplicate_or_resurrect_a_write() {
    assert_clean(scope(3, 6, 1, 1));
}

#[test]
fn three_replicas_stay_right_through_retries() {
    assert_clean(scope(3, 7, 0, 1));
}

#[test]
fn operations_that_do_not_tell_when_they_began_stay_right_as_well() {
    assert_clean(Scope { named: false, ..scope(2, 7, 1, 1) });
    assert_clean(Scope { named: false, ..scope(3, 5, 1, 1) });
}

#[test]
fn a_retry_at_its_coordinator_never_brings_a_value_back() {
    assert_clean(Scope { retries_anywhere: false, ..scope(2, 7, 2, 1) });
    assert_clean(Scope { retries_anywhere: false, ..scope(3, 6, 1, 1) });
}

#[test]
fn three_replicas_stay_right_through_faults() {
    assert_clean(scope(3, 7, 1, 0));
}

#[test]
fn forged_contexts_and_full_disks_hide_no_write() {
    assert_clean(Scope { hostile: true, ..scope(2, 5, 1, 0) });
}

#[test]
fn every_rule_is_needed() {
    let named = Scope {
        replicas: 2,
        depth: 6,
        writes: 3,
        faults: 1,
        lost_replies: 1,
        hostile: false,
        retries_anywhere: true,
        named: true,
    };
    // Names would make up for parts of V6.
    let scope = Scope { named: false, ..named };
    let own_coordinator = Scope { retries_anywhere: false, ..scope };
    let hostile = Scope { hostile: true, lost_replies: 0, ..scope };
    let three = Scope { replicas: 3, ..scope };
    let three_named = Scope { replicas: 3, ..named };
    for (without, scope, violation) in [
        (Without::V1NewActorAfterRestart, scope, "minted twice"),
        (Without::V1NewActorAfterLoss, scope, "lost"),
        (Without::V1NewActorAfterHandOff, scope, "lost"),
        (Without::V2OneMint, scope, "superseded"),
        (Without::V2RecordHeld, scope, "lost"),
        (Without::V2CauseJoins, scope, "superseded"),
        (Without::V2DeleteLeavesContext, scope, "superseded"),
        (Without::V3CoveredDotsGo, scope, "superseded"),
        (Without::V3ContextsJoin, scope, "different for ever"),
        (Without::V3EveryDotIsNamed, scope, "lost"),
        (Without::V4RepliesCoverWhatWasSeen, scope, "lost"),
        (Without::V5OneKey, hostile, "lost"),
        (Without::V5OwnCounter, hostile, "lost"),
        (Without::V6LookAmongSiblings, scope, "minted operation"),
        (Without::V6LookAmongSuperseded, scope, "minted operation"),
        (Without::V6MergeDropsSuperseded, scope, "remembers"),
        (Without::V6RememberAfterTheWrite, hostile, "lost"),
        (Without::V6CoverOneCoverAll, scope, "remembers"),
        (Without::V6ShownOnce, scope, "twice"),
        (Without::V6SupersededAsAWhole, three, "remembers"),
        (Without::V6MemoryGoesWithTheCopy, scope, "lost"),
        (Without::V6UnknownIfForgotten, own_coordinator, "superseded"),
        (Without::V7NamesInRecords, named, "in the end"),
        (Without::V7NamesInContexts, three_named, "in the end"),
        (Without::V7MintTakesNames, three_named, "in the end"),
        (Without::V7MergeDropsNamed, named, "in the end"),
    ] {
        match explore(&World::new(scope, without)) {
            Ok(states) => panic!("{without:?}: nothing is missed in {states} states"),
            Err(story) => assert!(story.contains(violation), "{without:?} should show as {violation:?}, not {story}"),
        }
    }
}

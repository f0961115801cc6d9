//! Drives one [`Put`]: mint, replicate, wait, reply, go on.
//!
//! All of it runs in a task of its own, so that a client that goes away does not leave a write half-replicated.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_wire::codec::Blob;
use quorate_wire::ids::NodeId;
use quorate_wire::{Acks, CONTEXT_LEN_WARN, Evidence, Failure, NotApplied, Reply, Write, Written};
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::read::recall;
use super::{Inner, Turn, monotonic, plain};
use crate::calls::Calls;
use crate::peer_wire::{KeepHint, Label, Replicate, Replicated};
use crate::peers::AskError;
use crate::replica::{MintError, Minted, Operation};
use crate::request_memory::{OVERLOADED, RECORD_LEN};
use crate::store::Ticket;
use quorate_core::put::{Put, PutAction, StandIns};
use quorate_core::record::Record;
use quorate_core::version::{Context, Dot};

/// Runs a write: as a primary of its key, or as a fallback when no primary can be reached.
pub(super) async fn coordinate(
    inner: &Arc<Inner>,
    turn: Turn,
    write: &Write,
    cause: Context,
) -> Result<Reply, Failure> {
    let stand_ins = StandIns { hints: inner.mechanisms.fallbacks, fallbacks: inner.fallbacks(&turn) };
    let reachable = |node| inner.is_reachable(node);
    let put = Put::new(inner.me, write.op_id, &turn.groups, stand_ins, write.strict, reachable);
    let put = match put {
        Ok(put) if !turn.left().is_zero() => put,
        Ok(put) => {
            inner.stats.puts_not_applied.add(1);
            let why = "its time was over before it began".into();
            return Err(NotApplied::TimedOut { need: put.need(), had: 0, why }.into());
        }
        Err(refusal) => {
            inner.stats.puts_not_applied.add(1);
            sometimes!(
                "write: refused, too few primaries can be reached",
                matches!(refusal, NotApplied::Unavailable { .. })
            );
            return Err(refusal.into());
        }
    };
    // What is there is merged with the value, encoded, and copied once for each of the others; before the mint it can be refused.
    let in_hint = put.mint_for().map(|_| turn.view.primaries());
    let record = inner.replica.held_len(&write.key, in_hint) + write.value.as_ref().map_or(0, |value| value.len());
    let needed = record * (1 + turn.view.primaries().len()) + write.context.as_ref().map_or(0, |context| context.len());
    let room = match needed > RECORD_LEN {
        true => turn.room.take(needed, turn.room_until()).await,
        false => Ok(()),
    };
    let (Ok(()), Some(place)) = (room, inner.background.place()) else {
        inner.stats.puts_not_applied.add(1);
        return Err(OVERLOADED.into());
    };
    let (need, op_id) = (put.need(), write.op_id);
    tell!(act = "coordinates a write", key = %story::text(&write.key), node = %inner.me, request = turn.request_id, need,
        primaries = ?turn.view.primaries());
    let (reply, replied) = oneshot::channel();
    let driver = Driver {
        inner: inner.clone(),
        turn,
        explain: write.explain,
        put,
        minted: None,
        calls: Calls::new(),
        reply: Some(reply),
        late_at: None,
        held: None,
        permit: None,
        _place: place,
        on_time: true,
        finished: false,
    };
    let task = driver.run(write.clone(), cause).instrument(tracing::Span::current());
    if !inner.background.spawn(task) {
        inner.stats.puts_not_applied.add(1);
        return Err(NotApplied::NotServing { node: inner.me, why: "it is shutting down".into() }.into());
    }
    replied.await.unwrap_or_else(|_| {
        let why = format!("{}: the write was cut off by a shutdown", inner.me);
        Err(Failure::Indeterminate { op_id, need, acks: Acks::default(), why })
    })
}

/// Rule L10, for a repetition: what this node has minted as an owner, and owns no more, goes with its dot to those who own it now. Nothing
/// if this node knows nothing of it.
pub(super) async fn pass_on(
    inner: &Arc<Inner>,
    turn: &Turn,
    write: &Write,
    cause: &Context,
) -> Option<Result<Reply, Failure>> {
    let held = inner.replica.held(turn.partition, &write.key).await.ok().flatten()?;
    if held.dots_of(&write.op_id).is_empty() && held.superseded(&write.op_id).is_none() {
        return None;
    }
    // It is found, or stays unknown: an owner that is none any more mints nothing.
    let known = Operation { id: write.op_id, first_sent: Some(Duration::MAX), under: turn.view.label.high };
    let minted = inner.replica.mint(turn.partition, &write.key, known, write.value.clone(), cause.clone()).await;
    let Minted { record, context, .. } = minted.ok().filter(|minted| minted.repeated)?;
    sometimes!("write: a former owner passed its dot on");
    let held = monotonic::held_by(inner, turn, &write.key, &record, (&turn.groups, &[])).await;
    Some(match held {
        Ok((acks, synced)) => {
            inner.stats.puts_ok.add(1);
            let context = inner.seal(&context, &write.key);
            Ok(Reply::Written(Written {
                siblings: live_values(&record),
                replaced: 0,
                synced,
                context_large: context.len() > CONTEXT_LEN_WARN,
                context,
                quorum: inner.report(turn, turn.need(), acks, |layout| layout.w),
                evidence: None,
            }))
        }
        Err(refusal) => {
            inner.stats.puts_indeterminate.add(1);
            Err(turn.unknown(write.op_id, plain(&refusal)))
        }
    })
}

/// What a replica said: whether after a sync and whether it was news to it, or why not.
type Outcome = Result<(bool, bool), String>;

/// Who said it: a primary for itself, or the holder of a hint.
#[derive(Debug, Clone, Copy)]
enum Who {
    Primary(NodeId),
    Holder { holder: NodeId, target: NodeId },
}

struct Driver {
    inner: Arc<Inner>,
    turn: Turn,
    explain: bool,
    put: Put,
    minted: Option<Kept>,
    calls: Calls<(Who, Outcome)>,
    /// When somebody is to stand in for primaries that are late.
    late_at: Option<Instant>,
    reply: Option<oneshot::Sender<Result<Reply, Failure>>>,
    /// A reply that waits because too many writes go on after theirs.
    held: Option<Result<Reply, Failure>>,
    permit: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
    /// The deadline has not passed.
    on_time: bool,
    finished: bool,
}

/// What is left of [`Minted`] for replication and the reply.
struct Kept {
    /// The same bytes for every primary and every hint.
    key: Blob,
    record: Blob,
    decoded: Record,
    dot: Dot,
    context: Blob,
    siblings: u32,
    replaced: u32,
    repeated: bool,
    ticket: Option<Ticket>,
}

impl Driver {
    async fn run(mut self, write: Write, cause: Context) {
        let inner = self.inner.clone();
        let mut deadline = pin!(sleep_until(self.turn.deadline));
        // The mint is never cut off: whether it took place must be known before anything else is done.
        let Write { key, value, .. } = write;
        let first_sent = write.first_sent_ms.map(Duration::from_millis);
        let operation = Operation { id: write.op_id, first_sent, under: self.label().high };
        {
            let partition = self.turn.partition;
            let retry = first_sent.map(|_| self.turn.clone());
            let place = self.put.mint_for().map(|target| (self.turn.view.primaries().to_vec(), target));
            let mut mint = pin!(async {
                dawdle!("write: a pause before the mint");
                match (place, retry) {
                    (None, Some(turn)) => {
                        let first = inner.replica.mint(partition, &key, operation, value.clone(), cause.clone()).await;
                        match first {
                            Err(MintError::Forgotten) if recall(&inner, &turn, &key, operation.id).await => {
                                sometimes!("write: a retry was forgotten here and known to another primary");
                                // It is found, or stays unknown: nothing may take it for one that never came here.
                                let known = Operation { first_sent: Some(Duration::MAX), ..operation };
                                inner.replica.mint(partition, &key, known, value, cause).await
                            }
                            minted => minted,
                        }
                    }
                    (None, None) => inner.replica.mint(partition, &key, operation, value, cause).await,
                    (Some(place), _) => {
                        let now_ms = inner.now_ms();
                        inner.replica.mint_in_hint(partition, &key, operation, value, cause, place, now_ms).await
                    }
                }
            });
            let minted = loop {
                tokio::select! {
                    biased;
                    minted = &mut mint => break minted,
                    () = &mut deadline, if self.on_time => {
                        self.on_time = false;
                        sometimes!("write: the deadline passed during the mint");
                        let actions = self.put.on_deadline();
                        self.perform(actions);
                    }
                }
            };
            let actions = match minted {
                Ok(minted) => {
                    self.minted = Some(self.keep(&key, minted));
                    self.put.on_minted(self.turn.at_us())
                }
                Err(MintError::NotApplied(refusal)) => self.put.on_mint_refused(refusal),
                Err(MintError::Unknown(why)) => self.put.on_mint_unknown(why),
                Err(error @ MintError::Forgotten) => self.put.on_mint_unknown(error.to_string()),
            };
            self.perform(actions);
        }
        while !self.finished {
            let actions = tokio::select! {
                biased;
                Some((who, outcome)) = self.calls.next() => self.heard(who, outcome),
                () = sleep_until(self.late_at.unwrap_or(self.turn.deadline)), if self.late_at.is_some() => {
                    self.late_at = None;
                    let actions = self.put.on_late(self.turn.at_us());
                    sometimes!("write: a fallback stood in for a primary that was late", !actions.is_empty());
                    actions
                }
                permit = inner.background.permit(), if self.held.is_some() => {
                    self.permit = Some(permit);
                    self.send_held();
                    continue;
                }
                () = &mut deadline, if self.on_time => {
                    self.on_time = false;
                    self.send_held();
                    self.put.on_deadline()
                }
            };
            self.perform(actions);
        }
        self.send_held();
        let unplaced = self.put.unplaced();
        if unplaced > 0 {
            sometimes!("write: nobody would keep a hint");
            inner.stats.hints_unplaced.add(unplaced.into());
        }
    }

    fn heard(&mut self, who: Who, outcome: Outcome) -> Vec<PutAction> {
        let at_us = self.turn.at_us();
        match (who, outcome) {
            (Who::Primary(node), Ok((synced, changed))) => {
                sometimes!("write: a primary acknowledged after the reply", self.put.is_replied());
                self.put.on_ack(node, synced, changed, at_us)
            }
            (Who::Primary(node), Err(why)) => {
                tracing::debug!(%node, %why, "a replica did not take a write");
                self.put.on_failed(node, why, at_us)
            }
            (Who::Holder { holder, target }, Ok((synced, changed))) => {
                sometimes!("write: a fallback stood in for a primary that was down", self.put.acks().primary > 0);
                let actions = self.put.on_hint_kept(holder, target, synced, changed, at_us);
                sometimes!(
                    "write: a fallback's acknowledgement completed the quorum",
                    self.put.decided_by() == Some(holder) && !actions.is_empty()
                );
                actions
            }
            (Who::Holder { holder, target }, Err(why)) => {
                tracing::debug!(%holder, %target, %why, "a hint was not kept");
                let actions = self.put.on_hint_failed(holder, target, why, at_us);
                sometimes!(
                    "write: a second fallback was asked for one hint",
                    actions.iter().any(|action| matches!(action, PutAction::Hint { .. }))
                );
                actions
            }
        }
    }

    fn perform(&mut self, actions: Vec<PutAction>) {
        for action in actions {
            match action {
                PutAction::Replicate(to) => self.replicate(to),
                PutAction::Hint { holder, target } => self.hint(holder, target),
                PutAction::LateAfterDelay => self.late_at = Some(Instant::now() + self.late_delay()),
                PutAction::AwaitDurable => {
                    let minted = self.minted.as_mut().expect("it is asked for after the mint");
                    let ticket = minted.ticket.take().expect("it is asked for once");
                    let (me, changed) = (self.inner.me, !minted.repeated);
                    self.calls.push(async move {
                        let durable = ticket.durable().await;
                        (Who::Primary(me), durable.map(|synced| (synced, changed)).map_err(|error| error.to_string()))
                    });
                }
                PutAction::Reply(outcome) => {
                    let reply = self.reply(outcome);
                    self.held = Some(reply);
                }
                PutAction::Finished => self.finished = true,
            }
        }
        if self.held.is_some() {
            self.permit = self.inner.background.try_permit();
            sometimes!("write: the reply waited for room in the background", self.permit.is_none() && self.on_time);
            // Past its deadline the client has felt the wait; from then on the deadlines of the calls are the bound.
            if self.permit.is_some() || !self.on_time {
                self.send_held();
            }
        }
    }

    /// Starts sending the record to a primary. The call's time does not end with the request's: a short timeout is the
    /// client's wish for an early answer and no reason to leave a replica without the write.
    fn replicate(&mut self, to: NodeId) {
        let minted = self.minted.as_ref().expect("replication follows the mint");
        let (inner, request_id) = (self.inner.clone(), self.turn.request_id);
        let (label, key, record) = (self.label(), minted.key.clone(), minted.record.clone());
        let replicate = Replicate { label, key, record };
        let timeout = self.turn.left().max(REPLICATE_TIMEOUT_MIN);
        self.calls.push(async move {
            dawdle!("write: a pause between the mint and a replica");
            if buggify!("write: a replica is sent the record twice") {
                // What it says to the first one is lost.
                let _ = inner.peers.ask(to, request_id, replicate.clone(), timeout).await;
            }
            let reply = inner.peers.ask(to, request_id, replicate, timeout).await;
            inner.note_stale(label, &reply);
            (Who::Primary(to), acknowledgement(reply))
        });
    }

    /// Has somebody, maybe this node, keep the record for a primary that does not take it.
    fn hint(&mut self, holder: NodeId, target: NodeId) {
        let minted = self.minted.as_ref().expect("hints follow the mint");
        let who = Who::Holder { holder, target };
        let inner = self.inner.clone();
        if holder == inner.me {
            sometimes!("write: the coordinator kept a hint itself");
            let (partition, key, record) = (self.turn.partition, minted.key.clone(), minted.decoded.clone());
            self.calls.push(async move {
                let kept = inner.replica.keep_hint(partition, &key, target, record, inner.now_ms()).await;
                let outcome = match kept {
                    Ok(merged) => merged.ticket.durable().await.map_err(|error| error.to_string()),
                    Err(refusal) => Err(plain(&refusal)),
                };
                (who, outcome.map(|synced| (synced, true)))
            });
            return;
        }
        let (label, key, record) = (self.label(), minted.key.clone(), minted.record.clone());
        let hint = KeepHint { label, target, key, record };
        // While the client waits, a holder that is as silent as the primary must leave time for the next one.
        let waits = self.on_time && !self.put.is_replied();
        let timeout = if waits { (self.turn.left() / 3).max(LATE_DELAY_MIN) } else { REPLICATE_TIMEOUT_MIN };
        let request_id = self.turn.request_id;
        self.calls.push(async move {
            let reply = inner.peers.ask(holder, request_id, hint, timeout).await;
            (who, acknowledgement(reply))
        });
    }

    /// A primary that has not answered after so long is late: somebody stands in for it, while there is time for that.
    fn late_delay(&self) -> Duration {
        if buggify!("write: replicas count as late at once") {
            return Duration::ZERO;
        }
        let rtts = self.turn.view.primaries().iter().filter_map(|node| self.inner.peers.rtt(*node));
        let rtt = rtts.max().unwrap_or_default();
        (rtt * LATE_ROUND_TRIPS).max(LATE_DELAY_MIN).min(self.turn.left() / 3)
    }

    fn label(&self) -> Label {
        self.turn.view.label
    }

    fn keep(&self, key: &Blob, minted: Minted) -> Kept {
        let Minted { dot, record, context, replaced, repeated, ticket } = minted;
        let context = self.inner.seal(&context, key);
        let (siblings, encoded) = (live_values(&record), Blob(record.encode()));
        Kept {
            key: key.clone(),
            record: encoded,
            decoded: record,
            dot,
            context,
            siblings,
            replaced,
            repeated,
            ticket: Some(ticket),
        }
    }

    /// The client's answer, and its place in the counters.
    fn reply(&self, outcome: Result<(), Failure>) -> Result<Reply, Failure> {
        let stats = &self.inner.stats;
        let acks =
            || self.put.asked().into_iter().filter(|asked| asked.counted).map(|asked| asked.node).collect::<Vec<_>>();
        let key = || Some(story::text(&self.minted.as_ref()?.key).to_string());
        tell!(act = "decides", key = key(), node = %self.inner.me, request = self.turn.request_id, need = self.put.need(),
            counted = ?acks(), ok = outcome.is_ok());
        match outcome {
            Ok(()) => stats.puts_ok.add(1),
            Err(Failure::NotApplied(_)) => stats.puts_not_applied.add(1),
            Err(Failure::Indeterminate { .. }) => {
                sometimes!("write: ended indeterminate");
                stats.puts_indeterminate.add(1);
            }
        }
        outcome?;
        let others = || self.put.asked().into_iter().filter(|asked| !asked.counted);
        sometimes!(
            "write: acknowledged before every primary answered",
            others().any(|asked| asked.answered_us.is_none())
        );
        sometimes!("write: a replica failed, the quorum was met", others().any(|asked| asked.answered_us.is_some()));
        let minted = self.minted.as_ref().expect("a write is acknowledged after its mint");
        sometimes!("write: a coordinator made siblings", minted.siblings > 1);
        let dots = || vec![minted.dot.to_string()];
        let evidence = || {
            let asked = self.inner.evidence(&self.turn, self.put.asked(), self.put.decided_by(), dots());
            Box::new(Evidence { hints: self.put.hints(), ..*asked })
        };
        stats.degraded.add(u64::from(self.put.acks().fallback > 0));
        Ok(Reply::Written(Written {
            context: minted.context.clone(),
            siblings: minted.siblings,
            replaced: minted.replaced,
            synced: self.put.is_synced(),
            context_large: minted.context.len() > CONTEXT_LEN_WARN,
            quorum: self.inner.report(&self.turn, self.put.need(), self.put.acks(), |layout| layout.w),
            evidence: self.explain.then(evidence),
        }))
    }

    fn send_held(&mut self) {
        if let Some(held) = self.held.take()
            && let Some(reply) = self.reply.take()
        {
            // The client may have gone; the write goes on all the same.
            let _ = reply.send(held);
        }
    }
}

/// A replica is given at least so long, whatever the client's timeout: a garbage collection or a disk's stall long.
const REPLICATE_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// A replica is late after four round trips, but not before a group commit and a busy scheduler have had their time.
const LATE_ROUND_TRIPS: u32 = 4;
const LATE_DELAY_MIN: Duration = Duration::from_millis(100);

fn acknowledgement(reply: Result<Replicated, AskError>) -> Outcome {
    match reply {
        Ok(Replicated { synced, changed }) => Ok((synced, changed)),
        Err(error) => Err(error.to_string()),
    }
}

/// How many values a reader would see: dots of one operation are one value (V6).
fn live_values(record: &Record) -> u32 {
    if record.siblings.len() < 2 {
        return record.siblings.len() as u32;
    }
    let mut operations: Vec<_> = record.siblings.values().map(|sibling| sibling.op_id).collect();
    operations.sort_unstable();
    operations.dedup();
    u32::try_from(operations.len()).unwrap_or(u32::MAX)
}

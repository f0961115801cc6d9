//! Drives one [`Get`]: of a record, or of a page of a partition.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_transport::budget::Room;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{NodeId, OpId};
use quorate_wire::{
    Acks, BucketId, Evidence, Found, KEY_LEN_MAX, Key, NotApplied, QuorumReport, Read, Reply, Role, Scan, ScanEntry,
    ScanPosition, Scanned,
};
use quorate_wire::{buggify, dawdle, sometimes, story, tell};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use super::repair::repair;
use super::{Inner, Turn, check_len, check_served, monotonic, not_served, plain};
use crate::calls::Calls;
use crate::layouts::Current;
use crate::peer_wire::{Fetch, FetchHint, FetchRange, Fetched, FetchedRange};
use crate::peers::AskError;
use crate::request_memory::{RECORD_LEN, read_within};
use quorate_core::get::{Get, GetAction};
use quorate_core::quorum::Said;
use quorate_core::record::Record;
use quorate_core::scan::{Joined, MergedPage, Page, merge_pages};
use quorate_core::version::Context;

/// The most records of one page of a scan.
pub(crate) const SCAN_LIMIT_MAX: u32 = 10_000;

/// Reads a key: as one of its primaries, or as a fallback when none can be reached.
///
/// This node's own copy is looked at first; where it is large the others are told its digest, and send theirs only if it differs.
pub(super) async fn coordinate_read(inner: &Arc<Inner>, turn: &Turn, read: &Read) -> Result<Reply, NotApplied> {
    let need = turn.need();
    tell!(act = "coordinates a read", key = %story::text(&read.key), node = %inner.me, request = turn.request_id, need,
        primaries = ?turn.view.primaries());
    let own = match turn.counts(inner.me) {
        true => {
            let len = |record: &Option<Record>| record.as_ref().map_or(0, Record::encoded_len);
            let own = || own_record(inner, turn, &read.key);
            match read_within(&turn.room, turn.room_until(), own, len).await {
                Err(refusal @ NotApplied::Overloaded { .. }) => {
                    inner.stats.gets_failed.add(1);
                    return Err(refusal);
                }
                own => Some(own),
            }
        }
        false => None,
    };
    let held = match &own {
        Some(Ok(Some(record))) if record.encoded_len() >= DIGEST_LEN_MIN => Some(record.clone()),
        _ => None,
    };
    let digest = held.as_ref().map(|record| record.digest(&read.key));
    let question = Question { key: read.key.encoded().clone(), own, held, digest, durable: read.monotonic, r: need };
    let ask = {
        let (inner, turn, question) = (inner.clone(), turn.clone(), Arc::new(question));
        move |from, role| -> Ask<Record> {
            let (inner, turn, question) = (inner.clone(), turn.clone(), question.clone());
            match role {
                Role::Primary => Box::pin(fetch(inner, turn, question, from)),
                Role::Fallback => Box::pin(fetch_hint(inner, turn, question, from)),
            }
        }
    };
    let mut fallbacks = if read.strict { Vec::new() } else { inner.fallbacks(turn) };
    if inner.stands_in(turn) && !turn.view.is_primary(inner.me) {
        fallbacks.insert(0, inner.me);
    }
    let mut gathering = Gathering::start(inner, turn, read.strict, &fallbacks, ask);
    let mut outcome = gathering.until_reply().await.map_err(|refusal| turn.failed(refusal));
    if read.monotonic && outcome.is_ok() {
        let (record, holders) = (gathering.get.merged(), gathering.get.holders());
        outcome = monotonic::confirm(inner, turn, &read.key, &record, &holders).await;
    }
    if outcome.is_ok() {
        outcome = still_holds(inner, turn, read, &gathering.get);
    }
    let counted = || gathering.get.decisive().iter().map(|(node, _)| *node).collect::<Vec<_>>();
    tell!(act = "decides", key = %story::text(&read.key), node = %inner.me, request = turn.request_id, need,
        counted = ?counted(), hedges = gathering.get.hedges(), ok = outcome.is_ok());
    let stats = &inner.stats;
    stats.hedges.add(gathering.get.hedges().into());
    let outcome = outcome.map(|()| {
        let merged = gathering.get.merged();
        let get = &gathering.get;
        let decisive = get.decisive();
        sometimes!("read: a deleted key", merged.siblings.is_empty() && !merged.context.is_empty());
        sometimes!("read: merged what no replica had whole", decisive.iter().all(|(_, record)| *record != merged));
        sometimes!(
            "read: replicas disagreed whether there is a key",
            merged != Record::default() && decisive.iter().any(|(_, record)| *record == Record::default())
        );
        sometimes!(
            "read: a hedge answered first",
            get.hedges() > 0 && get.asked()[need.into()..].iter().any(|asked| asked.counted)
        );
        let dots = || merged.siblings.keys().map(ToString::to_string).collect();
        let repairs = || get.stale().map_or_else(Vec::new, |(stale, _)| stale);
        let evidence = || {
            let evidence = inner.evidence(turn, get.asked(), get.decided_by(), dots());
            Box::new(Evidence { hedges: get.hedges(), repairs: repairs(), ..*evidence })
        };
        sometimes!("read: a fallback's hint counted", get.acks().fallback > 0);
        stats.degraded.add(u64::from(get.acks().fallback > 0));
        Reply::Found(Found {
            values: merged.values(),
            context: inner.seal(&merged.seen(), &read.key),
            quorum: inner.report(turn, need, get.acks(), |layout| layout.r),
            evidence: read.explain.then(evidence),
        })
    });
    match &outcome {
        Ok(_) => stats.gets_ok.add(1),
        Err(_) => stats.gets_failed.add(1),
    }
    if gathering.finished {
        if gathering.get.stale().is_some() && !turn.has_room_to_go_on() {
            inner.stats.repairs_skipped.add(1);
        } else {
            repair(inner, turn, &read.key, &gathering.get);
        }
    } else if !buggify!("read: late answers are not waited for")
        && turn.has_room_to_go_on()
        && let Some(permit) = inner.background.try_permit()
    {
        // Late answers tell who is stale. When too much goes on already that is not worth waiting for.
        let key = read.key.clone();
        let rest = async move {
            gathering.until_finished().await;
            repair(&gathering.inner, &gathering.turn, &key, &gathering.get);
            drop(permit);
        };
        inner.background.spawn(rest.instrument(tracing::Span::current()));
    }
    outcome
}

/// # Errors
/// Why a quorum's answer cannot be given after all.
fn still_holds(inner: &Inner, turn: &Turn, read: &Read, get: &Get<Record>) -> Result<(), NotApplied> {
    if get.says_too_much() {
        sometimes!("read: a stand-in had deleted what too few primaries have seen");
        let (need, alive) = (get.need(), get.acks().primary);
        let why = "a stand-in has deleted the values, and only its primaries know whether there are others".to_owned();
        return Err(NotApplied::Unavailable { need, alive, why });
    }
    // It may have been told since it looked that its disk was set back.
    let own = turn.counts(inner.me) && get.decisive().iter().any(|(node, _)| *node == inner.me);
    if own { inner.replica.still_speaks(&read.key, turn.reading()) } else { Ok(()) }
}

/// Reads one page of some partitions, of each from its primaries: small ones a dozen at a time, and no more once half of the
/// time is over, or there is no room for more. What has come by then is the page.
pub(super) async fn coordinate_scan(inner: &Arc<Inner>, turn: &Turn, scan: &Scan) -> Result<Reply, NotApplied> {
    let scanned = scan_partitions(inner, turn, scan).await;
    match &scanned {
        Ok(_) => inner.stats.scans_ok.add(1),
        Err(_) => inner.stats.scans_failed.add(1),
    }
    scanned.map(Reply::Scanned)
}

async fn scan_partitions(inner: &Arc<Inner>, turn: &Turn, scan: &Scan) -> Result<Scanned, NotApplied> {
    let quorum = scan.r.unwrap_or(inner.defaults.r);
    let bytes_max = buggify!("scan: a page of few bytes", SCAN_BYTES_MAX, 1);
    let mut joined = Joined::new(scan.from.clone(), scan.until, scan.limit as usize, bytes_max, scan.keys_only);
    let half = turn.start + turn.deadline.saturating_duration_since(turn.start) / 2;
    let (mut least, mut below_floor, mut own) = (None::<Acks>, false, Vec::new());
    loop {
        let asks = joined.asks(SCAN_WIDTH);
        if asks.is_empty() || joined.has_moved() && Instant::now() >= half {
            break;
        }
        let (left, may_wait) = (joined.left(), !joined.has_moved());
        let pages = asks.iter().map(async |from| {
            let (partition, view) = (from.partition, turn.current.view(from.partition));
            let groups = view.read_groups(quorum)?.into();
            let turn = Turn { partition, view, groups, ..turn.clone() };
            scan_partition(inner, turn, scan, from.after.clone(), (left, bytes_max), may_wait).await
        });
        for (from, page) in asks.iter().zip(join_all(pages).await) {
            match page {
                Ok(OnePage { page, acks, below_floor: below, counts_own }) => {
                    joined.add(from, page);
                    below_floor |= below;
                    least = Some(least.filter(|least| least.total() <= acks.total()).unwrap_or(acks));
                    own.extend(counts_own.then_some(from.partition));
                }
                Err(refusal) if !joined.has_moved() => return Err(refusal),
                // The next page begins with it, and says what is wrong if it lasts.
                Err(_) => {
                    sometimes!("scan: a page ended before a partition that could not be read");
                    joined.end();
                }
            }
        }
        // What every replica has sent is let go, what is in stays.
        let held = joined.held();
        drop(turn.room.split(turn.room.taken().saturating_sub(held)));
        if !turn.room.covers(held, RECORD_LEN) {
            joined.end();
        }
    }
    // It may have been told since it looked that its disk was set back.
    let need = turn.need();
    for partition in own {
        inner.replica.still_speaks_of(partition, turn.reading())?;
    }
    let quorum = QuorumReport { below_floor, ..inner.report(turn, need, least.unwrap_or_default(), |layout| layout.r) };
    let (entries, next) = joined.into_page();
    sometimes!(
        "scan: a page of several partitions",
        next.as_ref().is_none_or(|next| next.partition > scan.from.partition)
    );
    let entry = |(key, record): (Key, Record)| match scan.keys_only {
        // As if nothing had been seen: a context of values that were not sent would let a write discard them.
        true => ScanEntry { values: Vec::new(), context: inner.seal(&Context::new(), &key), key },
        false => ScanEntry { values: record.values(), context: inner.seal(&record.seen(), &key), key },
    };
    let decoded = |(key, record): (Blob, Record)| match Key::from_encoded(key) {
        Ok(key) => Ok(entry((key, record))),
        Err(error) => Err(NotApplied::Storage { node: inner.me, why: format!("a record lies under {error}") }),
    };
    Ok(Scanned { entries: entries.into_iter().map(decoded).collect::<Result<_, _>>()?, next, quorum })
}

/// What came of one partition.
struct OnePage {
    page: MergedPage,
    acks: Acks,
    below_floor: bool,
    /// What this node holds is part of it.
    counts_own: bool,
}

/// A page of one partition. Who has something already `may_wait` for nothing: see [`Room::take`].
async fn scan_partition(
    inner: &Arc<Inner>,
    turn: Turn,
    scan: &Scan,
    after: Option<Blob>,
    (left, bytes_max): (usize, usize),
    may_wait: bool,
) -> Result<OnePage, NotApplied> {
    // Of what is read for a prefix little may be wanted.
    let limit = if scan.prefix.is_whole_bucket() { left as u32 } else { (left as u32).max(SCAN_FILTERED) };
    let ask = {
        let (inner, turn, after) = (inner.clone(), turn.clone(), after.clone());
        move |from, _| -> Ask<Page> {
            Box::pin(fetch_page(inner.clone(), turn.clone(), after.clone(), limit, may_wait, from))
        }
    };
    let mut gathering = Gathering::start(inner, &turn, true, &[], ask);
    let outcome = gathering.until_reply().await.map_err(|refusal| turn.failed(refusal));
    inner.stats.hedges.add(gathering.get.hedges().into());
    outcome?;
    let (acks, decisive) = (gathering.get.acks(), gathering.get.into_decisive());
    let counts_own = decisive.iter().any(|(node, _)| *node == inner.me);
    let pages = decisive.into_iter().map(|(_, page)| page).collect();
    let page = merge_pages(pages, left, bytes_max, |key| scan.prefix.matches(key));
    sometimes!("scan: a page ended where another replica's did", page.next.is_some() && page.entries.len() < left);
    Ok(OnePage { page, acks, below_floor: turn.is_below(|layout| layout.r), counts_own })
}

/// # Errors
/// What is wrong with a scan, before anything is asked.
pub(super) fn check_scan(scan: &Scan, current: &Current) -> Result<(), NotApplied> {
    let unsupported = |why: String| Err(NotApplied::Unsupported { why });
    let (partitions, ScanPosition { partition, after }) = (current.partitions(), &scan.from);
    if partition.0 >= partitions || scan.until.0 > partitions {
        let until = scan.until;
        return unsupported(format!("partitions {partition} to {until} of {partitions}, which are counted from 0"));
    }
    if *partition >= scan.until {
        return unsupported(format!("a scan from partition {partition} that ends before partition {}", scan.until));
    }
    if !(1..=SCAN_LIMIT_MAX).contains(&scan.limit) {
        return unsupported(format!("a page of {} records, 1 to {SCAN_LIMIT_MAX} are possible", scan.limit));
    }
    check_len("prefix", KEY_LEN_MAX, scan.prefix.len())?;
    match (scan.prefix.bucket(), scan.prefix.sort_key_prefix()) {
        (BucketId::DEFAULT, None) => {}
        (BucketId::DEFAULT, Some(_)) => return Err(not_served("the scan is one of a partition key's sort keys")),
        (bucket, _) => return Err(not_served(&format!("the scan is of bucket {bucket}"))),
    }
    if let Some(after) = after {
        check_served(after)?;
        if current.partition_of(after) != *partition {
            return unsupported(format!("a position that is not in partition {partition}"));
        }
    }
    Ok(())
}

/// What one replica said.
enum Answered<T> {
    Holds(T, Said),
    /// Nothing of the key, with what stands for that.
    Absent(T),
    Failed(String),
}

type Ask<T> = Pin<Box<dyn Future<Output = (NodeId, Answered<T>)> + Send>>;

/// A [`Get`] and its questions in flight.
struct Gathering<T, F> {
    inner: Arc<Inner>,
    turn: Turn,
    get: Get<T>,
    ask: F,
    calls: Calls<(NodeId, Answered<T>)>,
    /// When each was asked.
    sent: Vec<(NodeId, Instant)>,
    hedge: Option<Hedge>,
    outcome: Option<Result<(), NotApplied>>,
    finished: bool,
}

/// A timer for asking one more replica.
#[derive(Debug, Clone, Copy)]
struct Hedge {
    token: u32,
    at: Instant,
    /// It is the last chance, whatever the budget says.
    last: bool,
}

impl<T: Send, F: Fn(NodeId, Role) -> Ask<T>> Gathering<T, F>
where
    T: 'static,
{
    fn start(inner: &Arc<Inner>, turn: &Turn, strict: bool, fallbacks: &[NodeId], ask: F) -> Self {
        let nearest = inner.nearest_primaries(turn);
        let (get, actions) = Get::start(&turn.groups, &nearest, fallbacks, strict, turn.at_us());
        let (inner, turn, calls, sent) = (inner.clone(), turn.clone(), Calls::new(), Vec::new());
        inner.hedging.deposit();
        let mut gathering = Self { inner, turn, get, ask, calls, sent, hedge: None, outcome: None, finished: false };
        gathering.perform(actions);
        gathering
    }

    async fn until_reply(&mut self) -> Result<(), NotApplied> {
        let mut deadline = pin!(sleep_until(self.turn.deadline));
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            let hedge_at = self.hedge.map_or(self.turn.deadline, |hedge| hedge.at);
            let actions = tokio::select! {
                biased;
                Some((node, answered)) = self.calls.next() => self.answered(node, answered),
                () = sleep_until(hedge_at), if self.hedge.is_some() => self.late(),
                () = &mut deadline => {
                    sometimes!("read: timed out");
                    self.get.on_deadline()
                }
            };
            self.perform(actions);
        }
    }

    /// Every call has a deadline, so that this ends.
    async fn until_finished(&mut self) {
        while !self.finished
            && let Some((node, answered)) = self.calls.next().await
        {
            let actions = self.answered(node, answered);
            self.perform(actions);
        }
    }

    /// The answers are later than usual: one more is asked if the budget has room for it, at the latest when a third of the
    /// time is over.
    fn late(&mut self) -> Vec<GetAction> {
        let Some(hedge) = self.hedge.take() else { return Vec::new() };
        if !hedge.last && !self.inner.hedging.withdraw() {
            self.hedge = Some(Hedge { at: hedge.at + self.turn.left() / 3, last: true, ..hedge });
            return Vec::new();
        }
        self.get.on_late(hedge.token, self.turn.at_us())
    }

    fn hedge_after_delay(&mut self, token: u32, primary: bool) {
        let now = Instant::now();
        let waiting = self.sent.iter().map(|(node, _)| *node).filter(|node| *node != self.inner.me);
        let delay = hedge_delay(self.inner.hedging.usual(waiting), primary, self.turn.left());
        let delay = buggify!("read: a hedge at once", delay, Duration::ZERO);
        self.hedge = Some(Hedge { token, at: now + delay, last: !primary });
    }

    fn answered(&mut self, node: NodeId, answered: Answered<T>) -> Vec<GetAction> {
        let at_us = self.turn.at_us();
        if let Some(index) = self.sent.iter().position(|(asked, _)| *asked == node) {
            let (_, at) = self.sent.remove(index);
            if node != self.inner.me {
                self.inner.hedging.note(node, at.elapsed());
            }
        }
        match answered {
            Answered::Holds(answer, said) => self.get.on_answer(node, answer, said, at_us),
            Answered::Absent(empty) => self.get.on_absent(node, empty, at_us),
            Answered::Failed(why) => {
                tracing::debug!(%node, %why, "a replica did not answer a read");
                let actions = self.get.on_failed(node, why, at_us);
                sometimes!(
                    "read: another replica was asked in place of one that failed",
                    actions.iter().any(|action| matches!(action, GetAction::Ask(_)))
                );
                actions
            }
        }
    }

    fn ask(&mut self, node: NodeId, role: Role) {
        self.sent.push((node, Instant::now()));
        self.calls.push((self.ask)(node, role));
    }

    fn perform(&mut self, actions: Vec<GetAction>) {
        for action in actions {
            match action {
                GetAction::Ask(node) => self.ask(node, Role::Primary),
                GetAction::AskFallback(node) => self.ask(node, Role::Fallback),
                GetAction::HedgeAfterDelay { token, primary } => self.hedge_after_delay(token, primary),
                GetAction::Reply(outcome) => self.outcome = Some(outcome),
                GetAction::Finished => self.finished = true,
            }
        }
    }
}

/// A hedge never comes earlier than this: a busy scheduler takes that long now and then, and asking twice would only add to it.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(2);

/// As long as nobody has answered yet.
const HEDGE_DELAY_UNKNOWN: Duration = Duration::from_millis(50);

/// From here on a digest (16 bytes, and half a microsecond to make) is cheaper than the record.
const DIGEST_LEN_MIN: usize = 1024;

/// The values of one page of a scan; well below a frame, and half a millisecond of a gigabit's line.
const SCAN_BYTES_MAX: usize = 1 << 20;

/// How many partitions are read at once when each has little: a thousand empty ones are then some dozens of round trips.
const SCAN_WIDTH: usize = 16;

/// How many records are looked at, at least, for those with a prefix.
const SCAN_FILTERED: u32 = 1_000;

/// Later than the slowest of twenty answers is late; a third of the time leaves two more attempts. A fallback most likely has
/// nothing to say, so that it is asked only then.
fn hedge_delay(usual: Option<Duration>, primary: bool, left: Duration) -> Duration {
    match primary {
        true => usual.unwrap_or(HEDGE_DELAY_UNKNOWN).max(HEDGE_DELAY_MIN).min(left / 3),
        false => left / 3,
    }
}

/// Whether there is room for what has come from a replica, beside what is taken already.
fn has_room(room: &Room, len: usize) -> bool {
    len <= RECORD_LEN || room.try_take(len).is_ok()
}

/// What a read asks of every replica.
struct Question {
    key: Blob,
    /// This node's own answer, if it is a primary.
    own: Option<Result<Option<Record>, NotApplied>>,
    /// The same record, if it is large, and its digest: others need not send it.
    held: Option<Record>,
    digest: Option<u128>,
    /// Answers must be durable where they are given.
    durable: bool,
    /// How many replicas the read asks.
    r: u8,
}

/// What this node holds of a key, if it may answer the read.
async fn own_record(inner: &Inner, turn: &Turn, key: &Blob) -> Result<Option<Record>, NotApplied> {
    turn.speaks(inner.me)?;
    let record = inner.replica.read_for(key, turn.reading()).await?;
    turn.still_speaks(inner)?;
    Ok(record)
}

fn holds(record: Record) -> Answered<Record> {
    let said = Said::Values(record.siblings.len());
    Answered::Holds(record, said)
}

async fn fetch(inner: Arc<Inner>, turn: Turn, question: Arc<Question>, from: NodeId) -> (NodeId, Answered<Record>) {
    dawdle!("read: a pause before a replica is asked");
    let answered = if from == inner.me {
        let durable = match question.durable {
            true => inner.replica.settled_under(turn.view.label.high).await,
            false => Ok(()),
        };
        match (durable, &question.own) {
            (Ok(()), Some(Ok(Some(record)))) => holds(record.clone()),
            (Ok(()), Some(Ok(None)) | None) => Answered::Absent(Record::default()),
            (Ok(()), Some(Err(refusal))) => Answered::Failed(plain(refusal)),
            (Err(refusal), _) => Answered::Failed(plain(&refusal)),
        }
    } else {
        let (key, held, durable) = (question.key.clone(), question.digest, question.durable);
        let fetch =
            Fetch { at: turn.view.read_version(), under: turn.view.label.high, key, held, durable, r: question.r };
        let reply = inner.peers.ask(from, turn.request_id, fetch, turn.left()).await;
        inner.note_closed((from, turn.view.read_version()), turn.partition, &reply);
        match (reply, &question.held) {
            (Ok(Fetched::Same), Some(record)) => {
                sometimes!("read: a digest spared a record");
                holds(record.clone())
            }
            (reply, _) => fetched(reply, &turn.room),
        }
    };
    (from, answered)
}

/// Rule V7: takes over what another primary knows of a write that this one may have forgotten, if one of them holds it or names it as
/// superseded; tells whether one did. What was written once is so found again, and nothing is minted.
pub(super) async fn recall(inner: &Arc<Inner>, turn: &Turn, key: &Blob, op_id: OpId) -> bool {
    let r = turn.current.layout.r;
    // Whoever owns the key under any live version may know of it; only owners under the version of reads are sure to answer.
    let question = Arc::new(Question { key: key.clone(), own: None, held: None, digest: None, durable: false, r });
    let until = Instant::now() + turn.left() / 2;
    let mut calls = Calls::new();
    for primary in turn.view.primaries().iter().copied().filter(|node| *node != inner.me) {
        calls.push(fetch(inner.clone(), turn.clone(), question.clone(), primary));
    }
    while let Ok(Some((from, answered))) = timeout_at(until, calls.next()).await {
        let Answered::Holds(record, _) = answered else { continue };
        if record.dots_of(&op_id).is_empty() && record.superseded(&op_id).is_none() {
            continue;
        }
        match inner.replica.merge(turn.partition, key, record).await {
            Ok(_) => return true,
            Err(error) => tracing::debug!(%from, %error, "what it knows of a repeated write was not taken"),
        }
    }
    false
}

async fn fetch_hint(
    inner: Arc<Inner>,
    turn: Turn,
    question: Arc<Question>,
    from: NodeId,
) -> (NodeId, Answered<Record>) {
    let answered = if from == inner.me {
        match inner.replica.hinted(turn.partition, &question.key, turn.view.primaries()).await {
            Ok(Some(record)) => holds(record),
            Ok(None) => Answered::Absent(Record::default()),
            Err(refusal) => Answered::Failed(plain(&refusal)),
        }
    } else {
        let fetch = FetchHint { key: question.key.clone() };
        fetched(inner.peers.ask(from, turn.request_id, fetch, turn.left()).await, &turn.room)
    };
    sometimes!("read: a fallback had nothing to say", matches!(answered, Answered::Absent(_)));
    (from, answered)
}

fn fetched(reply: Result<Fetched, AskError>, room: &Room) -> Answered<Record> {
    match reply {
        Ok(Fetched::Record(Some(encoded))) if !has_room(room, encoded.len()) => {
            Answered::Failed("there is no room here for its record".into())
        }
        Ok(Fetched::Record(Some(encoded))) => match Record::decode(&encoded) {
            Ok(record) => holds(record),
            Err(why) => Answered::Failed(format!("its record cannot be decoded: {why}")),
        },
        Ok(Fetched::Record(None)) => Answered::Absent(Record::default()),
        Ok(Fetched::Same) => Answered::Failed("it names a record that it was not asked about".into()),
        Err(error) => Answered::Failed(error.to_string()),
    }
}

async fn fetch_page(
    inner: Arc<Inner>,
    turn: Turn,
    after: Option<Blob>,
    limit: u32,
    may_wait: bool,
    from: NodeId,
) -> (NodeId, Answered<Page>) {
    let limit = buggify!("scan: replicas are asked for one record at a time", limit, 1);
    // Many that are read at once add up, so that also those are counted that are small.
    let fits = |len| if may_wait { has_room(&turn.room, len) } else { turn.room.try_take(len).is_ok() };
    let no_room = || "there is no room here for its page".to_owned();
    let entries = if from == inner.me {
        let range = async || {
            turn.speaks(inner.me)?;
            let page = inner.replica.range(turn.partition, after.as_ref(), limit as usize, turn.reading()).await?;
            turn.still_speaks(&inner)?;
            Ok(page)
        };
        let len = |(entries, _): &(Vec<_>, bool)| entries_len(entries);
        if may_wait {
            let range = read_within(&turn.room, turn.room_until(), range, len).await;
            range.map_err(|refusal| plain(&refusal))
        } else {
            let range = range().await.map_err(|refusal| plain(&refusal));
            range.and_then(|range| if fits(len(&range)) { Ok(range) } else { Err(no_room()) })
        }
    } else {
        let (at, r) = (turn.view.read_version(), turn.need());
        let fetch = FetchRange { at, partition: turn.partition, after: after.clone(), limit, r };
        let reply = inner.peers.ask(from, turn.request_id, fetch, turn.left()).await;
        inner.note_closed((from, turn.view.read_version()), turn.partition, &reply);
        match reply {
            Ok(FetchedRange { entries, .. })
                if !fits(entries.iter().map(|(key, record)| key.len() + record.len()).sum()) =>
            {
                Err(no_room())
            }
            Ok(FetchedRange { entries, done }) => decode_entries(entries).map(|entries| (entries, done)),
            Err(error) => Err(error.to_string()),
        }
    };
    let page = entries.and_then(|(entries, done)| Page::new(entries, done, after.as_ref()));
    let answered = match page {
        Ok(page) => {
            let said = Said::Page(page.len());
            Answered::Holds(page, said)
        }
        Err(why) => Answered::Failed(why),
    };
    (from, answered)
}

/// What a page of records takes.
pub(crate) fn entries_len(entries: &[(Blob, Record)]) -> usize {
    entries.iter().map(|(key, record)| key.len() + record.encoded_len()).sum()
}

fn decode_entries(entries: Vec<(Blob, Blob)>) -> Result<Vec<(Blob, Record)>, String> {
    let decode = |(key, encoded): (Blob, Blob)| match Record::decode(&encoded) {
        Ok(record) => Ok((key, record)),
        Err(why) => Err(format!("one of its records cannot be decoded: {why}")),
    };
    entries.into_iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hedge_waits_for_what_is_usual_within_its_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(hedge_delay(Some(ms(0)), true, ms(900)), ms(2));
        assert_eq!(hedge_delay(Some(ms(60)), true, ms(900)), ms(60));
        assert_eq!(hedge_delay(Some(ms(400)), true, ms(900)), ms(300));
        assert_eq!(hedge_delay(None, true, ms(900)), ms(50));
        assert_eq!(hedge_delay(Some(ms(9)), true, ms(3)), ms(1), "a short timeout goes before the least delay");
        assert_eq!(hedge_delay(Some(ms(1)), false, ms(900)), ms(300), "a fallback is the last resort");
    }
}

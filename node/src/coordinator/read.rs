//! Drives one [`Get`]: of a record, or of a page of a partition.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::codec::Blob;
use quorate_client::ids::NodeId;
use quorate_client::wire::{Found, NotApplied, Read, Reply, Scan, ScanEntry, Scanned};
use quorate_client::{buggify, dawdle, sometimes};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::calls::Calls;
use super::write::label;
use super::{Inner, Turn, check_key, plain};
use crate::core::get::{Get, GetAction};
use crate::core::quorum::Said;
use crate::core::record::Record;
use crate::core::scan::{Page, merge_pages};
use crate::layouts::Current;
use crate::peer_wire::{PeerBody, PeerReply, class};

/// The most records of one page of a scan.
pub(crate) const SCAN_LIMIT_MAX: u32 = 10_000;

/// Reads a key of which this node is a primary.
pub(super) async fn coordinate_read(
    inner: &Arc<Inner>,
    turn: &Turn,
    read: &Read,
    need: u8,
) -> Result<Reply, NotApplied> {
    let ask = {
        let (inner, turn, key) = (inner.clone(), turn.clone(), read.key.clone());
        move |from| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(fetch(inner.clone(), turn.clone(), key.clone(), from))
        }
    };
    let mut gathering = Gathering::start(inner, turn, need, read.strict, ask);
    let outcome = gathering.until_reply().await;
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
        let evidence = || inner.evidence(turn, get.asked(), get.decided_by(), dots());
        Reply::Found(Found {
            values: merged.values(),
            context: Blob(merged.context.seal(inner.cluster, &read.key)),
            quorum: inner.report(turn, need, get.acks(), turn.current.layout.r),
            evidence: if read.explain { evidence() } else { None },
        })
    });
    match &outcome {
        Ok(_) => stats.gets_ok.add(1),
        Err(_) => stats.gets_failed.add(1),
    }
    if gathering.finished {
        note_stale(inner, &gathering.get);
    } else if !buggify!("read: late answers are not waited for")
        && let Some(permit) = inner.background.try_permit()
    {
        // Late answers tell who is stale. When too much goes on already that is not worth waiting for.
        let inner = inner.clone();
        let rest = async move {
            gathering.until_finished().await;
            note_stale(&gathering.inner, &gathering.get);
            drop(permit);
        };
        inner.background.spawn(rest.instrument(tracing::Span::current()));
    }
    outcome
}

/// Reads one page of a partition of which this node is a primary.
pub(super) async fn coordinate_scan(
    inner: &Arc<Inner>,
    turn: &Turn,
    scan: &Scan,
    need: u8,
) -> Result<Reply, NotApplied> {
    let ask = {
        let (inner, turn, after, limit) = (inner.clone(), turn.clone(), scan.after.clone(), scan.limit);
        move |from| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(fetch_page(inner.clone(), turn.clone(), after.clone(), limit, from))
        }
    };
    let mut gathering = Gathering::start(inner, turn, need, false, ask);
    let outcome = gathering.until_reply().await;
    inner.stats.hedges.add(gathering.get.hedges().into());
    match &outcome {
        Ok(_) => inner.stats.scans_ok.add(1),
        Err(_) => inner.stats.scans_failed.add(1),
    }
    outcome?;
    let quorum = inner.report(turn, need, gathering.get.acks(), turn.current.layout.r);
    let pages = gathering.get.into_decisive().into_iter().map(|(_, page)| page).collect();
    let bytes_max = buggify!("scan: a page of few bytes", SCAN_BYTES_MAX, 1);
    let merged = merge_pages(pages, scan.limit as usize, bytes_max);
    sometimes!(
        "scan: a page ended where another replica's did",
        merged.next.is_some() && merged.entries.len() < scan.limit as usize
    );
    let entry = |(key, record): (Blob, Record)| ScanEntry {
        values: record.values(),
        context: Blob(record.context.seal(inner.cluster, &key)),
        key,
    };
    let entries = merged.entries.into_iter().map(entry).collect();
    Ok(Reply::Scanned(Scanned { entries, next: merged.next, quorum }))
}

/// # Errors
/// What is wrong with a scan, before anything is asked.
pub(super) fn check_scan(scan: &Scan, current: &Current) -> Result<(), NotApplied> {
    let unsupported = |why: String| Err(NotApplied::Unsupported { why });
    let partitions = current.ring.partitions();
    if scan.partition.0 >= partitions {
        return unsupported(format!("partition {} of {partitions}, which are counted from 0", scan.partition));
    }
    if !(1..=SCAN_LIMIT_MAX).contains(&scan.limit) {
        return unsupported(format!("a page of {} records, 1 to {SCAN_LIMIT_MAX} are possible", scan.limit));
    }
    if let Some(after) = &scan.after {
        check_key(after)?;
        if current.ring.partition_of(after) != scan.partition {
            return unsupported(format!("a position that is not in partition {}", scan.partition));
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
    hedge_delay: Duration,
    hedge: Option<(u32, Instant)>,
    outcome: Option<Result<(), NotApplied>>,
    finished: bool,
}

impl<T: Send, F: Fn(NodeId) -> Ask<T>> Gathering<T, F>
where
    T: 'static,
{
    fn start(inner: &Arc<Inner>, turn: &Turn, need: u8, strict: bool, ask: F) -> Self {
        let primaries = inner.nearest_primaries(turn);
        let (get, actions) = Get::start(&primaries, need, strict, turn.at_us());
        let asked = &primaries[..need.into()];
        let rtt = asked.iter().filter_map(|node| inner.peers.rtt(*node)).max().unwrap_or_default();
        let (inner, turn, calls) = (inner.clone(), turn.clone(), Calls::new());
        let hedge_delay = buggify!("read: a hedge at once", hedge_delay(rtt, turn.left()), Duration::ZERO);
        let mut gathering =
            Self { inner, turn, get, ask, calls, hedge_delay, hedge: None, outcome: None, finished: false };
        gathering.perform(actions);
        gathering
    }

    async fn until_reply(&mut self) -> Result<(), NotApplied> {
        let mut deadline = pin!(sleep_until(self.turn.deadline));
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            let (token, hedge_at) = self.hedge.unwrap_or((0, self.turn.deadline));
            let actions = tokio::select! {
                biased;
                Some((node, answered)) = self.calls.next() => self.answered(node, answered),
                () = sleep_until(hedge_at), if self.hedge.is_some() => {
                    self.hedge = None;
                    self.get.on_late(token, self.turn.at_us())
                }
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

    fn answered(&mut self, node: NodeId, answered: Answered<T>) -> Vec<GetAction> {
        let at_us = self.turn.at_us();
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

    fn perform(&mut self, actions: Vec<GetAction>) {
        for action in actions {
            match action {
                GetAction::Ask(node) => self.calls.push((self.ask)(node)),
                GetAction::HedgeAfterDelay(token) => self.hedge = Some((token, Instant::now() + self.hedge_delay)),
                GetAction::Reply(outcome) => self.outcome = Some(outcome),
                GetAction::Finished => self.finished = true,
            }
        }
    }
}

/// A hedge never comes earlier than this: the sync of a group commit and a busy scheduler take that long now and then, and
/// asking twice would only add to it.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(10);

/// The values of one page of a scan; well below a frame, and half a millisecond of a gigabit's line.
const SCAN_BYTES_MAX: usize = 1 << 20;

/// Three round trips are late; a third of the time leaves two more attempts.
fn hedge_delay(rtt: Duration, left: Duration) -> Duration {
    rtt.saturating_mul(3).max(HEDGE_DELAY_MIN).min(left / 3)
}

async fn fetch(inner: Arc<Inner>, turn: Turn, key: Blob, from: NodeId) -> (NodeId, Answered<Record>) {
    let holds = |record: Record| {
        let said = Said::Values(record.siblings.len());
        Answered::Holds(record, said)
    };
    dawdle!("read: a pause before a replica is asked");
    let answered = if from == inner.me {
        match inner.replica.read(&key).await {
            Ok(Some(record)) => holds(record),
            Ok(None) => Answered::Absent(Record::default()),
            Err(refusal) => Answered::Failed(plain(&refusal)),
        }
    } else {
        let body = PeerBody::Fetch { label: label(turn.current.layout.version), key };
        match inner.peers.call(from, class::REPLICATE, turn.request_id, body, turn.left()).await {
            Ok(PeerReply::Fetched { record: Some(encoded) }) => match Record::decode(&encoded) {
                Ok(record) => holds(record),
                Err(why) => Answered::Failed(format!("its record cannot be decoded: {why}")),
            },
            Ok(PeerReply::Fetched { record: None }) => Answered::Absent(Record::default()),
            Ok(PeerReply::Refused(refusal)) => Answered::Failed(plain(&refusal)),
            Ok(_) => Answered::Failed("an answer to another question".into()),
            Err(error) => Answered::Failed(error.to_string()),
        }
    };
    (from, answered)
}

async fn fetch_page(
    inner: Arc<Inner>,
    turn: Turn,
    after: Option<Blob>,
    limit: u32,
    from: NodeId,
) -> (NodeId, Answered<Page>) {
    let limit = buggify!("scan: replicas are asked for one record at a time", limit, 1);
    let entries = if from == inner.me {
        let range = inner.replica.range(turn.partition, after.as_ref(), limit as usize).await;
        range.map_err(|refusal| plain(&refusal))
    } else {
        let label = label(turn.current.layout.version);
        let body = PeerBody::FetchRange { label, partition: turn.partition, after: after.clone(), limit };
        match inner.peers.call(from, class::BULK, turn.request_id, body, turn.left()).await {
            Ok(PeerReply::Range { entries, done }) => decode_entries(entries).map(|entries| (entries, done)),
            Ok(PeerReply::Refused(refusal)) => Err(plain(&refusal)),
            Ok(_) => Err("an answer to another question".into()),
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

fn decode_entries(entries: Vec<(Blob, Blob)>) -> Result<Vec<(Blob, Record)>, String> {
    let decode = |(key, encoded): (Blob, Blob)| match Record::decode(&encoded) {
        Ok(record) => Ok((key, record)),
        Err(why) => Err(format!("one of its records cannot be decoded: {why}")),
    };
    entries.into_iter().map(decode).collect()
}

/// The seat of read repair: who is stale is known here, and counted.
fn note_stale(inner: &Inner, get: &Get<Record>) {
    let stale = get.stale();
    if !stale.is_empty() {
        sometimes!("read: met a stale replica");
        inner.stats.stale_replicas.add(stale.len() as u64);
        tracing::debug!(?stale, "replicas lack what others hold");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hedge_waits_three_round_trips_within_its_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(hedge_delay(ms(0), ms(900)), ms(10));
        assert_eq!(hedge_delay(ms(20), ms(900)), ms(60));
        assert_eq!(hedge_delay(ms(400), ms(900)), ms(300));
        assert_eq!(hedge_delay(ms(0), ms(15)), ms(5), "a short timeout goes before the least delay");
        assert_eq!(hedge_delay(Duration::MAX, ms(900)), ms(300));
    }
}

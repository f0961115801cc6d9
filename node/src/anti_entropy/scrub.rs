//! Reads all that this node holds, again and again, so that what rots on its disk is noticed while others still have it.
//!
//! Hash trees are kept in step by writes and do not see a record that changes by itself; a request sees it only when somebody asks.
//! (Riak lets its trees expire for the same reason; the scrubs of ZFS and of Garage are this.) What is corrupt is noted by the replica
//! and [recovered](super::recover) from the other owners at once. A round also counts what is there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_wire::ids::Partition;
use quorate_wire::sometimes;
use tokio::time::{Instant, sleep};

use super::Desk;

/// The background task.
pub(super) async fn run(desk: Arc<Desk>) {
    loop {
        let began = Instant::now();
        let Some(current) = desk.layouts.current() else {
            sleep(LOOK_EVERY).await;
            continue;
        };
        let owned = current.owned_by(desk.me);
        drop(current);
        let mut seen = (!owned.is_empty()).then(Seen::default);
        for partition in owned {
            seen = match (seen, scrub(&desk, partition).await) {
                (Some(all), Some(more)) => Some(all.and(more)),
                _ => None,
            };
        }
        let whole = seen.is_some();
        if let Some(seen) = seen {
            sometimes!("scrub: a whole round");
            desk.state().last_scrub = Some((Instant::now(), seen));
        }
        let every = if whole { desk.config.scrub } else { desk.config.scrub.min(RETRY_AFTER) };
        sleep(every.saturating_sub(began.elapsed()).max(REST_MIN)).await;
    }
}

/// What a round has read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Records that are well, tombstones included.
    pub(super) records: u64,
    /// Records of deleted keys.
    pub(super) tombstones: u64,
}

impl Seen {
    fn and(self, more: Self) -> Self {
        Self { records: self.records + more.records, tombstones: self.tombstones + more.tombstones }
    }
}

/// Reads one partition; nothing if not all of it could be read.
async fn scrub(desk: &Desk, partition: Partition) -> Option<Seen> {
    let (mut from, mut seen) = (None, Seen::default());
    loop {
        while desk.state().paused {
            sleep(LOOK_EVERY).await;
        }
        let began = Instant::now();
        let page = match desk.replica.scrub(partition, from).await {
            Ok(page) => page,
            Err(why) => {
                tracing::debug!(%partition, "not scrubbed: {why}");
                return None;
            }
        };
        seen = seen.and(Seen { records: page.records, tombstones: page.tombstones });
        desk.counters.scrubbed.fetch_add(page.records, Ordering::Relaxed);
        desk.counters.scrub_found.fetch_add(page.corrupt, Ordering::Relaxed);
        sometimes!("scrub: found a corrupt record", page.corrupt > 0);
        sleep((began.elapsed() * REST_SHARE).min(REST_MAX)).await;
        match page.next {
            Some(next) => from = Some(next),
            None => return Some(seen),
        }
    }
}

/// It rests so many times as long as it has read: a twentieth of a thread, and of the disk's time.
const REST_SHARE: u32 = 19;
/// The longest rest after one page, when a disk is slow.
const REST_MAX: Duration = Duration::from_secs(10);
/// The shortest rest between two rounds.
const REST_MIN: Duration = Duration::from_secs(1);
/// How often it is looked whether repair goes on, and whether there is a layout.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A round that did not read all (the store failed, this node owns nothing) is followed by the next one so soon at the latest.
const RETRY_AFTER: Duration = Duration::from_secs(60);

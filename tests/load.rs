//! Clients that write and read known keys while something happens to the cluster, and remember what was acknowledged.
//!
//! Each client has keys of its own and writes their versions one after the other, each time in place of what it has just read. So every
//! read can be judged: it must show the newest acknowledged version or a later one, and nothing that was never written.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{Client, Quorum, Read};
use quorate_wire::random::Random;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// A request that has failed is made again so often before it counts as failed.
const RETRIES_MAX: u64 = 5;
/// How long a request may take: much, because the machine may be busy.
const REQUEST_TIME: Duration = Duration::from_secs(8);
/// Before a request is made again: a node that has just started answers no read for a second while a member is down.
const PAUSE: Duration = Duration::from_millis(300);
/// So many keys are read or written at a time where no client waits for its own.
const AT_ONCE: usize = 16;

/// What the load has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    done: AtomicU64,
    retried: AtomicU64,
    unknown: Mutex<Vec<String>>,
    late: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    /// Requests that were answered as they should.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How often a request was made again.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Writes whose outcome nobody knew, after all retries, as when their coordinator was killed, and why. The next read has told what
    /// became of each.
    ///
    /// # Panics
    /// Never: nothing panics while it is noted.
    pub fn unknown(&self) -> Vec<String> {
        self.unknown.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Reads that missed an acknowledged write where that may be: a reply of the two said that its quorum was not all primaries.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Requests that failed beyond their retries, and reads that were wrong.
    ///
    /// # Panics
    /// Never: nothing panics while it is noted.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn note(&self, what: String) {
        self.wrong.lock().expect("nothing panics while it holds this lock").push(what);
    }
}

/// One key: what was written, and what of it was acknowledged.
#[derive(Debug)]
struct Known {
    key: String,
    /// The newest version that was sent.
    tried: u64,
    /// The newest version that was acknowledged.
    acknowledged: u64,
    /// Not only primaries had acknowledged it.
    degraded: bool,
}

/// The running load.
#[derive(Debug)]
pub struct Load {
    runtime: Runtime,
    db: Client,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    clients: Vec<JoinHandle<Vec<Known>>>,
    /// Keys that are written once, before the clients begin.
    kept: Vec<Known>,
    value_len: usize,
}

impl Load {
    /// Writes `kept` keys, and starts clients that write and read ten keys each. All requests ask for R = W = 2; every other client
    /// counts primaries only.
    ///
    /// # Panics
    /// When the cluster cannot be reached, or a first write fails.
    pub fn start(profile: &Path, clients: usize, kept: usize, value_len: usize) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let db = runtime.block_on(connect(profile));
        let tally = Arc::new(Tally::default());
        let keys = |name: String| Known { key: name, tried: 0, acknowledged: 0, degraded: false };
        let kept = (0..kept).map(|number| keys(format!("kept-{number}"))).collect();
        let kept =
            runtime.block_on(for_each(kept, db.clone(), tally.clone(), move |mut known, db, tally| async move {
                known.step(&db, &tally, value_len, false).await;
                known
            }));
        assert_eq!(tally.wrong(), [""; 0], "before anything has happened");
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let (db, tally, stop) = (db.clone(), tally.clone(), stop.clone());
            let mut known: Vec<Known> = (0..KEYS_EACH).map(|key| keys(format!("client-{number}-{key}"))).collect();
            runtime.spawn(async move {
                let random = Random::from_seed(number as u64);
                while !stop.load(Ordering::Relaxed) {
                    let at = random.below(KEYS_EACH) as usize;
                    known[at].step(&db, &tally, value_len, number.is_multiple_of(2)).await;
                }
                known
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { runtime, db, stop, tally, clients, kept, value_len }
    }

    /// What it has done so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The size of a value, and how many keys there are.
    pub fn size(&self) -> (usize, usize) {
        (self.value_len, self.kept.len() + self.clients.len() * KEYS_EACH as usize)
    }

    /// Ends the load, and reads every key through another client. What is wrong is in the tally.
    ///
    /// # Panics
    /// When a client has panicked, or the cluster cannot be reached.
    pub fn end(self, profile: &Path) -> (usize, Arc<Tally>) {
        let Self { runtime, db, stop, tally, clients, kept, .. } = self;
        stop.store(true, Ordering::Relaxed);
        let read = runtime.block_on(async {
            let mut all = kept;
            for client in clients {
                all.extend(client.await.expect("it does not panic"));
            }
            db.close().await;
            let db = connect(profile).await;
            let read = for_each(all, db.clone(), tally.clone(), |mut known, db, tally| async move {
                // By now it is where it belongs.
                known.degraded = false;
                known.read(&db, &tally, false).await;
                known
            });
            let read = read.await.len();
            db.close().await;
            read
        });
        (read, tally)
    }
}

const KEYS_EACH: u64 = 10;

impl Known {
    /// Reads the key and writes its next version in place of what was read.
    async fn step(&mut self, db: &Client, tally: &Tally, value_len: usize, strict: bool) {
        let Some(read) = self.read(db, tally, strict).await else { return };
        self.tried += 1;
        let value = value(&self.key, self.tried, value_len);
        let put = || {
            let put = db.put(&self.key, value.clone(), &read);
            if strict { put.strict() } else { put }
        };
        let mut outcome = put().await;
        for _ in 0..RETRIES_MAX {
            let Err(error) = &outcome else { break };
            if !error.is_retryable() {
                break;
            }
            tally.retried.fetch_add(1, Ordering::Relaxed);
            let op_id = error.op_id();
            tokio::time::sleep(PAUSE).await;
            outcome = match op_id {
                Some(op_id) => put().op_id(op_id).any_coordinator().await,
                None => put().await,
            };
        }
        match outcome {
            Ok(written) => {
                (self.acknowledged, self.degraded) = (self.tried, written.quorum().degraded);
                tally.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.may_have_applied() => {
                let what = format!("version {} of {}: {error}", self.tried, self.key);
                tally.unknown.lock().expect("nothing panics while it holds this lock").push(what);
            }
            Err(error) => tally.note(format!("the write of version {} of {} failed: {error}", self.tried, self.key)),
        }
    }

    async fn read(&self, db: &Client, tally: &Tally, strict: bool) -> Option<Read> {
        let mut retries = 0;
        let read = loop {
            let get = db.get(&self.key);
            let get = if strict { get.strict() } else { get };
            match get.allow_absent().await {
                Ok(read) => break read,
                Err(error) if error.is_retryable() && retries < RETRIES_MAX => {
                    tally.retried.fetch_add(1, Ordering::Relaxed);
                    retries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tally.note(format!("a read of {} failed: {error}", self.key));
                    return None;
                }
            }
        };
        match self.judge(read.siblings()) {
            Ok(()) => {
                tally.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(Misread::Stale(_)) if self.degraded || read.quorum().degraded => {
                tally.late.fetch_add(1, Ordering::Relaxed);
            }
            Err(Misread::Stale(why) | Misread::Foreign(why)) => {
                tally.note(format!("a read of {} in layout {} {why}", self.key, read.quorum().layout));
            }
        }
        Some(read)
    }

    fn judge(&self, values: &[impl AsRef<[u8]>]) -> Result<(), Misread> {
        let mut newest = 0;
        for value in values {
            let foreign = || Misread::Foreign("has a value that was never written".into());
            let version = version(&self.key, value.as_ref()).ok_or_else(foreign)?;
            if version > self.tried {
                let why = format!("has version {version}, and {} is the newest that was sent", self.tried);
                return Err(Misread::Foreign(why));
            }
            newest = newest.max(version);
        }
        if newest < self.acknowledged {
            let why = format!("has version {newest}, and {} was acknowledged", self.acknowledged);
            return Err(Misread::Stale(why));
        }
        Ok(())
    }
}

/// What is wrong with a read.
#[derive(Debug, PartialEq)]
enum Misread {
    /// It misses what was acknowledged.
    Stale(String),
    /// It shows what was never written.
    Foreign(String),
}

async fn connect(profile: &Path) -> Client {
    let two = Quorum::Exactly(2);
    let db = Client::from_config(profile).expect("a profile").r(two).w(two).timeout(REQUEST_TIME);
    db.connect().await.expect("the cluster runs")
}

/// Does something for each key, some at a time.
async fn for_each<D, F>(all: Vec<Known>, db: Client, tally: Arc<Tally>, act: D) -> Vec<Known>
where
    D: Fn(Known, Client, Arc<Tally>) -> F,
    F: Future<Output = Known> + Send + 'static,
{
    let (mut under_way, mut done) = (JoinSet::new(), Vec::with_capacity(all.len()));
    for known in all {
        if under_way.len() == AT_ONCE {
            done.push(under_way.join_next().await.expect("there is one").expect("it does not panic"));
        }
        under_way.spawn(act(known, db.clone(), tally.clone()));
    }
    done.extend(under_way.join_all().await);
    done
}

/// Key and version, then what follows from the two.
fn value(key: &str, version: u64, len: usize) -> Vec<u8> {
    let mut value = format!("{key} {version} ").into_bytes();
    let filler = Random::from_seed(version ^ key.len() as u64);
    let begun = value.len();
    value.resize(len.max(begun), 0);
    filler.fill(&mut value[begun..]);
    value
}

/// The version that a value is of, if it is one of this key's.
fn version(key: &str, found: &[u8]) -> Option<u64> {
    let rest = found.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
    let digits = rest.split(|byte| *byte == b' ').next()?;
    let version = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (value(key, version, found.len()) == found).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_judged_by_what_was_acknowledged_and_sent() {
        let known = Known { key: "k".into(), tried: 5, acknowledged: 4, degraded: false };
        let judge = |versions: &[u64]| {
            let values: Vec<_> = versions.iter().map(|version| value("k", *version, 40)).collect();
            known.judge(&values)
        };
        assert_eq!((judge(&[4]), judge(&[5]), judge(&[3, 5])), (Ok(()), Ok(()), Ok(())));
        assert!(matches!(judge(&[3]), Err(Misread::Stale(why)) if why.contains("4 was acknowledged")));
        assert!(matches!(judge(&[]), Err(Misread::Stale(why)) if why.contains("has version 0")));
        assert!(matches!(judge(&[6]), Err(Misread::Foreign(why)) if why.contains("5 is the newest")));
        let mut bent = value("k", 5, 40);
        bent[30] ^= 1;
        for foreign in [bent, value("other", 5, 40)] {
            assert!(matches!(known.judge(&[foreign]), Err(Misread::Foreign(_))));
        }
    }
}

//! Reading everything, page by page or as a stream.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::options::{Quorum, TIMEOUT_MAX};
use crate::read::Read;
use quorate_wire::ids::Partition;
use quorate_wire::{
    BucketId, Found, KeyPrefix, NotApplied, QuorumReport, Reply, RequestBody, Scan, ScanPosition, Scanned,
};

/// Goes through all live records, those with a prefix, or those of one partition; see [`Client::scan`].
///
/// It can be read page by page ([`next_page`](Self::next_page)) or, as a [`Stream`], record by record. Nothing is fetched before
/// it is asked for, one page at a time, so that a slow reader costs nobody memory. A page goes on across partitions until it
/// is full: two thousand records in a thousand partitions are five pages of 500, and as many round trips.
///
/// It is no snapshot: a record that is written during the scan may be seen as it was or as it is, and one that stays as it is
/// is seen exactly once.
///
/// ```no_run
/// # use std::future::poll_fn;
/// # use std::pin::Pin;
/// use futures_core::Stream;
///
/// # async fn example(db: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// let mut users = db.scan().prefix("user/");
/// // With `futures::StreamExt` or `tokio_stream::StreamExt` in scope: `users.next().await`.
/// while let Some(read) = poll_fn(|cx| Pin::new(&mut users).poll_next(cx)).await {
///     let read = read?;
///     println!("{:?}: {} values", read.key(), read.siblings().len());
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it is read"]
pub struct Scanner {
    ask: Ask,
    done: bool,
    /// The page that is being fetched: kept, so that dropping the future of `next_page` half-way loses nothing.
    fetching: Option<Fetching>,
    /// What the stream has not handed out yet of the last page.
    ready: VecDeque<Read>,
}

type Fetching = Pin<Box<dyn Future<Output = Result<(Scanned, u16), Error>> + Send>>;

/// One page of a scan: records in the order of their key hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The records, each with its key, its values and its context. May be none though more pages come.
    pub records: Vec<Read>,
    /// The least that any of them was read with.
    pub quorum: QuorumReport,
}

impl Scanner {
    pub(crate) fn new(client: Client) -> Self {
        let defaults = client.defaults();
        let ask = Ask {
            r: defaults.r,
            limit: PAGE_DEFAULT,
            timeout: (defaults.timeout * PAGE_TIME).min(TIMEOUT_MAX),
            prefix: KeyPrefix::default(),
            keys_only: false,
            at: ScanPosition::start_of(Partition(0)),
            only: None,
            client,
        };
        Self { ask, done: false, fetching: None, ready: VecDeque::new() }
    }

    /// Only this partition.
    pub fn partition(mut self, partition: Partition) -> Self {
        (self.ask.at, self.ask.only) = (ScanPosition::start_of(partition), Some(partition));
        self
    }

    /// Goes on from this partition to the last one: for resuming.
    pub fn from_partition(mut self, partition: Partition) -> Self {
        (self.ask.at, self.ask.only) = (ScanPosition::start_of(partition), None);
        self
    }

    /// Only keys that begin with these bytes. Keys lie on the nodes in the order of their hashes, so that a prefix saves the
    /// way to the client, and not the look at every record.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.ask.prefix = KeyPrefix::new(BucketId::DEFAULT, prefix.as_ref());
        self
    }

    /// Fetches keys alone. The records then have no values, and the context of one who has seen nothing: a write that names it
    /// stands beside what is there.
    pub fn keys_only(mut self) -> Self {
        self.ask.keys_only = true;
        self
    }

    /// How many replicas each record is read from.
    pub fn r(mut self, r: Quorum) -> Self {
        self.ask.r = r;
        self
    }

    /// At most so many records a page, 1 to 10,000; 500 if nothing is said. A page is also bounded by bytes and time.
    pub fn page_size(mut self, records: u32) -> Self {
        self.ask.limit = records.clamp(1, PAGE_MAX);
        self
    }

    /// How long one page may take, retries included: ten times a request's time if nothing is said.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.ask.timeout = timeout;
        self
    }

    /// The partition that the next page begins in.
    pub fn position(&self) -> Partition {
        self.ask.at.partition
    }

    /// The next page; nothing after the last one. After an error it can be called again and goes on where it was. What a
    /// stream has fetched and not handed out comes first.
    ///
    /// # Errors
    /// As every request that changes nothing; [`NotApplied::NotServing`] while the cluster has no layout.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if let Some(first) = self.ready.front() {
            let quorum = first.quorum().clone();
            return Ok(Some(Page { records: self.ready.drain(..).collect(), quorum }));
        }
        poll_fn(|cx| self.poll_page(cx)).await
    }

    fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Page>, Error>> {
        if self.done {
            return Poll::Ready(Ok(None));
        }
        let fetching = self.fetching.get_or_insert_with(|| Box::pin(self.ask.clone().page()));
        let fetched = ready!(fetching.as_mut().poll(cx));
        self.fetching = None;
        Poll::Ready(fetched.and_then(|(scanned, partitions)| self.arrived(scanned, partitions)).map(Some))
    }

    fn arrived(&mut self, scanned: Scanned, partitions: u16) -> Result<Page, Error> {
        let Scanned { entries, next, quorum } = scanned;
        let at = &self.ask.at;
        let stuck = |next: &ScanPosition| {
            next == at || next.partition < at.partition || next.partition.0 >= self.ask.until(partitions).0
        };
        if next.as_ref().is_some_and(stuck) {
            let why = format!("a scan that was at partition {} does not get on: a fault of the node", at.partition);
            return Err(Error::Codec { why });
        }
        let records = entries.into_iter().map(|entry| {
            let quorum = quorum.clone();
            if !entry.key.parts().is_plain() {
                let why = format!("a scan of plain keys was answered with {}: a fault of the node", entry.key.parts());
                return Err(Error::Codec { why });
            }
            Read::new(
                entry.key.partition_key(),
                Found { values: entry.values, context: entry.context, quorum, evidence: None },
            )
        });
        let records = records.collect::<Result<Vec<_>, _>>()?;
        match next {
            Some(next) => self.ask.at = next,
            None => self.done = true,
        }
        Ok(Page { records, quorum })
    }
}

/// Record by record. A stream that has ended in an error can be polled again, and goes on where it was.
impl Stream for Scanner {
    type Item = Result<Read, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(read) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(read)));
            }
            match ready!(self.poll_page(cx)) {
                Ok(Some(page)) => self.ready = page.records.into(),
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl fmt::Debug for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scanner").field("ask", &self.ask).field("done", &self.done).finish_non_exhaustive()
    }
}

/// What the next page is asked for with.
#[derive(Debug, Clone)]
struct Ask {
    client: Client,
    r: Quorum,
    limit: u32,
    timeout: Duration,
    prefix: KeyPrefix,
    keys_only: bool,
    /// Where it begins.
    at: ScanPosition,
    /// Nothing of other partitions.
    only: Option<Partition>,
}

impl Ask {
    fn until(&self, partitions: u16) -> Partition {
        Partition(self.only.map_or(partitions, |only| only.0.saturating_add(1)))
    }

    /// The page, and how many partitions there are.
    async fn page(self) -> Result<(Scanned, u16), Error> {
        let partitions = match self.client.route_table() {
            Some(table) => table.partitions,
            None => self.first_table().await?,
        };
        if self.at.partition.0 >= partitions {
            let last = partitions - 1;
            return Err(Error::misuse(format!("there is no partition {}, the last one is {last}", self.at.partition)));
        }
        let body = RequestBody::Scan(Scan {
            until: self.until(partitions),
            from: self.at,
            limit: self.limit,
            prefix: self.prefix,
            keys_only: self.keys_only,
            r: Some(self.r),
        });
        match self.client.exchange(body, self.timeout, None).await? {
            Reply::Scanned(scanned) => Ok((scanned, partitions)),
            other => Err(unexpected(&other)),
        }
    }

    /// The cluster had no layout when the client connected; it may have one now.
    async fn first_table(&self) -> Result<u16, Error> {
        match self.client.exchange(RequestBody::Route, self.timeout, None).await? {
            Reply::Route(table) => {
                self.client.learn(table);
                let table = self.client.route_table();
                table.map(|table| table.partitions).ok_or_else(|| {
                    NotApplied::Unsupported { why: "the node sent a malformed route table".into() }.into()
                })
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Small enough that a page of ordinary records comes within a request's time.
const PAGE_DEFAULT: u32 = 500;
/// The protocol's bound.
const PAGE_MAX: u32 = 10_000;
/// A page may be some megabytes from several replicas.
const PAGE_TIME: u32 = 10;

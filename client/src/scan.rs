//! Reading everything, page by page.

use crate::client::{Client, unexpected};
use crate::codec::Blob;
use crate::error::Error;
use crate::ids::Partition;
use crate::options::{Quorum, TIMEOUT_MAX};
use crate::read::Read;
use crate::wire::{Found, NotApplied, QuorumReport, Reply, RequestBody, Scan};

/// Goes through all live records, or those of one partition; see [`Client::scan`].
///
/// Nothing is fetched before it is asked for, one page at a time, so that a slow reader costs nobody memory. It is no
/// snapshot: a record that is written during the scan may be seen as it was or as it is, and one that stays as it is is seen
/// exactly once.
#[derive(Debug)]
#[must_use = "it does nothing until `next_page` is awaited"]
pub struct Scanner {
    client: Client,
    r: Quorum,
    limit: u32,
    timeout: std::time::Duration,
    /// The partition that comes next, and how far it was read.
    at: Partition,
    after: Option<Blob>,
    /// Stop after `at`.
    one: bool,
    done: bool,
}

/// One page of a scan: records of one partition in the order of their key hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The partition.
    pub partition: Partition,
    /// The records, each with its key, its values and its context. May be none though more pages come.
    pub records: Vec<Read>,
    /// The least that any of them was read with.
    pub quorum: QuorumReport,
}

impl Scanner {
    pub(crate) fn new(client: Client) -> Self {
        let defaults = client.defaults();
        Self {
            client,
            r: defaults.r,
            limit: PAGE_DEFAULT,
            timeout: (defaults.timeout * PAGE_TIME).min(TIMEOUT_MAX),
            at: Partition(0),
            after: None,
            one: false,
            done: false,
        }
    }

    /// Only this partition.
    pub fn partition(mut self, partition: Partition) -> Self {
        (self.at, self.after, self.one) = (partition, None, true);
        self
    }

    /// Goes on from this partition to the last one: for resuming.
    pub fn from_partition(mut self, partition: Partition) -> Self {
        (self.at, self.after, self.one) = (partition, None, false);
        self
    }

    /// How many replicas each record is read from.
    pub fn r(mut self, r: Quorum) -> Self {
        self.r = r;
        self
    }

    /// At most so many records a page, 1 to 10,000; 500 if nothing is said. A page is also bounded by bytes.
    pub fn page_size(mut self, records: u32) -> Self {
        self.limit = records.clamp(1, PAGE_MAX);
        self
    }

    /// How long one page may take, retries included: ten times a request's time if nothing is said.
    pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The partition that the next page comes from.
    pub fn position(&self) -> Partition {
        self.at
    }

    /// The next page; nothing after the last one. After an error it can be called again and goes on where it was.
    ///
    /// # Errors
    /// As every request that changes nothing; [`NotApplied::NotServing`] while the cluster has no layout.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if self.done {
            return Ok(None);
        }
        let partitions = match self.client.route_table() {
            Some(table) => table.partitions,
            None => self.first_table().await?,
        };
        if self.at.0 >= partitions {
            let last = partitions - 1;
            return Err(Error::misuse(format!("there is no partition {}, the last one is {last}", self.at)));
        }
        let partition = self.at;
        let body = RequestBody::Scan(Scan { partition, after: self.after.clone(), limit: self.limit, r: Some(self.r) });
        let scanned = match self.client.exchange(body, self.timeout, None).await? {
            Reply::Scanned(scanned) => scanned,
            other => return Err(unexpected(&other)),
        };
        if scanned.next.is_some() && scanned.next == self.after {
            return Err(Error::Codec {
                why: format!("a scan of partition {partition} does not get on: a fault of the node"),
            });
        }
        let records = scanned.entries.into_iter().map(|entry| {
            let quorum = scanned.quorum.clone();
            Read::new(entry.key.0, Found { values: entry.values, context: entry.context, quorum, evidence: None })
        });
        let records = records.collect::<Result<Vec<_>, _>>()?;
        self.after = scanned.next;
        if self.after.is_none() {
            self.done = self.one || partition.0 + 1 == partitions;
            self.at = if self.done { partition } else { Partition(partition.0 + 1) };
        }
        Ok(Some(Page { partition, records, quorum: scanned.quorum }))
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

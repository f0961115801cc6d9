//! What a client asks for.

use serde::{Deserialize, Serialize};

use crate::admin::{LayoutCommand, RepairCommand};
use crate::codec::Blob;
use crate::ids::{LayoutVersion, OpId, Partition};
use crate::quorum::Quorum;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The newest layout that the client's route table was made from; 0 if it has none.
    pub layout: LayoutVersion,
    /// Ties together the log lines of one request on every node that it touches.
    pub request_id: u64,
    /// What is asked for.
    pub body: RequestBody,
}

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Writes or deletes a key.
    Write(Write),
    /// Reads a key.
    Read(Read),
    /// One page of the live records of some partitions, in key-hash order, each read from R primaries.
    Scan(Scan),
    /// The current route table.
    Route,
    /// Where a key lives.
    Locate {
        /// The key.
        key: Blob,
    },
    /// What the answering node knows of itself and of its peers.
    Status,
    /// Shows or changes the layout; needs an administrator's certificate.
    Layout(LayoutCommand),
    /// Shows or steers how the answering node compares itself with others; all but showing needs an administrator's certificate.
    Repair(RepairCommand),
}

/// A put (with a value) or a delete (without one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// 1 to [`KEY_LEN_MAX`](crate::KEY_LEN_MAX) bytes.
    pub key: Blob,
    /// The new value, or nothing for a delete.
    pub value: Option<Blob>,
    /// What the writer has seen of the key: the context of a read or of a write. Nothing means that it has seen nothing.
    pub context: Option<Blob>,
    /// The same in every retry of this write.
    pub op_id: OpId,
    /// An earlier attempt may have been minted somewhere: how long ago, in milliseconds, the first one was sent at most. Only who
    /// knows the operation may mint it then, or a primary that remembers everything since: a second dot could outlive what has
    /// replaced the first one.
    pub first_sent_ms: Option<u64>,
    /// How many replicas must hold the write durably before it is acknowledged; the server's default if absent.
    pub w: Option<Quorum>,
    /// Only primaries count for W.
    pub strict: bool,
    /// Ask for [`Evidence`](crate::Evidence).
    pub explain: bool,
}

/// A read of one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// 1 to [`KEY_LEN_MAX`](crate::KEY_LEN_MAX) bytes.
    pub key: Blob,
    /// How many replicas must answer; the server's default if absent.
    pub r: Option<Quorum>,
    /// Only primaries count for R.
    pub strict: bool,
    /// Answer once what is returned is durable on N - R + 1 of the primaries, and on a majority of them at least, so that no later
    /// read of as many replicas, or of a majority, misses it.
    pub monotonic: bool,
    /// Ask for [`Evidence`](crate::Evidence).
    pub explain: bool,
}

/// One page of some partitions that follow each other. A page goes on across partitions until it is full, so that many small
/// partitions do not cost a round trip each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// Where to begin: the [`Scanned::next`](crate::Scanned::next) of the page before.
    pub from: ScanPosition,
    /// The partition before which the scan ends; the number of partitions for all of them.
    pub until: Partition,
    /// At most so many records (1 to 10,000); a page is also bounded by bytes and by time.
    pub limit: u32,
    /// Only keys that begin with these bytes.
    pub prefix: Option<Blob>,
    /// Send keys without values.
    pub keys_only: bool,
    /// How many replicas each record is read from.
    pub r: Option<Quorum>,
}

/// A place in a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPosition {
    /// The partition.
    pub partition: Partition,
    /// After this key of it; nothing: at its beginning.
    pub after: Option<Blob>,
}

impl ScanPosition {
    /// The beginning of a partition.
    pub fn start_of(partition: Partition) -> Self {
        Self { partition, after: None }
    }
}

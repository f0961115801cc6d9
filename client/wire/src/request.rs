//! What a client asks for.

use serde::{Deserialize, Serialize};

use crate::admin::{LayoutCommand, RepairCommand};
use crate::codec::Blob;
use crate::ids::{LayoutVersion, OpId, Partition};
use crate::key::{Key, KeyPrefix};
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
        key: Key,
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
    /// 1 to [`KEY_LEN_MAX`](crate::KEY_LEN_MAX) bytes of partition key and sort key; this release serves plain keys only (see
    /// [`KeyParts::is_plain`](crate::key::KeyParts::is_plain)).
    pub key: Key,
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
    /// As [`Write::key`].
    pub key: Key,
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
    /// Only keys that begin so; all of a bucket at most.
    pub prefix: KeyPrefix,
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
    /// After this encoded [`Key`] of it; nothing: at its beginning.
    pub after: Option<Blob>,
}

impl ScanPosition {
    /// The beginning of a partition.
    pub fn start_of(partition: Partition) -> Self {
        Self { partition, after: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BucketId;
    use crate::codec;

    /// As they are sent: every request that names a key has the places for a bucket and a sort key.
    #[test]
    fn messages_are_fixed_for_ever() {
        let (plain, named) = (Key::plain("k"), Key::new(BucketId(1), b"k", b"s"));
        let write = |key: Key| Write {
            key,
            value: Some(Blob::copy_from(b"v")),
            context: None,
            op_id: OpId(7),
            first_sent_ms: None,
            w: Some(Quorum::Majority),
            strict: false,
            explain: false,
        };
        let read = |key: Key| Read { key, r: None, strict: true, monotonic: false, explain: false };
        let scan = |prefix: KeyPrefix, after: &Key| Scan {
            from: ScanPosition { partition: Partition(3), after: Some(after.clone().into()) },
            until: Partition(4),
            limit: 10,
            prefix,
            keys_only: false,
            r: None,
        };
        for (body, expected) in [
            (RequestBody::Write(write(plain.clone())), WRITE),
            (RequestBody::Write(write(named.clone())), WRITE_NAMED),
            (RequestBody::Read(read(plain.clone())), READ),
            (RequestBody::Read(read(named.clone())), READ_NAMED),
            (RequestBody::Locate { key: plain.clone() }, LOCATE),
            (RequestBody::Locate { key: named.clone() }, LOCATE_NAMED),
            (RequestBody::Scan(scan(KeyPrefix::default(), &plain)), SCAN),
            (RequestBody::Scan(scan(KeyPrefix::of_partition_key(BucketId(1), b"k", b"s"), &named)), SCAN_NAMED),
        ] {
            let request = Request { layout: LayoutVersion(1), request_id: 2, body };
            let frame = codec::encode(&request);
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected, "{request:?}");
            assert_eq!(codec::decode::<Request>(&frame).expect("the same"), request);
        }
    }

    const WRITE: &str = "0293010281a5577269746598c407000000006b0001c40176c0c41000000000000000000000000000000007c0a8\
        4d616a6f72697479c2c2";
    const WRITE_NAMED: &str = "0293010281a5577269746598c408000000016b000173c40176c0c4100000000000000000000000000000\
        0007c0a84d616a6f72697479c2c2";
    const READ: &str = "0293010281a45265616495c407000000006b0001c0c3c2c2";
    const READ_NAMED: &str = "0293010281a45265616495c408000000016b000173c0c3c2c2";
    const LOCATE: &str = "0293010281a64c6f6361746591c407000000006b0001";
    const LOCATE_NAMED: &str = "0293010281a64c6f6361746591c408000000016b000173";
    const SCAN: &str = "0293010281a45363616e969203c407000000006b0001040ac40400000000c2c0";
    const SCAN_NAMED: &str = "0293010281a45363616e969203c408000000016b000173040ac408000000016b000173c2c0";
}

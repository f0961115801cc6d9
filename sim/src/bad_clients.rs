//! Clients that misbehave: they speak the protocol by hand, over real QUIC and with a real certificate, and cost their node as much
//! as they can. What is promised to all others must hold beside them.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use quorate_transport::frame::{Direction, Framer, PART_LEN};
use quorate_transport::rpc::class;
use quorate_wire::Quorum;
use quorate_wire::codec;
use quorate_wire::ids::{LayoutVersion, Partition};
use quorate_wire::{Key, KeyPrefix, Read, Request, RequestBody, Scan, ScanPosition};
use tokio::time::{sleep, timeout};

use crate::cluster::{ClientMachine, Machine};
use crate::history::Cost;
use crate::plan::{Fault, FaultKind, Plan};
use crate::workload::{Notebook, elapsed, key_text};

/// Misbehaves in the way that a fault of the plan says, for as long as the plan says; comes back whenever it is cut off. The times of the
/// plan's faults count from `start`.
pub(crate) async fn misbehave(
    clients: ClientMachine,
    node: &Machine,
    plan: &Plan,
    fault: &Fault,
    notebook: &Notebook,
    number: u16,
    start: Duration,
) {
    let at = |ms: u32| start + Duration::from_millis(ms.into());
    let until = at(fault.at_ms + fault.for_ms);
    sleep(at(fault.at_ms).saturating_sub(elapsed())).await;
    while elapsed() < until {
        let left = until.saturating_sub(elapsed());
        if let Ok(Ok((endpoint, connection))) = timeout(left, clients.dial_by_hand(number, node.addr())).await {
            let begun = elapsed();
            let act = async {
                match fault.kind {
                    FaultKind::UnreadAnswers(_) => ask_for_more(&connection, plan).await,
                    _ => begin_more(&connection).await,
                }
            };
            let watched = async {
                tokio::select! {
                    biased;
                    // It ends when the node has had enough of it.
                    () = act => {}
                    () = outlasts(&connection) => {
                        let now = elapsed();
                        if !plan.faults.iter().any(|other| slows(other, fault) && at(other.at_ms) <= now && begun <= at(other.at_ms + other.for_ms)) {
                            let what = format!("a client goes on for {} s: {:?}", (HEARD_EVERY * HEARD_TIMES).as_secs(), fault.kind);
                            notebook.saw_cost(Cost { node: node.node().to_string(), what });
                        }
                    }
                }
            };
            // It ends with the fault, whatever it is about to do.
            let _ = timeout(left, watched).await;
            connection.close(0u32.into(), b"a bad client is done");
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
        sleep(PAUSE.min(until.saturating_sub(elapsed()))).await;
    }
}

/// Whether one fault makes the link between the node and the client of another one so slow that slowness is no misbehaviour.
fn slows(one: &Fault, other: &Fault) -> bool {
    match &one.kind {
        FaultKind::Packets { .. } | FaultKind::Latency { .. } | FaultKind::Pause(_) | FaultKind::Flap(_) => {
            one.kind.nodes() == other.kind.nodes()
        }
        _ => false,
    }
}

/// Ends when the node was there for longer than its patience lasts, and has not ended the connection.
async fn outlasts(connection: &Connection) {
    for _ in 0..HEARD_TIMES {
        let before = connection.stats().udp_rx.datagrams;
        sleep(HEARD_EVERY).await;
        if connection.stats().udp_rx.datagrams == before {
            // It is cut off, or is down and has not said so.
            return std::future::pending().await;
        }
    }
}

/// Sends requests with large answers on several lanes, and never reads.
async fn ask_for_more(connection: &Connection, plan: &Plan) {
    let mut lanes: Vec<(SendStream, RecvStream)> = Vec::new();
    for number in 0..UNREAD_LANES {
        let Some((mut send, recv)) = lane(connection, number % 2).await else { return };
        for id in 0..UNREAD_REQUESTS {
            let body = if id < UNREAD_AT_ONCE {
                // What needs no disk: so the window is full for certain.
                RequestBody::Status
            } else if number % 2 == class::REQUEST {
                let key = Key::plain(key_text(id % plan.workload.keys));
                RequestBody::Read(Read { key, r: Some(Quorum::One), strict: false, monotonic: false, explain: true })
            } else {
                let partition = Partition(u16::try_from(id).unwrap_or(0) % plan.partitions);
                let (from, until) = (ScanPosition::start_of(partition), Partition(partition.0 + 1));
                let r = Some(Quorum::One);
                RequestBody::Scan(Scan { from, until, limit: 1000, prefix: KeyPrefix::default(), keys_only: false, r })
            };
            let request = Request { layout: LayoutVersion::NONE, request_id: id.into(), body };
            let mut framer = Framer::new(Direction::Request);
            framer.push(id.into(), LONG_MS, codec::encode(&request));
            // The node may read no further: then this waits until it is cut off.
            if send.write_all_chunks(&mut framer.take()).await.is_err() {
                return;
            }
        }
        lanes.push((send, recv));
    }
    connection.closed().await;
}

/// Sends parts of requests on many lanes, then a byte on each of them now and then.
async fn begin_more(connection: &Connection) {
    let mut lanes: Vec<(SendStream, RecvStream)> = Vec::new();
    for number in 0..UNFINISHED_LANES {
        let Some((mut send, recv)) = lane(connection, class::REQUEST).await else { return };
        // Of some the time is over before the node's patience is.
        let timeout_ms = if number % 4 == 0 { SHORT_MS } else { LONG_MS };
        for _ in 0..UNFINISHED_PARTS {
            if send.write_all(&part(timeout_ms, PART_LEN)).await.is_err() {
                return;
            }
        }
        lanes.push((send, recv));
    }
    loop {
        sleep(TRICKLE).await;
        for (send, _) in &mut lanes {
            if send.write_all(&part(LONG_MS, 1)).await.is_err() {
                return;
            }
        }
    }
}

async fn lane(connection: &Connection, class: u8) -> Option<(SendStream, RecvStream)> {
    let (mut send, recv) = connection.open_bi().await.ok()?;
    send.write_all(&[class]).await.ok()?;
    Some((send, recv))
}

/// A part of a body that goes on, as [`quorate_transport::frame`] draws it.
fn part(timeout_ms: u32, len: usize) -> Bytes {
    let word = 1 << 31 | len as u32;
    [&word.to_be_bytes()[..], &1u64.to_be_bytes(), &timeout_ms.to_be_bytes(), &vec![7; len]].concat().into()
}

const UNREAD_LANES: u8 = 4;
const UNREAD_REQUESTS: u32 = 100;
const UNREAD_AT_ONCE: u32 = 40;
const UNFINISHED_LANES: u8 = 12;
const UNFINISHED_PARTS: u8 = 3;

/// As long as a node works on a request at all.
const LONG_MS: u32 = 60_000;
const SHORT_MS: u32 = 3_000;

/// Often enough that a node which counts any byte as progress waits for ever.
const TRICKLE: Duration = Duration::from_secs(2);

/// A node's patience is 10 s, and begins when the first request or answer stands still, for which the slowest link needs some seconds:
/// after so many times so long a healthy node has ended the connection. A keep-alive makes the node answer more often than that.
const HEARD_EVERY: Duration = Duration::from_secs(6);
const HEARD_TIMES: u32 = 4;

/// Before it comes back.
const PAUSE: Duration = Duration::from_millis(500);

/// For telling the node that it goes.
const GOODBYE: Duration = Duration::from_secs(1);

//! The bounds of a connection: how much the other end may have under way, and how long it may be silent.

use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, ServerConfig, TransportConfig, VarInt};

/// Who is at the other end: decides how much it may have under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A client of the cluster: untrusted with memory, may idle for long.
    Client,
    /// Another node: few of them, bulk flows both ways, and a dead one must be noticed soon.
    Peer,
}

/// Sets what one client may have in flight towards this end, over all of its streams: the part of it that nobody has read yet is
/// kept here. Connections that are accepted later have it, until they turn out to be [peers'](widen_for_peer).
pub fn set_client_window(config: &mut ServerConfig, bytes: u32) {
    let mut transport = transport(Link::Client);
    transport.receive_window(VarInt::from_u32(bytes));
    config.transport_config(Arc::new(transport));
}

/// Raises the bounds of an accepted connection to those of [`Link::Peer`]: a server knows only after the handshake who is
/// at the other end. The idle time-out needs no change, because QUIC takes the lesser one of both ends.
pub fn widen_for_peer(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(PEER_WINDOW));
    connection.set_send_window(u64::from(PEER_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}

/// The transport's bounds. The accepting side begins with [`Link::Client`]; see [`widen_for_peer`].
pub(crate) fn transport(link: Link) -> TransportConfig {
    let (window, idle, keep_alive) = match link {
        Link::Client => (CLIENT_WINDOW, CLIENT_IDLE, CLIENT_KEEP_ALIVE),
        Link::Peer => (PEER_WINDOW, PEER_IDLE, PEER_KEEP_ALIVE),
    };
    let mut config = TransportConfig::default();
    config.receive_window(VarInt::from_u32(window));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.send_window(u64::from(window));
    config.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    config.datagram_send_buffer_size(DATAGRAM_BUFFER);
    config.max_idle_timeout(Some(idle.try_into().expect("a few seconds fit into a QUIC idle time-out")));
    config.keep_alive_interval(Some(keep_alive));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED_MAX));
    config.ack_frequency_config(Some(acks));
    config
}

/// Streams that the other end may open. Requests travel in a few long-lived lanes (at most 4 classes of 4); the rest is
/// room for lanes that are being replaced.
const STREAMS_MAX: u32 = 32;

/// What may be in flight on a client's connection, over all of its streams: the product of 1 Gbit/s and 40 ms. A node grants its
/// clients what it has memory for, see [`set_client_window`].
const CLIENT_WINDOW: u32 = 5 << 20;

/// The same for a peer: the product of 10 Gbit/s and 13 ms, so that bulk streams cannot starve the lanes beside them.
const PEER_WINDOW: u32 = 16 << 20;

/// So many packets may come before an acknowledgement is sent for them alone. Nearly every packet of ours is answered by one that carries
/// the acknowledgement with it; the others are acknowledged after 25 ms at the latest. Fewer than go out before the first acknowledgement
/// on a new connection, or a large body would wait for that time.
const UNACKNOWLEDGED_MAX: u32 = 8;

/// What one stream may have in flight. Below the connection's window, so that one slow lane leaves room for the others.
const STREAM_WINDOW: u32 = 2 << 20;

/// Gossip datagrams that wait for their reader: some 200 of 1,200 bytes; the oldest are dropped, gossip repeats itself.
const DATAGRAM_BUFFER: usize = 256 << 10;

/// A peer that was silent for so long is taken for dead; four keep-alives.
const PEER_IDLE: Duration = Duration::from_secs(4);

/// See [`PEER_IDLE`].
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A client that was silent for so long is forgotten by the node; six keep-alives.
const CLIENT_IDLE: Duration = Duration::from_secs(30);

/// Short enough for the address translations that forget a UDP flow after 15 s or more.
const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(5);

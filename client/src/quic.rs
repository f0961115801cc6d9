//! QUIC endpoints over a given UDP socket, with bounds that are safe to expose to strangers.
//!
//! Everything that a library would otherwise take from the operating system comes through [`Seams`]: clients and nodes in a
//! simulation differ from those in production in these four values and in the socket, in nothing else.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::UnixTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::random::Random;
use crate::tls::explain_connection_error;

/// What QUIC and TLS take from outside.
#[derive(Clone)]
pub struct Seams {
    /// Timers and tasks.
    pub runtime: Arc<dyn quinn::Runtime>,
    /// Keys and connection ids of QUIC. (TLS draws its randomness from `crypto`.)
    pub random: Random,
    /// Ciphers, key exchange and randomness of TLS.
    pub crypto: Arc<CryptoProvider>,
    /// Decides only whether certificates and tokens are still valid.
    pub wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Seams {
    /// The production values: tokio, the system's entropy and its clock.
    pub fn system() -> Self {
        Self {
            runtime: Arc::new(quinn::TokioRuntime),
            random: Random::from_os(),
            crypto: Arc::new(rustls::crypto::ring::default_provider()),
            wall_clock: Arc::new(quinn_wall_clock),
        }
    }

    /// The wall clock in the shape that quinn and rustls want.
    pub(crate) fn clock(&self) -> Arc<Clock> {
        Arc::new(Clock(self.wall_clock.clone()))
    }

    /// A QUIC client configuration over a TLS one.
    pub(crate) fn client_config(&self, tls: QuicClientConfig, link: Link) -> quinn::ClientConfig {
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        let random = self.random.fork();
        config.initial_dst_cid_provider(Arc::new(move || quinn::ConnectionId::new(&random.array::<20>())));
        config.token_store(Arc::new(quinn::NoneTokenStore));
        config.transport_config(Arc::new(transport(link)));
        config
    }

    /// A QUIC server configuration over a TLS one.
    pub(crate) fn server_config(&self, tls: QuicServerConfig) -> ServerConfig {
        let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]);
        let token_key = Arc::new(salt.extract(&self.random.array::<64>()));
        let mut config = ServerConfig::new(Arc::new(tls), token_key);
        config.time_source(self.clock());
        config.transport_config(Arc::new(transport(Link::Client)));
        config.max_incoming(INCOMING_MAX);
        config.incoming_buffer_size(INCOMING_BUFFER);
        config.incoming_buffer_size_total(INCOMING_BUFFER * INCOMING_MAX as u64);
        config
    }
}

impl fmt::Debug for Seams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seams").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

/// Who is at the other end: decides how much it may have under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A client of the cluster: untrusted with memory, may idle for long.
    Client,
    /// Another node: few of them, bulk flows both ways, and a dead one must be noticed soon.
    Peer,
}

/// An endpoint over a socket. With a server configuration (of [`crate::tls::server_config`]) it accepts connections.
///
/// # Errors
/// When the socket cannot tell its address.
pub fn endpoint(seams: &Seams, socket: Arc<dyn AsyncUdpSocket>, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &seams.random.array::<64>());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.rng_seed(Some(seams.random.array()));
    let random = seams.random.fork();
    config.cid_generator(move || Box::new(Cids(random.clone())));
    Endpoint::new_with_abstract_socket(config, server, socket, seams.runtime.clone())
}

/// Binds a real UDP socket. Must be called within a tokio runtime.
///
/// # Errors
/// When the address is in use, is not this machine's, or needs privileges; the text names it.
pub fn bind_system(addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    use quinn::Runtime as _;
    let socket = std::net::UdpSocket::bind(addr).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there already".to_owned(),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("cannot bind UDP {addr}: {why}"))
    })?;
    quinn::TokioRuntime.wrap_udp_socket(socket)
}

/// Binds some free port of the system for a client: on IPv6, which reaches IPv4 as well, where the kernel has it.
///
/// # Errors
/// When no socket is to be had.
pub fn bind_any() -> io::Result<Arc<dyn AsyncUdpSocket>> {
    bind_system((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind_system((Ipv4Addr::UNSPECIFIED, 0).into()))
}

/// Closes an endpoint and waits until its port is free again: take `socket` (a weak handle of what was given to
/// [`endpoint`]) before. The peers are told, the tasks that still hold connections must have been ended. False when that has
/// not happened within `limit`; the port is then free as soon as it has.
pub async fn close(endpoint: Endpoint, why: &str, socket: Weak<dyn AsyncUdpSocket>, limit: Duration) -> bool {
    endpoint.close(crate::rpc::close::SHUTDOWN, why.as_bytes());
    let released = async move {
        endpoint.wait_idle().await;
        drop(endpoint);
        // Tasks that were aborted, and quinn's own, let go of the socket when they are next scheduled.
        while socket.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(limit, released).await.is_ok()
}

/// Raises the bounds of an accepted connection to those of [`Link::Peer`]: a server knows only after the handshake who is
/// at the other end. The idle time-out needs no change, because QUIC takes the lesser one of both ends.
pub fn widen_for_peer(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(PEER_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}

/// Lets a bounded number of handshakes in. Strangers cost a node CPU only here: a handshake is about a millisecond.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// With the production bounds.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(HANDSHAKES_MAX)))
    }

    /// Decides on one attempt at once: lets it begin, asks it to prove its address (QUIC Retry, once half of the bound is
    /// in use), or turns it away.
    pub fn admit(&self, incoming: Incoming) -> Option<Admitted> {
        let busy = self.0.available_permits() < HANDSHAKES_MAX / 2;
        if busy && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails only for an attempt that may not be retried.
            let _ = incoming.retry();
            return None;
        }
        match self.0.clone().try_acquire_owned() {
            Ok(permit) => Some(Admitted { incoming, permit }),
            Err(_) => {
                incoming.refuse();
                None
            }
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// An attempt that passed the [`Gate`].
#[derive(Debug)]
pub struct Admitted {
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
}

impl Admitted {
    /// Carries the handshake to its end.
    ///
    /// # Errors
    /// Why it failed, for people; also when it takes longer than 5 s.
    pub fn handshake(self) -> impl Future<Output = Result<quinn::Connection, String>> + Send {
        let Self { incoming, permit } = self;
        async move {
            let _permit = permit;
            let from = incoming.remote_address();
            let connecting = incoming.accept().map_err(|error| explain_connection_error(&error))?;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(format!("handshake with {from} failed: {}", explain_connection_error(&error))),
                Err(_) => Err(format!("handshake with {from} was not complete after {HANDSHAKE_TIMEOUT:?}")),
            }
        }
    }
}

/// How long a TLS handshake may take on the accepting side; one that is slower than this is a stranger who holds a slot.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many handshakes a node carries on at a time: about 0.3 s of CPU, well above what a cluster's start needs.
const HANDSHAKES_MAX: usize = 256;

/// Attempts that the accept loop has not looked at yet. It decides at once, so that this only bounds a burst.
const INCOMING_MAX: usize = 1024;

/// Bytes kept for each such attempt: the rest of a client hello. (quinn allows 10 MiB.)
const INCOMING_BUFFER: u64 = 16 << 10;

/// Streams that the other end may open. Requests travel in a few long-lived lanes (at most 4 classes of 4); the rest is
/// room for lanes that are being replaced.
const STREAMS_MAX: u32 = 32;

/// What a client may have in flight towards a node, over all of its streams: four of the largest requests, or the product
/// of 1 Gbit/s and 40 ms. A node with 1,000 hostile clients can be made to keep 5 GB, quinn's default has no bound at all.
const CLIENT_WINDOW: u32 = 5 << 20;

/// The same for a peer: the product of 10 Gbit/s and 13 ms, so that bulk streams cannot starve the lanes beside them.
const PEER_WINDOW: u32 = 16 << 20;

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

/// The transport's bounds. The accepting side begins with [`Link::Client`]; see [`widen_for_peer`].
fn transport(link: Link) -> TransportConfig {
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
    config
}

/// The wall clock as quinn and rustls ask for it.
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl quinn::TimeSource for Clock {
    fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        (self.0)().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// The system's wall clock, by way of quinn: the workspace itself never reads a clock outside of its seams.
fn quinn_wall_clock() -> SystemTime {
    use quinn::TimeSource as _;
    quinn::StdSystemTime.now()
}

/// Connection ids from the seam's randomness. 8 bytes, as quinn's own.
struct Cids(Random);

impl quinn::ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&self.0.array::<8>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let socket = bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let addr = socket.local_addr().expect("bound");
        let error = bind_system(addr).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}

//! QUIC endpoints over a given UDP socket, with bounds that are safe to expose to strangers.
//!
//! Everything that a library would otherwise take from the operating system comes through [`Seams`]: clients and nodes in a
//! simulation differ from those in production in these four values and in the socket, in nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::UnixTime;
use tokio::sync::oneshot;

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
        config.retry_token_lifetime(RETRY_LIFETIME);
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

/// Lets a bounded number of handshakes in. Strangers cost a node CPU and memory only here: a handshake is about a millisecond, and
/// some tens of KiB until it is complete or given up.
///
/// As long as few are under way they begin at once. From a certain number on whoever dials has to show first that it receives what is
/// sent to its address (QUIC Retry, which costs this end no memory), so that neither forged addresses nor first packets that
/// somebody has recorded take a place. When all places are taken, the newest handshake takes that of the oldest one of the source
/// that has the most: an honest one is over in a few round trips, and one that is not meant to end is always older. Addresses that
/// are known to be members' have places of their own.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<Handshakes>>);

#[derive(Debug, Default)]
struct Handshakes {
    begun: u64,
    /// Of addresses that are not known, by where they come from, the oldest first.
    strangers: BTreeMap<Source, BTreeMap<u64, oneshot::Sender<()>>>,
    /// How many that are.
    strangers_count: usize,
    /// How many are of known addresses.
    known_count: usize,
    counts: GateCounts,
}

/// What a [`Gate`] has done against a crowd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateCounts {
    /// Attempts that were asked to prove their address first.
    pub retried: u64,
    /// Handshakes that were given up for newer ones.
    pub displaced: u64,
}

/// Those who share a source share its places: an IPv4 address, or an IPv6 network of 64 bits, which is what one machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source(IpAddr);

impl Source {
    fn of(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            IpAddr::V4(ip) => Self(ip.into()),
            IpAddr::V6(ip) => Self(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
        }
    }
}

impl Gate {
    /// With the production bounds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides on one attempt at once: lets it begin, or asks it to prove its address and come again. `is_known` says whether an
    /// address is a member's.
    pub fn admit(&self, incoming: Incoming, is_known: impl FnOnce(SocketAddr) -> bool) -> Option<Admitted> {
        let from = incoming.remote_address();
        let mut handshakes = self.lock();
        if handshakes.demands_proof() && !incoming.remote_address_validated() && incoming.may_retry() {
            handshakes.counts.retried += 1;
            drop(handshakes);
            // Fails only for an attempt that may not be retried.
            let _ = incoming.retry();
            return None;
        }
        let (place, displaced) = handshakes.enter(from, is_known);
        drop(handshakes);
        Some(Admitted { incoming, displaced, _place: HandshakePlace { gate: self.clone(), place } })
    }

    /// What it has done against crowds so far.
    pub fn counts(&self) -> GateCounts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Handshakes> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Handshakes {
    /// Whether so many are under way that whoever dials has to prove its address.
    fn demands_proof(&self) -> bool {
        self.strangers_count + self.known_count >= RETRY_FROM
    }

    /// Gives a place to one more; whoever gets it is told when it has to give it up.
    fn enter(&mut self, from: SocketAddr, is_known: impl FnOnce(SocketAddr) -> bool) -> (Place, oneshot::Receiver<()>) {
        let (displace, displaced) = oneshot::channel();
        let number = self.begun;
        self.begun += 1;
        if self.known_count < KNOWN_MAX && is_known(from) {
            self.known_count += 1;
            return (Place::Known, displaced);
        }
        if self.strangers_count >= STRANGERS_MAX {
            self.displace_one();
        }
        let source = Source::of(from);
        self.strangers_count += 1;
        self.strangers.entry(source).or_default().insert(number, displace);
        (Place::Stranger(source, number), displaced)
    }

    /// Takes a place back.
    fn leave(&mut self, place: Place) {
        let Place::Stranger(source, number) = place else {
            self.known_count -= 1;
            return;
        };
        let Some(of_source) = self.strangers.get_mut(&source) else { return };
        let had = of_source.remove(&number).is_some();
        if of_source.is_empty() {
            self.strangers.remove(&source);
        }
        // One that was displaced has given its place away already.
        self.strangers_count -= usize::from(had);
    }

    /// Gives up the oldest handshake of the source that has the most.
    fn displace_one(&mut self) {
        let most = self.strangers.iter().max_by_key(|(_, of_source)| of_source.len()).map(|(source, _)| *source);
        let Some(source) = most else { return };
        let of_source = self.strangers.get_mut(&source).expect("it was just found");
        if let Some((_, displaced)) = of_source.pop_first() {
            // It may be over just now.
            let _ = displaced.send(());
            self.counts.displaced += 1;
            self.strangers_count -= 1;
        }
        if of_source.is_empty() {
            self.strangers.remove(&source);
        }
    }
}

/// Whose place a handshake has.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// A member's.
    Known,
    /// One of those that come from somewhere, by its number.
    Stranger(Source, u64),
}

/// A place in a [`Gate`], given back when it is dropped.
#[derive(Debug)]
struct HandshakePlace {
    gate: Gate,
    place: Place,
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.gate.lock().leave(self.place);
    }
}

/// An attempt that passed the [`Gate`].
#[derive(Debug)]
pub struct Admitted {
    incoming: Incoming,
    displaced: oneshot::Receiver<()>,
    _place: HandshakePlace,
}

impl Admitted {
    /// Carries the handshake to its end.
    ///
    /// # Errors
    /// Why it failed, for people; also when it takes longer than [`HANDSHAKE_TIMEOUT`], or gives way to newer ones.
    pub fn handshake(self) -> impl Future<Output = Result<quinn::Connection, String>> + Send {
        let Self { incoming, displaced, _place } = self;
        async move {
            let _place = _place;
            let from = incoming.remote_address();
            let connecting = incoming.accept().map_err(|error| explain_connection_error(&error))?;
            let failed = |why: String| Err(format!("handshake with {from} failed: {why}"));
            tokio::select! {
                biased;
                connected = connecting => connected.or_else(|error| failed(explain_connection_error(&error))),
                // The sender of a known address is dropped at once, and says nothing.
                Ok(()) = displaced => failed("it gave way to newer ones".into()),
                () = tokio::time::sleep(HANDSHAKE_TIMEOUT) => {
                    failed(format!("it was not complete after {HANDSHAKE_TIMEOUT:?}"))
                }
            }
        }
    }
}

/// How long a TLS handshake may take on the accepting side. An honest one is two round trips, and three times as much if a packet is
/// lost; whoever dials gives up no later.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// From so many handshakes under way on, whoever dials has to prove its address: more than a cluster's nodes begin at a time.
const RETRY_FROM: usize = 64;

/// How many handshakes with addresses that are not known are carried on at a time: so many that thousands a second have to come until an
/// honest one is given up before it is complete.
const STRANGERS_MAX: usize = 1024;

/// How many more with members' addresses: all that may be begun before addresses have to be proved, and as many beside them.
const KNOWN_MAX: usize = 2 * RETRY_FROM;

/// How long the proof of an address is good: it comes back after a round trip. A recorded one takes a place no longer than that.
const RETRY_LIFETIME: Duration = Duration::from_secs(5);

/// Attempts that the accept loop has not looked at yet. It decides at once, so that this only bounds a burst.
const INCOMING_MAX: usize = 1024;

/// Bytes kept for each such attempt: the rest of a client hello. (quinn allows 10 MiB.)
const INCOMING_BUFFER: u64 = 16 << 10;

/// Streams that the other end may open. Requests travel in a few long-lived lanes (at most 4 classes of 4); the rest is
/// room for lanes that are being replaced.
const STREAMS_MAX: u32 = 32;

/// What may be in flight on a client's connection, over all of its streams: the product of 1 Gbit/s and 40 ms. A node grants its
/// clients what it has memory for, see [`set_client_window`].
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

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn is_displaced(displaced: &mut oneshot::Receiver<()>) -> bool {
        displaced.try_recv().is_ok()
    }

    #[test]
    fn a_crowd_displaces_its_own_oldest_and_nobody_elses() {
        let mut handshakes = Handshakes::default();
        let nobody = |_| false;
        let mut honest = handshakes.enter(addr("10.0.0.9:5"), nobody);
        let mut crowd: Vec<_> = (1..STRANGERS_MAX).map(|_| handshakes.enter(addr("10.0.0.1:7"), nobody)).collect();
        assert!(crowd.iter_mut().all(|(_, displaced)| !is_displaced(displaced)), "there was a place for everybody");
        // From another port, or another address: it is the crowd that makes room, the oldest of it first.
        let mut more: Vec<_> = (0..100).map(|_| handshakes.enter(addr("10.0.0.1:8"), nobody)).collect();
        let mut newcomer = handshakes.enter(addr("[2001:db8::1]:7"), nobody);
        let given_up: Vec<bool> = crowd.iter_mut().map(|(_, displaced)| is_displaced(displaced)).collect();
        assert_eq!(given_up.iter().filter(|given_up| **given_up).count(), 101);
        assert!(given_up[..101].iter().all(|given_up| *given_up));
        assert!(!is_displaced(&mut honest.1) && !is_displaced(&mut newcomer.1));
        assert_eq!((handshakes.counts.displaced, handshakes.strangers_count), (101, STRANGERS_MAX));
        // Whoever was displaced, and whoever is done, leaves once.
        for (place, _) in crowd.drain(..).chain(more.drain(..)).chain([honest, newcomer]) {
            handshakes.leave(place);
        }
        assert_eq!((handshakes.strangers_count, handshakes.strangers.len()), (0, 0));
    }

    #[test]
    fn one_network_of_ipv6_is_one_source() {
        let one = Source::of(addr("[2001:db8:0:7::1]:7"));
        assert_eq!(one, Source::of(addr("[2001:db8:0:7:aaaa::2]:9")));
        assert_ne!(one, Source::of(addr("[2001:db8:0:8::1]:7")));
        assert_ne!(Source::of(addr("10.0.0.1:7")), Source::of(addr("10.0.0.2:7")));
        assert_eq!(Source::of(addr("10.0.0.1:7")), Source::of(addr("[::ffff:10.0.0.1]:7")));
    }

    #[test]
    fn members_have_places_that_no_stranger_takes() {
        let mut handshakes = Handshakes::default();
        let member = addr("10.0.0.2:7400");
        let is_member = |from| from == member;
        let crowd: Vec<_> = (0..2 * STRANGERS_MAX).map(|_| handshakes.enter(addr("10.0.0.2:9"), is_member)).collect();
        let before = handshakes.counts.displaced;
        let mut members: Vec<_> = (0..KNOWN_MAX).map(|_| handshakes.enter(member, is_member)).collect();
        assert_eq!((handshakes.known_count, handshakes.counts.displaced), (KNOWN_MAX, before));
        // There are bounds for them too; what is beyond shares the strangers' places.
        let beyond = handshakes.enter(member, is_member);
        assert_eq!((handshakes.known_count, handshakes.counts.displaced), (KNOWN_MAX, before + 1));
        assert!(members.iter_mut().all(|(_, displaced)| !is_displaced(displaced)));
        for (place, _) in members.into_iter().chain(crowd).chain([beyond]) {
            handshakes.leave(place);
        }
        assert_eq!((handshakes.known_count, handshakes.strangers_count), (0, 0));
    }

    #[test]
    fn proof_is_demanded_before_members_places_can_be_taken_by_forged_addresses() {
        let mut handshakes = Handshakes::default();
        let mut forged = Vec::new();
        while !handshakes.demands_proof() && forged.len() < KNOWN_MAX {
            forged.push(handshakes.enter(addr("10.0.0.2:7400"), |_| true));
        }
        assert!(KNOWN_MAX - handshakes.known_count >= RETRY_FROM, "{} places are left", KNOWN_MAX - forged.len());
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let socket = bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let addr = socket.local_addr().expect("bound");
        let error = bind_system(addr).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}

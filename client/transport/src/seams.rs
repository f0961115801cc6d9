//! What QUIC and TLS would otherwise take from the operating system: clients and nodes in a simulation differ from those in
//! production in these four values and in the socket, in nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::ServerConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quorate_wire::random::Random;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::UnixTime;

use crate::link::{Link, transport};

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
pub(crate) struct ConnectionIds(pub(crate) Random);

impl quinn::ConnectionIdGenerator for ConnectionIds {
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

/// How long the proof of an address is good: it comes back after a round trip. A recorded one takes a place no longer than that.
const RETRY_LIFETIME: Duration = Duration::from_secs(5);

/// Attempts that the accept loop has not looked at yet. It decides at once, so that this only bounds a burst.
const INCOMING_MAX: usize = 1024;

/// Bytes kept for each such attempt: the rest of a client hello. (quinn allows 10 MiB.)
const INCOMING_BUFFER: u64 = 16 << 10;

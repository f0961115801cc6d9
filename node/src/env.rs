//! Everything that a node takes from outside: ports, time, randomness, storage. In production the system's; in a
//! simulation the simulator's. The node reads no clock, no entropy and no thread but these (and tokio's time and tasks).

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use quorate_transport::Seams;
use quorate_transport::quic;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::request_memory::RequestMemory;
use crate::store::{AskSpace, DiskReserve, Executor, Opened, StoreError};

/// A future on the heap, for seams that are values.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Opens a UDP socket: tokio's in production, the simulated network's in a simulation.
pub type BindUdp = Arc<dyn Fn(SocketAddr) -> BoxFuture<io::Result<Arc<dyn quinn::AsyncUdpSocket>>> + Send + Sync>;

/// Opens a TCP port, on the system's network or a simulated one.
pub type BindTcp = Arc<dyn Fn(SocketAddr) -> BoxFuture<io::Result<Box<dyn TcpPort>>> + Send + Sync>;

/// The next connection of a TCP port.
pub type Accepting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn TcpConnection>>> + Send + 'a>>;

/// A TCP port that listens.
pub trait TcpPort: Send + Sync {
    /// Waits for the next connection. If the future is dropped before its end, no connection is lost.
    fn accept(&self) -> Accepting<'_>;

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A TCP connection.
pub trait TcpConnection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> TcpConnection for T {}

impl TcpPort for TcpListener {
    fn accept(&self) -> Accepting<'_> {
        Box::pin(async {
            let (connection, _) = Self::accept(self).await?;
            Ok(Box::new(connection) as Box<dyn TcpConnection>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// Opens the system's TCP ports.
pub fn bind_system_tcp() -> BindTcp {
    Arc::new(|addr| Box::pin(async move { Ok(Box::new(TcpListener::bind(addr).await?) as Box<dyn TcpPort>) }))
}

/// Opens the node's data; called once, when the node starts.
pub type OpenStore = Arc<dyn Fn() -> Result<Opened, StoreError> + Send + Sync>;

/// What a node takes from outside.
#[derive(Clone)]
pub struct Env {
    /// What QUIC and TLS take: timers, randomness, crypto and the wall clock (for the validity of certificates and for
    /// timestamps only).
    pub seams: Seams,
    /// Opens the node's one UDP socket.
    pub bind_udp: BindUdp,
    /// Opens the node's HTTP port, if it has one.
    pub bind_tcp: BindTcp,
    /// What the node counts; whoever starts it adds what is to be shown beside that.
    pub metrics: Metrics,
    /// Opens the node's store.
    pub open_store: OpenStore,
    /// Where blocking storage calls run: threads in production, inline in a simulation.
    pub executor: Executor,
    /// Where long computations run, away from requests and the disk: a thread in production, inline in a simulation.
    pub computing: Executor,
    /// What requests may take of the memory that there is.
    pub request_memory: RequestMemory,
    /// How full the disk of the store is; nothing for one without end.
    pub space: Option<AskSpace>,
    /// How much of that disk is kept free: see [`crate::store::room`].
    pub disk_reserve: DiskReserve,
}

impl Env {
    /// The production values around a store. Of its disk nothing is known: whoever knows the directory says so with
    /// [`on_disk`](Self::on_disk).
    pub fn system(open_store: OpenStore) -> Self {
        Self {
            seams: Seams::system(),
            bind_udp: Arc::new(|addr| Box::pin(async move { quic::bind_system(addr) })),
            bind_tcp: bind_system_tcp(),
            metrics: Metrics::new(),
            open_store,
            executor: Executor::threads(STORAGE_THREADS),
            computing: Executor::named("compute", 1),
            request_memory: RequestMemory::default(),
            space: None,
            disk_reserve: DiskReserve::default(),
        }
    }

    /// The store lies on a disk of which so much is kept free.
    #[must_use]
    pub fn on_disk(self, space: AskSpace, disk_reserve: DiskReserve) -> Self {
        Self { space: Some(space), disk_reserve, ..self }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

/// One thread may be in a sync, which takes milliseconds, while others insert; sled gains nothing from more.
const STORAGE_THREADS: usize = 3;

//! Everything that a node takes from outside: sockets, time, randomness, storage. In production the system's; in a
//! simulation the simulator's. The node reads no clock, no entropy and no thread but these (and tokio's time and tasks).

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use quorate_transport::Seams;
use quorate_transport::quic;

use crate::request_memory::RequestMemory;
use crate::store::{AskSpace, DiskReserve, Executor, Opened, StoreError};

/// A future on the heap, for seams that are values.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Opens a UDP socket: tokio's in production, the simulated network's in a simulation.
pub type BindUdp = Arc<dyn Fn(SocketAddr) -> BoxFuture<io::Result<Arc<dyn quinn::AsyncUdpSocket>>> + Send + Sync>;

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

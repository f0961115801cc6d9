//! turmoil's UDP as the socket and the runtime that quinn asks for, and what can happen to a datagram on its way; and its TCP, which
//! hides all of that, for the nodes' HTTP ports.
//!
//! turmoil delays packets and cuts links. Its `fail_rate` breaks a link for a while and loses no single packet, so loss,
//! duplication, corruption, truncation and reordering are done here, where a datagram leaves its host, from a seed of that host.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use quorate_node::env::{Accepting, BindTcp, BindUdp, BoxFuture, TcpConnection, TcpPort};
use quorate_wire::random::Random;
use serde::{Deserialize, Serialize};
use turmoil::net::{TcpListener, UdpSocket};

use crate::trace::Trace;

/// How often what happens to a datagram, each in parts per million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketFaults {
    /// It is gone.
    pub loss: u32,
    /// It arrives twice.
    pub duplication: u32,
    /// One to three of its bytes change.
    pub corruption: u32,
    /// Its end is missing.
    pub truncation: u32,
    /// It is late by up to [`delay_max_ms`](Self::delay_max_ms), and others overtake it.
    pub reordering: u32,
    /// The most that a late one is late, in milliseconds; at least 1 where `reordering` is not 0.
    pub delay_max_ms: u32,
}

/// How many datagrams met which fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCounts {
    /// See [`PacketFaults::loss`].
    pub lost: u64,
    /// See [`PacketFaults::duplication`].
    pub duplicated: u64,
    /// See [`PacketFaults::corruption`].
    pub corrupted: u64,
    /// See [`PacketFaults::truncation`].
    pub truncated: u64,
    /// See [`PacketFaults::reordering`].
    pub delayed: u64,
    /// See [`Cable::set_cut`].
    pub cut: u64,
}

/// The cable of one host: every socket of the host, in all its lives, sends through it.
#[derive(Debug, Clone)]
pub struct Cable {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    random: Random,
    trace: Trace,
    late: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    faults: PacketFaults,
    cut: BTreeSet<IpAddr>,
    counts: PacketCounts,
}

impl Cable {
    /// A good cable.
    pub fn new(random: Random, trace: Trace) -> Self {
        let shared = Shared { state: Mutex::default(), random, trace, late: AtomicUsize::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// What happens to datagrams from now on.
    pub fn set_faults(&self, faults: PacketFaults) {
        self.shared.state().faults = faults;
    }

    /// Whoever is not reached any more from now on. What is on its way arrives.
    pub fn set_cut(&self, cut: BTreeSet<IpAddr>) {
        self.shared.state().cut = cut;
    }

    /// What has happened to datagrams.
    pub fn counts(&self) -> PacketCounts {
        self.shared.state().counts
    }

    /// Opens a socket, on the host that calls; the address is the one that others know the host by.
    ///
    /// # Errors
    /// When a socket of the host holds the port.
    pub async fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let io = Arc::new(UdpSocket::bind(unspecified(addr)).await?);
        let addr = SocketAddr::new(addr.ip(), io.local_addr()?.port());
        Ok(Arc::new(SimUdp { io, addr, readable: Mutex::new(None), cable: self.clone() }))
    }

    /// [`bind`](Self::bind) in the form that a node's environment wants.
    pub fn binder(&self) -> BindUdp {
        let cable = self.clone();
        Arc::new(move |addr| {
            let cable = cable.clone();
            let bound: BoxFuture<io::Result<Arc<dyn AsyncUdpSocket>>> = Box::pin(async move { cable.bind(addr).await });
            bound
        })
    }

    fn send(&self, io: &Arc<UdpSocket>, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let shared = &self.shared;
        shared.trace.packet(turmoil::sim_elapsed().unwrap_or_default(), from, to, datagram);
        let faults = {
            let mut state = shared.state();
            if state.cut.contains(&to.ip()) {
                state.counts.cut += 1;
                return;
            }
            state.faults
        };
        let happens = |ppm: u32| ppm > 0 && shared.random.below(1_000_000) < u64::from(ppm);
        if happens(faults.loss) {
            shared.state().counts.lost += 1;
            return;
        }
        let mut copies = 1;
        if happens(faults.duplication) {
            shared.state().counts.duplicated += 1;
            copies = 2;
        }
        for _ in 0..copies {
            let mut datagram = datagram.to_vec();
            if happens(faults.corruption) && !datagram.is_empty() {
                shared.state().counts.corrupted += 1;
                for _ in 0..=shared.random.below(3) {
                    let at = shared.random.below(datagram.len() as u64) as usize;
                    // Not 0: it has to change.
                    datagram[at] ^= 1 + shared.random.below(255) as u8;
                }
            }
            if happens(faults.truncation) {
                shared.state().counts.truncated += 1;
                datagram.truncate(shared.random.below(datagram.len() as u64 + 1) as usize);
            }
            if happens(faults.reordering) && shared.late.load(Ordering::Relaxed) < LATE_MAX {
                shared.state().counts.delayed += 1;
                let delay =
                    Duration::from_micros(1 + shared.random.below(u64::from(faults.delay_max_ms.max(1)) * 1000));
                self.send_late(io, to, datagram, delay);
            } else {
                send_now(io, to, &datagram);
            }
        }
    }

    fn send_late(&self, io: &Arc<UdpSocket>, to: SocketAddr, datagram: Vec<u8>, delay: Duration) {
        // A datagram on its way must not keep the port of a socket that is closed meanwhile.
        let io = Arc::downgrade(io);
        let late = Late::new(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            drop(late);
            if let Some(io) = Weak::upgrade(&io) {
                send_now(&io, to, &datagram);
            }
        });
    }
}

/// An unreachable host is no error for a UDP sender.
fn send_now(io: &UdpSocket, to: SocketAddr, datagram: &[u8]) {
    let _ = io.try_send_to(datagram, to);
}

/// Counts a late datagram for as long as it is under way, also if its host crashes meanwhile.
struct Late(Arc<Shared>);

impl Late {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.late.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.0.late.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

struct SimUdp {
    io: Arc<UdpSocket>,
    /// The address by which others know it, where turmoil says 0.0.0.0.
    addr: SocketAddr,
    readable: Mutex<Option<Readable>>,
    cable: Cable,
}

impl fmt::Debug for SimUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimUdp({})", self.addr)
    }
}

impl AsyncUdpSocket for SimUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(segment) {
            self.cable.send(&self.io, self.addr, transmit.destination, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // While that future lives it holds turmoil's receive lock, so that nothing can be received but after its end.
            if readable.is_none() {
                let mut received = 0;
                for (buffer, meta) in buffers.iter_mut().zip(meta.iter_mut()) {
                    match self.io.try_recv_from(buffer) {
                        Ok((len, addr)) => {
                            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: Some(self.addr.ip()) };
                            received += 1;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                if received > 0 {
                    return Poll::Ready(Ok(received));
                }
                let io = self.io.clone();
                *readable = Some(Box::pin(async move { io.readable().await }));
            }
            let future = readable.as_mut().expect("it was put there above");
            let result = ready!(future.as_mut().poll(cx));
            *readable = None;
            result?;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// turmoil's sockets take everything.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Opens TCP ports on the host that calls, in the form that a node's environment wants.
pub fn tcp_binder() -> BindTcp {
    Arc::new(|addr| {
        Box::pin(async move {
            let io = TcpListener::bind(unspecified(addr)).await?;
            let addr = SocketAddr::new(addr.ip(), io.local_addr()?.port());
            Ok(Box::new(SimTcp { io, addr }) as Box<dyn TcpPort>)
        })
    })
}

struct SimTcp {
    io: TcpListener,
    /// The one by which others know it, where turmoil says 0.0.0.0.
    addr: SocketAddr,
}

impl TcpPort for SimTcp {
    fn accept(&self) -> Accepting<'_> {
        Box::pin(async {
            let (connection, _) = self.io.accept().await?;
            Ok(Box::new(connection) as Box<dyn TcpConnection>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

/// turmoil binds no other address.
fn unspecified(addr: SocketAddr) -> SocketAddr {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, addr.port())
}

/// quinn's runtime on tokio's tasks and its paused clock.
#[derive(Debug, Clone, Copy)]
pub struct SimRuntime;

impl Runtime for SimRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulation has no sockets of the system"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[derive(Debug)]
struct Timer(Pin<Box<tokio::time::Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.0.as_mut().reset(deadline.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}

/// The most datagrams of one host that are late at once; beyond it they are in time. A tenth of what turmoil queues.
const LATE_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const COUNT: u32 = 2000;
    const PORT: u16 = 7000;

    /// Sends numbered datagrams from one host to another, and gives what arrived, what happened on the way, and the trace.
    fn transmit(seed: u64, faults: PacketFaults) -> (Vec<Vec<u8>>, PacketCounts, Trace) {
        let mut builder = turmoil::Builder::new();
        let mut sim = builder
            .rng_seed(seed)
            .udp_capacity(4096)
            .simulation_duration(Duration::from_secs(60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(1))
            .build();
        let trace = Trace::new();
        let cable = Cable::new(Random::from_seed(seed), trace.clone());
        cable.set_faults(faults);
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let (to, receiver, seen) = (sim.lookup("to"), Cable::new(Random::from_seed(0), trace.clone()), arrived.clone());
        sim.host("to", move || {
            let (receiver, seen) = (receiver.clone(), seen.clone());
            async move {
                let socket = receiver.bind(SocketAddr::new(to, PORT)).await?;
                let mut buffer = [0; 2048];
                loop {
                    let mut meta = [RecvMeta::default()];
                    let received =
                        poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await?;
                    assert_eq!(received, 1);
                    seen.lock().expect("no panic").push(buffer[..meta[0].len].to_vec());
                }
            }
        });
        let (from, sender) = (sim.lookup("from"), cable.clone());
        sim.client("from", async move {
            let socket = sender.bind(SocketAddr::new(from, PORT)).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            for i in 0..COUNT {
                let mut contents = vec![0xAA; 100];
                contents[..4].copy_from_slice(&i.to_be_bytes());
                let destination = SocketAddr::new(to, PORT);
                let transmit =
                    Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip: None };
                socket.try_send(&transmit)?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        });
        sim.run().expect("the simulation ends");
        drop(sim);
        let arrived = std::mem::take(&mut *arrived.lock().expect("no panic"));
        (arrived, cable.counts(), trace)
    }

    #[test]
    fn a_good_cable_delivers_everything_in_order() {
        let (arrived, counts, trace) = transmit(1, PacketFaults::default());
        let numbers: Vec<u32> =
            arrived.iter().map(|d| u32::from_be_bytes(d[..4].try_into().expect("4 bytes"))).collect();
        assert!(numbers.iter().copied().eq(0..COUNT));
        assert_eq!(counts, PacketCounts::default());
        assert_eq!(trace.counts().packets, u64::from(COUNT));
    }

    #[test]
    fn each_fault_happens_about_as_often_as_it_should() {
        let about = |count: u64, ppm: u32| {
            let expected = u64::from(COUNT) * u64::from(ppm) / 1_000_000;
            assert!((expected * 7 / 10..=expected * 13 / 10).contains(&count), "{count} of {expected}");
        };
        let (arrived, counts, _) = transmit(2, PacketFaults { loss: 200_000, ..PacketFaults::default() });
        about(counts.lost, 200_000);
        assert_eq!(arrived.len() as u64 + counts.lost, u64::from(COUNT));

        let (arrived, counts, _) = transmit(3, PacketFaults { duplication: 200_000, ..PacketFaults::default() });
        about(counts.duplicated, 200_000);
        assert_eq!(arrived.len() as u64, u64::from(COUNT) + counts.duplicated);

        let (arrived, counts, _) = transmit(4, PacketFaults { corruption: 200_000, ..PacketFaults::default() });
        about(counts.corrupted, 200_000);
        let intact = |i: usize, d: &[u8]| d[..4] == (i as u32).to_be_bytes() && d[4..].iter().all(|byte| *byte == 0xAA);
        let damaged = arrived.iter().enumerate().filter(|(i, d)| !intact(*i, d)).count() as u64;
        // Two changes of one byte can undo each other, very rarely.
        assert!(damaged <= counts.corrupted && damaged + 2 >= counts.corrupted, "{damaged} of {}", counts.corrupted);

        let (arrived, counts, _) = transmit(5, PacketFaults { truncation: 200_000, ..PacketFaults::default() });
        about(counts.truncated, 200_000);
        assert!(arrived.iter().any(|d| d.len() < 50));

        let faults = PacketFaults { reordering: 200_000, delay_max_ms: 30, ..PacketFaults::default() };
        let (arrived, counts, _) = transmit(6, faults);
        about(counts.delayed, 200_000);
        assert_eq!(arrived.len(), COUNT as usize);
        let overtaken = arrived.windows(2).filter(|pair| pair[0][..4] > pair[1][..4]).count();
        assert!(overtaken > 100, "{overtaken}");
    }

    #[test]
    fn the_same_seed_gives_the_same_accidents() {
        let faults = PacketFaults {
            loss: 50_000,
            duplication: 50_000,
            corruption: 50_000,
            truncation: 50_000,
            reordering: 50_000,
            delay_max_ms: 20,
        };
        let one = transmit(7, faults);
        let two = transmit(7, faults);
        assert_eq!((one.0, one.1, one.2.hash()), (two.0, two.1, two.2.hash()));
        assert_ne!(one.1, transmit(8, faults).1);
    }
}

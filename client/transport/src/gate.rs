//! How many handshakes a node carries on at a time, and with whom.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quinn::Incoming;
use tokio::sync::oneshot;

use crate::close::explain_connection_error;

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
    /// Handshakes that are under way now.
    pub under_way: u64,
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
        let handshakes = self.lock();
        let under_way = (handshakes.strangers_count + handshakes.known_count) as u64;
        GateCounts { under_way, ..handshakes.counts }
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
}

//! A hash over everything that happened: packets with their content, and what nodes and clients report.
//!
//! Two runs were the same if their hashes are. Where they were not, the hashes of each simulated second tell when they parted.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_wire::tell;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// What happens in one life. Clones write to the same trace.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    hash: Box<Xxh3>,
    seconds: Vec<u64>,
    counts: Counts,
    lines: Option<Box<dyn Write + Send>>,
    failed: Option<io::Error>,
}

/// How much happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that were sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events that were reported.
    pub events: u64,
}

/// The hash of a whole trace: equal for equal runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceHash(pub u128);

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Trace {
    /// An empty trace.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// An empty trace that also writes a line for everything that happens, to be compared with another one's.
    pub fn with_lines(lines: impl Write + Send + 'static) -> Self {
        Self::with(Some(Box::new(lines)))
    }

    fn with(lines: Option<Box<dyn Write + Send>>) -> Self {
        let counts = Counts::default();
        Self(Arc::new(Mutex::new(State { hash: Box::default(), seconds: Vec::new(), counts, lines, failed: None })))
    }

    /// A datagram was handed to the network.
    pub fn packet(&self, at: Duration, from: SocketAddr, to: SocketAddr, content: &[u8]) {
        let mut state = self.state();
        state.counts.packets += 1;
        state.counts.bytes += content.len() as u64;
        state.begin(at, 0);
        state.address(from);
        state.address(to);
        state.bytes(content);
        if state.lines.is_some() {
            let hash = xxh3_64(content);
            state.line(format_args!("{} packet {from} {to} {} {hash:016x}", at.as_nanos(), content.len()));
        }
    }

    /// Something happened that somebody will want to know of: a fault, an operation's end, a node's verdict.
    pub fn event(&self, at: Duration, who: &str, what: fmt::Arguments<'_>) {
        let what = what.to_string();
        tell!(act = "event", node = who, what);
        let mut state = self.state();
        state.counts.events += 1;
        state.begin(at, 1);
        state.bytes(who.as_bytes());
        state.bytes(what.as_bytes());
        state.line(format_args!("{} event {who} {what}", at.as_nanos()));
    }

    /// The hash of all that has happened so far.
    pub fn hash(&self) -> TraceHash {
        TraceHash(self.state().hash.digest128())
    }

    /// How much has happened so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The hash as it stood at the end of each simulated second that has ended.
    pub fn seconds(&self) -> Vec<u64> {
        self.state().seconds.clone()
    }

    /// Flushes the lines.
    ///
    /// # Errors
    /// The first error that writing a line met; the lines are incomplete then, the hash is not.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        match state.failed.take() {
            Some(error) => Err(error),
            None => state.lines.as_mut().map_or(Ok(()), |lines| lines.flush()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere ends the run; what happened before is still worth reading.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({:?})", self.counts())
    }
}

impl State {
    fn begin(&mut self, at: Duration, kind: u8) {
        let second = usize::try_from(at.as_secs()).expect("no simulation lasts so long");
        if self.seconds.len() < second {
            let hash = self.hash.digest();
            self.seconds.resize(second, hash);
        }
        self.hash.update(&at.as_nanos().to_le_bytes());
        self.hash.update(&[kind]);
    }

    /// With its length, so that the border between two fields counts.
    fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    fn address(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(address) => self.bytes(&address.ip().octets()),
            SocketAddr::V6(address) => self.bytes(&address.ip().octets()),
        }
        self.hash.update(&address.port().to_le_bytes());
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines
            && let Err(error) = writeln!(lines, "{line}")
        {
            self.failed.get_or_insert(error);
            self.lines = None;
        }
    }
}

/// The first second in which two traces differ; nothing when one is the beginning of the other.
pub fn first_difference(one: &[u64], other: &[u64]) -> Option<usize> {
    one.iter().zip(other).position(|(one, other)| one != other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(host: u8) -> SocketAddr {
        ([192, 168, 0, host], 7000).into()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn everything_counts() {
        let hash = |at, from, to, content: &[u8]| {
            let trace = Trace::new();
            trace.packet(at, addr(from), addr(to), content);
            trace.hash()
        };
        let one = hash(ms(1), 1, 2, b"abc");
        assert_eq!(one, hash(ms(1), 1, 2, b"abc"));
        for other in [hash(ms(2), 1, 2, b"abc"), hash(ms(1), 2, 1, b"abc"), hash(ms(1), 1, 2, b"abd")] {
            assert_ne!(one, other);
        }
        let event = |who, what: &str| {
            let trace = Trace::new();
            trace.event(ms(1), who, format_args!("{what}"));
            trace.hash()
        };
        assert_ne!(event("n1", "up"), event("n1u", "p"), "the border between the fields counts");
    }

    #[test]
    fn the_second_in_which_two_runs_part_is_found() {
        let run = |odd: bool| {
            let trace = Trace::new();
            for second in 0..10 {
                let what = if odd && second == 6 { "slip" } else { "step" };
                trace.event(ms(second * 1000 + 500), "n1", format_args!("{what}"));
            }
            trace.seconds()
        };
        assert_eq!(first_difference(&run(false), &run(false)), None);
        assert_eq!(first_difference(&run(false), &run(true)), Some(6));
    }

    #[test]
    fn lines_tell_what_happened() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no panic").write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Shared::default();
        let trace = Trace::with_lines(lines.clone());
        trace.event(ms(3), "n1", format_args!("crashes"));
        trace.packet(ms(4), addr(1), addr(2), b"abc");
        trace.flush().expect("memory takes everything");
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        assert!(text.starts_with("3000000 event n1 crashes\n4000000 packet 192.168.0.1:7000 192.168.0.2:7000 3 "));
        let silent = Trace::new();
        silent.event(ms(3), "n1", format_args!("crashes"));
        silent.packet(ms(4), addr(1), addr(2), b"abc");
        assert_eq!(trace.hash(), silent.hash(), "lines do not change the hash");
    }
}

//! What a node counts: one registry that `/metrics`, `quorate status` and the tests read.
//!
//! A component keeps its own counters as plain atomics and hands a snapshot of them to [`Metrics::source`]; nothing on the
//! data path touches a registry. Only the latencies of requests are histograms and live here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One number of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its name without the prefix `quorate_`; counters get the suffix `_total` when they are shown.
    pub name: &'static str,
    /// What it means, in a sentence without a full stop.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// Its value now.
    pub value: u64,
}

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the node's start.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Sample {
    /// A number that only grows.
    pub const fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, kind: Kind::Counter, value }
    }

    /// A number that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, kind: Kind::Gauge, value }
    }
}

/// Where samples come from.
pub type Source = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// All numbers of one node. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    sources: Arc<Mutex<Vec<Source>>>,
    latencies: Family<RequestLabels, Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    outcome: &'static str,
}

impl Metrics {
    /// Without sources.
    pub fn new() -> Self {
        let sources = Arc::new(Mutex::new(Vec::new()));
        let latencies = Family::<RequestLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(LATENCY_FIRST_S, 2.0, LATENCY_BUCKETS))
        });
        let mut registry = Registry::with_prefix("quorate");
        registry.register(
            "request_duration_seconds",
            "From the arrival of a client's request to its answer",
            latencies.clone(),
        );
        registry.register_collector(Box::new(Snapshots(Arc::clone(&sources))));
        Self { registry: Arc::new(registry), sources, latencies }
    }

    /// Adds a component's snapshot.
    pub fn source(&self, source: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        self.sources.lock().expect("sources do not panic").push(Box::new(source));
    }

    /// Notes one client request.
    pub fn request(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.latencies.get_or_create(&RequestLabels { kind, outcome }).observe(took.as_secs_f64());
    }

    /// Every number of every source, by name.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let sources = self.sources.lock().expect("sources do not panic");
        sources.iter().flat_map(|source| source()).map(|sample| (sample.name.to_owned(), sample.value)).collect()
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes every byte");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

struct Snapshots(Arc<Mutex<Vec<Source>>>);

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshots")
    }
}

impl Collector for Snapshots {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for sample in self.0.lock().expect("sources do not panic").iter().flat_map(|source| source()) {
            match sample.kind {
                Kind::Counter => {
                    let metric = ConstCounter::new(sample.value);
                    let descriptor = encoder.encode_descriptor(sample.name, sample.help, None, metric.metric_type())?;
                    metric.encode(descriptor)?;
                }
                Kind::Gauge => {
                    let metric = ConstGauge::new(i64::try_from(sample.value).unwrap_or(i64::MAX));
                    let descriptor = encoder.encode_descriptor(sample.name, sample.help, None, metric.metric_type())?;
                    metric.encode(descriptor)?;
                }
            }
        }
        Ok(())
    }
}

/// The first latency bucket ends here: about what a get costs at least.
const LATENCY_FIRST_S: f64 = 0.000_1;
/// Doubling 17 times from 0.1 ms reaches 6.5 s, beyond the default deadline of a request.
const LATENCY_BUCKETS: u16 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_latencies_are_shown() {
        let metrics = Metrics::new();
        metrics.source(|| vec![Sample::counter("puts", "Puts", 7), Sample::gauge("peers_up", "Peers", 2)]);
        metrics.request("put", "ok", Duration::from_millis(3));
        let text = metrics.encode();
        for line in [
            "quorate_puts_total 7",
            "quorate_peers_up 2",
            "quorate_request_duration_seconds_count{kind=\"put\",outcome=\"ok\"} 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert_eq!(metrics.snapshot().get("puts"), Some(&7));
    }
}

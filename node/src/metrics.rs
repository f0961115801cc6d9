//! What a node counts: one registry that `/metrics`, `quorate status` and the tests read.
//!
//! A component keeps its own counters as plain atomics and hands a snapshot of them to [`Metrics::source`]; nothing on the
//! data path touches a registry. Only the latencies of requests are histograms and live here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
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
    /// Which one of its family it is, by the name and the value of a label. A family's samples follow each other.
    pub label: Option<(&'static str, &'static str)>,
    /// What it means, in a sentence without a full stop; of a family that of its first sample is shown.
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
        Self { name, label: None, help, kind: Kind::Counter, value }
    }

    /// A number that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, label: None, help, kind: Kind::Gauge, value }
    }

    /// The one of its family with this label.
    #[must_use]
    pub const fn of(self, label: &'static str, value: &'static str) -> Self {
        Self { label: Some((label, value)), ..self }
    }

    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self.kind {
            Kind::Counter => ConstCounter::new(self.value).encode(encoder),
            Kind::Gauge => ConstGauge::new(i64::try_from(self.value).unwrap_or(i64::MAX)).encode(encoder),
        }
    }

    /// What it is called where there are no labels: `puts_ok` is the sample of `puts` whose label says "ok".
    pub fn full_name(&self) -> String {
        match self.label {
            Some((_, value)) => format!("{}_{value}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// Where samples come from.
pub type Source = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// All numbers of one node. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
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
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("quorate");
        own.register(
            "request_duration_seconds",
            "From the arrival of a client's request to its answer",
            latencies.clone(),
        );
        own.register_collector(Box::new(Snapshots(Arc::clone(&sources))));
        let metrics = Self { registry: Arc::new(Mutex::new(registry)), sources, latencies };
        metrics
            .source(|| vec![Sample::gauge("build_info", "What runs here", 1).of("version", env!("CARGO_PKG_VERSION"))]);
        metrics
    }

    /// Adds a component's snapshot.
    pub fn source(&self, source: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        self.sources.lock().expect("sources do not panic").push(Box::new(source));
    }

    /// Adds numbers that are not the node's own, under the names that they have by themselves (`process_..`).
    pub fn collect(&self, collector: impl Collector + 'static) {
        self.registry.lock().expect("collectors do not panic").register_collector(Box::new(collector));
    }

    /// Notes one client request.
    pub fn request(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.latencies.get_or_create(&RequestLabels { kind, outcome }).observe(took.as_secs_f64());
    }

    /// Every number of every source, by name.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let sources = self.sources.lock().expect("sources do not panic");
        sources.iter().flat_map(|source| source()).map(|sample| (sample.full_name(), sample.value)).collect()
    }

    /// The text that a monitor scrapes, in one of two formats.
    pub fn encode(&self, format: Format) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("collectors do not panic");
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes every byte");
        match format {
            Format::OpenMetrics => text,
            Format::Prometheus => as_prometheus(&text),
        }
    }
}

/// How numbers are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, which everything understands.
    Prometheus,
}

impl Format {
    /// The one that an `Accept` header asks for: OpenMetrics only for whoever names it, with no lower weight than plain text.
    pub fn accepted(accept: &str) -> Self {
        let weight = |kind: &str| {
            let weights = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts.next().filter(|named| named.eq_ignore_ascii_case(kind))?;
                let weight = parts.find_map(|part| part.strip_prefix("q="));
                Some(weight.map_or(1.0, |weight| weight.parse::<f64>().unwrap_or(0.0)))
            });
            weights.fold(0.0, f64::max)
        };
        let open = weight("application/openmetrics-text");
        if open > 0.0 && open >= weight("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The older format names a counter's family as its samples are named, and has no end mark.
fn as_prometheus(open: &str) -> String {
    let counters: BTreeSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len() + counters.len() * 12);
    for line in open.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|what| {
            let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
            counters.contains(name).then_some((what, name, rest))
        });
        match described {
            Some((what, name, rest)) => text.extend([what, name, "_total ", rest, "\n"]),
            None => text.extend([line, "\n"]),
        }
    }
    text
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
        let samples: Vec<Sample> =
            self.0.lock().expect("sources do not panic").iter().flat_map(|source| source()).collect();
        for family in samples.chunk_by(|one, next| one.name == next.name) {
            let Some(first) = family.first() else { continue };
            let kind = match first.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut described = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for sample in family {
                match sample.label {
                    Some(label) => sample.encode(described.encode_family(&[label])?)?,
                    None => {
                        sample.encode(described)?;
                        break;
                    }
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
    fn sources_and_latencies_are_shown_in_both_formats() {
        let metrics = Metrics::new();
        metrics.source(|| {
            vec![
                Sample::counter("puts", "Puts", 7).of("outcome", "ok"),
                Sample::counter("puts", "Puts", 1).of("outcome", "unknown"),
                Sample::gauge("peers_up", "Peers", 2),
            ]
        });
        metrics.request("put", "ok", Duration::from_millis(3));
        let (open, prometheus) = (metrics.encode(Format::OpenMetrics), metrics.encode(Format::Prometheus));
        for line in [
            "quorate_puts_total{outcome=\"ok\"} 7",
            "quorate_puts_total{outcome=\"unknown\"} 1",
            "# TYPE quorate_peers_up gauge",
            "quorate_peers_up 2",
            "# TYPE quorate_request_duration_seconds histogram",
            "quorate_request_duration_seconds_count{kind=\"put\",outcome=\"ok\"} 1",
        ] {
            for text in [&open, &prometheus] {
                assert_eq!(text.lines().filter(|shown| *shown == line).count(), 1, "{line} in\n{text}");
            }
        }
        let described = |text: &str, what: &str| text.lines().filter(|line| line.starts_with(what)).count();
        for (text, family, ends) in [(&open, "quorate_puts", true), (&prometheus, "quorate_puts_total", false)] {
            assert_eq!(described(text, &format!("# TYPE {family} counter")), 1, "{text}");
            assert_eq!(described(text, &format!("# HELP {family} Puts")), 1, "{text}");
            assert_eq!(text.ends_with("# EOF\n"), ends, "{text}");
        }
        assert_eq!(metrics.snapshot().get("puts_ok"), Some(&7));
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus_server =
            "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            (prometheus_server, Format::OpenMetrics),
            ("Application/OpenMetrics-Text", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("text/plain, application/openmetrics-text;q=0.3", Format::Prometheus),
            ("application/openmetrics-text;q=much", Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}

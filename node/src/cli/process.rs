//! What the metrics say of the process, under the names that every monitor knows (`process_..`), as the Prometheus project
//! recommends them for client libraries.

use std::fmt;

use procfs::process::{LimitValue, Process};
use procfs::{WithCurrentSystemInfo, boot_time_secs, ticks_per_second};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads `/proc/self` when it is asked. Numbers that cannot be had are left out.
#[derive(Debug)]
pub(crate) struct OwnProcess;

impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(process) = Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            let ticks = ticks_per_second() as f64;
            let seconds = (stat.utime + stat.stime) as f64 / ticks;
            let help = "User and system CPU time spent";
            let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
            let mut gauge = |name, help, value: f64| {
                ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
            };
            gauge("process_virtual_memory_bytes", "Virtual memory", stat.vsize as f64)?;
            gauge("process_resident_memory_bytes", "Resident memory", stat.rss_bytes().get() as f64)?;
            gauge("process_threads", "Threads of the operating system", stat.num_threads as f64)?;
            if let Ok(boot) = boot_time_secs() {
                let start = boot as f64 + stat.starttime as f64 / ticks;
                gauge("process_start_time_seconds", "When the process was started, in seconds since 1970", start)?;
            }
        }
        let mut gauge = |name, help, value: f64| {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        if let Ok(open) = process.fd_count() {
            gauge("process_open_fds", "Open file descriptors", open as f64)?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            gauge("process_max_fds", "The most file descriptors that may be open", most as f64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_node::metrics::{Format, Metrics};

    use super::*;

    #[test]
    fn a_process_is_shown_as_monitors_expect_it() {
        let metrics = Metrics::new();
        metrics.collect(OwnProcess);
        let text = metrics.encode(Format::Prometheus);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse::<f64>().expect("a number")
        };
        assert!((1e6..1e11).contains(&value("process_resident_memory_bytes")));
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!((1_600_000_000.0..9e9).contains(&value("process_start_time_seconds")));
        assert!((0.0..1e6).contains(&value("process_cpu_seconds_total")));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_threads") >= 1.0);
    }
}

//! `quorate bench`: how many requests a cluster answers, how soon, and what a request costs.
//!
//! In the closed loop each client sends its next request when the last one is answered: that finds the throughput. In the
//! open loop each client has a timetable, and latency counts from when a request was *due*: a stall of the cluster then
//! shows in every request that it delayed, not only in the one that met it (Tene: coordinated omission).
//!
//! Each client has keys of its own and remembers their contexts, so that a write replaces the one before; otherwise the
//! benchmark would measure the making of siblings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_client::Client;
use quorate_client::error::Error;
use quorate_client::read::{Blind, Context};
use quorate_wire::Quorum;
use quorate_wire::random::Random;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::args::{BenchArgs, BenchMode, KeyDistribution};
use super::connection::Cluster;
use super::echo;
use super::failure::{Exit, Failure, Outcome};
use super::output::{self, Output};
use super::server::Ends;
use super::settings::Settings;

/// Runs it.
pub(crate) async fn run(args: &BenchArgs, settings: &Settings, output: &Output) -> Outcome {
    if args.rate.is_some() && args.mode == BenchMode::Closed {
        let why = "--rate is for an open loop: in a closed one clients go as fast as they are answered";
        return Err(Failure::usage(why, "add `--mode open`, or leave out --rate"));
    }
    let mut ends = Ends::new()?;
    let echo = match args.echo {
        true => Some(echo::measure(args.clients, args.value_size as usize, ECHO_TIME.min(args.duration)).await?),
        false => None,
    };
    let client = Cluster::connect(settings).await?.client().clone();
    let load = Arc::new(Load {
        read_ratio: args.read_ratio,
        value: Bytes::from(vec![b'q'; args.value_size as usize]),
        keys_each: args.keys.div_ceil(u64::from(args.clients)).max(1),
        begun: AtomicU64::new(0),
        zipfian: args.distribution == KeyDistribution::Zipfian,
        pace: match args.mode {
            BenchMode::Closed => None,
            BenchMode::Open => {
                let rate = args.rate.expect("clap asks for it in the open loop");
                Some(Duration::from_secs_f64(f64::from(args.clients) / f64::from(rate)))
            }
        },
        r: settings.r(),
        w: settings.w(),
    });

    let random = Random::from_os();
    let bar = output.progress(None, "filling");
    let mut filling = JoinSet::new();
    for number in 0..args.clients {
        let mut worker = Worker::new(number, client.clone(), Arc::clone(&load), &random);
        filling.spawn(async move { worker.fill().await.map(|()| worker) });
    }
    let mut workers = Vec::new();
    loop {
        let filled = tokio::select! {
            biased;
            name = ends.wait() => {
                bar.finish_and_clear();
                return Err(ended_while_filling(name, load.begun.load(Ordering::Relaxed)));
            }
            filled = filling.join_next() => filled,
        };
        let Some(filled) = filled else { break };
        workers.push(filled.expect("workers do not panic")?);
        bar.inc(load.keys_each);
    }
    bar.finish_and_clear();

    let bar = output.progress(None, "measuring");
    let started = Instant::now();
    let cpu_before = cpu_time();
    let end = started + args.duration;
    let stop = watch::Sender::new(false);
    let mut running = JoinSet::new();
    for worker in workers {
        running.spawn(worker.run(started, end, stop.subscribe()));
    }
    let mut total = Figures::new();
    let (mut ended, mut until) = (None, end);
    loop {
        let part = tokio::select! {
            biased;
            // What was measured so far is worth having.
            name = ends.wait(), if ended.is_none() => {
                ended = Some(name);
                until = Instant::now().min(end);
                stop.send_replace(true);
                continue;
            }
            part = running.join_next() => part,
        };
        let Some(part) = part else { break };
        total.add(&part.expect("workers do not panic"));
    }
    let took = total.measured(started, until);
    bar.finish_and_clear();
    let cpu = cpu_time().zip(cpu_before).map(|(after, before)| after - before);

    let report = Report {
        schema: "quorate.bench.v1",
        mode: if load.pace.is_some() { "open" } else { "closed" },
        clients: args.clients,
        keys: load.keys_each * u64::from(args.clients),
        value_size: args.value_size,
        read_ratio: args.read_ratio,
        seconds: took.as_secs_f64(),
        puts: total.puts.row(took),
        gets: total.gets.row(took),
        client_cpu_us_per_request: cpu.map(|cpu| cpu.as_micros() as f64 / total.answered().max(1) as f64),
        failed: total.failed,
        siblings: total.siblings,
        first_failure: total.first_failure.clone(),
        echo,
    };
    output::print(output, &report, || table(&report))?;
    if let Some(name) = ended {
        let (took, wanted) = (took.as_secs_f64(), args.duration.as_secs_f64());
        return Err(interrupted(&format!(
            "ended by {name} after {took:.1} of {wanted:.1} s, of which these are the figures"
        )));
    }
    match &total.first_failure {
        None => Ok(Exit::Done),
        Some(why) => Err(Failure::new(
            format!("{} of {} requests failed, the first: {why}", report.failed, total.answered() + report.failed),
            "see `quorate status`; a longer --timeout or a lower load may help",
        )),
    }
}

/// Writes that had begun may be there, whether they were answered or not.
fn ended_while_filling(name: &str, begun: u64) -> Failure {
    let message = format!("ended by {name} before anything was measured; writes of {begun} keys were begun");
    Failure { may_have_applied: begun > 0, ..interrupted(&message) }
}

fn interrupted(message: &str) -> Failure {
    Failure { exit: Exit::Interrupted, ..Failure::new(message, "run the benchmark again") }
}

/// What every client does.
struct Load {
    read_ratio: f64,
    value: Bytes,
    keys_each: u64,
    /// How many keys were begun to be written while filling.
    begun: AtomicU64,
    zipfian: bool,
    /// The time between two requests of one client in the open loop.
    pace: Option<Duration>,
    r: Option<Quorum>,
    w: Option<Quorum>,
}

/// One client of the load.
struct Worker {
    number: u16,
    client: Client,
    load: Arc<Load>,
    /// What it has last seen of each of its keys.
    contexts: Vec<Option<Context>>,
    zipf: Zipf<f64>,
    random: StdRng,
}

impl Worker {
    fn new(number: u16, client: Client, load: Arc<Load>, random: &Random) -> Self {
        Self {
            number,
            client,
            contexts: vec![None; load.keys_each as usize],
            zipf: Zipf::new(load.keys_each as f64, ZIPF_EXPONENT).expect("at least one key and a positive exponent"),
            load,
            random: StdRng::from_seed(random.array()),
        }
    }

    fn key(&self, index: usize) -> String {
        format!("bench/{}/{index}", self.number)
    }

    /// Writes the keys that are not there yet and learns the contexts of the others.
    async fn fill(&mut self) -> Result<(), Error> {
        for index in 0..self.contexts.len() {
            let key = self.key(index);
            let found = self.client.get(&key).timeout(FILL_TIMEOUT).optional().await?;
            let context = match found {
                Some(read) => read.context().clone(),
                None => {
                    self.load.begun.fetch_add(1, Ordering::Relaxed);
                    let put = self.client.put(&key, self.load.value.clone(), Blind).timeout(FILL_TIMEOUT);
                    put.await?.context().clone()
                }
            };
            self.contexts[index] = Some(context);
        }
        Ok(())
    }

    /// Measures until the end, or until it is stopped.
    async fn run(mut self, started: Instant, end: Instant, mut stop: watch::Receiver<bool>) -> Figures {
        let mut figures = Figures::new();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.measure(started, end, &mut figures) => {}
        }
        figures
    }

    async fn measure(&mut self, started: Instant, end: Instant, figures: &mut Figures) {
        // The clients' timetables are spread over one pace, so that they do not beat in step.
        let mut due = started + self.load.pace.unwrap_or_default().mul_f64(self.fraction());
        loop {
            if self.load.pace.is_none() {
                due = Instant::now();
            }
            if due >= end {
                return;
            }
            sleep_until(due).await;
            // Requests that are due before the end but cannot be sent until long after it are not waited for.
            let Ok(()) = timeout(end + GRACE - Instant::now(), self.request(due, figures)).await else {
                figures.failure(
                    "requests that were due could not be sent in time: the rate is above what the cluster answers",
                );
                return;
            };
            due += self.load.pace.unwrap_or_default();
        }
    }

    /// One request that was due at a certain time.
    async fn request(&mut self, due: Instant, figures: &mut Figures) {
        let index = self.pick();
        let key = self.key(index);
        if self.fraction() < self.load.read_ratio {
            let mut get = self.client.get(&key);
            if let Some(r) = self.load.r {
                get = get.r(r);
            }
            match get.await {
                Ok(read) => {
                    figures.gets.note(due.elapsed());
                    figures.last_answer = Some(Instant::now());
                    figures.siblings += u64::from(read.siblings().len() > 1);
                    self.contexts[index] = Some(read.context().clone());
                }
                Err(error) => figures.failure(&error),
            }
        } else {
            let put = match &self.contexts[index] {
                Some(context) => self.client.put(&key, self.load.value.clone(), context),
                None => self.client.put(&key, self.load.value.clone(), Blind),
            };
            let put = if let Some(w) = self.load.w { put.w(w) } else { put };
            match put.await {
                Ok(written) => {
                    figures.puts.note(due.elapsed());
                    figures.last_answer = Some(Instant::now());
                    self.contexts[index] = Some(written.context().clone());
                }
                Err(error) => figures.failure(&error),
            }
        }
    }

    fn pick(&mut self) -> usize {
        let keys = self.contexts.len();
        let rank = match self.load.zipfian {
            true => self.zipf.sample(&mut self.random) as usize - 1,
            false => (self.fraction() * keys as f64) as usize,
        };
        rank.min(keys - 1)
    }

    fn fraction(&mut self) -> f64 {
        use rand::RngExt;
        self.random.random()
    }
}

/// What was measured.
struct Figures {
    puts: Latencies,
    gets: Latencies,
    failed: u64,
    siblings: u64,
    first_failure: Option<String>,
    last_answer: Option<Instant>,
}

impl Figures {
    fn new() -> Self {
        let (puts, gets) = (Latencies::new(), Latencies::new());
        Self { puts, gets, failed: 0, siblings: 0, first_failure: None, last_answer: None }
    }

    /// The time in which requests were issued and answered: that of the measurement, and what the last answer came later. What is waited
    /// for beyond that belongs to requests that got no answer, which are no part of a rate.
    fn measured(&self, started: Instant, until: Instant) -> Duration {
        self.last_answer.map_or(until, |last| last.max(until)).saturating_duration_since(started)
    }

    fn failure(&mut self, error: &(impl ToString + ?Sized)) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| error.to_string());
    }

    fn answered(&self) -> u64 {
        self.puts.0.len() + self.gets.0.len()
    }

    fn add(&mut self, other: &Self) {
        self.puts.0.add(&other.puts.0).expect("the same bounds");
        self.gets.0.add(&other.gets.0).expect("the same bounds");
        self.failed += other.failed;
        self.siblings += other.siblings;
        self.last_answer = self.last_answer.max(other.last_answer);
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
    }
}

/// Latencies in microseconds, to three digits.
pub(crate) struct Latencies(Histogram<u64>);

impl Row {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("legal bounds"))
    }

    pub(crate) fn note(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_micros() as u64).max(1));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    pub(crate) fn row(&self, took: Duration) -> Row {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Row {
            count: self.0.len(),
            per_second: self.0.len() as f64 / took.as_secs_f64(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
        }
    }
}

/// The figures of one kind of request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    count: u64,
    per_second: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    mode: &'static str,
    clients: u16,
    keys: u64,
    value_size: u32,
    read_ratio: f64,
    seconds: f64,
    puts: Row,
    gets: Row,
    /// CPU time of this process; the nodes' is for whoever runs them to add.
    client_cpu_us_per_request: Option<f64>,
    failed: u64,
    /// Reads that met siblings.
    siblings: u64,
    first_failure: Option<String>,
    echo: Option<echo::Echo>,
}

fn table(report: &Report) -> comfy_table::Table {
    let mut table = output::table(&["", "requests", "a second", "p50", "p90", "p99", "p99.9", "max"]);
    let rows = [
        ("puts", Some(&report.puts)),
        ("gets", Some(&report.gets)),
        ("bare echo", report.echo.as_ref().map(|echo| &echo.row)),
    ];
    for (name, row) in rows.into_iter().filter_map(|(name, row)| Some((name, row?))) {
        if row.count == 0 {
            continue;
        }
        let mut cells = vec![name.to_owned(), row.count.to_string(), format!("{:.0}", row.per_second)];
        cells.extend([row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us].map(latency_text));
        table.add_row(cells);
    }
    table
}

fn latency_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.0} ms", us as f64 / 1e3),
    }
}

/// CPU time of this process, user and system; nothing where the system does not tell it in Linux's way.
pub(crate) fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// The unit of CPU times that Linux shows to programs, on every architecture.
const TICKS_PER_SECOND: u64 = 100;

/// YCSB's exponent: of 10,000 keys the most popular one gets a tenth of the requests.
const ZIPF_EXPONENT: f64 = 0.99;

/// Filling is not measured and may meet a cluster that has just started.
const FILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after the end a request that is under way is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// The echo needs no longer to give a steady figure.
const ECHO_TIME: Duration = Duration::from_secs(5);

/// Latencies above a minute are counted as a minute.
const LATENCY_MAX_US: u64 = 60_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_summed_up() {
        let (mut all, mut part) = (Latencies::new(), Latencies::new());
        (1..=99).for_each(|ms| part.note(Duration::from_millis(ms)));
        part.note(Duration::from_secs(1000));
        all.add(&part);
        let row = all.row(Duration::from_secs(10));
        assert_eq!((row.count, row.per_second), (100, 10.0));
        assert!((49_000..=51_000).contains(&row.p50_us), "{row:?}");
        assert!(row.max_us >= 59_000_000, "{row:?}");
    }

    #[test]
    fn what_was_begun_while_filling_may_be_there() {
        let failure = ended_while_filling("SIGTERM", 3);
        assert!(failure.may_have_applied && failure.message.contains("writes of 3 keys were begun"), "{failure:?}");
        assert!(!ended_while_filling("SIGTERM", 0).may_have_applied);
    }

    #[test]
    fn the_cpu_time_of_a_busy_process_grows() {
        let before = cpu_time().expect("this is Linux");
        let mut sum = 0u64;
        while cpu_time().expect("this is Linux") < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}

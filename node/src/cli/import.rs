//! `import`: an NDJSON file into the cluster, resumable, through the death of a node.
//!
//! ```text
//!            reader thread                 one of `concurrency` workers
//!   lines --> parse --> by key hash --> [queue] --> read, compare, write, retry --> tally
//! ```
//!
//! All lines of one key go to one worker, so that the last one wins and no line races with another of the same key.
//! A write is retried with the same bytes and the same operation id until it is certain, for at most `--retry-for`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::codec::Blob;
use quorate_client::error::Error;
use quorate_client::ids::{OpId, key_hash};
use quorate_client::options::Quorum;
use quorate_client::random::Random;
use quorate_client::wire::{Read, Write};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::args::ImportArgs;
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome};
use super::ndjson::{self, LINE_LEN_MAX, Record};
use super::output::Output;
use super::server::Ends;
use super::settings::Settings;

/// `import FILE`.
pub(crate) async fn import(args: &ImportArgs, settings: &Settings, output: &Output) -> Outcome {
    let mut ends = Ends::new()?;
    let source = Input::open(&args.file)?;
    let cluster = Cluster::connect(settings).await?;
    let started = Instant::now();
    let bar = output.progress(source.len, if source.len.is_some() { "bytes" } else { "records" });
    let by_bytes = source.len.is_some();
    let job = Arc::new(Job {
        cluster,
        blind: args.blind,
        r: settings.r(),
        w: settings.w(),
        retry_for: args.retry_for,
        random: Random::from_os(),
        tally: Tally::default(),
        last_success: Mutex::new(started),
        given_up: AtomicBool::new(false),
    });

    let mut workers = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..args.concurrency {
        let (queue, mut lines) = mpsc::channel::<(u64, Record)>(QUEUE_LEN);
        queues.push(queue);
        let job = Arc::clone(&job);
        workers.spawn(async move {
            while let Some((line, record)) = lines.recv().await {
                job.one(line, record).await;
            }
        });
    }

    // Reading blocks, so that it has a thread of its own; it ends when the queues are dropped or the input is over.
    let reader_job = Arc::clone(&job);
    let reader_bar = bar.clone();
    let (done, reading) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let result = source.each_line(|line, bytes, parsed| {
            if by_bytes {
                reader_bar.inc(bytes);
            } else {
                reader_bar.inc(1);
            }
            match parsed {
                Err(why) => reader_job.tally.failed(line, why),
                Ok(record) => {
                    let worker = (key_hash(&record.key) % queues.len() as u64) as usize;
                    if queues[worker].blocking_send((line, record)).is_err() {
                        return false;
                    }
                }
            }
            !reader_job.given_up.load(Ordering::Relaxed)
        });
        let _ = done.send(result);
    });

    let working = async {
        while let Some(worker) = workers.join_next().await {
            worker.map_err(|error| {
                Failure::new(format!("a worker of the import died: {error}"), "run the import again")
            })?;
        }
        Ok::<(), Failure>(())
    };
    let ended = tokio::select! {
        biased;
        name = ends.wait() => Some(name),
        worked = working => worked.map(|()| None)?,
    };
    bar.finish_and_clear();
    if let Some(name) = ended {
        // The reader may wait for its input for ever, and ends with the process.
        job.given_up.store(true, Ordering::Relaxed);
        workers.shutdown().await;
        return job.report(&args.file, Ok(()), started.elapsed(), Some(name), output);
    }
    let read = reading.await.map_err(|_| Failure::new("the reader of the import died", "run the import again"))?;
    job.report(&args.file, read, started.elapsed(), None, output)
}

/// What all workers share.
struct Job {
    cluster: Cluster,
    blind: bool,
    r: Option<Quorum>,
    w: Option<Quorum>,
    retry_for: Duration,
    random: Random,
    tally: Tally,
    last_success: Mutex<Instant>,
    /// The cluster has not taken anything for `retry_for`: going on would only make the list of failures longer.
    given_up: AtomicBool,
}

impl Job {
    async fn one(&self, line: u64, record: Record) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        match self.store(&record).await {
            Ok(counter) => {
                counter.fetch_add(1, Ordering::Relaxed);
                *self.last_success.lock().expect("no panic while the time is locked") = Instant::now();
            }
            Err(error) => {
                let last = *self.last_success.lock().expect("no panic while the time is locked");
                if error.is_retryable() && last.elapsed() >= self.retry_for {
                    self.given_up.store(true, Ordering::Relaxed);
                }
                self.tally.failed(line, error.to_string());
            }
        }
    }

    /// Brings one record in, or says why not. What it returns is the counter that it belongs to.
    async fn store(&self, record: &Record) -> Result<&AtomicU64, Error> {
        let read = Read { key: Blob(record.key.clone()), r: self.r, strict: false, monotonic: false, explain: false };
        let (context, op_id) = if self.blind {
            (None, blind_op_id(record))
        } else {
            let found = self.until_certain(self.retry_for, |_| self.cluster.read(read.clone())).await?;
            if matches!(&found.values[..], [value] if **value == record.value) {
                return Ok(&self.tally.unchanged);
            }
            (Some(found.context), self.cluster.op_id())
        };
        let mut write = Write {
            key: Blob(record.key.clone()),
            value: Some(Blob(record.value.clone())),
            context,
            op_id,
            first_sent_ms: None,
            w: self.w,
            strict: false,
            explain: false,
        };
        let started = Instant::now();
        let written = loop {
            let attempt = |first_sent_ms| self.cluster.write(Write { first_sent_ms, ..write.clone() });
            let error = match self.until_certain(self.retry_for.min(UNKNOWN_FOR), attempt).await {
                Ok(written) => break written,
                Err(error) => error,
            };
            if !error.is_retryable() || started.elapsed() >= self.retry_for {
                return Err(error);
            }
            if error.may_have_applied() {
                // Its coordinator has started since, and no node can say any more what became of it: what is not there is written anew.
                let found = self.until_certain(self.retry_for, |_| self.cluster.read(read.clone())).await?;
                if found.values.iter().any(|value| **value == record.value) {
                    return Ok(&self.tally.written);
                }
                write.op_id = self.cluster.op_id();
            }
        };
        if written.siblings > 1 {
            self.tally.siblings.fetch_add(1, Ordering::Relaxed);
        }
        Ok(&self.tally.written)
    }

    /// Repeats a request that may yet succeed, with growing pauses, until the time is over. The pauses are drawn, so that
    /// the workers do not come back all at once. If an earlier attempt may have been applied, the next one is told how many
    /// milliseconds ago the first one began.
    async fn until_certain<T, F>(&self, within: Duration, attempt: impl Fn(Option<u64>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let (mut pause_ms, mut uncertain) = (PAUSE_MIN_MS, false);
        loop {
            let error = match attempt(uncertain.then(|| started.elapsed().as_millis() as u64)).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            uncertain |= error.may_have_applied();
            let pause = Duration::from_millis(pause_ms / 2 + self.random.below(pause_ms));
            if !error.is_retryable() || started.elapsed() + pause > within {
                return Err(error);
            }
            self.tally.retries.fetch_add(1, Ordering::Relaxed);
            sleep(pause).await;
            pause_ms = (pause_ms * 2).min(PAUSE_MAX_MS);
        }
    }

    /// `ended`: the signal that has ended it before it was done.
    fn report(
        &self,
        file: &str,
        read: io::Result<()>,
        took: Duration,
        ended: Option<&str>,
        output: &Output,
    ) -> Outcome {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        let (written, unchanged) = (count(&tally.written), count(&tally.unchanged));
        let failures = tally.failures.lock().expect("no panic while the failures are locked");
        let failed = failures.count;
        let gave_up = self.given_up.load(Ordering::Relaxed);
        let rate = (written + unchanged) as f64 / took.as_secs_f64().max(0.001);
        let siblings = count(&tally.siblings);
        let complete = failed == 0 && !gave_up && read.is_ok();
        if output.is_json() {
            let lines: Vec<_> =
                failures.first.iter().map(|(line, why)| json!({ "line": line, "error": why })).collect();
            output.json(&json!({
                "schema": "quorate.import.v1",
                "complete": complete,
                "written": written,
                "unchanged": unchanged,
                "failed": failed,
                "failures": lines,
                "retries": count(&tally.retries),
                "left_siblings": siblings,
                "seconds": took.as_secs_f64(),
            }))?;
        } else {
            for (line, why) in &failures.first {
                output.say(&format!("{file}:{line}: {why}"));
            }
            let unnamed = failed - failures.first.len() as u64;
            if unnamed > 0 {
                output.say(&format!("and {unnamed} more"));
            }
            let more = match (siblings, count(&tally.retries)) {
                (0, 0) => String::new(),
                (0, retries) => format!(", {retries} retries"),
                (siblings, retries) => format!(", {siblings} stand beside siblings, {retries} retries"),
            };
            output.say(&format!(
                "{written} written, {unchanged} unchanged, {failed} failed{more}, in {:.1} s ({rate:.0}/s)",
                took.as_secs_f64()
            ));
        }
        if let Some(name) = ended {
            return Err(Failure {
                exit: Exit::Interrupted,
                ..Failure::new(
                    format!("ended by {name} before the end of {file}; a few more lines may have been written"),
                    "run the same import again: what is in already is not written twice",
                )
            });
        }
        if let Err(error) = read {
            return Err(Failure::new(format!("{file}: {error}"), "run the import again when the input is whole"));
        }
        if gave_up {
            return Err(Failure::new(
                format!(
                    "the cluster took nothing for {} s, the import stopped before the end",
                    self.retry_for.as_secs()
                ),
                "look at `quorate status`; then run the same import again, it goes on where it stopped",
            ));
        }
        if failed > 0 {
            return Err(Failure::new(
                format!("{failed} lines failed"),
                "correct them and run the same import again: what is in already is not written twice",
            ));
        }
        Ok(Exit::Done)
    }
}

/// What has become of the lines.
#[derive(Default)]
struct Tally {
    written: AtomicU64,
    unchanged: AtomicU64,
    retries: AtomicU64,
    siblings: AtomicU64,
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct Failures {
    count: u64,
    /// The ones with the lowest line numbers, in their order.
    first: Vec<(u64, String)>,
}

impl Tally {
    fn failed(&self, line: u64, why: String) {
        let mut failures = self.failures.lock().expect("no panic while the failures are locked");
        failures.count += 1;
        let place = failures.first.partition_point(|(other, _)| *other < line);
        if place < FAILURES_NAMED_MAX {
            failures.first.insert(place, (line, why));
            failures.first.truncate(FAILURES_NAMED_MAX);
        }
    }
}

/// A file or stdin.
struct Input {
    reader: Box<dyn BufRead + Send>,
    /// In bytes, where it is known.
    len: Option<u64>,
}

impl Input {
    fn open(file: &str) -> Outcome<Self> {
        if file == "-" {
            return Ok(Self { reader: Box::new(BufReader::new(io::stdin())), len: None });
        }
        let path = PathBuf::from(file);
        let fail = |error: io::Error| Failure::file("read", Path::new(file), &error);
        let opened = File::open(&path).map_err(fail)?;
        let metadata = opened.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!("{file} is a directory"), "name an NDJSON file, or - for stdin"));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self { reader: Box::new(BufReader::with_capacity(READ_BUFFER_LEN, opened)), len })
    }

    /// Calls `f` with each line's number, its length in bytes, and what is in it, until `f` has enough. Empty lines are
    /// passed over; a line beyond all limits is skipped without being held.
    fn each_line(mut self, mut f: impl FnMut(u64, u64, Result<Record, String>) -> bool) -> io::Result<()> {
        let mut buffer = Vec::new();
        for number in 1.. {
            buffer.clear();
            let mut read = (&mut self.reader).take(LINE_LEN_MAX as u64 + 1).read_until(b'\n', &mut buffer)? as u64;
            if read == 0 {
                break;
            }
            let parsed = if buffer.len() > LINE_LEN_MAX && !buffer.ends_with(b"\n") {
                read += self.reader.skip_until(b'\n')? as u64;
                Err(format!("the line has more than {LINE_LEN_MAX} characters, no record is that long"))
            } else if buffer.trim_ascii().is_empty() {
                continue;
            } else {
                ndjson::parse(&buffer)
            };
            if !f(number, read, parsed) {
                break;
            }
        }
        Ok(())
    }
}

/// The operation id of a blind import of this record: the same whenever it is repeated, so that a repetition within the
/// nodes' memory of operations, or while the value still stands, is recognised and makes no sibling.
fn blind_op_id(record: &Record) -> OpId {
    let mut named = Vec::with_capacity(BLIND_DOMAIN.len() + 8 + record.key.len() + record.value.len());
    named.extend_from_slice(BLIND_DOMAIN);
    named.extend_from_slice(&(record.key.len() as u64).to_be_bytes());
    named.extend_from_slice(&record.key);
    named.extend_from_slice(&record.value);
    OpId(xxhash_rust::xxh3::xxh3_128(&named))
}

/// Keeps these operation ids apart from any other use of the hash.
const BLIND_DOMAIN: &[u8] = b"quorate blind import 1";

/// Lines that wait for one worker. Few: with values of the largest size this much is held for each of them.
const QUEUE_LEN: usize = 2;

/// How many failed lines are named; the rest is counted.
const FAILURES_NAMED_MAX: usize = 20;

/// How long a write of which nobody knows whether it was carried out is repeated before its key is read: a restart takes less.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// First and longest pause between two attempts, in milliseconds.
const PAUSE_MIN_MS: u64 = 20;
/// See [`PAUSE_MIN_MS`].
const PAUSE_MAX_MS: u64 = 1_000;

/// How much of a file is read at a time, in bytes.
const READ_BUFFER_LEN: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<Record, String>)> {
        let input = Input { reader: Box::new(io::Cursor::new(text.to_vec())), len: None };
        let mut lines = Vec::new();
        input
            .each_line(|number, _, parsed| {
                lines.push((number, parsed));
                true
            })
            .expect("readable");
        lines
    }

    #[test]
    fn lines_are_numbered_and_empty_ones_passed_over() {
        let got = lines(b"{\"key\":\"a\",\"value\":\"1\"}\r\n\n  \n{\"key\":\"b\",\"value\":\"2\"}");
        assert_eq!(got.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 4]);
        assert!(got.iter().all(|(_, parsed)| parsed.is_ok()));
    }

    #[test]
    fn a_line_beyond_all_limits_is_skipped_as_one() {
        let mut text = vec![b'x'; 2 * LINE_LEN_MAX];
        text.extend_from_slice(b"\n{\"key\":\"b\",\"value\":\"2\"}\n");
        let got = lines(&text);
        assert_eq!(got.len(), 2);
        assert!(got[0].1.as_ref().expect_err("too long").contains("no record is that long"));
        assert_eq!((got[1].0, got[1].1.is_ok()), (2, true));
    }

    #[test]
    fn bytes_of_all_lines_add_up_to_the_file() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\nbad\n{\"key\":\"b\",\"value\":\"2\"}";
        let input = Input { reader: Box::new(io::Cursor::new(text.to_vec())), len: None };
        let mut sum = 0;
        input
            .each_line(|_, bytes, _| {
                sum += bytes;
                true
            })
            .expect("readable");
        assert_eq!(sum, text.len() as u64);
    }

    #[test]
    fn the_named_failures_are_the_first_ones_of_the_file() {
        let tally = Tally::default();
        for line in (1..=100).rev() {
            tally.failed(line, "bad".into());
        }
        let failures = tally.failures.lock().expect("not poisoned");
        assert_eq!(failures.count, 100);
        assert_eq!(failures.first.iter().map(|(line, _)| *line).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_blind_operation_is_named_by_its_key_and_value() {
        let record = |key: &'static str, value: &'static str| Record { key: key.into(), value: value.into() };
        assert_eq!(blind_op_id(&record("ab", "c")), blind_op_id(&record("ab", "c")));
        assert_ne!(blind_op_id(&record("ab", "c")), blind_op_id(&record("a", "bc")));
        assert_ne!(blind_op_id(&record("a", "b")), blind_op_id(&record("a", "c")));
    }

    #[test]
    fn a_missing_file_and_a_directory_are_refused_before_anything_happens() {
        assert_eq!(Input::open("/no/such/file").err().expect("missing").exit, Exit::Failed);
        assert_eq!(Input::open("/").err().expect("a directory").exit, Exit::Usage);
    }
}

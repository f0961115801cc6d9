//! `import`: an NDJSON file into the cluster, resumable, through the death of a node.
//!
//! ```text
//!            reader thread                 one of `concurrency` workers
//!   lines --> parse --> by key hash --> [queue] --> read, compare, write, retry --> tally
//! ```
//!
//! All lines of one key go to one worker, so that the last one wins and no line races with another of the same key. A blind
//! import sees to that as well: a line names the one before it, of the same key, as its cause.
//!
//! A write is retried with the same bytes and the same operation id until it is certain, for at most `--retry-for`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use quorate_client::error::Error;
use quorate_wire::Quorum;
use quorate_wire::codec::Blob;
use quorate_wire::ids::{OpId, key_hash};
use quorate_wire::random::Random;
use quorate_wire::{Found, Key, Read, Write};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::args::ImportArgs;
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome};
use super::ndjson::{self, LINE_LEN_MAX, Record};
use super::output::{Output, readable};
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
        replace_all: args.replace_all,
        file: args.file.clone(),
        bar: bar.clone(),
        output: *output,
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
        let (queue, mut lines) = mpsc::channel::<(u64, Record, OwnedSemaphorePermit)>(QUEUE_LEN);
        queues.push(queue);
        let job = Arc::clone(&job);
        workers.spawn(async move {
            let mut written = Recent::default();
            while let Some((line, record, waited)) = lines.recv().await {
                drop(waited);
                job.one(line, record, &mut written).await;
            }
        });
    }

    // Reading blocks, so that it has a thread of its own; it ends when the queues are dropped or the input is over.
    let reader_job = Arc::clone(&job);
    let reader_bar = bar.clone();
    let (runtime, room) = (Handle::current(), Arc::new(Semaphore::new(WAITING_LEN_MAX)));
    let (done, reading) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let result = source.each_line(|line, bytes, parsed| {
            if by_bytes {
                reader_bar.inc(bytes);
            } else {
                reader_bar.inc(1);
            }
            match parsed {
                Err(why) => reader_job.failed(line, why),
                Ok(record) => {
                    let worker = (key_hash(&Key::plain(&record.key)) % queues.len() as u64) as usize;
                    let len = record.key.len() + record.values.iter().map(Bytes::len).sum::<usize>();
                    let waits = room.clone().acquire_many_owned(len.min(WAITING_LEN_MAX) as u32);
                    let Ok(waits) = runtime.block_on(waits) else { return false };
                    if queues[worker].blocking_send((line, record, waits)).is_err() {
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
    replace_all: bool,
    file: String,
    bar: ProgressBar,
    output: Output,
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
    async fn one(&self, line: u64, record: Record, written: &mut Recent) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        match self.store(&record, written).await {
            Ok(counter) => {
                counter.fetch_add(1, Ordering::Relaxed);
                *self.last_success.lock().expect("no panic while the time is locked") = Instant::now();
            }
            Err(NotStored::Siblings(count)) => self.failed(
                line,
                format!(
                    "{} has {count} values (siblings), nothing was written: merge them, or import with --replace-all",
                    readable(&record.key, 64)
                ),
            ),
            Err(NotStored::Failed(error)) => {
                let last = *self.last_success.lock().expect("no panic while the time is locked");
                if error.is_retryable() && last.elapsed() >= self.retry_for {
                    self.given_up.store(true, Ordering::Relaxed);
                }
                self.failed(line, error.to_string());
            }
        }
    }

    /// A line is not in. The first ones are named at once; more of them would only hide what is wrong.
    fn failed(&self, line: u64, why: String) {
        let named = self.tally.said.fetch_add(1, Ordering::Relaxed);
        if !self.output.is_json() && named <= FAILURES_SAID_MAX {
            self.bar.suspend(|| match named {
                FAILURES_SAID_MAX => self.output.say("more lines failed: they are counted and not named"),
                _ => self.output.say(&format!("{}:{line}: {why}", self.file)),
            });
        }
        self.tally.failed(line, why);
    }

    /// Brings one record in, or says why not. What it returns is the counter that it belongs to.
    ///
    /// Siblings are written one after the other, each with the cause of the whole record: so each of them replaces what was
    /// there before and none of them another. They have causal terms of their own; those of the export mean nothing here.
    async fn store(&self, record: &Record, written: &mut Recent) -> Result<&AtomicU64, NotStored> {
        let before = if self.blind { written.of(&record.key) } else { None };
        let mut replaced = Vec::new();
        let context = if self.blind {
            before.as_ref().map(|before| before.context.clone())
        } else {
            let key = Key::plain(&record.key);
            let found = self.until_certain(self.retry_for, |_| self.read(&key)).await?;
            if is_same(&record.values, &found.values) {
                return Ok(&self.tally.unchanged);
            }
            // What nobody has looked at is not thrown away. Parts of this very record are left by an import that broke off.
            let is_part = found.values.iter().all(|value| record.values.contains(&value.0)) && record.values.len() > 1;
            let bytes: Vec<&Bytes> = found.values.iter().map(|value| &value.0).collect();
            let distinct = ndjson::distinct(&bytes).len();
            if distinct > 1 && !is_part && !self.replace_all {
                return Err(NotStored::Siblings(distinct));
            }
            replaced = found.values;
            Some(found.context)
        };
        let mut last = before.as_ref().map_or(OpId(0), |before| before.op_id);
        let mut seen = None;
        for value in &record.values {
            let op_id = if self.blind { blind_op_id(&record.key, value, last) } else { self.cluster.op_id() };
            let write = Write {
                key: Key::plain(&record.key),
                value: Some(Blob(value.clone())),
                context: context.clone(),
                op_id,
                first_sent_ms: None,
                w: self.w,
                strict: false,
                explain: false,
            };
            // What is there already says nothing of this write, if this write or one of its siblings replaces it.
            let tells = match &before {
                Some(_) => record.values.len() == 1,
                None => replaced.iter().all(|other| other.0 != *value),
            };
            let stored = self.put(write, tells).await?;
            if stored.siblings > record.values.len() {
                self.tally.siblings.fetch_add(1, Ordering::Relaxed);
            }
            (last, seen) = (op_id, stored.context);
        }
        if let Some(context) = seen.filter(|_| self.blind && record.values.len() == 1) {
            written.note(record.key.clone(), Earlier { context, op_id: last });
        }
        Ok(&self.tally.written)
    }

    /// Writes one value until it is certain that it is in. If that cannot be told any more of a write, the key is read, and the value written
    /// anew if it is not there; `tells` says whether finding it means that it was written.
    async fn put(&self, mut write: Write, tells: bool) -> Result<Stored, Error> {
        let started = Instant::now();
        let mut sent = started;
        // The newest failure after which it may be in. What other attempts say of themselves does not change that.
        let unknown: Mutex<Option<Error>> = Mutex::default();
        let mut may_be_in = false;
        loop {
            let repeated = &AtomicBool::new(may_be_in);
            let attempt = |_| {
                let first_sent_ms = repeated.load(Ordering::Relaxed).then(|| sent.elapsed().as_millis() as u64);
                let attempt = self.cluster.write(Write { first_sent_ms, ..write.clone() });
                let unknown = &unknown;
                async move {
                    let result = attempt.await;
                    if result.as_ref().map_or_else(Error::may_have_applied, |_| true) {
                        self.tally.changed.store(true, Ordering::Relaxed);
                    }
                    if let Some(error) = result.as_ref().err().filter(|error| error.may_have_applied()) {
                        repeated.store(true, Ordering::Relaxed);
                        *unknown.lock().expect("no panic while it is locked") = Some(error.clone());
                    }
                    result
                }
            };
            let error = match self.until_certain(self.retry_for.min(UNKNOWN_FOR), attempt).await {
                Ok(written) => {
                    return Ok(Stored { context: Some(written.context), siblings: written.siblings as usize });
                }
                Err(error) => error,
            };
            may_be_in = repeated.load(Ordering::Relaxed);
            if !error.is_retryable() || started.elapsed() >= self.retry_for {
                return Err(unknown.into_inner().expect("no panic while it is locked").unwrap_or(error));
            }
            if may_be_in {
                // Its coordinator has started since, and no node can say any more what became of it.
                let found = self.until_certain(self.retry_for, |_| self.read(&write.key)).await?;
                if tells && found.values.iter().any(|value| Some(value) == write.value.as_ref()) {
                    let siblings = found.values.len();
                    // One that covers what others have written must not be the cause of a later line: that would replace it.
                    return Ok(Stored { context: Some(found.context).filter(|_| siblings == 1), siblings });
                }
                write.op_id = self.cluster.op_id();
                (sent, may_be_in) = (Instant::now(), false);
            }
        }
    }

    async fn read(&self, key: &Key) -> Result<Found, Error> {
        let read = Read { key: key.clone(), r: self.r, strict: false, monotonic: false, explain: false };
        self.cluster.read(read).await
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

    /// See [`told`](Self::told). A failed import may have written a part.
    fn report(
        &self,
        file: &str,
        read: Result<(), Unreadable>,
        took: Duration,
        ended: Option<&str>,
        output: &Output,
    ) -> Outcome {
        let told = self.told(file, read, took, ended, output);
        let may_have_applied = ended.is_some() || self.tally.changed.load(Ordering::Relaxed);
        told.map_err(|failure| Failure { may_have_applied, ..failure })
    }

    /// `ended`: the signal that has ended it before it was done.
    fn told(
        &self,
        file: &str,
        read: Result<(), Unreadable>,
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
                "failures_not_named": failed - lines.len() as u64,
                "retries": count(&tally.retries),
                "left_siblings": siblings,
                "seconds": took.as_secs_f64(),
            }))?;
        } else if !matches!(read, Err(Unreadable::Encoded { .. })) {
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
        match read {
            Ok(()) => {}
            Err(Unreadable::Io(error)) => {
                return Err(Failure::new(format!("{file}: {error}"), "run the import again when the input is whole"));
            }
            Err(Unreadable::Encoded { what, way }) => {
                let way = way.replace("FILE", if file == "-" { "FILE" } else { file });
                return Err(Failure::new(format!("{file} is {what}, not NDJSON; nothing was written"), way));
            }
        }
        if gave_up {
            return Err(Failure {
                retryable: true,
                ..Failure::new(
                    format!(
                        "the cluster took nothing for {} s, the import stopped before the end",
                        self.retry_for.as_secs()
                    ),
                    "look at `quorate status`; then run the same import again, it goes on where it stopped",
                )
            });
        }
        if failed > 0 {
            return Err(Failure::new(
                if failed == 1 { "1 line failed".to_owned() } else { format!("{failed} lines failed") },
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
    /// Failed lines of which people were told.
    said: AtomicU64,
    /// Some value was written, or may have been.
    changed: AtomicBool,
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
    /// Longer lines are passed over.
    line_len_max: usize,
}

/// Why an input is not read to its end.
#[derive(Debug)]
enum Unreadable {
    Io(io::Error),
    /// It holds something else, which has a name, and there is a way to make lines of it.
    Encoded {
        what: &'static str,
        way: &'static str,
    },
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What an input is that is no text in UTF-8, by its first bytes.
fn other_encoding(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const UTF_16: (&str, &str) = ("text in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE | quorate import -");
    const UTF_32: (&str, &str) = ("text in UTF-32", "iconv -f UTF-32 -t UTF-8 FILE | quorate import -");
    match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some(UTF_32),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UTF_16),
        // Without a mark: the bracket that a record begins with, in two bytes.
        [b'{', 0, next, ..] if *next != 0 => {
            Some(("text in UTF-16", "iconv -f UTF-16LE -t UTF-8 FILE | quorate import -"))
        }
        [0, b'{', ..] => Some(("text in UTF-16", "iconv -f UTF-16BE -t UTF-8 FILE | quorate import -")),
        [0x1f, 0x8b, ..] => Some(("compressed with gzip", "zcat FILE | quorate import -")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("compressed with zstd", "zstdcat FILE | quorate import -")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(("compressed with xz", "xzcat FILE | quorate import -")),
        [b'B', b'Z', b'h', ..] => Some(("compressed with bzip2", "bzcat FILE | quorate import -")),
        [b'P', b'K', 3, 4, ..] => Some(("a zip archive", "unzip -p FILE | quorate import -")),
        // As old systems end lines. No string of JSON holds one as it is.
        _ if start.split(|byte| *byte == b'\n').next()?.windows(3).any(|three| three == b"}\r{") => {
            Some(("text whose lines end with carriage returns", "tr '\\r' '\\n' < FILE | quorate import -"))
        }
        _ => None,
    }
}

/// The byte order mark of UTF-8.
const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

impl Input {
    fn open(file: &str) -> Outcome<Self> {
        if file == "-" {
            return Ok(Self { reader: Box::new(BufReader::new(io::stdin())), len: None, line_len_max: LINE_LEN_MAX });
        }
        let path = PathBuf::from(file);
        let fail = |error: io::Error| Failure::file("read", Path::new(file), &error);
        let opened = File::open(&path).map_err(fail)?;
        let metadata = opened.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!("{file} is a directory"), "name an NDJSON file, or - for stdin"));
        }
        let len = metadata.is_file().then_some(metadata.len());
        let reader = Box::new(BufReader::with_capacity(READ_BUFFER_LEN, opened));
        Ok(Self { reader, len, line_len_max: LINE_LEN_MAX })
    }

    /// Calls `f` with each line's number, its length in bytes, and what is in it, until `f` has enough. Empty lines are
    /// passed over; a line beyond all limits is skipped without being held.
    fn each_line(mut self, mut f: impl FnMut(u64, u64, Result<Record, String>) -> bool) -> Result<(), Unreadable> {
        let mut buffer = Vec::new();
        let max = self.line_len_max;
        for number in 1.. {
            buffer.clear();
            let mut read = (&mut self.reader).take(max as u64 + 1).read_until(b'\n', &mut buffer)? as u64;
            if read == 0 {
                break;
            }
            if number == 1 {
                if let Some((what, way)) = other_encoding(&buffer) {
                    return Err(Unreadable::Encoded { what, way });
                }
                // What editors on Windows put before UTF-8.
                if buffer.starts_with(UTF_8_MARK) {
                    buffer.drain(..UTF_8_MARK.len());
                }
            }
            let parsed = if buffer.len() > max && !buffer.ends_with(b"\n") {
                read += self.reader.skip_until(b'\n')? as u64;
                Err(format!("the line has more than {max} bytes, no record is that long"))
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

/// Whether a key has exactly these values; equal ones count as one, see [`ndjson::distinct`].
fn is_same(wanted: &[Bytes], found: &[Blob]) -> bool {
    let found: Vec<&Bytes> = found.iter().map(|value| &value.0).collect();
    ndjson::distinct(wanted) == ndjson::distinct(&found)
}

/// A value that is in.
#[derive(Debug)]
struct Stored {
    /// Covers it and what it replaced, and nothing else.
    context: Option<Blob>,
    /// How many values the key has, this one included.
    siblings: usize,
}

/// Why a record is not in.
#[derive(Debug)]
enum NotStored {
    /// The key has so many values, which are not to be thrown away.
    Siblings(usize),
    Failed(Error),
}

impl From<Error> for NotStored {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An earlier line of the same key, in a blind import.
#[derive(Debug, Clone)]
struct Earlier {
    context: Blob,
    op_id: OpId,
}

/// What one worker has written of late. When it is full the older half is forgotten: a line of the same key that comes later
/// than that stands beside the earlier one as a sibling, and is counted as such.
#[derive(Debug, Default)]
struct Recent {
    new: BTreeMap<Bytes, Earlier>,
    old: BTreeMap<Bytes, Earlier>,
}

impl Recent {
    fn of(&self, key: &[u8]) -> Option<Earlier> {
        self.new.get(key).or_else(|| self.old.get(key)).cloned()
    }

    fn note(&mut self, key: Bytes, earlier: Earlier) {
        // A slice of a long line would keep all of it.
        self.new.insert(Bytes::copy_from_slice(&key), earlier);
        if self.new.len() >= RECENT_MAX {
            self.old = std::mem::take(&mut self.new);
        }
    }
}

/// How many keys a worker remembers twice: with 64 workers a quarter of a million lines, and some dozens of megabytes.
const RECENT_MAX: usize = 2_048;

/// The operation id of a blind import of this record: the same whenever it is repeated, so that a repetition within the
/// nodes' memory of operations, or while the value still stands, is recognised and makes no sibling. `before` is the one of the
/// line before it of the same key (or sibling in the same line): what is written twice is written twice.
fn blind_op_id(key: &[u8], value: &[u8], before: OpId) -> OpId {
    let mut named = Vec::with_capacity(BLIND_DOMAIN.len() + 24 + key.len() + value.len());
    named.extend_from_slice(BLIND_DOMAIN);
    if before != OpId(0) {
        named.extend_from_slice(&before.0.to_be_bytes());
    }
    named.extend_from_slice(&(key.len() as u64).to_be_bytes());
    named.extend_from_slice(key);
    named.extend_from_slice(value);
    // It does not tell when it was made: it says the same of the same line in every import.
    OpId(xxhash_rust::xxh3::xxh3_128(&named) & !(0xf << 76))
}

/// Keeps these operation ids apart from any other use of the hash.
const BLIND_DOMAIN: &[u8] = b"quorate blind import 1";

/// Lines that wait for one worker. While one queue is full no other worker gets a line, and keys fall where they fall: of 64 workers 45 % are
/// busy with two places each, 90 % with these.
const QUEUE_LEN: usize = 32;

/// What all lines that wait may take, in bytes, one larger line apart.
const WAITING_LEN_MAX: usize = 64 << 20;

/// How many failed lines the JSON of the result names; the rest is counted.
const FAILURES_NAMED_MAX: usize = 1_000;

/// So many failed lines are named on stderr.
const FAILURES_SAID_MAX: u64 = 20;

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

    /// Lines of up to a thousand bytes.
    fn input(text: &[u8]) -> Input {
        Input { reader: Box::new(io::Cursor::new(text.to_vec())), len: None, line_len_max: 1_000 }
    }

    fn lines(text: &[u8]) -> Vec<(u64, Result<Record, String>)> {
        let input = input(text);
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
        let mut text = vec![b'x'; 2_500];
        text.extend_from_slice(b"\n{\"key\":\"b\",\"value\":\"2\"}\n");
        let got = lines(&text);
        assert_eq!(got.len(), 2);
        assert!(got[0].1.as_ref().expect_err("too long").contains("no record is that long"));
        assert_eq!((got[1].0, got[1].1.is_ok()), (2, true));
    }

    #[test]
    fn bytes_of_all_lines_add_up_to_the_file() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\nbad\n{\"key\":\"b\",\"value\":\"2\"}";
        let input = input(text);
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
        for line in (1..=2_000).rev() {
            tally.failed(line, "bad".into());
        }
        let failures = tally.failures.lock().expect("not poisoned");
        assert_eq!(failures.count, 2_000);
        assert_eq!(failures.first.iter().map(|(line, _)| *line).collect::<Vec<_>>(), (1..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_blind_operation_is_named_by_its_key_and_value() {
        let id = |key: &str, value: &str, before| blind_op_id(key.as_bytes(), value.as_bytes(), OpId(before));
        assert_eq!(id("ab", "c", 0), id("ab", "c", 0));
        assert_ne!(id("ab", "c", 0), id("a", "bc", 0));
        assert_ne!(id("a", "b", 0), id("a", "c", 0));
        assert_ne!(id("a", "b", 0), id("a", "b", 1), "a value that comes again is another write");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_record() {
        let got = lines(b"\xef\xbb\xbf{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n");
        assert!(got.iter().all(|(_, parsed)| parsed.is_ok()), "{got:?}");
        assert_eq!(lines(b"\xef\xbb\xbf"), []);
    }

    #[test]
    fn what_is_no_utf_8_is_named_with_the_way_out() {
        let utf_16: Vec<u8> = "{\"key\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (text, wanted) in [
            (&b"\x1f\x8b\x08\x00"[..], "gzip"),
            (b"\xff\xfe{\x00", "UTF-16"),
            (b"\xfe\xff\x00{", "UTF-16"),
            (&utf_16, "UTF-16"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"{\"key\":\"a\",\"value\":\"1\"}\r{\"key\":\"b\",\"value\":\"2\"}\r", "carriage returns"),
        ] {
            match input(text).each_line(|_, _, _| true) {
                Err(Unreadable::Encoded { what, way }) => assert!(what.contains(wanted) && way.contains("FILE |")),
                other => panic!("{wanted}: {other:?}"),
            }
        }
        assert!(lines(b"\xff\n{\"key\":\"b\",\"value\":\"2\"}\n")[1].1.is_ok(), "a bad line hides no other");
    }

    #[test]
    fn a_worker_remembers_what_it_wrote_of_late() {
        let mut recent = Recent::default();
        let earlier = |id| Earlier { context: Blob::default(), op_id: OpId(id) };
        for number in 0..RECENT_MAX as u128 * 3 {
            recent.note(number.to_be_bytes().to_vec().into(), earlier(number));
        }
        let known = |number: u128| recent.of(&number.to_be_bytes()).is_some();
        assert!(known(RECENT_MAX as u128 * 3 - 1) && known(RECENT_MAX as u128 * 2) && !known(0));
        assert!(recent.new.len() + recent.old.len() <= 2 * RECENT_MAX, "it is bounded");
    }

    #[test]
    fn siblings_are_compared_as_sets() {
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let found = [Blob(b.clone()), Blob(a.clone())];
        assert!(is_same(&[a.clone(), b.clone()], &found));
        assert!(!is_same(std::slice::from_ref(&a), &found));
        let twice = [Blob(a.clone()), Blob(a.clone())];
        assert!(is_same(std::slice::from_ref(&a), &twice) && !is_same(std::slice::from_ref(&b), &twice));
    }

    #[test]
    fn a_missing_file_and_a_directory_are_refused_before_anything_happens() {
        assert_eq!(Input::open("/no/such/file").err().expect("missing").exit, Exit::Usage);
        assert_eq!(Input::open("/").err().expect("a directory").exit, Exit::Usage);
    }
}

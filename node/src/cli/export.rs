//! `export`: all live records as NDJSON.
//!
//! ```text
//!   partition p     --> pages --\
//!   partition p + 1 --> pages ---+--> lines, in partition order --> stdout, a file, or sorted runs
//!   ..                        --/
//! ```
//!
//! A few partitions are scanned ahead, each through a short queue, so that memory stays bounded however large the cluster
//! is. `--sort` writes sorted runs to temporary files when the lines do not fit, and merges them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::error::Error;
use quorate_client::ids::Partition;
use quorate_client::options::Quorum;
use quorate_client::wire::{Scan, ScanEntry, Scanned};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::args::{ExportArgs, SiblingPolicy};
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome, SIBLINGS_HINT};
use super::ndjson;
use super::output::{Output, readable};
use super::server::Ends;
use super::settings::Settings;

/// `export [FILE]`. A signal ends it in such a way that no temporary file stays.
pub(crate) async fn export(args: &ExportArgs, settings: &Settings, output: &Output) -> Outcome {
    let mut ends = Ends::new()?;
    let sink = Sink::create(&args.file, args.sort)?;
    let left = sink.what_is_left();
    tokio::select! {
        biased;
        name = ends.wait() => Err(Failure {
            exit: Exit::Interrupted,
            ..Failure::new(format!("ended by {name}; {left}"), "run the export again")
        }),
        outcome = export_to(sink, args, settings, output) => outcome,
    }
}

async fn export_to(mut sink: Sink, args: &ExportArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let status = cluster.status().await?;
    if status.partitions == 0 {
        let why = status.not_serving.unwrap_or_else(|| "there is no layout".to_owned());
        return Err(Failure {
            exit: Exit::Unavailable,
            ..Failure::new(
                format!("nothing can be exported: {why}"),
                "a new cluster needs a layout: `quorate layout stage join --help`",
            )
        });
    }
    let started = Instant::now();
    let bar = output.progress(Some(status.partitions.into()), "partitions");
    let mut seen = Seen::default();
    let mut line = Vec::new();
    let mut ahead: VecDeque<mpsc::Receiver<Result<Scanned, Error>>> = VecDeque::new();
    let mut waiting = (0..status.partitions).map(Partition);
    loop {
        while ahead.len() < PARTITIONS_AHEAD {
            let Some(partition) = waiting.next() else { break };
            ahead.push_back(scan(cluster.clone(), partition, settings.r()));
        }
        let Some(mut pages) = ahead.pop_front() else { break };
        while let Some(page) = pages.recv().await {
            let page = page.map_err(|error| Failure {
                message: format!("the export stopped, {}: {error}", sink.what_is_left()),
                ..error.into()
            })?;
            seen.degraded |= page.quorum.degraded;
            for entry in &page.entries {
                if !seen.is_exportable(entry, args.siblings) {
                    continue;
                }
                line.clear();
                ndjson::write(&mut line, &entry.key, &entry.values.iter().map(|value| &value[..]).collect::<Vec<_>>());
                sink.line(&entry.key, &line)?;
            }
        }
        bar.inc(1);
        bar.set_message(format!("{} records", seen.records));
    }
    sink.finish()?;
    bar.finish_and_clear();
    seen.report(args, started.elapsed(), output)
}

/// Scans a partition page by page, a little ahead of whoever takes the pages. Ends when nobody does any more.
fn scan(cluster: Cluster, partition: Partition, r: Option<Quorum>) -> mpsc::Receiver<Result<Scanned, Error>> {
    let (pages, taken) = mpsc::channel(PAGES_AHEAD);
    tokio::spawn(async move {
        let mut after = None;
        loop {
            let page = page(&cluster, Scan { partition, after, limit: PAGE_RECORDS_MAX, r }).await;
            after = page.as_ref().ok().and_then(|page| page.next.clone());
            if pages.send(page).await.is_err() || after.is_none() {
                return;
            }
        }
    });
    taken
}

/// One page; reading again does no harm, so that a node that dies meanwhile does not end the export.
async fn page(cluster: &Cluster, scan: Scan) -> Result<Scanned, Error> {
    for attempt in 1.. {
        match cluster.scan(scan.clone()).await {
            Err(error) if error.is_retryable() && attempt < ATTEMPTS_MAX => sleep(RETRY_PAUSE * attempt).await,
            other => return other,
        }
    }
    unreachable!("the last attempt returns")
}

/// What went by.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    with_siblings: u64,
    /// Some keys with siblings.
    named: Vec<String>,
    degraded: bool,
}

impl Seen {
    fn is_exportable(&mut self, entry: &ScanEntry, policy: SiblingPolicy) -> bool {
        if entry.values.len() > 1 {
            self.with_siblings += 1;
            if self.named.len() < KEYS_NAMED_MAX {
                self.named.push(readable(&entry.key, 64));
            }
            if policy == SiblingPolicy::Report {
                return false;
            }
        }
        self.records += 1;
        true
    }

    fn report(&self, args: &ExportArgs, took: Duration, output: &Output) -> Outcome {
        let left_out = if args.siblings == SiblingPolicy::Report { self.with_siblings } else { 0 };
        let summary = json!({
            "schema": "quorate.export.v1",
            "file": args.file,
            "records": self.records,
            "with_siblings": self.with_siblings,
            "left_out": left_out,
            "siblings_of": self.named,
            "degraded": self.degraded,
            "seconds": took.as_secs_f64(),
        });
        // With the data on stdout a summary has no place there.
        match (output.is_json(), args.file == "-") {
            (true, true) => output.say(&summary.to_string()),
            (true, false) => output.json(&summary)?,
            (false, _) => {
                output.say(&format!("{} records in {:.1} s", self.records, took.as_secs_f64()));
                if self.degraded {
                    output.say("warning: degraded: stand-ins answered for owners, some records may be missing or old");
                }
                if left_out > 0 {
                    let more = if left_out > self.named.len() as u64 { ", .." } else { "" };
                    output.say(&format!(
                        "{left_out} keys have siblings and were left out: {}{more}",
                        self.named.join(", ")
                    ));
                    output.say(&format!("hint: {SIBLINGS_HINT}; or export all values with --siblings all"));
                }
            }
        }
        Ok(if left_out > 0 { Exit::Siblings } else { Exit::Done })
    }
}

/// Where the lines go.
enum Sink {
    Stdout(BufWriter<io::Stdout>),
    File(Target),
    Sorted { runs: Runs, target: Option<Target> },
}

/// A file that appears under its name when it is complete.
struct Target {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
}

impl Sink {
    fn create(file: &str, sort: bool) -> Outcome<Self> {
        let target = if file == "-" { None } else { Some(Target::create(Path::new(file))?) };
        Ok(match (sort, target) {
            (true, target) => {
                // Beside the target there is room for it, which is more than can be said of /tmp.
                let dir =
                    target.as_ref().map_or_else(std::env::temp_dir, |target| directory_of(&target.path).to_owned());
                Self::Sorted { runs: Runs::new(dir, RUN_LEN_MAX), target }
            }
            (false, Some(target)) => Self::File(target),
            (false, None) => Self::Stdout(BufWriter::with_capacity(BUFFER_LEN, io::stdout())),
        })
    }

    fn line(&mut self, key: &[u8], line: &[u8]) -> Outcome<()> {
        match self {
            Self::Stdout(out) => out.write_all(line)?,
            Self::File(target) => target.write(line)?,
            Self::Sorted { runs, .. } => {
                runs.add(key, line).map_err(|error| Failure::file("write sorted runs in", &runs.dir, &error))?
            }
        }
        Ok(())
    }

    fn finish(self) -> Outcome<()> {
        match self {
            Self::Stdout(mut out) => out.flush()?,
            Self::File(target) => target.finish()?,
            Self::Sorted { runs, target } => {
                let dir = runs.dir.clone();
                let merged = runs.merge().map_err(|error| Failure::file("read sorted runs in", &dir, &error))?;
                match target {
                    None => {
                        let mut out = BufWriter::with_capacity(BUFFER_LEN, io::stdout());
                        for line in merged {
                            out.write_all(&line.map_err(|error| Failure::file("read sorted runs in", &dir, &error))?)?;
                        }
                        out.flush()?;
                    }
                    Some(mut target) => {
                        for line in merged {
                            target.write(&line.map_err(|error| Failure::file("read sorted runs in", &dir, &error))?)?;
                        }
                        target.finish()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What an export that fails leaves behind.
    fn what_is_left(&self) -> &'static str {
        match self {
            Self::Stdout(_) => "what was written so far is not complete",
            Self::File(_) | Self::Sorted { target: Some(_), .. } => "no file was written",
            Self::Sorted { target: None, .. } => "nothing was written",
        }
    }
}

impl Target {
    fn create(path: &Path) -> Outcome<Self> {
        if path.is_dir() {
            return Err(Failure::usage(format!("{} is a directory", path.display()), "name a file, or - for stdout"));
        }
        let file = tempfile::Builder::new()
            .prefix(".quorate-export-")
            .tempfile_in(directory_of(path))
            // The name of the temporary file, which this error holds, says nothing to anybody.
            .map_err(|error| Failure::file("write", path, &error.kind().into()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER_LEN, file) })
    }

    fn write(&mut self, line: &[u8]) -> Outcome<()> {
        self.file.write_all(line).map_err(|error| Failure::file("write", &self.path, &error))
    }

    fn finish(self) -> Outcome<()> {
        let fail = |error: io::Error| Failure::file("write", &self.path, &error);
        let file = self.file.into_inner().map_err(|error| fail(error.into_error()))?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(&self.path).map_err(|error| fail(error.error))?;
        Ok(())
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An external merge sort: lines are gathered up to a limit, sorted by key, written out as a run, and merged at the end.
struct Runs {
    dir: PathBuf,
    limit: usize,
    gathered: Vec<Line>,
    gathered_len: usize,
    runs: Vec<File>,
}

impl Runs {
    fn new(dir: PathBuf, limit: usize) -> Self {
        Self { dir, limit, gathered: Vec::new(), gathered_len: 0, runs: Vec::new() }
    }

    fn add(&mut self, key: &[u8], line: &[u8]) -> io::Result<()> {
        self.gathered.push(Line { key: key.into(), text: line.into() });
        self.gathered_len += key.len() + line.len() + LINE_OVERHEAD;
        if self.gathered_len > self.limit { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.gathered.sort_unstable();
        let mut run = BufWriter::with_capacity(BUFFER_LEN, tempfile::tempfile_in(&self.dir)?);
        for Line { key, text } in self.gathered.drain(..) {
            for part in [key, text] {
                let len = u32::try_from(part.len()).expect("keys and lines are far below 4 GiB");
                run.write_all(&len.to_be_bytes())?;
                run.write_all(&part)?;
            }
        }
        self.gathered_len = 0;
        let mut run = run.into_inner().map_err(io::IntoInnerError::into_error)?;
        run.rewind()?;
        self.runs.push(run);
        Ok(())
    }

    /// All lines in the order of their keys.
    fn merge(mut self) -> io::Result<Merge> {
        self.gathered.sort_unstable();
        let mut sources: Vec<Source> =
            self.runs.into_iter().map(|run| Source::File(BufReader::with_capacity(BUFFER_LEN, run))).collect();
        sources.push(Source::Memory(self.gathered.into_iter()));
        let mut heads = BinaryHeap::new();
        for (index, source) in sources.iter_mut().enumerate() {
            if let Some(line) = source.next()? {
                heads.push(Reverse((line, index)));
            }
        }
        Ok(Merge { sources, heads })
    }
}

/// Ordered by key; the text decides only between lines of one key, which no export has.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    key: Box<[u8]>,
    text: Box<[u8]>,
}

enum Source {
    File(BufReader<File>),
    Memory(std::vec::IntoIter<Line>),
}

impl Source {
    fn next(&mut self) -> io::Result<Option<Line>> {
        match self {
            Self::Memory(lines) => Ok(lines.next()),
            Self::File(run) => {
                use std::io::BufRead as _;
                if run.fill_buf()?.is_empty() {
                    return Ok(None);
                }
                Ok(Some(Line { key: part(run)?, text: part(run)? }))
            }
        }
    }
}

fn part(run: &mut BufReader<File>) -> io::Result<Box<[u8]>> {
    let mut len = [0; 4];
    run.read_exact(&mut len)?;
    let mut part = vec![0; u32::from_be_bytes(len) as usize];
    run.read_exact(&mut part)?;
    Ok(part.into())
}

/// The lines of several sorted sources in one order.
struct Merge {
    sources: Vec<Source>,
    heads: BinaryHeap<Reverse<(Line, usize)>>,
}

impl Iterator for Merge {
    type Item = io::Result<Box<[u8]>>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((line, index)) = self.heads.pop()?;
        match self.sources[index].next() {
            Ok(Some(next)) => self.heads.push(Reverse((next, index))),
            Ok(None) => {}
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(line.text))
    }
}

/// Partitions that are scanned at a time.
const PARTITIONS_AHEAD: usize = 8;

/// Pages of one partition that wait to be written.
const PAGES_AHEAD: usize = 1;

/// Records a page; the node bounds a page by bytes as well.
const PAGE_RECORDS_MAX: u32 = 1_000;

/// How often a page is asked for, with a growing pause between: half a minute in all, in which a node can come back.
const ATTEMPTS_MAX: u32 = 15;
/// See [`ATTEMPTS_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How many keys with siblings are named; the rest is counted.
const KEYS_NAMED_MAX: usize = 20;

/// How many bytes of lines are sorted in memory; above that, runs go to temporary files.
const RUN_LEN_MAX: usize = 256 << 20;

/// What a line costs in memory beside its bytes.
const LINE_OVERHEAD: usize = 48;

/// Of readers and writers, in bytes.
const BUFFER_LEN: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use quorate_client::codec::Blob;

    use super::*;

    fn sorted(lines: &[(&[u8], &[u8])], limit: usize) -> (Vec<Vec<u8>>, usize) {
        let mut runs = Runs::new(std::env::temp_dir(), limit);
        for (key, line) in lines {
            runs.add(key, line).expect("written");
        }
        let spilled = runs.runs.len();
        let merged = runs.merge().expect("merged").map(|line| line.expect("read").into_vec()).collect();
        (merged, spilled)
    }

    #[test]
    fn runs_on_disk_and_in_memory_give_the_same_order() {
        let keys: Vec<Vec<u8>> = (0u32..500).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes().to_vec()).collect();
        let lines: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &key[..])).collect();
        let mut expected = keys.clone();
        expected.sort();
        let (in_memory, none) = sorted(&lines, usize::MAX);
        let (on_disk, many) = sorted(&lines, 1_000);
        assert_eq!(in_memory, expected);
        assert_eq!(on_disk, expected);
        assert_eq!(none, 0);
        assert!(many > 10, "{many} runs");
        assert!(sorted(&[], 10).0.is_empty());
    }

    #[test]
    fn a_file_appears_only_when_it_is_complete() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("backup.ndjson");
        std::fs::write(&path, "old").expect("written");
        let name = path.to_str().expect("text");

        let mut broken_off = Sink::create(name, false).expect("created");
        broken_off.line(b"k", b"new\n").expect("written");
        drop(broken_off);
        assert_eq!(std::fs::read(&path).expect("there"), b"old");

        let mut complete = Sink::create(name, true).expect("created");
        complete.line(b"b", b"2\n").expect("written");
        complete.line(b"a", b"1\n").expect("written");
        complete.finish().expect("finished");
        assert_eq!(std::fs::read(&path).expect("there"), b"1\n2\n");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no temporary file stays");
    }

    #[test]
    fn an_impossible_target_is_refused_before_anything_happens() {
        assert_eq!(Sink::create("/", false).err().expect("a directory").exit, Exit::Usage);
        assert_eq!(Sink::create("/no/such/dir/file", false).err().expect("no directory").exit, Exit::Failed);
    }

    #[test]
    fn keys_with_siblings_are_left_out_and_named_or_exported_whole() {
        let blob = |text: &'static str| Blob(text.into());
        let entry = ScanEntry { key: blob("cart"), values: vec![blob("a"), blob("b")], context: blob("c") };
        let mut seen = Seen::default();
        assert!(!seen.is_exportable(&entry, SiblingPolicy::Report));
        assert_eq!((seen.records, seen.with_siblings, &seen.named[..]), (0, 1, &["cart".to_owned()][..]));
        assert!(seen.is_exportable(&entry, SiblingPolicy::All));
        assert_eq!((seen.records, seen.with_siblings), (1, 2));
    }
}

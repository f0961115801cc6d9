//! `export`: all live records as NDJSON.
//!
//! ```text
//!   scan, a page ahead --> [pages] --> lines, in partition order --> stdout, a pipe, a file, or sorted runs
//! ```
//!
//! Pages wait in a short queue, so that memory stays bounded however large the cluster is. `--sort` writes sorted runs to
//! temporary files when the lines do not fit, and merges them.
//!
//! What is written to is what was named: a pipe or a device is opened and written, a link is followed, and only a regular file is
//! replaced, as a whole, by one with its permissions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, BufReader, BufWriter, Read as _, Seek, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::error::Error;
use quorate_client::{Page, Scanner};
use quorate_wire::NotApplied;
use quorate_wire::ids::Partition;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, timeout};

use super::args::{ExportArgs, SiblingPolicy};
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome, SIBLINGS_HINT, reason_of};
use super::ndjson;
use super::output::{Output, readable};
use super::server::Ends;
use super::settings::Settings;

/// `export [FILE]`. A signal ends it in such a way that no temporary file stays.
pub(crate) async fn export(args: &ExportArgs, settings: &Settings, output: &Output) -> Outcome {
    let mut ends = Ends::new()?;
    let ended = |name: &str, left: &str| Failure {
        exit: Exit::Interrupted,
        ..Failure::new(format!("ended by {name}; {left}"), "run the export again")
    };
    // Opening a pipe waits for its reader, and writing for a slow one: a signal must be heard meanwhile.
    let (file, sort) = (args.file.clone(), args.sort);
    #[expect(clippy::disallowed_methods, reason = "a pipe that nobody reads yet must not keep a store's thread")]
    let opening = tokio::task::spawn_blocking(move || Sink::create(&file, sort));
    let sink = tokio::select! {
        biased;
        name = ends.wait() => return Err(ended(name, "nothing was written")),
        sink = opening => sink.map_err(died)??,
    };
    let left = sink.what_is_left();
    let mut writing = tokio::spawn(export_to(sink, args.clone(), settings.clone(), *output));
    tokio::select! {
        biased;
        name = ends.wait() => {
            writing.abort();
            // Its temporary file goes with it, unless it hangs in a write to a pipe, and then it has none.
            let _ = timeout(END_TIME, writing).await;
            Err(ended(name, left))
        }
        outcome = &mut writing => outcome.map_err(died)?,
    }
}

fn died(error: JoinError) -> Failure {
    Failure::new(format!("a part of the export died: {error}"), "run the export again")
}

async fn export_to(mut sink: Sink, args: ExportArgs, settings: Settings, output: Output) -> Outcome {
    let cluster = Cluster::connect(&settings).await?;
    let status = cluster.status().await.map_err(Failure::of_read)?;
    if status.partitions == 0 {
        let why = status.not_serving.unwrap_or_else(|| "there is no layout yet".to_owned());
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
    let prefix = args.prefix.as_deref().unwrap_or_default().as_bytes();
    let mut pages = pages(cluster.scan(settings.r()).page_size(PAGE_RECORDS_MAX).prefix(prefix), output);
    while let Some(page) = pages.recv().await {
        let (page, partition) = page.map_err(|error| {
            let failure = Failure::of_read(error);
            let message = format!("the export stopped, {}: {}", sink.what_is_left(), failure.message);
            Failure { message, ..failure }
        })?;
        seen.degraded |= page.quorum.degraded;
        for record in &page.records {
            let values = ndjson::distinct(record.siblings());
            if !seen.is_exportable(record.key(), values.len(), args.siblings) {
                continue;
            }
            line.clear();
            ndjson::write(&mut line, record.key(), &values);
            sink.line(record.key(), &line)?;
        }
        bar.set_position(partition.0.into());
        bar.set_message(format!("{} records", seen.records));
    }
    sink.finish()?;
    bar.finish_and_clear();
    seen.report(&args, started.elapsed(), &output)
}

type Paged = Result<(Page, Partition), Error>;

/// The pages of a scan, a little ahead of whoever takes them, and where each ends. Ends when nobody takes them any more.
pub(super) fn pages(mut scan: Scanner, output: Output) -> mpsc::Receiver<Paged> {
    let (pages, taken) = mpsc::channel(PAGES_AHEAD);
    tokio::spawn(async move {
        while let Some(page) = page(&mut scan, &output).await.transpose() {
            let failed = page.is_err();
            if pages.send(page.map(|page| (page, scan.position()))).await.is_err() || failed {
                return;
            }
        }
    });
    taken
}

/// One page; reading again does no harm, so that a node that dies meanwhile does not end the export.
async fn page(scan: &mut Scanner, output: &Output) -> Result<Option<Page>, Error> {
    let started = Instant::now();
    let mut failed = match scan.next_page().await {
        Err(error) if may_pass(&error) => error,
        other => return other,
    };
    // Whoever waits is told why; programs read only JSON on stderr.
    if !output.is_json() {
        output.say(&format!("waiting: {}", reason_of(failed.clone())));
    }
    for attempt in 1.. {
        let pause = RETRY_PAUSE * attempt;
        let left = RETRY_TIME.saturating_sub(started.elapsed() + pause);
        if left.is_zero() {
            break;
        }
        sleep(pause).await;
        failed = match timeout(left, scan.next_page()).await {
            Ok(Err(error)) if may_pass(&error) => error,
            Ok(other) => return other,
            Err(_) => break,
        };
    }
    Err(failed)
}

/// Whether waiting may help. A cluster without a layout gets one from an administrator only.
fn may_pass(error: &Error) -> bool {
    let no_layout =
        matches!(error, Error::NotApplied(NotApplied::NotServing { why, .. }) if why.contains("no layout yet"));
    error.is_retryable() && !no_layout
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
    fn is_exportable(&mut self, key: &[u8], values: usize, policy: SiblingPolicy) -> bool {
        if values > 1 {
            self.with_siblings += 1;
            if self.named.len() < KEYS_NAMED_MAX {
                self.named.push(readable(key, 64));
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
                let records = if self.records == 1 { "record" } else { "records" };
                output.say(&format!("{} {records} in {:.1} s", self.records, took.as_secs_f64()));
                if self.degraded {
                    output.say("warning: degraded: stand-ins answered for owners, some records may be missing or old");
                }
                if left_out > 0 {
                    let more = if left_out > self.named.len() as u64 { ", .." } else { "" };
                    let keys = if left_out == 1 { "key has siblings and was" } else { "keys have siblings and were" };
                    output.say(&format!("{left_out} {keys} left out: {}{more}", self.named.join(", ")));
                    output.say(&format!("hint: {SIBLINGS_HINT}; or export all values with --siblings all"));
                }
            }
        }
        Ok(if left_out > 0 { Exit::Siblings } else { Exit::Done })
    }
}

/// Where the lines go.
enum Sink {
    /// Stdout, a pipe or a device: written as it comes.
    Stream(Stream),
    File(Target),
    Sorted {
        runs: Runs,
        target: Box<Sink>,
    },
}

/// Bytes that go out at once.
struct Stream {
    /// Nothing for stdout.
    path: Option<PathBuf>,
    out: BufWriter<Box<dyn io::Write + Send>>,
}

/// A file that appears under its name when it is complete.
struct Target {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
}

/// Where a whole file goes that another command makes: as an export's, it appears under its name only when it is complete.
pub(super) struct Whole(Sink);

impl Whole {
    /// Refuses what cannot be written before anything else is done.
    pub(super) fn create(path: &Path) -> Outcome<Self> {
        // On stdout is what the command says.
        Sink::named(path).map(Self).map_err(|failure| {
            let hint = failure.hint.replace(", or - for stdout", "");
            Failure { hint, ..failure }
        })
    }

    pub(super) fn finish(mut self, bytes: &[u8]) -> Outcome<()> {
        self.0.line(&[], bytes)?;
        self.0.finish()
    }
}

impl Sink {
    fn create(file: &str, sort: bool) -> Outcome<Self> {
        let target = if file == "-" { Self::Stream(Stream::stdout()) } else { Self::named(Path::new(file))? };
        if !sort {
            return Ok(target);
        }
        // Beside the target there is room for it, which is more than can be said of /tmp.
        let dir = match &target {
            Self::File(target) => directory_of(&target.path).to_owned(),
            Self::Stream(_) | Self::Sorted { .. } => std::env::temp_dir(),
        };
        Ok(Self::Sorted { runs: Runs::new(dir, RUN_LEN_MAX), target: Box::new(target) })
    }

    /// What a path names, links followed.
    fn named(path: &Path) -> Outcome<Self> {
        let fail = |error: io::Error| Failure::file("write", path, &error);
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        match metadata {
            Some(metadata) if metadata.is_dir() => {
                Err(Failure::usage(format!("{} is a directory", path.display()), "name a file, or - for stdout"))
            }
            // `/dev/stdout` and the like: opened anew it would be another place in the same file.
            Some(metadata) if is_stdout(&metadata) => Ok(Self::Stream(Stream::stdout())),
            Some(metadata) if !metadata.is_file() || is_descriptor(path) => {
                let file = File::options().write(true).append(metadata.is_file()).open(path).map_err(fail)?;
                Ok(Self::Stream(Stream::new(Some(path.to_owned()), Box::new(file))))
            }
            metadata => Ok(Self::File(Target::create(&end_of_links(path).map_err(fail)?, metadata.as_ref())?)),
        }
    }

    fn line(&mut self, key: &[u8], line: &[u8]) -> Outcome<()> {
        match self {
            Self::Stream(stream) => stream.write(line)?,
            Self::File(target) => target.write(line)?,
            Self::Sorted { runs, .. } => {
                runs.add(key, line).map_err(|error| Failure::file("write sorted runs in", &runs.dir, &error))?
            }
        }
        Ok(())
    }

    fn finish(self) -> Outcome<()> {
        match self {
            Self::Stream(stream) => stream.finish(),
            Self::File(target) => target.finish(),
            Self::Sorted { runs, mut target } => {
                let dir = runs.dir.clone();
                let unreadable = |error| Failure::file("read sorted runs in", &dir, &error);
                for line in runs.merge().map_err(unreadable)? {
                    target.line(&[], &line.map_err(unreadable)?)?;
                }
                // The target is no sorted sink itself.
                match *target {
                    Self::Stream(stream) => stream.finish(),
                    Self::File(target) => target.finish(),
                    Self::Sorted { .. } => unreachable!("a sorted sink writes to a stream or a file"),
                }
            }
        }
    }

    /// What an export that fails leaves behind.
    fn what_is_left(&self) -> &'static str {
        match self {
            Self::Stream(_) => "what was written so far is not complete",
            Self::File(_) => "no file was written",
            Self::Sorted { target, .. } => match **target {
                Self::File(_) => "no file was written",
                Self::Stream(_) | Self::Sorted { .. } => "nothing was written, or not all of it",
            },
        }
    }
}

impl Stream {
    fn new(path: Option<PathBuf>, out: Box<dyn io::Write + Send>) -> Self {
        Self { path, out: BufWriter::with_capacity(BUFFER_LEN, out) }
    }

    fn stdout() -> Self {
        Self::new(None, Box::new(io::stdout()))
    }

    fn write(&mut self, line: &[u8]) -> Outcome<()> {
        self.out.write_all(line).map_err(|error| Self::failure(self.path.as_deref(), error))
    }

    fn finish(mut self) -> Outcome<()> {
        self.out.flush().map_err(|error| Self::failure(self.path.as_deref(), error))
    }

    fn failure(path: Option<&Path>, error: io::Error) -> Failure {
        match path {
            Some(path) if error.kind() != io::ErrorKind::BrokenPipe => Failure::file("write", path, &error),
            _ => error.into(),
        }
    }
}

impl Target {
    /// `before`: the file that it replaces, whose permissions and, where that is allowed, owner it takes over.
    fn create(path: &Path, before: Option<&Metadata>) -> Outcome<Self> {
        let file = Self::beside(path, before)?;
        if let Some(before) = before {
            // Only root can give a file away; for others it is theirs from now on.
            let _ = std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()));
            let kept = file.as_file().set_permissions(Permissions::from_mode(before.mode() & 0o7777));
            kept.map_err(|error| Failure::file("keep the permissions of", path, &error))?;
        }
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER_LEN, file) })
    }

    /// Makes the temporary file. Where it replaces another it is its maker's alone until it has that one's permissions: whoever
    /// opened it before could read on for ever.
    fn beside(path: &Path, before: Option<&Metadata>) -> Outcome<tempfile::NamedTempFile> {
        // As any other new file: the umask takes away what it takes away.
        let mode = if before.is_some() { 0o600 } else { 0o666 };
        tempfile::Builder::new()
            .prefix(".quorate-export-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory_of(path))
            // The name of the temporary file, which this error holds, says nothing to anybody.
            .map_err(|error| {
                let no_directory = std::fs::metadata(directory_of(path)).err();
                Failure::file("write", path, &no_directory.unwrap_or_else(|| error.kind().into()))
            })
    }

    fn write(&mut self, line: &[u8]) -> Outcome<()> {
        self.file.write_all(line).map_err(|error| Failure::file("write", &self.path, &error))
    }

    fn finish(self) -> Outcome<()> {
        let fail = |error: io::Error| Failure::file("write", &self.path, &error);
        let file = self.file.into_inner().map_err(|error| fail(error.into_error()))?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(&self.path).map_err(|error| fail(error.error))?;
        // The name is on the disk when the directory is.
        File::open(directory_of(&self.path)).and_then(|dir| dir.sync_all()).map_err(fail)
    }
}

/// Whether a file is the one that stdout goes to.
fn is_stdout(metadata: &Metadata) -> bool {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from).and_then(|stdout| stdout.metadata());
    stdout.is_ok_and(|stdout| (stdout.dev(), stdout.ino()) == (metadata.dev(), metadata.ino()))
}

/// Whether a path leads through a descriptor of a process, such as `/dev/fd/3`: then another program holds the file open, and
/// one that takes its name would be another file.
fn is_descriptor(path: &Path) -> bool {
    let beneath = |path: &Path| path.starts_with("/dev/fd") || path.starts_with("/proc");
    let mut at = path.to_owned();
    for _ in 0..LINKS_MAX {
        let directory = directory_of(&at).canonicalize().unwrap_or_default();
        if beneath(&at) || beneath(&directory) {
            return true;
        }
        let Ok(to) = std::fs::read_link(&at) else { return false };
        at = directory_of(&at).join(to);
    }
    false
}

/// Where a path leads when it and what it names are followed while they are links; it need not exist.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut at = path.to_owned();
    for _ in 0..LINKS_MAX {
        match std::fs::symlink_metadata(&at) {
            Ok(metadata) if metadata.is_symlink() => at = directory_of(&at).join(std::fs::read_link(&at)?),
            Ok(_) => return Ok(at),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(at),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many links"))
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

/// Pages that wait to be written.
const PAGES_AHEAD: usize = 2;

/// How many links are followed, as the system does it.
const LINKS_MAX: usize = 40;

/// How long an export that is ended by a signal gets to remove its temporary file.
const END_TIME: Duration = Duration::from_secs(1);

/// Records a page; the node bounds a page by bytes as well.
const PAGE_RECORDS_MAX: u32 = 1_000;

/// For how long a page is asked for again, with a growing pause between: a node can come back meanwhile.
const RETRY_TIME: Duration = Duration::from_secs(30);
/// The first pause; each is longer by as much.
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
    fn what_only_an_administrator_can_end_is_not_waited_for() {
        let refused = |why: &str| {
            let node = quorate_wire::ids::NodeId::new("n1").expect("legal");
            Error::NotApplied(NotApplied::NotServing { node, why: why.to_owned() })
        };
        assert!(!may_pass(&refused("there is no layout yet")));
        assert!(may_pass(&refused("it is shutting down")));
        assert!(!may_pass(&Error::Codec { why: "no".to_owned() }));
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
    fn links_are_followed_and_a_file_that_was_there_keeps_its_mode() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        let export = |name: &str| {
            let mut sink = Sink::create(at(name).to_str().expect("text"), false).expect("created");
            sink.line(b"k", b"new\n").expect("written");
            sink.finish().expect("finished");
        };
        std::fs::write(at("old"), "old").expect("written");
        std::fs::set_permissions(at("old"), Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink("old", at("link")).expect("linked");
        std::os::unix::fs::symlink("link", at("second")).expect("linked");
        std::os::unix::fs::symlink("new", at("dangling")).expect("linked");
        export("second");
        export("dangling");
        for name in ["old", "new", "second", "dangling"] {
            assert_eq!(std::fs::read(at(name)).expect("there"), b"new\n", "{name}");
        }
        for name in ["link", "second", "dangling"] {
            assert!(std::fs::symlink_metadata(at(name)).expect("there").is_symlink(), "{name}");
        }
        assert_eq!(std::fs::metadata(at("old")).expect("there").mode() & 0o777, 0o640);
        std::os::unix::fs::symlink("circle", at("circle")).expect("linked");
        assert!(Sink::create(at("circle").to_str().expect("text"), false).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 6, "no temporary file stays");
    }

    #[test]
    fn what_replaces_a_private_file_is_at_no_time_readable_by_others() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("backup.ndjson");
        std::fs::write(&path, "old").expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
        let before = std::fs::metadata(&path).expect("there");
        let file = Target::beside(&path, Some(&before)).expect("made");
        assert_eq!(file.as_file().metadata().expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_regular_file_is_written_and_not_replaced() {
        let mut sink = Sink::create("/dev/null", true).expect("opened");
        assert_eq!(sink.what_is_left(), "nothing was written, or not all of it");
        sink.line(b"k", b"line\n").expect("written");
        sink.finish().expect("finished");
        assert!(!std::fs::metadata("/dev/null").expect("there").is_file());
        // A file that another program holds open is written where it is.
        let mut file = tempfile::tempfile().expect("a file");
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mut sink = Sink::create(&descriptor, false).expect("opened");
        sink.line(b"k", b"line\n").expect("written");
        sink.finish().expect("finished");
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("read");
        assert_eq!(text, "line\n");
    }

    #[test]
    fn an_impossible_target_is_refused_before_anything_happens() {
        assert_eq!(Sink::create("/", false).err().expect("a directory").exit, Exit::Usage);
        assert_eq!(Sink::create("/no/such/dir/file", false).err().expect("no directory").exit, Exit::Usage);
    }

    #[test]
    fn keys_with_siblings_are_left_out_and_named_or_exported_whole() {
        let mut seen = Seen::default();
        assert!(!seen.is_exportable(b"cart", 2, SiblingPolicy::Report));
        assert_eq!((seen.records, seen.with_siblings, &seen.named[..]), (0, 1, &["cart".to_owned()][..]));
        assert!(seen.is_exportable(b"cart", 2, SiblingPolicy::All));
        assert_eq!((seen.records, seen.with_siblings), (1, 2));
    }
}

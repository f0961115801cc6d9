//! Where log lines go: stderr or a file that is rotated, as text for people or as JSON for programs.
//!
//! ```text
//!   whoever logs --> [queue, bounded] --> a thread --> stderr or the file
//! ```
//!
//! A log that cannot be written never hurts whoever logs: nobody waits for a disk that is full or hangs, or for a reader that
//! is slow or gone. What the queue cannot take, or the thread cannot write, is dropped and counted, and the log says so as soon as it
//! can be written again. (Written directly, a line that fails ends the task that logs: `eprintln!` panics, and `tracing` calls
//! it to complain.)

mod file;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quorate_node::config::{LogConfig, LogFormat};
use quorate_node::metrics::Sample;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use self::file::RotatedFile;
use super::failure::{Failure, Outcome};

/// Starts logging for the whole process.
///
/// # Errors
/// When the file can never be opened as it was named, or there is no thread for it.
pub(crate) fn start(config: &LogConfig) -> Outcome<()> {
    let (sink, color) = match &config.file {
        Some(file) => {
            let file =
                RotatedFile::open(file).map_err(|error| Failure::file("write the log file", &file.path, &error))?;
            (Sink::File(file), false)
        }
        None => {
            let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            // Not through the standard library's handle, whose lock the thread would hold while a reader is slow.
            let stderr = io::stderr().as_fd().try_clone_to_owned();
            let stderr =
                stderr.map_err(|error| Failure::new(format!("cannot log to stderr: {error}"), "open stderr"))?;
            (Sink::Stderr { stderr: stderr.into(), torn: false }, color)
        }
    };
    let log = Log::start(sink)?;
    let filter = EnvFilter::new(config.level.as_str());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).log_internal_errors(false);
    match config.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Pretty => builder.with_ansi(color).init(),
    }
    // A second call would have panicked above.
    let _ = LOG.set(log);
    Ok(())
}

/// Opens the log file anew, after it was moved away.
pub(crate) fn reopen() {
    if let Some(log) = LOG.get() {
        log.shared.reopen.store(true, Ordering::SeqCst);
        // If there is no place for it the thread will see the flag with the next line.
        let _ = log.queue.try_send(Message::Look);
    }
}

/// Waits until what was logged so far is written, for a moment.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        let (done, written) = sync_channel(1);
        if log.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIME);
        }
    }
}

/// What the node's metrics say of it.
pub(crate) fn samples() -> Vec<Sample> {
    let dropped = LOG.get().map_or(0, |log| log.shared.dropped.load(Ordering::Relaxed));
    vec![Sample::counter("log_lines_dropped", "Log lines that could not be written and were dropped", dropped)]
}

static LOG: OnceLock<Log> = OnceLock::new();

/// The way to the thread that writes.
#[derive(Clone)]
struct Log {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

enum Message {
    Line(Vec<u8>),
    Look,
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    /// Bytes of lines in the queue.
    queued: AtomicUsize,
    reopen: AtomicBool,
}

impl Log {
    fn start(sink: Sink) -> Outcome<Self> {
        let (queue, lines) = sync_channel(LINES_MAX);
        let log = Self { queue, shared: Arc::default() };
        let shared = Arc::clone(&log.shared);
        let started = std::thread::Builder::new().name("quorate-log".to_owned()).spawn(move || {
            write_all(sink, &lines, &shared);
        });
        match started {
            Ok(_) => Ok(log),
            Err(error) => Err(Failure::new(
                format!("cannot start a thread: {error}"),
                "check the limits of this user (ulimit -u)",
            )),
        }
    }

    fn line(&self, line: &[u8]) {
        let fits = self.shared.queued.fetch_add(line.len(), Ordering::Relaxed) + line.len() <= BYTES_MAX;
        let sent = fits && self.queue.try_send(Message::Line(line.to_vec())).is_ok();
        if !sent {
            self.shared.queued.fetch_sub(line.len(), Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// `tracing` writes a line with one call. None ever fails.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(mut sink: Sink, lines: &Receiver<Message>, shared: &Shared) {
    let mut told = 0;
    while let Ok(message) = lines.recv() {
        if shared.reopen.swap(false, Ordering::SeqCst) {
            sink.reopen();
        }
        match message {
            Message::Line(line) => {
                shared.queued.fetch_sub(line.len(), Ordering::Relaxed);
                if sink.write(&line).is_err() {
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let dropped = shared.dropped.load(Ordering::Relaxed);
                if dropped > told {
                    let lines = dropped - std::mem::replace(&mut told, dropped);
                    tracing::warn!(lines, "so many log lines could not be written and were dropped");
                }
            }
            Message::Look => {}
            Message::Flush(done) => {
                // Whoever asked may have given up.
                let _: Result<(), TrySendError<()>> = done.try_send(());
            }
        }
    }
}

enum Sink {
    Stderr {
        stderr: std::fs::File,
        /// The last line was written in part.
        torn: bool,
    },
    File(RotatedFile),
}

impl Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr { stderr, torn } => write_line(stderr, torn, line),
            Self::File(file) => file.write(line),
        }
    }

    fn reopen(&mut self) {
        match self {
            Self::Stderr { .. } => {}
            Self::File(file) => match file.reopen() {
                Ok(()) => tracing::info!(file = %file.path().display(), "the log file was opened anew"),
                Err(error) => {
                    let path = file.path().display();
                    let text =
                        format!("the log file {path} cannot be opened anew: {error}; it is tried again every second\n");
                    complain(text);
                }
            },
        }
    }
}

/// Says something on stderr: the log itself may be read by nobody now. Who reads stderr may be slow or gone, which must not hold this
/// thread; one who has not read the last complaint is told no other.
fn complain(text: String) {
    static COMPLAINING: AtomicBool = AtomicBool::new(false);
    if COMPLAINING.swap(true, Ordering::SeqCst) {
        return;
    }
    let speaking = std::thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        COMPLAINING.store(false, Ordering::SeqCst);
    });
    if speaking.is_err() {
        COMPLAINING.store(false, Ordering::SeqCst);
    }
}

/// Writes a line, after ending one that could be written in part only.
fn write_line(file: &mut impl Write, torn: &mut bool, line: &[u8]) -> io::Result<()> {
    if *torn {
        file.write_all(b"\n")?;
        *torn = false;
    }
    let mut rest = line;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                rest = &rest[written..];
                *torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lines that wait to be written: a second of a node that logs each request, and more than any node logs at `info` in an hour.
const LINES_MAX: usize = 8192;

/// Their bytes.
const BYTES_MAX: usize = 8 << 20;

/// How long the end of a process waits for the last lines.
const FLUSH_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn log_into(file: std::fs::File) -> Log {
        Log::start(Sink::Stderr { stderr: file, torn: false }).expect("there are threads")
    }

    fn flushed(log: &Log) {
        let (done, written) = sync_channel(1);
        log.queue.send(Message::Flush(done)).expect("the thread runs");
        written.recv_timeout(Duration::from_secs(10)).expect("the thread gets to it");
    }

    fn dropped(log: &Log) -> u64 {
        log.shared.dropped.load(Ordering::Relaxed)
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
        let log = log_into(full);
        for _ in 0..10 {
            log.line(b"a line\n");
        }
        flushed(&log);
        assert_eq!(dropped(&log), 10);
    }

    #[test]
    fn a_reader_that_has_gone_costs_lines_and_nothing_else() {
        let (reader, writer) = io::pipe().expect("there are descriptors");
        let log = log_into(std::os::fd::OwnedFd::from(writer).into());
        drop(reader);
        log.line(b"a line\n");
        flushed(&log);
        assert_eq!(dropped(&log), 1);
    }

    #[test]
    fn a_reader_that_is_slow_is_not_waited_for_and_hears_of_what_it_missed() {
        let (mut reader, writer) = io::pipe().expect("there are descriptors");
        let log = log_into(std::os::fd::OwnedFd::from(writer).into());
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // More than a pipe and the queue take, and nobody reads.
        let most = LINES_MAX * 2;
        for _ in 0..most {
            log.line(&line);
        }
        let lost = dropped(&log) as usize;
        assert!(lost > 0 && lost < most, "{lost} of {most}");
        // Now it reads: all the others are there, whole.
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("text");
            text.lines().filter(|line| line.len() == 1023).count()
        });
        flushed(&log);
        let lost = dropped(&log) as usize;
        drop(log);
        assert_eq!(reading.join().expect("no panic"), most - lost);
    }

    /// Takes so many bytes, and then no more until there is room again.
    struct Small {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let takes = bytes.len().min(self.room);
            if takes == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= takes;
            self.taken.extend_from_slice(&bytes[..takes]);
            Ok(takes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next_one() {
        let (mut disk, mut torn) = (Small { room: 7, taken: Vec::new() }, false);
        write_line(&mut disk, &mut torn, b"one\n").expect("there is room");
        write_line(&mut disk, &mut torn, b"second\n").expect_err("there is not");
        write_line(&mut disk, &mut torn, b"third\n").expect_err("there is not");
        disk.room = 100;
        write_line(&mut disk, &mut torn, b"fourth\n").expect("there is room");
        assert_eq!(String::from_utf8_lossy(&disk.taken), "one\nsec\nfourth\n");
    }
}

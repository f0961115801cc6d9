//! What is said to a running `quorate dev`: one JSON line over a Unix socket, and one back.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_wire::ids::NodeId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::cli::failure::{Failure, Outcome};

/// What can be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(super) enum Request {
    /// End a node on the spot.
    Kill { node: NodeId },
    /// Start one that was killed.
    Start { node: NodeId },
    /// List all.
    Status,
    /// End the cluster; answered when it has ended, and hung up on when its files are let go as well.
    Stop,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    /// It was done; what to say to a person.
    Done { said: String },
    /// It was not done.
    Failed { error: String, hint: String },
    /// To [`Request::Status`].
    Nodes { nodes: Vec<NodeView> },
}

/// A node as people look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeView {
    pub(super) node: NodeId,
    pub(super) addr: SocketAddr,
    pub(super) http: Option<SocketAddr>,
    pub(super) running: bool,
}

/// Whether somebody listens. A socket file of a dead process refuses connections.
pub(super) fn is_alive(dir: &Path) -> bool {
    BlockingStream::connect(socket(dir)).is_ok()
}

/// Says something and waits for the answer.
pub(super) fn ask(dir: &Path, request: &Request) -> Outcome<Answer> {
    let path = socket(dir);
    let stream = BlockingStream::connect(&path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "no `quorate dev` is running".to_owned(),
            _ => format!("cannot reach the running `quorate dev` at {}: {error}", path.display()),
        };
        Failure::new(why, "start one with `quorate dev`; if it uses another QUORATE_DEV_DIR, set that here as well")
    })?;
    let answer = exchange(&stream, request);
    answer.map_err(|error| {
        Failure::new(format!("the running `quorate dev` did not answer: {error}"), "look at its terminal")
    })
}

fn exchange(mut stream: &BlockingStream, request: &Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    let mut reader = io::Read::take(BufReader::new(stream), LINE_MAX);
    reader.read_line(&mut answer)?;
    if *request == Request::Stop {
        // The end of the line is the end of the process, as far as others can meet it. Whether it says more is of no interest, nor how
        // it hangs up; that it does not is bounded by the time-out.
        match reader.read_line(&mut String::new()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(io::Error::new(error.kind(), "its nodes have ended, and it has not"));
            }
            _ => {}
        }
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Listens in the directory of the development cluster, and goes away with its socket.
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Takes the place of a socket that a dead process has left; the caller holds the directory's lock.
    pub(super) fn listen(dir: &Path) -> Outcome<Self> {
        let path = socket(dir);
        let len = path.as_os_str().len();
        if len > SOCKET_PATH_MAX {
            return Err(Failure::usage(
                format!("{} has {len} characters, a Unix socket's path may have {SOCKET_PATH_MAX}", path.display()),
                "set QUORATE_DEV_DIR to a shorter directory",
            ));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::file("remove the stale", &path, &error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(|error| Failure::file("listen on", &path, &error))?;
        Ok(Self { listener, path })
    }

    /// The next legal request; whoever says something else is hung up on.
    pub(super) async fn next(&self) -> Call {
        loop {
            // Accepting fails only for lack of file descriptors: a pause, so that it does not become a busy loop.
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if let Ok(Some(call)) = timeout(REQUEST_TIME, Call::read(stream)).await {
                return call;
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // A file that stays does no harm: the next one removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A request that waits for its answer.
pub(super) struct Call {
    request: Request,
    stream: UnixStream,
}

impl Call {
    async fn read(stream: UnixStream) -> Option<Self> {
        let mut reader = tokio::io::BufReader::new(stream.take(LINE_MAX));
        let mut line = String::new();
        reader.read_line(&mut line).await.ok()?;
        let request = serde_json::from_str(&line).ok()?;
        Some(Self { request, stream: reader.into_inner().into_inner() })
    }

    /// What is asked for.
    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// Answers; whoever has gone away meanwhile does without. Dropping it hangs up.
    pub(super) async fn answer(&mut self, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).expect("an answer is plain data");
        line.push(b'\n');
        let _ = timeout(REQUEST_TIME, self.stream.write_all(&line)).await;
    }
}

/// The name of the socket in the directory.
pub(super) const CONTROL: &str = "control.sock";

fn socket(dir: &Path) -> PathBuf {
    dir.join(CONTROL)
}

/// The longest path that the kernel takes for a socket (108 bytes with the final zero).
const SOCKET_PATH_MAX: usize = 107;

/// The longest line, in bytes: a list of 32 nodes has 4 KiB.
const LINE_MAX: u64 = 64 << 10;

/// How long the server side waits for a line: whoever connects speaks at once.
const REQUEST_TIME: Duration = Duration::from_secs(1);

/// How long a command may take: a start waits for a port and a store to come free.
const ANSWER_TIME: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Exit;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_reaches_the_cluster_and_its_answer_comes_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let control = Control::listen(dir.path()).expect("listening");
        assert!(is_alive(dir.path()));
        let path = dir.path().to_owned();
        let request = Request::Kill { node: "n2".parse().expect("legal") };
        let sent = request.clone();
        let asking = std::thread::spawn(move || {
            // Somebody who hangs up and somebody who talks nonsense must not keep the others waiting.
            drop(BlockingStream::connect(socket(&path)));
            let mut nonsense = BlockingStream::connect(socket(&path)).expect("connected");
            nonsense.write_all(b"GET / HTTP/1.1\r\n").expect("written");
            ask(&path, &sent)
        });
        // The probe of `is_alive` above came first.
        let mut call = control.next().await;
        assert_eq!(call.request(), &request);
        let answer = Answer::Done { said: "n2 is dead".into() };
        call.answer(&answer).await;
        assert_eq!(asking.join().expect("no panic").expect("answered"), answer);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_removed_at_the_end() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(std::os::unix::net::UnixListener::bind(socket(dir.path())).expect("bound"));
        assert!(!is_alive(dir.path()));
        let control = Control::listen(dir.path()).expect("the stale socket is no obstacle");
        assert!(is_alive(dir.path()));
        drop(control);
        assert!(!socket(dir.path()).exists());
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_explained() {
        let dir = PathBuf::from(format!("/{}", "d".repeat(120)));
        let failure = Control::listen(&dir).err().expect("too long");
        assert!(failure.hint.contains("QUORATE_DEV_DIR"), "{failure:?}");
    }

    #[test]
    fn without_a_cluster_the_next_step_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let failure = ask(dir.path(), &Request::Status).expect_err("nobody is there");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("no `quorate dev` is running") && failure.hint.contains("quorate dev"));
    }
}

//! The HTTP port for those who watch a node: `/livez`, `/readyz`, `/metrics`. It is separate from the port that serves
//! data, speaks plain HTTP, and is meant for a private address.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::env::{BindTcp, TcpConnection, TcpPort};
use crate::metrics::{Format, Metrics};
use crate::supervise;

/// Says whether the node serves data, and if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The port of one node, from its start to its end: `/livez` says that the process works, from the first step of a start to the last
/// one of a shutdown; `/readyz` says more. It ends at once when it is dropped.
pub struct Port {
    addr: SocketAddr,
    ready: Arc<Mutex<Ready>>,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Port {
    /// Opens the port and answers from now on, as a node that is starting.
    ///
    /// # Errors
    /// When the port is not to be had.
    pub async fn open(bind: &BindTcp, addr: SocketAddr, metrics: Metrics) -> io::Result<Self> {
        let listener = bind(addr).await?;
        let addr = listener.local_addr()?;
        let ready = Arc::new(Mutex::new(never("it is starting")));
        let (closing, is_closing) = watch::channel(false);
        let watched = Watched { metrics, ready: Arc::clone(&ready) };
        let task = supervise::spawn("http", serve(listener, watched, is_closing));
        Ok(Self { addr, ready, closing, task: Mutex::new(Some(task)) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The start is complete: from now on the node itself says whether it serves data.
    pub fn started(&self, ready: Ready) {
        self.set(ready);
    }

    /// The node serves no data any more, whatever it says.
    pub fn stopping(&self) {
        self.set(never("it is shutting down"));
    }

    /// Ends it in good order: what was asked is still answered, for a second at most. Then the port is free.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let task = self.task.lock().expect("nothing panics while it holds this lock").take();
        if let Some(task) = task {
            // A panic in it was reported.
            let _ = task.await;
        }
    }

    fn set(&self, ready: Ready) {
        *self.ready.lock().expect("nothing panics while it holds this lock") = ready;
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.addr)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The connections may outlive this moment, and must not keep the node's parts.
        self.stopping();
        if let Some(task) = self.task.lock().expect("nothing panics while it holds this lock").take() {
            task.abort();
        }
    }
}

fn never(why: &'static str) -> Ready {
    Arc::new(move || Err(why.to_owned()))
}

/// What the port shows.
#[derive(Clone)]
struct Watched {
    metrics: Metrics,
    ready: Arc<Mutex<Ready>>,
}

/// Serves until it is told to close, or dropped.
///
/// The port is bounded in connections and in the time of each: a request's head has 5 s to arrive, a connection lives for a
/// minute. Bodies are never read. A newcomer is never turned away: with as many connections as there may be it takes the place
/// of the oldest, so that whoever asks `/livez` is answered however many others sit there and say nothing.
async fn serve(listener: Box<dyn TcpPort>, watched: Watched, closing: watch::Receiver<bool>) {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n") })
        .with_state(watched);
    let mut tasks = JoinSet::new();
    let mut places: VecDeque<Place> = VecDeque::new();
    let mut refused_before = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = closes(closing.clone()) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                places.retain(|place| !place.task.is_finished());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                refused_before = false;
                while places.len() >= CONNECTIONS_MAX {
                    if let Some(oldest) = places.pop_front() {
                        oldest.task.abort();
                    }
                }
                let served = supervise::watched("http: a connection", connection(stream, app.clone(), closing.clone()));
                places.push_back(Place { task: tasks.spawn(served), since: Instant::now() });
            }
            // The other end has gone again, or there are no descriptors for a moment: what waits in the kernel's queue is taken
            // once there are.
            Err(error) => {
                if !is_lost(&error) {
                    if !std::mem::replace(&mut refused_before, true) {
                        warn!("no connections are accepted on the HTTP port for the moment: {error}");
                    }
                    match give_up_heard(&mut places, Instant::now()) {
                        0 => sleep(ACCEPT_PAUSE).await,
                        // Their descriptors are free when they have ended.
                        given_up => {
                            for _ in 0..given_up {
                                tasks.join_next().await;
                            }
                        }
                    }
                }
            }
        }
    }
    drop(listener);
    let ended = timeout(CLOSE_TIME, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tasks.shutdown().await;
    }
}

async fn closes(mut closing: watch::Receiver<bool>) {
    // Nobody is left who could say so: then it is over as well.
    drop(closing.wait_for(|closing| *closing).await);
}

/// A connection that is served.
struct Place {
    task: AbortHandle,
    since: Instant,
}

/// Without descriptors whoever has had the time for a request gives way to those who wait to be accepted: all of them at once, since as
/// many may wait as the kernel's queue takes. How many they were.
fn give_up_heard(places: &mut VecDeque<Place>, now: Instant) -> usize {
    let heard = places.iter().take_while(|place| now.saturating_duration_since(place.since) >= HEARD_AFTER).count();
    places.drain(..heard).for_each(|place| place.task.abort());
    heard
}

/// Whether only the one connection is concerned that was to be accepted.
fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(stream: Box<dyn TcpConnection>, app: Router, closing: watch::Receiver<bool>) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LEN_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut served = pin!(served);
    let whole = async {
        let ended = tokio::select! {
            biased;
            ended = served.as_mut() => ended,
            () = closes(closing) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        // Whoever is too slow, or has gone, is not told of it.
        drop(ended);
    };
    let _ = timeout(CONNECTION_LIFE, whole).await;
}

async fn readyz(State(watched): State<Watched>) -> impl IntoResponse {
    let ready = Arc::clone(&watched.ready.lock().expect("nothing panics while it holds this lock"));
    match ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(watched): State<Watched>, headers: HeaderMap) -> impl IntoResponse {
    let accepts: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::accepted(&accepts.join(","));
    ([(header::CONTENT_TYPE, format.media_type()), (header::VARY, "Accept")], watched.metrics.encode(format))
}

/// A scraper, a load balancer and a few people need less; who comes when there are as many takes the oldest one's place.
const CONNECTIONS_MAX: usize = 64;

/// A scraper that keeps its connection dials anew once a minute.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

/// How long the head of a request may take, from the connection's beginning or the answer before it.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The longest head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// How long a connection is kept at least while descriptors are short: what is asked has mostly arrived before it is accepted.
const HEARD_AFTER: Duration = Duration::from_millis(20);

/// How long answers that are under way have to be taken when the port closes.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How long nothing is accepted after an accept has failed, unless room was made.
const ACCEPT_PAUSE: Duration = HEARD_AFTER;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::env::bind_system_tcp;

    async fn fetch(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receives");
        answer
    }

    async fn port() -> Port {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Port::open(&bind_system_tcp(), any, Metrics::new()).await.expect("binds")
    }

    #[tokio::test]
    async fn a_node_that_starts_serves_and_stops_says_which_and_lives_throughout() {
        let port = port().await;
        let addr = port.addr();
        let not_ready = |answer: String, why: &str| {
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(&format!("not ready: {why}\n")), "{answer}");
        };
        not_ready(fetch(addr, "/readyz").await, "it is starting");
        port.started(Arc::new(|| Err("there is no layout yet".to_owned())));
        not_ready(fetch(addr, "/readyz").await, "there is no layout yet");
        port.started(Arc::new(|| Ok(())));
        assert!(fetch(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(addr, "/metrics").await.contains("content-type: text/plain; version=0.0.4"));
        assert!(fetch(addr, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
        port.stopping();
        not_ready(fetch(addr, "/readyz").await, "it is shutting down");
        assert!(fetch(addr, "/livez").await.starts_with("HTTP/1.1 200"));
    }

    /// A monitor may keep its connection, and one may never have said anything: neither is waited for. One that is in the midst of its
    /// request has a second.
    #[tokio::test]
    async fn when_it_is_closed_everybody_is_let_go_and_the_port_is_free() {
        let port = port().await;
        let mut idle = TcpStream::connect(port.addr()).await.expect("connects");
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: n1\r\n\r\n").await.expect("sends");
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).await.expect("is answered");
        assert_eq!(&answer, b"HTTP/1.1 200");
        let silent = TcpStream::connect(port.addr()).await.expect("connects");
        let mut slow = TcpStream::connect(port.addr()).await.expect("connects");
        slow.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("sends");
        // This one was accepted after the others.
        assert!(fetch(port.addr(), "/livez").await.starts_with("HTTP/1.1 200"));
        timeout(HEAD_TIME, port.close()).await.expect("it does not wait for heads that do not end");
        drop(std::net::TcpListener::bind(port.addr()).expect("the port is free"));
        for mut stream in [idle, silent, slow] {
            // An end or a reset: nobody holds the other end.
            let mut rest = Vec::new();
            timeout(HEAD_TIME, stream.read_to_end(&mut rest)).await.expect("it was let go").unwrap_or_default();
        }
    }

    /// As many as there may be at a time, and more: each of these held a place for a minute once.
    #[tokio::test]
    async fn those_who_say_nothing_keep_nobody_out() {
        let port = port().await;
        let addr = port.addr();
        let mut silent = Vec::new();
        for i in 0..3 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(addr).await.expect("connects");
            if i % 2 == 0 {
                stream.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("sends");
            }
            silent.push(stream);
        }
        assert!(fetch(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        let mut rest = Vec::new();
        // The oldest has been closed; that nothing more comes is what is read of it.
        let ended = timeout(HEAD_TIME, silent[0].read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "its place was taken");
    }

    #[tokio::test]
    async fn without_descriptors_all_who_had_their_time_give_way_at_once() {
        let mut tasks: JoinSet<()> = JoinSet::new();
        let now = Instant::now();
        let mut places: VecDeque<Place> = (0..10u32)
            .rev()
            .map(|age| Place { task: tasks.spawn(std::future::pending()), since: now - HEARD_AFTER / 4 * age })
            .collect();
        assert_eq!(give_up_heard(&mut places, now), 6, "those of ages 9 to 4");
        for _ in 0..6 {
            assert!(tasks.join_next().await.expect("one of them").expect_err("given up").is_cancelled());
        }
        assert_eq!((places.len(), tasks.len()), (4, 4));
        assert_eq!(give_up_heard(&mut places, now), 0, "the young ones are served");
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_and_a_body_that_does_not_come_are_given_up() {
        let port = port().await;
        let addr = port.addr();
        let mut slow = TcpStream::connect(addr).await.expect("connects");
        slow.write_all(b"GET /livez HTTP/1.1\r\nHost: n1\r\n").await.expect("sends");
        let mut bodiless = TcpStream::connect(addr).await.expect("connects");
        let head = b"POST /livez HTTP/1.1\r\nHost: n1\r\nContent-Length: 1000000\r\n\r\n";
        bodiless.write_all(head).await.expect("sends");
        let mut answers = [String::new(), String::new()];
        let [one, other] = &mut answers;
        let ended =
            timeout(2 * HEAD_TIME, async { tokio::join!(slow.read_to_string(one), bodiless.read_to_string(other)) });
        assert!(ended.await.is_ok(), "neither is kept for longer");
        assert!(answers[1].starts_with("HTTP/1.1 405"), "{}", answers[1]);
    }
}

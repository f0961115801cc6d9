//! The HTTP port for those who watch a node: `/livez`, `/readyz`, `/metrics`. It is separate from the port that serves
//! data, speaks plain HTTP, and is meant for a private address.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::metrics::{Format, Metrics};
use crate::supervise;

/// What the port shows.
#[derive(Clone)]
pub struct Watched {
    /// The numbers.
    pub metrics: Metrics,
    /// Whether the node serves data, and if not, why.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Starts to [`serve`]; it ends with the runtime, as a node's own tasks do.
pub fn start(listener: TcpListener, watched: Watched) {
    supervise::spawn("http", serve(listener, watched));
}

/// Serves until it is dropped.
///
/// The port is bounded in connections and in the time of each: a request's head has 5 s to arrive, a connection lives for a
/// minute. Bodies are never read. A newcomer is never turned away: with as many connections as there may be it takes the place
/// of the oldest, so that whoever asks `/livez` is answered however many others sit there and say nothing.
pub async fn serve(listener: TcpListener, watched: Watched) {
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
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                places.retain(|place| !place.task.is_finished());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                refused_before = false;
                while places.len() >= CONNECTIONS_MAX {
                    if let Some(oldest) = places.pop_front() {
                        oldest.task.abort();
                    }
                }
                let served = supervise::watched("http: a connection", connection(stream, app.clone()));
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

fn connection(stream: TcpStream, app: Router) -> impl Future<Output = ()> {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LEN_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    async {
        // Whoever is too slow, or has gone, is not told of it.
        let _ = timeout(CONNECTION_LIFE, served).await;
    }
}

async fn readyz(State(watched): State<Watched>) -> impl IntoResponse {
    match (watched.ready)() {
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

/// How long nothing is accepted after an accept has failed, unless room was made.
const ACCEPT_PAUSE: Duration = HEARD_AFTER;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn fetch(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receives");
        answer
    }

    #[tokio::test]
    async fn ready_and_not_ready_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has an address");
        let ready = Arc::new(|| Err("there is no layout yet".to_owned()));
        let server = tokio::spawn(serve(listener, Watched { metrics: Metrics::new(), ready }));
        assert!(fetch(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = fetch(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no layout yet"), "{answer}");
        assert!(fetch(addr, "/metrics").await.contains("content-type: text/plain; version=0.0.4"));
        assert!(fetch(addr, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }

    async fn port() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has an address");
        (addr, tokio::spawn(serve(listener, Watched { metrics: Metrics::new(), ready: Arc::new(|| Ok(())) })))
    }

    /// As many as there may be at a time, and more: each of these held a place for a minute once.
    #[tokio::test]
    async fn those_who_say_nothing_keep_nobody_out() {
        let (addr, server) = port().await;
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
        server.abort();
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
        let (addr, server) = port().await;
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
        server.abort();
    }
}

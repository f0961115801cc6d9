//! The HTTP port for those who watch a node: `/livez`, `/readyz`, `/metrics`. It is separate from the port that serves
//! data, speaks plain HTTP, and is meant for a private address.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::metrics::Metrics;

/// What the port shows.
#[derive(Clone)]
pub struct Watched {
    /// The numbers.
    pub metrics: Metrics,
    /// Whether the node serves data, and if not, why.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Serves until it is dropped.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, watched: Watched) -> io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n") })
        .with_state(watched);
    axum::serve(Bounded { listener, connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }, app).await
}

async fn readyz(State(watched): State<Watched>) -> impl IntoResponse {
    match (watched.ready)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], watched.metrics.encode())
}

/// A listener with a bound on connections and on the life of each.
struct Bounded {
    listener: TcpListener,
    connections: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connections = Arc::clone(&self.connections);
        let permit = connections.acquire_owned().await.expect("the semaphore is never closed");
        let (stream, addr) = axum::serve::Listener::accept(&mut self.listener).await;
        let life = Box::pin(tokio::time::sleep(CONNECTION_LIFE));
        (Connection { stream, life, _permit: permit }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its time is over, whether its other end says anything or not.
struct Connection {
    stream: TcpStream,
    life: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        ready!(self.life.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes) {
            return Poll::Ready(written);
        }
        ready!(self.life.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A scraper, a load balancer and a few people need less; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// A scraper that keeps its connection dials anew once a minute; one that says nothing frees its place.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
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
        assert!(fetch(addr, "/metrics").await.contains("# EOF"));
        assert!(fetch(addr, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}

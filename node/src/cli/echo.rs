//! The yardstick of `quorate bench --echo`: a bare QUIC request-reply echo on this machine, with the same library, cipher and
//! certificates, one connection, and a long-lived stream for each caller. What it costs is what no store over QUIC can go below.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use quorate_node::cert::{self, Ca};
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials};
use quorate_transport::{Link, Seams};
use quorate_wire::ALPN_CLIENT;
use quorate_wire::ids::{ClusterId, NodeId};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bench::{self, Latencies, Row};
use super::failure::{Failure, Outcome};

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Echo {
    #[serde(flatten)]
    pub(crate) row: Row,
    /// CPU time of both ends together.
    cpu_us_per_request: Option<f64>,
}

/// Measures it.
pub(crate) async fn measure(callers: u16, size: usize, time: Duration) -> Outcome<Echo> {
    let failure = |error: &dyn std::fmt::Display| {
        Failure::new(format!("the echo could not be measured: {error}"), "leave --echo away")
    };
    let (server, client) = endpoints().await.map_err(|error| failure(&error))?;
    let addr = server.local_addr().map_err(|error| failure(&error))?;
    let serving = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            if let Ok(connection) = incoming.await {
                serve(connection, size).await;
            }
        }
    });
    let connecting = client.connect(addr, tls::ANY_NODE).map_err(|error| failure(&error))?;
    let connection = connecting.await.map_err(|error| failure(&error))?;

    let started = Instant::now();
    let cpu_before = bench::cpu_time();
    let mut running = JoinSet::new();
    for _ in 0..callers {
        running.spawn(call(connection.clone(), size, started + time));
    }
    let mut total = Latencies::new();
    while let Some(part) = running.join_next().await {
        total.add(&part.expect("callers do not panic").map_err(|error| failure(&error))?);
    }
    let took = started.elapsed();
    let cpu = bench::cpu_time().zip(cpu_before).map(|(after, before)| after - before);
    serving.abort();
    let row = total.row(took);
    let count = row.count().max(1) as f64;
    Ok(Echo { row, cpu_us_per_request: cpu.map(|cpu| cpu.as_micros() as f64 / count) })
}

/// Two endpoints with throw-away certificates.
async fn endpoints() -> Result<(quinn::Endpoint, quinn::Endpoint), Box<dyn std::error::Error + Send + Sync>> {
    let seams = Seams::system();
    let now = (seams.wall_clock)();
    let cluster = ClusterId(seams.random.u128());
    let ca = Ca::make(&seams.random, cluster, now, cert::VALIDITY)?;
    let credentials = |issued: cert::Issued| {
        Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())
    };
    let node = credentials(ca.issue_node(&seams.random, NodeId::new("echo")?, now, cert::VALIDITY)?)?;
    let caller = credentials(ca.issue_client(&seams.random, "caller", false, now, cert::VALIDITY)?)?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let accepting = tls::server_config(&seams, &node, &[ALPN_CLIENT])?;
    let server = quic::endpoint(&seams, quic::bind_system(any)?, Some(accepting))?;
    let mut client = quic::endpoint(&seams, quic::bind_system(any)?, None)?;
    // One stream a caller: more than a client of the store ever opens.
    client.set_default_client_config(tls::client_config(&seams, &caller, ALPN_CLIENT, Link::Client)?);
    Ok((server, client))
}

async fn serve(connection: Connection, size: usize) {
    connection.set_max_concurrent_bi_streams(u16::MAX.into());
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        tokio::spawn(async move {
            let mut message = vec![0; size.max(1)];
            while receive.read_exact(&mut message).await.is_ok() && send.write_all(&message).await.is_ok() {}
        });
    }
}

async fn call(connection: Connection, size: usize, end: Instant) -> Result<Latencies, String> {
    let (mut send, mut receive): (SendStream, RecvStream) =
        connection.open_bi().await.map_err(|error| error.to_string())?;
    let mut latencies = Latencies::new();
    let message = vec![b'q'; size.max(1)];
    let mut answer = message.clone();
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(latencies);
        }
        send.write_all(&message).await.map_err(|error| error.to_string())?;
        receive.read_exact(&mut answer).await.map_err(|error| error.to_string())?;
        latencies.note(started.elapsed());
    }
}

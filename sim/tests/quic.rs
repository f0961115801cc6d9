//! Real QUIC with real TLS over the simulated network, bit for bit the same for a seed: what every simulation stands on.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig};
use quorate_sim::interpose;
use quorate_sim::socket::{Cable, PacketFaults, SimRuntime};
use quorate_sim::trace::{Counts, Trace, TraceHash};
use quorate_wire::random::Random;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const PORT: u16 = 7000;
const REQUESTS: usize = 50;

/// Fifty requests over one connection, in a simulation of its own.
fn life(seed: u64, faults: PacketFaults) -> (TraceHash, Counts, Vec<u64>) {
    thread::spawn(move || {
        let _guard = interpose::enter(seed);
        let (server_config, client_config) = tls();
        let mut builder = turmoil::Builder::new();
        let mut sim = builder
            .rng_seed(seed)
            .udp_capacity(4096)
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(interpose::EPOCH_SECS))
            .simulation_duration(Duration::from_secs(600))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .build();
        let trace = Trace::new();
        let cables = [1, 2].map(|host| Cable::new(Random::from_seed(seed ^ host), trace.clone()));
        cables.iter().for_each(|cable| cable.set_faults(faults));
        let [server_cable, client_cable] = cables;
        let server_addr = SocketAddr::new(sim.lookup("server"), PORT);
        sim.host("server", move || {
            let (cable, config) = (server_cable.clone(), server_config.clone());
            async move {
                let endpoint = endpoint(&cable, server_addr, Some(config)).await?;
                while let Some(incoming) = endpoint.accept().await {
                    let Ok(connection) = incoming.await else { continue };
                    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                        let request = recv.read_to_end(10_000).await?;
                        send.write_all(&request).await?;
                        send.finish()?;
                    }
                }
                Ok(())
            }
        });
        let client_addr = SocketAddr::new(sim.lookup("client"), PORT);
        let events = trace.clone();
        sim.client("client", async move {
            let endpoint = endpoint(&client_cable, client_addr, None).await?;
            let connection = endpoint.connect_with(client_config, server_addr, "node")?.await?;
            for i in 0..REQUESTS {
                let request = vec![i as u8; 100 * i];
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(&request).await?;
                send.finish()?;
                assert_eq!(recv.read_to_end(10_000).await?, request);
                events.event(turmoil::sim_elapsed().expect("in a host"), "client", format_args!("reply {i}"));
            }
            connection.close(0_u8.into(), b"done");
            endpoint.wait_idle().await;
            Ok(())
        });
        while !sim.step().expect("no host fails") {
            interpose::set_clock(sim.elapsed());
        }
        (trace.hash(), trace.counts(), trace.seconds())
    })
    .join()
    .expect("the life ends well")
}

async fn endpoint(cable: &Cable, addr: SocketAddr, server: Option<ServerConfig>) -> std::io::Result<Endpoint> {
    let socket = cable.bind(addr).await?;
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), server, socket, Arc::new(SimRuntime))
}

/// One certificate, trusted as it stands, for both sides.
fn tls() -> (ServerConfig, ClientConfig) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let params = rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("a legal name");
    let cert = CertificateDer::from(params.self_signed(&key).expect("a certificate").der().to_vec());
    let key = || PrivateKeyDer::try_from(key.serialize_der()).expect("a key in PKCS #8");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).expect("a root");
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![cert.clone()], key())
        .expect("a server");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key())
        .expect("a client");
    let server = QuicServerConfig::try_from(server).expect("TLS 1.3 ciphers");
    let client = QuicClientConfig::try_from(client).expect("TLS 1.3 ciphers");
    (ServerConfig::with_crypto(Arc::new(server)), ClientConfig::new(Arc::new(client)))
}

const BAD: PacketFaults = PacketFaults {
    loss: 30_000,
    duplication: 30_000,
    corruption: 30_000,
    truncation: 30_000,
    reordering: 100_000,
    delay_max_ms: 50,
};

#[test]
fn the_same_seed_gives_the_same_packets_with_and_without_faults() {
    for faults in [PacketFaults::default(), BAD] {
        let one = life(1, faults);
        assert!(one.1.packets as usize > REQUESTS, "{:?}", one.1);
        assert_eq!(one.1.events as usize, REQUESTS);
        assert_eq!(life(1, faults), one, "the second run of the seed");
        assert_ne!(life(2, faults).0, one.0);
        assert_eq!(life(1, faults), one, "after another seed");
    }
}

#[test]
fn runs_beside_each_other_do_not_disturb_each_other() {
    let alone = life(7, BAD);
    let beside: Vec<_> = (5..9).map(|seed| thread::spawn(move || life(seed, BAD))).collect();
    let beside: Vec<_> = beside.into_iter().map(|run| run.join().expect("it ends well")).collect();
    assert_eq!(beside[2], alone);
}

#[test]
fn two_processes_agree() {
    const CHILD: &str = "QUORATE_SIM_QUIC_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let (hash, ..) = life(11, BAD);
        std::io::stderr().write_all(format!("\nhash {hash}\n").as_bytes()).expect("the parent listens");
        return;
    }
    let child = || {
        let me = std::env::current_exe().expect("this test has a file");
        let arguments = ["--exact", "two_processes_agree", "--nocapture"];
        let output = Command::new(me).args(arguments).env(CHILD, "1").output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find_map(|line| line.strip_prefix("hash ").map(str::to_owned)).expect("it tells its hash")
    };
    assert_eq!(child(), child());
}

//! Certificates and endpoints on the loopback interface, for the tests and benches of the transport.

#![allow(dead_code, reason = "each test binary and bench uses a part of it")]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use quorate_transport::quic;
use quorate_transport::tls::{self, Authority, Credentials, Subject};
use quorate_transport::{Link, Seams};
use quorate_wire::ALPN_CLIENT;
use quorate_wire::ids::{ClusterId, NodeId};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};

/// An application protocol beside the clients' one.
pub(crate) const ALPN_OTHER: &[u8] = b"other/1";

/// The authority of a cluster.
pub(crate) struct Ca {
    pub(crate) cluster: ClusterId,
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Ca {
    pub(crate) fn new(cluster: u128) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        let name = Authority::common_name(ClusterId(cluster));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signs");
        Self { cluster: ClusterId(cluster), issuer: Issuer::new(params, key), certificate }
    }

    pub(crate) fn node(&self, node: &str) -> Credentials {
        let node = NodeId::new(node).expect("a legal name");
        self.issue(&Subject::Node { cluster: self.cluster, node }, 0, 3600)
    }

    pub(crate) fn client(&self, name: &str) -> Credentials {
        let subject = Subject::Client { cluster: self.cluster, name: name.into(), admin: false };
        self.issue(&subject, 0, 3600)
    }

    /// Valid from `from` to `until`, in seconds from now, with a day's margin before.
    pub(crate) fn issue(&self, subject: &Subject, from: i64, until: i64) -> Credentials {
        let pems = self.issue_pem(subject, from, until);
        Credentials::from_pem(pems[0].as_bytes(), pems[1].as_bytes(), pems[2].as_bytes()).expect("credentials")
    }

    /// The authority's certificate, the certificate and its key.
    pub(crate) fn issue_pem(&self, subject: &Subject, from: i64, until: i64) -> [String; 3] {
        let mut usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(subject, Subject::Node { .. }) {
            usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        self.issue_for(subject, usages, from, until)
    }

    /// The same for these uses.
    pub(crate) fn issue_for(
        &self,
        subject: &Subject,
        usages: Vec<ExtendedKeyUsagePurpose>,
        from: i64,
        until: i64,
    ) -> [String; 3] {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::new(vec![subject.to_string()]).expect("a DNS name");
        params.extended_key_usages = usages;
        let at = |seconds: i64| now() + Duration::from_secs((seconds + DAY) as u64) - 2 * DAY_LONG;
        params.not_before = at(from).into();
        params.not_after = (at(until) + DAY_LONG).into();
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        [self.certificate.pem(), certificate.pem(), key.serialize_pem()]
    }
}

const DAY: i64 = 86_400;
const DAY_LONG: Duration = Duration::from_secs(86_400);

pub(crate) fn now() -> SystemTime {
    (Seams::system().wall_clock)()
}

/// A node's endpoint on a free port.
pub(crate) fn server(own: &Credentials) -> (quinn::Endpoint, SocketAddr) {
    let seams = Seams::system();
    let config = tls::server_config(&seams, own, &[ALPN_CLIENT, ALPN_OTHER]).expect("a server configuration");
    let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let endpoint = quic::endpoint(&seams, socket, Some(config)).expect("an endpoint");
    let addr = endpoint.local_addr().expect("bound");
    (endpoint, addr)
}

/// A client's endpoint and what it dials with.
pub(crate) fn client(own: &Credentials, link: Link) -> (quinn::Endpoint, quinn::ClientConfig) {
    let seams = Seams::system();
    let socket = quic::bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let endpoint = quic::endpoint(&seams, socket, None).expect("an endpoint");
    let config = tls::client_config(&seams, own, ALPN_CLIENT, link).expect("a client configuration");
    (endpoint, config)
}

/// Both ends of a connection, and the endpoints that must outlive it.
pub(crate) struct Pair {
    pub(crate) client: quinn::Connection,
    pub(crate) server: quinn::Connection,
    pub(crate) endpoints: [quinn::Endpoint; 2],
}

pub(crate) async fn pair(link: Link) -> Pair {
    let ca = Ca::new(1);
    let (listening, addr) = server(&ca.node("n1"));
    let (dialing, config) = client(&ca.client("test"), link);
    let connecting = dialing.connect_with(config, addr, tls::ANY_NODE).expect("dials");
    let accept = async { listening.accept().await.expect("open").await.expect("accepts") };
    let (client, server) = tokio::join!(connecting, accept);
    Pair { client: client.expect("connects"), server, endpoints: [listening, dialing] }
}

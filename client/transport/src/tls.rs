//! Who is who: certificates, what their names mean, and the TLS configurations that check them.
//!
//! One authority a cluster signs everything, with Ed25519 only (signatures of one length keep simulated runs alike). A
//! certificate has exactly one DNS name under `quorate`, and the name says what its holder is:
//!
//! | name | holder | key usages |
//! |---|---|---|
//! | `<node id>.<cluster id>.node.quorate` | a node | server and client |
//! | `<name>.<cluster id>.client.quorate` | a client | client |
//! | `<name>.<cluster id>.admin.quorate` | a client that may change the layout | client |
//!
//! Names of clients follow the rules of node ids; the cluster id is written as 32 hexadecimal digits. Both ends of every
//! connection show a certificate; there are no session tickets and no 0-RTT, so that each connection is checked anew.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::link::Link;
use crate::pem;
use crate::seams::Seams;
use quorate_wire::ids::{ClusterId, NodeId};

/// What a certificate makes its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A node.
    Node {
        /// Of this cluster.
        cluster: ClusterId,
        /// With this name.
        node: NodeId,
    },
    /// A client.
    Client {
        /// Of this cluster.
        cluster: ClusterId,
        /// With this name.
        name: String,
        /// It may change the layout.
        admin: bool,
    },
}

impl Subject {
    /// The cluster that it belongs to.
    pub fn cluster(&self) -> ClusterId {
        match self {
            Self::Node { cluster, .. } | Self::Client { cluster, .. } => *cluster,
        }
    }

    /// Parses a certificate's DNS name.
    ///
    /// # Errors
    /// When the name does not follow the scheme.
    pub fn parse(name: &str) -> Result<Self, TlsError> {
        let bad = || TlsError(format!("the name {name:?} is not <name>.<cluster id>.node|client|admin.quorate"));
        let parts: Vec<&str> = name.split('.').collect();
        let [holder, cluster, kind, "quorate"] = parts[..] else { return Err(bad()) };
        let cluster: ClusterId = cluster.parse().map_err(|_| bad())?;
        // Client names follow the rules of node ids, so that both fit a DNS label and print the same everywhere.
        let node = NodeId::new(holder).map_err(|_| bad())?;
        match kind {
            "node" => Ok(Self::Node { cluster, node }),
            "client" | "admin" => Ok(Self::Client { cluster, name: holder.to_owned(), admin: kind == "admin" }),
            _ => Err(bad()),
        }
    }
}

/// The DNS name of the certificate.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, node } => write!(f, "{node}.{cluster}.node.quorate"),
            Self::Client { cluster, name, admin: false } => write!(f, "{name}.{cluster}.client.quorate"),
            Self::Client { cluster, name, admin: true } => write!(f, "{name}.{cluster}.admin.quorate"),
        }
    }
}

/// A certificate, its key, and the authority that it trusts.
pub struct Credentials {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    subject: Subject,
    not_before: SystemTime,
    not_after: SystemTime,
    authority_not_after: SystemTime,
}

impl Credentials {
    /// Parses and checks PEM texts: that each holds what it should, that they belong together, and that the certificate's
    /// name follows the scheme. Whether it is still valid depends on the time: see [`check_validity`](Self::check_validity).
    ///
    /// # Errors
    /// Which of the three is wrong, and how.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let ca = pem::certificates("CA certificate", ca)?.remove(0);
        let chain = pem::certificates("certificate", cert)?;
        Self::new(ca, chain, pem::private_key("private key", key)?)
    }

    /// The same from DER.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn new(
        ca: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError("there is no certificate".into()))?;
        let authority = Authority::from_der(&ca)?;
        let parsed = x509("certificate", leaf)?;
        if parsed.is_ca() {
            let of = parsed.subject();
            return Err(TlsError(match chain.len() {
                1 => format!(
                    "the certificate file holds the certificate of an authority ({of}), where that of a node or a client is needed (two \
                     files may be swapped)"
                ),
                _ => format!(
                    "the certificate file begins with the certificate of an authority ({of}): put the holder's own first, and that one \
                     behind it or nowhere"
                ),
            }));
        }
        let subject = subject_of(leaf)?;
        check_purpose(&parsed, &subject)?;
        let last = x509("certificate", chain.last().expect("it has a first one"))?;
        let signed = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &authority.public_key)
            .verify(last.tbs_certificate.as_ref(), &last.signature_value.data);
        if signed.is_err() || authority.cluster != subject.cluster() {
            return Err(TlsError(format!(
                "the certificate {subject} was not signed by the CA certificate beside it: the two are of different clusters"
            )));
        }
        let held = match &key {
            PrivateKeyDer::Pkcs8(der) => {
                ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()
            }
            _ => None,
        };
        let held = held.ok_or_else(|| {
            let kind = match &key {
                PrivateKeyDer::Pkcs1(_) => "it is an RSA key",
                PrivateKeyDer::Sec1(_) => "it is an elliptic curve key of another kind",
                _ => "it is of another kind",
            };
            TlsError(format!(
                "the private key is not an Ed25519 key in PKCS #8 ({kind}): `quorate cert` makes keys and certificates that are"
            ))
        })?;
        if ring::signature::KeyPair::public_key(&held).as_ref() != ed25519_key(&parsed)? {
            return Err(TlsError(format!(
                "the private key does not belong to the certificate {subject}: name the key that was made with it (NAME.key beside NAME.pem)"
            )));
        }
        let (not_before, not_after) = validity_of(&parsed);
        let authority_not_after = authority.not_after;
        Ok(Self { ca, chain, key, subject, not_before, not_after, authority_not_after })
    }

    /// What the certificate makes its holder.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The cluster that it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.subject.cluster()
    }

    /// From when on the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Until when the certificate of the authority is valid.
    pub fn authority_not_after(&self) -> SystemTime {
        self.authority_not_after
    }

    /// Whether the certificate is valid at this time.
    ///
    /// # Errors
    /// Since when it is not valid any more, or from when on it will be.
    pub fn check_validity(&self, now: SystemTime) -> Result<(), TlsError> {
        let parsed = x509("certificate", &self.chain[0])?;
        if now > self.not_after {
            let since = parsed.validity().not_after;
            return Err(TlsError(format!("the certificate {} expired at {since}: issue a new one", self.subject)));
        }
        if now < self.not_before {
            let from = parsed.validity().not_before;
            return Err(TlsError(format!(
                "the certificate {} is valid from {from} on: a clock is wrong, here or where it was issued",
                self.subject
            )));
        }
        Ok(())
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            ca: self.ca.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            subject: self.subject.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            authority_not_after: self.authority_not_after,
        }
    }
}

/// Without the key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Whether others of this machine may read a private key: its mode, if it must not be used. The file's group may read
/// it, for keys that root keeps for a service.
#[cfg(unix)]
pub fn key_is_open(path: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?.permissions().mode() & 0o7777;
    (mode & 0o007 != 0).then_some(mode)
}

/// Refuses a private key that others of this machine may read.
///
/// # Errors
/// When they may; the text has the command that mends it.
pub fn check_key_file(path: &std::path::Path) -> Result<(), TlsError> {
    #[cfg(unix)]
    if let Some(mode) = key_is_open(path) {
        return Err(TlsError(format!(
            "the private key {} is readable by every user of this machine (permissions {mode:04o}) and is not used: run `chmod \
             600 {}`, and make a new certificate if somebody else may have read it",
            path.display(),
            path.display()
        )));
    }
    let _ = path;
    Ok(())
}

/// A cluster's certificate authority, as its certificate describes it.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Until when it is valid; nothing that it signed is valid for longer.
    pub not_after: SystemTime,
    /// Its Ed25519 public key.
    pub public_key: Vec<u8>,
}

impl Authority {
    /// The common name that an authority's certificate has.
    pub fn common_name(cluster: ClusterId) -> String {
        format!("{AUTHORITY}{cluster}")
    }

    /// Parses an authority's certificate.
    ///
    /// # Errors
    /// When it is no certificate of an authority of Quorate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        Self::from_der(&pem::certificates("CA certificate", pem)?.remove(0))
    }

    fn from_der(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let parsed = x509("CA certificate", der)?;
        if !parsed.is_ca() {
            let is = subject_of(der).map_or_else(|_| parsed.subject().to_string(), |subject| subject.to_string());
            return Err(TlsError(format!(
                "the CA certificate is not that of an authority, it is {is}'s (two files may be swapped)"
            )));
        }
        let mut names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let cluster = names.next().and_then(|name| name.strip_prefix(AUTHORITY)?.parse().ok());
        let cluster = cluster.ok_or_else(|| {
            TlsError(format!("the CA certificate is not one of Quorate's: it is named {}", parsed.subject()))
        })?;
        Ok(Self { cluster, not_after: validity_of(&parsed).1, public_key: ed25519_key(&parsed)?.to_vec() })
    }
}

/// What a certificate says by itself, genuine or not: for people who look at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Whose it is; nobody's if it is an authority's.
    pub subject: Option<Subject>,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Card {
    /// Parses a holder's or an authority's certificate.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let der = pem::certificates("certificate", pem)?.remove(0);
        let parsed = x509("certificate", &der)?;
        let (not_before, not_after) = validity_of(&parsed);
        if parsed.is_ca() {
            let cluster = Authority::from_der(&der)?.cluster;
            return Ok(Self { subject: None, cluster, not_before, not_after });
        }
        let subject = subject_of(&der)?;
        Ok(Self { cluster: subject.cluster(), subject: Some(subject), not_before, not_after })
    }
}

/// How the common name of an authority begins; the cluster id follows.
const AUTHORITY: &str = "quorate authority ";

/// What is wrong with a certificate, a key or a name, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

/// The private key in a PEM file; `what` is how the file is called in an error.
///
/// # Errors
/// When there is none, or it is encrypted.
#[doc(hidden)]
pub fn private_key(what: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    pem::private_key(what, pem)
}

/// That the extended key usages of a certificate (RFC 5280, 4.2.1.12) let its holder do what its name says: nodes listen and dial,
/// clients dial. One without that extension may be used for everything.
fn check_purpose(certificate: &X509Certificate<'_>, subject: &Subject) -> Result<(), TlsError> {
    let usage = certificate
        .extended_key_usage()
        .map_err(|error| TlsError(format!("the extended key usages of {subject} are malformed: {error}")))?;
    let Some(usage) = usage else { return Ok(()) };
    let (who, command, listens) = match subject {
        Subject::Node { node, .. } => ("a node's", format!("quorate cert node {node}"), true),
        Subject::Client { name, .. } => ("a client's", format!("quorate cert client {name}"), false),
    };
    let lacks = match (usage.value.server_auth, usage.value.client_auth) {
        (false, _) if listens => "serverAuth",
        (_, false) => "clientAuth",
        _ => return Ok(()),
    };
    Err(TlsError(format!(
        "the certificate {subject} is {who} by its name and lacks the extended key usage {lacks}: make one with `{command}`"
    )))
}

/// The name to dial a certain node by: the connection comes about only if it is that node.
#[doc(hidden)]
pub fn node_name(node: NodeId, cluster: ClusterId) -> String {
    Subject::Node { cluster, node }.to_string()
}

/// The name to dial an address by when it is not known which node of the cluster listens there.
pub const ANY_NODE: &str = "any-node.quorate";

/// What a node accepts connections with: it asks for a certificate of its cluster, and speaks these application protocols.
/// Whether a protocol goes with the certificate is for the accepting code to check: see [`peer_subject`] and [`alpn`].
///
/// # Errors
/// When the credentials are not a node's, or the crypto provider cannot do what QUIC needs.
#[doc(hidden)]
pub fn server_config(seams: &Seams, own: &Credentials, alpns: &[&[u8]]) -> Result<quinn::ServerConfig, TlsError> {
    if !matches!(own.subject, Subject::Node { .. }) {
        return Err(TlsError(not_a_nodes(&own.subject)));
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(own)?, seams.crypto.clone())
        .build()
        .map_err(|error| TlsError(format!("the CA certificate cannot be used: {error}")))?;
    let verifier = Arc::new(DialerVerifier { chain: verifier, cluster: own.cluster() });
    let mut tls = rustls::ServerConfig::builder_with_details(seams.crypto.clone(), seams.clock())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_client_cert_verifier(verifier).with_single_cert(own.chain.clone(), own.key.clone_key())
        })
        .map_err(unusable)?;
    tls.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| TlsError(error.to_string()))?;
    Ok(seams.server_config(tls))
}

/// What to dial nodes of the cluster with. The server name decides whom: [`node_name`] or [`ANY_NODE`].
///
/// # Errors
/// When the crypto provider cannot do what QUIC needs.
#[doc(hidden)]
pub fn client_config(
    seams: &Seams,
    own: &Credentials,
    alpn: &[u8],
    link: Link,
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = NodeVerifier { roots: roots(own)?, provider: seams.crypto.clone(), cluster: own.cluster() };
    let mut tls = rustls::ClientConfig::builder_with_details(seams.crypto.clone(), seams.clock())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
        })
        .map_err(unusable)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| TlsError(error.to_string()))?;
    Ok(seams.client_config(tls, link))
}

/// Who is at the other end of a connection, by its certificate, which the handshake has verified.
///
/// # Errors
/// When it showed none (the configurations of this module never let that happen).
#[doc(hidden)]
pub fn peer_subject(connection: &quinn::Connection) -> Result<Subject, TlsError> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = identity.ok_or_else(|| TlsError("the other end showed no certificate".into()))?;
    subject_of(chain.first().ok_or_else(|| TlsError("the other end showed no certificate".into()))?)
}

/// The application protocol that a connection speaks; empty if none was agreed on.
#[doc(hidden)]
pub fn alpn(connection: &quinn::Connection) -> Vec<u8> {
    let data = connection.handshake_data().and_then(|any| any.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).unwrap_or_default()
}

/// What a certificate makes its holder. Says nothing of whether the certificate is genuine.
///
/// # Errors
/// When it does not have exactly one name of the scheme.
#[doc(hidden)]
pub fn subject_of(certificate: &CertificateDer<'_>) -> Result<Subject, TlsError> {
    let parsed = x509("certificate", certificate)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| TlsError(format!("the certificate's names are malformed: {error}")))?
        .map_or(&[][..], |extension| &extension.value.general_names);
    let mut ours = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) if name.ends_with(".quorate") => Some(*name),
        _ => None,
    });
    match (ours.next(), ours.next()) {
        (Some(name), None) => Subject::parse(name),
        (None, _) => Err(TlsError("the certificate names no node or client of Quorate".into())),
        (Some(one), Some(two)) => Err(TlsError(format!("the certificate has two names, {one} and {two}"))),
    }
}

/// Verifies a dialed node: its chain, what it is, and, when a node's name was dialed, that it is this node.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    cluster: ClusterId,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
            .map_err(|error| explain_refusal(error, end_entity, self.cluster))?;
        let subject = subject_of(end_entity).map_err(refusal)?;
        let Subject::Node { cluster, node } = subject else {
            return Err(refusal(TlsError(not_a_nodes(&subject))));
        };
        if cluster != self.cluster {
            return Err(refusal(TlsError(format!("{subject} is of another cluster than {}", self.cluster))));
        }
        let dialed = server_name.to_str();
        if dialed != ANY_NODE && dialed != node_name(node, cluster) {
            return Err(refusal(TlsError(format!("{dialed} was expected at this address, {subject} is there"))));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC is TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Verifies whoever dials a node: rustls's own checks, and that the name is one of this cluster.
#[derive(Debug)]
struct DialerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: ClusterId,
}

impl ClientCertVerifier for DialerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| explain_refusal(error, end_entity, self.cluster))?;
        let subject = subject_of(end_entity).map_err(refusal)?;
        if subject.cluster() != self.cluster {
            return Err(refusal(TlsError(format!("{subject} is of another cluster than {}", self.cluster))));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A refusal in this module's words. rustls carries the text to the other end as the reason of the close.
fn refusal(error: TlsError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// What is wrong with a client's certificate at the listening end.
fn not_a_nodes(subject: &Subject) -> String {
    format!("{subject} is a client's certificate and not a node's: make one with `quorate cert node NAME`")
}

/// rustls says `UnknownIssuer` or seconds since the epoch; people want to know which certificate of which cluster it is.
fn explain_refusal(error: rustls::Error, certificate: &CertificateDer<'_>, cluster: ClusterId) -> rustls::Error {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(why) = &error else { return error };
    let (Ok(parsed), Ok(subject)) = (x509("certificate", certificate), subject_of(certificate)) else { return error };
    refusal(TlsError(match why {
        E::Expired | E::ExpiredContext { .. } => {
            format!("the certificate {subject} expired at {}", parsed.validity().not_after)
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            format!("the certificate {subject} is valid from {} on", parsed.validity().not_before)
        }
        // The chain is looked at before the name is: a client's certificate at the listening end fails here.
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => match check_purpose(&parsed, &subject) {
            Err(TlsError(why)) => why,
            Ok(()) => not_a_nodes(&subject),
        },
        _ if subject.cluster() != cluster => {
            format!("the certificate {subject} is of another cluster than {cluster}")
        }
        _ => format!("the certificate {subject} was not signed by the authority of its cluster: {why}"),
    }))
}

fn roots(own: &Credentials) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(own.ca.clone()).map_err(|error| TlsError(format!("the CA certificate cannot be used: {error}")))?;
    Ok(Arc::new(roots))
}

fn unusable(error: rustls::Error) -> TlsError {
    TlsError(format!("the certificate cannot be used: {error}"))
}

fn x509<'a>(what: &str, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError(format!("the {what} is malformed: {error}"))),
    }
}

/// The public key of a certificate, which must be an Ed25519 one (RFC 8410: OID 1.3.101.112).
fn ed25519_key<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a [u8], TlsError> {
    let info = certificate.public_key();
    if info.algorithm.algorithm.to_id_string() != "1.3.101.112" {
        return Err(TlsError(format!("the key of {} is not an Ed25519 one", certificate.subject())));
    }
    Ok(&info.subject_public_key.data)
}

fn validity_of(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64);
    let validity = certificate.validity();
    (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
}

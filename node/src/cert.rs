//! Makes a cluster's certificate authority, and the certificates of its nodes and clients.
//!
//! What a certificate says and how it is checked is in [`quorate_transport::tls`]. Everything is Ed25519. All randomness comes
//! from the given source and all time from the caller, so that a simulated cluster has the same certificates in every run.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use quorate_transport::tls::{Authority, Credentials, Subject, private_key};
use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SerialNumber,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

/// How long an authority is valid by default: it is replaced by hand, on every machine.
pub const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long a certificate is valid by default: long enough to be renewed by hand once a year.
pub const VALIDITY: Duration = Duration::from_secs(365 * 86_400);

/// A certificate authority with its key.
#[derive(Debug)]
pub struct Ca {
    authority: Authority,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A new certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The authority's certificate, for the holder to check others by.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// The private key, to be kept with [`write_private`].
    pub key: String,
}

/// Without the key.
impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes the authority of a new cluster, valid for `validity` from now on.
    ///
    /// # Errors
    /// When the time is beyond what a certificate can say.
    pub fn make(random: &Random, cluster: ClusterId, now: SystemTime, validity: Duration) -> Result<Self, CertError> {
        let key = new_key(random)?;
        let mut params = params(random, &Authority::common_name(cluster), Vec::new(), now, now + validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Self::from_pem(certificate, key.serialize_pem())
    }

    /// Takes up an authority again, to issue further certificates.
    ///
    /// # Errors
    /// When either text is not what it should be, or the two do not belong together.
    pub fn from_pem(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, CertError> {
        let authority = Authority::from_pem(certificate.as_ref()).map_err(|error| CertError(error.to_string()))?;
        let key = key_pair("CA's private key", key.as_ref())?;
        if key.public_key_raw() != authority.public_key {
            return Err(CertError("the CA's key does not belong to its certificate".into()));
        }
        let certificate = quorate_wire::text::of_file(certificate.as_ref().to_vec())
            .map_err(|why| CertError(format!("the CA certificate file holds more than PEM: {why}")))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { authority, certificate, issuer })
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.authority.cluster
    }

    /// Its certificate, as PEM: for everybody.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key, as PEM: whoever has it can become any node.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for a node: it may accept connections and make them.
    ///
    /// # Errors
    /// When the authority has expired.
    pub fn issue_node(
        &self,
        random: &Random,
        node: NodeId,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Issued, CertError> {
        let subject = Subject::Node { cluster: self.cluster(), node };
        self.issue(random, subject, now, validity)
    }

    /// A certificate for a client; an `admin` may change the layout.
    ///
    /// # Errors
    /// When the name does not follow the rules of node ids, or the authority has expired.
    pub fn issue_client(
        &self,
        random: &Random,
        name: &str,
        admin: bool,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Issued, CertError> {
        // Client names follow the rules of node ids, so that both fit a DNS label.
        let name = NodeId::new(name).map_err(|error| CertError(error.to_string().replace("node id", "client name")))?;
        let subject = Subject::Client { cluster: self.cluster(), name: name.to_string(), admin };
        self.issue(random, subject, now, validity)
    }

    fn issue(
        &self,
        random: &Random,
        subject: Subject,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Issued, CertError> {
        self.certify(random, subject, new_key(random)?, now, validity)
    }

    /// A certificate for the holder and the key of an earlier one.
    ///
    /// # Errors
    /// When either of these two is not what it should be, or is another cluster's, or the authority has expired.
    pub fn renew(
        &self,
        random: &Random,
        certificate: &[u8],
        key: &[u8],
        now: SystemTime,
        validity: Duration,
    ) -> Result<Issued, CertError> {
        let earlier = Credentials::from_pem(self.certificate.as_bytes(), certificate, key)
            .map_err(|error| CertError(error.to_string()))?;
        let key = key_pair("private key", key)?;
        self.certify(random, earlier.subject().clone(), key, now, validity)
    }

    fn certify(
        &self,
        random: &Random,
        subject: Subject,
        key: KeyPair,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Issued, CertError> {
        if now >= self.authority.not_after {
            return Err(CertError("the cluster's CA certificate has expired: make a new one".into()));
        }
        let until = (now + validity).min(self.authority.not_after);
        let common_name = match &subject {
            Subject::Node { node, .. } => node.to_string(),
            Subject::Client { name, .. } => name.clone(),
        };
        let mut params = params(random, &common_name, vec![subject.to_string()], now, until)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject {
            Subject::Node { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Subject::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { ca: self.certificate.clone(), certificate, key: key.serialize_pem() })
    }
}

/// Why a certificate cannot be made, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertError(String);

impl From<rcgen::Error> for CertError {
    fn from(error: rcgen::Error) -> Self {
        Self(format!("the certificate cannot be made: {error}"))
    }
}

/// Writes a new file that everybody may read. Never overwrites: a replaced certificate is a cluster that falls apart.
///
/// # Errors
/// When the file is there already or cannot be written; the text names it.
pub fn write_public(path: &Path, text: &str) -> io::Result<()> {
    write_new(path, text, 0o644)
}

/// Writes a new file that only its owner may read. Never overwrites.
///
/// # Errors
/// As [`write_public`].
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    write_new(path, text, 0o600)
}

/// Puts a renewed certificate in the place of the one that is there, at once and durably: a reader sees the old or the new one.
///
/// # Errors
/// When it cannot be written; the text names it.
pub fn replace_public(path: &Path, text: &str) -> io::Result<()> {
    let fail = |error: io::Error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()));
    // A link stays one: what it leads to is replaced.
    let path = &path.canonicalize().map_err(fail)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mode = std::fs::metadata(path).map_err(fail)?.permissions();
    let mut beside = tempfile::Builder::new().prefix(".quorate-cert-").tempfile_in(dir).map_err(fail)?;
    beside.write_all(text.as_bytes()).map_err(fail)?;
    beside.as_file().set_permissions(mode).map_err(fail)?;
    beside.as_file().sync_all().map_err(fail)?;
    beside.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
}

#[cfg_attr(not(unix), allow(unused_variables, reason = "permissions are Unix's"))]
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            io::Error::new(error.kind(), format!("{} exists already and is not overwritten", path.display()))
        }
        kind => io::Error::new(kind, format!("cannot write {}: {error}", path.display())),
    })
}

/// How far before now a certificate begins to be valid, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

fn params(
    random: &Random,
    common_name: &str,
    names: Vec<String>,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, CertError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = until.into();
    // Positive and always of one length (RFC 5280, 4.1.2.2).
    let mut serial: [u8; 16] = random.array();
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// An Ed25519 key in PKCS #8 (RFC 8410, section 7) is this prefix and 32 random bytes.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The Ed25519 key in a PEM file, which an error calls `what`.
fn key_pair(what: &str, pem: &[u8]) -> Result<KeyPair, CertError> {
    let der = private_key(what, pem).map_err(|error| CertError(error.to_string()))?;
    KeyPair::from_der_and_sign_algo(&der, &PKCS_ED25519)
        .map_err(|error| CertError(format!("the {what} is not an Ed25519 key: {error}")))
}

fn new_key(random: &Random) -> Result<KeyPair, CertError> {
    let pkcs8 = [&PKCS8_ED25519[..], &random.array::<32>()].concat();
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn ca(seed: u64) -> Ca {
        Ca::make(&Random::from_seed(seed), ClusterId(u128::from(seed)), now(), CA_VALIDITY).expect("a CA")
    }

    fn credentials(issued: &Issued) -> Credentials {
        Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())
            .expect("usable")
    }

    #[test]
    fn a_reopened_authority_issues_certificates_that_hold() {
        let made = ca(1);
        let again = Ca::from_pem(made.certificate(), made.key()).expect("reopens");
        assert_eq!(again.cluster(), ClusterId(1));
        let random = Random::from_seed(2);
        let node = NodeId::new("n1").expect("legal");
        let issued = credentials(&again.issue_node(&random, node, now(), VALIDITY).expect("issued"));
        assert_eq!(issued.subject(), &Subject::Node { cluster: ClusterId(1), node });
        assert_eq!((issued.not_before(), issued.not_after()), (now() - HOUR, now() + VALIDITY));
        for admin in [false, true] {
            let issued = credentials(&again.issue_client(&random, "ops", admin, now(), VALIDITY).expect("issued"));
            assert_eq!(issued.subject(), &Subject::Client { cluster: ClusterId(1), name: "ops".into(), admin });
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_certificates() {
        assert_eq!((ca(5).certificate(), ca(5).key()), (ca(5).certificate(), ca(5).key()));
        assert_ne!(ca(5).key(), ca(6).key());
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let error = Ca::from_pem(ca(1).certificate(), ca(2).key()).expect_err("mixed").to_string();
        assert!(error.contains("does not belong"), "{error}");
        let issued = ca(1).issue_client(&Random::from_seed(3), "a", false, now(), VALIDITY).expect("issued");
        let error = Ca::from_pem(&issued.certificate, &issued.key).expect_err("no authority").to_string();
        assert!(error.contains("not that of an authority"), "{error}");
        let error = Ca::from_pem(ca(1).certificate(), "nothing").expect_err("no key").to_string();
        assert!(error.contains("the CA's private key file holds no PEM private key: it has no line"), "{error}");
    }

    #[test]
    fn names_and_validity_are_checked() {
        let random = Random::from_seed(1);
        let error = ca(1).issue_client(&random, "Ä b", false, now(), VALIDITY).expect_err("illegal").to_string();
        assert!(error.contains("client name") && error.contains("1 to 31"), "{error}");
        let late = now() + CA_VALIDITY + HOUR;
        let error = ca(1).issue_client(&random, "a", false, late, VALIDITY).expect_err("expired").to_string();
        assert!(error.contains("has expired"), "{error}");
        let near_end = now() + CA_VALIDITY - HOUR;
        let issued = ca(1).issue_client(&random, "a", false, near_end, VALIDITY).expect("issued");
        assert_eq!(credentials(&issued).not_after(), now() + CA_VALIDITY, "not longer than its authority");
    }

    #[test]
    fn files_are_never_overwritten_and_keys_are_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("n1.key");
        write_private(&path, "secret").expect("written");
        let error = write_private(&path, "other").expect_err("there already");
        assert!(error.to_string().contains("n1.key exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "secret");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
    }
}

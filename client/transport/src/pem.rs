//! The files that certificates and keys come in: PEM texts (RFC 7468), and a name for what else may be in them.

use quorate_wire::text;
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::TlsError;

/// The certificates of a file, one at least; `what` says which file it is.
pub(crate) fn certificates(what: &str, file: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text::without_mark(file)).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(TlsError::new(format!("the {what} file holds no PEM certificate: {}", found(file)))),
        Err(error) => Err(TlsError::new(format!("the {what} file is damaged: {error}; copy it once more"))),
    }
}

/// The private key of a file; `what` says which file it is.
pub(crate) fn private_key(what: &str, file: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    // Before it is decoded: what an encrypted key begins with is no base64.
    if let Some(label) = encrypted(file) {
        let kind = if label.starts_with("ENCRYPTED") {
            ""
        } else {
            ". Only Ed25519 keys are used, as `quorate cert` makes them"
        };
        return Err(TlsError::new(format!(
            "the {what} file holds an encrypted key ({label}), and there is nobody to type its password: `openssl pkey -in OLD -out NEW` \
             asks for it and writes the key without it; run `chmod 600 NEW` then{kind}"
        )));
    }
    PrivateKeyDer::from_pem_slice(text::without_mark(file)).map_err(|error| match error {
        Error::NoItemsFound => TlsError::new(format!("the {what} file holds no PEM private key: {}", found(file))),
        error => TlsError::new(format!("the {what} file is damaged: {error}; copy it once more")),
    })
}

/// The label of an encrypted private key: of PKCS #8, or of the older form that says so in a header (RFC 1421).
fn encrypted(file: &[u8]) -> Option<String> {
    let mut labels = labels(file);
    if let Some(label) = labels.iter().find(|label| *label == "ENCRYPTED PRIVATE KEY") {
        return Some(label.clone());
    }
    let header = |line: &[u8]| line.starts_with(b"Proc-Type:") && line.windows(9).any(|word| word == b"ENCRYPTED");
    let old = file.split(|byte| *byte == b'\n').any(header);
    labels.retain(|label| label.ends_with("PRIVATE KEY"));
    labels.into_iter().next().filter(|_| old)
}

/// What is in a file that does not hold what it should, and what to do about it.
fn found(file: &[u8]) -> String {
    if let Some(why) = text::other_encoding(file) {
        return why;
    }
    if file.trim_ascii().is_empty() {
        return "it is empty".to_owned();
    }
    let labels = labels(file);
    let has = |end: &str| labels.iter().any(|label| label.ends_with(end));
    if has("PRIVATE KEY") {
        return "it holds a private key; two files may be swapped".to_owned();
    }
    if has("CERTIFICATE REQUEST") {
        return "it holds a request for a certificate, and not the certificate; `quorate cert` makes both without one"
            .to_owned();
    }
    if has("TRUSTED CERTIFICATE") {
        return "it holds a certificate in OpenSSL's own form: `openssl x509 -in OLD -out NEW` writes it as one"
            .to_owned();
    }
    if has("CERTIFICATE") {
        return "it holds a certificate; two files may be swapped".to_owned();
    }
    if has("PUBLIC KEY") {
        return "it holds a public key only".to_owned();
    }
    match labels.first() {
        Some(label) => format!("it holds {label}; `quorate cert` makes what is needed"),
        None => binary(file).unwrap_or_else(|| "it has no line that begins with -----BEGIN".to_owned()),
    }
}

/// What is in a file that begins as DER does.
fn binary(file: &[u8]) -> Option<String> {
    let [0x30, length, ..] = file else { return None };
    let head = if length & 0x80 == 0 { 2 } else { 2 + usize::from(length & 0x7f) };
    let way =
        |what: &str, command: &str| Some(format!("it holds {what} in binary (DER): `{command}` writes it as PEM"));
    match file.get(head..)? {
        _ if X509Certificate::from_der(file).is_ok() => {
            way("a certificate", "openssl x509 -inform DER -in OLD -out NEW")
        }
        // PrivateKeyInfo has version 0 or 1, PFX has 3; the encrypted one begins with the algorithm (RFC 5958, RFC 7292).
        [2, 1, 3, ..] => Some(
            "it holds a PKCS #12 archive: `openssl pkcs12 -in OLD -nodes -out NEW` writes key and certificates as PEM"
                .to_owned(),
        ),
        [2, 1, 0 | 1, ..] => way("a private key", "openssl pkey -inform DER -in OLD -out NEW"),
        [0x30, _, 6, ..] => way("an encrypted private key", "openssl pkey -inform DER -in OLD -out NEW"),
        _ => Some(
            "it holds binary data (DER), and PEM is needed: `openssl asn1parse -inform DER -in OLD` shows what it is"
                .to_owned(),
        ),
    }
}

/// What the sections of a PEM text say that they are.
fn labels(file: &[u8]) -> Vec<String> {
    let lines = file.split(|byte| *byte == b'\n');
    let label = |line: &[u8]| {
        let line = str::from_utf8(text::without_mark(line)).ok()?.trim_ascii();
        Some(line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?.chars().take(LABEL_LEN_MAX).collect())
    };
    lines.filter_map(label).take(LABELS_MAX).collect()
}

/// Of a longer label nobody knows what it means.
const LABEL_LEN_MAX: usize = 40;
/// A chain of more certificates is none that is looked into for a text.
const LABELS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8`
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgory111NzPcQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEGKrLtvVIlqqrQ7/o7PR4K8EQK8h
TdilVL3zWfZiaG0FdrQmaBZsQflWp2pqrbpwuWvvYVRXzMiTVq+jHAMMGXrT6QXb
beFayRDSNRR3ZwHlAq8=
-----END ENCRYPTED PRIVATE KEY-----
";

    fn key(file: &[u8]) -> String {
        private_key("private key", file).expect_err("no key").to_string()
    }

    fn certificate(file: &[u8]) -> String {
        certificates("certificate", file).expect_err("no certificate").to_string()
    }

    fn labelled(label: &str) -> Vec<u8> {
        format!("-----BEGIN {label}-----\r\nMAA=\r\n-----END {label}-----\r\n").into()
    }

    #[test]
    fn an_encrypted_key_is_told_with_the_command_that_decrypts_it() {
        let old = labelled("RSA PRIVATE KEY");
        let header =
            "-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,69FDC47F306AB10FBD2A21C889D9DF00\r\n\r\n";
        let old = String::from_utf8(old).expect("text").replacen("-----\r\n", header, 1);
        for (file, kind) in [(ENCRYPTED, "(ENCRYPTED PRIVATE KEY)"), (&old, "(RSA PRIVATE KEY)")] {
            let why = key(file.as_bytes());
            assert!(why.contains("an encrypted key") && why.contains(kind), "{why}");
            assert!(why.contains("`openssl pkey -in OLD -out NEW`") && why.contains("chmod 600"), "{why}");
            assert_eq!(why.contains("Only Ed25519"), kind.contains("RSA"), "{why}");
        }
        // Certificates may stand before it.
        let both = [labelled("CERTIFICATE"), ENCRYPTED.into()].concat();
        assert!(key(&both).contains("an encrypted key"));
    }

    #[test]
    fn what_is_in_a_file_instead_is_named() {
        let der = PrivateKeyDer::from_pem_slice(ENCRYPTED.replace("ENCRYPTED ", "").as_bytes()).expect("decoded");
        let wide: Vec<u8> = "\u{feff}-----BEGIN PRIVATE KEY-----".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let plain = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[7; 32]].concat();
        for (file, wanted) in [
            (labelled("CERTIFICATE"), "it holds a certificate; two files may be swapped"),
            (labelled("PUBLIC KEY"), "it holds a public key only"),
            (labelled("DH PARAMETERS"), "it holds DH PARAMETERS"),
            (b" \n".to_vec(), "it is empty"),
            (b"hello".to_vec(), "no line that begins with -----BEGIN"),
            (wide, "it is text in UTF-16"),
            (plain, "it holds a private key in binary (DER): `openssl pkey -inform DER -in OLD -out NEW`"),
            (der.secret_der().to_vec(), "it holds an encrypted private key in binary (DER): `openssl pkey -inform DER"),
            (b"\x30\x82\x03\xc6\x02\x01\x03\x30\x82".to_vec(), "it holds a PKCS #12 archive: `openssl pkcs12"),
            (b"\x30\x82\x01\xc2\x06\x09\x2a\x86".to_vec(), "it holds binary data (DER)"),
        ] {
            let why = key(&file);
            assert!(
                why.starts_with("the private key file holds no PEM private key: ") && why.contains(wanted),
                "{wanted}: {why}"
            );
        }
        for (file, wanted) in [
            (labelled("PRIVATE KEY"), "it holds a private key; two files may be swapped"),
            (ENCRYPTED.into(), "it holds a private key"),
            (labelled("CERTIFICATE REQUEST"), "it holds a request for a certificate"),
            (labelled("TRUSTED CERTIFICATE"), "`openssl x509 -in OLD -out NEW`"),
        ] {
            let why = certificate(&file);
            assert!(
                why.starts_with("the certificate file holds no PEM certificate: ") && why.contains(wanted),
                "{wanted}: {why}"
            );
        }
        assert!(certificate(b"-----BEGIN CERTIFICATE-----\nMAA=\n").contains("is damaged"));
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let marked = |label: &str| [&b"\xef\xbb\xbf"[..], &labelled(label)].concat();
        assert_eq!(certificates("certificate", &marked("CERTIFICATE")).expect("one").len(), 1);
        private_key("private key", &marked("PRIVATE KEY")).expect("one");
    }
}

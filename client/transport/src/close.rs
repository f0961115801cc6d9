//! Why connections end: the application error codes with which this side closes one, and what the end of one means.

use quinn::{ConnectionError, TransportErrorCode, VarInt};
use rustls::AlertDescription;

/// All is done.
pub const DONE: VarInt = VarInt::from_u32(0);
/// The other end broke the protocol; the text says how.
pub const PROTOCOL: VarInt = VarInt::from_u32(1);
/// Nothing was heard from the other end for too long.
pub const SILENT: VarInt = VarInt::from_u32(2);
/// This side stops.
pub const SHUTDOWN: VarInt = VarInt::from_u32(3);
/// The other end may not connect; the text says why.
pub const REFUSED: VarInt = VarInt::from_u32(4);

/// What a lost connection, or one that did not come about, means for the person who reads it.
pub fn explain_connection_error(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) => match alert(error.code) {
            Some(code) => explain_alert(code, &error.reason, "its certificate is refused here"),
            None => format!("QUIC failed: {error}"),
        },
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(code) => {
                explain_alert(code, &String::from_utf8_lossy(&close.reason), "it refuses this side's certificate")
            }
            None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                "it turns new connections away: too many handshakes, or it is stopping".into()
            }
            None => format!("it aborted the connection: {close}"),
        },
        ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => {
            format!("it closed the connection (code {})", close.error_code)
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("it closed the connection: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::Reset => "it has lost the connection, probably it was started again".into(),
        ConnectionError::TimedOut => "nothing was heard from it until the time-out: it or the network is down".into(),
        ConnectionError::VersionMismatch => "it speaks another version of QUIC".into(),
        ConnectionError::LocallyClosed => {
            "the connection was given up: nothing was heard from it, or this client is ending".into()
        }
        ConnectionError::CidsExhausted => "this side has no connection id left".into(),
    }
}

/// The TLS alert within a QUIC error code (RFC 9001, section 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some(code as u8)
}

fn explain_alert(code: u8, reason: &str, refused: &str) -> String {
    let reason = reason.trim_start_matches("invalid peer certificate: ");
    // As rustls prints an error of a verifier.
    let own = reason.strip_prefix("Other(OtherError(TlsError(\"").and_then(|own| own.strip_suffix("\")))"));
    let reason = own.unwrap_or(reason);
    match AlertDescription::from(code) {
        AlertDescription::NoApplicationProtocol => {
            "it does not speak this protocol: it is of another release, or no Quorate node".into()
        }
        AlertDescription::CertificateRequired => "it asks for a certificate, and this side showed none".into(),
        AlertDescription::CertificateExpired if reason.is_empty() => format!("{refused}: it has expired"),
        AlertDescription::UnknownCA if reason.is_empty() => format!("{refused}: it is of another cluster"),
        other if reason.is_empty() => format!("{refused}: {other:?}"),
        _ => format!("{refused}: {reason}"),
    }
}

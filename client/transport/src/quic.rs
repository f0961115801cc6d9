//! QUIC endpoints over a given UDP socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig};

use crate::close::SHUTDOWN;
use crate::seams::{ConnectionIds, Seams};

/// An endpoint over a socket. With a server configuration (of [`crate::tls::server_config`]) it accepts connections.
///
/// # Errors
/// When the socket cannot tell its address.
pub fn endpoint(seams: &Seams, socket: Arc<dyn AsyncUdpSocket>, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &seams.random.array::<64>());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.rng_seed(Some(seams.random.array()));
    let random = seams.random.fork();
    config.cid_generator(move || Box::new(ConnectionIds(random.clone())));
    Endpoint::new_with_abstract_socket(config, server, socket, seams.runtime.clone())
}

/// Binds a real UDP socket. Must be called within a tokio runtime.
///
/// # Errors
/// When the address is in use, is not this machine's, or needs privileges; the text names it.
pub fn bind_system(addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    use quinn::Runtime as _;
    let socket = std::net::UdpSocket::bind(addr).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there already".to_owned(),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("cannot bind UDP {addr}: {why}"))
    })?;
    quinn::TokioRuntime.wrap_udp_socket(socket)
}

/// Binds some free port of the system for a client: on IPv6, which reaches IPv4 as well, where the kernel has it.
///
/// # Errors
/// When no socket is to be had.
pub fn bind_any() -> io::Result<Arc<dyn AsyncUdpSocket>> {
    bind_system((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind_system((Ipv4Addr::UNSPECIFIED, 0).into()))
}

/// Closes an endpoint and waits until its port is free again: take `socket` (a weak handle of what was given to
/// [`endpoint`]) before. The peers are told, the tasks that still hold connections must have been ended. False when that has
/// not happened within `limit`; the port is then free as soon as it has.
pub async fn close(endpoint: Endpoint, why: &str, socket: Weak<dyn AsyncUdpSocket>, limit: Duration) -> bool {
    endpoint.close(SHUTDOWN, why.as_bytes());
    let released = async move {
        endpoint.wait_idle().await;
        drop(endpoint);
        // Tasks that were aborted, and quinn's own, let go of the socket when they are next scheduled.
        while socket.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(limit, released).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let socket = bind_system("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let addr = socket.local_addr().expect("bound");
        let error = bind_system(addr).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}

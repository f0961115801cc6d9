//! What stands in the way of a port: which process listens there, as far as this user may know.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
}

/// Tries to bind until a predecessor that is just ending has let go of the port; after that the error names who holds it.
pub(crate) async fn patiently<T, F: Future<Output = io::Result<T>>>(
    protocol: Protocol,
    addr: SocketAddr,
    bind: impl Fn() -> F,
) -> io::Result<T> {
    let deadline = Instant::now() + PREDECESSOR_TIME;
    loop {
        match bind().await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => sleep(PAUSE).await,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let who = holder(protocol, addr).unwrap_or_else(|| "another process".to_owned());
                return Err(io::Error::new(error.kind(), format!("{who} listens there already")));
            }
            other => return other,
        }
    }
}

/// The process that holds a port, by its number and name.
fn holder(protocol: Protocol, addr: SocketAddr) -> Option<String> {
    let tables = match protocol {
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let tables: Vec<String> = tables.iter().filter_map(|table| fs::read_to_string(table).ok()).collect();
    let inodes: Vec<&str> = tables.iter().flat_map(|table| sockets(table, protocol, addr.port())).collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let mut named = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        named.any(|link| link.to_str().is_some_and(|link| links.iter().any(|wanted| wanted == link)))
    };
    let pid = pids.filter(|_| !links.is_empty()).find(holds)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim()))
}

/// The sockets of a table of the kernel's that listen on a port.
fn sockets(table: &str, protocol: Protocol, port: u16) -> impl Iterator<Item = &str> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let listens = protocol == Protocol::Udp || state == TCP_LISTENS;
        (local.ends_with(&port) && listens).then(|| fields.nth(5)).flatten()
    })
}

/// As the kernel writes it.
const TCP_LISTENS: &str = "0A";

/// A predecessor that was killed or told to end may hold its port for a moment; the directory's lock is waited for as long.
const PREDECESSOR_TIME: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_holds_a_port_is_named_and_one_that_lets_go_is_waited_for() {
        let held = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let addr = held.local_addr().expect("bound");
        let bind = || std::future::ready(std::net::UdpSocket::bind(addr));
        let error = patiently(Protocol::Udp, addr, bind).await.expect_err("in use");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        let letting_go = async {
            sleep(PAUSE * 4).await;
            drop(held);
        };
        let (bound, ()) = tokio::join!(patiently(Protocol::Udp, addr, bind), letting_go);
        bound.expect("it was let go");

        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = held.local_addr().expect("bound");
        assert!(holder(Protocol::Tcp, addr).is_some_and(|who| who.contains(&std::process::id().to_string())));
    }
}

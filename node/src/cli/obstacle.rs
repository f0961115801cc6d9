//! What stands in the way of a port: which process listens there, as far as this user may know.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use procfs::net::TcpState;
use procfs::process::{self, FDTarget, Process};
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
    let at = |local: SocketAddr| local.port() == addr.port();
    let inodes: Vec<u64> = match protocol {
        Protocol::Udp => [procfs::net::udp(), procfs::net::udp6()]
            .into_iter()
            .flat_map(Result::unwrap_or_default)
            .filter_map(|socket| at(socket.local_address).then_some(socket.inode))
            .collect(),
        Protocol::Tcp => [procfs::net::tcp(), procfs::net::tcp6()]
            .into_iter()
            .flat_map(Result::unwrap_or_default)
            .filter(|socket| socket.state == TcpState::Listen)
            .filter_map(|socket| at(socket.local_address).then_some(socket.inode))
            .collect(),
    };
    let holds = |process: &Process| {
        let Ok(mut descriptors) = process.fd() else { return false };
        descriptors.any(|fd| fd.is_ok_and(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode))))
    };
    let mut processes = process::all_processes().ok()?.flatten();
    let process = processes.find(|process| !inodes.is_empty() && holds(process))?;
    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
    Some(format!("process {} ({name})", process.pid()))
}

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

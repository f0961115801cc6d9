//! Addresses that look right and are no place where one machine can be found.

use std::net::{IpAddr, SocketAddr};

/// That an address is one machine's, so that a port can be opened there. 0.0.0.0 and `::` are all those of a machine, which is fine here.
///
/// # Errors
/// What it stands for instead, and what to give.
pub fn check_listen(addr: SocketAddr) -> Result<(), String> {
    let ip = addr.ip().to_canonical();
    if ip.is_multicast() {
        return Err(format!("{addr} is a multicast address, which many machines can share: give the address of one"));
    }
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => {
            Err(format!("{addr} is the broadcast address, which means every machine: give the address of one"))
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Err(link_local(&addr.to_string())),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

/// That somebody can be reached at an address.
///
/// # Errors
/// As [`check_listen`], and for 0.0.0.0 and `::`.
pub fn check_dial(addr: SocketAddr) -> Result<(), String> {
    if addr.ip().to_canonical().is_unspecified() {
        return Err(format!(
            "{addr} means all addresses of a machine: one can listen there, and nobody can be reached there; give one of them"
        ));
    }
    check_listen(addr)
}

/// That a text is no address with a scope, such as `[fe80::1%eth0]:7400`.
///
/// # Errors
/// Why that is of no use, and what to give.
pub fn check_no_scope(text: &str) -> Result<(), String> {
    if text.starts_with('[') && text.contains('%') { Err(link_local(text)) } else { Ok(()) }
}

/// The number or name of an interface belongs to it, which another machine calls something else, and nodes tell each other addresses.
fn link_local(text: &str) -> String {
    format!(
        "{text} is a link-local address, which needs the name of an interface (a scope, as in %eth0) and is of no use on another \
         machine: give a global or unique local one (fd..), an IPv4 address, or a name"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_one_machine_are_taken() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for good in
            ["10.0.0.1:7400", "127.0.0.1:1", "169.254.1.1:7400", "[::1]:7400", "[fd00::1]:7400", "[2001:db8::1]:1"]
        {
            assert_eq!((check_listen(addr(good)), check_dial(addr(good))), (Ok(()), Ok(())), "{good}");
        }
        for (bad, why) in [
            ("224.0.0.1:7400", "224.0.0.1:7400 is a multicast"),
            ("239.255.255.255:7400", "multicast"),
            ("[ff02::1]:7400", "multicast"),
            ("[::ffff:224.0.0.1]:7400", "multicast"),
            ("255.255.255.255:7400", "broadcast"),
            ("[::ffff:255.255.255.255]:7400", "broadcast"),
            ("[fe80::1]:7400", "link-local"),
            ("[fe80::1%3]:7400", "[fe80::1%3]:7400 is a link-local"),
        ] {
            for check in [check_listen, check_dial] {
                let told = check(addr(bad)).expect_err(bad);
                assert!(told.contains(why) && told.contains("give "), "{bad}: {told}");
            }
        }
        for all in ["0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400"] {
            assert_eq!(check_listen(addr(all)), Ok(()), "{all}");
            assert!(check_dial(addr(all)).expect_err(all).contains("nobody can be reached there"), "{all}");
        }
        assert!(
            check_no_scope("[fe80::1%eth0]:7400").expect_err("a scope").contains("[fe80::1%eth0]:7400 is a link-local")
        );
        assert_eq!(check_no_scope("[fd00::1]:7400"), Ok(()));
    }
}

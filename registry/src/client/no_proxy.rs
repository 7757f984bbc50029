//! [`NoProxy`]: which hosts are reached without the proxy that the environment names, by `NO_PROXY` or `no_proxy` as Go
//! programs read them: docker, podman and the registries' own tools.
//!
//! | entry | means |
//! |---|---|
//! | `*` | every host |
//! | `example.test` | the host and those below it |
//! | `.example.test`, `*.example.test` | those below it alone |
//! | `192.0.2.1`, `2001:db8::1` | the address |
//! | `192.0.2.0/24`, `2001:db8::/32` | the addresses of a network |
//! | any of the names and addresses with `:port` | that port alone |

use std::net::IpAddr;

use reqwest::Url;

/// What `NO_PROXY` lists.
#[derive(Clone, Debug, Default)]
pub(super) struct NoProxy(Vec<Entry>);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
enum Hosts {
    Every,
    /// In lower case, with a leading dot; the host itself too, or only those below it.
    Domain {
        suffix: String,
        itself: bool,
    },
    Network {
        address: IpAddr,
        bits: u32,
    },
}

impl NoProxy {
    /// What the environment of this process says.
    pub(super) fn from_environment() -> NoProxy {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        NoProxy::parse(&set("NO_PROXY").or_else(|| set("no_proxy")).unwrap_or_default())
    }

    fn parse(text: &str) -> NoProxy {
        NoProxy(
            text.split(',').filter_map(|entry| Entry::parse(&entry.trim().to_ascii_lowercase())).collect(),
        )
    }

    /// Whether `url` is reached directly.
    pub(super) fn covers(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let port = url.port_or_known_default();
        self.0.iter().any(|entry| (entry.port.is_none() || entry.port == port) && entry.hosts.has(&host))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Entry> {
        let every = |hosts| Some(Entry { hosts, port: None });
        if text == "*" {
            return every(Hosts::Every);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits = bits.parse().ok().filter(|bits| *bits <= width(&address))?;
            return every(Hosts::Network { address, bits });
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return every(Hosts::Network { address, bits: width(&address) });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Some(Entry { hosts: Hosts::Network { address, bits: width(&address) }, port });
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        match host.strip_prefix('.') {
            Some("") => None,
            None if host.is_empty() => None,
            Some(_) => Some(Entry { hosts: Hosts::Domain { suffix: host.to_owned(), itself: false }, port }),
            None => Some(Entry { hosts: Hosts::Domain { suffix: format!(".{host}"), itself: true }, port }),
        }
    }
}

impl Hosts {
    fn has(&self, host: &str) -> bool {
        match self {
            Hosts::Every => true,
            Hosts::Domain { suffix, itself } => host.ends_with(suffix) || (*itself && host == &suffix[1..]),
            Hosts::Network { address, bits } => host
                .parse()
                .is_ok_and(|host: IpAddr| within(host.to_canonical(), address.to_canonical(), *bits)),
        }
    }
}

/// Bits of an address of this family.
fn width(address: &IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(32 - bits.min(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(128 - bits.min(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_what_they_mean_to_go_programs() {
        for (list, url, covered) in [
            ("", "http://reg.test/", false),
            ("*", "http://reg.test/", true),
            ("*.test", "http://reg.test/", true),
            ("*.test", "http://test/", false),
            (".test", "http://a.reg.test/", true),
            (".reg.test", "http://reg.test/", false),
            ("reg.test", "http://reg.test/", true),
            ("reg.test", "http://a.reg.test/", true),
            ("reg.test", "http://areg.test/", false),
            ("other, REG.Test ,", "http://reg.test/", true),
            ("reg.test:8080", "http://reg.test:8080/", true),
            ("reg.test:8080", "http://reg.test/", false),
            ("reg.test:80", "http://reg.test/", true),
            ("reg.test:443", "https://reg.test/", true),
            ("*.test:8080", "http://reg.test:8080/", true),
            ("192.0.2.0/24", "http://192.0.2.77:5000/", true),
            ("192.0.2.0/24", "http://192.0.3.1/", false),
            ("0.0.0.0/0", "http://198.51.100.1/", true),
            ("0.0.0.0/0", "http://reg.test/", false),
            ("192.0.2.1", "http://192.0.2.1:5000/", true),
            ("192.0.2.1:5000", "http://192.0.2.1:5001/", false),
            ("2001:db8::/32", "http://[2001:db8::7]/", true),
            ("[2001:db8::7]:5000", "http://[2001:db8::7]:5000/", true),
            ("2001:db8::7", "http://[2001:db8::8]/", false),
            ("/24,192.0.2.0/x,192.0.2.0/99,:80,.,reg.test:x", "http://reg.test/", false),
        ] {
            assert_eq!(NoProxy::parse(list).covers(&url.parse().unwrap()), covered, "{list} {url}");
        }
    }
}

//! Looking host names up, as this machine is configured to and nobody else's name servers are asked.
//!
//! A static program cannot use the C library's resolver, whose modules are loaded at run time. `/etc/hosts` and
//! `/etc/resolv.conf` are read here; where there is no resolv.conf, the name server is this machine (resolv.conf(5)).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What names the machine's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// The name servers know none.
    #[error("the name is not known")]
    Unknown,
    /// They could not be asked, or failed.
    #[error("{0}")]
    Failed(String),
}

/// The machine's resolver, made at its first use, which has to be within a runtime.
#[derive(Clone, Debug, Default)]
pub(super) struct SystemResolver(Arc<OnceLock<TokioResolver>>);

impl SystemResolver {
    fn resolver(&self) -> Result<&TokioResolver, LookupError> {
        if let Some(resolver) = self.0.get() {
            return Ok(resolver);
        }
        let read = match std::fs::read(RESOLV_CONF) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(|error| LookupError::Failed(format!("read {RESOLV_CONF}: {error}")))?),
        };
        let made = configuration(read.as_deref()).and_then(|(config, options)| {
            let provider = TokioRuntimeProvider::default();
            TokioResolver::builder_with_config(config, provider).with_options(options).build()
        });
        let made = made.map_err(|error| LookupError::Failed(error.to_string()))?;
        Ok(self.0.get_or_init(|| made))
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.resolver()?.lookup_ip(name.as_str()).await.map_err(|error| {
                if error.is_no_records_found() {
                    LookupError::Unknown
                } else {
                    LookupError::Failed(error.to_string())
                }
            })?;
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn configuration(resolv_conf: Option<&[u8]>) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    let mut text = resolv_conf.unwrap_or_default().to_vec();
    if !text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(b"nameserver")) {
        text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
    }
    let (config, mut options) = parse_resolv_conf(text)?;
    // Both, for the connector to try them against each other (RFC 8305).
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    Ok((config, options))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_the_machines_own() {
        for (text, expected) in [
            (Some("nameserver 192.0.2.1\nnameserver 2001:db8::1\n"), vec!["192.0.2.1", "2001:db8::1"]),
            (Some("search example\n"), vec!["127.0.0.1"]),
            (None, vec!["127.0.0.1"]),
        ] {
            let (config, _) = configuration(text.map(str::as_bytes)).unwrap();
            let servers: Vec<String> =
                config.name_servers().iter().map(|server| server.ip.to_string()).collect();
            assert_eq!(servers, expected, "{text:?}");
        }
    }
}

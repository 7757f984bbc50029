//! From what the network says to what a person can act on: reading the errors of requests that got no answer.
//!
//! reqwest's errors are chains whose innermost link says most and whose types are mostly private. What decides here
//! is the type where it is public (`io::Error`, `rustls::Error`), else the words of the link in between; where those
//! are not recognised, the innermost link is shown as it is.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use reqwest::Url;
use rimg_formats::reference::RegistryHost;
use rustls::CertificateError;

use super::error::{ClientError, sanitise, shown_url};
use super::names::LookupError;
use super::wire::host_of;

/// Why no connection came about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoConnection {
    /// The name servers know no address for the name.
    NameUnknown,
    /// The name servers could not be asked, or failed.
    NameLookup(String),
    /// Nobody listens at the port.
    Refused,
    /// Nothing came back in this time.
    Silent(Duration),
    /// What the system says.
    Other(String),
}

/// Why a server is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Distrust {
    /// Nobody known has signed its certificate.
    UnknownAuthority,
    /// Its certificate is an authority's, and not one for servers.
    AuthorityItself,
    /// Its certificate is for other names: these, if it says any.
    WrongName(Vec<String>),
    /// Its certificate is valid at another time.
    WrongTime,
    /// What TLS says.
    Other(String),
}

/// Where a connection was to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The server, as registries are named.
    pub host: String,
    /// The port tried.
    pub port: u16,
    /// Whether TLS was to be spoken.
    pub tls: bool,
    /// The variable of the environment that names a proxy for it.
    pub proxy_variable: Option<&'static str>,
}

impl Target {
    fn of(url: &Url) -> Target {
        let (host, tls) = (host_of(url), url.scheme() == "https");
        let loopback = is_loopback(&host);
        // The upper-case form of HTTP_PROXY can be set by strangers where we are a CGI program, and is still read.
        let variables = match tls {
            true => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
            false => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        };
        let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let proxy_variable = variables.into_iter().find(set).filter(|_| !loopback);
        Target { host, port: url.port_or_known_default().unwrap_or_default(), tls, proxy_variable }
    }
}

fn is_loopback(host: &str) -> bool {
    host.parse::<RegistryHost>().is_ok_and(|host| host.is_loopback())
}

impl fmt::Display for NoConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoConnection::NameUnknown => {
                formatter.write_str("the name could not be resolved: no address is known for it")
            }
            NoConnection::NameLookup(reason) => {
                write!(formatter, "the name could not be resolved: {reason}")
            }
            NoConnection::Refused => formatter.write_str("nothing listens there (connection refused)"),
            NoConnection::Silent(time) => write!(formatter, "no answer within {} s", time.as_secs()),
            NoConnection::Other(reason) => formatter.write_str(reason),
        }
    }
}

impl NoConnection {
    /// Whether it may go otherwise a moment later. A name that nobody has is mistyped.
    pub(super) fn is_transient(&self) -> bool {
        *self != NoConnection::NameUnknown
    }

    /// What to try.
    pub(super) fn hint(&self, target: &Target) -> Option<String> {
        let proxy = match target.proxy_variable {
            Some(name) => format!("; {name} names a proxy, which may be what is not reached"),
            None => "; where only a proxy leads out, name it in HTTPS_PROXY".to_owned(),
        };
        match self {
            NoConnection::NameUnknown => Some(format!("check the spelling of the name{proxy}")),
            NoConnection::NameLookup(_) => {
                Some(format!("check the network, and the name servers in /etc/resolv.conf{proxy}"))
            }
            NoConnection::Refused if is_loopback(&target.host) => {
                Some("is the registry running? `rimg serve` starts one on port 5000".to_owned())
            }
            NoConnection::Refused if target.proxy_variable.is_some() => {
                Some(format!("check that the registry runs, and on which port{proxy}"))
            }
            NoConnection::Refused => {
                let plain = if target.tls { "; one without TLS wants `--plain-http`" } else { "" };
                let port = target.port;
                Some(format!("port {port} was tried: check that the registry runs, and on which port{plain}"))
            }
            NoConnection::Silent(_) | NoConnection::Other(_) => {
                Some(format!("check the network and its firewalls{proxy}"))
            }
        }
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Distrust::UnknownAuthority => {
                formatter.write_str("its certificate is signed by an authority that is not known here")
            }
            Distrust::AuthorityItself => {
                formatter.write_str("its certificate is an authority's own (CA:TRUE), not one for servers")
            }
            Distrust::WrongName(names) if names.is_empty() => {
                formatter.write_str("its certificate is not for this name")
            }
            Distrust::WrongName(names) => {
                write!(formatter, "its certificate is not for this name, but for {}", names.join(", "))
            }
            Distrust::WrongTime => formatter.write_str("its certificate has expired, or is not valid yet"),
            Distrust::Other(reason) => formatter.write_str(reason),
        }
    }
}

impl Distrust {
    fn of(error: &rustls::Error) -> Distrust {
        /// Most names of a certificate that are shown.
        const NAMES_MAX: usize = 5;
        let other = || Distrust::Other(sanitise(&error.to_string()));
        let rustls::Error::InvalidCertificate(reason) = error else { return other() };
        match reason {
            CertificateError::UnknownIssuer => Distrust::UnknownAuthority,
            CertificateError::NotValidForName => Distrust::WrongName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => {
                Distrust::WrongName(presented.iter().take(NAMES_MAX).map(|name| shown_name(name)).collect())
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Distrust::WrongTime,
            // The verifier's own error, whose type is not at hand.
            CertificateError::Other(inner) if format!("{inner:?}").contains("CaUsedAsEndEntity") => {
                Distrust::AuthorityItself
            }
            _ => other(),
        }
    }

    /// What to do.
    pub(super) fn hint(&self, host: &str) -> Option<String> {
        Some(match self {
            Distrust::UnknownAuthority => format!(
                "put the authority's certificate (PEM) into /etc/docker/certs.d/{host}/ca.crt or \
                 ~/.config/containers/certs.d/{host}/ca.crt"
            ),
            Distrust::AuthorityItself => {
                "give the server a certificate of its own, without CA:TRUE, signed by that authority"
                    .to_owned()
            }
            Distrust::WrongName(_) => "use a name that the certificate is for".to_owned(),
            Distrust::WrongTime => {
                "check this machine's clock, else the certificate has to be renewed".to_owned()
            }
            Distrust::Other(_) => format!(
                "a registry that asks for a client certificate finds it in /etc/docker/certs.d/{host}/ as \
                 client.cert and client.key"
            ),
        })
    }
}

/// A name as rustls words it: `DnsName("r.example")`.
fn shown_name(name: &str) -> String {
    let quoted = name.split_once('"').and_then(|(_, rest)| rest.split_once('"'));
    sanitise(quoted.map_or(name, |(name, _)| name))
}

/// The error behind a request that got no answer.
pub(super) fn network(
    url: &Url,
    what: &str,
    connect_timeout: Duration,
    error: &reqwest::Error,
) -> ClientError {
    let host = host_of(url);
    match tls_error(error) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            return ClientError::TlsExpected { host };
        }
        Some(reason @ (rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))) => {
            return ClientError::Tls { host, reason: Distrust::of(reason) };
        }
        _ => {}
    }
    if error.is_builder() {
        return ClientError::Setup(format!("request for {}: {}", shown_url(url), innermost(error)));
    }
    if error.is_connect() {
        let reason = no_connection(error, connect_timeout);
        return ClientError::NoConnection { target: Box::new(Target::of(url)), reason };
    }
    let reason = match innermost(error) {
        // hyper's words for an answer that is no HTTP, TLS for instance.
        words if words.contains("invalid HTTP version") => {
            return ClientError::HttpExpected { host, tls: url.scheme() == "https" };
        }
        words => words,
    };
    ClientError::Unreachable { host, what: what.to_owned(), reason }
}

fn no_connection(error: &reqwest::Error, connect_timeout: Duration) -> NoConnection {
    if error.is_timeout() {
        return NoConnection::Silent(connect_timeout);
    }
    let mut next = error.source();
    while let Some(link) = next {
        match link.downcast_ref::<LookupError>() {
            Some(LookupError::Unknown) => return NoConnection::NameUnknown,
            Some(LookupError::Failed(reason)) => return NoConnection::NameLookup(sanitise(reason)),
            None => {}
        }
        match link.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => return NoConnection::Refused,
            Some(io::ErrorKind::TimedOut) => return NoConnection::Silent(connect_timeout),
            _ => next = link.source(),
        }
    }
    NoConnection::Other(innermost(error))
}

/// The TLS error within `error`, if there is one.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // `io::Error` hides what it wraps from `source()`, and one may wrap another.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The last cause, which says most; reqwest's own words would repeat the URL.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let Some(mut cause) = error.source() else { return sanitise(&error.to_string()) };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    sanitise(&cause.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn target(host: &str, tls: bool, proxy_variable: Option<&'static str>) -> Target {
        Target { host: host.to_owned(), port: 443, tls, proxy_variable }
    }

    /// `.invalid` is a name that nobody has, and that no name server is asked for (RFC 6761).
    #[test]
    fn a_name_that_nobody_has_is_known_for_one_and_not_tried_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Whatever proxy the machine uses: it would be asked for the name.
        let tls = crate::client::tls::trust_nobody().unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .dns_resolver(super::super::names::SystemResolver::default())
            .build()
            .unwrap();
        let url: Url = "https://registry.invalid/v2/".parse().unwrap();
        let sent = client.get(url.clone()).send();
        let error = runtime.block_on(sent).unwrap_err();
        let error = network(&url, "the registry", Duration::from_secs(1), &error);
        assert!(
            matches!(error, ClientError::NoConnection { reason: NoConnection::NameUnknown, .. }),
            "{error}"
        );
        assert!(!error.is_transient());
        assert_eq!(
            error.to_string(),
            "failed to reach registry.invalid: the name could not be resolved: no address is known for it"
        );
    }

    #[test]
    fn hints_fit_the_place() {
        let refused = |target: &Target| NoConnection::Refused.hint(target).unwrap();
        assert!(refused(&target("localhost:5000", false, None)).contains("rimg serve"));
        assert!(refused(&target("r.example", true, None)).contains("port 443 was tried"));
        assert!(refused(&target("r.example", true, None)).contains("--plain-http"));
        assert!(!refused(&target("r.example", false, None)).contains("--plain-http"));
        assert!(
            refused(&target("r.example", true, Some("HTTPS_PROXY"))).contains("HTTPS_PROXY names a proxy")
        );
        let unknown = NoConnection::NameUnknown.hint(&target("r.example", true, None)).unwrap();
        assert!(unknown.contains("spelling") && unknown.contains("HTTPS_PROXY"), "{unknown}");
    }

    #[test]
    fn certificates_are_explained() {
        let of = |reason| Distrust::of(&rustls::Error::InvalidCertificate(reason));
        assert_eq!(of(CertificateError::UnknownIssuer), Distrust::UnknownAuthority);
        assert_eq!(of(CertificateError::Expired), Distrust::WrongTime);
        assert_eq!(of(CertificateError::NotValidForName), Distrust::WrongName(Vec::new()));
        let hint = Distrust::UnknownAuthority.hint("r.example:5000").unwrap();
        assert!(hint.contains("/etc/docker/certs.d/r.example:5000/ca.crt"), "{hint}");
        assert_eq!(shown_name(r#"DnsName("r.example")"#), "r.example");
        assert_eq!(shown_name("\u{1b}[31mx"), "[31mx");
    }
}

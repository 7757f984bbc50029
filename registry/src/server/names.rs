//! [`Names`]: by which names a server lets itself be called.
//!
//! A browser on the machine of a server that listens on loopback alone can reach it, and so can every page in that
//! browser: the page's author lets the name the page came from resolve to 127.0.0.1 (*DNS rebinding*), and what the
//! page then reads and writes is, for the browser, the page's own site. Neither `Origin` nor `Sec-Fetch-Site` show
//! it, and the address shows nothing either. What the page cannot change is `Host`: it says the name that
//! was resolved. So a server on loopback answers to names that no stranger can make resolve, and to those that its
//! operator gave it.
//!
//! | `Host` | answered by a server on loopback | elsewhere |
//! |---|---|---|
//! | none: no browser leaves it out | yes | yes |
//! | an address, `localhost`, `*.localhost` (RFC 6761: never asked of a server) | yes | yes |
//! | a name that the operator gave | yes | yes |
//! | another | no | only if the operator gave none |
//!
//! A server that listens beyond its machine has names that it cannot know, so there it is the operator's choice.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::HOST;
use axum::http::{StatusCode, request};
use rimg_formats::reference::RegistryHost;

use super::error::{ApiError, Code};

/// The names of a server.
#[derive(Debug)]
pub(super) struct Names {
    /// In lower case, without ports.
    given: Vec<String>,
    /// Whether any name will do.
    any: bool,
}

impl Names {
    /// Of a server that listens on `address`, and whose operator gave it `names`.
    pub(super) fn new(address: SocketAddr, names: &[RegistryHost]) -> Names {
        let given: Vec<String> = names.iter().map(|name| without_port(name.as_str())).collect();
        let any = given.is_empty() && !address.ip().to_canonical().is_loopback();
        Names { given, any }
    }

    /// Refuses a request that calls the server by a name that is not its own.
    pub(super) fn check(&self, request: &request::Parts) -> Result<(), ApiError> {
        let target = request.uri.authority().map(|authority| authority.as_str().as_bytes());
        let hosts = request.headers.get_all(HOST).iter().map(|host| host.as_bytes());
        match hosts.chain(target).find(|host| !self.has(host)) {
            None => Ok(()),
            Some(host) => Err(stranger(host)),
        }
    }

    fn has(&self, host: &[u8]) -> bool {
        // No name that can be looked up is other than ASCII on the wire.
        let Ok(host) = std::str::from_utf8(host) else { return self.any };
        let name = without_port(host);
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        self.any
            || name.is_empty()
            || address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.given.contains(&name)
    }
}

/// `name` of `name[:port]`, as names are compared: in lower case, without the dot of the root.
fn without_port(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim().to_ascii_lowercase();
    name.strip_suffix('.').map(str::to_owned).unwrap_or(name)
}

/// 421: the request was led here by a name that is not this server's (RFC 9110, section 15.5.20).
fn stranger(host: &[u8]) -> ApiError {
    /// Longest name shown; that of a real host has at most 253 bytes.
    const NAME_BYTES_MAX: usize = 255;
    let name = String::from_utf8_lossy(&host[..host.len().min(NAME_BYTES_MAX)]);
    let name = without_port(&name);
    let message = format!(
        "this registry is not known as `{name}`; if it should be, its operator starts it with `--host {name}`"
    );
    let mut refused = ApiError::new(StatusCode::MISDIRECTED_REQUEST, Code::Denied, &message);
    // The operator, whose proxy may be the client, reads it in the log.
    refused.cause = Some(message);
    refused
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(target: &str, hosts: &[&str]) -> request::Parts {
        let request = hosts.iter().fold(Request::get(target), |request, host| request.header(HOST, *host));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_server_on_loopback_answers_to_names_that_no_stranger_can_give_it() {
        let given = ["Registry.Example:8443".parse().unwrap()];
        let names = Names::new("127.0.0.1:5000".parse().unwrap(), &given);
        for host in [
            "",
            "127.0.0.1",
            "127.0.0.1:5000",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:5000",
            "localhost:5000",
            "LocalHost.",
            "app.localhost:1",
            "registry.example",
            "REGISTRY.example.:5000",
        ] {
            assert!(names.check(&parts("/v2/", &[host])).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:5000",
            "localhost.evil.example",
            "notlocalhost",
            "registry.example.evil",
            "127.0.0.1.evil.example:5000",
            "[::1].evil.example",
            "registry.example@evil",
            "x:y",
        ] {
            let refused = names.check(&parts("/v2/", &[host])).unwrap_err();
            assert_eq!(refused.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        }
    }

    #[test]
    fn every_place_where_a_name_can_stand_is_looked_at() {
        let names = Names::new("[::1]:5000".parse().unwrap(), &[]);
        assert!(names.check(&parts("/v2/", &[])).is_ok());
        assert!(names.check(&parts("/v2/", &["localhost", "evil.example"])).is_err());
        assert!(names.check(&parts("http://evil.example/v2/", &["localhost"])).is_err());
        assert!(names.check(&parts("http://localhost/v2/", &["localhost"])).is_ok());
    }

    #[test]
    fn beyond_loopback_the_operator_decides() {
        let open = Names::new("0.0.0.0:5000".parse().unwrap(), &[]);
        assert!(open.check(&parts("/v2/", &["any.example"])).is_ok());
        let named = Names::new("0.0.0.0:5000".parse().unwrap(), &["r.example".parse().unwrap()]);
        assert!(named.check(&parts("/v2/", &["r.example:5000"])).is_ok());
        assert!(named.check(&parts("/v2/", &["any.example"])).is_err());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let names = Names::new("127.0.0.1:5000".parse().unwrap(), &[]);
        let refused = names.check(&parts("/v2/", &["R.Example:443"])).unwrap_err();
        let body = String::from_utf8(refused.body()).unwrap();
        assert!(body.contains("not known as `r.example`") && body.contains("--host r.example"), "{body}");
        assert!(names.check(&parts("/v2/", &["x".repeat(60_000).as_str()])).unwrap_err().body().len() < 2000);
    }
}

//! `rimg serve`: the local store as an OCI registry.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rimg_formats::reference::RegistryHost;
use rimg_registry::server::{DEFAULT_PORT, Event, Server, ServerOptions};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Context, Failure};
use crate::session::Session;
use crate::terminal::{harmless, note};
use crate::units;

/// Flags of `rimg serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Everybody who reaches the address may read and write. Listening beyond this machine therefore \
wants a proxy in front that speaks TLS and asks who is there."
)]
pub(crate) struct ServeArgs {
    /// Where to listen: ADDRESS:PORT, or a port of this machine alone
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Answer to this name too (repeatable). A server that listens on this machine alone answers to addresses and
    /// `localhost` unless told otherwise; behind a proxy that passes the name on, it needs the proxy's name. Once a
    /// name is given, others are refused everywhere
    #[arg(long, value_name = "NAME")]
    host: Vec<RegistryHost>,
    /// A proxy at this address is in front (repeatable): it may hold every connection, where one address may
    /// otherwise hold a quarter. Proxies on this machine need not be named
    #[arg(long, value_name = "ADDRESS")]
    proxy: Vec<IpAddr>,
    /// Say nothing of requests that went well
    #[arg(short, long)]
    quiet: bool,
}

/// Reads `--listen`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
    match (port, text.strip_prefix("localhost:")) {
        (Ok(port), _) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        (_, Some(port)) => address(port),
        _ => text
            .parse()
            .map_err(|_| format!("`{text}` is not an address: expected ADDRESS:PORT, such as 0.0.0.0:5000")),
    }
}

pub(crate) fn run(session: &Session, args: ServeArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let (json, quiet) = (session.json(), args.quiet);
    let observer = Arc::new(move |event: Event| log(&event, json, quiet));
    let options = ServerOptions {
        listen: args.listen,
        names: args.host,
        proxies: args.proxy,
        observer: Some(observer),
        ..ServerOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start threads")?;
    runtime.block_on(async {
        let server = Server::bind(store.clone(), options).await?;
        let address = server.local_addr();
        note(&format!("serving {} on http://{address}", store.root().display()));
        if !address.ip().is_loopback() {
            note("warning: everybody who reaches this address may read and write");
        }
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            note("finishing requests under way");
        };
        server.serve(shutdown).await;
        Ok(())
    })
}

/// One line for each event.
fn log(event: &Event, as_json: bool, quiet: bool) {
    let line = match event {
        Event::Request { peer, method, target, status, elapsed, cause } => {
            if quiet && *status < 400 {
                return;
            }
            if as_json {
                let milliseconds = elapsed.as_secs_f64() * 1e3;
                let value = json!({"event": "request", "peer": peer, "method": method, "target": target, "status": status, "milliseconds": milliseconds, "cause": cause});
                return note(&value.to_string());
            }
            let cause = cause.as_ref().map_or_else(String::new, |cause| format!(" ({})", harmless(cause)));
            format!(
                "{peer} {} {} {status} {}{cause}",
                harmless(method),
                harmless(target),
                units::duration(*elapsed)
            )
        }
        Event::BodyFailed { digest, cause } => {
            format!("error: stopped sending {digest}: {}", harmless(cause))
        }
        Event::AcceptFailed { cause } => format!("error: failed to accept a connection: {}", harmless(cause)),
        Event::ConnectionsRefused { peer } => format!(
            "warning: {} has as many connections as one address may have, and is refused more; if it is a proxy, \
             name it with --proxy",
            peer.ip()
        ),
        Event::UploadsExpired { count, bytes } => {
            format!("removed {count} abandoned uploads, {}", units::size(*bytes))
        }
        Event::SweepFailed { cause } => {
            format!("error: failed to remove abandoned uploads: {}", harmless(cause))
        }
        _ => return,
    };
    match as_json {
        true => note(&json!({"event": "note", "line": line}).to_string()),
        false => note(&line),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        for (text, shown) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("5001", "127.0.0.1:5001"),
            (":5001", "127.0.0.1:5001"),
            ("localhost:5001", "127.0.0.1:5001"),
            ("[::]:80", "[::]:80"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), shown);
        }
        for bad in ["", "host:1", "1.2.3.4", "1.2.3.4:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}

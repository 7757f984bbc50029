//! `rimg serve`: the local store as an OCI registry.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rimg_formats::reference::RegistryHost;
use rimg_registry::server::{DEFAULT_PORT, Event, Server, ServerError, ServerOptions};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Context, Failure};
use crate::local_access::{EVERY, LocalAccess, Users, users};
use crate::server_log::ServerLog;
use crate::session::Session;
use crate::terminal::harmless;
use crate::units;

/// Flags of `rimg serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a loopback address the owner of the store and root may read and write, other local users what \
--allow-read and --allow-write say. On any other address everybody who reaches it may read and write: put a proxy in \
front that ends TLS and authenticates."
)]
pub(crate) struct ServeArgs {
    /// Where to listen: ADDRESS:PORT, or a port of the loopback address
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Answer to this name too (repeatable). A server on a loopback address answers to addresses and
    /// `localhost` alone unless told otherwise; behind a proxy that passes the name on, it needs the proxy's name. Once a
    /// name is given, others are refused everywhere
    #[arg(long, value_name = "NAME")]
    host: Vec<RegistryHost>,
    /// A proxy at this address is in front (repeatable): it may hold every connection, where one address may
    /// otherwise hold a quarter. Proxies on the host need not be named
    #[arg(long, value_name = "ADDRESS")]
    proxy: Vec<IpAddr>,
    /// Let local users read: every one, or USER, by name or UID (repeatable)
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = EVERY, value_parser = users)]
    allow_read: Vec<Users>,
    /// Let local users read and write: every one, or USER, by name or UID (repeatable)
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = EVERY, value_parser = users)]
    allow_write: Vec<Users>,
    /// Do not log requests that went well
    #[arg(short, long)]
    quiet: bool,
}

/// Reads `--listen`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
    match (port, text.strip_prefix("localhost:")) {
        (Ok(port), _) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        (_, Some(port)) => address(port),
        _ => text.parse().map_err(|_| {
            format!("`{text}` is not an address: expected ADDRESS:PORT, such as 127.0.0.1:5000")
        }),
    }
}

pub(crate) fn run(session: &Session, args: ServeArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let (json, quiet) = (session.json(), args.quiet);
    let log = ServerLog::to_stderr().context("failed to start threads")?;
    let told = log.clone();
    let observer = Arc::new(move |event: Event| tell(&told, &event, json, quiet));
    let mut options = ServerOptions {
        listen: args.listen,
        names: args.host,
        proxies: args.proxy,
        observer: Some(observer),
        ..ServerOptions::default()
    };
    if args.listen.ip().to_canonical().is_loopback() {
        let access = LocalAccess::new(store.root(), args.allow_read, args.allow_write)?;
        options.identify_users = access.needs_users();
        options.authorize = Arc::new(move |request| access.decide(request));
    } else if !args.allow_read.is_empty() || !args.allow_write.is_empty() {
        return Err(Failure::usage(format!(
            "--allow-read and --allow-write are for a loopback address: everybody who reaches {} may read and write",
            args.listen
        )));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start threads")?;
    let served: Result<(), Failure> = runtime.block_on(async {
        let server = Server::bind(store.clone(), options).await.map_err(not_started)?;
        let address = server.local_addr();
        log.line(format!("serving {} on http://{address}", store.root().display()));
        if !address.ip().to_canonical().is_loopback() {
            log.line("warning: everybody who reaches this address may read and write".to_owned());
        }
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let ending = log.clone();
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            ending.line("finishing requests under way".to_owned());
        };
        server.serve(shutdown).await;
        Ok(())
    });
    // Jobs that hash or write a large file are left to the end of the process: nothing of them was promised to anybody.
    runtime.shutdown_background();
    log.flush();
    served
}

/// What helps when the server could not start.
fn not_started(error: ServerError) -> Failure {
    let identified = matches!(error, ServerError::UsersUnknown { .. });
    let failure = Failure::from(error);
    match identified {
        true => failure.hint(
            "the kernel module `tcp_diag` is needed; with `--allow-write` every local user may read and write, and \
             nothing has to be looked up",
        ),
        false => failure,
    }
}

/// One line for each event.
fn tell(log: &ServerLog, event: &Event, as_json: bool, quiet: bool) {
    let line = match event {
        Event::Request { peer, method, target, status, elapsed, cause } => {
            if quiet && *status < 400 {
                return;
            }
            if as_json {
                let milliseconds = elapsed.as_secs_f64() * 1e3;
                let value = json!({"event": "request", "peer": peer, "method": method, "target": target, "status": status, "milliseconds": milliseconds, "cause": cause});
                return log.line(value.to_string());
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
        true => log.line(json!({"event": "note", "line": line}).to_string()),
        false => log.line(line),
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

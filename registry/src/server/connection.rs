//! Connections: accepting them, how long they may dawdle, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::State;
use super::event::Event;
use super::farewell::Farewells;
use super::limits::{BUFFER_BYTES_MAX, HEADERS_MAX, Limits};
use super::patience::PatientWriter;
use super::peer::Peer;
use super::places::{Full, Place, Places};
use super::{service, sessions};

/// How long accepting rests after a failure: running out of file descriptors ends only when others close some.
const ACCEPT_REST: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, state: Arc<State>, shutdown: impl Future<Output = ()>) {
    let farewells = Farewells::default();
    let graceful = GracefulShutdown::new();
    let (cut, uncut) = watch::channel(());
    let router = service::router(state.clone());
    let sweeper = tokio::spawn(sessions::sweep_regularly(state.clone()));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &state.connections) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let place = match state.connections.count(permit, peer.ip()) {
                    Ok(place) => place,
                    Err(full) => {
                        if full == (Full::Share { first: true }) {
                            state.notify(|| Event::ConnectionsRefused { peer });
                        }
                        farewells.say(stream);
                        continue;
                    }
                };
                let serving = connection(
                    stream,
                    peer,
                    router.clone(),
                    state.options.limits.clone(),
                    graceful.watcher(),
                );
                tokio::spawn(until_cut(serving, uncut.clone(), place));
            }
            Err(error) => {
                state.notify(|| Event::AcceptFailed { cause: error.to_string() });
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    sweeper.abort();
    let limit = state.options.limits.shutdown;
    // What is not done by then is cut off; uploads notice the broken body and put aside what they have.
    let _ = tokio::time::timeout(limit, graceful.shutdown()).await;
    drop(cut);
    let _ = tokio::time::timeout(limit / 2, state.sessions.finished()).await;
}

/// Waits for a free place, then for a connection.
async fn accept(
    listener: &TcpListener,
    connections: &Places,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.reserve().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// Serves a connection until it ends or, after a shutdown's patience, is cut off.
async fn until_cut(serving: impl Future<Output = ()>, mut uncut: watch::Receiver<()>, _place: Place) {
    tokio::select! {
        () = serving => {}
        // Nothing is ever sent: this ends when the sender is dropped.
        _ = uncut.changed() => {}
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, limits: Limits, watcher: Watcher) {
    // Small answers should not wait for company; blobs fill their packets anyway.
    let _ = stream.set_nodelay(true);
    let peer = Arc::new(Peer::new(peer, stream.local_addr().ok()));
    let io = PatientWriter::new(TokioIo::new(stream), limits.body_idle);
    let service = TowerToHyperService::new(router);
    let respond = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(io, respond);
    // A client that goes away, or that does not speak HTTP, is nobody's failure.
    let _ = watcher.watch(connection).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use rimg_formats::store::Store;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::limits::ADDRESS_SHARE_MIN;
    use super::super::sessions::Sessions;
    use super::super::{Server, ServerOptions};
    use super::*;

    /// Sends a request on a connection of its own; the connection and the beginning of the answer.
    async fn send(address: SocketAddr, request: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer).await.unwrap();
        (stream, String::from_utf8_lossy(&answer[..count]).into_owned())
    }

    /// A server for which this machine is a stranger, with so few places that one address may have eight.
    async fn strict(folder: &std::path::Path, observer: super::super::Observer) -> Server {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = ServerOptions { listen, observer: Some(observer), ..ServerOptions::default() };
        let mut server = Server::bind(Store::open(folder).unwrap(), options).await.unwrap();
        let connections = Places::counting_loopback(ADDRESS_SHARE_MIN + 2);
        Arc::get_mut(&mut server.state).unwrap().connections = connections;
        server
    }

    #[test]
    fn a_stranger_with_its_share_of_connections_is_told_so_and_others_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let refused = Arc::new(Mutex::new(0));
        let seen = refused.clone();
        let observer = Arc::new(move |event| match event {
            Event::ConnectionsRefused { .. } => *seen.lock().unwrap() += 1,
            Event::Request { .. } => {}
            other => panic!("{other:?}"),
        });
        runtime.block_on(async {
            let server = strict(folder.path(), observer).await;
            let (address, state) = (server.local_addr(), server.state.clone());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
            let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let mut mine = Vec::new();
            for _ in 0..ADDRESS_SHARE_MIN {
                let (stream, answer) = send(address, request).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                mine.push(stream);
            }
            for _ in 0..3 {
                let (mut stream, answer) = send(address, request).await;
                assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
                assert!(answer.contains("Retry-After") && answer.contains("from your address"), "{answer}");
                assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "it is closed");
            }
            assert_eq!(*refused.lock().unwrap(), 1, "a flood is one line of a log");
            drop(state.connections.take([192, 0, 2, 1].into()).unwrap());
            mine.pop();
            // The server notices in its own time.
            while !send(address, request).await.1.starts_with("HTTP/1.1 200 ") {}
            drop((mine, stop));
            serving.await.unwrap();
        });
    }

    #[test]
    fn uploads_at_once_are_shared_out_too() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut server = strict(folder.path(), Arc::new(|_| {})).await;
            let sessions = Arc::new(Sessions::new(Places::counting_loopback(ADDRESS_SHARE_MIN + 1)));
            Arc::get_mut(&mut server.state).unwrap().sessions = sessions.clone();
            let address = server.local_addr();
            tokio::spawn(server.serve(std::future::pending()));
            let stranger = [192, 0, 2, 1].into();
            let others: Vec<Place> = (0..ADDRESS_SHARE_MIN).map(|_| sessions.admit(stranger).unwrap()).collect();
            assert!(sessions.admit(stranger).is_err());
            let digest = rimg_formats::digest::Digest::sha256(b"hello");
            let request = format!(
                "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
            );
            let (_, answer) = send(address, &request).await;
            assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
            drop(others);
        });
    }
}

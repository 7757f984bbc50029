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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::State;
use super::event::Event;
use super::limits::{BUFFER_BYTES_MAX, HEADERS_MAX, Limits};
use super::patience::Patience;
use super::{service, sessions};

/// How long accepting rests after a failure: running out of file descriptors ends only when others close some.
const ACCEPT_REST: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, state: Arc<State>, shutdown: impl Future<Output = ()>) {
    let connections = Arc::new(Semaphore::new(state.options.limits.connections));
    let graceful = GracefulShutdown::new();
    let (cut, uncut) = watch::channel(());
    let router = service::router(state.clone());
    let sweeper = tokio::spawn(sessions::sweep_regularly(state.clone()));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let serving = connection(
                    stream,
                    peer,
                    router.clone(),
                    state.options.limits.clone(),
                    graceful.watcher(),
                );
                tokio::spawn(until_cut(serving, uncut.clone(), permit));
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
    let _ = tokio::time::timeout(limit, state.sessions.finished()).await;
}

/// Waits for a free place, then for a connection.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// Serves a connection until it ends or, after a shutdown's patience, is cut off.
async fn until_cut(
    serving: impl Future<Output = ()>,
    mut uncut: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
) {
    tokio::select! {
        () = serving => {}
        // Nothing is ever sent: this ends when the sender is dropped.
        _ = uncut.changed() => {}
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, limits: Limits, watcher: Watcher) {
    // Small answers should not wait for company; blobs fill their packets anyway.
    let _ = stream.set_nodelay(true);
    let io = Patience::new(TokioIo::new(stream), limits.body_idle);
    let service = TowerToHyperService::new(router);
    let respond = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
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

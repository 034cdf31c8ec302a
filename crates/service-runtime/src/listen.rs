//! Takes connections in: so many at once, each with a limit of time for its headers, and none cut off in an answer.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, warn};

/// Connections at once; further ones wait in the backlog of the operating system.
const CONNECTIONS: usize = 1024;
/// Pause after a connection could not be taken in, as when the process has no file descriptor left.
const BREATH: Duration = Duration::from_millis(100);
/// What an answer gets to reach its caller once its handler has ended.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// How the HTTP side ends.
#[derive(Clone)]
pub(crate) struct Ending {
    /// Takes no new request from here on.
    pub(crate) soft: CancellationToken,
    /// Drops what is still under way.
    pub(crate) hard: CancellationToken,
    /// The requests under way.
    pub(crate) requests: TaskTracker,
}

/// Serves until the soft end, then until the requests under way are answered or the hard end has come.
pub(crate) async fn listen(
    listener: std::net::TcpListener,
    router: Router,
    header_timeout: Duration,
    ending: Ending,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = ending.soft.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let (router, soft) = (router.clone(), ending.soft.clone());
                connections.spawn(async move {
                    serve(stream, peer, router, header_timeout, soft).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "connection not taken in");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let answered = async {
        // a connection on which nothing was ever asked would hold the end up
        ending.requests.close();
        ending.requests.wait().await;
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        () = connections.wait() => {}
        () = answered => {}
        () = ending.hard.cancelled() => {}
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, header_timeout: Duration, soft: CancellationToken) {
    // small answers must not wait for the acknowledgement of the one before
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection is gone already");
        return;
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = soft.cancelled() => {
            // an idle connection ends here, another one with its answer
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

//! A wire between two ends on this machine that a test can cut.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Carries bytes while the wire is intact; a cut wire drops what is on it and takes nothing new.
pub(super) async fn carry(
    front: TcpListener,
    behind: std::net::SocketAddr,
    wire: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    loop {
        let mut near = tokio::select! {
            () = stop.cancelled() => return,
            accepted = front.accept() => accepted.unwrap().0,
        };
        let (mut wire, stop) = (wire.clone(), stop.clone());
        if !*wire.borrow() {
            continue;
        }
        tracker.spawn(async move {
            let Ok(mut far) = TcpStream::connect(behind).await else { return };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = wire.wait_for(|intact| !intact) => {}
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            }
        });
    }
}

//! The control socket of a running fleet, served by its `cogo up`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    failure::Failure,
    fleet::{Home, Request, Steering, listen, read_request, reply, socket_file},
};

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 32;
/// Pause after a connection could not be taken in.
const BREATH: Duration = Duration::from_millis(100);

/// Opens the socket of a fleet.
pub(crate) fn open(home: &Home) -> Result<UnixListener, Failure> {
    listen(home).map_err(|error| {
        Failure::failed(format!("Could not open {}", socket_file(home).display()))
            .because(&error)
            .hint("its directory must be on a file system that has sockets")
    })
}

/// Answers until `stop`; what was begun is brought to its end even if whoever asked has left.
pub(crate) async fn serve(listener: UnixListener, steering: Steering, stop: CancellationToken) {
    let (room, tasks) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (steering, stop) = (steering.clone(), stop.clone());
                    tasks.spawn(async move {
                        converse(stream, &steering, &stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "control connection not taken in");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    tasks.close();
    tasks.wait().await;
}

async fn converse(mut stream: UnixStream, steering: &Steering, stop: &CancellationToken) {
    let Some(Some(asked)) = stop.run_until_cancelled(read_request(&mut stream)).await else { return };
    let outcome = match asked {
        Ok(Request::Tree {}) => value(&steering.picture().await),
        Ok(Request::Drain { target, by, because }) => {
            Box::pin(steering.drain(&target, &by, because)).await.and_then(|done| value(&done))
        }
        Ok(Request::Resume { target, by }) => {
            Box::pin(steering.resume(&target, &by)).await.and_then(|done| value(&done))
        }
        Ok(Request::Heed {}) => steering.heed_orders().await.and_then(|()| value(&())),
        Ok(Request::Restart { target, by }) => {
            Box::pin(steering.restart(&target, &by)).await.and_then(|done| value(&done))
        }
        Ok(Request::Scale { process, instances }) => {
            Box::pin(steering.scale(&process, instances)).await.and_then(|done| value(&done))
        }
        Err(failure) => Err(failure),
    };
    reply(stream, outcome).await;
}

fn value(answer: &impl Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(answer).map_err(|error| Failure::failed("Encode the answer").because(&error))
}

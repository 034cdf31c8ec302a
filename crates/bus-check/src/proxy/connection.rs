//! One connection through the proxy, frame by frame in both directions.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    Control, Cut, Direction, Flow, Hints, Trigger,
    frames::{self, BIND, COMMAND_COMPLETE, DATA_ROW, Frame, NOTIFICATION, READY},
    locked,
};

/// The server declines encryption.
const NO_ENCRYPTION: &[u8] = b"N";

/// Carries a connection until one side ends it or it is cut.
pub(super) async fn carry(client: TcpStream, control: Arc<Control>, alive: CancellationToken) {
    // an error is the end of a connection, which is what this is about
    let carried = carry_until_broken(client, &control);
    tokio::select! {
        () = alive.cancelled() => {}
        _ = carried => {}
    }
}

async fn carry_until_broken(mut client: TcpStream, control: &Control) -> io::Result<()> {
    client.set_nodelay(true)?;
    let first = loop {
        let frame = frames::read_first(&mut client).await?;
        if !frame.asks_for_encryption() {
            break frame;
        }
        client.write_all(NO_ENCRYPTION).await?;
    };
    let mut server = TcpStream::connect(control.server).await?;
    server.set_nodelay(true)?;
    server.write_all(&first.bytes).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // what was trapped by the way to the server decides on the way back
    let (trapped, trap) = watch::channel(None);
    tokio::select! {
        ended = upwards(from_client, to_server, control, &trapped) => ended,
        ended = downwards(from_server, to_client, control, trap) => ended,
    }
}

async fn upwards(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &Control,
    trapped: &watch::Sender<Option<Cut>>,
) -> io::Result<()> {
    let mut flow = control.flow.subscribe();
    loop {
        let frame = frames::read(&mut from).await?;
        let is_trigger = |trigger| match trigger {
            Trigger::Statement => frame.kind == BIND,
            Trigger::Commit => frame.is_query("commit"),
        };
        if let Some(cut) = control.springs(is_trigger) {
            if cut == Cut::BeforeRequest {
                control.sprung.notify_one();
                return Ok(());
            }
            trapped.send_replace(Some(cut));
        }
        pass(&mut flow, |flow| flow.to_server).await;
        to.write_all(&frame.bytes).await?;
    }
}

async fn downwards(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &Control,
    trap: watch::Receiver<Option<Cut>>,
) -> io::Result<()> {
    let mut flow = control.flow.subscribe();
    let mut kept_back = None;
    let mut half_was_sent = false;
    loop {
        let frame = frames::read(&mut from).await?;
        pass(&mut flow, |flow| flow.to_client).await;
        let trapped = *trap.borrow();
        let Some(cut) = trapped else {
            forward(&mut to, frame, control, &mut kept_back).await?;
            continue;
        };
        match cut {
            Cut::BeforeRequest | Cut::BeforeReply => {}
            Cut::AfterReply => to.write_all(&frame.bytes).await?,
            Cut::InReply if half_was_sent => {}
            Cut::InReply => {
                half_was_sent = matches!(frame.kind, DATA_ROW | COMMAND_COMPLETE);
                let end = if half_was_sent { frame.bytes.len() / 2 } else { frame.bytes.len() };
                to.write_all(&frame.bytes[..end]).await?;
            }
        }
        // the server says this after its commit
        if frame.kind == READY {
            to.flush().await?;
            control.sprung.notify_one();
            return Ok(());
        }
    }
}

/// Waits as long as this direction does not flow.
async fn pass(flow: &mut watch::Receiver<Flow>, direction: impl Fn(&Flow) -> Direction) {
    loop {
        let now = direction(&flow.borrow_and_update());
        match now {
            Direction::Open => return,
            Direction::Delayed(time) => return tokio::time::sleep(time).await,
            Direction::Stalled => {
                if flow.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn forward(
    to: &mut (impl AsyncWrite + Unpin),
    frame: Frame,
    control: &Control,
    kept_back: &mut Option<Frame>,
) -> io::Result<()> {
    if frame.kind != NOTIFICATION {
        return to.write_all(&frame.bytes).await;
    }
    let hints = *locked(&control.hints);
    match hints {
        Hints::Pass => to.write_all(&frame.bytes).await,
        Hints::Lose => Ok(()),
        Hints::Double => {
            to.write_all(&frame.bytes).await?;
            to.write_all(&frame.bytes).await
        }
        Hints::Reorder => match kept_back.take() {
            Some(earlier) => {
                to.write_all(&frame.bytes).await?;
                to.write_all(&earlier.bytes).await
            }
            None => {
                *kept_back = Some(frame);
                Ok(())
            }
        },
    }
}

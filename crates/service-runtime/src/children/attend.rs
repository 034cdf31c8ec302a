//! One connection of a child, from its introduction to its end.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use cogo_registry_core::{Membership, Standing};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    orders::{Following, Wish},
    parent::{Children, FromChild, TurnedAway},
    protocol::{Again, ToChild, ToParent},
    roster::Attendance,
};

/// How long a child may take to take a frame.
const SENDING: Duration = Duration::from_secs(10);

/// Why a connection ends.
enum Farewell {
    /// The child is not there any more, or not heard of.
    Gone(&'static str),
    /// The child is told why.
    Told(TurnedAway),
    /// It said something that is not part of the protocol.
    Broke(String),
    /// It has left, as it said that it would.
    Released,
}

pub(super) async fn attend(mut socket: WebSocket, children: Children, stranger: OwnedSemaphorePermit) {
    let introduced = timeout(children.0.settings.introduction, introduced(&mut socket, &children)).await;
    drop(stranger);
    let farewell = match introduced {
        Ok(Ok(mut attendance)) => {
            let farewell = exchange(&mut socket, &children, &mut attendance).await;
            children.left(attendance).await;
            farewell
        }
        Ok(Err(farewell)) => farewell,
        Err(_) => Farewell::Broke("no introduction in time".to_owned()),
    };
    match farewell {
        Farewell::Gone(why) => {
            debug!(why, "connection of a child ended");
            close(&mut socket, close_code::AWAY, why).await;
        }
        Farewell::Told(TurnedAway { reason, again }) => {
            info!(reason, ?again, "child turned away");
            sent(&mut socket, &ToChild::Refused { reason, again }).await;
            close(&mut socket, close_code::POLICY, "refused").await;
        }
        Farewell::Released => {
            sent(&mut socket, &ToChild::Released).await;
            close(&mut socket, close_code::NORMAL, "released").await;
        }
        Farewell::Broke(reason) => {
            warn!(error = reason, "a child broke the protocol");
            close(&mut socket, close_code::PROTOCOL, &reason.chars().take(100).collect::<String>()).await;
        }
    }
}

async fn introduced(socket: &mut WebSocket, children: &Children) -> Result<Attendance, Farewell> {
    loop {
        match socket.recv().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Err(Farewell::Gone("left before it was introduced")),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message)) => match read(&message)? {
                ToParent::Hello(hello) => return children.admit(hello).await.map_err(Farewell::Told),
                _ => return Err(Farewell::Broke("the first frame must be hello".to_owned())),
            },
        }
    }
}

async fn exchange(socket: &mut WebSocket, children: &Children, attendance: &mut Attendance) -> Farewell {
    let seat = attendance.seat.clone();
    let carrier = seat.carrier();
    let mut standing = children.0.member.standing();
    let Some(token) = children.token(&seat) else { return moved() };
    let Membership { instance_id, holder, epoch } = seat.membership().clone();
    if !sent(socket, &ToChild::Welcome { instance_id, holder, epoch, token }).await {
        return Farewell::Gone("does not take the welcome");
    }
    let (mut changes, mut following) = (children.0.changes.subscribe(), Following::default());
    changes.mark_changed();
    let mut heard = Instant::now();
    loop {
        let frame = tokio::select! {
            () = attendance.replaced.cancelled() => return replaced(children, attendance),
            () = children.0.stop.cancelled() => return Farewell::Gone("the parent stops"),
            () = has_moved(&mut standing, carrier) => return moved(),
            () = tokio::time::sleep_until(heard + children.0.settings.silence) => {
                return Farewell::Gone("silent for too long");
            }
            // the sender lives as long as the children do
            Ok(()) = changes.changed() => {
                match following.wish(&children.0.view, attendance) {
                    Wish::Nothing => {}
                    Wish::Tell(order) => if !sent(socket, &ToChild::Order { order }).await {
                        return Farewell::Gone("does not take an order");
                    },
                    Wish::Ended { superseded } => return ended(superseded),
                }
                continue;
            }
            Some(body) = attendance.messages.recv() => {
                if !sent(socket, &ToChild::Message { body }).await {
                    return Farewell::Gone("does not take a message");
                }
                continue;
            }
            frame = socket.recv() => frame,
        };
        heard = Instant::now();
        let said = match frame {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Farewell::Gone("left"),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(message)) => match read(&message) {
                Ok(said) => said,
                Err(farewell) => return farewell,
            },
        };
        if let Some(farewell) = answered(said, socket, children, attendance, &following).await {
            return farewell;
        }
    }
}

/// Does what a frame asks for; answers how the connection ends if it does.
async fn answered(
    said: ToParent,
    socket: &mut WebSocket,
    children: &Children,
    attendance: &Attendance,
    following: &Following,
) -> Option<Farewell> {
    let seat = &attendance.seat;
    let vitals = children.0.member.vitals();
    match said {
        ToParent::Hello(_) => return Some(Farewell::Broke("hello came twice".to_owned())),
        ToParent::Heartbeat { sequence, in_flight } => {
            vitals.set_carried_in_flight(&seat.instance(), in_flight);
            if !sent(socket, &ToChild::Heartbeat { sequence, token: children.token(seat) }).await {
                return Some(Farewell::Gone("does not take an answer"));
            }
        }
        ToParent::Obeys { order, in_flight } => {
            vitals.set_carried_in_flight(&seat.instance(), in_flight);
            children.0.roster.note(attendance, order);
            info!(child = seat.instance(), %order, in_flight, "child obeys");
        }
        ToParent::Left => {
            let reason = if following.has_to_leave() { "drained" } else { "stopped" };
            return Some(match children.release(attendance, reason).await {
                Ok(()) => Farewell::Released,
                Err(turned_away) => Farewell::Told(turned_away),
            });
        }
        ToParent::Message { body } => {
            let from = FromChild { child: seat.instance(), membership: seat.membership().clone(), body };
            // a parent that is behind holds up its child; one that has let go of the receiver wants nothing
            let _ = children.0.inbox.send(from).await;
        }
    }
    None
}

/// The registry says that the run has ended.
fn ended(superseded: bool) -> Farewell {
    let turned_away = if superseded {
        TurnedAway { reason: "Another run has taken this place".to_owned(), again: Again::Never }
    } else {
        TurnedAway { reason: "The run has ended in the registry".to_owned(), again: Again::WithKey }
    };
    Farewell::Told(turned_away)
}

/// Another connection has the place: with a token it is the same run, which need not be told.
fn replaced(children: &Children, attendance: &Attendance) -> Farewell {
    let now = children.0.roster.seat(&attendance.seat.instance());
    if now.is_some_and(|seat| seat.membership() == attendance.seat.membership()) {
        return Farewell::Gone("connected anew");
    }
    Farewell::Told(TurnedAway { reason: "Another run has taken this place".to_owned(), again: Again::Never })
}

/// The parent has lost its place in the registry, and with it the child has; both come back as new runs.
fn moved() -> Farewell {
    Farewell::Told(TurnedAway {
        reason: "The parent has lost its place in the registry".to_owned(),
        again: Again::WithKey,
    })
}

async fn has_moved(standing: &mut tokio::sync::watch::Receiver<Standing>, carrier: Uuid) {
    let elsewhere = |now: &Standing| now.membership().is_none_or(|membership| membership.instance_id != carrier);
    if standing.wait_for(elsewhere).await.is_err() {
        // the heartbeat of the process has ended; the stop follows
        std::future::pending::<()>().await;
    }
}

fn read(message: &Message) -> Result<ToParent, Farewell> {
    let Message::Text(text) = message else {
        return Err(Farewell::Broke("frames must be text".to_owned()));
    };
    serde_json::from_str(text).map_err(|error| Farewell::Broke(format!("frame not understood: {error}")))
}

async fn sent(socket: &mut WebSocket, frame: &ToChild) -> bool {
    let Ok(text) = serde_json::to_string(frame) else { return false };
    matches!(timeout(SENDING, socket.send(Message::text(text))).await, Ok(Ok(())))
}

async fn close(socket: &mut WebSocket, code: u16, reason: &str) {
    let frame = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    if !matches!(timeout(SENDING, socket.send(frame)).await, Ok(Ok(()))) {
        debug!("a child left before the farewell");
    }
}

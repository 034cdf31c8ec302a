//! The WebSocket of a child, or the way to it, and what can be wrong with it.

use std::{io, net::IpAddr, time::Duration};

use axum::http::Uri;
use futures_util::{SinkExt, StreamExt, future::BoxFuture};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};
use tracing::debug;

use super::{
    connection::Input,
    protocol::{MAX_FRAME_BYTES, ToParent},
    trust::Trust,
};

/// How long the other side may take to take a frame.
const SENDING: Duration = Duration::from_secs(10);

/// How long a child that has left waits to be let go.
const GOODBYE: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
pub(super) type Opened = Result<Box<Socket>, Box<tungstenite::Error>>;

/// The connection, or the way to it.
pub(super) enum Line {
    None,
    Opening(BoxFuture<'static, Opened>),
    Open(Box<Socket>),
}

/// What a line brings next.
pub(super) enum News {
    Opened(Opened),
    Frame(Option<Result<Message, tungstenite::Error>>),
}

/// Why a child is not connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of trouble it is.
    pub kind: TroubleKind,
    /// In words.
    pub reason: String,
}

/// What somebody has to look after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// Nobody answers there, or not as a parent does.
    Unreachable,
    /// It answers with a certificate that is not trusted: wrong authority, wrong name, or not of this time.
    Untrusted,
    /// The parent turns the child away.
    TurnedAway,
}

impl Trouble {
    pub(super) fn opening(error: &tungstenite::Error) -> Self {
        let inner = match error {
            tungstenite::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        let kind = match inner {
            Some(rustls::Error::InvalidCertificate(_)) => TroubleKind::Untrusted,
            _ => TroubleKind::Unreachable,
        };
        Self { kind, reason: error.to_string() }
    }
}

impl Line {
    /// Sets out to open a connection.
    pub(super) fn open(address: &str, trust: &Trust) -> Self {
        let (address, connector) = (address.to_owned(), trust.connector());
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_FRAME_BYTES)).max_frame_size(Some(MAX_FRAME_BYTES));
        Self::Opening(Box::pin(async move {
            let opened = connect_async_tls_with_config(&address, Some(config), true, connector).await;
            opened.map(|(socket, _)| Box::new(socket)).map_err(Box::new)
        }))
    }

    pub(super) async fn next(&mut self) -> News {
        match self {
            Self::None => std::future::pending().await,
            Self::Opening(opening) => News::Opened(opening.await),
            Self::Open(socket) => News::Frame(socket.next().await),
        }
    }

    /// Sends a frame; an error is what the state machine has to hear of.
    pub(super) async fn send(&mut self, frame: &ToParent) -> Result<(), Input> {
        let text = serde_json::to_string(frame).map_err(|_| Input::Closed)?;
        self.send_message(Message::text(text)).await.map_err(|error| {
            debug!(%error, "the parent does not take a frame");
            Input::Closed
        })
    }

    /// Waits for the parent to let go of a child that has left, but not for long.
    pub(super) async fn released(&mut self) {
        let let_go = async {
            while let News::Frame(Some(Ok(message))) = self.next().await {
                if message.is_close() {
                    return;
                }
            }
        };
        if timeout(GOODBYE, let_go).await.is_err() {
            debug!("left without the parent's goodbye");
        }
    }

    async fn send_message(&mut self, message: Message) -> Result<(), tungstenite::Error> {
        let Self::Open(socket) = self else { return Err(tungstenite::Error::ConnectionClosed) };
        let late = |_| tungstenite::Error::Io(io::Error::from(io::ErrorKind::TimedOut));
        timeout(SENDING, socket.send(message)).await.map_err(late)?
    }
}

/// Whether a key may be sent there.
pub(super) fn is_safe(address: &str) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match uri.scheme_str() {
        Some("wss") => !host.is_empty(),
        Some("ws") => {
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_leave_the_machine_in_clear() {
        for good in
            ["wss://parent.example/children", "ws://127.0.0.1:3013/children", "ws://[::1]:1/", "ws://localhost/"]
        {
            assert!(is_safe(good), "{good}");
        }
        for bad in [
            "ws://parent.example/children",
            "http://127.0.0.1/",
            "127.0.0.1:80",
            "",
            "wss://",
            "ws://localhost.example/",
        ] {
            assert!(!is_safe(bad), "{bad}");
        }
    }
}

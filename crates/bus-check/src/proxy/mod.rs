//! A TCP proxy before Postgres that cuts, stalls and delays connections at exact points of a conversation.

mod connection;
mod frames;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// The statement at which a trap springs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The next prepared statement that is executed.
    Statement,
    /// The next commit of an explicit transaction.
    Commit,
}

/// Where the connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees the statement.
    BeforeRequest,
    /// The server has done and committed it, the client hears nothing.
    BeforeReply,
    /// The server has done and committed it, the client hears half of the answer.
    InReply,
    /// The client has heard everything; the connection is gone for what comes next.
    AfterReply,
}

/// What becomes of notifications on their way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hints {
    /// They arrive as they were sent.
    Pass,
    /// They are lost.
    Lose,
    /// Each arrives twice.
    Double,
    /// Each arrives after the one that was sent after it; the last one is kept back.
    Reorder,
}

/// How traffic flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    to_server: Direction,
    to_client: Direction,
}

/// How one direction flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// At once.
    Open,
    /// Each frame waits this long.
    Delayed(Duration),
    /// Nothing passes, and nobody is told: a half-open connection.
    Stalled,
}

#[derive(Debug)]
struct Control {
    server: SocketAddr,
    trap: Mutex<Option<(Trigger, Cut)>>,
    sprung: Notify,
    hints: Mutex<Hints>,
    flow: watch::Sender<Flow>,
    /// Replaced at each cut of everything.
    connections: Mutex<CancellationToken>,
}

/// A proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    control: Arc<Control>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of this machine for clients of the server.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let open = Flow { to_server: Direction::Open, to_client: Direction::Open };
        let control = Arc::new(Control {
            server,
            trap: Mutex::new(None),
            sprung: Notify::new(),
            hints: Mutex::new(Hints::Pass),
            flow: watch::Sender::new(open),
            connections: Mutex::new(CancellationToken::new()),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&control)));
        Ok(Self { address, control, _accepting: accepting })
    }

    /// The proxy before the server of this address, and the address through it.
    ///
    /// # Errors
    /// When the address names no server, or no port can be had.
    pub async fn before(url: &str) -> anyhow::Result<(Self, String)> {
        let options: sqlx::postgres::PgConnectOptions = url.parse()?;
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let proxy = Self::start(server.parse()?).await?;
        let through = url.replace(&server, &proxy.address.to_string());
        anyhow::ensure!(through != url, "the address does not name its server as {server}");
        Ok((proxy, through))
    }

    /// Cuts the connection on which the trigger is seen next.
    pub fn trap(&self, trigger: Trigger, cut: Cut) {
        *locked(&self.control.trap) = Some((trigger, cut));
    }

    /// Waits until the trap has sprung and the connection is gone.
    pub async fn sprung(&self) {
        self.control.sprung.notified().await;
    }

    /// From now on notifications fare like this.
    pub fn hints(&self, hints: Hints) {
        *locked(&self.control.hints) = hints;
    }

    /// From now on both directions of all connections flow like this.
    pub fn flow(&self, to_server: Direction, to_client: Direction) {
        self.control.flow.send_replace(Flow { to_server, to_client });
    }

    /// Cuts all connections; new ones may come.
    pub fn cut_all(&self) {
        std::mem::take(&mut *locked(&self.control.connections)).cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut_all();
    }
}

impl Control {
    /// Takes the trap if this is its trigger.
    fn springs(&self, is_trigger: impl Fn(Trigger) -> bool) -> Option<Cut> {
        let mut trap = locked(&self.trap);
        let (trigger, cut) = (*trap)?;
        is_trigger(trigger).then(|| {
            *trap = None;
            cut
        })
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, control: Arc<Control>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let alive = locked(&control.connections).clone();
                connections.spawn(connection::carry(client, Arc::clone(&control), alive));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

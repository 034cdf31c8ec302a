//! A line to Postgres that breaks or goes silent when an answer holds a word.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

/// What becomes of a connection on which the word came for the first time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is cut before the client hears the answer.
    Cut,
    /// The client hears nothing more, and the connection stays.
    Silence,
}

/// A listener in front of Postgres; gone with this value, and the connections with it.
pub(crate) struct Line {
    pub(crate) url: String,
    sprung: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

struct Trap {
    word: &'static str,
    fault: Fault,
    sprung: Arc<AtomicUsize>,
}

impl Line {
    /// To the server of this address; `word` is looked for within single pieces of answers, which hold small ones whole.
    pub(crate) async fn to(url: &str, word: &'static str, fault: Fault) -> Self {
        let authority = url.split('/').nth(2).unwrap();
        let server = authority.rsplit('@').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = url.replace(&server, &listener.local_addr().unwrap().to_string());
        let sprung = Arc::new(AtomicUsize::new(0));
        let trap = Arc::new(Trap { word, fault, sprung: Arc::clone(&sprung) });
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, trap) = (server.clone(), Arc::clone(&trap));
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        carry(client, server, &trap).await;
                    }
                });
            }
        });
        Self { url: ours, sprung, _accepting: accepting }
    }

    /// How often the word came.
    pub(crate) fn sprung(&self) -> usize {
        self.sprung.load(Ordering::SeqCst)
    }
}

async fn carry(client: TcpStream, server: TcpStream, trap: &Trap) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = requests(from_client, to_server) => {}
        () = answers(from_server, to_client, trap) => {}
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _either_side_is_gone = tokio::io::copy(&mut from, &mut to).await;
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, trap: &Trap) {
    let mut piece = vec![0; 1 << 20];
    while let Ok(size @ 1..) = from.read(&mut piece).await {
        let holds_word = piece[..size].windows(trap.word.len()).any(|window| window == trap.word.as_bytes());
        if holds_word && trap.sprung.fetch_add(1, Ordering::SeqCst) == 0 {
            match trap.fault {
                Fault::Cut => return,
                Fault::Silence => std::future::pending().await,
            }
        }
        if to.write_all(&piece[..size]).await.is_err() {
            return;
        }
    }
}

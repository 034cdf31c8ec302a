//! The way to the server: a bounded buffer, a thread that packs lines into datagrams, a count of what was dropped.

use std::{
    net::{ToSocketAddrs, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use opentelemetry::KeyValue;

use crate::Error;

use super::line::{Kind, line, tag};

/// Lines that wait for the thread; what comes beyond is dropped.
const BUFFERED: usize = 8_192;
/// Bytes of a datagram that every network carries in one piece.
const DATAGRAM: usize = 1_400;
/// How long a line waits for others to share its datagram.
const LINGER: Duration = Duration::from_millis(100);
/// Time between two tries to find the server by its name.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);

/// A handle on the way to a StatsD server; clones share it. No call of it ever waits.
#[derive(Debug, Clone)]
pub struct Statsd {
    lines: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
    /// Of every line.
    tags: Arc<str>,
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Line(String),
    /// Sends what there is, then says so.
    Flush(SyncSender<()>),
}

impl Statsd {
    /// Begins to send to `host:port` in the name of a service and its instance. The server need not be there.
    ///
    /// # Errors
    /// [`Error::Statsd`] when the address has no port, or the system gives no thread.
    pub fn new(address: &str, service: &str, instance: &str) -> Result<Self, Error> {
        let refused = |reason: String| Error::Statsd { address: address.to_owned(), reason };
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(refused("expected host:port such as 127.0.0.1:8125".to_owned()));
        }
        // a run has a name of its own each time, a slot has not
        let slot = instance.split('#').next().unwrap_or_default();
        let tags = format!("{},{}", tag("service", service), tag("instance", slot));
        let (lines, orders) = mpsc::sync_channel(BUFFERED);
        let dropped = Arc::new(AtomicU64::new(0));
        let post = Post { address: address.to_owned(), socket: None, tried: None, dropped: Arc::clone(&dropped) };
        let thread = std::thread::Builder::new().name("statsd".to_owned());
        thread.spawn(move || post.work(&orders)).map_err(|error| refused(error.to_string()))?;
        Ok(Self { lines, dropped, tags: tags.into() })
    }

    /// Lines that were dropped since the start, at least: the network loses some without a word.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Something took this long.
    pub fn timing(&self, name: &str, took: Duration, labels: &[KeyValue]) {
        let labels: Vec<&KeyValue> = labels.iter().collect();
        self.send(name, took.as_secs_f64() * 1_000.0, Kind::Timing, 1, &labels);
    }

    pub(super) fn send(&self, name: &str, value: f64, kind: Kind, times: u64, labels: &[&KeyValue]) {
        let Some(line) = line(name, value, kind, times, &self.tags, labels) else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(Order::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets what is buffered leave, for at most this long.
    pub(crate) fn flush(&self, within: Duration) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.lines.try_send(Order::Flush(done)).is_ok() {
            // a thread that hangs is left behind
            let _ = wait.recv_timeout(within);
        }
    }
}

/// The thread's side.
struct Post {
    address: String,
    socket: Option<UdpSocket>,
    /// When the server was looked for last.
    tried: Option<Instant>,
    dropped: Arc<AtomicU64>,
}

impl Post {
    /// Packs and sends until the last handle is gone.
    fn work(mut self, orders: &Receiver<Order>) {
        let mut packet = Packet::default();
        loop {
            // a thread with nothing in its hands sleeps until there is something
            let order = match packet.since {
                None => orders.recv().map_err(|_gone| RecvTimeoutError::Disconnected),
                Some(since) => orders.recv_timeout(LINGER.saturating_sub(since.elapsed())),
            };
            match order {
                Ok(Order::Line(line)) => {
                    if !packet.has_room(&line) {
                        self.send(&mut packet);
                    }
                    packet.add(&line);
                }
                Ok(Order::Flush(done)) => {
                    self.send(&mut packet);
                    // whoever waited may have given up
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.send(&mut packet),
                Err(RecvTimeoutError::Disconnected) => return self.send(&mut packet),
            }
        }
    }

    fn send(&mut self, packet: &mut Packet) {
        let Packet { text, lines, .. } = std::mem::take(packet);
        if lines == 0 {
            return;
        }
        let sent = match self.socket() {
            // a full buffer of the system and the word that nobody listens are the same: it is lost
            Some(socket) => socket.send(text.as_bytes()).is_ok(),
            None => false,
        };
        if !sent {
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// The socket, once the server's name means something.
    fn socket(&mut self) -> Option<&UdpSocket> {
        let may_try = self.tried.is_none_or(|tried| tried.elapsed() >= RESOLVE_EVERY);
        if self.socket.is_none() && may_try {
            self.tried = Some(Instant::now());
            self.socket = connect(&self.address);
        }
        self.socket.as_ref()
    }
}

fn connect(address: &str) -> Option<UdpSocket> {
    address.to_socket_addrs().ok()?.find_map(|server| {
        let own = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(own).ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(server).ok()?;
        Some(socket)
    })
}

/// Lines of one datagram.
#[derive(Default)]
struct Packet {
    text: String,
    lines: u64,
    /// When its first line came.
    since: Option<Instant>,
}

impl Packet {
    fn has_room(&self, line: &str) -> bool {
        self.lines == 0 || self.text.len() + 1 + line.len() <= DATAGRAM
    }

    fn add(&mut self, line: &str) {
        if self.lines > 0 {
            self.text.push('\n');
        }
        self.text.push_str(line);
        self.lines += 1;
        self.since.get_or_insert_with(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(server: &UdpSocket) -> String {
        let mut bytes = [0; 2_048];
        let length = server.recv(&mut bytes).expect("a datagram comes");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn lines_share_datagrams_and_arrive() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        server.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let address = server.local_addr().expect("an address").to_string();
        let statsd = Statsd::new(&address, "cogo-test", "test/0#7").expect("a way out");
        for number in 0..100 {
            statsd.send("cogo.number", f64::from(number), Kind::Gauge, 1, &[]);
        }
        statsd.flush(Duration::from_secs(20));
        let mut lines = Vec::new();
        let mut datagrams = 0;
        while lines.len() < 100 {
            let datagram = received(&server);
            assert!(datagram.len() <= DATAGRAM, "{}", datagram.len());
            lines.extend(datagram.lines().map(str::to_owned));
            datagrams += 1;
        }
        assert!(datagrams < 50, "{datagrams}");
        assert_eq!(lines[99], "cogo.number:99|g|#service:cogo-test,instance:test/0");
        assert_eq!(statsd.dropped(), 0);
    }

    #[test]
    fn server_that_is_gone_costs_the_lines_and_is_counted() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("an address").to_string();
        drop(server);
        let statsd = Statsd::new(&address, "cogo-test", "test/0").expect("a server that is gone is no error");
        let until = Instant::now() + Duration::from_secs(20);
        while statsd.dropped() == 0 {
            assert!(Instant::now() < until, "nothing was dropped");
            statsd.timing("cogo.time", Duration::from_millis(3), &[]);
            // the system says that nobody listens when the next datagram is sent
            statsd.flush(Duration::from_secs(20));
        }
    }

    #[test]
    fn full_buffer_never_makes_a_caller_wait() {
        let (lines, orders) = mpsc::sync_channel(1);
        let statsd = Statsd { lines, dropped: Arc::default(), tags: "service:x".into() };
        for _ in 0..10 {
            statsd.timing("cogo.time", Duration::from_millis(3), &[]);
        }
        assert_eq!(statsd.dropped(), 9);
        drop(orders);
    }

    #[test]
    fn addresses_without_a_port_are_refused() {
        for address in ["", "8125", ":8125", "localhost", "localhost:statsd", "localhost:0"] {
            assert!(matches!(Statsd::new(address, "x", "y"), Err(Error::Statsd { .. })), "{address}");
        }
    }
}

//! Ports for processes that are told where to listen.

use std::{
    net::TcpListener,
    ops::Range,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below those that the system gives to whoever asks for any: one of those could be taken by any connection before the
/// process that is meant for it listens there.
pub const FREE_PORTS: Range<u16> = 20_001..30_001;

/// A port that nobody has and nobody else in this process is given; processes that run side by side start apart.
///
/// # Panics
///
/// If all of [`FREE_PORTS`] are taken.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = FREE_PORTS.len();
    let first = std::process::id() as usize * 97 % ports;
    let mut candidates =
        FREE_PORTS.map(|_| FREE_PORTS.start + ((first + NEXT.fetch_add(1, Ordering::Relaxed) as usize) % ports) as u16);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.find(is_free).expect("one of many ports is free")
}

//! A process that answers every HTTP request with 200 until it is told to stop; a stand-in for one of the fleet.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

/// Its port before the offset, as in the list that the tests write.
const PORT: u16 = 20_000;

fn main() -> std::io::Result<()> {
    let offset: u16 = std::env::var_os("COGO_PORT_OFFSET")
        .and_then(|offset| offset.into_string().ok()?.parse().ok())
        .unwrap_or_default();
    let listener = TcpListener::bind(("127.0.0.1", PORT + offset))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 1024];
        // whatever was asked, the answer is the same
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    Ok(())
}

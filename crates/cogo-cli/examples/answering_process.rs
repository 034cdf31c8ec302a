//! A process that answers every HTTP request with 200, or what `ANSWER_STATUS` says, until it is told to stop; a stand-in
//! for one of the fleet.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

fn main() -> std::io::Result<()> {
    let port = std::env::var_os("COGO_PORT").and_then(|port| port.into_string().ok()?.parse().ok());
    let port: u16 = port.ok_or_else(|| std::io::Error::other("COGO_PORT is not set"))?;
    let status = std::env::var_os("ANSWER_STATUS").and_then(|status| status.into_string().ok());
    let status = status.unwrap_or_else(|| "200".to_owned());
    let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 1024];
        // whatever was asked, the answer is the same
        let _ = stream.read(&mut request);
        let _ = stream.write_all(answer.as_bytes());
    }
    Ok(())
}

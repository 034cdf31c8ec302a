//! The process itself: it answers what is under way when it is told to stop, and refuses to stand open.

use std::{net::SocketAddr, time::Duration};

use cogo_test_support::TestDatabase;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::Instant,
};

use super::support::{CHAT, question};

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

fn process(database: &TestDatabase, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cogo-gateway-api"));
    command.env("DATABASE_URL", &database.url).env("COGO_PORT", port.to_string()).kill_on_drop(true);
    command
}

async fn connect_when_ready(child: &mut Child, address: SocketAddr) {
    let started = Instant::now();
    loop {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < PATIENCE, "the process does not start");
        if let Ok(mut stream) = TcpStream::connect(address).await {
            let mut answer = String::new();
            stream.write_all(b"GET /readyz HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
            if answer.starts_with("HTTP/1.1 200") {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn submission_under_way_at_sigterm_gets_its_answer() {
    let database = cogo_test_support::database().await;
    let address = SocketAddr::from(([127, 0, 0, 1], cogo_test_support::free_port()));
    let mut child = process(&database, address.port()).spawn().unwrap();
    connect_when_ready(&mut child, address).await;

    let body = question("acme").to_string();
    let (first, second) = body.split_at(10);
    let mut asked = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    asked.write_all(head.as_bytes()).await.unwrap();
    // the handler reads the body from here on
    let mut go_on = [0; 25];
    asked.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on[..], b"HTTP/1.1 100 Continue\r\n\r\n");
    asked.write_all(first.as_bytes()).await.unwrap();
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    // nothing new is taken in once it stops
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "the process does not stop");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked.write_all(second.as_bytes()).await.unwrap();
    let mut answer = String::new();
    asked.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("the process does not end").unwrap();
    assert!(ended.success());
}

#[tokio::test]
async fn process_without_keys_refuses_an_address_that_others_can_reach() {
    let database = cogo_test_support::database().await;
    let output = process(&database, 0).env("COGO_BIND", "0.0.0.0").output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("COGO_BIND") && said.contains("COGO_INSECURE_BIND"), "{said}");
}

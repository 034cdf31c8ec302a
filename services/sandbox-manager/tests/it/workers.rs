//! External workers over WebSocket: good ones, and those that vanish, sleep or lie.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cogo_contracts::SandboxEvent;
use cogo_sandbox_manager::{Refusal, Settings, ToManager, ToWorker, worker};
use cogo_service_runtime::Secret;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};
use uuid::Uuid;

use super::support::{House, SOON, command, house, local, shell, until_group_is_gone};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(address: SocketAddr, headers: &[(&'static str, &'static str)]) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}/sandbox/worker?name=ext").into_client_request().unwrap();
    for &(name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    connect_async(request).await.map(|(socket, _)| socket)
}

/// A connection that has introduced itself.
async fn joined(house: &House, address: SocketAddr, slots: u16) -> Socket {
    let mut socket = connect(address, &[]).await.unwrap();
    say(&mut socket, &ToManager::Hello { slots }).await;
    until(house, "ext").await;
    socket
}

async fn until(house: &House, name: &str) {
    while !house.json("/sandbox").await["workers"].as_array().unwrap().iter().any(|worker| worker["name"] == name) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn say(socket: &mut Socket, frame: &ToManager) {
    socket.send(Message::text(serde_json::to_string(frame).unwrap())).await.unwrap();
}

async fn hear(socket: &mut Socket) -> ToWorker {
    loop {
        match tokio::time::timeout(SOON, socket.next()).await.expect("the manager is silent").unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn job_of(socket: &mut Socket) -> Uuid {
    let ToWorker::Run { job, .. } = hear(socket).await else { panic!("not a job") };
    job
}

/// All that an external worker has to do around [`worker::serve`].
async fn external_worker(socket: Socket) {
    let (mut sink, mut stream) = socket.split();
    let (frames, from_manager) = mpsc::unbounded_channel();
    let (to_manager, mut events) = mpsc::channel(16);
    let settings = worker::Settings { slots: 2, command_path: "/usr/bin:/bin".to_owned() };
    let send = async {
        while let Some(event) = events.recv().await {
            let text = serde_json::to_string(&event).unwrap();
            if sink.send(Message::text(text)).await.is_err() {
                return;
            }
        }
    };
    let receive = async {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Text(text) = message {
                frames.send(serde_json::from_str(&text).unwrap()).unwrap();
            }
        }
    };
    tokio::select! {
        () = worker::serve(settings, from_manager, to_manager) => {}
        () = send => {}
        () = receive => {}
    }
}

#[tokio::test]
async fn command_runs_on_the_external_worker() {
    let house = house(Settings::default());
    let address = house.serve().await;
    let socket = connect(address, &[]).await.unwrap();
    let worker = house.tracker.spawn(external_worker(socket));
    until(&house, "ext").await;
    let mut request = shell("cat; exit 7");
    request.stdin = "over the wire".to_owned();
    let reply = house.run(request).await.unwrap();
    assert_eq!((reply.end, reply.stdout.as_str()), (SandboxEvent::Exited { code: Some(7) }, "over the wire"));

    let message = Uuid::now_v7();
    let manager = Arc::clone(&house.manager);
    let job = house.tracker.spawn(async move { manager.run(message, shell("echo $$; sleep 100")).await });
    let mut events = house.events(message).await;
    events.next().await.unwrap();
    let Some(SandboxEvent::Stdout { text: group }) = events.next().await else { panic!("no output") };
    // the caller gives up: the manager tells the worker, which kills the command
    job.abort();
    until_group_is_gone(&group).await;
    worker.abort();
}

#[tokio::test]
async fn external_worker_goes_before_the_own_one() {
    let house = local();
    let address = house.serve().await;
    let mut socket = joined(&house, address, 1).await;
    let work = async {
        let job = job_of(&mut socket).await;
        say(&mut socket, &ToManager::Event { job, event: SandboxEvent::Exited { code: Some(42) } }).await;
        // too late: the job has ended
        say(&mut socket, &ToManager::Event { job, event: SandboxEvent::TimedOut }).await;
    };
    let (reply, ()) = tokio::join!(house.run(command(&["true"])), work);
    assert_eq!(reply.unwrap().end, SandboxEvent::Exited { code: Some(42) });
}

#[tokio::test]
async fn vanished_worker_ends_its_job_once_as_failed() {
    let house = house(Settings::default());
    let address = house.serve().await;
    let mut socket = joined(&house, address, 1).await;
    let message = Uuid::now_v7();
    let vanish = async {
        let events = house.events(message).await;
        let job = job_of(&mut socket).await;
        say(&mut socket, &ToManager::Event { job, event: SandboxEvent::Started }).await;
        drop(socket);
        events.rest().await
    };
    let (reply, events) = tokio::join!(house.manager.run(message, command(&["true"])), vanish);
    let SandboxEvent::Failed { reason } = reply.unwrap().end else { panic!("not failed") };
    assert!(reason.contains("Worker ext is gone"), "{reason}");
    assert!(matches!(events.as_slice(), [SandboxEvent::Started, SandboxEvent::Failed { .. }]), "{events:?}");
    assert_eq!(house.json("/sandbox").await["workers"], json!([]));
}

#[tokio::test]
async fn worker_that_fails_again_and_again_rests_even_if_it_comes_back() {
    let house = house(Settings::default());
    let address = house.serve().await;
    for _ in 0..3 {
        let mut socket = joined(&house, address, 1).await;
        let vanish = async {
            job_of(&mut socket).await;
            drop(socket);
        };
        let (reply, ()) = tokio::join!(house.run(command(&["true"])), vanish);
        assert!(matches!(reply.unwrap().end, SandboxEvent::Failed { .. }));
        while house.json("/sandbox").await["workers"] != json!([]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(house.manager.expect_worker(), Err(Refusal::NobodyConnected));
    let _back = joined(&house, address, 1).await;
    assert_eq!(house.manager.expect_worker(), Ok(()));
    let refused = house.run(command(&["true"])).await;
    assert!(matches!(refused, Err(Refusal::Resting { retry_after }) if !retry_after.is_zero()), "{refused:?}");
    assert_eq!(house.json("/sandbox").await["workers"][0]["circuit"], "open");
}

#[tokio::test]
async fn commands_that_fail_say_nothing_against_their_worker() {
    let house = local();
    for _ in 0..5 {
        let reply = house.run(command(&["/no/such/program"])).await.unwrap();
        assert!(matches!(reply.end, SandboxEvent::Failed { .. }), "{reply:?}");
    }
    assert_eq!(house.run(command(&["true"])).await.unwrap().end, SandboxEvent::Exited { code: Some(0) });
}

#[tokio::test]
async fn silent_worker_is_dropped() {
    let house = house(Settings { heartbeat_ms: 1500, ..Settings::default() });
    let address = house.serve().await;
    // it answers no ping, since nobody reads its socket
    let _socket = joined(&house, address, 1).await;
    let reply = house.run(command(&["true"])).await.unwrap();
    assert!(matches!(reply.end, SandboxEvent::Failed { .. }), "{reply:?}");
}

#[tokio::test]
async fn answering_worker_outlives_many_heartbeats() {
    let house = house(Settings { heartbeat_ms: 700, ..Settings::default() });
    let address = house.serve().await;
    house.tracker.spawn(external_worker(connect(address, &[]).await.unwrap()));
    until(&house, "ext").await;
    let reply = house.run(shell("sleep 4")).await.unwrap();
    assert_eq!(reply.end, SandboxEvent::Exited { code: Some(0) });
}

#[tokio::test]
async fn full_worker_makes_the_next_job_wait() {
    let house = house(Settings::default());
    let address = house.serve().await;
    let mut socket = joined(&house, address, 1).await;
    let work = async {
        let first = job_of(&mut socket).await;
        let early = tokio::time::timeout(Duration::from_millis(100), job_of(&mut socket)).await;
        assert!(early.is_err(), "two jobs on one slot");
        say(&mut socket, &ToManager::Event { job: first, event: SandboxEvent::Exited { code: Some(1) } }).await;
        let second = job_of(&mut socket).await;
        say(&mut socket, &ToManager::Event { job: second, event: SandboxEvent::Exited { code: Some(2) } }).await;
    };
    let (one, two, ()) = tokio::join!(house.run(command(&["a"])), house.run(command(&["b"])), work);
    assert_eq!(one.unwrap().end, SandboxEvent::Exited { code: Some(1) });
    assert_eq!(two.unwrap().end, SandboxEvent::Exited { code: Some(2) });
}

#[tokio::test]
async fn worker_speaks_for_its_own_jobs_only_and_not_rubbish() {
    let house = house(Settings::default());
    let address = house.serve().await;
    let mut honest = joined(&house, address, 1).await;
    let work = async {
        let job = job_of(&mut honest).await;
        let mut liar = connect(address, &[]).await.unwrap();
        say(&mut liar, &ToManager::Hello { slots: 1 }).await;
        say(&mut liar, &ToManager::Event { job, event: SandboxEvent::Exited { code: Some(66) } }).await;
        liar.send(Message::text("rubbish")).await.unwrap();
        loop {
            match tokio::time::timeout(SOON, liar.next()).await.expect("the liar stays connected") {
                Some(Ok(Message::Close(frame))) => {
                    assert_eq!(u16::from(frame.unwrap().code), 1002);
                    break;
                }
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        say(&mut honest, &ToManager::Event { job, event: SandboxEvent::Exited { code: Some(0) } }).await;
    };
    let (reply, ()) = tokio::join!(house.run(command(&["true"])), work);
    assert_eq!(reply.unwrap().end, SandboxEvent::Exited { code: Some(0) });
}

#[tokio::test]
async fn only_those_who_may_connect_do() {
    let refused = |connected: Result<Socket, Error>, status: u16| match connected {
        Err(Error::Http(response)) => assert_eq!(response.status(), status),
        other => panic!("{other:?}"),
    };
    let open = house(Settings::default());
    let address = open.serve().await;
    connect(address, &[]).await.unwrap();
    refused(connect(address, &[("origin", "https://evil.example")]).await, 403);
    refused(connect(address, &[("host", "evil.example")]).await, 403);

    let guarded = house(Settings { worker_token: Some(Secret::new("secret")), ..Settings::default() });
    let address = guarded.serve().await;
    refused(connect(address, &[]).await, 401);
    refused(connect(address, &[("authorization", "Bearer wrong")]).await, 401);
    connect(address, &[("authorization", "Bearer secret")]).await.unwrap();
    let events = format!("/sandbox/jobs/{}/events", Uuid::now_v7());
    assert_eq!(guarded.get(&events, &[]).await.status(), 401);
    assert_eq!(guarded.get(&events, &[("authorization", "Bearer secret")]).await.status(), 404);
}

//! A manager, its HTTP side, and a look at the processes of this machine.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::Request,
    response::Response,
};
use cogo_contracts::{Isolation, SandboxEvent, SandboxReply, SandboxRequest};
use cogo_sandbox_manager::{Manager, Refusal, Settings, router};
use cogo_service_runtime::Dependencies;
use futures_util::{StreamExt, stream::BoxStream};
use serde_json::Value;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use uuid::Uuid;

/// Far longer than anything here takes, so that only a hang runs into it.
pub(super) const SOON: Duration = Duration::from_secs(60);

pub(super) struct House {
    pub(super) manager: Arc<Manager>,
    pub(super) stop: CancellationToken,
    pub(super) tracker: TaskTracker,
}

/// A manager that runs commands itself.
pub(super) fn local() -> House {
    house(Settings { allow_local: true, ..Settings::default() })
}

pub(super) fn house(settings: Settings) -> House {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let manager = Arc::new(Manager::new(settings, Dependencies::alone(), stop.clone(), tracker.clone()).unwrap());
    House { manager, stop, tracker }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    pub(super) async fn run(&self, request: SandboxRequest) -> Result<SandboxReply, Refusal> {
        tokio::time::timeout(SOON, self.manager.run(Uuid::now_v7(), request)).await.expect("the job does not end")
    }

    /// A request as it would come from this machine.
    pub(super) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 40_000))));
        router(Arc::clone(&self.manager)).oneshot(request).await.unwrap()
    }

    pub(super) async fn json(&self, path: &str) -> Value {
        let response = self.get(path, &[]).await;
        serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap()
    }

    /// Live events of a job, as soon as it is there.
    pub(super) async fn events(&self, message: Uuid) -> Events {
        let until = Instant::now() + SOON;
        loop {
            let response = self.get(&format!("/sandbox/jobs/{message}/events"), &[]).await;
            if response.status() == 200 {
                let chunks = response.into_body().into_data_stream();
                return Events(chunks.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).boxed());
            }
            assert!(Instant::now() < until, "no job of {message}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Serves the HTTP side on a free port.
    pub(super) async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = router(Arc::clone(&self.manager)).into_make_service_with_connect_info::<SocketAddr>();
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                served = axum::serve(listener, service).into_future() => served.unwrap(),
                () = stop.cancelled() => {}
            }
        });
        address
    }
}

pub(super) struct Events(BoxStream<'static, String>);

impl Events {
    /// The next event; none at the end of the stream. Each event comes as one chunk.
    pub(super) async fn next(&mut self) -> Option<SandboxEvent> {
        let chunk = tokio::time::timeout(SOON, self.0.next()).await.expect("the stream stalls")?;
        let data = chunk.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        Some(serde_json::from_str(data).unwrap())
    }

    /// Everything up to the end of the stream.
    pub(super) async fn rest(mut self) -> Vec<SandboxEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

pub(super) fn command(parts: &[&str]) -> SandboxRequest {
    let command = parts.iter().map(|&part| part.to_owned()).collect();
    SandboxRequest { command, limit_ms: 60_000, stdin: String::new(), isolation: Isolation::None }
}

pub(super) fn shell(script: &str) -> SandboxRequest {
    command(&["sh", "-c", script])
}

/// Returns once no process of this group lives; one that only waits to be reaped does not.
pub(super) async fn until_group_is_gone(group: &str) {
    let until = Instant::now() + SOON;
    while lives(group) {
        assert!(Instant::now() < until, "processes of group {group} live on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn lives(group: &str) -> bool {
    let group = group.trim();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // pid (name) state parent group ..
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        fields.get(2) == Some(&group) && fields.first() != Some(&"Z")
    })
}

/// How many events of these end the job.
pub(super) fn ends(events: &[SandboxEvent]) -> usize {
    events.iter().filter(|event| event.is_terminal()).count()
}

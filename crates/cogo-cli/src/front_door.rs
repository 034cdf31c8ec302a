//! The HTTP front door of a fleet, as its callers use it.

use std::time::Duration;

use cogo_contracts::{Problem, Task, TaskStatus, Tenant};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    context::Context,
    failure::{Failure, Kind, chain},
    fleet::ProcessList,
    task_waiter::still_running,
};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest that the server is asked to hold an answer back.
const LONGEST_POLL: Duration = Duration::from_secs(25);
/// On top of a poll, for the way there and back.
const SLACK: Duration = Duration::from_secs(10);
/// Between two looks at a server that does not hold answers back.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the front door is and with which key.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FrontDoorOptions {
    /// Address of the front door; found through the fleet's state if absent.
    #[arg(long, value_name = "URL", env = "COGO_URL")]
    pub(crate) url: Option<String>,
    /// Key for the front door, better given as COGO_API_KEY.
    #[arg(long, value_name = "KEY", env = "COGO_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

/// A client of the front door.
#[derive(Debug, Clone)]
pub(crate) struct FrontDoor {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// How a task ended, as the front door tells it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) status: TaskStatus,
    #[serde(default)]
    pub(crate) result: Option<Value>,
    #[serde(default)]
    pub(crate) error: Option<String>,
}

#[derive(Deserialize)]
struct Accepted {
    id: Uuid,
}

impl FrontDoor {
    pub(crate) fn open(context: &Context, options: &FrontDoorOptions) -> Result<Self, Failure> {
        let base = match &options.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => of_this_machine(context)?,
        };
        let client = cogo_model_client::http_client(&base, CONNECT_PATIENCE)
            .map_err(|error| Failure::new(Kind::Usage, format!("{base} is not a usable address")).because(&error))?;
        let key = options.api_key.clone().filter(|key| !key.is_empty());
        Ok(Self { client, base, key })
    }

    /// Hands in a request; answers the id of its task.
    pub(crate) async fn submit(&self, tenant: &Tenant, intent: &str, payload: &Value) -> Result<Uuid, Failure> {
        let body = json!({"tenant": tenant, "intent": intent, "payload": payload});
        let request = self.client.post(format!("{}/functions/v1/orchestrator-chat", self.base)).json(&body);
        let response = self.send(request, SLACK).await?;
        let accepted: Accepted = self.read(response).await?;
        Ok(accepted.id)
    }

    /// The task with its steps as they stand.
    pub(crate) async fn task(&self, id: Uuid) -> Result<Task, Failure> {
        let response = self.send(self.client.get(format!("{}/tasks/{id}", self.base)), SLACK).await?;
        self.read(response).await
    }

    /// How the task ended, as soon as it has.
    pub(crate) async fn outcome(&self, id: Uuid, patience: Duration) -> Result<Outcome, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let poll = left.min(LONGEST_POLL);
            let url = format!("{}/tasks/{id}/result?wait_ms={}", self.base, poll.as_millis());
            let response = self.send(self.client.get(url), poll + SLACK).await?;
            let outcome: Outcome = self.read(response).await?;
            if outcome.status.is_terminal() {
                return Ok(outcome);
            }
            if Instant::now() >= deadline {
                return Err(still_running(id, patience));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send(&self, request: RequestBuilder, patience: Duration) -> Result<Response, Failure> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.timeout(patience).send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(response).await)
    }

    async fn read<T: for<'body> Deserialize<'body>>(&self, response: Response) -> Result<T, Failure> {
        let url = response.url().path().to_owned();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::failed(format!("The answer of {url} cannot be understood"))
                .because(&error)
                .hint("are `cogo` and the fleet of the same build?")
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::timeout(format!("{} did not answer in time", self.base)).cause(chain(error));
        }
        Failure::unavailable(format!("The front door at {} does not answer", self.base))
            .cause(chain(error))
            .hint("`cogo up` starts the fleet, `cogo status` shows it")
    }
}

/// The address of the fleet of this directory, else that of a fleet with default ports.
fn of_this_machine(context: &Context) -> Result<String, Failure> {
    const NAME: &str = "gateway-api";
    if let Some(state) = context.home.read_state()? {
        return match state.processes.iter().find(|process| process.name == NAME) {
            Some(process) => Ok(process.url()),
            None => {
                Err(Failure::unavailable(format!("The fleet runs without {NAME}")).hint("start it with all processes"))
            }
        };
    }
    let port = ProcessList::read(None)?.port(NAME, 0).unwrap_or_default();
    Ok(format!("http://127.0.0.1:{port}"))
}

/// What the front door says of a request that it did not take.
async fn refused(response: Response) -> Failure {
    let status = response.status();
    let kind = Kind::of_http(status.as_u16());
    let bytes = response.bytes().await.unwrap_or_default();
    let failure = match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => {
            let failure = Failure::new(kind, problem.title).cause(problem.detail);
            match problem.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        Err(_) => Failure::new(kind, format!("The front door answered {status}")),
    };
    if status == StatusCode::UNAUTHORIZED {
        failure.hint("set COGO_API_KEY to one of the fleet's keys")
    } else {
        failure
    }
}

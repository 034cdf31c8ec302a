//! `cogo send`: puts one message on the bus.

use std::{io::Read, time::Duration};

use clap::Args;
use cogo_bus_core::{Bus, Enqueued};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_registry_core::{NotChecked, Registry, SchemaRegistry};
use serde_json::{Value, json};

use crate::{
    context::Context,
    failure::{Failure, Kind, about_file},
    task_waiter::{require_done, wait_for_end},
};

/// Send one message to a route, and wait for its task if asked to.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo send gateway chat --data '{\"question\":\"What is a lease?\"}' --wait\n  cogo send rag index --data @request.json --idempotency-key nightly-1\n  cogo send rag embed --data - --tenant acme --delay-ms 5000"
)]
pub(crate) struct Send {
    /// First part of the routing key: the domain that answers.
    service: String,
    /// Second part: the role within the domain.
    role: String,
    /// The payload: a JSON object, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}", allow_hyphen_values = true)]
    data: String,
    /// Whose message it is.
    #[arg(long, default_value = "default")]
    tenant: Tenant,
    /// Third part of the routing key.
    #[arg(long, default_value_t = 0)]
    shard: u16,
    /// Never start it later than this many milliseconds from now.
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Do not start it before this many milliseconds from now.
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u64>,
    /// 0 to 1000, lower first.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i16).range(0..=1000))]
    priority: Option<i16>,
    /// Send once per tenant and key; a second time answers the first id.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until the whole task has ended and print its result.
    #[arg(long)]
    wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    timeout: u64,
}

impl Send {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut message = self.message()?;
        let bus = context.bus().await?;
        let schemas = SchemaRegistry::new(&Registry::new(bus.pool().clone()));
        schemas.stamp(&mut message).await.map_err(not_checked)?;
        let sent = bus.enqueue(&message).await?;
        context.note_sent(sent.id);
        if !self.wait {
            return tell(context, &sent);
        }
        if !context.output.is_json() {
            context.output.note(&format!("sent {}", sent.id));
        }
        self.wait(context, &bus, &sent).await
    }

    async fn wait(&self, context: &Context, bus: &Bus, sent: &Enqueued) -> Result<(), Failure> {
        // under a known key the first message may be a step of another task
        let row = bus.message(sent.id).await?.unwrap_or_default();
        let root = row["root_id"].as_str().and_then(|root| root.parse().ok()).unwrap_or(sent.id);
        let spinner = context.output.spinner("waiting for the task");
        let ended = wait_for_end(bus, root, Duration::from_secs(self.timeout)).await;
        spinner.finish_and_clear();
        let task = require_done(ended?)?;
        let result = task.result.clone().unwrap_or_default();
        let value = json!({"id": sent.id, "duplicate": sent.duplicate, "status": task.status, "result": result});
        context.output.either(&value, || serde_json::to_string_pretty(&result).unwrap_or_default())
    }

    fn message(&self) -> Result<NewMessage, Failure> {
        let route = Route::new(&self.service, &self.role, self.shard)
            .map_err(|invalid| Failure::new(Kind::Usage, invalid.to_string()))?;
        let text = match self.data.as_str() {
            "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            }
            data => match data.strip_prefix('@') {
                Some(path) => std::fs::read_to_string(path).map_err(about_file("read", path.as_ref()))?,
                None => data.to_owned(),
            },
        };
        let payload: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(Kind::Usage, "The payload is not JSON").cause(error.to_string()))?;
        if !payload.is_object() {
            return Err(Failure::new(Kind::Usage, "The payload must be a JSON object"));
        }
        Ok(NewMessage {
            ttl_ms: self.ttl_ms,
            delay_ms: self.delay_ms,
            priority: self.priority,
            idempotency_key: self.idempotency_key.clone(),
            ..NewMessage::new(route, Some(self.tenant.clone()), payload)
        })
    }
}

/// What would be refused where it is claimed is not sent, as at the front door.
fn not_checked(error: NotChecked) -> Failure {
    match error {
        NotChecked::Refused(refusal) => {
            let mut places: Vec<String> = refusal.violations.iter().map(ToString::to_string).collect();
            if refusal.more > 0 {
                places.push(format!("and {} more", refusal.more));
            }
            let (subject, version) = (&refusal.subject, refusal.version);
            Failure::new(Kind::Usage, format!("The payload breaks schema {subject} version {version}"))
                .cause(places.join("; "))
                .hint(format!("`cogo schema show {subject}` shows what fits"))
        }
        NotChecked::Unavailable(error) => error.into(),
        other => Failure::failed("The payload could not be held against its schema").because(&other),
    }
}

fn tell(context: &Context, sent: &Enqueued) -> Result<(), Failure> {
    if sent.duplicate && !context.output.is_json() {
        context.output.note("the key was known, nothing new was sent");
    }
    context.output.either(&json!({"id": sent.id, "duplicate": sent.duplicate}), || sent.id.to_string())
}

//! `cogo key`: keys by which agents join the fleet.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use cogo_registry_core::{KeyRecord, Registry};
use serde_json::json;
use uuid::Uuid;

use crate::{context::Context, failure::Failure, output::table};

/// Give out, list and take back the keys by which agents join.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key for a name and print it, this once; from then on the name joins with a key only.
    #[command(
        after_help = "The process takes it from COGO_<NAME>_AGENT_KEY, or from COGO_AGENT_KEY. Nothing but its holder keeps it: the database has a hash of a hash.\n\nExamples:\n  cogo key issue rag-embed --label \"the worker in the cellar\"\n  cogo key issue sandbox-worker --json"
    )]
    Issue(Issue),
    /// List the keys that were given out, and who is in with them. Shows no key.
    #[command(visible_alias = "ls", after_help = "Examples:\n  cogo key list\n  cogo key list --name rag-embed --json")]
    List {
        /// Only those of this name.
        #[arg(long, value_name = "NAME", value_parser = agent_name)]
        name: Option<String>,
    },
    /// Take a key back and end the agents that joined with it: their messages are queued again, their tokens are dead.
    #[command(
        after_help = "To change a key without a pause: issue a new one, restart the agents with it, revoke the old one.\n\nExamples:\n  cogo key revoke 7c1f4b0e-0a6c-4a4e-9a53-1f8f5a0f4f10\n  cogo key revoke 7c1f4b0e-0a6c-4a4e-9a53-1f8f5a0f4f10 --keep-running --json"
    )]
    Revoke(Revoke),
    /// Let a name join without a key again, once all its keys are revoked.
    #[command(after_help = "Examples:\n  cogo key open rag-embed")]
    Open {
        /// Name of the process.
        #[arg(value_parser = agent_name)]
        name: String,
    },
}

#[derive(Debug, Args)]
struct Issue {
    /// Name of the process that may join with it, in any slot.
    #[arg(value_parser = agent_name)]
    name: String,
    /// Whom it is for; your user name unless you say.
    #[arg(long, value_name = "TEXT", env = "USER", hide_env_values = true, default_value = "cogo", value_parser = label)]
    label: String,
}

#[derive(Debug, Args)]
struct Revoke {
    /// The key's id, as `cogo key list` shows it; not the key.
    #[arg(value_name = "KEY_ID")]
    key_id: Uuid,
    /// Leave the agents alone that are in with it; they need another key at their next start.
    #[arg(long)]
    keep_running: bool,
    /// Who takes it back.
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "cogo")]
    author: String,
}

/// What the registry takes as a name.
pub(super) fn agent_name(text: &str) -> Result<String, String> {
    let fits = text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(text.to_owned()) } else { Err("a name is [a-z][a-z0-9-]{0,62}".to_owned()) }
}

fn label(text: &str) -> Result<String, String> {
    let fits = (1..=200).contains(&text.chars().count());
    if fits { Ok(text.to_owned()) } else { Err("a label has 1 to 200 characters".to_owned()) }
}

impl Keys {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let registry = Registry::new(context.bus().await?.pool().clone());
        match self.action {
            Action::Issue(issue) => issue.run(&registry, context).await,
            Action::List { name } => list(&registry, context, name.as_deref()).await,
            Action::Revoke(revoke) => revoke.run(&registry, context).await,
            Action::Open { name } => open(&registry, context, &name).await,
        }
    }
}

impl Issue {
    async fn run(self, registry: &Registry, context: &Context) -> Result<(), Failure> {
        let (key_id, key) = registry.issue_key(&self.name, &self.label).await?;
        let name = &self.name;
        if !context.output.is_json() {
            let variable = format!("COGO_{}_AGENT_KEY", name.to_ascii_uppercase().replace('-', "_"));
            context
                .output
                .note(&format!("key {key_id} of {name}, shown only now; the process takes it from {variable}"));
            for agent in without_key(registry, name).await? {
                context.output.note(&format!("{agent} is in without a key and needs one at its next start"));
            }
        }
        let value = json!({"key_id": key_id, "name": name, "label": self.label, "key": key.reveal()});
        context.output.either(&value, || key.reveal().to_owned())
    }
}

/// The living agents of a name that joined before it had a key.
async fn without_key(registry: &Registry, name: &str) -> Result<BTreeSet<String>, Failure> {
    let mut living: BTreeSet<String> =
        registry.list().await?.iter().filter(|agent| agent.id.name == name).map(|agent| agent.id.instance()).collect();
    for key in registry.keys().await? {
        for agent in &key.agents {
            living.remove(agent);
        }
    }
    Ok(living)
}

async fn list(registry: &Registry, context: &Context, name: Option<&str>) -> Result<(), Failure> {
    let mut keys = registry.keys().await?;
    keys.retain(|key| name.is_none_or(|name| key.name == name));
    if keys.is_empty() && !context.output.is_json() {
        context.output.note("no keys");
        return Ok(());
    }
    context
        .output
        .either(&keys, || table(["name", "key id", "label", "issued (UTC)", "state", "agents"], keys.iter().map(row)))
}

fn row(key: &KeyRecord) -> [String; 6] {
    let minute = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%d %H:%M").to_string();
    let state = key.revoked_at.map_or_else(|| "opens".to_owned(), |at| format!("revoked {}", minute(at)));
    [
        key.name.clone(),
        key.key_id.to_string(),
        key.label.clone(),
        minute(key.created_at),
        state,
        if key.agents.is_empty() { "-".to_owned() } else { key.agents.join(" ") },
    ]
}

impl Revoke {
    async fn run(self, registry: &Registry, context: &Context) -> Result<(), Failure> {
        let key_id = self.key_id;
        let keys = registry.keys().await?;
        let Some(known) = keys.iter().find(|key| key.key_id == key_id) else {
            return Err(Failure::not_found(format!("There is no key {key_id}")).hint("`cogo key list` shows them all"));
        };
        let (revoked, ended, requeued) = if self.keep_running {
            (registry.revoke_key(key_id).await?, 0, 0)
        } else {
            let outcome = registry.revoke_key_and_end(key_id, &self.author).await?;
            (outcome.revoked, outcome.ended, outcome.requeued)
        };
        if !revoked && ended == 0 {
            return Err(Failure::conflict(format!("Key {key_id} of {} is revoked already", known.name)));
        }
        let name = &known.name;
        let others = keys.iter().any(|key| key.name == *name && key.key_id != key_id && key.revoked_at.is_none());
        if !others && !context.output.is_json() {
            context.output.note(&format!(
                "{name} has no key left: nobody joins under it until `cogo key issue {name}` or `cogo key open {name}`"
            ));
        }
        let value = json!({"key_id": key_id, "name": name, "revoked": revoked, "ended": ended, "requeued": requeued});
        context.output.either(&value, || {
            format!("revoked {key_id} of {name}; {ended} agents ended, {requeued} messages queued again")
        })
    }
}

async fn open(registry: &Registry, context: &Context, name: &str) -> Result<(), Failure> {
    match registry.open_name(name).await? {
        None => Err(Failure::conflict(format!("{name} has a key that is not revoked"))
            .hint(format!("`cogo key list --name {name}` shows them; `cogo key revoke` takes one back"))),
        Some(0) => Err(Failure::not_found(format!("{name} has no keys, and joins without one"))),
        Some(forgotten) => {
            let value = json!({"name": name, "forgotten": forgotten});
            context.output.either(&value, || format!("{name} joins without a key; {forgotten} revoked keys forgotten"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_judged_as_the_database_does() {
        for good in ["a", "rag-embed", "r2-d2"] {
            assert_eq!(agent_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "Rag", "2rag", "rag_embed", "rag/0", &"a".repeat(64)] {
            assert!(agent_name(bad).is_err(), "{bad:?}");
        }
        assert!(label(&"é".repeat(200)).is_ok());
        assert!(label("").is_err() && label(&"x".repeat(201)).is_err());
    }
}

//! The work of `cogo child`: a program that is run for each message, with the payload as its input.

use std::process::Stdio;

use anyhow::{Context, anyhow};
use cogo_bus_core::Claimed;
use cogo_service_runtime::HandlerError;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

/// Exit code by which a program says that no attempt can do better (sysexits.h EX_DATAERR).
const NEVER: i32 = 65;
/// Variables that are none of the program's business.
const SECRETS: [&str; 2] = ["COGO_AGENT_KEY", "DATABASE_URL"];
/// How much of what a program wrote to standard error is kept, in characters.
const LAST_WORDS: usize = 400;

/// Runs the program on one message; it is killed when the future is dropped.
pub(crate) async fn answer(program: &[String], message: Claimed) -> Result<Value, HandlerError> {
    let (name, arguments) = program.split_first().ok_or_else(|| HandlerError::rejected("There is no program"))?;
    let mut command = Command::new(name);
    for secret in SECRETS {
        command.env_remove(secret);
    }
    let mut running = command
        .args(arguments)
        .env("COGO_MESSAGE_ID", message.id.to_string())
        .env("COGO_ATTEMPT", message.attempt.to_string())
        .env("COGO_TENANT", &message.tenant)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {name:?}"))?;
    let input = running.stdin.take();
    let payload = message.payload.to_string();
    let feeding = async {
        if let Some(mut input) = input {
            // a program need not read what it does not want
            let _ = input.write_all(payload.as_bytes()).await;
        }
    };
    let ((), output) = tokio::join!(feeding, running.wait_with_output());
    let output = output.with_context(|| format!("wait for {name:?}"))?;
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        return Ok(serde_json::from_str(&text).unwrap_or_else(|_| json!({"text": text})));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().rev().take(LAST_WORDS).collect::<Vec<_>>().into_iter().rev().collect();
    let reason = anyhow!("{name} ended with {}: {said}", output.status);
    Err(if output.status.code() == Some(NEVER) { HandlerError::reject(reason) } else { HandlerError::retry(reason) })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn message(payload: Value) -> Claimed {
        Claimed {
            id: Uuid::nil(),
            attempt: 2,
            max_attempts: 5,
            tenant: "acme".to_owned(),
            payload,
            headers: serde_json::Map::new(),
            root_id: Uuid::nil(),
            parent_id: None,
            reply_to: None,
            waited_ms: 0,
            remaining_ms: None,
            asked_at: tokio::time::Instant::now(),
        }
    }

    async fn shell(script: &str) -> Result<Value, HandlerError> {
        let program = ["sh", "-c", script].map(str::to_owned);
        answer(&program, message(json!({"file": "a.fig"}))).await
    }

    #[tokio::test]
    async fn program_gets_the_payload_and_answers_with_json_or_text() {
        assert_eq!(shell("cat").await.expect("an answer"), json!({"file": "a.fig"}));
        let told = shell("echo \"$COGO_ATTEMPT $COGO_TENANT\"").await.expect("an answer");
        assert_eq!(told, json!({"text": "2 acme\n"}));
        // one that does not read a large input is no failure
        let large = message(json!({"pad": "x".repeat(1_000_000)}));
        assert_eq!(answer(&["true".to_owned()], large).await.expect("an answer"), json!({"text": ""}));
    }

    #[tokio::test]
    async fn how_it_ends_says_whether_to_try_again() {
        let again = shell("echo no figma >&2; exit 3").await.expect_err("it failed");
        assert!(
            matches!(&again, HandlerError::Retry { source, .. } if source.to_string().contains("no figma")),
            "{again:?}"
        );
        assert!(matches!(shell("exit 65").await, Err(HandlerError::Reject { .. })));
        let nothing = answer(&["/nonexistent/program".to_owned()], message(json!({}))).await;
        assert!(matches!(nothing, Err(HandlerError::Retry { .. })), "the program may be installed yet");
    }
}

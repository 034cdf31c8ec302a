//! `cogo send` and `cogo tail`.

use std::process::Stdio;

use cogo_bus_core::Bus;
use cogo_contracts::routes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Cogo, PATIENCE, claim_next, complete, ended, eventually, give_up};

#[tokio::test]
async fn a_message_is_sent_as_described_and_once_per_key() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let arguments = [
        "send",
        "rag",
        "embed",
        "--data",
        r#"{"a":1}"#,
        "--tenant",
        "acme",
        "--shard",
        "3",
        "--ttl-ms",
        "60000",
        "--delay-ms",
        "30000",
        "--priority",
        "7",
        "--idempotency-key",
        "k",
        "--json",
    ];
    let first = cogo.run(&arguments).await.expect(0).json();
    let second = cogo.run(&arguments).await.expect(0).json();
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(first["id"], second["id"]);

    let id = first["id"].as_str().unwrap().parse().unwrap();
    let row = Bus::new(database.pool.clone()).message(id).await.unwrap().unwrap();
    for (column, expected) in [
        ("service", json!("rag")),
        ("shard", json!(3)),
        ("tenant", json!("acme")),
        ("priority", json!(7)),
        ("payload", json!({"a": 1})),
    ] {
        assert_eq!(row[column], expected, "{column}");
    }
    assert!(row["retry_at"].is_string() && row["expires_at"].is_string());
}

#[tokio::test]
async fn payloads_come_from_files_and_standard_input_and_must_be_objects() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let file = cogo.file("payload.json", r#"{"from":"file"}"#);
    let id = cogo.run(&["send", "rag", "embed", "--data", &format!("@{}", file.display())]).await.expect(0).stdout;
    let row = bus.message(id.trim().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(row["payload"], json!({"from": "file"}));

    let id =
        cogo.run_with_input(&["send", "rag", "embed", "--data", "-"], r#"{"from":"stdin"}"#).await.expect(0).stdout;
    let row = bus.message(id.trim().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(row["payload"], json!({"from": "stdin"}));

    cogo.run(&["send", "rag", "embed", "--data", "[1]"]).await.expect(2);
    cogo.run(&["send", "rag", "embed", "--data", "{oops"]).await.expect(2);
    cogo.run(&["send", "rag", "embed", "--data", "@/no/such/file"]).await.expect(1);
    let refused = cogo.run(&["send", "rag", "embed", "--data", "{\"a\":\"\\u0000\"}"]).await.expect(1);
    assert!(refused.stderr.contains("refused"), "{refused:?}");
}

#[tokio::test]
async fn waiting_ends_with_the_result_the_reason_or_the_time() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let arguments = ["send", "rag", "embed", "--wait", "--timeout", "25", "--json"];

    let done = async { complete(&bus, &claim_next(&bus, &routes::EMBED).await, json!({"chunks": 4})).await };
    let (ended, ()) = tokio::join!(cogo.run(&arguments), done);
    assert_eq!(ended.expect(0).json()["result"], json!({"chunks": 4}));

    let given_up = async { give_up(&bus, &claim_next(&bus, &routes::EMBED).await, "no such tree").await };
    let (ended, ()) = tokio::join!(cogo.run(&arguments), given_up);
    assert!(ended.expect(1).problem()["detail"].as_str().unwrap().contains("no such tree"));

    let ended = cogo.run(&["send", "rag", "embed", "--wait", "--timeout", "1", "--json"]).await.expect(6);
    let problem = ended.problem();
    assert_eq!(problem["code"], "timeout");
    assert!(problem["detail"].as_str().unwrap().contains(problem["id"].as_str().unwrap()), "{problem}");
}

#[tokio::test]
async fn breaking_off_the_wait_tells_what_was_sent() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let interrupted = async |arguments: &[&str]| {
        let child = cogo.command(arguments).spawn().unwrap();
        // the wait has begun once it is noted who waits
        eventually("somebody waits", async || {
            let waits = sqlx::query_scalar("select exists (select from bus.watchers)");
            waits.fetch_one(&database.pool).await.unwrap()
        })
        .await;
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        sqlx::query("delete from bus.watchers").execute(&database.pool).await.unwrap();
        ended(output).expect(130)
    };
    let newest = async || {
        let id: uuid::Uuid = sqlx::query_scalar("select id from public.agent_messages order by id desc limit 1")
            .fetch_one(&database.pool)
            .await
            .unwrap();
        id.to_string()
    };
    let problem = interrupted(&["send", "rag", "embed", "--wait", "--json"]).await.problem();
    let id = newest().await;
    assert_eq!((&problem["code"], &problem["id"]), (&json!("interrupted"), &json!(id)));
    assert!(problem["hint"].as_str().unwrap().contains(&format!("cogo trace {id}")), "{problem}");

    let told = interrupted(&["send", "rag", "embed", "--wait"]).await.stderr;
    let id = newest().await;
    assert!(told.contains(&format!("message {id} was sent and goes on")), "{told}");
    assert!(told.contains(&format!("`cogo trace {id} --json`")), "{told}");
}

#[tokio::test]
async fn kinds_that_nobody_writes_are_told_with_those_that_there_are() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let tail = async |kind: &str| cogo.run(&["tail", "--no-follow", "--kind", kind]).await;
    let typo = tail("message_fialed").await.expect(0);
    assert!(typo.stderr.contains("message_fialed") && typo.stderr.contains("message_failed"), "{typo:?}");
    assert_eq!(tail("message_failed").await.expect(0).stderr, "");
    tail("Message").await.expect(2);
    // services may have kinds of their own
    sqlx::query("insert into public.bus_events (kind, tenant) values ('mail_sent', 'acme')")
        .execute(&database.pool)
        .await
        .unwrap();
    let own = tail("mail_sent").await.expect(0);
    assert!(own.stdout.contains("mail_sent") && own.stderr.is_empty(), "{own:?}");
    let help = cogo.run(&["tail", "--help"]).await.expect(0).stdout;
    assert!(help.contains("lease_expired") && help.contains("agent_dead"), "{help}");
}

#[tokio::test]
async fn tail_shows_past_events_by_task_and_kind() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let mut tasks = Vec::new();
    for reason in ["first", "second"] {
        let id = cogo.run(&["send", "rag", "embed"]).await.expect(0).stdout.trim().to_owned();
        give_up(&bus, &claim_next(&bus, &routes::EMBED).await, reason).await;
        tasks.push(id);
    }
    let all = cogo.run(&["tail", "--no-follow", "--json"]).await.expect(0).stdout;
    let reasons: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reasons.iter().map(|event| &event["detail"]["error"]).collect::<Vec<_>>(), ["first", "second"]);

    let one = cogo.run(&["tail", "--no-follow", "--json", "--task", &tasks[1]]).await.expect(0).stdout;
    assert_eq!(one.lines().count(), 1);
    assert!(one.contains("second"));
    let none = cogo.run(&["tail", "--no-follow", "--kind", "execute_done"]).await.expect(0);
    assert_eq!(none.stdout, "");
    let last = cogo.run(&["tail", "--no-follow", "--lines", "1", "--kind", "message_failed"]).await.expect(0).stdout;
    assert!(last.contains("error=second") && !last.contains("error=first"), "{last}");
    cogo.run(&["tail", "--no-follow", "--task", "01999999-0000-7000-8000-000000000000"]).await.expect(3);
}

#[tokio::test]
async fn tail_follows_until_it_is_interrupted() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let fail_one = async |reason: &str| {
        cogo.run(&["send", "rag", "embed"]).await.expect(0);
        give_up(&bus, &claim_next(&bus, &routes::EMBED).await, reason).await;
    };
    fail_one("before").await;
    let mut child = cogo.command(&["tail", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(next().await.contains("before"));
    fail_one("after").await;
    assert!(next().await.contains("after"));

    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended(output).code, 0);
}

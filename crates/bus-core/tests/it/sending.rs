//! Sending: what is accepted, refused, deduplicated and inherited.

use cogo_bus_core::{Bus, Error};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;
use uuid::Uuid;

use crate::support::{ROUTE, bus, claim, claim_one, message, numbered, statuses};

#[tokio::test]
async fn plain_insert_is_a_message() {
    let (bus, _database) = bus().await;
    sqlx::query(
        "insert into public.agent_messages (service, role, shard, tenant, payload) values ('test', 'work', 0, 't', '{}')",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let claimed = claim_one(&bus, "w").await;
    assert_eq!((claimed.tenant.as_str(), claimed.root_id), ("t", claimed.id));
}

#[tokio::test]
async fn a_claim_shows_headers_and_task_of_each() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(claim_one(&bus, "v").await.id, root);
    for half in [1_u16, 3, 50] {
        bus.enqueue_many(&numbered(u32::from(half))).await.unwrap();
        sqlx::query(
            "insert into public.agent_messages (service, role, tenant, payload, parent_id, headers)
             select 'test', 'work', m.tenant, '{}', m.id, jsonb_build_object('n', n)
               from public.agent_messages m, generate_series(1, $2) as n where m.id = $1",
        )
        .bind(root)
        .bind(i32::from(half))
        .execute(bus.pool())
        .await
        .unwrap();
        let claimed = claim(&bus, "w", 100).await;
        let (steps, alone): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|claimed| claimed.parent_id.is_some());
        assert_eq!((steps.len(), alone.len()), (usize::from(half), usize::from(half)));
        assert!(steps.iter().all(|step| step.root_id == root));
        assert!(alone.iter().all(|message| message.root_id == message.id && message.headers.is_empty()));
        let mut numbers: Vec<_> = steps.iter().filter_map(|step| step.headers["n"].as_u64()).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(1..=u64::from(half)));
    }
}

#[tokio::test]
async fn insert_cannot_pretend_to_be_further_on() {
    let (bus, _database) = bus().await;
    for (columns, values) in [
        ("status, done_at", "'done', now()"),
        ("status, claimed_by, lease_until", "'claimed', 'w', now()"),
        ("attempts", "1"),
        ("attempts, released", "1, 1"),
        ("claimed_by", "'w'"),
        ("claimed_at", "now()"),
        ("error", "'x'"),
        ("last_error_at", "now()"),
        ("result", "'1'"),
        ("result_snippet", "'x'"),
        ("result_url", "'x'"),
    ] {
        // alone, beside another, and with what another trigger looks at
        for (rows, parent) in [(1, "null"), (2, "null"), (1, "$1"), (2, "$1")] {
            let parent_id = bus.enqueue(&message(json!({}))).await.unwrap().id;
            let statement = format!(
                "insert into public.agent_messages (service, role, tenant, payload, parent_id, {columns})
                 select 'a', 'b', m.tenant, '{{}}', {parent}, {values}
                   from public.agent_messages m, generate_series(1, {rows}) where m.id = $1"
            );
            let refused = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).bind(parent_id).execute(bus.pool()).await;
            let refused = refused.unwrap_err().into_database_error().unwrap();
            assert_eq!(refused.constraint(), Some("new_message_is_queued_unclaimed_and_without_result"), "{statement}");
        }
    }
    assert_eq!(statuses(&bus).await, [("queued".to_owned(), 44)], "the parents, and nothing else");
}

#[tokio::test]
async fn insert_is_refused_where_a_name_time_or_task_is_unsound() {
    let (bus, _database) = bus().await;
    for columns in [
        "(service, role, tenant, payload, replay_of) values ('a', 'b', 't', '{}', gen_random_uuid())",
        "(service, role, tenant, payload, expires_at) values ('a', 'b', 't', '{}', 'infinity')",
        "(service, role, tenant, payload, retry_at) values ('a', 'b', 't', '{}', '-infinity')",
        "(service, role, tenant, payload) values ('A', 'b', 't', '{}')",
        "(service, role, tenant, payload) values ('a', 'b', 'no tenant', '{}')",
        "(service, role, tenant, payload) values ('a', 'b', 't', '[]')",
        "(service, role, tenant, payload, shard) values ('a', 'b', 't', '{}', -1)",
        "(service, role, tenant, payload, root_id) values ('a', 'b', 't', '{}', gen_random_uuid())",
        "(service, role, tenant, payload, parent_id) values ('a', 'b', 't', '{}', gen_random_uuid())",
    ] {
        let statement = format!("insert into public.agent_messages {columns}");
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(bus.pool()).await;
        assert!(refused.is_err(), "{columns}");
    }
}

#[tokio::test]
async fn every_limit_of_a_message_is_refused_by_its_name() {
    let (bus, _database) = bus().await;
    let cases = [
        ("payload", "'[]'", "payload_is_an_object"),
        ("payload", "jsonb_build_object('x', repeat('x', 1048577))", "payload_at_most_1_mib"),
        ("headers", "'[]'", "headers_are_an_object"),
        ("headers", "jsonb_build_object('x', repeat('x', 16385))", "headers_at_most_16_kib"),
        ("priority", "-1", "priority_between_0_and_1000"),
        ("priority", "1001", "priority_between_0_and_1000"),
        ("max_attempts", "0", "max_attempts_between_1_and_1000"),
        ("max_attempts", "1001", "max_attempts_between_1_and_1000"),
        ("shard", "65536", "shard_between_0_and_65535"),
        ("reply_to", "repeat('x', 201)", "reply_to_at_most_200_characters"),
        ("group_key", "''", "group_key_between_1_and_200_characters"),
        ("group_key", "repeat('x', 201)", "group_key_between_1_and_200_characters"),
        ("idempotency_key", "''", "idempotency_key_between_1_and_200_characters"),
        ("limit_key", "repeat('x', 201)", "limit_key_between_1_and_200_characters"),
        ("target_instance", "repeat('x', 201)", "target_instance_at_most_200_characters"),
        ("expires_at", "'infinity'", "times_are_finite"),
        ("retry_at", "'-infinity'", "times_are_finite"),
    ];
    for (column, value, rule) in cases {
        let (payload, empty) = if column == "payload" { ("", "") } else { (", payload", ", '{}'") };
        let statement = format!(
            "insert into public.agent_messages (service, role, tenant, {column}{payload}) values ('a', 'b', 't', {value}{empty})"
        );
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(bus.pool()).await.unwrap_err();
        let refused = refused.into_database_error().unwrap();
        assert_eq!((refused.constraint(), refused.is_check_violation()), (Some(rule), true), "{column} {value}");
    }
    assert_eq!(statuses(&bus).await, [], "nothing was sent");
}

#[tokio::test]
async fn one_unsound_message_refuses_its_whole_statement() {
    let (bus, _database) = bus().await;
    let mixed = "insert into public.agent_messages (service, role, tenant, payload, priority)
                 select 'a', 'b', 't', '{}', case when n = 3 then 2000 else 1 end from generate_series(1, 5) as n";
    let refused = sqlx::query(mixed).execute(bus.pool()).await.unwrap_err().into_database_error().unwrap();
    assert_eq!(refused.constraint(), Some("priority_between_0_and_1000"));
    assert_eq!(statuses(&bus).await, []);
}

#[tokio::test]
async fn known_idempotency_key_answers_the_first_id() {
    let (bus, _database) = bus().await;
    let mut keyed = message(json!({}));
    keyed.idempotency_key = Some("order-1".to_owned());
    let first = bus.enqueue(&keyed).await.unwrap();
    let second = bus.enqueue(&keyed).await.unwrap();
    assert!(!first.duplicate && second.duplicate);
    assert_eq!(first.id, second.id);
    keyed.tenant = Some(Tenant::new("other").unwrap());
    assert!(!bus.enqueue(&keyed).await.unwrap().duplicate, "keys are per tenant");
    keyed.idempotency_key = Some("order-2".to_owned());
    let twice = bus.enqueue_many(&[keyed.clone(), keyed]).await.unwrap();
    assert_eq!((twice[0].id, twice[0].duplicate), (twice[1].id, false));
}

#[tokio::test]
async fn concurrent_senders_of_one_key_make_one_message() {
    let (bus, _database) = bus().await;
    let mut keyed = message(json!({}));
    keyed.idempotency_key = Some("same".to_owned());
    let sends = (0..8).map(|_| {
        let (bus, keyed) = (bus.clone(), keyed.clone());
        async move { bus.enqueue(&keyed).await.unwrap() }
    });
    let sent = futures_util::future::join_all(sends).await;
    assert!(sent.iter().all(|one| one.id == sent[0].id));
    assert_eq!(claim(&bus, "w", 10).await.len(), 1);
}

#[tokio::test]
async fn message_sent_in_a_transaction_exists_only_if_it_commits() {
    let (bus, _database) = bus().await;
    let mut transaction = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut transaction, &message(json!({}))).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(claim(&bus, "w", 1).await.is_empty());
}

#[tokio::test]
async fn content_against_the_contract_is_refused_and_nothing_is_sent() {
    let (bus, _database) = bus().await;
    let mut batch = numbered(3);
    batch.push(message(json!(["not an object"])));
    assert!(matches!(bus.enqueue_many(&batch).await, Err(Error::Refused { .. })));
    let incompressible: Vec<u32> = (0..400_000_u32).map(|number| number.wrapping_mul(2_654_435_761)).collect();
    let oversized = message(json!({ "numbers": incompressible }));
    let Err(Error::Refused { reason, .. }) = bus.enqueue(&oversized).await else { panic!("accepted") };
    assert_eq!(reason, "payload at most 1 mib");
    let mut nul = message(json!({}));
    nul.payload = json!({"text": "a\0b"});
    assert!(matches!(bus.enqueue(&nul).await, Err(Error::Refused { .. })));
    let without_tenant = NewMessage::new(ROUTE, None, json!({}));
    assert!(matches!(bus.enqueue(&without_tenant).await, Err(Error::Refused { .. })));
    assert!(claim(&bus, "w", 10).await.is_empty());
}

#[tokio::test]
async fn unknown_field_is_named() {
    let (bus, _database) = bus().await;
    let refused = sqlx::query("select * from bus.enqueue_many('[{\"service\": \"a\", \"prioritty\": 1}]')")
        .execute(bus.pool())
        .await;
    assert!(refused.unwrap_err().to_string().contains("prioritty"));
}

#[tokio::test]
async fn child_inherits_task_and_deadline_and_never_crosses_tenants() {
    let (bus, _database) = bus().await;
    let mut root = message(json!({}));
    root.ttl_ms = Some(60_000);
    let root_id = bus.enqueue(&root).await.unwrap().id;
    let insert = "insert into public.agent_messages (service, role, tenant, payload, parent_id, expires_at)
                  values ('test', 'child', $1, '{}', $2, clock_timestamp() + interval '1 day')
                  returning root_id = $2 and expires_at < clock_timestamp() + interval '2 minutes'";
    let inherited: bool = sqlx::query_scalar(insert).bind("acme").bind(root_id).fetch_one(bus.pool()).await.unwrap();
    assert!(inherited);
    let crossing = sqlx::query_scalar::<_, bool>(insert).bind("other").bind(root_id).fetch_one(bus.pool()).await;
    assert!(crossing.is_err());
}

#[tokio::test]
async fn time_of_sending_is_the_databases() {
    let (bus, _database) = bus().await;
    let young: bool = sqlx::query_scalar(
        "insert into public.agent_messages (service, role, tenant, payload, created_at)
         values ('test', 'work', 't', '{}', '-infinity')
         returning created_at > clock_timestamp() - interval '1 minute'",
    )
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert!(young);
}

#[tokio::test]
async fn cancelled_task_takes_no_more_children() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    bus.cancel(root).await.unwrap();
    let child = "insert into public.agent_messages (service, role, tenant, payload, parent_id)
                 values ('test', 'child', 'acme', '{}', $1)";
    assert!(sqlx::query(child).bind(root).execute(bus.pool()).await.is_err());
}

#[tokio::test]
async fn nothing_awaited_may_be_said_by_null() {
    let (bus, _database) = bus().await;
    let send = r#"select count(*) from bus.enqueue_many(
                    '[{"service": "test", "role": "work", "tenant": "acme", "awaits": null}]')"#;
    assert_eq!(sqlx::query_scalar::<_, i64>(send).fetch_one(bus.pool()).await.unwrap(), 1);
    assert_eq!(claim(&bus, "w", 1).await.len(), 1);
}

#[tokio::test]
async fn value_from_a_table_is_as_large_as_what_a_worker_gets() {
    let (bus, _database) = bus().await;
    sqlx::raw_sql(
        "create table staging (name text, payload jsonb, headers jsonb);
         insert into staging values
           ('fits', jsonb_build_object('text', repeat('x', 500000)), '{}'),
           ('payload', jsonb_build_object('text', repeat('x', 5000000)), '{}'),
           ('headers', '{}', jsonb_build_object('text', repeat('x', 100000)))",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    for (name, rule) in
        [("fits", None), ("payload", Some("payload_at_most_1_mib")), ("headers", Some("headers_at_most_16_kib"))]
    {
        for several in ["", " union all select 'test', 'work', 'acme', '{}', '{}'"] {
            let send = format!(
                "insert into public.agent_messages (service, role, tenant, payload, headers)
                 select 'test', 'work', 'acme', payload, headers from staging where name = '{name}'{several}"
            );
            let sent = sqlx::query(sqlx::AssertSqlSafe(send)).execute(bus.pool()).await;
            let broken = sent.err().and_then(|error| Some(error.as_database_error()?.constraint()?.to_owned()));
            assert_eq!(broken.as_deref(), rule, "{name}");
        }
    }
}

#[tokio::test]
async fn step_named_as_the_task_stands_for_its_task() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let send = "insert into public.agent_messages (service, role, tenant, payload, parent_id, root_id)
                values ('test', 'work', 'acme', '{}', $1, $2) returning id";
    let step: Uuid = sqlx::query_scalar(send).bind(root).bind(None::<Uuid>).fetch_one(bus.pool()).await.unwrap();
    let next: Uuid = sqlx::query_scalar(send).bind(None::<Uuid>).bind(step).fetch_one(bus.pool()).await.unwrap();
    let task = bus.task(root).await.unwrap().unwrap();
    assert!(task.steps.iter().any(|one| one.id == next));
    assert_eq!(bus.cancel(root).await.unwrap(), 3);
}

//! `cogo schema`.

use serde_json::{Value, json};

use crate::support::Cogo;

const FIRST: &str =
    r#"{"type": "object", "properties": {"amount": {"type": "integer"}}, "additionalProperties": false}"#;
const BREAKS: &str = r#"{"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"], "additionalProperties": false}"#;

#[tokio::test]
async fn schemas_are_registered_listed_shown_and_checked() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let empty = cogo.run(&["schema", "list"]).await.expect(0);
    assert_eq!((empty.stdout.as_str(), empty.stderr.trim()), ("", "no schemas"));
    let file = format!("@{}", cogo.file("pay.json", FIRST).display());
    let registered = cogo.run(&["schema", "register", "bank/pay", &file, "--note", "first", "--author", "me"]).await;
    assert_eq!(registered.expect(0).stdout, "bank/pay/request registered version 1\n");
    let again = cogo.run(&["schema", "register", "bank/pay/request", &file, "--json"]).await.expect(0).json();
    assert_eq!((&again["version"], &again["added"]), (&json!(1), &json!(false)));

    let listed = cogo.run(&["schema", "ls", "--json"]).await.expect(0).json();
    assert_eq!((&listed[0]["subject"], &listed[0]["compatibility"]), (&json!("bank/pay/request"), &json!("backward")));
    assert!(cogo.run(&["schema", "list"]).await.expect(0).stdout.contains("bank/pay/request"));
    let shown: Value = cogo.run(&["schema", "show", "bank/pay"]).await.expect(0).json();
    assert_eq!(shown, serde_json::from_str::<Value>(FIRST).unwrap());
    let history = cogo.run(&["schema", "show", "bank/pay", "--history"]).await.expect(0).stdout;
    assert!(history.contains("first") && history.contains("me"), "{history}");

    let fits = cogo.run(&["schema", "check", "bank/pay", "--data", r#"{"amount": 3}"#]).await.expect(0);
    assert_eq!(fits.stdout, "fits bank/pay/request version 1\n");
    let broken = cogo.run(&["schema", "check", "bank/pay", "--data", r#"{"amount": "x"}"#, "--json"]).await.expect(1);
    assert!(broken.problem()["detail"].as_str().unwrap().contains("/amount: "), "{broken:?}");
    for (words, code) in [
        (&["schema", "show", "bank/other"][..], 3),
        (&["schema", "show", "bank/pay", "--version", "2"], 3),
        (&["schema", "check", "bank/pay"], 2),
        (&["schema", "check", "bank/pay", "--data", "{"], 2),
        (&["schema", "register", "bank", "{}"], 2),
        (&["schema", "register", "bank/pay", r#"{"type": "objekt"}"#], 2),
        (&["schema", "register", "bank/pay", "{}", "--compatibility", "upward"], 2),
    ] {
        cogo.run(words).await.expect(code);
    }
}

#[tokio::test]
async fn schema_that_breaks_the_rule_is_a_conflict_with_path_and_rule() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    cogo.run(&["schema", "register", "bank/pay", FIRST]).await.expect(0);
    let told = "/properties/amount: field became required without default breaks backward compatibility with version 1";
    for words in
        [["schema", "check", "bank/pay", "--schema", BREAKS], ["schema", "register", "bank/pay", BREAKS, "--json"]]
    {
        let refused = cogo.run(&words).await.expect(4);
        assert!(refused.stderr.contains(told), "{refused:?}");
    }
    let forward =
        ["schema", "check", "bank/pay", "--schema", BREAKS, "--compatibility", "forward-transitive", "--json"];
    assert_eq!(cogo.run(&forward).await.expect(0).json()["compatible"], true);
    let forced = ["schema", "register", "bank/pay", BREAKS, "--compatibility", "none"];
    assert_eq!(cogo.run(&forced).await.expect(0).stdout, "bank/pay/request registered version 2\n");
}

#[tokio::test]
async fn a_payload_that_breaks_its_schema_is_not_sent() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    cogo.run(&["schema", "register", "bank/pay", FIRST]).await.expect(0);
    let refused = cogo.run(&["send", "bank", "pay", "--data", r#"{"amount": "x"}"#, "--json"]).await.expect(2);
    let problem = refused.problem();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("breaks schema bank/pay/request version 1: /amount: "), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("cogo schema show bank/pay"), "{problem}");
    let unknown = cogo.run(&["send", "bank", "pay", "--data", r#"{"amuont": 3}"#]).await.expect(2);
    assert!(unknown.stderr.contains("amuont"), "{unknown:?}");
    let messages: i64 =
        sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(&database.pool).await.unwrap();
    assert_eq!(messages, 0);

    let id = cogo.run(&["send", "bank", "pay", "--data", r#"{"amount": 3}"#]).await.expect(0).stdout;
    let version: Value =
        sqlx::query_scalar("select m.headers -> 'schema-version' from public.agent_messages m where m.id = $1")
            .bind(id.trim().parse::<uuid::Uuid>().unwrap())
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert_eq!(version, json!(1), "claimed as what it was sent as, whatever is registered meanwhile");
    cogo.run(&["send", "bank", "other", "--data", r#"{"anything": 1}"#]).await.expect(0);
}

//! `cogo key`.

use cogo_registry_core::{AgentKey, Error, Registry};
use serde_json::json;

use crate::support::{Cogo, registration};

#[tokio::test]
async fn a_key_is_shown_once_and_opens_its_name_until_it_is_revoked() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let cogo = Cogo::on(&database.url);
    let empty = cogo.run(&["key", "list"]).await.expect(0);
    assert_eq!((empty.stdout.as_str(), empty.stderr.trim()), ("", "no keys"));
    let stranger = registry.register(&registration("rag", "rag-embed", 0)).await.unwrap();

    let issued = cogo.run(&["key", "issue", "rag-embed", "--label", "the cellar"]).await.expect(0);
    let key = AgentKey::parse(&issued.stdout).unwrap();
    assert_eq!(issued.stdout.lines().count(), 1, "nothing but the key, so that a script can take it");
    assert!(!issued.stderr.contains(key.reveal()), "{issued:?}");
    assert!(issued.stderr.contains("rag-embed/0 is in without a key"), "{issued:?}");
    let second = cogo.run(&["key", "issue", "rag-embed", "--json"]).await.expect(0).json();
    let second_key = AgentKey::parse(second["key"].as_str().unwrap()).unwrap();
    registry.beat(&stranger, 1, 0).await.unwrap();
    assert!(matches!(registry.register(&registration("rag", "rag-embed", 1)).await, Err(Error::KeyRefused)));
    let joined = registry.register(&registration("rag", "rag-embed", 1).key(&key)).await.unwrap();
    registry.register(&registration("rag", "rag-embed", 2).key(&second_key)).await.unwrap();

    let listed = cogo.run(&["key", "ls", "--name", "rag-embed", "--json"]).await.expect(0);
    let [first, other]: [serde_json::Value; 2] = listed.json().as_array().unwrap().clone().try_into().unwrap();
    assert_eq!((&first["label"], &first["agents"]), (&json!("the cellar"), &json!(["rag-embed/1"])));
    assert_eq!((&other["key_id"], &other["agents"]), (&second["key_id"], &json!(["rag-embed/2"])));
    for shown in [&listed.stdout, &cogo.run(&["key", "list"]).await.expect(0).stdout] {
        assert!(!shown.contains(key.reveal()) && !shown.contains("proof"), "{shown}");
    }

    let id = first["key_id"].as_str().unwrap();
    let revoked = cogo.run(&["key", "revoke", id, "--author", "ops", "--json"]).await.expect(0).json();
    assert_eq!((&revoked["revoked"], &revoked["ended"]), (&json!(true), &json!(1)));
    assert!(matches!(registry.beat(&joined, 1, 0).await, Err(Error::Ended { .. })), "who joined with it is out");
    assert!(matches!(registry.register(&registration("rag", "rag-embed", 1).key(&key)).await, Err(Error::KeyRefused)));
    cogo.run(&["key", "revoke", id]).await.expect(4);
    assert!(cogo.run(&["key", "list"]).await.expect(0).stdout.contains("revoked "));
}

#[tokio::test]
async fn a_name_whose_last_key_is_revoked_stays_shut_until_it_is_opened() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let cogo = Cogo::on(&database.url);
    let issued = cogo.run(&["key", "issue", "rag-embed", "--json"]).await.expect(0).json();
    let key = AgentKey::parse(issued["key"].as_str().unwrap()).unwrap();
    let joined = registry.register(&registration("rag", "rag-embed", 0).key(&key)).await.unwrap();
    cogo.run(&["key", "open", "rag-embed"]).await.expect(4);
    let gently = cogo.run(&["key", "revoke", issued["key_id"].as_str().unwrap(), "--keep-running"]).await.expect(0);
    assert!(gently.stderr.contains("has no key left"), "{gently:?}");
    registry.beat(&joined, 1, 0).await.unwrap();
    for shown in [registration("rag", "rag-embed", 0).key(&key), registration("rag", "rag-embed", 0)] {
        assert!(matches!(registry.register(&shown).await, Err(Error::KeyRefused)));
    }
    let opened = cogo.run(&["key", "open", "rag-embed", "--json"]).await.expect(0).json();
    assert_eq!(opened, json!({"name": "rag-embed", "forgotten": 1}));
    registry.register(&registration("rag", "rag-embed", 0)).await.unwrap();
    cogo.run(&["key", "open", "rag-embed"]).await.expect(3);
}

#[tokio::test]
async fn keys_that_cannot_be_are_refused_by_kind() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    for (words, code) in [
        (&["key", "issue", "Rag"][..], 2),
        (&["key", "issue", "rag-embed", "--label", ""], 2),
        (&["key", "revoke", "cogo_ak_abc"], 2),
        (&["key", "revoke", "01999999-0000-7000-8000-000000000000"], 3),
        (&["key"], 2),
    ] {
        cogo.run(words).await.expect(code);
    }
}

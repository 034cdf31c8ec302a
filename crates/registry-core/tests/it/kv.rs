//! Values with a time to live, and compare-and-set among many writers.

use std::time::Duration;

use cogo_registry_core::Kv;
use cogo_test_support::{TestDatabase, database};
use serde_json::json;
use tokio::task::JoinSet;

const AGE: Duration = Duration::from_secs(3600);

/// Lets the time of every value pass.
async fn expire(database: &TestDatabase) {
    sqlx::query("update registry.kv set expires_at = clock_timestamp() - interval '1 ms' where expires_at is not null")
        .execute(&database.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_value_holds_for_its_time_and_no_longer() {
    let database = database().await;
    let kv = Kv::new(database.pool.clone(), "rag");
    kv.put("for-ever", &json!(1), None).await.unwrap();
    kv.put("a-while", &json!({"a": 2}), Some(AGE)).await.unwrap();
    let held = kv.get("a-while").await.unwrap().unwrap();
    assert_eq!(held.value, json!({"a": 2}));
    assert!(held.remaining.unwrap() <= AGE);
    expire(&database).await;
    assert_eq!(kv.get("a-while").await.unwrap(), None);
    assert!(!kv.delete("a-while", None).await.unwrap(), "it was gone before");
    kv.put("another", &json!(3), Some(AGE)).await.unwrap();
    expire(&database).await;
    assert_eq!(kv.sweep(10).await.unwrap(), 1);
    assert_eq!(kv.get("for-ever").await.unwrap().unwrap().value, json!(1));
    assert!(kv.delete("for-ever", None).await.unwrap());
    assert_eq!(kv.get("for-ever").await.unwrap(), None);
    assert_eq!(Kv::new(database.pool.clone(), "kg").get("for-ever").await.unwrap(), None);
}

#[tokio::test]
async fn a_value_is_set_over_the_version_that_was_read_and_no_other() {
    let database = database().await;
    let kv = Kv::new(database.pool.clone(), "rag");
    let first = kv.put_new("key", &json!(1), Some(AGE)).await.unwrap().unwrap();
    assert_eq!(kv.put_new("key", &json!(2), None).await.unwrap(), None);
    let second = kv.compare_and_set("key", first, &json!(2), Some(AGE)).await.unwrap().unwrap();
    assert_eq!(kv.compare_and_set("key", first, &json!(3), None).await.unwrap(), None);
    assert!(!kv.delete("key", Some(first)).await.unwrap());
    expire(&database).await;
    assert_eq!(kv.compare_and_set("key", second, &json!(4), None).await.unwrap(), None, "what is over is gone");
    let third = kv.put_new("key", &json!(5), None).await.unwrap().unwrap();
    assert!(third > second, "a version is never used again");
    assert_eq!(kv.compare_and_set("missing", 7, &json!(1), None).await.unwrap(), None);
}

#[tokio::test]
async fn of_many_that_count_at_once_none_is_lost() {
    let database = database().await;
    let kv = Kv::new(database.pool.clone(), "rag");
    kv.put("count", &json!(0), None).await.unwrap();
    let mut counting = JoinSet::new();
    for _ in 0..8 {
        let kv = kv.clone();
        counting.spawn(async move {
            for _ in 0..10 {
                loop {
                    let held = kv.get("count").await.unwrap().unwrap();
                    let next = json!(held.value.as_i64().unwrap() + 1);
                    if kv.compare_and_set("count", held.version, &next, None).await.unwrap().is_some() {
                        break;
                    }
                }
            }
        });
    }
    counting.join_all().await;
    assert_eq!(kv.get("count").await.unwrap().unwrap().value, json!(80));
}

#[tokio::test]
async fn memory_answers_within_the_age_and_forgets_what_is_written_here() {
    let database = database().await;
    let (here, there) = (Kv::new(database.pool.clone(), "rag"), Kv::new(database.pool.clone(), "rag"));
    here.put("key", &json!(1), None).await.unwrap();
    assert_eq!(here.get_within("key", AGE).await.unwrap().unwrap().value, json!(1));
    there.put("key", &json!(2), None).await.unwrap();
    assert_eq!(here.get_within("key", AGE).await.unwrap().unwrap().value, json!(1), "as old as was allowed");
    assert_eq!(here.get_within("key", Duration::ZERO).await.unwrap().unwrap().value, json!(2));
    here.put("key", &json!(3), None).await.unwrap();
    assert_eq!(here.get_within("key", AGE).await.unwrap().unwrap().value, json!(3), "own writes are seen");
    here.put("short", &json!(1), Some(Duration::from_millis(1))).await.unwrap();
    while here.get_within("short", AGE).await.unwrap().is_some() {}
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let database = database().await;
    let kv = Kv::new(database.pool.clone(), "rag");
    assert!(kv.put("", &json!(1), None).await.is_err());
    assert!(kv.put("key", &json!(1), Some(Duration::ZERO)).await.is_err());
    assert!(Kv::new(database.pool.clone(), "Not a name").put("key", &json!(1), None).await.is_err());
}

//! Clients whose clocks are hours off: time is the database's, whatever they believe and make their ids from.

use cogo_bus_check::Start;
use uuid::Uuid;

use crate::support::{Stage, keeper, message, producer, worker};

const TWO_HOURS_MS: i64 = 7_200_000;

#[tokio::test(flavor = "multi_thread")]
async fn clocks_two_hours_off_change_nothing() {
    let mut stage = Stage::new().await;
    let mut producers = Vec::new();
    for skew_ms in [-TWO_HOURS_MS, TWO_HOURS_MS] {
        stage.start(Start { skew_ms, ..Start::new(keeper()) }).await;
        stage.start(Start { skew_ms, ..Start::new(worker()) }).await;
        producers.push(stage.start(Start { skew_ms, ..Start::new(producer(150)) }).await);
    }
    for name in &producers {
        stage.scene.ended(name).await.unwrap();
    }
    stage.holds().await;
    let history = stage.scene.history().unwrap();
    assert!(history.iter().any(|call| call.client_ms - call.invoked_us / 1000 >= TWO_HOURS_MS - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_any_time_or_none_are_kept_and_run() {
    let mut stage = Stage::new().await;
    let bus = stage.local("ids");
    let at = |milliseconds| uuid::Builder::from_unix_timestamp_millis(milliseconds, &[7; 10]).into_uuid();
    let end_of_time = (1 << 48) - 1;
    let ids = [at(0), at(1_000), at(end_of_time), Uuid::from_u128(u128::MAX - 1), Uuid::from_u128(1), Uuid::new_v4()];
    for id in ids {
        let mut odd = message(serde_json::json!({"act": "follow"}));
        odd.id = Some(id);
        assert_eq!(bus.enqueue_many(&[odd]).await.unwrap()[0].id, id);
    }
    stage.keepers(1).await;
    stage.workers(1).await;
    let report = stage.holds().await;
    assert_eq!(report.messages, 3 * ids.len());
}

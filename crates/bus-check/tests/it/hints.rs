//! Notifications that are lost, doubled or come in another order: they are hints, the claim is the truth.

use cogo_bus_check::{Hints, Proxy, Start};

use crate::support::{Stage, worker};

#[tokio::test(flavor = "multi_thread")]
async fn lost_doubled_and_reordered_notifications_change_nothing() {
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    let mut proxies = Vec::new();
    for hints in [Hints::Lose, Hints::Double, Hints::Reorder] {
        let (proxy, through) = Proxy::before(&stage.url).await.unwrap();
        proxy.hints(hints);
        stage.start(Start { url: Some(through), ..Start::new(worker()) }).await;
        proxies.push(proxy);
    }
    stage.produce(300).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_when_every_notification_is_lost() {
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    let (proxy, through) = Proxy::before(&stage.url).await.unwrap();
    proxy.hints(Hints::Lose);
    for _ in 0..2 {
        stage.start(Start { url: Some(through.clone()), ..Start::new(worker()) }).await;
    }
    stage.produce(200).await;
    stage.holds().await;
}

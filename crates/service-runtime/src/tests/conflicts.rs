//! What handlers meet because of the state of something else, as a route that is being drained: it goes by.

use super::*;

const NEXT: Route = Route::constant("test", "next");

/// Sends a message of its own, at once or with its completion.
struct Sending {
    bus: Bus,
}

impl Handler for Sending {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    async fn handle(&self, order: Order, claim: &Claim) -> Result<Value, HandlerError> {
        let message = NewMessage::new(NEXT, Some(Tenant::new("acme").unwrap()), json!({}));
        if order.what == "send at once" {
            self.bus.enqueue(&message).await?;
        } else {
            claim.within_completion(move |connection| {
                let message = message.clone();
                Box::pin(async move { Bus::enqueue_in(connection, &message).await.map(drop) })
            });
        }
        Ok(json!({}))
    }
}

#[tokio::test]
async fn message_that_meets_a_route_being_drained_is_done_once_that_is_open_again() {
    let database = cogo_test_support::database().await;
    let (pool, bus) = (database.pool.clone(), Bus::new(database.pool.clone()));
    let pace = Pace { poll: Duration::from_millis(50), ..pace() };
    let running = Running::start_with(database, pool, true, pace, |_| Sending { bus: bus.clone() });
    bus.drain_route(&NEXT, "test").await.unwrap();
    let again_and_again = |message: &mut NewMessage| message.max_attempts = Some(100);
    let at_once = running.send_with("send at once", again_and_again).await;
    let ids = [at_once, running.send_with("send with the completion", again_and_again).await];
    for id in ids {
        let tried = running.until(id, |task| task.status.is_terminal() || task.steps[0].error.is_some()).await;
        assert!(!tried.status.is_terminal(), "{tried:?}");
    }
    bus.open_route(&NEXT, "test").await.unwrap();
    for id in ids {
        let task = running.ended(id).await;
        assert_eq!(task.status, TaskStatus::Done, "{task:?}");
        assert!(task.steps[0].attempts > 1);
    }
    drop(running.finish().await);
}

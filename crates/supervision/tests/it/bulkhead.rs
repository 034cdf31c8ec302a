//! Bulkheads: bounded concurrency, bounded waiting, fairness, and nothing lost when callers go away.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use cogo_supervision::{
    budget::Budget,
    bulkhead::{Bulkhead, Bulkheads, Refused, Settings},
    clock::Clock,
};
use futures_util::{FutureExt, future::poll_fn, poll};
use tokio_util::task::TaskTracker;

fn bulkhead(concurrent: usize, waiting: usize) -> Bulkhead {
    Bulkhead::new(Settings { concurrent, waiting, ..Settings::default() })
}

#[tokio::test]
async fn beyond_its_calls_and_its_seats_a_domain_is_full() {
    let bulkhead = bulkhead(1, 1);
    let inside = bulkhead.enter("a").await.unwrap();
    let mut waits = pin!(bulkhead.enter("a"));
    assert!(poll!(&mut waits).is_pending());
    assert_eq!(bulkhead.enter("a").await.unwrap_err(), Refused::Full);
    assert_eq!(bulkhead.try_enter("a").unwrap_err(), Refused::Full);
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 1));
    drop(inside);
    let inside = waits.await.unwrap();
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 0));
    drop(inside);
    assert_eq!(bulkhead.running(), 0);
}

#[tokio::test]
async fn nobody_waits_longer_than_patience_or_budget() {
    let short = Duration::from_millis(5);
    let bulkhead = Bulkhead::new(Settings { concurrent: 0, patience: short, ..Settings::default() });
    assert!(matches!(bulkhead.enter("a").await, Err(Refused::TimedOut { waited }) if waited >= short));
    let patient = Bulkhead::new(Settings { concurrent: 0, patience: Duration::from_secs(3600), ..Settings::default() });
    let budget = Budget::new(Clock::system(), short);
    assert!(matches!(patient.enter_within("a", &budget).await, Err(Refused::TimedOut { .. })));
    assert_eq!(patient.waiting(), 0);
}

#[tokio::test]
async fn a_tenant_that_floods_neither_starves_nor_shuts_out_another() {
    let bulkhead = bulkhead(1, 4);
    let inside = bulkhead.enter("loud").await.unwrap();
    let mut loud: Vec<_> = (0..4).map(|_| Box::pin(bulkhead.enter("loud"))).collect();
    for waits in &mut loud {
        assert!(poll!(waits).is_pending());
    }
    let mut calm = pin!(bulkhead.enter("calm"));
    assert!(poll!(&mut calm).is_pending(), "it got one of the four seats");
    assert!(matches!(poll!(&mut loud[3]), Poll::Ready(Err(Refused::Displaced))));
    drop(inside);
    let inside = calm.await.unwrap();
    assert!(loud.iter_mut().take(3).all(|waits| waits.now_or_never().is_none()), "the calm one came first");
    drop(inside);
    drop(loud.remove(0).await.unwrap());
}

#[tokio::test]
async fn a_limit_per_tenant_leaves_room_for_others() {
    let bulkhead = Bulkhead::new(Settings { concurrent: 3, per_tenant: 1, ..Settings::default() });
    let _loud = bulkhead.enter("loud").await.unwrap();
    let mut more = pin!(bulkhead.enter("loud"));
    assert!(poll!(&mut more).is_pending());
    let _calm = bulkhead.enter("calm").await.unwrap();
    assert_eq!(bulkhead.running(), 2);
}

#[tokio::test]
async fn a_place_that_was_given_to_somebody_who_is_gone_goes_on_to_the_next() {
    let bulkhead = bulkhead(1, 4);
    let inside = bulkhead.enter("a").await.unwrap();
    let mut goes = Box::pin(bulkhead.enter("a"));
    let mut stays = pin!(bulkhead.enter("a"));
    assert!(poll!(&mut goes).is_pending());
    assert!(poll!(&mut stays).is_pending());
    drop(inside);
    // it has been called and does not know yet
    drop(goes);
    let inside = stays.await.unwrap();
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (1, 0));
    drop(inside);
}

#[tokio::test]
async fn domains_do_not_take_each_others_room() {
    let one = Settings { concurrent: 1, waiting: 0, ..Settings::default() };
    let domains = Bulkheads::new([("rag".to_owned(), one), ("kg".to_owned(), one)]);
    let _rag = domains.of("rag").unwrap().try_enter("a").unwrap();
    assert!(domains.of("rag").unwrap().try_enter("a").is_err());
    assert!(domains.of("kg").unwrap().try_enter("a").is_ok());
    assert!(domains.of("nobody").is_none());
}

/// Yields a few times, so that others get in between.
async fn dawdle(times: usize) {
    for _ in 0..times {
        let mut yielded = false;
        poll_fn(|context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_bound_holds_and_no_place_is_lost_under_concurrency() {
    const CONCURRENT: usize = 3;
    let bulkhead = bulkhead(CONCURRENT, 32);
    let (inside, most, served) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks = TaskTracker::new();
    for caller in 0..48_usize {
        let bulkhead = bulkhead.clone();
        let (inside, most, served) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&served));
        tasks.spawn(async move {
            for round in 0..200 {
                let enter = bulkhead.enter(["a", "b", "c"][caller % 3]);
                let entry = if (caller + round) % 5 == 0 {
                    // gives up at some moment, perhaps just when it is called
                    tokio::select! {
                        entry = enter => entry,
                        () = dawdle(round % 7) => continue,
                    }
                } else {
                    enter.await
                };
                let Ok(entry) = entry else { continue };
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                dawdle(round % 3).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                served.fetch_add(1, Ordering::SeqCst);
                drop(entry);
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    assert!(most.load(Ordering::SeqCst) <= CONCURRENT, "{} at once", most.load(Ordering::SeqCst));
    assert!(served.load(Ordering::SeqCst) > 1_000, "only {} were served", served.load(Ordering::SeqCst));
    assert_eq!((bulkhead.running(), bulkhead.waiting()), (0, 0));
    let entries: Vec<_> = (0..CONCURRENT).map(|_| bulkhead.try_enter("a").unwrap()).collect();
    assert_eq!(entries.len(), CONCURRENT);
}

#[tokio::test]
async fn entering_is_lazy() {
    let bulkhead = bulkhead(1, 1);
    let never_polled = bulkhead.enter("a");
    assert_eq!(bulkhead.running(), 0);
    drop(never_polled);
    fn is_send<T: Future + Send>(_: T) {}
    is_send(bulkhead.enter("a"));
}

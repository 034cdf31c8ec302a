//! Trees of real tokio tasks.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use cogo_supervision::{
    Backoff, ChildSpec, End, Exit, GroupSpec, Happened, NodeState, Restart, Shutdown, Strategy, Supervisor,
    TaskContext, Work, core::CallError,
};
use tokio::time::timeout;

use crate::waiting::{HOUR, LONG, hasty_options, options, until};

fn group(strategy: Strategy) -> GroupSpec<Work> {
    GroupSpec::new(strategy).intensity(100, HOUR)
}

/// Ends when it is told to.
async fn good(context: TaskContext) {
    context.stop().cancelled().await;
}

#[tokio::test]
async fn a_task_that_fails_is_started_again_and_the_tree_says_why() {
    let lives = Arc::new(AtomicU32::new(0));
    let work = Work::task(move |context: TaskContext| {
        let life = lives.fetch_add(1, Ordering::Relaxed);
        async move {
            assert!(life != 1, "life number {life}");
            if life == 0 {
                return Err("no luck");
            }
            context.stop().cancelled().await;
            Ok(())
        }
    });
    let handle = Supervisor::start(group(Strategy::OneForOne).child(ChildSpec::worker("a", work)), &options()).unwrap();
    let mut events = handle.events();
    let tree = until(&handle, |tree| tree.children[0].restarts == 2).await;
    assert_eq!(tree.children[0].state, NodeState::Running);
    let exit = &tree.children[0].last_exit.as_ref().unwrap().exit;
    assert_eq!(*exit, Exit::Abnormal("panicked: life number 1".to_owned()));
    handle.shutdown();
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!(outcome.end, End::Shutdown);
    let last = outcome.tree.children[0].clone();
    assert_eq!((last.state, last.last_exit.unwrap().exit), (NodeState::Stopped, Exit::Shutdown));
    assert_eq!(handle.tree().await, outcome.tree);
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push((event.path, event.happened));
    }
    let failed = Happened::Exited { exit: Exit::Abnormal("no luck".to_owned()) };
    assert!(told.contains(&("a".to_owned(), failed)), "{told:?}");
    assert!(told.contains(&("a".to_owned(), Happened::Started { restarts: 1 })), "{told:?}");
}

#[tokio::test]
async fn a_task_that_does_not_listen_is_dropped_before_its_successor_starts() {
    struct Alive(Arc<AtomicU32>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let alive = Arc::new(AtomicU32::new(0));
    let deaf = {
        let alive = Arc::clone(&alive);
        Work::task(move |_| {
            assert_eq!(alive.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            let alive = Alive(Arc::clone(&alive));
            async move {
                let _alive = alive;
                pending::<()>().await;
            }
        })
    };
    let starts = Arc::new(AtomicU32::new(0));
    let flaky = {
        let starts = Arc::clone(&starts);
        Work::task(move |context| {
            let is_good = starts.fetch_add(1, Ordering::SeqCst) >= 20;
            async move {
                if is_good {
                    good(context).await;
                }
            }
        })
    };
    let deaf = ChildSpec::worker("deaf", deaf).shutdown(Shutdown::Timeout(Duration::from_millis(5)));
    let spec = group(Strategy::OneForAll).child(deaf).child(ChildSpec::worker("flaky", flaky));
    let handle = Supervisor::start(spec, &options()).unwrap();
    let tree = until(&handle, |tree| tree.children[1].restarts == 20).await;
    assert_eq!(tree.children[0].restarts, 20);
    assert_eq!(tree.children[0].last_exit.as_ref().unwrap().exit, Exit::Killed);
    handle.shutdown();
    timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_task_that_never_yields_is_reported_as_leaked_and_ends_the_tree() {
    let release = Arc::new(AtomicBool::new(false));
    let spinning = {
        let release = Arc::clone(&release);
        Work::task(move |_| {
            let release = Arc::clone(&release);
            async move {
                while !release.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
    };
    let spinning = ChildSpec::worker("spinning", spinning).shutdown(Shutdown::Timeout(Duration::from_millis(20)));
    let inner = ChildSpec::group("inner", group(Strategy::OneForOne).child(spinning));
    let spec = group(Strategy::OneForOne).child(ChildSpec::worker("good", Work::task(good))).child(inner);
    let handle = Supervisor::start(spec, &hasty_options()).unwrap();
    let mut events = handle.events();
    handle.started().await.unwrap();
    assert_eq!(handle.terminate_child("inner/spinning").await, Err(CallError::Ended));
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!(outcome.end, End::Leaked { paths: vec!["inner/spinning".to_owned()] });
    assert_eq!(outcome.tree.find("good").unwrap().last_exit.as_ref().unwrap().exit, Exit::Shutdown);
    let mut leaks = 0;
    while let Ok(event) = events.try_recv() {
        leaks += u32::from(event.happened == Happened::Leaked);
    }
    assert_eq!(leaks, 1);
    release.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn children_come_and_go_while_the_tree_runs() {
    let handle = Supervisor::start(group(Strategy::RestForOne), &options()).unwrap();
    handle.started().await.unwrap();
    let inner = ChildSpec::group("g", group(Strategy::OneForOne));
    handle.start_child("", inner).await.unwrap();
    let child = || ChildSpec::worker("a", Work::task(good));
    assert_eq!(handle.start_child("h", child()).await, Err(CallError::NoSuchGroup { path: "h".to_owned() }));
    handle.start_child("g", child()).await.unwrap();
    assert_eq!(handle.start_child("g", child()).await, Err(CallError::AlreadyStarted));
    assert_eq!(handle.delete_child("g/a").await, Err(CallError::Running));
    handle.terminate_child("g/a").await.unwrap();
    assert_eq!(handle.start_child("g", child()).await, Err(CallError::AlreadyPresent));
    handle.restart_child("g/a").await.unwrap();
    assert_eq!(handle.tree().await.find("g/a").unwrap().state, NodeState::Running);
    handle.terminate_child("g/a").await.unwrap();
    handle.delete_child("g/a").await.unwrap();
    assert_eq!(handle.tree().await.find("g/a"), None);
    let bad = ChildSpec::worker("", Work::task(good));
    assert!(matches!(handle.start_child("", bad).await, Err(CallError::BadSpec(_))));
    let failing = Work::task_that_says_when_ready(|_| async { Err::<(), _>("not today") });
    let failed = handle.start_child("g", ChildSpec::worker("x", failing)).await;
    assert_eq!(failed, Err(CallError::StartFailed { reason: "not today".to_owned() }));
    handle.kill();
    assert_eq!(timeout(LONG, handle.ended()).await.unwrap().end, End::Shutdown);
    assert_eq!(handle.terminate_child("g").await, Err(CallError::Ended));
}

#[tokio::test]
async fn the_next_child_starts_only_when_the_one_before_is_ready() {
    let (allow, allowed) = tokio::sync::watch::channel(false);
    let slow = Work::task_that_says_when_ready(move |context: TaskContext| {
        let mut allowed = allowed.clone();
        async move {
            allowed.wait_for(|allowed| *allowed).await.unwrap();
            context.ready();
            good(context).await;
        }
    });
    let spec = group(Strategy::OneForOne).child(ChildSpec::worker("slow", slow));
    let spec = spec.child(ChildSpec::worker("next", Work::task(good)));
    let handle = Supervisor::start(spec, &options()).unwrap();
    let tree = until(&handle, |tree| tree.children[0].state == NodeState::Starting).await;
    assert_eq!(tree.children[1].state, NodeState::Stopped);
    allow.send(true).unwrap();
    timeout(LONG, handle.started()).await.unwrap().unwrap();
    assert_eq!(handle.tree().await.children[1].state, NodeState::Running);
}

#[tokio::test]
async fn a_group_that_gives_up_is_restarted_by_its_parent_until_that_gives_up() {
    let failing = ChildSpec::worker("x", Work::task(|_| async { Err::<(), _>("always") }));
    let inner = GroupSpec::new(Strategy::OneForOne).intensity(2, HOUR).child(failing);
    let spec = GroupSpec::new(Strategy::OneForAll).intensity(3, HOUR).child(ChildSpec::group("inner", inner));
    let worst = spec.worst_restarts();
    let handle = Supervisor::start(spec, &options()).unwrap();
    let mut events = handle.events();
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!(outcome.end, End::GaveUp);
    let mut lives = 0;
    while let Ok(event) = events.try_recv() {
        lives += u64::from(event.path == "inner/x" && matches!(event.happened, Happened::Started { .. }));
    }
    assert_eq!((lives, worst), (12, 11));
}

#[tokio::test]
async fn a_child_with_pauses_does_not_spin() {
    let failing = Work::task(|_| async { Err::<(), _>("always") });
    let (first, longest) = (Duration::from_millis(20), Duration::from_millis(50));
    let backoff = Backoff { first, longest, jitter: false, ..Backoff::default() };
    let begun = std::time::Instant::now();
    let child = ChildSpec::worker("x", failing).backoff(backoff);
    let handle = Supervisor::start(group(Strategy::OneForOne).child(child), &options()).unwrap();
    until(&handle, |tree| tree.children[0].restarts >= 5).await;
    // 20, 40, then 50 each
    assert!(begun.elapsed() >= Duration::from_millis(210), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_tree_without_a_handle_ends() {
    let (held, mut is_held) = tokio::sync::mpsc::channel::<()>(1);
    let work = Work::task(move |context| {
        let held = held.clone();
        async move {
            good(context).await;
            drop(held);
        }
    });
    let child = ChildSpec::worker("a", work).restart(Restart::Transient);
    let handle = Supervisor::start(group(Strategy::OneForOne).child(child), &options()).unwrap();
    handle.started().await.unwrap();
    drop(handle);
    assert_eq!(timeout(LONG, is_held.recv()).await.unwrap(), None);
}

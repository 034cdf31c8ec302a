//! A thousand children.

use std::time::{Duration, Instant};

use cogo_supervision::{
    ChildSpec, End, Exit, GroupSpec, Handle, Happened, Node, NodeState, Options, StopOrder, Strategy, Supervisor,
    TaskContext, Work,
};
use tokio::{sync::watch, time::timeout};

use crate::waiting::{LONG, options};

const CHILDREN: u32 = 1000;

fn all_run(tree: &Node, restarts: u32) -> bool {
    tree.children.iter().all(|child| child.state == NodeState::Running && child.restarts == restarts)
}

/// A tree that came up in no time, and in how long. One that did not may have met a machine that stood still; that none of
/// several does is no accident.
async fn started_soon(spec: &GroupSpec<Work>) -> (Handle, Duration) {
    let mut slowest = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        let handle = Supervisor::start(spec.clone(), &Options { events: 100_000, ..options() }).unwrap();
        timeout(LONG, handle.started()).await.unwrap().unwrap();
        let started_in = begun.elapsed();
        if started_in < Duration::from_secs(2) {
            return (handle, started_in);
        }
        slowest.push(started_in);
        handle.shutdown();
        timeout(LONG, handle.ended()).await.unwrap();
    }
    panic!("no tree came up in time: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_children_start_die_together_and_are_restarted_within_the_intensity() {
    let (strike, struck) = watch::channel(0_u32);
    let work = Work::task_that_says_when_ready(move |context: TaskContext| {
        let mut struck = struck.clone();
        let born = *struck.borrow_and_update();
        async move {
            // from here on it feels the next strike
            context.ready();
            tokio::select! {
                () = context.stop().cancelled() => Exit::Normal,
                _ = struck.wait_for(|strikes| *strikes != born) => Exit::Abnormal("struck".to_owned()),
            }
        }
    });
    let empty = GroupSpec::new(Strategy::OneForOne).intensity(CHILDREN, Duration::from_secs(3600));
    let spec = (0..CHILDREN).fold(empty.stop_order(StopOrder::AtOnce), |spec, number| {
        spec.child(ChildSpec::worker(format!("child-{number}"), work.clone()))
    });
    let (handle, started_in) = started_soon(&spec).await;
    assert!(all_run(&handle.tree().await, 0));

    let begun = Instant::now();
    let mut events = handle.events();
    strike.send(1).unwrap();
    let mut restarted = 0;
    while restarted < CHILDREN {
        let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
        restarted += u32::from(event.happened == Happened::Started { restarts: 1 });
    }
    assert!(all_run(&handle.tree().await, 1));
    println!("{CHILDREN} children: started in {started_in:?}, all killed and restarted in {:?}", begun.elapsed());

    // the intensity is used up to the last restart: one more is too many
    strike.send(2).unwrap();
    assert_eq!(timeout(LONG, handle.ended()).await.unwrap().end, End::GaveUp);
}

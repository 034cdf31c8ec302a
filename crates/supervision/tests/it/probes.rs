//! Probes: thresholds, what they make together, and answers while the work keeps every thread busy.

use std::{
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use cogo_supervision::{
    clock::{Clock, ManualClock},
    probe::{Core, Health, Invalid, Kind, Probe, Prober, Spec, Status},
};
use tokio_util::task::TaskTracker;

use crate::waiting::LONG;

const SECOND: Duration = Duration::from_secs(1);

/// Answers every probe that is due, by name.
fn answer(core: &mut Core, names: &[&str], now: Duration, says: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
    let due = core.due(now);
    let asked = due.iter().map(|(place, _)| names[*place].to_owned()).collect();
    for (place, run) in due {
        core.answered(now, run, says(names[place]));
    }
    asked
}

fn well(_name: &str) -> Result<(), String> {
    Ok(())
}

fn reasons(health: &Health) -> Vec<String> {
    health.reasons.iter().map(|reason| format!("{}: {}", reason.probe, reason.text)).collect()
}

#[test]
fn nothing_else_is_asked_before_the_start() {
    let names = ["up", "alive", "able"];
    let kinds = [Kind::Startup, Kind::Liveness, Kind::Readiness];
    let specs = names.iter().zip(kinds).map(|(name, kind)| Spec::new(*name, kind)).collect();
    let mut core = Core::new(specs, Duration::ZERO).unwrap();
    let health = core.health(Duration::ZERO);
    assert_eq!((health.status, health.live, health.ready), (Status::Starting, true, false));
    assert_eq!(reasons(&health), ["up: has not succeeded yet"]);

    let not_yet = |_: &str| Err("still reading".to_owned());
    assert_eq!(answer(&mut core, &names, Duration::ZERO, not_yet), ["up"]);
    assert_eq!(answer(&mut core, &names, SECOND * 4, well), Vec::<String>::new(), "not before its period");
    assert_eq!(answer(&mut core, &names, SECOND * 5, well), ["up"]);
    assert_eq!(core.health(SECOND * 5).status, Status::NotReady);
    assert_eq!(answer(&mut core, &names, SECOND * 5, well), ["alive", "able"]);
    assert_eq!(core.health(SECOND * 5).status, Status::Healthy);
    assert_eq!(answer(&mut core, &names, SECOND * 10, well), ["alive", "able"], "the start is asked no more");
}

#[test]
fn a_start_that_keeps_failing_is_dead() {
    let mut core = Core::new(vec![Spec::new("up", Kind::Startup)], Duration::ZERO).unwrap();
    for second in [0, 5, 10] {
        assert!(core.health(SECOND * second).live);
        answer(&mut core, &["up"], SECOND * second, |_| Err("no key".to_owned()));
    }
    let health = core.health(SECOND * 10);
    assert_eq!(health.status, Status::Dead);
    assert_eq!(reasons(&health), ["up: failed 3 times in a row: no key"]);
}

#[test]
fn verdicts_need_their_thresholds_in_a_row() {
    let spec = Spec { success_threshold: 2, ..Spec::new("able", Kind::Readiness) };
    let mut core = Core::new(vec![spec], Duration::ZERO).unwrap();
    let answers = "+ + - - + - - - + - + +";
    let mut ready = Vec::new();
    for (turn, sign) in (0_u32..).zip(answers.split(' ')) {
        let says = |_: &str| if sign == "+" { Ok(()) } else { Err("away".to_owned()) };
        answer(&mut core, &["able"], SECOND * 5 * turn, says);
        ready.push(if core.health(SECOND * 5 * turn).ready { "y" } else { "n" });
    }
    assert_eq!(ready.join(" "), "n y y y y y y n n n n y");
}

#[test]
fn no_answer_in_time_is_a_failure_and_a_late_one_counts_for_nothing() {
    let spec = Spec { failure_threshold: 1, ..Spec::new("alive", Kind::Liveness) };
    let mut core = Core::new(vec![spec], Duration::ZERO).unwrap();
    let [(_, run)] = core.due(Duration::ZERO).try_into().unwrap();
    assert_eq!(core.deadline(), Some(SECOND * 3));
    assert!(core.expire(SECOND * 2).is_empty());
    assert_eq!(core.expire(SECOND * 3), [run]);
    core.answered(SECOND * 3, run, Ok(()));
    let health = core.health(SECOND * 3);
    assert_eq!(health.status, Status::Dead);
    assert_eq!(reasons(&health), ["alive: failed 1 times in a row: no answer within 3000 ms"]);
}

#[test]
fn probes_of_ones_own_make_not_ready_or_degraded() {
    let names = ["disk", "cache"];
    let specs = vec![Spec::new("disk", Kind::Critical), Spec::new("cache", Kind::Advisory)];
    let mut core = Core::new(specs, Duration::ZERO).unwrap();
    assert_eq!(core.health(Duration::ZERO).status, Status::Healthy, "what is not known leads to nothing");
    for turn in 0..3 {
        answer(&mut core, &names, SECOND * 5 * turn, |name| if name == "disk" { Ok(()) } else { Err(String::new()) });
    }
    assert_eq!(core.health(SECOND * 10).status, Status::Degraded);
    for turn in 3..6 {
        answer(&mut core, &names, SECOND * 5 * turn, |name| if name == "disk" { Err(String::new()) } else { Ok(()) });
    }
    let health = core.health(SECOND * 25);
    assert_eq!((health.status, health.live), (Status::NotReady, true));
}

#[test]
fn a_probe_that_is_not_asked_any_more_is_told() {
    let mut core = Core::new(vec![Spec::new("alive", Kind::Liveness)], Duration::ZERO).unwrap();
    answer(&mut core, &["alive"], Duration::ZERO, well);
    assert_eq!(core.health(SECOND * 20).status, Status::Healthy);
    let health = core.health(SECOND * 21);
    assert_eq!((health.status, health.live), (Status::Degraded, true));
    assert_eq!(reasons(&health), ["alive: has not been asked for 21000 ms"]);
}

#[test]
fn probes_that_contradict_each_other_are_refused() {
    let twice = vec![Spec::new("a", Kind::Liveness), Spec::new("a", Kind::Readiness)];
    assert_eq!(Core::new(twice, SECOND).unwrap_err(), Invalid::Duplicate { name: "a".to_owned() });
    let never = vec![Spec { failure_threshold: 0, ..Spec::new("a", Kind::Liveness) }];
    let expected = Invalid::Zero { name: "a".to_owned(), setting: "failure_threshold" };
    assert_eq!(Core::new(never, SECOND).unwrap_err(), expected);
}

/// Every worker of the runtime is blocked, and the probes are asked and answered all the same.
#[test]
fn probes_answer_while_every_worker_of_the_runtime_is_blocked() {
    const WORKERS: usize = 2;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
    let tasks = TaskTracker::new();
    let release = Arc::new((Mutex::new(false), Condvar::new()));
    let blocked = Arc::new(Barrier::new(WORKERS + 1));
    for _ in 0..WORKERS {
        let (release, blocked) = (Arc::clone(&release), Arc::clone(&blocked));
        tasks.spawn_on(
            async move {
                blocked.wait();
                let (released, bell) = &*release;
                drop(bell.wait_while(released.lock().unwrap(), |released| !*released).unwrap());
            },
            runtime.handle(),
        );
    }
    blocked.wait();

    let (asked, answers) = mpsc::channel();
    let spec = Spec { period: Duration::from_millis(1), ..Spec::new("alive", Kind::Liveness) };
    let alive = Probe::new(spec, move || {
        let asked = asked.clone();
        async move { asked.send(()).map_err(|error| error.to_string()) }
    });
    let able = Probe::new(Spec::new("able", Kind::Readiness), || async { Ok(()) });
    let prober = Prober::start(vec![alive, able], Clock::system()).unwrap();
    for _ in 0..20 {
        answers.recv().unwrap();
    }
    let mut changes = prober.changes();
    let waiting = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // as it was found right after an answer: whoever looks later, on a busy machine, may see that none was asked lately
    waiting
        .block_on(async {
            tokio::time::timeout(LONG, changes.wait_for(|health| health.status == Status::Healthy)).await
        })
        .expect("the answers make it healthy")
        .unwrap();

    let (released, bell) = &*release;
    *released.lock().unwrap() = true;
    bell.notify_all();
    runtime.block_on(async {
        tasks.close();
        tasks.wait().await;
    });
}

#[test]
fn a_probe_that_blocks_its_thread_is_found_out_by_whoever_looks() {
    let hand = ManualClock::new();
    let (release, released) = mpsc::channel::<()>();
    let (entered, blocked) = mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    let spec = Spec { failure_threshold: 1, ..Spec::new("alive", Kind::Liveness) };
    let blocks = Probe::new(spec, move || {
        let (released, entered) = (Arc::clone(&released), entered.clone());
        async move {
            entered.send(()).map_err(|error| error.to_string())?;
            let _ = released.lock().map(|released| released.recv());
            Ok(())
        }
    });
    let prober = Prober::start(vec![blocks], hand.clock()).unwrap();
    blocked.recv().unwrap();
    assert_eq!(prober.health().status, Status::Healthy);
    hand.advance(SECOND * 3);
    assert_eq!(prober.health().status, Status::Dead);
    drop(release);
}

#[test]
fn a_check_that_hangs_holds_up_no_other() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let (enough, reached) = mpsc::channel();
    let hangs = Probe::new(Spec::new("hangs", Kind::Advisory), std::future::pending);
    let spec = Spec { period: Duration::from_millis(1), ..Spec::new("works", Kind::Readiness) };
    let works = Probe::new(spec, move || {
        if counted.fetch_add(1, Ordering::SeqCst) == 10 {
            let _ = enough.send(());
        }
        async { Ok(()) }
    });
    let prober = Prober::start(vec![hangs, works], Clock::system()).unwrap();
    reached.recv().unwrap();
    assert!(prober.health().ready);
}

//! Mistakes that others made when they rebuilt OTP's supervisor, each as a test.

use std::time::Duration;

use cogo_supervision::{
    Backoff, ChildSpec, End, GroupSpec, Happened, NodeState, Strategy,
    core::{CallError, Request},
};

use crate::world::{Manner, World};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn worker(name: &str) -> ChildSpec<Manner> {
    ChildSpec::worker(name, Manner::Obedient)
}

/// A group of obedient workers that may restart often.
pub(crate) fn group(strategy: Strategy, names: &[&str]) -> GroupSpec<Manner> {
    let group = GroupSpec::new(strategy).intensity(100, HOUR);
    names.iter().fold(group, |group, name| group.child(worker(name)))
}

pub(crate) fn steady(first_ms: u64) -> Backoff {
    Backoff { first: Duration::from_millis(first_ms), jitter: false, ..Backoff::default() }
}

#[test]
fn children_added_later_are_restarted_with_their_siblings() {
    for (strategy, notes) in [(Strategy::OneForAll, "-c -a +a +b +c"), (Strategy::RestForOne, "-c +b +c")] {
        let mut world = World::begun(group(strategy, &["a", "b"]));
        assert_eq!(world.called("", Request::Start(Box::new(worker("c")))), Ok(()));
        world.take_notes();
        world.crashed("b");
        assert_eq!(world.take_notes(), notes, "{strategy:?}");
        assert_eq!(world.text(), "(a:up b:up c:up)");
    }
}

#[test]
fn a_delayed_restart_is_not_lost() {
    let spec = group(Strategy::OneForOne, &["a"]).child(worker("b").backoff(steady(100)));
    let mut world = World::begun(spec);
    world.crashed("b");
    // meanwhile it is neither running nor down, and a sibling's story does not change that
    assert_eq!(world.tree.picture().find("b").unwrap().state, NodeState::Restarting);
    assert_eq!(world.called("", Request::Delete("b".to_owned())), Err(CallError::Restarting));
    assert_eq!(world.called("", Request::Restart("b".to_owned())), Err(CallError::Restarting));
    let again = world.called("", Request::Start(Box::new(worker("b"))));
    assert_eq!(again, Err(CallError::AlreadyPresent));
    world.crashed("a");
    world.pass_to(Duration::from_millis(99));
    world.settle();
    assert!(world.run_at("b").is_none());
    world.pass_to(Duration::from_millis(100));
    world.settle();
    assert_eq!(world.text(), "(a:up b:up)");
    assert_eq!(world.count(|happened| matches!(happened, Happened::RestartPlanned { .. })), 1);
}

#[test]
fn a_restarted_group_neither_doubles_nor_orphans_its_children() {
    let stubborn = ChildSpec::worker("b", Manner::Stubborn);
    let inner = GroupSpec::new(Strategy::OneForOne).intensity(0, HOUR).child(worker("a")).child(stubborn);
    let mut world = World::begun(group(Strategy::OneForOne, &[]).child(ChildSpec::group("inner", inner)));
    assert_eq!(world.called("inner", Request::Start(Box::new(worker("c")))), Ok(()));
    let before = world.run_at("inner/b").unwrap();
    world.take_notes();
    world.crashed("inner/a");
    // the world itself refuses to start a worker that lives; the added child is gone with its group, as in OTP
    assert_eq!(world.take_notes(), "-inner/c -inner/b +inner/a +inner/b");
    assert_eq!(world.text(), "(inner(a:up b:up))");
    assert_ne!(world.run_at("inner/b"), Some(before));
    world.assert_no_orphans();
    world.tell(cogo_supervision::core::Input::Shutdown);
    world.settle();
    assert_eq!(world.over, Some(End::Shutdown));
    world.assert_no_orphans();
}

#[test]
fn a_restarted_child_is_found_under_its_name() {
    let mut world = World::begun(group(Strategy::OneForOne, &["a"]));
    let first = world.run_at("a");
    world.crashed("a");
    let second = world.run_at("a");
    assert!(second.is_some() && second != first);
    let run = second.unwrap();
    world.tell(cogo_supervision::core::Input::Spawned { run, pid: 42 });
    assert_eq!(world.tree.picture().find("a").unwrap().pid, Some(42));
    assert_eq!(world.called("", Request::Terminate("a".to_owned())), Ok(()));
    assert!(world.run_at("a").is_none());
    assert_eq!(world.tree.picture().find("a").unwrap().pid, None);
}

#[test]
fn one_for_all_and_its_intensity_are_real() {
    let spec = group(Strategy::OneForAll, &["a", "b", "c"]).intensity(2, Duration::from_secs(10));
    let mut world = World::begun(spec);
    assert_eq!(world.take_notes(), "+a +b +c");
    for _ in 0..2 {
        world.crashed("b");
        assert_eq!(world.take_notes(), "-c -a +a +b +c");
    }
    world.crashed("a");
    assert_eq!(world.take_notes(), "-c -b");
    assert_eq!(world.over, Some(End::GaveUp));
}

#[test]
fn what_depends_on_a_child_is_restarted_after_it_and_nothing_else() {
    // a cluster that is built on a store: with one_for_one it would go on with the old store
    let mut world = World::begun(group(Strategy::RestForOne, &["log", "store", "cluster", "api"]));
    world.take_notes();
    world.crashed("store");
    assert_eq!(world.take_notes(), "-api -cluster +store +cluster +api");
    world.crashed("api");
    assert_eq!(world.take_notes(), "+api");
    let mut alone = World::begun(group(Strategy::OneForOne, &["log", "store", "cluster", "api"]));
    alone.take_notes();
    alone.crashed("store");
    assert_eq!(alone.take_notes(), "+store");
}

//! What an operator has put down stays down, whatever happens around it, until somebody asks for it.

use std::time::Duration;

use cogo_supervision::{
    ChildSpec, Exit, NodeState, Restart, Strategy,
    core::{CallError, Request},
};

use crate::{
    traps::{group, steady, worker},
    world::{Manner, World},
};

fn park(name: &str) -> Request<Manner> {
    Request::Park(name.to_owned())
}

fn is_parked(world: &World, path: &str) -> bool {
    let node = world.tree.picture().find(path).unwrap().clone();
    assert!(!node.parked || node.state == NodeState::Stopped, "{path} is parked and {:?}", node.state);
    node.parked
}

#[test]
fn no_restart_of_siblings_brings_a_parked_child_back() {
    for (strategy, notes) in [(Strategy::OneForAll, "-c +a +c"), (Strategy::RestForOne, "-c +a +c")] {
        let mut world = World::begun(group(strategy, &["a", "b", "c"]));
        assert_eq!(world.called("", park("b")), Ok(()));
        world.take_notes();
        world.crashed("a");
        assert_eq!(world.take_notes(), notes, "{strategy:?}");
        assert_eq!(world.text(), "(a:up b:down c:up)");
        assert!(is_parked(&world, "b"));
        assert_eq!(world.called("", Request::Restart("b".to_owned())), Ok(()));
        assert!(!is_parked(&world, "b"));
        world.take_notes();
        // it is one of them again
        world.crashed("a");
        assert!(world.take_notes().ends_with("+a +b +c"), "{strategy:?}");
    }
}

#[test]
fn a_child_that_was_only_terminated_comes_back_with_its_siblings_as_in_otp() {
    let mut world = World::begun(group(Strategy::OneForAll, &["a", "b"]));
    assert_eq!(world.called("", Request::Terminate("b".to_owned())), Ok(()));
    world.crashed("a");
    assert_eq!(world.text(), "(a:up b:up)");
}

#[test]
fn the_mark_outlives_a_restart_of_the_group_around_it() {
    let inner = group(Strategy::OneForOne, &["x", "y"]).intensity(0, Duration::from_secs(1));
    let mut world = World::begun(group(Strategy::OneForOne, &["a"]).child(ChildSpec::group("inner", inner)));
    assert_eq!(world.called("inner", park("x")), Ok(()));
    world.take_notes();
    // one end is too many for the group, so the root starts it anew
    world.crashed("inner/y");
    assert_eq!(world.take_notes(), "+inner/y");
    assert!(is_parked(&world, "inner/x"));
    // whoever asks for the group asks for everything in it
    assert_eq!(world.called("", Request::Terminate("inner".to_owned())), Ok(()));
    assert_eq!(world.called("", Request::Restart("inner".to_owned())), Ok(()));
    assert!(!is_parked(&world, "inner/x"));
    assert!(world.take_notes().ends_with("+inner/x +inner/y"));
}

#[test]
fn a_parked_group_stays_down_with_everything_in_it() {
    let inner = group(Strategy::OneForOne, &["x"]);
    let mut world = World::begun(group(Strategy::OneForAll, &["a"]).child(ChildSpec::group("inner", inner)));
    assert_eq!(world.called("", park("inner")), Ok(()));
    world.take_notes();
    world.crashed("a");
    assert_eq!(world.take_notes(), "+a");
    assert_eq!(world.called("inner", park("x")), Err(CallError::NoSuchGroup { path: "inner".to_owned() }));
}

#[test]
fn a_pause_before_a_restart_ends_with_the_parking() {
    let mut world = World::begun(group(Strategy::OneForOne, &["a"]).child(worker("b").backoff(steady(100))));
    world.crashed("b");
    assert_eq!(world.tree.picture().find("b").unwrap().state, NodeState::Restarting);
    assert_eq!(world.called("", park("b")), Ok(()));
    world.take_notes();
    world.pass_to(Duration::from_secs(10));
    world.settle();
    assert_eq!(world.take_notes(), "");
    assert!(is_parked(&world, "b"));
}

#[test]
fn one_that_ended_for_good_is_parked_where_it_lies() {
    let mut world = World::begun(group(Strategy::OneForAll, &["a", "b"]));
    world.crash("b", Exit::Final("taken over".to_owned()));
    world.settle();
    assert_eq!(world.called("", park("b")), Ok(()));
    world.crashed("a");
    assert_eq!(world.text(), "(a:up b:down)");
}

#[test]
fn a_child_can_be_added_parked_and_a_temporary_one_is_forgotten() {
    let mut world = World::begun(group(Strategy::OneForAll, &["a"]));
    world.take_notes();
    assert_eq!(world.called("", Request::Add(Box::new(worker("b")))), Ok(()));
    let twice = world.called("", Request::Add(Box::new(worker("b"))));
    assert_eq!((twice, world.take_notes().as_str()), (Err(CallError::AlreadyPresent), ""));
    assert!(is_parked(&world, "b"));
    world.crashed("a");
    assert_eq!(world.text(), "(a:up b:down)");
    assert_eq!(world.called("", Request::Restart("b".to_owned())), Ok(()));
    assert_eq!(world.text(), "(a:up b:up)");

    let brief = worker("c").restart(Restart::Temporary);
    assert_eq!(world.called("", Request::Start(Box::new(brief))), Ok(()));
    assert_eq!(world.called("", park("c")), Ok(()));
    assert_eq!(world.called("", park("c")), Err(CallError::NotFound { name: "c".to_owned() }));
}

#[test]
fn tree_may_begin_with_parked_children() {
    let inner = group(Strategy::OneForOne, &["x", "y"]);
    let spec = group(Strategy::OneForAll, &["a", "b"])
        .child(ChildSpec::group("inner", inner.clone()))
        .child(ChildSpec::group("whole", inner));
    let mut world = World::new(spec);
    let tree = std::mem::replace(&mut world.tree, World::new(group(Strategy::OneForOne, &[])).tree);
    world.tree = tree.with_parked(["b", "inner/x", "whole", "whole/y", "nobody/at/all"]);
    world.begin();
    assert!(world.is_up);
    assert_eq!(world.text(), "(a:up b:down inner(x:down y:up) whole:down)");
    assert!(["b", "inner/x", "whole", "whole/y"].iter().all(|path| is_parked(&world, path)));
    // as if somebody had put them down while it ran
    world.crashed("a");
    assert_eq!(world.text(), "(a:up b:down inner(x:down y:up) whole:down)");
    assert_eq!(world.called("", Request::Restart("whole".to_owned())), Ok(()));
    assert_eq!(world.called("inner", Request::Restart("x".to_owned())), Ok(()));
    assert_eq!(world.text(), "(a:up b:down inner(x:up y:up) whole(x:up y:up))");
}

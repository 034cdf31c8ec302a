//! Rules of the core that OTP does not have or that cannot be seen there, and specifications that are refused.

use std::time::Duration;

use cogo_supervision::{
    AutoShutdown, Backoff, ChildSpec, End, Error, Exit, GroupSpec, Happened, NodeState, Restart, Shutdown, StopOrder,
    Strategy,
    core::{CallError, Input, Request, Tree},
};
use proptest::prelude::*;

use crate::{
    traps::{group, steady, worker},
    world::{Manner, World},
};

fn refusal(spec: GroupSpec<Manner>) -> Error {
    Tree::new(spec, 1, Duration::from_secs(1)).err().unwrap()
}

#[test]
fn bad_specifications_are_refused_with_the_path() {
    let inside = |inner: GroupSpec<Manner>| group(Strategy::OneForOne, &[]).child(ChildSpec::group("g", inner));
    let twice = inside(group(Strategy::OneForOne, &["a", "b", "a"]));
    assert_eq!(refusal(twice), Error::DuplicateName { path: "g/a".to_owned() });
    for name in ["", "a/b", "a\n"] {
        let error = refusal(inside(group(Strategy::OneForOne, &[name])));
        assert_eq!(error, Error::BadName { group: "g".to_owned(), name: name.to_owned() });
    }
    let no_period = inside(group(Strategy::OneForAll, &["a"]).intensity(3, Duration::ZERO));
    assert_eq!(refusal(no_period), Error::NoPeriod { path: "g".to_owned() });
    let child = |child: ChildSpec<Manner>| refusal(inside(group(Strategy::OneForOne, &[]).child(child)));
    let path = || "g/a".to_owned();
    let (first, longest) = (Duration::from_secs(2), Duration::from_secs(1));
    let reversed = Backoff { first, longest, ..Backoff::default() };
    assert_eq!(child(worker("a").backoff(reversed)), Error::PausesReversed { path: path(), first, longest });
    assert_eq!(child(worker("a").backoff(steady(0))), Error::NoFirstPause { path: path() });
    assert_eq!(child(worker("a").start_timeout(Duration::ZERO)), Error::NoTimeToStart { path: path() });
    assert_eq!(child(worker("a").significant()), Error::SignificantPermanent { path: path() });
    let unheard = worker("a").restart(Restart::Transient).significant();
    assert_eq!(child(unheard), Error::SignificantForNothing { path: path() });
    let text = refusal(inside(group(Strategy::OneForOne, &["a", "a"]))).to_string();
    assert_eq!(text, "There are two children \"g/a\"");
}

#[test]
fn a_final_end_is_not_undone_whatever_the_rule_says() {
    let children = [Restart::Permanent, Restart::Transient].map(|restart| worker("a").restart(restart));
    for child in children {
        let mut world = World::begun(group(Strategy::OneForAll, &["b"]).child(child));
        world.take_notes();
        world.crash("a", Exit::Final("taken over".to_owned()));
        world.settle();
        assert_eq!(world.take_notes(), "");
        let tree = world.tree.picture();
        let a = tree.find("a").unwrap();
        assert_eq!((a.state, a.restarts), (NodeState::Stopped, 0));
        assert_eq!(tree.find("b").unwrap().state, NodeState::Running);
    }
}

#[test]
fn intensity_zero_gives_up_at_the_first_end() {
    let mut world = World::begun(group(Strategy::OneForOne, &["a", "b"]).intensity(0, Duration::from_secs(1)));
    world.take_notes();
    world.crashed("a");
    assert_eq!(world.take_notes(), "-b");
    assert_eq!(world.over, Some(End::GaveUp));
}

#[test]
fn a_start_that_fails_for_ever_ends_the_tree_in_order() {
    let mut world = World::begun(group(Strategy::OneForOne, &["a", "b"]).intensity(4, Duration::from_secs(5)));
    world.take_notes();
    world.fail_starts("a", u32::MAX);
    world.crashed("a");
    assert_eq!(world.take_notes(), "!a !a !a !a -b");
    assert_eq!(world.over, Some(End::GaveUp));
}

#[test]
fn a_tree_whose_child_does_not_start_stops_what_it_started() {
    let mut world = World::new(group(Strategy::OneForOne, &["a", "b", "c", "d"]));
    world.fail_starts("c", 1);
    world.tell(Input::Begin);
    world.settle();
    assert_eq!(world.take_notes(), "+a +b !c -b -a");
    assert_eq!(world.over, Some(End::StartFailed { child: "c".to_owned(), reason: "boom".to_owned() }));
    assert!(!world.is_up);
}

#[test]
fn a_start_without_end_is_killed_and_counts_as_failed() {
    let slow = worker("slow").start_timeout(Duration::from_secs(2));
    let mut world = World::new(group(Strategy::OneForOne, &["a"]).child(slow));
    world.hang_starts("slow");
    world.tell(Input::Begin);
    world.settle();
    assert_eq!(world.now, Duration::from_secs(2));
    let reason = "it did not start in time".to_owned();
    assert_eq!(world.over, Some(End::StartFailed { child: "slow".to_owned(), reason }));
    world.assert_no_orphans();
}

#[test]
fn the_wish_to_end_is_heard_during_a_start_without_end() {
    let mut world = World::new(group(Strategy::OneForOne, &["a", "slow", "c"]));
    world.hang_starts("slow");
    world.tell(Input::Begin);
    world.settle();
    let call = world.call("", Request::Terminate("a".to_owned()));
    world.settle();
    assert_eq!(world.answer(call), None);
    world.tell(Input::Shutdown);
    world.settle();
    assert_eq!(world.take_notes(), "+a +slow -slow -a");
    assert_eq!(world.answer(call), Some(Err(CallError::Ended)));
    assert_eq!(world.over, Some(End::Shutdown));
}

#[test]
fn what_survives_its_kill_is_leaked_and_the_whole_tree_ends() {
    let zombie = ChildSpec::worker("zombie", Manner::Immortal).shutdown(Shutdown::Timeout(Duration::from_secs(3)));
    let inner = group(Strategy::OneForAll, &["x"]).child(zombie);
    let spec = group(Strategy::OneForOne, &["a"]).child(ChildSpec::group("inner", inner)).child(worker("z"));
    let mut world = World::begun(spec);
    world.take_notes();
    world.crashed("inner/x");
    // nothing is started beside what may still run
    assert_eq!(world.take_notes(), "-inner/zombie -z -a");
    assert_eq!(world.now, Duration::from_secs(4));
    assert_eq!(world.over, Some(End::Leaked { paths: vec!["inner/zombie".to_owned()] }));
}

#[test]
fn a_second_wish_to_end_kills() {
    let stubborn = |name: &str| ChildSpec::worker(name, Manner::Stubborn).shutdown(Shutdown::Infinity);
    let spec = group(Strategy::OneForOne, &[]).child(stubborn("a")).child(worker("b")).child(stubborn("c"));
    let mut world = World::begun(spec);
    world.take_notes();
    world.tell(Input::Shutdown);
    world.settle();
    assert_eq!((world.over.clone(), world.now), (None, Duration::ZERO));
    world.tell(Input::Kill);
    world.settle();
    assert_eq!(world.take_notes(), "-c");
    assert_eq!((world.over.clone(), world.now), (Some(End::Shutdown), Duration::ZERO));
    world.assert_no_orphans();
}

#[test]
fn children_stop_at_once_where_their_order_does_not_matter() {
    let stubborn =
        |name: &str| ChildSpec::worker(name, Manner::Stubborn).shutdown(Shutdown::Timeout(Duration::from_secs(5)));
    for (order, seconds) in [(StopOrder::Reverse, 15), (StopOrder::AtOnce, 5)] {
        let names = ["a", "b", "c"];
        let empty = group(Strategy::OneForOne, &[]).stop_order(order);
        let mut world = World::begun(names.iter().fold(empty, |group, name| group.child(stubborn(name))));
        world.tell(Input::Shutdown);
        world.settle();
        assert_eq!(world.over, Some(End::Shutdown));
        assert_eq!(world.now, Duration::from_secs(seconds), "{order:?}");
    }
}

#[test]
fn pauses_grow_with_early_ends_and_shrink_after_a_long_life() {
    let backoff = Backoff { forgiven_after: Duration::from_secs(30), ..steady(100) };
    let mut world = World::begun(group(Strategy::OneForOne, &[]).child(worker("a").backoff(backoff)));
    let mut pauses = Vec::new();
    for lived_s in [0, 1, 1, 29, 30, 0] {
        world.pass_to(world.now + Duration::from_secs(lived_s));
        world.crashed("a");
        let due = world.tree.deadline().unwrap();
        pauses.push((due - world.now).as_millis());
        world.pass_to(due);
        world.settle();
        assert_eq!(world.text(), "(a:up)");
    }
    assert_eq!(pauses, [100, 200, 400, 800, 100, 200]);
}

#[test]
fn a_pause_of_all_for_one_keeps_the_siblings_down_until_it_is_over() {
    let spec = group(Strategy::OneForAll, &["a"]).child(worker("b").backoff(steady(100))).child(worker("c"));
    let mut world = World::begun(spec);
    world.take_notes();
    world.crashed("b");
    assert_eq!(world.take_notes(), "-c -a");
    world.pass_to(Duration::from_millis(100));
    world.settle();
    assert_eq!(world.take_notes(), "+a +b +c");
}

#[test]
fn a_child_that_is_terminated_during_its_pause_stays_down() {
    let mut world = World::begun(group(Strategy::OneForOne, &["a"]).child(worker("b").backoff(steady(100))));
    world.crashed("b");
    assert_eq!(world.called("", Request::Terminate("b".to_owned())), Ok(()));
    assert_eq!(world.tree.deadline(), None);
    assert_eq!(world.text(), "(a:up b:down)");
    assert_eq!(world.called("", Request::Restart("b".to_owned())), Ok(()));
    assert_eq!(world.text(), "(a:up b:up)");
}

#[test]
fn one_group_that_starts_slowly_does_not_hold_up_another() {
    let slow = ChildSpec::group("slow", group(Strategy::OneForOne, &["a"]));
    let quick = ChildSpec::group("quick", group(Strategy::OneForOne, &["a"]));
    let mut world = World::begun(group(Strategy::OneForOne, &[]).child(slow).child(quick));
    world.hang_starts("slow/a");
    world.crashed("slow/a");
    world.take_notes();
    world.crashed("quick/a");
    assert_eq!(world.take_notes(), "+quick/a");
}

#[test]
fn a_child_keeps_its_history_when_its_group_is_restarted() {
    let inner = group(Strategy::OneForOne, &["a", "b"]).intensity(1, Duration::from_secs(5));
    let mut world = World::begun(group(Strategy::OneForOne, &[]).child(ChildSpec::group("inner", inner)));
    world.crashed("inner/a");
    world.crashed("inner/a");
    let picture = world.tree.picture();
    assert_eq!(picture.find("inner").unwrap().restarts, 1);
    let child = picture.find("inner/a").unwrap();
    assert_eq!(child.restarts, 1);
    assert_eq!(child.last_exit.clone().unwrap().exit, Exit::Abnormal("boom".to_owned()));
    assert_eq!(picture.find("inner/b").unwrap().last_exit.clone().unwrap().exit, Exit::Shutdown);
}

#[test]
fn the_last_significant_child_ends_its_group() {
    let significant = |name: &str| worker(name).restart(Restart::Transient).significant();
    let spec = group(Strategy::OneForOne, &["a"]).auto_shutdown(AutoShutdown::AllSignificant);
    let mut world = World::begun(spec.child(significant("b")).child(significant("c")));
    world.crash("b", Exit::Normal);
    world.settle();
    assert_eq!(world.text(), "(a:up b:down c:up)");
    world.crash("c", Exit::Normal);
    world.settle();
    assert_eq!(world.over, Some(End::AutoShutdown));
}

#[test]
fn a_significant_child_that_will_be_restarted_is_not_gone() {
    let significant = |name: &str| worker(name).restart(Restart::Transient).significant();
    let spec = group(Strategy::OneForOne, &["a"]).auto_shutdown(AutoShutdown::AllSignificant);
    let mut world = World::begun(spec.child(significant("b")).child(significant("c")));
    // both ends wait until the new child is started
    let call = world.call("", Request::Start(Box::new(worker("d"))));
    world.crash("b", Exit::Normal);
    world.crash("c", Exit::Abnormal("boom".to_owned()));
    world.settle();
    assert_eq!(world.answer(call), Some(Ok(())));
    assert_eq!(world.text(), "(a:up b:down c:up d:up)");
}

/// Groups around one worker, from the outside in.
fn nested(levels: &[(Strategy, u32)]) -> GroupSpec<Manner> {
    let ((strategy, intensity), inside) = levels.split_first().unwrap();
    let base = group(*strategy, &["before"]).intensity(*intensity, Duration::from_secs(60));
    let middle = if inside.is_empty() { worker("x") } else { ChildSpec::group("x", nested(inside)) };
    base.child(middle).child(worker("after"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_worker_that_ends_at_once_for_ever_is_started_as_often_as_said_and_no_more(
        levels in prop::collection::vec(
            (prop::sample::select(vec![Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne]), 0..4_u32),
            1..4,
        ),
    ) {
        let spec = nested(&levels);
        let expected = spec.worst_restarts() + 1;
        let path = vec!["x"; levels.len()].join("/");
        let mut world = World::begun(spec);
        let mut lives = 0;
        while world.over.is_none() {
            lives += 1;
            prop_assert!(lives <= expected, "more than {expected} lives");
            world.crashed(&path);
        }
        prop_assert_eq!(lives, expected);
        prop_assert_eq!(world.over.clone(), Some(End::GaveUp));
        let escalations = world.count(|happened| matches!(happened, Happened::GaveUp { .. }));
        let groups: u32 = levels.iter().fold((1, 0), |(lives, sum), (_, i)| (lives * (i + 1), sum + lives)).1;
        prop_assert_eq!(escalations, usize::try_from(groups).unwrap());
        world.assert_no_orphans();
    }
}

//! Random schedules, written down for OTP and run through the core.

use std::{fmt::Write, time::Duration};

use cogo_supervision::{
    AutoShutdown, ChildSpec, Exit, GroupSpec, Kind, Restart, Shutdown, Strategy,
    core::{CallError, CallId, Request},
};

use crate::world::{Manner, World};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

/// The period of schedules that wait until restarts are forgotten.
const SHORT_PERIOD: Duration = Duration::from_secs(5);

/// A repeatable source of choices.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = self.0 >> 33;
        usize::try_from(high).unwrap() % bound
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Crash(String, Exit),
    Start(Box<ChildSpec<Manner>>),
    Terminate(String),
    Restart(String),
    Delete(String),
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Fail(Vec<String>, u32),
    Sleep(u64),
    Batch(Vec<String>, Vec<Action>),
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) id: u64,
    pub(crate) root: GroupSpec<Manner>,
    pub(crate) steps: Vec<Step>,
}

impl Schedule {
    /// The schedule of a seed; the root's strategy follows from it, so that all have their share.
    pub(crate) fn random(id: u64, with_sleeps: bool) -> Self {
        let mut dice = Dice(id.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
        let strategies = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne];
        let strategy = strategies[usize::try_from(id).unwrap() % strategies.len()];
        let period = if with_sleeps { SHORT_PERIOD } else { Duration::from_secs(3600) };
        let root = random_group(&mut dice, 2, strategy, period);
        let mut groups = vec![Vec::new()];
        collect_groups(&root, &mut Vec::new(), &mut groups);
        let count = 3 + dice.below(10);
        let mut sleeps_left = if with_sleeps { 2 } else { 0 };
        let steps = (0..count).flat_map(|_| random_steps(&mut dice, &groups, period, &mut sleeps_left)).collect();
        Self { id, root, steps }
    }

    /// For the oracle.
    pub(crate) fn as_term(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(step_term).collect();
        format!("{{schedule, {}, {}, [{}]}}.", self.id, group_term(&self.root), steps.join(", "))
    }

    /// What the core makes of it, in the words of the oracle.
    pub(crate) fn run(&self) -> Vec<String> {
        let mut world = World::begun(self.root.clone());
        let mut lines = vec![self.line("0", &[], &mut world)];
        for (index, step) in self.steps.iter().enumerate() {
            let answers = match step {
                Step::Fail(path, count) => {
                    world.fail_starts(&path.join("/"), *count);
                    Vec::new()
                }
                Step::Sleep(milliseconds) => {
                    world.pass_to(world.now + Duration::from_millis(*milliseconds));
                    world.settle();
                    Vec::new()
                }
                Step::Batch(path, actions) => batch(&mut world, &path.join("/"), actions),
            };
            lines.push(self.line(&(index + 1).to_string(), &answers, &mut world));
            if world.over.is_none() {
                world.assert_no_orphans();
            }
        }
        world.tell(cogo_supervision::core::Input::Shutdown);
        world.settle();
        lines.push(self.line("last", &[], &mut world));
        lines
    }

    fn line(&self, step: &str, answers: &[&str], world: &mut World) -> String {
        format!("{} {step} [{}] [{}] {}", self.id, answers.join(" "), world.take_notes(), world.text())
    }
}

/// All actions are told before anything that they lead to is done.
fn batch(world: &mut World, group: &str, actions: &[Action]) -> Vec<&'static str> {
    let before = world.tree.run_of_group(group);
    let victim = |name: &String| if group.is_empty() { name.clone() } else { format!("{group}/{name}") };
    let runs: Vec<_> = actions
        .iter()
        .map(|action| match action {
            Action::Crash(name, _) => world.run_at(&victim(name)),
            _ => None,
        })
        .collect();
    let mut calls: Vec<Option<CallId>> = Vec::new();
    for (action, run) in actions.iter().zip(runs) {
        let request = match action.clone() {
            Action::Crash(_, exit) => {
                if let Some(run) = run {
                    world.crash_run(run, exit);
                }
                continue;
            }
            Action::Start(child) => Request::Start(child),
            Action::Terminate(name) => Request::Terminate(name),
            Action::Restart(name) => Request::Restart(name),
            Action::Delete(name) => Request::Delete(name),
        };
        // a call goes to the group that was there when the batch began, not to its successor
        let is_same = before.is_some() && world.tree.run_of_group(group) == before;
        calls.push(is_same.then(|| world.call(group, request)));
    }
    world.settle();
    calls.into_iter().map(|call| call.map_or("gone", |call| answer_text(world.answer(call).unwrap()))).collect()
}

fn answer_text(answer: Result<(), CallError>) -> &'static str {
    match answer {
        Ok(()) => "ok",
        Err(CallError::NotFound { .. }) => "not_found",
        Err(CallError::Running) => "running",
        Err(CallError::Restarting) => "restarting",
        Err(CallError::AlreadyStarted) => "already_started",
        Err(CallError::AlreadyPresent) => "already_present",
        Err(CallError::BadSpec(_)) => "bad_spec",
        Err(CallError::StartFailed { .. }) => "failed",
        Err(CallError::NoSuchGroup { .. } | CallError::Ended) => "gone",
    }
}

fn random_group(dice: &mut Dice, depth: usize, strategy: Strategy, period: Duration) -> GroupSpec<Manner> {
    let ends = [AutoShutdown::Never, AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant];
    let auto_shutdown = dice.pick(&ends);
    let intensity = dice.pick(&[0, 1, 2, 3, 5, 8, 20]);
    let mut group = GroupSpec::new(strategy).intensity(intensity, period).auto_shutdown(auto_shutdown);
    for name in &NAMES[..1 + dice.below(4)] {
        group = group.child(random_child(dice, name, depth, auto_shutdown, period));
    }
    group
}

fn random_child(
    dice: &mut Dice,
    name: &str,
    depth: usize,
    auto_shutdown: AutoShutdown,
    period: Duration,
) -> ChildSpec<Manner> {
    let strategies = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne];
    let child = if depth > 0 && dice.one_in(4) {
        let strategy = dice.pick(&strategies);
        ChildSpec::group(name, random_group(dice, depth - 1, strategy, period))
    } else {
        let manners = [Manner::Obedient, Manner::Obedient, Manner::Obedient, Manner::Stubborn, Manner::Brutal];
        // where time counts, none of it is spent on waiting for the stubborn
        let manner = dice.pick(if period == SHORT_PERIOD { &manners[2..3] } else { &manners[..] });
        ChildSpec::worker(name, manner).shutdown(match manner {
            Manner::Obedient => Shutdown::Timeout(Duration::from_secs(5)),
            Manner::Stubborn | Manner::Immortal => Shutdown::Timeout(Duration::from_millis(100)),
            Manner::Brutal => Shutdown::BrutalKill,
        })
    };
    let restarts = [Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary];
    let child = child.restart(dice.pick(&restarts));
    let may_be_significant = auto_shutdown != AutoShutdown::Never && child.restart != Restart::Permanent;
    if may_be_significant && dice.one_in(2) { child.significant() } else { child }
}

fn collect_groups(group: &GroupSpec<Manner>, path: &mut Vec<String>, groups: &mut Vec<Vec<String>>) {
    for child in &group.children {
        if let Kind::Group(inside) = &child.kind {
            path.push(child.name.clone());
            groups.push(path.clone());
            collect_groups(inside, path, groups);
            path.pop();
        }
    }
}

fn random_steps(dice: &mut Dice, groups: &[Vec<String>], period: Duration, sleeps_left: &mut u32) -> Vec<Step> {
    let group = dice.pick(groups);
    if *sleeps_left > 0 && dice.one_in(3) {
        *sleeps_left -= 1;
        // OTP counts whole seconds: only after one more is a restart of before surely out of its period
        return vec![Step::Sleep(6200)];
    }
    let failing = |dice: &mut Dice| {
        let name = dice.pick(&NAMES[..4]).to_owned();
        let mut path = group.clone();
        path.push(name.clone());
        (Step::Fail(path, dice.pick(&[1, 2, 3, 4, 50])), name)
    };
    if dice.one_in(6) {
        return vec![failing(dice).0];
    }
    let count = 1 + dice.below(3);
    let mut actions: Vec<Action> = (0..count).map(|_| random_action(dice, period)).collect();
    if !dice.one_in(5) {
        return vec![Step::Batch(group, actions)];
    }
    // somebody asks for a child between its crash and the next try to start it
    let (step, name) = failing(dice);
    let asked = [Action::Delete(name.clone()), Action::Terminate(name.clone()), Action::Restart(name.clone())];
    actions.splice(0..0, [Action::Crash(name, boom()), dice.pick(&asked)]);
    vec![step, Step::Batch(group, actions)]
}

fn random_action(dice: &mut Dice, period: Duration) -> Action {
    let name = dice.pick(&NAMES[..4]).to_owned();
    match dice.below(10) {
        0..5 => Action::Crash(name, dice.pick(&[Exit::Normal, Exit::Shutdown, boom(), boom(), boom()])),
        5 | 6 => {
            let name = dice.pick(&NAMES);
            let pretended = dice.pick(&[AutoShutdown::Never, AutoShutdown::Never, AutoShutdown::AnySignificant]);
            Action::Start(Box::new(random_child(dice, name, 1, pretended, period)))
        }
        7 => Action::Terminate(name),
        8 => Action::Restart(name),
        _ => Action::Delete(name),
    }
}

fn boom() -> Exit {
    Exit::Abnormal("boom".to_owned())
}

fn group_term(group: &GroupSpec<Manner>) -> String {
    let strategy = match group.strategy {
        Strategy::OneForOne => "one_for_one",
        Strategy::OneForAll => "one_for_all",
        Strategy::RestForOne => "rest_for_one",
    };
    let auto_shutdown = match group.auto_shutdown {
        AutoShutdown::Never => "never",
        AutoShutdown::AnySignificant => "any_significant",
        AutoShutdown::AllSignificant => "all_significant",
    };
    let children: Vec<String> = group.children.iter().map(child_term).collect();
    let (intensity, period) = (group.intensity, group.period.as_secs());
    format!("{{{strategy}, {intensity}, {period}, {auto_shutdown}, [{}]}}", children.join(", "))
}

fn child_term(child: &ChildSpec<Manner>) -> String {
    let restart = match child.restart {
        Restart::Permanent => "permanent",
        Restart::Transient => "transient",
        Restart::Temporary => "temporary",
    };
    let (kind, inside) = match &child.kind {
        Kind::Group(group) => ("group", group_term(group)),
        Kind::Worker { work, .. } => ("worker", format!("{work:?}").to_lowercase()),
    };
    format!("{{{kind}, {}, {restart}, {}, {inside}}}", child.name, child.significant)
}

fn step_term(step: &Step) -> String {
    match step {
        Step::Fail(path, count) => format!("{{fail, [{}], {count}}}", path.join(", ")),
        Step::Sleep(milliseconds) => format!("{{sleep, {milliseconds}}}"),
        Step::Batch(path, actions) => {
            let mut text = format!("{{batch, [{}], [", path.join(", "));
            for (index, action) in actions.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                let action = match action {
                    Action::Crash(name, Exit::Normal) => format!("{{crash, {name}, normal}}"),
                    Action::Crash(name, Exit::Shutdown) => format!("{{crash, {name}, shutdown}}"),
                    Action::Crash(name, _) => format!("{{crash, {name}, boom}}"),
                    Action::Start(child) => format!("{{start, {}}}", child_term(child)),
                    Action::Terminate(name) => format!("{{terminate, {name}}}"),
                    Action::Restart(name) => format!("{{restart, {name}}}"),
                    Action::Delete(name) => format!("{{delete, {name}}}"),
                };
                write!(text, "{separator}{action}").unwrap();
            }
            text + "]}"
        }
    }
}

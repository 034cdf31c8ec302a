//! The supervision tree of a list: root, domains, processes, instances.
//!
//! The root restarts all for one, a domain the rest for one, a process each instance for itself. A process gives up only
//! if the list says when: by default it is started again for ever with growing pauses, so that no crash of one process
//! reaches another.

use std::time::Duration;

use cogo_supervision::{Backoff, ChildSpec, GroupSpec, Shutdown, StopOrder, Strategy, Work};

use crate::fleet::list::{Escalation, Process, ProcessList};

/// Pauses before a process that died is started again; one that lived for 30 s was fine.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
    forgiven_after: Duration::from_secs(30),
    jitter: true,
};
/// Period of an intensity that is given without one.
const PERIOD: Duration = Duration::from_secs(30);

/// The tree of every process with the instances that it starts with; `work` says what an instance is.
pub(crate) fn tree(
    list: &ProcessList,
    mut work: impl FnMut(&Process, u32) -> Work,
    first_slot: u32,
) -> GroupSpec<Work> {
    let mut leaf = |process: &Process| process_group(process, &mut work, first_slot);
    fill(with(GroupSpec::root(), &list.root), list, None, &mut leaf)
}

/// One instance as a child of its process.
pub(crate) fn instance(process: &Process, slot: u32, work: Work) -> ChildSpec<Work> {
    let shutdown = match process.shutdown_s() {
        0 => Shutdown::BrutalKill,
        seconds => Shutdown::Timeout(Duration::from_secs(seconds)),
    };
    ChildSpec::worker(slot.to_string(), work).restart(process.restart).shutdown(shutdown).backoff(BACKOFF)
}

/// Adds what stands directly in a domain (none: in the root), in the order in which its processes are listed.
fn fill(
    group: GroupSpec<Work>,
    list: &ProcessList,
    domain: Option<&str>,
    leaf: &mut dyn FnMut(&Process) -> ChildSpec<Work>,
) -> GroupSpec<Work> {
    let mut filled = group;
    let depth = domain.map_or(0, |domain| list.line_of(domain).len());
    for process in &list.processes {
        let line = list.line_of(process.domain());
        let is_inside = depth == 0 || line.get(depth - 1).map(String::as_str) == domain;
        match line.get(depth) {
            _ if !is_inside => {}
            None => filled = filled.child(leaf(process)),
            Some(inner) if filled.children.iter().any(|child| child.name == *inner) => {}
            Some(inner) => {
                let escalation = list.domain(inner).map(|domain| Escalation {
                    strategy: domain.strategy,
                    intensity: domain.intensity,
                    period_s: domain.period_s,
                });
                let inside = with(GroupSpec::domain(), &escalation.unwrap_or_default());
                let inside = fill(inside, list, Some(inner), leaf);
                let restart = list.domain(inner).map_or(cogo_supervision::Restart::Permanent, |domain| domain.restart);
                filled = filled.child(ChildSpec::group(inner.as_str(), inside).restart(restart));
            }
        }
    }
    filled
}

fn process_group(process: &Process, work: &mut impl FnMut(&Process, u32) -> Work, first_slot: u32) -> ChildSpec<Work> {
    let group = GroupSpec::new(process.strategy.unwrap_or(Strategy::OneForOne)).stop_order(StopOrder::AtOnce);
    let group = match (process.intensity, process.period_s) {
        (None, _) => group.intensity(u32::MAX, Duration::from_secs(1)),
        (Some(intensity), None) => group.intensity(intensity, PERIOD),
        (Some(intensity), Some(seconds)) => group.intensity(intensity, Duration::from_secs(seconds)),
    };
    let slots = first_slot..first_slot.saturating_add(process.first_instances());
    let group = slots.fold(group, |group, slot| group.child(instance(process, slot, work(process, slot))));
    ChildSpec::group(process.name.as_str(), group)
}

fn with(mut group: GroupSpec<Work>, escalation: &Escalation) -> GroupSpec<Work> {
    group.strategy = escalation.strategy.unwrap_or(group.strategy);
    group.intensity = escalation.intensity.unwrap_or(group.intensity);
    group.period = escalation.period_s.map_or(group.period, Duration::from_secs);
    group
}

#[cfg(test)]
mod tests {
    use cogo_supervision::{Kind, Restart};

    use super::*;

    fn entry(name: &str, more: &str) -> String {
        format!("[[process]]\nname = \"{name}\"\nbinary = \"x\"\nport = 1\nrestart = \"permanent\"\n{more}\n")
    }

    fn built(text: &str) -> GroupSpec<Work> {
        let list = ProcessList::parse(text).expect("a good list");
        let idle =
            || Work::task(|context: cogo_supervision::TaskContext| async move { context.stop().cancelled().await });
        let tree = tree(&list, |_, _| idle(), 0);
        tree.validate().expect("a tree of a good list is good");
        tree
    }

    fn paths(group: &GroupSpec<Work>, above: &str) -> Vec<String> {
        let below = group.children.iter().flat_map(|child| {
            let path = format!("{above}{}", child.name);
            match &child.kind {
                Kind::Worker { .. } => vec![path],
                Kind::Group(inside) => paths(inside, &format!("{path}/")),
            }
        });
        below.collect()
    }

    fn group<'a>(tree: &'a GroupSpec<Work>, path: &str) -> &'a GroupSpec<Work> {
        path.split('/').fold(tree, |group, name| {
            let child = group.children.iter().find(|child| child.name == name).expect("the path is there");
            match &child.kind {
                Kind::Group(inside) => inside,
                Kind::Worker { .. } => panic!("{path} is a worker"),
            }
        })
    }

    #[test]
    fn domains_start_in_the_order_of_their_first_process() {
        let text = entry("b-1", "") + &entry("a-1", "pool = { max = 3, start = 2 }") + &entry("b-2", "");
        assert_eq!(paths(&built(&text), ""), ["b/b-1/0", "b/b-2/0", "a/a-1/0", "a/a-1/1"]);
    }

    #[test]
    fn domains_stand_in_domains() {
        let nested = "[[domain]]\nname = \"a\"\nparent = \"k\"\n[[domain]]\nname = \"k\"\nstrategy = \"one_for_one\"\n";
        let text = entry("a-1", "") + &entry("b-1", "") + &entry("k-1", "") + &entry("a-2", "") + nested;
        let tree = built(&text);
        assert_eq!(paths(&tree, ""), ["k/a/a-1/0", "k/a/a-2/0", "k/k-1/0", "b/b-1/0"]);
        assert_eq!(group(&tree, "k").strategy, Strategy::OneForOne);
        assert_eq!(group(&tree, "k/a").strategy, Strategy::RestForOne);
    }

    #[test]
    fn nothing_escalates_unless_the_list_says_when() {
        let tree = built(&(entry("a-1", "") + &entry("a-2", "intensity = 3\nshutdown_s = 0")));
        assert_eq!((tree.strategy, tree.intensity), (Strategy::OneForAll, 3));
        assert_eq!((group(&tree, "a").strategy, group(&tree, "a").intensity), (Strategy::RestForOne, 5));
        let (quiet, loud) = (group(&tree, "a/a-1"), group(&tree, "a/a-2"));
        assert_eq!((quiet.strategy, quiet.intensity), (Strategy::OneForOne, u32::MAX));
        assert_eq!((loud.intensity, loud.period), (3, PERIOD));
        assert_eq!(quiet.children[0].backoff, Some(BACKOFF));
        let shutdown = |group: &GroupSpec<Work>| match group.children[0].kind {
            Kind::Worker { shutdown, .. } => shutdown,
            Kind::Group(_) => panic!("an instance is a worker"),
        };
        assert_eq!(shutdown(quiet), Shutdown::Timeout(Duration::from_secs(12)));
        assert_eq!(shutdown(loud), Shutdown::BrutalKill);
    }

    #[test]
    fn a_list_overrides_each_floor() {
        let floors = "[root]\nstrategy = \"one_for_one\"\nintensity = 0\nperiod_s = 7\n\
                      [[domain]]\nname = \"a\"\nrestart = \"transient\"\nintensity = 1\n";
        let tree = built(&(entry("a-1", "strategy = \"one_for_all\"") + floors));
        assert_eq!((tree.strategy, tree.intensity, tree.period), (Strategy::OneForOne, 0, Duration::from_secs(7)));
        assert_eq!((tree.children[0].restart, group(&tree, "a").intensity), (Restart::Transient, 1));
        assert_eq!(group(&tree, "a/a-1").strategy, Strategy::OneForAll);
    }
}

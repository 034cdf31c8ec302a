//! What makes a list of processes unusable; each fault is named with the entry that has it.

use std::collections::HashSet;

use cogo_contracts::Route;

use crate::{
    failure::Failure,
    fleet::list::{Claimed, Process, ProcessList},
};

/// More instances of one program on one machine are a mistake.
const MOST_INSTANCES: u32 = 100;
/// Longest time of a setting in seconds: a day.
const LONGEST_S: u64 = 86_400;

/// Refuses a list that cannot be run as it is written.
pub(crate) fn check(list: &ProcessList) -> Result<(), Failure> {
    if list.processes.is_empty() {
        return Err(fault("names no process"));
    }
    check_names(list)?;
    check_time("root", "period_s", list.root.period_s, 1)?;
    // all of them first: what comes behind follows domains upwards and must come to an end
    for domain in &list.domains {
        check_time(&domain.name, "period_s", domain.period_s, 1)?;
        check_parents(list, &domain.name)?;
    }
    for domain in &list.domains {
        let is_within = |process: &Process| list.line_of(process.domain()).contains(&domain.name);
        if !list.processes.iter().any(is_within) {
            return Err(fault(&format!("has no process in the domain {}", domain.name)));
        }
    }
    list.processes.iter().try_for_each(check_process)
}

fn check_names(list: &ProcessList) -> Result<(), Failure> {
    let (mut processes, mut domains) = (HashSet::new(), HashSet::new());
    for process in &list.processes {
        // both become part of the path of a log or of a node in the tree
        for name in [process.name.as_str(), process.domain()] {
            if !is_clean(name) {
                return Err(fault(&format!("has a bad name: {name:?}")));
            }
        }
        if process.binary.is_empty() || process.binary.contains('/') {
            return Err(fault(&format!("has a bad name of a program: {:?}", process.binary)));
        }
        if !processes.insert(process.name.as_str()) {
            return Err(fault(&format!("names {} twice", process.name)));
        }
    }
    for domain in &list.domains {
        if !is_clean(&domain.name) {
            return Err(fault(&format!("has a bad name: {:?}", domain.name)));
        }
        if !domains.insert(domain.name.as_str()) {
            return Err(fault(&format!("names the domain {} twice", domain.name)));
        }
        if list.process(&domain.name).is_some_and(|process| process.domain() != process.name) {
            return Err(fault(&format!("gives the name {} to a domain and to a process of another", domain.name)));
        }
    }
    Ok(())
}

fn is_clean(name: &str) -> bool {
    let clean = |character: char| character.is_ascii_alphanumeric() || character == '-';
    !name.is_empty() && name.chars().all(clean)
}

/// Follows a domain upwards; its line must end at the root.
fn check_parents(list: &ProcessList, domain: &str) -> Result<(), Failure> {
    let mut line = vec![domain];
    let mut next = list.domain(domain).and_then(|domain| domain.parent.as_deref());
    while let Some(parent) = next {
        if line.contains(&parent) {
            return Err(fault(&format!("has a cycle of domains: {} -> {parent}", line.join(" -> "))));
        }
        let Some(known) = list.domain(parent) else {
            return Err(fault(&format!("puts the domain {} into {parent}, which is no domain", line[line.len() - 1]))
                .hint(format!("add a `[[domain]]` with the name {parent}")));
        };
        line.push(parent);
        next = known.parent.as_deref();
    }
    Ok(())
}

fn check_process(process: &Process) -> Result<(), Failure> {
    let name = process.name.as_str();
    check_time(name, "period_s", process.period_s, 1)?;
    check_time(name, "shutdown_s", process.shutdown_s, 0)?;
    if process.period_s.is_some() && process.intensity.is_none() {
        return Err(fault(&format!("gives {name} a period_s without an intensity")));
    }
    if process.level.is_some_and(|level| !(1..=3).contains(&level)) {
        return Err(fault(&format!("gives {name} a level that is not 1, 2 or 3")));
    }
    if process.port == 0 {
        return Err(fault(&format!("gives {name} the port 0, where nobody would find it")));
    }
    if let Some(Claimed { service, role, shard }) = &process.route
        && let Err(error) = Route::new(service, role, *shard)
    {
        return Err(fault(&format!("gives {name} the route {service:?}/{role:?}, which is none")).because(&error));
    }
    let (pool, start) = (process.pool(), process.first_instances());
    if pool.min > pool.max {
        return Err(fault(&format!("gives {name} a pool with min {} above max {}", pool.min, pool.max)));
    }
    if pool.max == 0 || pool.max > MOST_INSTANCES {
        return Err(fault(&format!("gives {name} a pool with max {}, not 1 to {MOST_INSTANCES}", pool.max)));
    }
    if !(pool.min..=pool.max).contains(&start) {
        let (min, max) = (pool.min, pool.max);
        return Err(fault(&format!("starts {name} with {start} instances, not {min} to {max}")));
    }
    Ok(())
}

fn check_time(owner: &str, key: &str, seconds: Option<u64>, least: u64) -> Result<(), Failure> {
    match seconds {
        Some(value) if !(least..=LONGEST_S).contains(&value) => {
            Err(fault(&format!("gives {owner} a {key} of {value}, not {least} to {LONGEST_S}")))
        }
        _ => Ok(()),
    }
}

fn fault(what: &str) -> Failure {
    Failure::failed(format!("The list of processes {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, more: &str) -> String {
        format!("[[process]]\nname = \"{name}\"\nbinary = \"x\"\nport = 1\nrestart = \"permanent\"\n{more}\n")
    }

    fn refusal(text: &str) -> String {
        ProcessList::parse(text).expect_err(text).text()
    }

    #[test]
    fn names_that_would_write_elsewhere_or_stand_for_two_are_refused() {
        assert!(ProcessList::parse(&entry("good-name", "")).is_ok());
        assert!(refusal(&entry("../evil", "")).contains("bad name"));
        assert!(refusal(&entry("a", "domain = \"a/b\"")).contains("bad name"));
        assert!(refusal(&(entry("twice", "") + &entry("twice", ""))).contains("names twice twice"));
        let domains = "[[domain]]\nname = \"a\"\n[[domain]]\nname = \"a\"\n";
        assert!(refusal(&(entry("a-b", "") + domains)).contains("the domain a twice"));
        let both = entry("a", "domain = \"b\"") + &entry("c", "domain = \"a\"") + "[[domain]]\nname = \"a\"\n";
        assert!(refusal(&both).contains("to a domain and to a process"));
    }

    #[test]
    fn unknown_keys_and_words_are_refused_by_name() {
        assert!(refusal("process = 3").contains("cannot be read"));
        assert!(refusal("process = []").contains("names no process"));
        assert!(refusal(&entry("a", "intensty = 3")).contains("intensty"));
        assert!(refusal(&entry("a", "strategy = \"one_for_two\"")).contains("one_for_two"));
        assert!(refusal(&entry("a", "pool = { max = 2, most = 3 }")).contains("most"));
        assert!(refusal(&(entry("a", "") + "[root]\ncolour = 1\n")).contains("colour"));
        assert!(refusal(&(entry("a", "") + "[[domain]]\nname = \"a\"\nrestarts = 1\n")).contains("restarts"));
    }

    #[test]
    fn domains_without_an_end_or_without_a_process_are_refused() {
        let nested = "[[domain]]\nname = \"a\"\nparent = \"b\"\n[[domain]]\nname = \"b\"\n";
        let list = ProcessList::parse(&(entry("a-x", "") + nested)).expect("a good list");
        assert_eq!(list.path_of(&list.processes[0]), "b/a/a-x");
        let cycle = "[[domain]]\nname = \"c\"\n[[domain]]\nname = \"a\"\nparent = \"b\"\n[[domain]]\nname = \"b\"\nparent = \"a\"\n";
        assert!(refusal(&(entry("a-x", "") + cycle)).contains("a -> b -> a"));
        let own = "[[domain]]\nname = \"a\"\nparent = \"a\"\n";
        assert!(refusal(&(entry("a-x", "") + own)).contains("a -> a"));
        let unknown = "[[domain]]\nname = \"a\"\nparent = \"z\"\n";
        assert!(refusal(&(entry("a-x", "") + unknown)).contains("z, which is no domain"));
        assert!(refusal(&(entry("a-x", "") + "[[domain]]\nname = \"z\"\n")).contains("no process in the domain z"));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let bad = [
            ("pool = { min = 3, max = 2 }", "min 3 above max 2"),
            ("pool = { min = 0, max = 0 }", "max 0"),
            ("pool = { max = 101 }", "max 101"),
            ("pool = { max = 2, start = 3 }", "starts a with 3"),
            ("intensity = 1\nperiod_s = 0", "period_s of 0"),
            ("period_s = 5", "without an intensity"),
            ("intensity = -1", "intensity"),
            ("shutdown_s = 86401", "shutdown_s of 86401"),
            ("level = 4", "level"),
        ];
        for (more, expected) in bad {
            let text = refusal(&entry("a", more));
            assert!(text.contains(expected), "{more}: {text}");
        }
        for good in ["intensity = 0", "intensity = 0\nperiod_s = 1", "pool = { min = 0, max = 1 }", "shutdown_s = 0"] {
            assert!(ProcessList::parse(&entry("a", good)).is_ok(), "{good}");
        }
    }
}

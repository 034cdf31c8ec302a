//! Trees of real processes.

use std::{fs, future::pending, io, path::Path, time::Duration};

use cogo_supervision::{
    ChildSpec, End, Exit, GroupSpec, Node, NodeState, ProcessWork, Restart, Shutdown, Spawned, Strategy, Supervisor,
    TaskContext, Work,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};

use crate::waiting::{HOUR, LONG, options, until};

fn group(strategy: Strategy) -> GroupSpec<Work> {
    GroupSpec::new(strategy).intensity(3, HOUR)
}

fn command(program: &'static str, arguments: &'static [&'static str]) -> ProcessWork {
    ProcessWork::new(move || {
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(command)
    })
}

fn sleeping(name: &str) -> ChildSpec<Work> {
    ChildSpec::worker(name, Work::process(command("sleep", &["1000"])))
}

/// A shell that counts as started once it has written this file.
fn shell(script: &str, file: &Path) -> Work {
    let text = script.replace("FILE", file.to_str().unwrap());
    let file = file.to_owned();
    let process = ProcessWork::new(move || {
        let mut command = Command::new("sh");
        command.args(["-c", &text]);
        Ok(command)
    });
    Work::process(process.ready(move |_| {
        let file = file.clone();
        async move {
            while !fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            io::Result::Ok(())
        }
    }))
}

fn exit_of(tree: &Node, path: &str) -> Exit {
    tree.find(path).unwrap().last_exit.clone().unwrap().exit
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Whether a process does anything; one that is dead but not collected by its parent does not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().is_empty() && !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_killed_process_is_started_again_with_another_number() {
    let handle = Supervisor::start(group(Strategy::OneForOne).child(sleeping("a")), &options()).unwrap();
    handle.started().await.unwrap();
    let first = handle.tree().await.children[0].pid.unwrap();
    assert!(is_alive(first));
    send(first, Signal::KILL);
    let tree = until(&handle, |tree| tree.children[0].restarts == 1).await;
    let second = tree.children[0].pid.unwrap();
    assert!(second != first && is_alive(second) && !is_alive(first));
    assert_eq!(exit_of(&tree, "a"), Exit::Abnormal("signal 9".to_owned()));
    handle.shutdown();
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!((outcome.end, exit_of(&outcome.tree, "a")), (End::Shutdown, Exit::Shutdown));
    assert!(!is_alive(second));
}

#[tokio::test]
async fn a_process_that_fails_for_ever_ends_the_tree() {
    let failing = ChildSpec::worker("bad", Work::process(command("sh", &["-c", "exit 1"])));
    let spec = group(Strategy::OneForOne).child(sleeping("good")).child(failing);
    let handle = Supervisor::start(spec, &options()).unwrap();
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!(outcome.end, End::GaveUp);
    assert_eq!(outcome.tree.find("bad").unwrap().restarts, 3);
    assert_eq!(exit_of(&outcome.tree, "bad"), Exit::Abnormal("exit code 1".to_owned()));
    assert_eq!(exit_of(&outcome.tree, "good"), Exit::Shutdown);
}

#[tokio::test]
async fn a_process_that_is_done_stays_down_if_it_is_transient() {
    let done = ChildSpec::worker("done", Work::process(command("true", &[]))).restart(Restart::Transient);
    let handle = Supervisor::start(group(Strategy::OneForOne).child(done), &options()).unwrap();
    let tree =
        until(&handle, |tree| tree.children[0].state == NodeState::Stopped && tree.children[0].last_exit.is_some());
    let tree = tree.await;
    assert_eq!((exit_of(&tree, "done"), tree.children[0].restarts), (Exit::Normal, 0));
}

#[tokio::test]
async fn a_process_that_says_so_is_not_started_again() {
    let refusing = command("sh", &["-c", "exit 79"]).final_code(79, "somebody else does it");
    let spec = group(Strategy::OneForOne).child(ChildSpec::worker("a", Work::process(refusing)));
    let handle = Supervisor::start(spec, &options()).unwrap();
    let is_down = |tree: &Node| tree.children[0].last_exit.is_some() && tree.children[0].state != NodeState::Running;
    let tree = until(&handle, is_down).await;
    assert_eq!((tree.children[0].state, tree.children[0].restarts), (NodeState::Stopped, 0));
    assert_eq!(exit_of(&tree, "a"), Exit::Final("somebody else does it".to_owned()));
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_after_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; echo $$ > FILE; while :; do sleep 0.05; done";
    let work = shell(script, &directory.path().join("ready"));
    let deaf = ChildSpec::worker("deaf", work).shutdown(Shutdown::Timeout(Duration::from_millis(100)));
    let handle = Supervisor::start(group(Strategy::OneForOne).child(deaf), &options()).unwrap();
    timeout(LONG, handle.started()).await.unwrap().unwrap();
    let pid = handle.tree().await.children[0].pid.unwrap();
    handle.shutdown();
    let outcome = timeout(LONG, handle.ended()).await.unwrap();
    assert_eq!((outcome.end, exit_of(&outcome.tree, "deaf")), (End::Shutdown, Exit::Killed));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn nothing_of_a_process_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("grandchild");
    let work = shell("sleep 1000 & echo $! > FILE; wait", &file);
    let child = ChildSpec::worker("a", work).restart(Restart::Temporary);
    let handle = Supervisor::start(group(Strategy::OneForOne).child(child), &options()).unwrap();
    timeout(LONG, handle.started()).await.unwrap().unwrap();
    let grandchild = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    assert!(is_alive(grandchild));
    send(handle.tree().await.children[0].pid.unwrap(), Signal::KILL);
    until(&handle, |tree| tree.children.is_empty()).await;
    // the signal was sent, the system may take a moment
    let gone = async {
        while is_alive(grandchild) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

async fn start_failure(child: ChildSpec<Work>) -> String {
    let spec = group(Strategy::OneForOne).child(sleeping("before")).child(child);
    let handle = Supervisor::start(spec, &options()).unwrap();
    let outcome = timeout(LONG, handle.started()).await.unwrap().unwrap_err();
    assert_eq!(exit_of(&outcome.tree, "before"), Exit::Shutdown);
    match outcome.end {
        End::StartFailed { child, reason } if child == "a" => reason,
        end => panic!("{end:?}"),
    }
}

#[tokio::test]
async fn a_process_that_does_not_become_ready_was_not_started() {
    let never = command("sleep", &["1000"]).ready(|_| pending::<io::Result<()>>());
    let never = ChildSpec::worker("a", Work::process(never)).start_timeout(Duration::from_millis(50));
    assert_eq!(start_failure(never).await, "it did not start in time");
    let refusing = command("sleep", &["1000"]).ready(|spawned: Spawned| async move {
        assert!(is_alive(spawned.pid));
        Err(format!("{} has no port", spawned.path))
    });
    let reason = start_failure(ChildSpec::worker("a", Work::process(refusing))).await;
    assert_eq!(reason, "not ready: a has no port");
    let early = command("sh", &["-c", "exit 7"]).ready(|_| pending::<io::Result<()>>());
    assert_eq!(start_failure(ChildSpec::worker("a", Work::process(early))).await, "exit code 7");
    let missing = ChildSpec::worker("a", Work::process(command("/no/such/program", &[])));
    let reason = start_failure(missing).await;
    assert!(reason.starts_with("no process: "), "{reason}");
}

#[tokio::test]
async fn processes_and_tasks_stand_in_one_tree() {
    let task = ChildSpec::worker(
        "task",
        Work::task(|context: TaskContext| async move {
            context.stop().cancelled().await;
        }),
    );
    let spec = group(Strategy::RestForOne).child(sleeping("first")).child(sleeping("second")).child(task);
    let handle = Supervisor::start(spec, &options()).unwrap();
    handle.started().await.unwrap();
    let before = handle.tree().await;
    send(before.find("second").unwrap().pid.unwrap(), Signal::KILL);
    let tree = until(&handle, |tree| tree.find("task").unwrap().restarts == 1).await;
    assert_eq!(tree.find("first").unwrap().pid, before.find("first").unwrap().pid);
    assert_eq!(exit_of(&tree, "task"), Exit::Shutdown);
    assert_eq!(exit_of(&tree, "second"), Exit::Abnormal("signal 9".to_owned()));
}

//! Pictures of tasks, compared as text.

use chrono::TimeDelta;

use super::*;

const FIRST: u128 = 0x0199_9999_0000_7000_8000_0000_0000_0001;

fn at(milliseconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds(milliseconds)
}

struct Given {
    number: u128,
    parent: Option<u128>,
    route: (&'static str, &'static str),
    status: MessageStatus,
    created: i64,
    claimed: Option<i64>,
    done: Option<i64>,
}

fn step(given: Given) -> Step {
    Step {
        id: Uuid::from_u128(FIRST + given.number),
        parent_id: given.parent.map(|parent| Uuid::from_u128(FIRST + parent)),
        replay_of: None,
        service: given.route.0.to_owned(),
        role: given.route.1.to_owned(),
        shard: 0,
        status: given.status,
        attempts: i16::from(given.claimed.is_some()),
        claimed_by: None,
        created_at: at(given.created),
        claimed_at: given.claimed.map(at),
        retry_at: None,
        done_at: given.done.map(at),
        error: None,
        result_snippet: None,
    }
}

fn task(status: TaskStatus, finished: Option<i64>, steps: Vec<Step>) -> Task {
    Task {
        id: Uuid::from_u128(FIRST),
        tenant: "default".to_owned(),
        status,
        created_at: at(0),
        finished_at: finished.map(at),
        error: None,
        result: None,
        result_url: None,
        steps,
    }
}

/// decide (0–10), dispatch (10–20), chat (20–40), each waiting for the first half.
fn finished() -> Task {
    let done = MessageStatus::Done;
    let given = |number, parent, route, created, claimed, end| {
        step(Given { number, parent, route, status: done, created, claimed: Some(claimed), done: Some(end) })
    };
    task(
        TaskStatus::Done,
        Some(40),
        vec![
            given(0, None, ("orchestrator", "decide"), 0, 5, 10),
            given(1, Some(0), ("executor", "dispatch"), 10, 15, 20),
            given(2, Some(1), ("gateway", "chat"), 20, 30, 40),
        ],
    )
}

#[test]
fn finished_task_is_drawn_as_steps_on_one_axis() {
    let picture = render(&Waterfall::of(&finished(), at(99)), 70, Paint::PLAIN);
    let expected = "\
task 01999999-0000-7000-8000-000000000001
tenant default, done in 40.0 ms, 3 steps

                         0               40.0 ms       wait        run
orchestrator/decide done ░░░███                      5.0 ms     5.0 ms
  executor/dispatch done       ░░░███                5.0 ms     5.0 ms
    gateway/chat    done             ░░░░░██████    10.0 ms    10.0 ms
░ waits  █ runs  ▶ goes on";
    assert_eq!(picture, expected, "\n{picture}");
}

#[test]
fn every_line_fits_the_width_and_every_step_is_seen() {
    let mut task = finished();
    task.steps[2].service = "a-service-with-an-unreasonably-long-name".to_owned();
    task.steps[2].error = Some("a reason that goes on and on ".repeat(20));
    for width in [40, 60, 80, 100, 200] {
        let picture = render(&Waterfall::of(&task, at(99)), width, Paint::PLAIN);
        for line in picture.lines().skip(2) {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        assert_eq!(picture.lines().filter(|line| line.contains(RUN) && line.contains("done")).count(), 3, "{picture}");
    }
}

#[test]
fn an_open_task_lasts_until_now_and_says_so() {
    let mut task = finished();
    task.status = TaskStatus::Running;
    task.finished_at = None;
    let last = &mut task.steps[2];
    (last.status, last.claimed_at, last.done_at, last.attempts) = (MessageStatus::Queued, None, None, 0);
    let waterfall = Waterfall::of(&task, at(120));
    assert!((waterfall.total_ms - 120.0).abs() < 0.001);
    let row = &waterfall.rows[2];
    assert_eq!((row.run_ms, row.is_open), (None, true));
    assert!((row.wait_ms - 100.0).abs() < 0.001);
    let picture = render(&waterfall, 80, Paint::PLAIN);
    let line = picture.lines().find(|line| line.contains("gateway/chat")).expect("its line");
    assert!(line.contains("queued") && line.contains("░▶") && line.trim_end().ends_with('-'), "{line}");
}

#[test]
fn attempts_and_reasons_of_a_dead_letter_are_shown_and_its_replay_below_it() {
    let mut task = finished();
    task.status = TaskStatus::Done;
    let dead = &mut task.steps[2];
    (dead.status, dead.attempts, dead.error) = (MessageStatus::Failed, 5, Some("index is\nmissing".to_owned()));
    let mut replay = step(Given {
        number: 3,
        parent: None,
        route: ("gateway", "chat"),
        status: MessageStatus::Done,
        created: 50,
        claimed: Some(51),
        done: Some(60),
    });
    replay.replay_of = Some(task.steps[2].id);
    task.steps.push(replay);
    task.finished_at = Some(at(60));
    let waterfall = Waterfall::of(&task, at(99));
    assert_eq!(waterfall.rows.iter().map(|row| row.depth).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let picture = render(&waterfall, 100, Paint::PLAIN);
    for expected in ["failed ×5", "error: index is missing", "gateway/chat (replay)"] {
        assert!(picture.contains(expected), "{expected}: {picture}");
    }
}

#[test]
fn attempts_stand_below_a_step_that_had_several_and_tell_its_error() {
    let mut task = finished();
    let dead = &mut task.steps[2];
    (dead.status, dead.attempts, dead.error) = (MessageStatus::Failed, 2, Some("index is\nmissing".to_owned()));
    let id = dead.id;
    let attempt = |number, from, until, outcome: &str, error: &str| Attempt {
        attempt: number,
        holder: Some("chat/0#1".to_owned()),
        started_at: Some(at(from)),
        ended_at: Some(at(until)),
        outcome: outcome.to_owned(),
        error: Some(error.to_owned()),
    };
    let history =
        vec![attempt(1, 22, 26, "released", "handed back"), attempt(2, 30, 40, "failed", "index is\nmissing")];
    let once = vec![attempt(1, 5, 10, "completed", "")];
    let waterfall = Waterfall::of(&task, at(99));
    let first = waterfall.rows[0].id;
    let waterfall = waterfall.with_histories(HashMap::from([(id, history), (first, once)]));
    let picture = render(&waterfall, 80, Paint::PLAIN);
    let below: Vec<&str> = picture.lines().skip_while(|line| !line.contains("gateway/chat")).skip(1).collect();
    let expected = [
        "      #1   00:00:00.022     4.0 ms  handed back   chat/0#1: handed back",
        "      #2   00:00:00.030    10.0 ms  failed        chat/0#1: index is missing",
        "░ waits  █ runs  ▶ goes on",
    ];
    assert_eq!(below, expected, "\n{picture}");
    assert!(!picture.contains("completed"), "one attempt needs no line\n{picture}");
    for line in render(&waterfall, 40, Paint::PLAIN).lines().skip(2) {
        assert!(line.chars().count() <= 40, "{line}");
    }
}

#[test]
fn siblings_keep_their_order_and_orphans_are_not_lost() {
    let given = |number, parent| {
        step(Given {
            number,
            parent,
            route: ("rag", "embed"),
            status: MessageStatus::Done,
            created: 1,
            claimed: Some(2),
            done: Some(3),
        })
    };
    // the parent of 9 has been removed
    let steps = [given(0, None), given(1, Some(0)), given(2, Some(0)), given(3, Some(1)), given(9, Some(8))];
    let order: Vec<(u128, usize)> =
        in_tree_order(&steps).into_iter().map(|(step, depth)| (step.id.as_u128() - FIRST, depth)).collect();
    assert_eq!(order, [(0, 0), (1, 1), (3, 2), (2, 1), (9, 0)]);
}

#[test]
fn a_task_without_duration_is_still_a_picture() {
    let mut task = finished();
    for step in &mut task.steps {
        (step.created_at, step.claimed_at, step.done_at) = (at(0), Some(at(0)), Some(at(0)));
    }
    task.finished_at = Some(at(0));
    let picture = render(&Waterfall::of(&task, at(0)), 80, Paint::PLAIN);
    assert!(picture.contains("done in 0.0 ms"));
}

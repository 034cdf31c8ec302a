//! The copy of the registry in memory: what it finds, how it follows, and when it refuses to answer.

use std::time::{Duration, Instant};

use cogo_contracts::AgentState;
use cogo_registry_core::{Follower, Query, Registry, View, ViewSettings};
use cogo_test_support::{database, private_cluster};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    fleet::{active, registration},
    heartbeat::{PAUSE, Running, spawn},
};

/// A copy that is kept current.
pub(crate) struct Following {
    pub(crate) view: View,
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Following {
    pub(crate) async fn start(registry: &Registry) -> Self {
        Self::start_with(registry, ViewSettings::default()).await
    }

    async fn start_with(registry: &Registry, settings: ViewSettings) -> Self {
        let (follower, view) = Follower::new(registry, settings);
        let token = CancellationToken::new();
        let task = spawn(follower.run(token.clone()));
        let following = Self { view, token, task };
        following.caught_up(registry).await;
        following
    }

    /// Waits until the copy answers, and is as new as the database is now.
    pub(crate) async fn caught_up(&self, registry: &Registry) {
        let newest = registry.log(0, u32::MAX).await.unwrap().last().map_or(0, |change| change.version);
        let there = async {
            loop {
                self.view.wait_for(newest).await;
                if self.view.look(|_| ()).is_ok() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(Duration::from_secs(60), there).await.expect("the copy catches up");
    }

    pub(crate) async fn stop(self) {
        self.token.cancel();
        self.task.await.unwrap();
    }
}

fn names(view: &View, query: &Query) -> Vec<String> {
    let mut names: Vec<String> = view.discover(query).unwrap().value.iter().map(|entry| entry.id.instance()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn agents_are_found_by_slot_run_capability_tag_version_and_place() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let tagged = registration("rag-embed", 0).capability("embed").unwrap().tag("zone:a").unwrap();
    let member = registry.register(&tagged).await.unwrap();
    registry.activate(member.instance_id).await.unwrap();
    let other = registration("rag-embed", 1).capability("embed").unwrap().tag("zone:b").unwrap();
    registry.activate(registry.register(&other).await.unwrap().instance_id).await.unwrap();
    let following = Following::start(&registry).await;
    let view = &following.view;

    let answer = view.resolve("rag-embed/0").unwrap();
    let entry = answer.value.unwrap();
    assert_eq!((entry.id.instance_id, entry.epoch, entry.state), (member.instance_id, 1, AgentState::Active));
    assert_eq!(answer.version, 4);
    assert_eq!(view.resolve_run(member.instance_id).unwrap().value.as_ref(), Some(&entry));
    assert!(view.resolve("rag-embed/2").unwrap().value.is_none());

    let embed = || Query::capability("embed");
    for (query, expected) in [
        (embed(), &["rag-embed/0", "rag-embed/1"][..]),
        (embed().tag("zone:a"), &["rag-embed/0"]),
        (Query::default().tag("zone:b"), &["rag-embed/1"]),
        (Query::default(), &["rag-embed/0", "rag-embed/1"]),
        (Query::domain("rag"), &["rag-embed/0", "rag-embed/1"]),
        (Query::name("rag-embed").tag("zone:a").tag("zone:b"), &[]),
        (Query::capability("fly"), &[]),
        (embed().version("=1.2.3-rc.1".parse().unwrap()), &["rag-embed/0", "rag-embed/1"]),
        (embed().version(">=2".parse().unwrap()), &[]),
        (embed().host("test").environment(cogo_contracts::Environment::Host), &["rag-embed/0", "rag-embed/1"]),
        (embed().host("elsewhere"), &[]),
        (embed().region("moon"), &[]),
        (embed().level(1), &[]),
    ] {
        assert_eq!(names(view, &query), expected, "{query:?}");
    }
    assert_eq!(view.discover(&embed().limit(1)).unwrap().value.len(), 1);
    following.stop().await;
}

#[tokio::test]
async fn every_kind_of_change_arrives_and_equals_a_whole_reading() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let following = Following::start(&registry).await;
    let a = active(&registry, "rag-embed", 0).await;
    let b = active(&registry, "rag-embed", 1).await;
    registry.suspend(a.instance_id).await.unwrap();
    registry.drain(b.instance_id).await.unwrap();
    active(&registry, "rag-embed", 1).await;
    registry.register(&registration("kg-builder", 0).capability("build").unwrap()).await.unwrap();
    following.caught_up(&registry).await;
    assert_eq!(names(&following.view, &Query::name("rag-embed")), ["rag-embed/1"], "suspended ones are not found");
    assert_eq!(following.view.resolve("rag-embed/0").unwrap().value.unwrap().state, AgentState::Suspended);

    // the same from a copy that starts now
    let whole = Following::start(&registry).await;
    let same = following.view.look(Clone::clone).unwrap().value == whole.view.look(Clone::clone).unwrap().value;
    assert!(same, "step by step and all at once agree");
    following.stop().await;
    whole.stop().await;
}

#[tokio::test]
async fn a_shortened_log_leads_to_a_whole_reading() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let gone = active(&registry, "rag-embed", 0).await;
    let following = Following::start(&registry).await;
    // the end and the forgetting of it arrive as one change
    let mut transaction = database.pool.begin().await.unwrap();
    for statement in
        ["select registry.deregister($1, null, 'stopped')::text", "select registry.retain('0 s')::text || $1"]
    {
        sqlx::query(statement).bind(gone.instance_id).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let next = active(&registry, "rag-embed", 1).await;
    following.caught_up(&registry).await;
    let view = &following.view;
    assert!(view.resolve_run(gone.instance_id).unwrap().value.is_none());
    assert!(view.resolve_run(next.instance_id).unwrap().value.is_some());
    following.stop().await;
}

#[tokio::test]
async fn a_version_that_a_beat_tells_of_is_followed_without_any_notification() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    running.until_active().await;
    // it never looks by itself within this test, and does not listen to anything
    let settings = ViewSettings {
        confirm_every: Duration::from_secs(3600),
        max_staleness: Duration::from_secs(3600),
        ..ViewSettings::default()
    };
    let (follower, view) = Follower::new(&registry, settings);
    let token = CancellationToken::new();
    let task = spawn(follower.fed_by(&running.member).run(token.clone()));
    view.wait_for(2).await;
    silence(&database.pool).await;
    let next = active(&registry, "kg-builder", 0).await;
    let seen = async {
        while view
            .look(|snapshot| snapshot.run(next.instance_id).is_none_or(|run| run.state != AgentState::Active))
            .unwrap()
            .value
        {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), seen).await.expect("the beat told of it");
    token.cancel();
    task.await.unwrap();
}

/// From now on nobody is notified of anything.
async fn silence(pool: &sqlx::PgPool) {
    let body: String =
        sqlx::query_scalar("select pg_get_functiondef('registry.append'::regproc)").fetch_one(pool).await.unwrap();
    let silent = body.replace("perform pg_notify('registry_changed', made::text);", "");
    assert_ne!(silent, body);
    sqlx::query(sqlx::AssertSqlSafe(silent)).execute(pool).await.unwrap();
}

#[tokio::test]
async fn answers_tell_their_age_and_are_refused_beyond_the_limit() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    active(&registry, "rag-embed", 0).await;
    let (_never_run, unread) = Follower::new(&registry, ViewSettings::default());
    let refused = unread.resolve("rag-embed/0").unwrap_err();
    assert_eq!((refused.version, refused.age), (0, None), "before the first reading there is no answer");

    // longer than a busy machine takes for the first reading, after which nobody confirms the copy
    let limit = Duration::from_secs(5);
    let settings =
        ViewSettings { max_staleness: limit, confirm_every: Duration::from_secs(3600), ..ViewSettings::default() };
    let following = Following::start_with(&registry, settings).await;
    let began = Instant::now();
    let refused = loop {
        match following.view.resolve("rag-embed/0") {
            Ok(answer) => {
                assert!(answer.age <= limit, "{answer:?}");
                assert!(began.elapsed() < Duration::from_secs(60));
            }
            Err(refused) => break refused,
        }
        tokio::time::sleep(PAUSE).await;
    };
    assert!(refused.age > Some(limit) && refused.version == 2, "{refused:?}");
    following.view.heard_of(2, Instant::now());
    assert!(following.view.resolve("rag-embed/0").is_ok(), "a beat that tells of the same version confirms it");
    following.stop().await;
}

#[tokio::test]
async fn a_copy_comes_back_by_itself_after_the_database_was_killed() {
    let cluster = private_cluster().await;
    let registry = Registry::new(cluster.pool.clone());
    let before = active(&registry, "rag-embed", 0).await;
    // longer than a busy machine stands still between the last confirmation and a look
    let settings = ViewSettings { max_staleness: Duration::from_secs(8), ..ViewSettings::default() };
    let following = Following::start_with(&registry, settings).await;
    cluster.kill();
    let refused = async {
        while following.view.resolve("rag-embed/0").is_ok() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), refused).await.expect("a copy that nobody confirms is not answered from");
    cluster.heal().await;
    let successor = active(&registry, "rag-embed", 0).await;
    following.caught_up(&registry).await;
    assert!(following.view.resolve_run(before.instance_id).unwrap().value.is_none());
    assert_eq!(following.view.resolve("rag-embed/0").unwrap().value.unwrap().id.instance_id, successor.instance_id);
    following.stop().await;
}

#[tokio::test]
async fn choices_follow_the_loads_that_beats_tell() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut members = Vec::new();
    for slot in 0..3 {
        members.push(active(&registry, "rag-embed", slot).await);
    }
    let unready = active(&registry, "rag-embed", 3).await;
    sqlx::query("select registry.beat($1, 1, 1, false, 0)")
        .bind(unready.instance_id)
        .execute(&database.pool)
        .await
        .unwrap();
    for (member, in_flight) in members.iter().zip([40, 2, 60]) {
        registry.beat(member, 1, in_flight).await.unwrap();
    }
    let following = Following::start(&registry).await;
    let (view, query) = (&following.view, Query::name("rag-embed"));
    let loaded = async {
        while view.resolve("rag-embed/2").unwrap().value.unwrap().in_flight() != 60 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), loaded).await.expect("loads are read at the start");
    assert_eq!(view.find_healthy(&query).unwrap().value.len(), 3, "one said that it is not ready");
    assert_eq!(view.discover(&query).unwrap().value.len(), 4);

    let mut least = Vec::new();
    for _ in 0..50 {
        least.push(view.least_loaded(&query).unwrap().value.unwrap().id.slot);
    }
    assert_eq!(least[..38], [1; 38], "until it has as much to do as the next");
    assert!(least[38..].contains(&0) && !least.contains(&2) && !least.contains(&3), "{least:?}");

    let mut counts = [0; 4];
    for _ in 0..300 {
        let slot = view.power_of_two(&query).unwrap().value.unwrap().id.slot;
        counts[usize::try_from(slot).unwrap()] += 1;
    }
    assert_eq!(counts[3], 0, "never the one that is not ready: {counts:?}");
    assert!(counts[..3].iter().all(|count| *count > 40), "none is left out or gets nearly all: {counts:?}");
    assert!(view.power_of_two(&Query::capability("fly")).unwrap().value.is_none());
    following.stop().await;
}

#[tokio::test]
async fn loads_are_read_again_once_somebody_chooses_by_them() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let member = active(&registry, "rag-embed", 0).await;
    let load_every = Duration::from_millis(50);
    let hour = Duration::from_secs(3600);
    let settings = ViewSettings { load_every, confirm_every: hour, max_staleness: hour, ..ViewSettings::default() };
    let following = Following::start_with(&registry, settings).await;
    // nobody chooses for longer than the loads are good
    tokio::time::sleep(load_every * 4).await;
    registry.beat(&member, 1, 7).await.unwrap();
    tokio::time::sleep(load_every * 4).await;
    let in_flight = || following.view.resolve("rag-embed/0").unwrap().value.unwrap().in_flight();
    assert_eq!(in_flight(), 0, "loads are read only while somebody wants them");
    following.view.find_healthy(&Query::name("rag-embed")).unwrap();
    let read = async {
        while in_flight() != 7 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(20), read).await.expect("the wish is heard while the follower rests");
    following.stop().await;
}

#[test]
fn one_who_follows_sleeps_while_nothing_happens() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let database = database().await;
        let registry = Registry::new(database.pool.clone());
        active(&registry, "rag-embed", 0).await;
        let (load_every, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        let settings = ViewSettings { load_every, confirm_every: hour, max_staleness: hour, ..ViewSettings::default() };
        let following = Following::start_with(&registry, settings).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let woken = || tokio::runtime::Handle::current().metrics().worker_park_count(0);
        let before = woken();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let woken = woken() - before;
        following.stop().await;
        // the clock of the test and the turns of the timer's wheel
        assert!(woken < 12, "{woken} times within 3 s");
    });
}

//! Declaring agents suspect and dead, and the guards against doing so in error.

use std::time::Duration;

use cogo_registry_core::{Error, Membership, Registry};
use cogo_test_support::{TestDatabase, database};
use sqlx::PgPool;

use super::{
    fleet::{active, claimed_by, events, last_beat, state, status},
    heartbeat::PAUSE,
};

const LONG_AGO: Duration = Duration::from_secs(30 * 24 * 3600);

/// Times for a sweep, so long that none of them passes while a test runs. The cluster of the tests may have come up just
/// now, so from here on this database takes itself for one that has been up for long.
async fn thresholds(pool: &PgPool) -> (Duration, Duration) {
    sqlx::raw_sql(
        "create or replace function registry.database_up_for() returns interval
         language sql stable security definer set search_path = pg_catalog, pg_temp as $$ select interval '90 days' $$",
    )
    .execute(pool)
    .await
    .unwrap();
    (Duration::from_secs(12 * 3600), Duration::from_secs(24 * 3600))
}

/// Makes the last beat of a run fresh for as long as a test may take.
async fn keep_fresh(pool: &PgPool, membership: &Membership) {
    sqlx::query("update registry.beats set beat_at = clock_timestamp() + interval '1 hour' where instance_id = $1")
        .bind(membership.instance_id)
        .execute(pool)
        .await
        .unwrap();
}

async fn three(database: &TestDatabase) -> (Registry, [Membership; 3]) {
    let registry = Registry::new(database.pool.clone());
    let members = [
        active(&registry, "rag-embed", 0).await,
        active(&registry, "rag-embed", 1).await,
        active(&registry, "rag-embed", 2).await,
    ];
    (registry, members)
}

#[tokio::test]
async fn the_late_are_suspect_and_the_silent_are_dead() {
    let database = database().await;
    let (registry, [fresh, late, silent]) = three(&database).await;
    let message = claimed_by(&database.pool, &silent.holder).await;
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    keep_fresh(&database.pool, &fresh).await;
    last_beat(&database.pool, &late, suspect_after.mul_f64(1.1)).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;

    let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((outcome.suspected, outcome.died, outcome.requeued, outcome.held_back), (1, 1, 1, 0));
    assert_eq!(state(&database.pool, &fresh).await, "active");
    assert_eq!(state(&database.pool, &late).await, "suspect");
    assert_eq!(state(&database.pool, &silent).await, "terminated");
    assert_eq!(status(&database.pool, message).await, "queued");
    assert_eq!(events(&database.pool).await[6..], ["agent_dead", "agent_suspect"]);
    assert!(matches!(registry.beat(&silent, 1, 0).await, Err(Error::Ended { .. })), "a beat after death is refused");

    registry.beat(&late, 1, 0).await.unwrap();
    assert_eq!(state(&database.pool, &late).await, "active", "a suspect that beats is active again");
    assert_eq!(events(&database.pool).await[8..], ["agent_recovered"]);
}

#[tokio::test]
async fn death_requeue_log_and_event_are_one_transaction() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let silent = active(&registry, "rag-embed", 0).await;
    let message = claimed_by(&database.pool, &silent.holder).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;
    let seen_before = events(&database.pool).await;

    let mut transaction = database.pool.begin().await.unwrap();
    let died: i32 = sqlx::query_scalar("select s.died from registry.sweep('0 s', '1 ms') as s")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(died, 1);
    transaction.rollback().await.unwrap();
    assert_eq!(state(&database.pool, &silent).await, "active");
    assert_eq!(status(&database.pool, message).await, "claimed");
    assert_eq!(events(&database.pool).await, seen_before);
}

#[tokio::test]
async fn sweeping_again_changes_nothing() {
    let database = database().await;
    let (registry, [_, late, silent]) = three(&database).await;
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    last_beat(&database.pool, &late, suspect_after.mul_f64(1.1)).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;
    registry.sweep(suspect_after, dead_after).await.unwrap();
    let seen = events(&database.pool).await;
    let again = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert!(again.swept);
    assert_eq!((again.suspected, again.died, again.requeued), (0, 0, 0));
    assert_eq!(events(&database.pool).await, seen);
}

#[tokio::test]
async fn one_sweep_runs_at_a_time() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let silent = active(&registry, "rag-embed", 0).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;
    let mut transaction = database.pool.begin().await.unwrap();
    sqlx::query("select * from registry.sweep('0 s', '1 ms')").execute(&mut *transaction).await.unwrap();
    let second = registry.sweep(Duration::ZERO, Duration::from_millis(1)).await.unwrap();
    assert!(!second.swept);
    transaction.commit().await.unwrap();
    let dead = events(&database.pool).await.into_iter().filter(|kind| kind == "agent_dead").count();
    assert_eq!(dead, 1);
}

#[tokio::test]
async fn a_beat_that_is_under_way_saves_the_agent() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let member = active(&registry, "rag-embed", 0).await;
    let (_, dead_after) = thresholds(&database.pool).await;
    last_beat(&database.pool, &member, LONG_AGO).await;
    let mut beating = database.pool.begin().await.unwrap();
    sqlx::query("select * from registry.beat($1, 1, 1)").bind(member.instance_id).execute(&mut *beating).await.unwrap();
    let sweeping = registry.sweep(dead_after, dead_after);
    let beaten = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&database.pool).await.unwrap() == 0 {
            tokio::time::sleep(PAUSE).await;
        }
        beating.commit().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(sweeping, beaten);
    assert_eq!(outcome.unwrap().died, 0);
    assert_eq!(state(&database.pool, &member).await, "active");
}

#[tokio::test]
async fn nobody_dies_while_the_database_has_just_come_up() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let silent = active(&registry, "rag-embed", 0).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;
    let up_for: f64 = sqlx::query_scalar("select extract(epoch from registry.database_up_for())::double precision")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let longer_than_up = Duration::from_secs_f64(up_for) + Duration::from_secs(3600);
    let outcome = registry.sweep(longer_than_up, longer_than_up).await.unwrap();
    assert_eq!((outcome.suspected, outcome.died, outcome.held_back), (0, 0, 1));
    assert_eq!(state(&database.pool, &silent).await, "active");
}

#[tokio::test]
async fn most_of_the_fleet_silent_at_once_is_held_back_for_one_period() {
    let database = database().await;
    let (registry, silent) = three(&database).await;
    let fresh = active(&registry, "kg-builder", 0).await;
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    keep_fresh(&database.pool, &fresh).await;
    for member in &silent {
        last_beat(&database.pool, member, LONG_AGO).await;
    }
    for _ in 0..2 {
        let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
        assert_eq!((outcome.died, outcome.held_back), (0, 3));
    }
    registry.beat(&silent[0], 1, 0).await.unwrap();
    keep_fresh(&database.pool, &silent[0]).await;
    let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((outcome.died, outcome.held_back), (0, 2), "the others have their whole period too");

    sqlx::query("update registry.sweeper set holding_since = holding_since - interval '1 day'")
        .execute(&database.pool)
        .await
        .unwrap();
    let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((outcome.died, outcome.held_back), (2, 0));
    assert_eq!(state(&database.pool, &silent[0]).await, "active");
}

/// Makes it look as if nobody had swept for this long, or as if the grace had begun that long ago.
async fn last_sweep(pool: &PgPool, ago: Duration) {
    sqlx::query(
        "update registry.sweeper set swept_at = swept_at - $1 * interval '1 second',
                grace_until = grace_until - $1 * interval '1 second'",
    )
    .bind(ago.as_secs_f64())
    .execute(pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_sweep_that_is_late_itself_judges_nobody_before_they_could_beat() {
    let database = database().await;
    let (registry, [fresh, late, silent]) = three(&database).await;
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    keep_fresh(&database.pool, &fresh).await;
    keep_fresh(&database.pool, &late).await;
    keep_fresh(&database.pool, &silent).await;
    registry.sweep(suspect_after, dead_after).await.unwrap();
    last_sweep(&database.pool, LONG_AGO).await;
    last_beat(&database.pool, &late, suspect_after.mul_f64(1.1)).await;
    last_beat(&database.pool, &silent, LONG_AGO).await;
    for _ in 0..2 {
        let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
        assert_eq!((outcome.suspected, outcome.died, outcome.held_back), (0, 0, 1));
    }
    let told: i64 = sqlx::query_scalar("select count(*) from public.bus_events where kind = 'sweep_was_late'")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(told, 1);

    // the grace is over, and sweeps are regular again
    sqlx::query("update registry.sweeper set grace_until = swept_at").execute(&database.pool).await.unwrap();
    let outcome = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((outcome.suspected, outcome.died, outcome.held_back), (1, 1, 0));
}

#[tokio::test]
async fn a_pause_of_everything_kills_nobody_who_beats_afterwards() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    // too few for the guard against mass death
    let member = active(&registry, "rag-embed", 0).await;
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    registry.sweep(suspect_after, dead_after).await.unwrap();
    last_sweep(&database.pool, LONG_AGO).await;
    last_beat(&database.pool, &member, LONG_AGO).await;
    assert_eq!(registry.sweep(suspect_after, dead_after).await.unwrap().died, 0);
    registry.beat(&member, 1, 0).await.unwrap();
    sqlx::query("update registry.sweeper set grace_until = swept_at").execute(&database.pool).await.unwrap();
    assert_eq!(registry.sweep(suspect_after, dead_after).await.unwrap().died, 0);
    assert_eq!(state(&database.pool, &member).await, "active");
}

#[tokio::test]
async fn a_claim_that_commits_after_the_end_of_its_holder_is_taken_back() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let member = active(&registry, "rag-embed", 0).await;
    sqlx::query("select bus.enqueue('rag', 'embed', 'acme', '{}')").execute(&database.pool).await.unwrap();
    let mut claiming = database.pool.begin().await.unwrap();
    let message = sqlx::query_scalar("select c.id from bus.claim('rag', 'embed', 0, $1) as c")
        .bind(&member.holder)
        .fetch_one(&mut *claiming)
        .await
        .unwrap();
    assert_eq!(registry.deregister(member.instance_id, "stopped").await.unwrap(), Some(0));
    claiming.commit().await.unwrap();
    assert_eq!(status(&database.pool, message).await, "claimed");
    let (suspect_after, dead_after) = thresholds(&database.pool).await;
    assert_eq!(registry.sweep(suspect_after, dead_after).await.unwrap().requeued, 1);
    assert_eq!(status(&database.pool, message).await, "queued");
}

#[tokio::test]
async fn a_sweep_with_impossible_times_is_refused() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    assert!(registry.sweep(Duration::from_secs(30), Duration::from_secs(15)).await.is_err());
}

#[tokio::test]
async fn nobody_needs_a_sweep_until_somebody_can_have_been_silent_for_long_enough() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let suspect_after = Duration::from_secs(12 * 3600);
    let well_for = async || Registry::all_well_for(&database.pool, suspect_after).await.unwrap();
    assert_eq!(well_for().await, suspect_after, "there is nobody");
    let fresh = active(&registry, "rag-embed", 0).await;
    let quiet = active(&registry, "rag-embed", 1).await;
    keep_fresh(&database.pool, &fresh).await;
    last_beat(&database.pool, &quiet, suspect_after / 3).await;
    let two_thirds = suspect_after * 2 / 3;
    let left = well_for().await;
    assert!(left <= two_thirds && left > two_thirds - Duration::from_secs(600), "{left:?}");
    last_beat(&database.pool, &quiet, suspect_after * 2).await;
    assert_eq!(well_for().await, Duration::ZERO);
    // one that has ended may have claimed in its last moment
    registry.deregister(quiet.instance_id, "test").await.unwrap();
    assert_eq!(well_for().await, Duration::ZERO);
    sqlx::query("update registry.agents set ended_at = ended_at - interval '3 minutes' where state = 'terminated'")
        .execute(&database.pool)
        .await
        .unwrap();
    assert_eq!(well_for().await, suspect_after);
}

//! What the real bus shows of its messages, and what the one in memory says it must show.

use std::{collections::BTreeMap, time::Duration};

use cogo_bus_core::Bus;
use proptest::{prelude::*, test_runner::TestCaseError};
use uuid::Uuid;

use crate::model::{
    operations::HOLDERS,
    state::{Lease, Message, Model, State, TimeToLive},
};

/// One message as everybody can see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Seen {
    status: String,
    attempts: i16,
    released: i16,
    /// Where it stands while it is unfinished.
    places: Vec<String>,
    /// Whose it is, while the lease lasts.
    holder: Option<String>,
}

#[derive(sqlx::FromRow)]
struct SeenRow {
    id: Uuid,
    #[sqlx(flatten)]
    seen: Seen,
}

async fn seen(bus: &Bus) -> BTreeMap<Uuid, Seen> {
    let rows: Vec<SeenRow> = sqlx::query_as(
        "select m.id, m.status, m.attempts, m.released, coalesce(w.places, '{}') as places, h.holder
           from public.agent_messages m
           left join (select p.id, array_agg(p.place order by p.place) as places from bus.whereabouts() p group by p.id) as w
                  on w.id = m.id
           left join (select o.holder, h.id, h.attempt from unnest($1::text[]) as o (holder), bus.held(o.holder) h) as h
                  on h.id = m.id and m.done_at is null and h.attempt = m.attempts + (m.status = 'queued')::integer
                 and (m.status = 'queued' or h.holder = m.claimed_by)",
    )
    .bind(HOLDERS.as_slice())
    .fetch_all(bus.pool())
    .await
    .unwrap();
    rows.into_iter().map(|row| (row.id, row.seen)).collect()
}

fn expected(model: &Model, number: usize) -> Seen {
    let message = &model.messages[number];
    let (status, places, holder) = match message.state {
        State::Waiting => {
            let reasons = [("behind", model.behind(number)), ("joins", !message.awaits.is_empty())];
            ("queued", reasons.into_iter().filter(|(_, holds)| *holds).map(|(place, _)| place).collect(), None)
        }
        State::Delayed => ("queued", vec!["delayed"], None),
        State::Ready { .. } => ("queued", vec!["ready"], None),
        State::Claimed { holder, lease, marked } => {
            let status = if marked { "claimed" } else { "queued" };
            (status, vec!["claimed"], Some(HOLDERS[holder]).filter(|_| lease != Lease::Passed))
        }
        State::Done => ("done", vec![], None),
        State::Failed => ("failed", vec![], None),
        State::Cancelled => ("cancelled", vec![], None),
    };
    let unmarked = matches!(message.state, State::Claimed { marked: false, .. });
    Seen {
        status: status.to_owned(),
        attempts: message.attempts - i16::from(unmarked),
        released: message.released,
        places: places.into_iter().map(str::to_owned).collect(),
        holder: holder.map(str::to_owned),
    }
}

/// Every message is what and where it must be, and nowhere else.
pub(super) async fn compare(bus: &Bus, model: &Model) -> Result<(), TestCaseError> {
    let mut seen = seen(bus).await;
    for (number, message) in model.messages.iter().enumerate() {
        prop_assert_eq!(seen.remove(&message.id), Some(expected(model, number)), "message {}: {:?}", number, message);
    }
    prop_assert!(seen.is_empty(), "messages that nobody sent: {seen:?}");
    // with one session nothing stands in the way of counting each end off its claim
    let remaining: i64 =
        sqlx::query_scalar("select coalesce(sum(remaining), 0) from bus.claims").fetch_one(bus.pool()).await.unwrap();
    let claimed = model.numbers(Message::claimed).len();
    prop_assert_eq!(remaining, claimed as i64, "counted in claims");
    Ok(())
}

/// The database's own look at it finds nothing wrong.
pub(super) async fn none_is_misplaced(bus: &Bus) -> Result<(), TestCaseError> {
    let misplaced: Vec<String> =
        sqlx::query_scalar("select row(m.*)::text from bus.misplaced() m").fetch_all(bus.pool()).await.unwrap();
    prop_assert!(misplaced.is_empty(), "misplaced: {misplaced:?}");
    Ok(())
}

/// After everything has ended nothing stands anywhere, and the history and the dead letters are complete.
pub(super) async fn nothing_is_left(bus: &Bus, model: &Model) -> Result<(), TestCaseError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select place, count(*) from (
           select 'ready' as place from bus.ready union all select 'delayed' from bus.delayed
           union all select 'claims' from bus.claims union all select 'groups' from bus.groups
           union all select 'joins' from bus.joins union all select 'awaited' from bus.awaited) as rows
          group by place",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    prop_assert!(rows.is_empty(), "left behind: {rows:?}");
    let told: Vec<(Uuid, i64)> =
        sqlx::query_as("select id, count(*) from bus.attempts group by id").fetch_all(bus.pool()).await.unwrap();
    let told: BTreeMap<Uuid, i64> = told.into_iter().collect();
    let dead: Vec<Uuid> =
        sqlx::query_scalar("select id from bus.dead_letters order by id").fetch_all(bus.pool()).await.unwrap();
    for message in &model.messages {
        let done = message.state == State::Done;
        let without_success = i64::from(message.attempts) - i64::from(done);
        prop_assert_eq!(
            told.get(&message.id).copied().unwrap_or_default(),
            without_success,
            "history of {:?}",
            message
        );
        prop_assert_eq!(dead.contains(&message.id), message.state == State::Failed, "dead letters and {:?}", message);
    }
    Ok(())
}

/// Time stands still: what waits for the passing of a delay does so until an operation lets it pass.
pub(super) async fn hold_delays(bus: &Bus, model: &Model) {
    let later = model.numbers(|message| message.later && !message.ended() && !message.claimed());
    if !later.is_empty() {
        let ids: Vec<Uuid> = later.iter().map(|number| model.messages[*number].id).collect();
        move_delays(bus, &ids, Duration::from_secs(86_400)).await;
    }
}

/// Keeps what somebody held when its time was over from being looked at once more before the model says so.
pub(super) async fn hold_looks(bus: &Bus, model: &Model) {
    let swept = model.numbers(|message| message.time_to_live == TimeToLive::Swept && !message.ended());
    let ids: Vec<Uuid> = swept.iter().map(|number| model.messages[*number].id).collect();
    sqlx::query("update bus.expiring set at = clock_timestamp() + interval '1 day' where id = any ($1)")
        .bind(ids)
        .execute(bus.pool())
        .await
        .unwrap();
}

/// Lets the delays of unfinished messages end in so long from now.
pub(super) async fn move_delays(bus: &Bus, ids: &[Uuid], wait: Duration) {
    sqlx::query(
        "with moved as (
           update public.agent_messages set retry_at = clock_timestamp() + $2 * interval '1 second'
            where id = any ($1) and retry_at is not null and done_at is null
           returning id, retry_at)
         update bus.delayed d set due = moved.retry_at from moved where moved.id = d.id",
    )
    .bind(ids)
    .bind(wait.as_secs_f64())
    .execute(bus.pool())
    .await
    .unwrap();
}

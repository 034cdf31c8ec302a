//! The load of the bus and that of a peer, one right after the other.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::{
    command::{
        bench_bus::on_threads,
        bench_bus_database::{Account, BenchDatabase, BenchServer},
        bench_bus_load::{Load, Plan},
        bench_bus_peers::Peer,
        bench_bus_pgmq::Queue,
        bench_bus_worker_peers::{self, DOORS, Door},
    },
    failure::Failure,
};

/// Why a peer has no mixed run: nobody else can send to it in batches, so its script would have to.
const CLOSED: [(&str, &str); 5] = [
    ("apalis-postgres", "batches are sent by its crate only, it has no SQL function for them"),
    ("awa", "batches are sent by its crate only (COPY), its SQL function takes one job"),
    ("pg-boss", "batches are sent by its Node interface only, it has no SQL function for them"),
    ("pgqueuer", "batches are sent by its Python interface only, it has no SQL function for them"),
    ("underway", "batches are sent by its crate only, and its script ends when somebody else sends"),
];

/// How long one side sends before the other one has its turn, so that both meet the same machine.
const TURN: Duration = Duration::from_secs(1);
/// Turns of each side that sends, and then drains what it has sent.
const TURNS: u64 = 3;
/// Turns of each side that sends and drains at once, for as long as the terms say: what a queue leaves to be cleaned up
/// slows it down after seconds, not at once.
const MIXED_TURNS: u64 = 2;

/// Both sides of one moment, in messages a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) our_per_s: f64,
    pub(crate) its_per_s: f64,
}

/// What was measured side by side.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    /// Sent, in turns; none of a peer that is not measured in turns.
    pub(crate) enqueue: Vec<Pair>,
    /// Completed, in turns, while nobody sends.
    pub(crate) drain: Vec<Pair>,
    /// Completed while others send, for a while.
    pub(crate) mixed: Vec<Pair>,
}

/// Who goes first; the other one meets what the first one left to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Bus,
    Peer,
}

impl First {
    /// In turns, so that the order favours nobody.
    pub(crate) fn of(number: u64) -> Self {
        if number.is_multiple_of(2) { Self::Bus } else { Self::Peer }
    }
}

/// With what, and how long, both sides are measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) plan: Plan,
    /// How long a side sends and drains at once.
    pub(crate) time: Duration,
    pub(crate) first: First,
}

/// How a peer comes to a mixed load without its script taking part in the sending.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Both sides in turns, the peer through its SQL functions in the database that its script left behind.
    Functions,
    /// One side after the other: its own worker process, and the sending through its SQL function.
    Worker(&'static Door),
}

impl Way {
    fn of(peer: &str) -> Result<Self, &'static str> {
        if peer == "pgmq" {
            return Ok(Self::Functions);
        }
        if let Some(door) = DOORS.iter().find(|door| door.peer == peer) {
            return Ok(Self::Worker(door));
        }
        let closed = CLOSED.iter().find(|(name, _)| *name == peer);
        Err(closed.map_or("this command knows no way to send to it", |(_, why)| why))
    }
}

/// What both sides did and what became of our messages; the second layer says why there is nothing of the peer.
pub(crate) async fn pairs(
    (server, client): (&BenchServer, &Handle),
    terms: Terms,
    peer: &Peer,
) -> Result<Result<(Pairs, Account), String>, Failure> {
    let its_url = server.url_of(&peer.database)?;
    let way = match Way::of(&peer.name) {
        Ok(way) => way,
        Err(why) => return Ok(Err(why.to_owned())),
    };
    if matches!(way, Way::Functions) && !server.has(&peer.database).await? {
        let why = "its script works on another server than the bus: set DATABASE_URL to that one";
        return Ok(Err(why.to_owned()));
    }
    let database = server.create_database_for("_mixed").await?;
    let our_url = database.url().to_owned();
    let measured = match way {
        Way::Functions => on_threads(client, in_turns(our_url, its_url, terms)).await,
        Way::Worker(door) => one_after_the_other(client, our_url, (its_url, door), terms, peer).await,
    };
    database.remove().await?;
    measured
}

/// In turns; what one side has not finished waits for its next turn.
async fn in_turns(our_url: String, its_url: String, terms: Terms) -> Result<Result<(Pairs, Account), String>, Failure> {
    let (database, load) = ours(&our_url, terms.plan).await?;
    let its = async {
        let queue = Queue::create(its_url, terms.plan).await?;
        let mut runs = Pairs::default();
        // each time all of it: what waits for long no longer stands in the memory of the server
        for turn in 0..TURNS {
            runs.enqueue.push(pair(turn, terms.first, load.send_for(TURN), queue.send_for(TURN)).await?);
            runs.drain.push(pair(turn, terms.first, load.drain(), queue.drain()).await?);
        }
        for turn in 0..MIXED_TURNS {
            runs.mixed.push(pair(turn, terms.first, load.mixed(terms.time), queue.mixed(terms.time)).await?);
        }
        queue.account().await?;
        Ok::<_, Failure>(runs)
    };
    match its.await {
        Ok(runs) => Ok(Ok((runs, account(database, load).await?))),
        Err(failure) => Ok(Err(in_one_line(&failure))),
    }
}

/// One turn of each side.
async fn pair(
    turn: u64,
    first: First,
    ours: impl Future<Output = Result<f64, Failure>>,
    its: impl Future<Output = Result<f64, Failure>>,
) -> Result<Pair, Failure> {
    if First::of(turn) == first {
        let our_per_s = ours.await?;
        return Ok(Pair { our_per_s, its_per_s: its.await? });
    }
    let its_per_s = its.await?;
    Ok(Pair { our_per_s: ours.await?, its_per_s })
}

/// The whole time of one side and then of the other: the worker of a peer cannot be paused.
async fn one_after_the_other(
    client: &Handle,
    our_url: String,
    (its_url, door): (String, &'static Door),
    terms: Terms,
    peer: &Peer,
) -> Result<Result<(Pairs, Account), String>, Failure> {
    let our = || {
        let url = our_url.clone();
        on_threads(client, async move {
            let (database, load) = ours(&url, terms.plan).await?;
            let per_s = load.mixed(terms.time).await?;
            Ok((per_s, account(database, load).await?))
        })
    };
    let early = if terms.first == First::Bus { Some(our().await?) } else { None };
    let measuring = on_threads(client, bench_bus_worker_peers::mixed(its_url, door, terms.plan, terms.time));
    // so many that its worker has not finished them all when the time is up
    let enough = peer.drain_per_s() * (terms.time.as_secs_f64() + 3.0);
    let its_per_s = tokio::select! {
        measured = measuring => match measured {
            Ok(per_s) => per_s,
            Err(failure) => return Ok(Err(in_one_line(&failure))),
        },
        ended = peer.script(terms.plan, enough) => {
            let why = ended.err().unwrap_or_else(|| "its worker was done before the time was up".to_owned());
            return Ok(Err(why));
        }
    };
    let (our_per_s, account) = match early {
        Some(early) => early,
        None => our().await?,
    };
    let mixed = vec![Pair { our_per_s, its_per_s }];
    Ok(Ok((Pairs { mixed, ..Pairs::default() }, account)))
}

async fn ours(url: &str, plan: Plan) -> Result<(BenchDatabase, Load), Failure> {
    let database = BenchDatabase::open(url, plan.connections()).await?;
    let load = Load::new(database.pool(), plan);
    Ok((database, load))
}

/// Finishes what is left and counts.
async fn account(database: BenchDatabase, load: Load) -> Result<Account, Failure> {
    load.drain().await?;
    let (sent, acknowledged) = load.into_ids();
    let account = database.account(&sent, &acknowledged).await?;
    database.close().await;
    Ok(account)
}

fn in_one_line(failure: &Failure) -> String {
    failure.text().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_driven_or_it_is_said_why_not() {
        assert!(matches!(Way::of("pgmq"), Ok(Way::Functions)));
        assert!(matches!(Way::of("procrastinate"), Ok(Way::Worker(door)) if door.peer == "procrastinate"));
        for peer in ["pg-boss", "river"] {
            assert!(Way::of(peer).is_err_and(|why| !why.is_empty()), "{peer}");
        }
    }
}

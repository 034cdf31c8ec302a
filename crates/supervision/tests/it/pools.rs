//! Pools: warm members only, their bounds, quotas, helpers, back-pressure, and fairness among tenants.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use cogo_supervision::pool::{
    Answer, Core, Invalid, MemberId, Output, Pool, Pressure, Refused, Settings, Strategy, Ticket,
};
use futures_util::poll;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tokio::sync::Semaphore;

const SECOND: Duration = Duration::from_secs(1);

fn settings(min: usize, target: usize, max: usize) -> Settings {
    Settings { min, target, max, ..Settings::default() }
}

fn outputs(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.poll()).collect()
}

fn started(core: &mut Core) -> Vec<MemberId> {
    let start = |output| if let Output::Start(id) = output { Some(id) } else { None };
    outputs(core).into_iter().filter_map(start).collect()
}

/// A pool whose first members are warm.
fn warm(settings: Settings) -> (Core, Vec<MemberId>) {
    let mut core = Core::new(settings, 1).unwrap();
    let members = started(&mut core);
    for id in &members {
        assert!(core.warmed(Duration::ZERO, *id));
    }
    (core, members)
}

#[test]
fn bounds_that_contradict_each_other_are_refused() {
    assert_eq!(Core::new(settings(3, 3, 2), 1).unwrap_err(), Invalid::MinAboveMax { min: 3, max: 2 });
    assert_eq!(Core::new(settings(1, 5, 4), 1).unwrap_err(), Invalid::Target { target: 5, min: 1, max: 4 });
    let nothing = Settings { per_member: 0, ..settings(1, 1, 1) };
    assert_eq!(Core::new(nothing, 1).unwrap_err(), Invalid::Zero { setting: "per_member" });
}

#[test]
fn a_member_gets_no_work_before_it_is_warm() {
    let mut core = Core::new(settings(1, 1, 1), 1).unwrap();
    let [member] = started(&mut core).try_into().unwrap();
    let Answer::Waits(ticket) = core.ask(Duration::ZERO, "a") else { panic!("nobody is warm") };
    assert_eq!(outputs(&mut core), []);
    core.warmed(SECOND, member);
    assert_eq!(outputs(&mut core), [Output::Grant(ticket, member)]);
}

#[test]
fn helpers_come_while_all_are_busy_and_go_when_they_are_idle() {
    let (mut core, members) = warm(Settings { overflow: 2, ..settings(1, 1, 1) });
    assert_eq!(core.ask(Duration::ZERO, "a"), Answer::Granted(members[0]));
    for _ in 0..3 {
        assert!(matches!(core.ask(Duration::ZERO, "a"), Answer::Waits(_)));
    }
    let helpers = started(&mut core);
    assert_eq!(helpers.len(), 2, "never more helpers than allowed");
    for helper in &helpers {
        core.warmed(SECOND, *helper);
    }
    assert_eq!(core.pressure(), Pressure { leases: 3, capacity: 3, waiting: 1, seats: 64 });
    outputs(&mut core);
    core.give_back(SECOND * 2, members[0], "a");
    assert!(matches!(outputs(&mut core)[..], [Output::Grant(_, granted)] if granted == members[0]));
    for helper in &helpers {
        core.give_back(SECOND * 3, *helper, "a");
    }
    assert_eq!((core.deadline(), outputs(&mut core)), (Some(SECOND * 13), vec![]));
    core.tick(SECOND * 13);
    assert_eq!(outputs(&mut core), [Output::Stop(helpers[1]), Output::Stop(helpers[0])]);
    assert_eq!((core.members_staying(), core.deadline()), (1, None));
}

#[test]
fn a_quota_makes_a_tenant_wait_while_others_are_served() {
    let (mut core, _) = warm(Settings { quota: 1, ..settings(3, 3, 3) });
    let Answer::Granted(first) = core.ask(Duration::ZERO, "loud") else { panic!("all are free") };
    let Answer::Waits(ticket) = core.ask(Duration::ZERO, "loud") else { panic!("it has its quota") };
    assert!(matches!(core.ask(Duration::ZERO, "calm"), Answer::Granted(_)));
    assert_eq!(outputs(&mut core), [], "a quota is no reason for a helper");
    core.give_back(SECOND, first, "loud");
    assert!(matches!(outputs(&mut core)[..], [Output::Grant(granted, _)] if granted == ticket));
}

#[test]
fn tenants_that_wait_have_their_turns_however_long_the_line_of_one_is() {
    let (mut core, members) = warm(settings(1, 1, 1));
    let member = members[0];
    assert_eq!(core.ask(Duration::ZERO, "loud"), Answer::Granted(member));
    let mut tenants = std::collections::HashMap::new();
    let line = std::iter::repeat_n("loud", 20).chain(["calm", "quiet", "calm"]);
    for tenant in line {
        let Answer::Waits(ticket) = core.ask(Duration::ZERO, tenant) else { panic!("the only member is busy") };
        tenants.insert(ticket, tenant);
    }
    let (mut holder, mut served) = ("loud", Vec::new());
    for _ in 0..6 {
        core.give_back(SECOND, member, holder);
        let [Output::Grant(ticket, _)] = outputs(&mut core)[..] else { panic!("somebody waits") };
        holder = tenants[&ticket];
        served.push(holder);
    }
    let of = |tenant: &str| served.iter().filter(|served| **served == tenant).count();
    assert_eq!((of("calm"), of("quiet")), (2, 1), "{served:?}: nobody waits for the line of another");
}

#[test]
fn a_full_pool_pushes_back() {
    let (mut core, _) = warm(Settings { waiting: 1, ..settings(1, 1, 1) });
    core.ask(Duration::ZERO, "a");
    assert!(matches!(core.ask(Duration::ZERO, "a"), Answer::Waits(_)));
    assert_eq!(core.ask(Duration::ZERO, "a"), Answer::Full);
    assert_eq!(core.pressure(), Pressure { leases: 1, capacity: 1, waiting: 1, seats: 1 });
}

#[test]
fn a_smaller_target_ends_the_idle_first_and_lets_the_busy_finish() {
    let (mut core, members) = warm(settings(1, 3, 5));
    assert_eq!(core.ask(Duration::ZERO, "a"), Answer::Granted(members[0]));
    assert_eq!(core.ask(Duration::ZERO, "a"), Answer::Granted(members[1]));
    assert_eq!(core.set_target(SECOND, 0), 1, "never below the least");
    assert_eq!(outputs(&mut core), [Output::Stop(members[2])]);
    assert_eq!(core.ask(SECOND, "a"), Answer::Waits(waiting_ticket(&core)), "one that is leaving gets nothing new");
    core.give_back(SECOND, members[1], "a");
    assert_eq!(outputs(&mut core), [Output::Stop(members[1])]);
    assert_eq!(core.set_target(SECOND, 99), 5, "never above the most");
    assert_eq!(started(&mut core).len(), 4);
}

/// The first ticket that a pool gives out.
fn waiting_ticket(_core: &Core) -> Ticket {
    let (mut fresh, _) = warm(settings(0, 0, 1));
    let Answer::Waits(ticket) = fresh.ask(Duration::ZERO, "a") else { panic!("it has no member") };
    ticket
}

#[test]
fn a_member_that_cannot_be_made_is_tried_again_after_growing_pauses() {
    let mut core = Core::new(settings(1, 1, 1), 1).unwrap();
    let (mut now, mut pauses) = (Duration::ZERO, Vec::new());
    for _ in 0..11 {
        let [member] = started(&mut core).try_into().unwrap();
        core.failed(now, member);
        assert_eq!(started(&mut core), [], "not at once, or it would spin");
        let due = core.deadline().unwrap();
        pauses.push(due.saturating_sub(now).as_millis());
        now = due;
        core.tick(now);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u8),
    GiveBack(usize),
    GiveUp(usize),
    Warm(usize),
    Fail(usize),
    Target(usize),
    Pass(u64),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::strategy::Strategy;
    prop_oneof![
        6 => (0_u8..3).prop_map(Step::Ask),
        4 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::GiveUp),
        4 => any::<usize>().prop_map(Step::Warm),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => (0_usize..8).prop_map(Step::Target),
        2 => (0_u64..20_000).prop_map(Step::Pass),
    ]
}

/// Who has what, as the driver would know it.
#[derive(Default)]
struct World {
    making: Vec<MemberId>,
    living: BTreeSet<MemberId>,
    leases: Vec<(MemberId, &'static str)>,
    waiting: HashMap<Ticket, &'static str>,
}

impl World {
    /// Does what the rules ask for; every grant must be of a living member.
    fn obey(&mut self, core: &mut Core) {
        while let Some(output) = core.poll() {
            match output {
                Output::Start(id) => self.making.push(id),
                Output::Stop(id) => {
                    self.making.retain(|making| *making != id);
                    self.living.remove(&id);
                    assert!(self.leases.iter().all(|(leased, _)| *leased != id), "ended while it was lent");
                }
                Output::Grant(ticket, id) => {
                    let tenant = self.waiting.remove(&ticket).expect("granted to somebody who waits");
                    self.lend(id, tenant);
                }
                Output::Displace(ticket) => {
                    self.waiting.remove(&ticket).expect("displaced is somebody who waits");
                }
            }
        }
    }

    fn lend(&mut self, id: MemberId, tenant: &'static str) {
        assert!(self.living.contains(&id), "lent before it was warm or after its end");
        self.leases.push((id, tenant));
    }

    fn step(&mut self, core: &mut Core, now: &mut Duration, step: Step) {
        match step {
            Step::Ask(tenant) => {
                let tenant = ["a", "b", "c"][usize::from(tenant)];
                match core.ask(*now, tenant) {
                    Answer::Granted(id) => self.lend(id, tenant),
                    Answer::Waits(ticket) => {
                        self.waiting.insert(ticket, tenant);
                    }
                    Answer::Full => {}
                }
            }
            Step::GiveBack(which) if !self.leases.is_empty() => {
                let (id, tenant) = self.leases.swap_remove(which % self.leases.len());
                core.give_back(*now, id, tenant);
            }
            Step::GiveUp(which) if !self.waiting.is_empty() => {
                let ticket = *self.waiting.keys().nth(which % self.waiting.len()).unwrap();
                let tenant = self.waiting.remove(&ticket).unwrap();
                assert!(core.give_up(tenant, ticket));
            }
            Step::Warm(which) if !self.making.is_empty() => {
                let id = self.making.swap_remove(which % self.making.len());
                self.living.insert(id);
                assert!(core.warmed(*now, id));
            }
            Step::Fail(which) if !self.making.is_empty() => {
                let id = self.making.swap_remove(which % self.making.len());
                core.failed(*now, id);
            }
            Step::Target(target) => {
                core.set_target(*now, target);
            }
            Step::Pass(ms) => {
                *now += Duration::from_millis(ms);
                core.tick(*now);
            }
            _ => {}
        }
        self.obey(core);
    }
}

proptest! {
    #[test]
    fn bounds_quotas_and_capacities_hold_whatever_happens(steps in prop::collection::vec(steps(), 1..300)) {
        let limits = Settings { overflow: 2, per_member: 2, quota: 3, waiting: 4, ..settings(1, 2, 5) };
        let mut core = Core::new(limits, 1).unwrap();
        let (mut world, mut now) = (World::default(), Duration::ZERO);
        world.obey(&mut core);
        for step in steps {
            world.step(&mut core, &mut now, step);
            prop_assert!(core.members_staying() <= 5 + 2);
            prop_assert!(world.waiting.len() <= 4);
            prop_assert_eq!(core.pressure().waiting, world.waiting.len());
            for id in &world.living {
                prop_assert!(world.leases.iter().filter(|(leased, _)| leased == id).count() <= 2);
            }
            for tenant in ["a", "b", "c"] {
                prop_assert!(world.leases.iter().filter(|(_, of)| *of == tenant).count() <= 3);
            }
        }
        // once all leases have ended and members come up, nobody is left waiting
        for _ in 0..200 {
            world.step(&mut core, &mut now, Step::Warm(0));
            world.step(&mut core, &mut now, Step::GiveBack(0));
            world.step(&mut core, &mut now, Step::Pass(31_000));
        }
        prop_assert!(world.waiting.is_empty(), "{} still wait", world.waiting.len());
        prop_assert!(world.leases.is_empty());
        prop_assert_eq!(core.pressure().leases, 0);
    }
}

/// A pool of numbers, each made by taking a permit of the gate.
fn numbered(settings: Settings, gate: &Arc<Semaphore>) -> (Pool<usize>, Arc<AtomicUsize>) {
    let (made, gate) = (Arc::new(AtomicUsize::new(0)), Arc::clone(gate));
    let counter = Arc::clone(&made);
    let pool = Pool::new(settings, move |_id| {
        let (counter, gate) = (Arc::clone(&counter), Arc::clone(&gate));
        async move {
            gate.acquire().await.map_err(|error| error.to_string())?.forget();
            Ok(counter.fetch_add(1, Ordering::SeqCst))
        }
    });
    (pool.unwrap(), made)
}

#[tokio::test]
async fn leases_are_of_warm_members_and_come_back() {
    let gate = Arc::new(Semaphore::new(0));
    let (pool, made) = numbered(settings(1, 1, 2), &gate);
    let mut lease = pin!(pool.lease("a"));
    assert!(poll!(&mut lease).is_pending());
    gate.add_permits(1);
    let lease = lease.await.unwrap();
    assert_eq!(*lease, 0);
    let mut next = pin!(pool.lease("a"));
    assert!(poll!(&mut next).is_pending());
    drop(lease);
    let lease = next.await.unwrap();
    assert_eq!((*lease, made.load(Ordering::SeqCst)), (0, 1), "the same member again");
    drop(lease);
    pool.close().await;
    assert_eq!(pool.lease("a").await.unwrap_err(), Refused::Closed);
}

#[tokio::test]
async fn a_broken_member_is_replaced_and_a_larger_target_is_filled() {
    let gate = Arc::new(Semaphore::new(10));
    let limits =
        Settings { retry_first: Duration::from_millis(1), strategy: Strategy::RoundRobin, ..settings(1, 1, 2) };
    let (pool, _) = numbered(limits, &gate);
    let lease = pool.lease("a").await.unwrap();
    assert_eq!(*lease, 0);
    lease.broken();
    let lease = pool.lease("a").await.unwrap();
    assert_eq!(*lease, 1, "never the broken one");
    assert_eq!(pool.set_target(2), 2);
    assert_eq!(*pool.lease("a").await.unwrap(), 2);
    drop(lease);
    pool.close().await;
}

#[tokio::test]
async fn a_lease_that_was_granted_to_somebody_who_is_gone_goes_on() {
    let gate = Arc::new(Semaphore::new(10));
    let (pool, _) = numbered(settings(1, 1, 1), &gate);
    let lease = pool.lease("a").await.unwrap();
    let mut goes = Box::pin(pool.lease("a"));
    let mut stays = Box::pin(pool.lease("b"));
    assert!(poll!(&mut goes).is_pending() && poll!(&mut stays).is_pending());
    drop(lease);
    drop(goes);
    let lease = stays.await.unwrap();
    assert_eq!(pool.pressure().leases, 1);
    let mut waits = Box::pin(pool.lease("a"));
    assert!(poll!(&mut waits).is_pending());
    pool.close().await;
    assert!(matches!(poll!(&mut waits), Poll::Ready(Err(Refused::Closed))));
    drop(lease);
}

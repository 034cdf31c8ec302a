//! A bounded room for those who must wait, fair among tenants: whoever has least goes in first.

use std::collections::{HashMap, VecDeque};

/// Names somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Whether somebody found a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    Taken(Ticket),
    /// The room was full, and the last comer of the tenant with most seats had to go.
    TakenFrom {
        ticket: Ticket,
        displaced: Ticket,
    },
    Full,
}

/// Those who wait, and how many of each tenant are inside already.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    seats: usize,
    waiting: usize,
    next_ticket: u64,
    /// Counts those who went in, to tell who did so longest ago.
    turns: u64,
    tenants: HashMap<String, Line>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Ticket>,
    inside: usize,
    last_turn: u64,
}

impl WaitingRoom {
    pub(crate) fn new(seats: usize) -> Self {
        Self { seats, waiting: 0, next_ticket: 0, turns: 0, tenants: HashMap::new() }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn seats(&self) -> usize {
        self.seats
    }

    /// How many of the tenant are inside.
    pub(crate) fn inside(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).map_or(0, |line| line.inside)
    }

    /// Takes a seat. In a full room a tenant that would still have fewer seats than another takes one of that other's,
    /// so that a flood of one does not shut out the rest.
    pub(crate) fn sit(&mut self, tenant: &str) -> Seat {
        let displaced = if self.waiting < self.seats { None } else { self.displace_for(tenant) };
        if self.waiting >= self.seats {
            return Seat::Full;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tenants.entry(tenant.to_owned()).or_default().waiting.push_back(ticket);
        self.waiting += 1;
        displaced.map_or(Seat::Taken(ticket), |displaced| Seat::TakenFrom { ticket, displaced })
    }

    fn displace_for(&mut self, tenant: &str) -> Option<Ticket> {
        let own = self.tenants.get(tenant).map_or(0, |line| line.waiting.len());
        let greediest = self.tenants.values_mut().max_by_key(|line| line.waiting.len())?;
        if greediest.waiting.len() <= own + 1 {
            return None;
        }
        let displaced = greediest.waiting.pop_back()?;
        self.waiting -= 1;
        Some(displaced)
    }

    /// Gives up a seat; false if the ticket waits no more.
    pub(crate) fn stand_up(&mut self, tenant: &str, ticket: Ticket) -> bool {
        let Some(line) = self.tenants.get_mut(tenant) else { return false };
        let Some(place) = line.waiting.iter().position(|waiting| *waiting == ticket) else { return false };
        line.waiting.remove(place);
        self.waiting -= 1;
        self.forget_if_gone(tenant);
        true
    }

    /// Lets the next one in: of the tenant with fewest inside, and among those of the one whose turn is longest ago.
    /// `may_enter` says whether a tenant with so many inside may have one more.
    pub(crate) fn call_next(&mut self, may_enter: impl Fn(usize) -> bool) -> Option<(Ticket, String)> {
        let (tenant, line) = self
            .tenants
            .iter_mut()
            .filter(|(_, line)| !line.waiting.is_empty() && may_enter(line.inside))
            // a ticket breaks the tie of tenants that never had a turn, so that the order does not hang on the hasher
            .min_by_key(|(_, line)| (line.inside, line.last_turn, line.waiting.front().copied()))?;
        let ticket = line.waiting.pop_front()?;
        let tenant = tenant.clone();
        self.waiting -= 1;
        self.enter(&tenant);
        Some((ticket, tenant))
    }

    /// Somebody of the tenant goes in without having waited.
    pub(crate) fn enter(&mut self, tenant: &str) {
        self.turns += 1;
        let turn = self.turns;
        if let Some(line) = self.tenants.get_mut(tenant) {
            line.inside += 1;
            line.last_turn = turn;
        } else {
            self.tenants.insert(tenant.to_owned(), Line { waiting: VecDeque::new(), inside: 1, last_turn: turn });
        }
    }

    /// Somebody of the tenant comes out.
    pub(crate) fn leave(&mut self, tenant: &str) {
        if let Some(line) = self.tenants.get_mut(tenant) {
            line.inside = line.inside.saturating_sub(1);
        }
        self.forget_if_gone(tenant);
    }

    /// So that memory is that of the tenants that are here, not of all that ever were.
    fn forget_if_gone(&mut self, tenant: &str) {
        if self.tenants.get(tenant).is_some_and(|line| line.inside == 0 && line.waiting.is_empty()) {
            self.tenants.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenant_with_least_inside_goes_first_and_equals_take_turns() {
        let mut room = WaitingRoom::new(10);
        for tenant in ["loud", "loud", "loud", "loud", "calm", "calm"] {
            room.sit(tenant);
        }
        let order: Vec<String> = std::iter::from_fn(|| room.call_next(|_| true)).map(|(_, tenant)| tenant).collect();
        assert_eq!(order, ["loud", "calm", "loud", "calm", "loud", "loud"]);
        assert_eq!((room.inside("loud"), room.inside("calm"), room.waiting()), (4, 2, 0));
    }

    #[test]
    fn a_flood_of_one_tenant_makes_room_for_another() {
        let mut room = WaitingRoom::new(4);
        let seats: Vec<Seat> = (0..4).map(|_| room.sit("loud")).collect();
        assert_eq!(room.sit("loud"), Seat::Full);
        let Seat::Taken(last) = seats[3] else { panic!("the room was empty") };
        assert!(matches!(room.sit("calm"), Seat::TakenFrom { displaced, .. } if displaced == last));
        assert!(matches!(room.sit("calm"), Seat::TakenFrom { .. }));
        assert_eq!(room.sit("calm"), Seat::Full, "both have half of the room");
        assert_eq!(room.waiting(), 4);
    }

    #[test]
    fn a_limit_per_tenant_lets_others_past() {
        let mut room = WaitingRoom::new(4);
        room.enter("loud");
        room.sit("loud");
        room.sit("calm");
        let below_one = |inside| inside < 1;
        assert_eq!(room.call_next(below_one).map(|(_, tenant)| tenant).as_deref(), Some("calm"));
        assert!(room.call_next(below_one).is_none());
        room.leave("loud");
        assert_eq!(room.call_next(below_one).map(|(_, tenant)| tenant).as_deref(), Some("loud"));
    }

    #[test]
    fn tenants_that_are_gone_are_forgotten() {
        let mut room = WaitingRoom::new(4);
        let Seat::Taken(ticket) = room.sit("a") else { panic!("the room was empty") };
        assert!(room.stand_up("a", ticket));
        assert!(!room.stand_up("a", ticket));
        room.enter("b");
        room.leave("b");
        assert!(room.tenants.is_empty());
    }
}

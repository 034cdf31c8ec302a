//! Whether two processes could act for one slot: what the database accepted, epoch by epoch.

use std::collections::HashMap;

/// A run that the registry accepted as the owner of its slot.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// Name of the run: `name/slot#instance`.
    pub(crate) holder: String,
    pub(crate) epoch: i64,
    /// By the clock of the database, in microseconds of the Unix epoch.
    pub(crate) since_us: i64,
}

/// Something that the database let a run do.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) holder: String,
    pub(crate) what: &'static str,
    /// By the same clock.
    pub(crate) at_us: i64,
}

/// Each act of a run that was accepted after a later epoch of its slot had begun.
pub(crate) fn two_owner_moments(owners: &[Owner], acts: &[Act]) -> Vec<String> {
    let epochs: HashMap<&str, i64> = owners.iter().map(|owner| (owner.holder.as_str(), owner.epoch)).collect();
    let mut slots: HashMap<&str, Vec<&Owner>> = HashMap::new();
    for owner in owners {
        slots.entry(slot(&owner.holder)).or_default().push(owner);
    }
    let mut moments = Vec::new();
    for act in acts {
        let Some(epoch) = epochs.get(act.holder.as_str()) else { continue };
        let of_slot = slots.get(slot(&act.holder)).map_or(&[][..], Vec::as_slice);
        if let Some(later) = of_slot.iter().find(|owner| owner.epoch > *epoch && owner.since_us < act.at_us) {
            let late_ms = (act.at_us - later.since_us) / 1000;
            let Act { holder, what, .. } = act;
            moments.push(format!("{what} by {holder} was accepted {late_ms} ms after {} had taken over", later.holder));
        }
    }
    moments
}

fn slot(holder: &str) -> &str {
    holder.split('#').next().unwrap_or(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(holder: &str, epoch: i64, since_us: i64) -> Owner {
        Owner { holder: holder.to_owned(), epoch, since_us }
    }

    fn completion(holder: &str, at_us: i64) -> Act {
        Act { holder: holder.to_owned(), what: "a completion", at_us }
    }

    #[test]
    fn an_act_of_a_former_owner_after_the_take_over_is_a_moment_with_two() {
        let owners = [owner("w/0#a", 1, 100), owner("w/0#b", 2, 200), owner("w/1#c", 1, 100)];
        let in_order = [completion("w/0#a", 199), completion("w/0#b", 300), completion("w/1#c", 300)];
        assert!(two_owner_moments(&owners, &in_order).is_empty());
        let moments = two_owner_moments(&owners, &[completion("w/0#a", 5_201)]);
        assert_eq!(moments, ["a completion by w/0#a was accepted 5 ms after w/0#b had taken over"]);
    }

    #[test]
    fn those_who_never_registered_own_nothing() {
        assert!(two_owner_moments(&[owner("w/0#a", 1, 100)], &[completion("finisher", 300)]).is_empty());
    }
}

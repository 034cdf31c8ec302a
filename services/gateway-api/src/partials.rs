//! Partial results of a task: what its steps have of their replies, from where a reader left off.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use cogo_bus_core::{Partial, PartialPlace};
use cogo_contracts::Task;
use cogo_service_runtime::ApiError;
use uuid::Uuid;

use crate::Gateway;

/// Parts of one look; the next look follows at once while there are more.
const LOOK: u32 = 200;
/// Messages whose place a reader's cursor holds; it travels in a header, and servers take about 8 KiB of those.
const REMEMBERED: usize = 64;

/// How far a reader has come with each step; as text it is the id of an event, from which a reader goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    places: BTreeMap<Uuid, PartialPlace>,
}

impl Cursor {
    /// The cursor of an earlier event; what cannot be read stands for the start.
    pub(crate) fn parse(text: &str) -> Self {
        let place = |entry: &str| {
            let mut parts = entry.split('.');
            let (id, attempt, seq) = (parts.next()?, parts.next()?, parts.next()?);
            Some((id.parse().ok()?, PartialPlace { attempt: attempt.parse().ok()?, seq: seq.parse().ok()? }))
        };
        Self { places: text.split(',').filter_map(place).take(REMEMBERED).collect() }
    }

    fn advance(&mut self, partial: &Partial) {
        self.places.insert(partial.message_id, partial.place());
        if self.places.len() > REMEMBERED {
            // the oldest message is the likeliest to have ended; its parts would only come twice
            self.places.pop_first();
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (id, place)) in self.places.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(formatter, "{comma}{}.{}.{}", id.simple(), place.attempt, place.seq)?;
        }
        Ok(())
    }
}

/// The parts of a task that a reader has not had.
pub(crate) struct Partials {
    cursor: Cursor,
    /// Where this stream has come, for every message, also those that the cursor forgot.
    read: BTreeMap<Uuid, PartialPlace>,
    /// Steps that had ended before they were last looked at.
    finished: HashSet<Uuid>,
}

impl Partials {
    pub(crate) fn after(cursor: Cursor) -> Self {
        Self { read: cursor.places.clone(), cursor, finished: HashSet::new() }
    }

    /// Parts that are stored by now and were not read, each with the cursor after it; empty once there are no more.
    pub(crate) async fn next(&mut self, gateway: &Gateway, task: &Task) -> Result<Vec<(Partial, String)>, ApiError> {
        let open: Vec<(Uuid, PartialPlace)> = task
            .steps
            .iter()
            .filter(|step| !self.finished.contains(&step.id))
            .map(|step| (step.id, self.read.get(&step.id).copied().unwrap_or_default()))
            .collect();
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let partials = gateway.database().answered(gateway.parts().bus.partials_of(&open, LOOK)).await?;
        if partials.is_empty() {
            self.finished.extend(task.steps.iter().filter(|step| step.done_at.is_some()).map(|step| step.id));
        }
        let mut with_cursors = Vec::with_capacity(partials.len());
        for partial in partials {
            self.read.insert(partial.message_id, partial.place());
            self.cursor.advance(&partial);
            let cursor = self.cursor.to_string();
            with_cursors.push((partial, cursor));
        }
        Ok(with_cursors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(id: Uuid, seq: i32) -> Partial {
        let at = chrono::DateTime::UNIX_EPOCH;
        Partial { message_id: id, attempt: 1, seq, at, content: serde_json::Value::Null }
    }

    #[test]
    fn cursor_goes_through_a_header_and_back() {
        let mut cursor = Cursor::default();
        assert_eq!(Cursor::parse(&cursor.to_string()), cursor);
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        cursor.advance(&partial(one, 3));
        cursor.advance(&partial(other, 1));
        cursor.advance(&partial(one, 4));
        assert_eq!(Cursor::parse(&cursor.to_string()), cursor);
        assert_eq!((cursor.places[&one].seq, cursor.places[&other].seq), (4, 1));
        for rubbish in ["", "17", "a.b.c", "..", ",,,", &format!("{one}.1")] {
            assert_eq!(Cursor::parse(rubbish), Cursor::default(), "{rubbish:?}");
        }
    }

    #[test]
    fn cursor_of_a_wide_task_stays_short() {
        let mut cursor = Cursor::default();
        let ids: Vec<Uuid> = (0..1_000).map(|_| Uuid::now_v7()).collect();
        for id in &ids {
            cursor.advance(&partial(*id, 100_000));
        }
        assert!(cursor.to_string().len() < 4_000);
        assert_eq!(cursor.places[&ids[999]].seq, 100_000);
    }
}

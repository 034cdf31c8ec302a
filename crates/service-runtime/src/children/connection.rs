//! A child's side of its connection as a state machine: events and the time go in, commands come out, nothing is sent.

use std::{fmt, time::Duration};

use super::protocol::Again;

/// What becomes of the connection, as whoever owns the child hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChildEvent {
    /// In the registry through its parent, for the first time.
    Connected,
    /// The connection is gone; another is being tried.
    Disconnected,
    /// In the registry again.
    Reconnected,
    /// As many tries as are allowed have failed; the connection is given up.
    HeartbeatFailed,
}

impl ChildEvent {
    /// Its name on the wire and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Reconnected => "reconnected",
            Self::HeartbeatFailed => "heartbeat-failed",
        }
    }
}

impl fmt::Display for ChildEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Times of a connection.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// From one heartbeat to the next.
    pub heartbeat: Duration,
    /// After so long without a sign of life of the parent the connection counts as gone.
    pub silence: Duration,
    /// How long opening it, and then being welcomed, may each take.
    pub opening: Duration,
    /// Tries in a row after which it is given up.
    pub attempts: u32,
    /// Unit of the pauses: before the n-th try, counted from 1, it is this times 2 to the n.
    pub pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for ConnectionSettings {
    /// Beats every 10 s, notices silence after three beats, and tries again after 2, 4, 8, 16 and 30 s.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            opening: Duration::from_secs(10),
            attempts: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It begins.
    Start,
    /// The connection that was asked for is open.
    Opened,
    /// The parent has welcomed the child.
    Welcomed,
    /// Any other frame of the parent.
    Heard,
    /// The connection is gone, or could not be opened.
    Closed,
    /// The parent turned the child away.
    Refused(Again),
    /// The child has left the registry, as it was told to.
    Released,
    /// Nothing but time.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Open a connection.
    Open,
    /// Introduce the child.
    SendHello,
    /// Send the heartbeat of this number.
    SendHeartbeat(u64),
    /// Drop the connection, or the try to open one.
    Close,
    /// Tell whoever owns the child.
    Tell(ChildEvent),
    /// It is over.
    End(Ended),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop.
    Stopped,
    /// Has left the fleet in good order, because an operator told it to or because it said that it is finished.
    Drained,
    /// As many tries as are allowed have failed.
    GivenUp,
    /// The parent does not want this child: its key is not good, or another run has taken its place.
    Refused,
}

/// A child's connection to its parent. Times are durations since any fixed moment and never go back.
#[derive(Debug)]
pub struct ChildConnection {
    settings: ConnectionSettings,
    phase: Phase,
    attempt: u32,
    sequence: u64,
    was_connected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening { until: Duration },
    Greeting { until: Duration },
    Connected { next_beat: Duration, silent_at: Duration },
    Waiting { until: Duration },
    Over,
}

impl ChildConnection {
    /// A connection that has not begun.
    #[must_use]
    pub fn new(settings: ConnectionSettings) -> Self {
        Self { settings, phase: Phase::Idle, attempt: 0, sequence: 0, was_connected: false }
    }

    /// When [`Input::Tick`] is due next, if nothing happens before.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Idle | Phase::Over => None,
            Phase::Opening { until } | Phase::Greeting { until } | Phase::Waiting { until } => Some(until),
            Phase::Connected { next_beat, silent_at } => Some(next_beat.min(silent_at)),
        }
    }

    /// Whether the child is in the registry through this connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Connected { .. })
    }

    /// Takes what happened at `now`; answers what to do, in order.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        match (input, self.phase) {
            (Input::Start, Phase::Idle) => self.open(now),
            (Input::Opened, Phase::Opening { .. }) => {
                self.phase = Phase::Greeting { until: now + self.settings.opening };
                vec![Output::SendHello]
            }
            (Input::Welcomed, Phase::Greeting { .. }) => self.welcomed(now),
            (Input::Heard | Input::Welcomed, Phase::Connected { next_beat, .. }) => {
                self.phase = Phase::Connected { next_beat, silent_at: now + self.settings.silence };
                Vec::new()
            }
            (
                Input::Refused(Again::Never),
                Phase::Opening { .. } | Phase::Greeting { .. } | Phase::Connected { .. },
            ) => self.over(Ended::Refused),
            (Input::Released, Phase::Connected { .. }) => self.over(Ended::Drained),
            (
                Input::Closed | Input::Refused(_),
                Phase::Opening { .. } | Phase::Greeting { .. } | Phase::Connected { .. },
            ) => self.lost(now),
            (Input::Tick, _) => self.tick(now),
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Output> {
        match self.phase {
            Phase::Opening { until } | Phase::Greeting { until } if now >= until => self.lost(now),
            Phase::Waiting { until } if now >= until => self.open(now),
            Phase::Connected { silent_at, .. } if now >= silent_at => self.lost(now),
            Phase::Connected { next_beat, silent_at } if now >= next_beat => {
                self.sequence += 1;
                // a child that was stopped for long beats once, not once for every beat that it missed
                self.phase = Phase::Connected { next_beat: now + self.settings.heartbeat, silent_at };
                vec![Output::SendHeartbeat(self.sequence)]
            }
            _ => Vec::new(),
        }
    }

    fn over(&mut self, ended: Ended) -> Vec<Output> {
        let told = self.is_connected().then_some(Output::Tell(ChildEvent::Disconnected));
        self.phase = Phase::Over;
        [Output::Close].into_iter().chain(told).chain([Output::End(ended)]).collect()
    }

    fn open(&mut self, now: Duration) -> Vec<Output> {
        self.phase = Phase::Opening { until: now + self.settings.opening };
        vec![Output::Open]
    }

    fn welcomed(&mut self, now: Duration) -> Vec<Output> {
        let event = if self.was_connected { ChildEvent::Reconnected } else { ChildEvent::Connected };
        self.was_connected = true;
        self.attempt = 0;
        self.phase =
            Phase::Connected { next_beat: now + self.settings.heartbeat, silent_at: now + self.settings.silence };
        vec![Output::Tell(event)]
    }

    fn lost(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = vec![Output::Close];
        if self.is_connected() {
            outputs.push(Output::Tell(ChildEvent::Disconnected));
        }
        if self.attempt >= self.settings.attempts {
            self.phase = Phase::Over;
            outputs.extend([Output::Tell(ChildEvent::HeartbeatFailed), Output::End(Ended::GivenUp)]);
            return outputs;
        }
        self.attempt += 1;
        let pause = self.settings.pause.saturating_mul(1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX));
        self.phase = Phase::Waiting { until: now + pause.min(self.settings.longest_pause) };
        outputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn connected() -> ChildConnection {
        let mut connection = ChildConnection::new(ConnectionSettings::default());
        assert_eq!(connection.handle(Input::Start, at(0)), [Output::Open]);
        assert_eq!(connection.handle(Input::Opened, at(0)), [Output::SendHello]);
        assert_eq!(connection.handle(Input::Welcomed, at(0)), [Output::Tell(ChildEvent::Connected)]);
        connection
    }

    #[test]
    fn tries_come_after_2_4_8_16_and_30_seconds_and_then_no_more() {
        let mut connection = connected();
        let mut now = at(100);
        let lost = connection.handle(Input::Closed, now);
        assert_eq!(lost, [Output::Close, Output::Tell(ChildEvent::Disconnected)]);
        for (number, pause) in [2, 4, 8, 16, 30].into_iter().enumerate() {
            let due = now + at(pause);
            assert_eq!(connection.wakes_at(), Some(due), "try {}", number + 1);
            assert_eq!(connection.handle(Input::Tick, due - Duration::from_millis(1)), []);
            assert_eq!(connection.handle(Input::Tick, due), [Output::Open]);
            now = due + at(1);
            let outputs = connection.handle(Input::Closed, now);
            let last = [Output::Close, Output::Tell(ChildEvent::HeartbeatFailed), Output::End(Ended::GivenUp)];
            let expected = if number == 4 { &last[..] } else { &[Output::Close] };
            assert_eq!(outputs, expected);
        }
        assert_eq!(connection.wakes_at(), None);
        for input in [Input::Start, Input::Tick, Input::Opened, Input::Closed] {
            assert_eq!(connection.handle(input, at(9999)), [], "it is over");
        }
    }

    #[test]
    fn a_welcome_and_only_that_makes_the_tries_count_anew() {
        let mut connection = connected();
        connection.handle(Input::Closed, at(0));
        connection.handle(Input::Tick, at(2));
        // an open door is no welcome
        connection.handle(Input::Opened, at(2));
        connection.handle(Input::Refused(Again::Later), at(3));
        assert_eq!(connection.wakes_at(), Some(at(3 + 4)));
        connection.handle(Input::Tick, at(7));
        connection.handle(Input::Opened, at(7));
        assert_eq!(connection.handle(Input::Welcomed, at(8)), [Output::Tell(ChildEvent::Reconnected)]);
        connection.handle(Input::Closed, at(9));
        assert_eq!(connection.wakes_at(), Some(at(9 + 2)));
    }

    #[test]
    fn it_beats_every_10_seconds_and_notices_30_seconds_of_silence() {
        let mut connection = connected();
        assert_eq!(connection.wakes_at(), Some(at(10)));
        assert_eq!(connection.handle(Input::Tick, at(10)), [Output::SendHeartbeat(1)]);
        assert_eq!(connection.handle(Input::Heard, at(11)), []);
        for (now, sequence) in [(20, 2), (30, 3), (40, 4)] {
            assert_eq!(connection.wakes_at(), Some(at(now)));
            assert_eq!(connection.handle(Input::Tick, at(now)), [Output::SendHeartbeat(sequence)]);
        }
        assert_eq!(connection.wakes_at(), Some(at(41)), "30 s after it was heard of last");
        assert_eq!(connection.handle(Input::Tick, at(41)), [Output::Close, Output::Tell(ChildEvent::Disconnected)]);
        assert!(!connection.is_connected());
    }

    #[test]
    fn a_door_that_does_not_open_and_a_welcome_that_does_not_come_count_as_tries() {
        let mut connection = ChildConnection::new(ConnectionSettings::default());
        connection.handle(Input::Start, at(0));
        assert_eq!(connection.handle(Input::Tick, at(10)), [Output::Close]);
        assert_eq!(connection.handle(Input::Tick, at(12)), [Output::Open]);
        connection.handle(Input::Opened, at(13));
        assert_eq!(connection.handle(Input::Tick, at(22)), []);
        assert_eq!(connection.handle(Input::Tick, at(23)), [Output::Close]);
        assert_eq!(connection.wakes_at(), Some(at(23 + 4)));
    }

    #[test]
    fn who_is_not_wanted_does_not_come_back() {
        let mut connection = ChildConnection::new(ConnectionSettings::default());
        connection.handle(Input::Start, at(0));
        connection.handle(Input::Opened, at(0));
        let refused = connection.handle(Input::Refused(Again::Never), at(1));
        assert_eq!(refused, [Output::Close, Output::End(Ended::Refused)]);
        let refused = connected().handle(Input::Refused(Again::Never), at(1));
        let expected = [Output::Close, Output::Tell(ChildEvent::Disconnected), Output::End(Ended::Refused)];
        assert_eq!(refused, expected);
    }

    #[test]
    fn who_is_released_has_ended_well() {
        let mut connection = connected();
        let expected = [Output::Close, Output::Tell(ChildEvent::Disconnected), Output::End(Ended::Drained)];
        assert_eq!(connection.handle(Input::Released, at(1)), expected);
        assert_eq!(connection.wakes_at(), None);
    }

    #[test]
    fn a_child_that_was_stopped_for_long_does_not_beat_for_all_that_it_missed() {
        let mut connection =
            ChildConnection::new(ConnectionSettings { silence: at(1000), ..ConnectionSettings::default() });
        for input in [Input::Start, Input::Opened, Input::Welcomed] {
            connection.handle(input, at(0));
        }
        assert_eq!(connection.handle(Input::Tick, at(95)), [Output::SendHeartbeat(1)]);
        assert_eq!(connection.wakes_at(), Some(at(105)));
    }

    #[test]
    fn events_keep_the_names_of_the_contract() {
        let names =
            [ChildEvent::Connected, ChildEvent::Disconnected, ChildEvent::Reconnected, ChildEvent::HeartbeatFailed]
                .map(|event| event.to_string());
        assert_eq!(names, ["connected", "disconnected", "reconnected", "heartbeat-failed"]);
    }
}

//! Which settings a process starts with: ranges of the frame's numbers, the service's own check, and who may reach it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::{
    FrameSettings, Service, SettingsError,
    retry::RetryRule,
    settings::{Loaded, variable},
};

/// Ten milliseconds to an hour.
const POLL_MS: RangeInclusive<u64> = 10..=3_600_000;
/// A lease is extended three times in its length, so a second is the least that survives a slow answer.
const LEASE_MS: RangeInclusive<u64> = 1_000..=3_600_000;
const STATEMENT_MS: RangeInclusive<u64> = 1_000..=3_600_000;
pub(crate) const CONCURRENCY: RangeInclusive<u64> = 1..=5_000;
const GRACE_MS: RangeInclusive<u64> = 0..=600_000;
const CHILD_ABSENCE_MS: RangeInclusive<u64> = 1_000..=3_600_000;
/// With two, a statement that takes long leaves one to the heartbeat and the ends of what is in hand.
const CONNECTIONS: RangeInclusive<u64> = 2..=500;

/// Hands on settings that the process can live with.
///
/// # Errors
/// When a number is out of its range, the service refuses its settings, or strangers could reach it unasked.
pub(crate) fn checked<S: Service>(loaded: Loaded<S::Settings>) -> Result<Loaded<S::Settings>, SettingsError> {
    check_frame(&loaded.frame, &loaded.origins)?;
    S::check(&loaded.service).map_err(SettingsError::Value)?;
    let FrameSettings { bind, insecure_bind, .. } = loaded.frame;
    if bind.is_loopback() || insecure_bind || S::authenticates(&loaded.service) {
        return Ok(loaded);
    }
    Err(SettingsError::Value(format!(
        "bind is {bind}, which others can reach, and cogo-{} would answer them without a key; set {} to 127.0.0.1, give \
         it keys if it takes any (see --help), or set {}=true where the network itself keeps strangers out",
        S::NAME,
        variable("bind"),
        variable("insecure_bind"),
    )))
}

fn check_frame(frame: &FrameSettings, origins: &BTreeMap<String, (String, String)>) -> Result<(), SettingsError> {
    let numbers = [
        ("bus_poll_ms", frame.bus_poll_ms, POLL_MS),
        ("reclaim_after_ms", frame.reclaim_after_ms, LEASE_MS),
        ("statement_timeout_ms", frame.statement_timeout_ms, STATEMENT_MS),
        ("concurrency", u64::from(frame.concurrency), CONCURRENCY),
        ("grace_ms", frame.grace_ms, GRACE_MS),
        ("child_absence_ms", frame.child_absence_ms, CHILD_ABSENCE_MS),
        ("max_connections", u64::from(frame.max_connections), CONNECTIONS),
    ];
    for (key, value, range) in numbers {
        if !range.contains(&value) {
            let set_by = origins.get(key).map_or("nobody", |(_, origin)| origin.as_str());
            let (least, most) = range.into_inner();
            let text = format!("{key} is {value} (set by {set_by}), it must be {least} to {most}");
            return Err(SettingsError::Value(text));
        }
    }
    RetryRule::parse_all(&frame.retry_rules).map(drop).map_err(SettingsError::Value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cogo_contracts::Route;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{
        Frame,
        settings::{Sources, load},
    };

    struct Picky;

    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    struct Own {
        every_ms: u64,
        keyed: bool,
    }

    impl Service for Picky {
        const NAME: &'static str = "test-picky";
        const DOMAIN: &'static str = "test";
        const LEVEL: i16 = 2;
        const PORT: u16 = 0;
        const CAPABILITIES: &'static [&'static str] = &[];
        const ROUTE: Option<Route> = None;
        type Settings = Own;

        fn check(settings: &Own) -> Result<(), String> {
            if settings.every_ms == 13 { Err("every_ms is 13".to_owned()) } else { Ok(()) }
        }

        fn authenticates(settings: &Own) -> bool {
            settings.keyed
        }

        async fn start(_frame: &mut Frame<Own>) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn outcome(variables: &[(&str, &str)]) -> Result<(), String> {
        let environment: HashMap<String, String> =
            variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let loaded = load::<Own>(Picky::NAME, &Sources { environment, file: None }).unwrap();
        checked::<Picky>(loaded).map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_out_of_range_stop_the_start_with_key_and_origin() {
        assert_eq!(outcome(&[]), Ok(()));
        for (variable, value, key) in [
            ("BUS_POLL_MS", "0", "bus_poll_ms"),
            ("BUS_POLL_MS", "3600001", "bus_poll_ms"),
            ("RECLAIM_AFTER_MS", "999", "reclaim_after_ms"),
            ("COGO_CONCURRENCY", "0", "concurrency"),
            ("COGO_CONCURRENCY", "5001", "concurrency"),
            ("COGO_GRACE_MS", "600001", "grace_ms"),
            ("COGO_MAX_CONNECTIONS", "1", "max_connections"),
            ("COGO_MAX_CONNECTIONS", "501", "max_connections"),
            ("COGO_STATEMENT_TIMEOUT_MS", "1", "statement_timeout_ms"),
            ("COGO_CHILD_ABSENCE_MS", "999", "child_absence_ms"),
            ("COGO_EVERY_MS", "13", "every_ms"),
        ] {
            let refusal = outcome(&[(variable, value)]).unwrap_err();
            assert!(refusal.contains(&format!("{key} is {value}")), "{refusal}");
            assert!(key == "every_ms" || refusal.contains(variable), "{refusal}");
        }
    }

    #[test]
    fn retry_rule_that_cannot_be_used_stops_the_start() {
        assert_eq!(outcome(&[("COGO_RETRY_RULES", "limited: delay=10s max=3,*: max=2")]), Ok(()));
        let refusal = outcome(&[("COGO_RETRY_RULES", "limited: sometimes")]).unwrap_err();
        assert!(refusal.contains("retry_rules") && refusal.contains("sometimes"), "{refusal}");
    }

    #[test]
    fn process_that_asks_nobody_for_a_key_stays_on_this_machine() {
        let refusal = outcome(&[("COGO_BIND", "0.0.0.0")]).unwrap_err();
        assert!(refusal.contains("COGO_BIND") && refusal.contains("COGO_INSECURE_BIND"), "{refusal}");
        assert_eq!(outcome(&[("COGO_BIND", "::1")]), Ok(()));
        assert_eq!(outcome(&[("COGO_BIND", "0.0.0.0"), ("COGO_INSECURE_BIND", "true")]), Ok(()));
        assert_eq!(outcome(&[("COGO_BIND", "0.0.0.0"), ("COGO_KEYED", "true")]), Ok(()));
    }
}

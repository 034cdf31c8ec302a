//! The kinds of audit events that this build writes; others may write more.

/// Kinds of events, by what they are about.
const KINDS: [(&str, &[&str]); 8] = [
    ("messages", &["message_failed", "message_cancelled", "message_replayed", "lease_expired"]),
    ("assignments", &["orchestrate_enqueued", "execute_enqueued", "execute_done", "execute_retry", "execute_failed"]),
    ("routes", &["route_pause", "route_resume", "route_drain", "route_open"]),
    ("schedules", &["schedule_missed", "schedule_broken"]),
    (
        "agents",
        &[
            "agent_registered",
            "agent_active",
            "agent_suspect",
            "agent_recovered",
            "agent_suspended",
            "agent_resumed",
            "agent_draining",
            "agent_drained",
            "agent_superseded",
            "agent_dead",
            "agent_key_revoked",
            "agents_held_back",
            "sweep_was_late",
        ],
    ),
    ("the tree", &["tree_spawn", "tree_terminate", "tree_transition", "tree_crash", "tree_recovery"]),
    ("pools, circuits, orders", &["pool_owned", "breaker_opened", "breaker_closed", "order_given", "order_lifted"]),
    (
        "settings, schemas",
        &[
            "config_validating",
            "config_applying",
            "config_live",
            "config_refused",
            "config_rolled_back",
            "schema_registered",
            "schema_rule_changed",
        ],
    ),
];

/// Whether this build writes events of this kind.
pub(super) fn is_known(kind: &str) -> bool {
    KINDS.iter().any(|(_, kinds)| kinds.contains(&kind))
}

/// One line for what each group is about, with its kinds.
pub(super) fn in_words() -> String {
    let lines: Vec<String> = KINDS.iter().map(|(about, kinds)| format!("  {about}: {}", kinds.join(", "))).collect();
    lines.join("\n")
}

/// What may be a kind: the table takes no other names.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let valid =
        text.len() <= 63 && text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(legal);
    if valid { Ok(text.to_owned()) } else { Err("a kind is [a-z][a-z0-9_]{0,62}, such as message_failed".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in single quotes at the beginning of the text.
    fn literal(text: &str) -> Option<&str> {
        text.trim_start().strip_prefix('\'')?.split('\'').next()
    }

    #[test]
    fn each_kind_that_a_migration_writes_by_name_is_known() {
        let mut found = 0;
        for migration in cogo_db::MIGRATOR.iter() {
            let sql = migration.sql.as_str();
            let told = sql.split("record_event(").skip(1);
            let written = sql.split("insert into public.bus_events (kind").skip(1).filter_map(|rest| {
                let row = rest.split_once(')')?.1.trim_start();
                row.strip_prefix("values (").or_else(|| row.strip_prefix("select "))
            });
            for kind in told.chain(written).filter_map(literal) {
                // the beginning of a kind ends in _
                let known = if kind.ends_with('_') { in_words().contains(kind) } else { is_known(kind) };
                assert!(known, "{kind} of migration {}", migration.version);
                found += 1;
            }
        }
        assert!(found > 20, "{found}");
    }

    #[test]
    fn names_that_no_event_can_have_are_refused() {
        assert_eq!(parse("execute_done").as_deref(), Ok("execute_done"));
        for name in ["", "Execute", "_x", "a b", &"a".repeat(64)] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}

//! What belongs to a whole process, seen from outside: one set-up, and the panic hook.

use std::process::Command;

use cogo_telemetry::{Error, LogFormat, init};
use serde_json::Value;

use crate::it::captured::settings;

/// Set in the child only; in the parent's own run the child's test does nothing.
const CHILD: &str = "COGO_TELEMETRY_TEST_CHILD";

#[test]
fn a_panic_is_one_error_line_and_a_second_set_up_is_refused() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "it::process::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!child.status.success());
    let out = String::from_utf8(child.stdout).unwrap();
    let errors: Vec<Value> = out
        .lines()
        .filter_map(|line| serde_json::from_str(line.trim_start_matches("test it::process::child ... ")).ok())
        .filter(|line: &Value| line["level"] == "ERROR")
        .collect();
    assert_eq!(errors.len(), 1, "{out}");
    assert_eq!(errors[0]["message"], "panicked: lost postgres://u:***@h/d");
    assert!(errors[0]["panic.location"].as_str().unwrap().contains("process.rs"), "{out}");
}

#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let mut settings = settings();
    settings.log_format = LogFormat::Json;
    let _guard = init(&settings).unwrap();
    assert!(matches!(init(&settings), Err(Error::AlreadySetUp(_))));
    panic!("lost postgres://u:hunter2@h/d");
}

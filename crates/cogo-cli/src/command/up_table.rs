//! What `cogo up` shows of a fleet that is ready.

use serde_json::{Value, json};

use crate::{
    failure::Failure,
    fleet::{FleetState, ProcessState, told},
    output::{Look, Output, table},
};

/// The table of a fleet that is ready.
pub(crate) fn show(output: &Output, state: &FleetState) -> Result<(), Failure> {
    let seconds = state.ready_after_s.unwrap_or_default();
    output.either(&as_json(state), || {
        let rows = state.processes.iter().map(|process| {
            let pid = process.running.as_ref().map_or_else(|| "-".to_owned(), |identity| identity.pid.to_string());
            [process.name.clone(), pid, process.url(), word(process).to_owned()]
        });
        let orders: String =
            state.orders.iter().map(|order| output.paint.paint(Look::Warning, &told(order)) + "\n").collect();
        let dashboard = dashboard(state).map_or_else(String::new, |url| format!("dashboard {url}\n"));
        let ready = output.paint.paint(Look::Good, &format!("ready in {seconds:.1} s"));
        format!("{}\n\n{orders}{dashboard}{ready}", table(["process", ">pid", "url", "state"], rows))
    })
}

/// How a process is in a fleet of which all is as it is meant.
const fn word(process: &ProcessState) -> &'static str {
    match (process.drained, process.suspended) {
        (true, _) => "drained",
        (false, true) => "suspended",
        (false, false) => "ready",
    }
}

/// The page for people, when the process that serves it is part of the fleet.
pub(crate) fn dashboard(state: &FleetState) -> Option<String> {
    let process = state.processes.iter().find(|process| process.name == "metrics-server")?;
    Some(format!("{}/dashboard/local", process.url()))
}

fn as_json(state: &FleetState) -> Value {
    let processes: Vec<Value> = state
        .processes
        .iter()
        .map(|process| {
            let pid = process.running.as_ref().map(|identity| identity.pid);
            json!({"name": process.name, "pid": pid, "port": process.port, "url": process.url(), "state": word(process)})
        })
        .collect();
    json!({
        "pid": state.up.as_ref().map(|identity| identity.pid),
        "ready_after_s": state.ready_after_s,
        "dashboard": dashboard(state),
        "processes": processes,
        "orders": state.orders,
    })
}

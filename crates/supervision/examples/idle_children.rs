//! Prints what supervised children cost: `cargo run --release --example idle_children [count]`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::time::{Duration, Instant};

use cogo_supervision::{ChildSpec, GroupSpec, Options, StopOrder, Strategy, Supervisor, TaskContext, Work};

/// Resident memory of this process in bytes; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0) * 1024
}

async fn idle(context: TaskContext) {
    context.stop().cancelled().await;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let empty = GroupSpec::new(Strategy::OneForOne).intensity(count, Duration::from_secs(60));
    let before = resident_bytes();
    let spec = (0..count).fold(empty.stop_order(StopOrder::AtOnce), |spec, number| {
        spec.child(ChildSpec::worker(format!("child-{number}"), Work::task(idle)))
    });
    let begun = Instant::now();
    let handle = Supervisor::start(spec, &Options::default())?;
    handle.started().await.map_err(|outcome| format!("{:?}", outcome.end))?;
    let started = begun.elapsed();
    let bytes = resident_bytes().saturating_sub(before) / u64::from(count.max(1));
    println!("{count} children: started in {started:?}, {bytes} bytes of memory each with their specification");
    let begun = Instant::now();
    handle.shutdown();
    handle.ended().await;
    println!("{count} children: stopped in {:?}", begun.elapsed());
    Ok(())
}

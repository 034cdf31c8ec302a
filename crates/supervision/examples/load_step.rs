//! Prints how the autoscaler answers a load step: `cargo run -p cogo-supervision --example load_step`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]
#![expect(clippy::unwrap_used, reason = "the simulated queue is that of the tests")]

use std::time::Duration;

use cogo_supervision::autoscale::Settings;

#[path = "../tests/it/queue_world.rs"]
mod queue_world;

use queue_world::{START_UP, World};

fn main() {
    let (before, after, service) = (1.0, 50.0, Duration::from_millis(200));
    let needed = after * service.as_secs_f64();
    let settings = Settings { max: 100, ..Settings::default() };
    let mut world = World::new(settings, 1, service, Duration::from_millis(300));
    world.run(60.0, before);
    let step = world.now;
    while f64::from(world.ready()) < needed {
        world.run(0.05, after);
    }
    let enough = world.now - step;
    world.run(60.0, after);
    world.run(180.0, before);
    println!(
        "at 60 s the load steps from {before} to {after} messages per s of {service:?} each; {needed} must be at work"
    );
    for (at, decision) in &world.changes {
        println!("{:>6.1} s  {}", at.as_secs_f64(), decision.sentence);
    }
    println!("{:.2} s from the step to enough working workers, {START_UP:?} of it their start", enough.as_secs_f64());
    let settled = world.last.map(|decision| decision.sentence).unwrap_or_default();
    println!("at the end, {} wanted: {settled}", world.desired);
}

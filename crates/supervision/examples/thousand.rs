//! What a thousand supervised children cost: time to start them, to restart them all after one blow, and memory each.
//!
//! `cargo run --release -p cogo-supervision --example thousand -- --json [--children 1000]`

use std::{
    error::Error,
    fs,
    io::{self, Write},
    time::{Duration, Instant},
};

use cogo_supervision::{
    ChildSpec, End, Exit, GroupSpec, Handle, Happened, Node, NodeState, Options, StopOrder, Strategy, Supervisor,
    TaskContext, Work,
};
use tokio::sync::watch;

/// What was measured.
struct Figures {
    children: u32,
    start_all: Duration,
    restart_all: Duration,
    stop_all: Duration,
    restarts: u64,
    gave_up: bool,
    bytes_per_idle_child: u64,
}

impl Figures {
    fn json(&self) -> String {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
        format!(
            "{{\"children\": {}, \"start_all_ms\": {:.1}, \"restart_all_ms\": {:.1}, \"stop_all_ms\": {:.1}, \
             \"restarts\": {}, \"intensity\": {}, \"gave_up\": {}, \"bytes_per_idle_child\": {}}}",
            self.children,
            milliseconds(self.start_all),
            milliseconds(self.restart_all),
            milliseconds(self.stop_all),
            self.restarts,
            self.children,
            self.gave_up,
            self.bytes_per_idle_child
        )
    }

    fn text(&self) -> String {
        format!(
            "{} children: started in {:.1?}, all killed and restarted in {:.1?}, stopped in {:.1?}\n\
             {} restarts of {} allowed, gave up: {}\n{} bytes of memory per idle child",
            self.children,
            self.start_all,
            self.restart_all,
            self.stop_all,
            self.restarts,
            self.children,
            self.gave_up,
            self.bytes_per_idle_child
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut wants_json, mut children) = (false, 1000);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => wants_json = true,
            "--children" => children = arguments.next().ok_or("--children needs a number")?.parse()?,
            other => return Err(format!("unknown argument {other}; known are --json and --children N").into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let figures = runtime.block_on(measure(children))?;
    let text = if wants_json { figures.json() } else { figures.text() };
    Ok(writeln!(io::stdout(), "{text}")?)
}

async fn measure(children: u32) -> Result<Figures, Box<dyn Error>> {
    let (strike, struck) = watch::channel(0_u32);
    let before = resident_bytes()?;
    let begun = Instant::now();
    // each may be restarted once: one restart more than there are children, and the group gives up
    let options = Options { events: 4 * children as usize + 16, log: false, ..Options::default() };
    let handle = Supervisor::start(tree(children, struck), &options)?;
    handle.started().await.map_err(|outcome| format!("the tree ended: {:?}", outcome.end))?;
    let start_all = begun.elapsed();
    let grown = resident_bytes()?.saturating_sub(before);

    let begun = Instant::now();
    blow(&handle, &strike, children).await?;
    let restart_all = begun.elapsed();
    let picture = handle.tree().await;
    let is_whole = picture.children.iter().all(|child| child.state == NodeState::Running);
    let restarts = picture.children.iter().map(|child: &Node| u64::from(child.restarts)).sum();

    let begun = Instant::now();
    handle.shutdown();
    let outcome = handle.ended().await;
    Ok(Figures {
        children,
        start_all,
        restart_all,
        stop_all: begun.elapsed(),
        restarts,
        gave_up: !is_whole || outcome.end != End::Shutdown,
        bytes_per_idle_child: grown / u64::from(children.max(1)),
    })
}

/// One group of children that do nothing until they are struck or told to stop.
fn tree(children: u32, struck: watch::Receiver<u32>) -> GroupSpec<Work> {
    let work = Work::task_that_says_when_ready(move |context: TaskContext| {
        let mut struck = struck.clone();
        let born = *struck.borrow_and_update();
        async move {
            context.ready();
            tokio::select! {
                () = context.stop().cancelled() => Exit::Normal,
                _ = struck.wait_for(|strikes| *strikes != born) => Exit::Abnormal("struck".to_owned()),
            }
        }
    });
    let hour = Duration::from_secs(3600);
    let group = GroupSpec::new(Strategy::OneForOne).intensity(children, hour).stop_order(StopOrder::AtOnce);
    (0..children).fold(group, |group, number| group.child(ChildSpec::worker(format!("child-{number}"), work.clone())))
}

/// Ends every child at once and waits until each runs again.
async fn blow(handle: &Handle, strike: &watch::Sender<u32>, children: u32) -> Result<(), Box<dyn Error>> {
    let mut events = handle.events();
    strike.send(1)?;
    let mut running = 0;
    while running < children {
        match events.recv().await?.happened {
            Happened::Started { restarts: 1 } => running += 1,
            Happened::GaveUp { intensity, .. } => return Err(format!("gave up at {intensity} restarts").into()),
            _ => {}
        }
    }
    Ok(())
}

/// Resident memory of this process.
fn resident_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

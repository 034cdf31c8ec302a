//! One command on this machine: its process group, its limit, its output, its end.

use std::{io, process::Stdio, time::Duration};

use anyhow::Context;
use cogo_contracts::{SandboxEvent, SandboxRequest};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{protocol::OUTPUT_CAP, text::Decoder};

/// How the reason of a command begins that could not be started by no fault of its own: the machine has no room, no
/// memory, no processes left. A worker with such ends is given a rest.
pub(crate) const MACHINE_FAULT: &str = "This machine cannot start commands";
/// Bytes per read and so per event.
const CHUNK: usize = 16 * 1024;
/// A process that left the group may hold the pipes open for ever; what it writes later than this is not waited for.
const DRAINS_WITHIN: Duration = Duration::from_secs(1);

/// Runs a command and tells its events; the last one, and no other, is terminal.
///
/// Dropping the future kills the command with all of its group.
pub(crate) async fn run(
    request: SandboxRequest,
    path: &str,
    stop: CancellationToken,
    events: mpsc::Sender<SandboxEvent>,
) {
    let end = match start(&request, path) {
        Ok(running) => attend(running, request, &stop, &events).await,
        Err(NotStarted::Command(error)) => SandboxEvent::Failed { reason: format!("{error:#}") },
        Err(NotStarted::Machine(error)) => SandboxEvent::Failed { reason: format!("{MACHINE_FAULT}: {error:#}") },
    };
    tell(&events, end).await;
}

struct Running {
    // before the directory, so that nothing writes into it while it is removed
    group: Group,
    child: Child,
    directory: TempDir,
}

/// Whose fault it is that a command was not started.
enum NotStarted {
    /// Its own: there is no such program, or it may not be run.
    Command(anyhow::Error),
    /// That of the machine; any other command would have met it too.
    Machine(anyhow::Error),
}

impl NotStarted {
    fn of(error: io::Error, program: &str) -> Self {
        let number = Errno::from_io_error(&error);
        let error = anyhow::Error::from(error).context(format!("start {program:?}"));
        match number {
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::DQUOT) => {
                Self::Machine(error)
            }
            _ => Self::Command(error),
        }
    }
}

fn start(request: &SandboxRequest, path: &str) -> Result<Running, NotStarted> {
    let named = request.command.split_first().context("The command is empty");
    let (program, arguments) = named.map_err(NotStarted::Command)?;
    let directory = tempfile::Builder::new().prefix("cogo-sandbox-").tempdir().context("create a working directory");
    let directory = directory.map_err(NotStarted::Machine)?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", path)
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| NotStarted::of(error, program))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    Ok(Running { group, child, directory })
}

async fn attend(
    running: Running,
    request: SandboxRequest,
    stop: &CancellationToken,
    events: &mpsc::Sender<SandboxEvent>,
) -> SandboxEvent {
    let Running { mut group, mut child, directory } = running;
    tell(events, SandboxEvent::Started).await;
    let stdin = feed(child.stdin.take(), request.stdin);
    let stdout = pump(child.stdout.take(), events, |text| SandboxEvent::Stdout { text });
    let stderr = pump(child.stderr.take(), events, |text| SandboxEvent::Stderr { text });
    let (end, pumps_ended) = {
        let pumps = async { tokio::join!(stdin, stdout, stderr) };
        tokio::pin!(pumps);
        let limit = tokio::time::sleep(Duration::from_millis(request.limit_ms));
        tokio::pin!(limit);
        let mut pumped = false;
        let end = loop {
            tokio::select! {
                exited = child.wait() => break exited.map_or_else(unwatched, |status| SandboxEvent::Exited { code: status.code() }),
                () = &mut limit => break SandboxEvent::TimedOut,
                () = stop.cancelled() => break SandboxEvent::Failed { reason: "The job was stopped".to_owned() },
                _ = &mut pumps, if !pumped => pumped = true,
            }
        };
        // also what the command left behind in the background
        group.kill();
        (end, pumped || timeout(DRAINS_WITHIN, pumps).await.is_ok())
    };
    if !pumps_ended {
        debug!("a process outside the group still holds the output of the command");
    }
    if let Err(error) = child.wait().await {
        debug!(%error, "command not reaped");
    }
    remove(directory).await;
    end
}

async fn remove(directory: TempDir) {
    // a command may have left a large tree
    let removed = tokio::task::spawn_blocking(move || directory.close()).await.map_err(io::Error::other);
    if let Err(error) = removed.flatten() {
        debug!(%error, "working directory not removed");
    }
}

fn unwatched(error: io::Error) -> SandboxEvent {
    SandboxEvent::Failed { reason: format!("The command could not be watched: {error}") }
}

async fn feed(stdin: Option<ChildStdin>, text: String) {
    let Some(mut stdin) = stdin else { return };
    if let Err(error) = stdin.write_all(text.as_bytes()).await {
        debug!(%error, "command did not take all of its input");
    }
}

/// Reads to the end of the stream, so that the command never blocks on a full pipe; tells little more than the cap.
async fn pump<R, F>(stream: Option<R>, events: &mpsc::Sender<SandboxEvent>, event: F)
where
    R: AsyncRead + Unpin,
    F: Fn(String) -> SandboxEvent,
{
    let Some(mut stream) = stream else { return };
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK];
    let mut told = 0;
    loop {
        let read = match stream.read(&mut chunk).await {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                debug!(%error, "output of the command could not be read");
                break;
            }
        };
        if told <= OUTPUT_CAP {
            told += read;
            let text = decoder.push(&chunk[..read]);
            if !text.is_empty() {
                tell(events, event(text)).await;
            }
        }
    }
    let rest = decoder.finish();
    if !rest.is_empty() {
        tell(events, event(rest)).await;
    }
}

async fn tell(events: &mpsc::Sender<SandboxEvent>, event: SandboxEvent) {
    // nobody listens any more when the job was given up; the command is stopped by then or will be
    let _ = events.send(event).await;
}

/// The processes of one command; killed when this value is dropped.
struct Group(Option<Pid>);

impl Group {
    /// Only once: after the end of all its processes the number may belong to others.
    fn kill(&mut self) {
        let Some(leader) = self.0.take() else { return };
        if let Err(error) = kill_process_group(leader, Signal::KILL) {
            debug!(%error, "nothing left to kill in the group");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

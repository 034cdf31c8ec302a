//! How the process is, as its probes tell: those of the frame, and those that a service adds.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use cogo_supervision::{
    breaker::Phase,
    clock::Clock,
    probe::{Kind, Probe, Prober, Reason, Spec, Status},
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::watch};

use crate::{Dependencies, chore::Chores, pulse::Pulses};

/// A busy runtime takes its turn within this, or people are told.
const TURNS_WITHIN: Duration = Duration::from_secs(3);
/// What passes within this, as a database that starts again, is nobody's business.
const IN_VAIN: Duration = Duration::from_secs(10);

/// What the probes tell of the process.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) started: Arc<AtomicBool>,
    /// Whether the registry lets it work.
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) chores: Chores,
    pub(crate) pulses: Pulses,
    /// Whether the probes let the process take work.
    able: Arc<watch::Sender<bool>>,
    /// Asks on a thread of its own; absent until the service has started.
    prober: Arc<OnceLock<Prober>>,
    dependencies: Dependencies,
}

impl Default for Health {
    fn default() -> Self {
        Self::with(Dependencies::alone())
    }
}

impl Health {
    /// Nothing has started yet.
    pub(crate) fn with(dependencies: Dependencies) -> Self {
        Self {
            started: Arc::default(),
            ready: Arc::default(),
            chores: Chores::default(),
            pulses: Pulses::default(),
            able: Arc::new(watch::Sender::new(true)),
            prober: Arc::default(),
            dependencies,
        }
    }

    /// Begins to ask the service's probes, beside those of the frame.
    ///
    /// # Errors
    /// When two probes have one name or a number is 0, or the system gives no thread.
    pub(crate) fn ask(&self, probes: Vec<Probe>, work: Handle) -> anyhow::Result<()> {
        let mut all = vec![self.loops(), turns(work), self.claims(), self.circuits()];
        all.extend(probes);
        let prober = Prober::start(all, Clock::system()).context("start the probes")?;
        // set once: the service starts once
        let _ = self.prober.set(prober);
        Ok(())
    }

    /// Whether the probes let the process take work.
    pub(crate) fn able(&self) -> watch::Receiver<bool> {
        self.able.subscribe()
    }

    /// Keeps [`able`](Self::able) true to the probes, as long as there are any.
    pub(crate) async fn watch_probes(&self) {
        let Some(mut changes) = self.prober.get().map(Prober::changes) else { return };
        loop {
            let able = changes.borrow_and_update().ready;
            self.able.send_if_modified(|now| std::mem::replace(now, able) != able);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// `/livez`: whether only a restart helps, and the body that says so.
    pub(crate) fn live(&self) -> (bool, Value) {
        let stuck = self.pulses.stuck();
        let probed = self.prober.get().map(Prober::health);
        let reasons: Vec<Reason> = probed
            .filter(|probed| !probed.live)
            .map(|probed| {
                probed
                    .reasons
                    .into_iter()
                    .filter(|reason| matches!(reason.kind, Kind::Startup | Kind::Liveness))
                    .collect()
            })
            .unwrap_or_default();
        let live = stuck.is_empty() && reasons.is_empty();
        let mut body = json!({"live": live, "stuck": stuck});
        if !reasons.is_empty() {
            body["reasons"] = json!(reasons);
        }
        (live, body)
    }

    /// `/startupz`.
    pub(crate) fn has_started(&self) -> (bool, Value) {
        let started =
            self.started.load(Ordering::Relaxed) && self.prober.get().is_none_or(|prober| prober.health().started);
        (started, json!({"started": started}))
    }

    /// `/readyz`: whether it takes work; why not, and what else is not as it should be.
    pub(crate) fn is_ready(&self) -> (bool, Value) {
        let by_registry = self.ready.load(Ordering::Relaxed);
        let Some(probed) = self.prober.get().map(Prober::health) else {
            return (by_registry, json!({"ready": by_registry}));
        };
        let ready = by_registry && probed.ready;
        let status = match probed.status {
            Status::Healthy | Status::Degraded if !by_registry => Status::NotReady,
            other => other,
        };
        let mut reasons = json!(probed.reasons);
        if let (false, Some(reasons)) = (by_registry, reasons.as_array_mut()) {
            reasons.push(json!({"probe": "registry", "kind": Kind::Readiness, "text": "the registry does not count this process as active"}));
        }
        let dependencies = self.dependencies.views();
        (ready, json!({"ready": ready, "status": status, "reasons": reasons, "dependencies": dependencies}))
    }

    /// The loops of the process turn.
    fn loops(&self) -> Probe {
        let pulses = self.pulses.clone();
        Probe::new(Spec { failure_threshold: 1, ..Spec::new("loops", Kind::Liveness) }, move || {
            let stuck = pulses.stuck();
            async move { if stuck.is_empty() { Ok(()) } else { Err(format!("do not turn: {}", stuck.join(", "))) } }
        })
    }

    /// The workers can claim. One that cannot does nothing, but nobody else would do it better: the database is away, or says
    /// no to all of a kind.
    fn claims(&self) -> Probe {
        let pulses = self.pulses.clone();
        let often =
            Spec { period: Duration::from_secs(1), failure_threshold: 1, ..Spec::new("claims", Kind::Advisory) };
        Probe::new(often, move || {
            let vain = pulses.in_vain(IN_VAIN);
            async move { if vain.is_empty() { Ok(()) } else { Err(vain.join("; ")) } }
        })
    }

    /// No circuit is open: the process works on, but not as well as it could.
    fn circuits(&self) -> Probe {
        let dependencies = self.dependencies.clone();
        Probe::new(Spec { failure_threshold: 1, ..Spec::new("dependencies", Kind::Advisory) }, move || {
            let views = dependencies.views();
            async move {
                let open: Vec<&str> =
                    views.iter().filter(|view| view.phase != Phase::Closed).map(|view| view.name.as_str()).collect();
                if open.is_empty() { Ok(()) } else { Err(format!("not called for now: {}", open.join(", "))) }
            }
        })
    }
}

/// The threads of the work find time for a task that does nothing. Being busy is no reason for a restart.
fn turns(work: Handle) -> Probe {
    let spec = Spec { timeout: TURNS_WITHIN, ..Spec::new("work threads", Kind::Advisory) };
    Probe::new(spec, move || {
        let turn = work.spawn(std::future::ready(()));
        async move { turn.await.map_err(|error| error.to_string()) }
    })
}

/// A probe of a service. Whether it lives is asked on the thread of the probes, so that busy work never looks dead;
/// everything else on the threads of the work, whose pool and connections it may use.
pub(crate) fn probe<F, A>(spec: Spec, work: Handle, ask: F) -> Probe
where
    F: Fn() -> A + Send + 'static,
    A: Future<Output = Result<(), String>> + Send + 'static,
{
    if spec.kind == Kind::Liveness {
        return Probe::new(spec, ask);
    }
    Probe::new(spec, move || {
        let answer = work.spawn(ask());
        let abort = AbortOnDrop(answer.abort_handle());
        async move {
            let _abort = abort;
            answer.await.map_err(|error| error.to_string())?
        }
    })
}

/// An answer that nobody waits for any more is not looked for either.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

//! gateway-chat as a process of the fleet.

use std::{sync::Arc, time::Duration};

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Dependencies, Frame, Service};
use cogo_supervision::probe::{Kind, Spec};
use tracing::info;

use crate::{Chat, Live, Parts, Search, Settings, Writers, live::router, settings::LIVE};

/// How often an embedding model is tried again that was away at the start.
const TRY_AGAIN: Duration = Duration::from_secs(15);

/// The process `cogo-gateway-chat`.
#[derive(Debug)]
pub struct GatewayChat;

impl Service for GatewayChat {
    const NAME: &'static str = "gateway-chat";
    const DOMAIN: &'static str = "gateway";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3002;
    const CAPABILITIES: &'static [&'static str] = &["chat", "code-graph-questions", "citations"];
    const ROUTE: Option<Route> = Some(routes::CHAT);
    type Settings = Settings;

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        let search = Arc::new(if settings.has_embedding_model() {
            let guard = settings.embedding_guard(frame.dependencies())?;
            Search::with_model(frame.pool().clone(), settings.model()?, guard)
        } else {
            Search::without_model(frame.pool().clone())
        });
        if !search.connect().await {
            let search = Arc::clone(&search);
            frame.chore("connect-embedder", TRY_AGAIN, move || {
                let search = Arc::clone(&search);
                async move {
                    let was_waiting = search.is_waiting();
                    let reached = search.connect().await;
                    Ok((was_waiting && reached).then(|| "embedding model reached".to_owned()))
                }
            });
        }
        let asked = Arc::clone(&search);
        frame.probe(Spec::new("embedding model", Kind::Advisory), move || {
            std::future::ready(if asked.is_waiting() { Err("it was not reached yet".to_owned()) } else { Ok(()) })
        });
        let writing = settings.writing(frame.dependencies())?;
        match &writing.model {
            Some(_) => info!(model = settings.model_chat, "answers are written by a model"),
            None => info!("no chat model configured: answers are verbatim lines"),
        }
        let live = Arc::new(Live::new(frame.bus().clone(), frame.stop().soft().clone()));
        frame.routes(router(Arc::clone(&live)));
        let writers = Arc::new(Writers::new(writing));
        let (known, made, current) =
            (Dependencies::clone(frame.dependencies()), frame.dependencies().clone(), Arc::clone(&writers));
        frame.reconfigurable(
            LIVE,
            move |settings| settings.writing(&known).map(drop).map_err(|error| format!("{error:#}")),
            move |settings| {
                let changed = settings.writing(&made).map(|writing| current.replace(writing));
                std::future::ready(changed.map_err(|error| format!("{error:#}")))
            },
        );
        frame.worker(Chat::new(Parts { pool: frame.pool().clone(), search, writers, live }));
        Ok(())
    }
}

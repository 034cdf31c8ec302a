//! gateway-chat as a process of the fleet.

use std::{sync::Arc, time::Duration};

use cogo_contracts::{Route, routes};
use cogo_model_client::OpenAi;
use cogo_service_runtime::{Frame, Service};
use tracing::info;

use crate::{Chat, Live, Parts, Search, Settings, live::router};

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
        let client = settings.model()?;
        let search = Arc::new(if settings.has_embedding_model() {
            Search::with_model(frame.pool().clone(), client.clone())
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
        let model = if settings.has_chat_model() { Some(OpenAi::new(client)?) } else { None };
        match &model {
            Some(_) => info!(model = settings.model_chat, "answers are written by a model"),
            None => info!("no chat model configured: answers are verbatim lines"),
        }
        let live = Arc::new(Live::new(frame.bus().clone(), frame.stop().soft().clone()));
        frame.routes(router(Arc::clone(&live)));
        let limits = settings.writing_limits();
        frame.worker(Chat::new(Parts { pool: frame.pool().clone(), search, model, limits, live }));
        Ok(())
    }
}

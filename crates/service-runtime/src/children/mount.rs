//! How a service owns children: the route of its HTTP side, and who may knock there.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{Extensions, HeaderMap},
    response::Response,
    routing::get,
};
use cogo_contracts::Problem;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::info;

use super::{
    attend,
    parent::{Children, ChildrenSettings, FromChild},
    protocol::MAX_FRAME_BYTES,
};
use crate::{ApiError, Frame, expect_this_machine};

/// Where children live on the HTTP side of their parent.
const PATH: &str = "/children";

/// From where children may connect. Wherever that is, each needs the agent key of its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildAccess {
    /// From nowhere: the process owns no children.
    Off,
    /// From this machine, and by no page of another one in a browser on it.
    #[default]
    Local,
    /// From anywhere that reaches the process.
    Anywhere,
}

impl<S> Frame<S> {
    /// Lets agents of level 3 connect at `GET /children` and stand in the registry through this process, as the setting
    /// `children` says; none when it says `off`. All that a service has to do that owns children and has nothing else to
    /// say to them: what the registry wants of them they are told.
    pub fn owns_children(&mut self) -> Option<Children> {
        let access = self.common.children;
        let domain = self.domain;
        if access == ChildAccess::Off {
            info!("no agents of level 3 are let in (children = \"off\")");
            return None;
        }
        let allowed_absence = Duration::from_millis(self.common.child_absence_ms);
        let settings = ChildrenSettings { access, allowed_absence, ..ChildrenSettings::of_domain(domain) };
        // nobody reads what they send
        let (children, _) = self.children(settings);
        Some(children)
    }

    /// The same for a service that talks to its children: answers the handle on them and what they send.
    pub fn children(&mut self, settings: ChildrenSettings) -> (Children, mpsc::Receiver<FromChild>) {
        match settings.access {
            ChildAccess::Off => info!("no agents of level 3 are let in"),
            ChildAccess::Local => info!(
                "agents of level 3 may connect at ws://{}{PATH} from this machine only, each with the key of its name \
                 (children = \"local\")",
                self.address
            ),
            ChildAccess::Anywhere => info!(
                "agents of level 3 may connect at {}{PATH} from anywhere, each with the key of its name (children = \
                 \"anywhere\")",
                self.address
            ),
        }
        let (pool, view) = (self.pool().clone(), self.follow_registry());
        let (stop, tracker) = (self.stop.soft().clone(), self.tracker.clone());
        let (children, received) = Children::new(pool, self.member.clone(), view, settings, stop, tracker);
        self.routes(children.router());
        (children, received)
    }
}

impl Children {
    /// The route `GET /children`, a WebSocket. It must know who calls, by [`ConnectInfo`], unless children may connect
    /// from anywhere.
    pub fn router(&self) -> Router {
        match self.0.settings.access {
            ChildAccess::Off => Router::new(),
            ChildAccess::Local | ChildAccess::Anywhere => {
                Router::new().route(PATH, get(connect)).with_state(self.clone())
            }
        }
    }
}

async fn connect(
    State(children): State<Children>,
    headers: HeaderMap,
    extensions: Extensions,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let is_local = peer.is_some_and(|peer| peer.is_loopback()) && expect_this_machine(&headers).is_ok();
    if children.0.settings.access == ChildAccess::Local && !is_local {
        let detail = "Agents of level 3 are let in from this machine only";
        let problem = Problem::new(403, "this-machine-only", "Open to this machine only", detail);
        return Err(problem.hint("Set COGO_CHILDREN=anywhere; each agent needs the key of its name").into());
    }
    let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let Ok(stranger) = Arc::clone(&children.0.strangers).try_acquire_owned() else {
        let detail = "As many connections as this process takes at once have not introduced themselves yet";
        return Err(Problem::new(503, "busy", "Too many new connections", detail).into());
    };
    let tracker = children.0.tracker.clone();
    let upgrade = upgrade.max_message_size(MAX_FRAME_BYTES).max_frame_size(MAX_FRAME_BYTES);
    Ok(upgrade.on_upgrade(move |socket| tracker.track_future(attend::attend(socket, children, stranger))))
}

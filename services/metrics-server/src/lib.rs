//! What the fleet does, for people and for Prometheus: figures, lists, a live stream and one page. Reads only.
//!
//! Every figure comes from Postgres at the moment of asking, so it survives restarts and equals the rows.

mod api;
mod live;
mod page;
mod scrape;
mod service;
mod snapshot;

pub use api::{Console, router};
pub use service::{MetricsServer, ServiceSettings};

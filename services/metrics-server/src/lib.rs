//! What the fleet does, for people and for Prometheus: figures, lists, a live stream and one page. Reads only.
//!
//! Every figure of the bus comes from Postgres at the moment of asking, so it survives restarts and equals the rows;
//! those of single agents come from their beats and from what they tell at that moment. Events of the supervision tree go on
//! counting, while this process lives, when retention has removed their rows.

mod agents;
mod api;
mod live;
mod page;
mod scrape;
mod service;
mod snapshot;
mod tree;

pub use api::{Console, router};
pub use service::{MetricsServer, ServiceSettings};

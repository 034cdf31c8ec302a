//! What the runs of the peers come to: their medians and ours divided by theirs.

use serde::Serialize;

use crate::{
    command::{
        bench_bus_mixed::Pair,
        bench_bus_peers::Peer,
        bench_bus_report::{OneRun, median, rounded},
        bench_bus_runtime::RuntimeDrain,
    },
    output::table,
};

/// Medians of a peer over the runs; a ratio is ours divided by the peer's, the median of the ratios within the runs.
#[derive(Debug, Serialize)]
pub(crate) struct PeerReport {
    peer: String,
    enqueue_per_s: Option<f64>,
    drain_per_s: Option<f64>,
    mixed_per_s: Option<f64>,
    /// Ours right before or after that.
    our_mixed_per_s: Option<f64>,
    enqueue_ratio: Option<f64>,
    drain_ratio: Option<f64>,
    /// Ours through the runtime of a worker divided by its drain, which most peers have through theirs.
    runtime_drain_ratio: Option<f64>,
    mixed_ratio: Option<f64>,
    /// Of turns of a second each with the same client, if it can be driven so.
    enqueue_in_turns_ratio: Option<f64>,
    drain_in_turns_ratio: Option<f64>,
    /// Our mixed load divided by its drain, when nobody sends to it; the only comparison if there is no mixed run of it.
    mixed_to_its_drain_ratio: Option<f64>,
    no_mixed_run: Option<String>,
    failed: Option<String>,
}

impl PeerReport {
    /// A peer ran after each of our runs, so the ratio of each pair is of one moment.
    pub(crate) fn new(runs: &[OneRun], drains: &[RuntimeDrain], peer: &Peer) -> Self {
        let of = |figures: Vec<f64>| median(figures).map(rounded);
        let pairs = || runs.iter().zip(&peer.runs);
        let mixed = || peer.beside_us.mixed.iter();
        let ratio = |pairs: &[Pair]| of(pairs.iter().map(|pair| pair.our_per_s / pair.its_per_s).collect());
        Self {
            peer: peer.name.clone(),
            enqueue_per_s: of(peer.runs.iter().map(|run| run.enqueue_per_s).collect()),
            drain_per_s: of(peer.runs.iter().map(|run| run.process_per_s).collect()),
            mixed_per_s: of(mixed().map(|run| run.its_per_s).collect()),
            our_mixed_per_s: of(mixed().map(|run| run.our_per_s).collect()),
            enqueue_ratio: of(pairs().map(|(our, its)| our.enqueue_per_s / its.enqueue_per_s).collect()),
            drain_ratio: of(pairs().map(|(our, its)| our.drain_per_s / its.process_per_s).collect()),
            runtime_drain_ratio: of(drains
                .iter()
                .zip(&peer.runs)
                .map(|(our, its)| our.per_s / its.process_per_s)
                .collect()),
            mixed_ratio: ratio(&peer.beside_us.mixed),
            enqueue_in_turns_ratio: ratio(&peer.beside_us.enqueue),
            drain_in_turns_ratio: ratio(&peer.beside_us.drain),
            mixed_to_its_drain_ratio: of(pairs().map(|(our, its)| our.mixed_per_s / its.process_per_s).collect()),
            no_mixed_run: peer.no_mixed_run.clone(),
            failed: peer.failed.clone(),
        }
    }

    fn remark(&self) -> String {
        match (&self.failed, &self.no_mixed_run, self.mixed_to_its_drain_ratio) {
            (Some(why), _, _) => format!("failed: {why}"),
            (None, Some(why), Some(ratio)) => {
                format!("no mixed run: {why}; our mixed load to its drain alone: {ratio:.2}")
            }
            (None, Some(why), None) => format!("no mixed run: {why}"),
            (None, None, _) => match (self.enqueue_in_turns_ratio, self.drain_in_turns_ratio) {
                (Some(enqueue), Some(drain)) => {
                    format!("in turns of a second: {enqueue:.2} of its enqueue, {drain:.2} of its drain")
                }
                _ => String::new(),
            },
        }
    }
}

/// The table for people, and below it what is to be said of some of the peers.
pub(crate) fn peers_table(peers: &[PeerReport]) -> String {
    let whole = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.0}"));
    let ratio = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
    let mut text = table(
        [
            "peer",
            ">enqueue/s",
            ">drain/s",
            ">mixed/s",
            ">ours to its enqueue",
            ">its drain",
            ">by a worker",
            ">its mixed",
        ],
        peers.iter().map(|peer| {
            [
                peer.peer.clone(),
                whole(peer.enqueue_per_s),
                whole(peer.drain_per_s),
                whole(peer.mixed_per_s),
                ratio(peer.enqueue_ratio),
                ratio(peer.drain_ratio),
                ratio(peer.runtime_drain_ratio),
                ratio(peer.mixed_ratio),
            ]
        }),
    );
    for peer in peers {
        let remark = peer.remark();
        if !remark.is_empty() {
            text.push_str(&format!("\n{}: {remark}", peer.peer));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> PeerReport {
        PeerReport {
            peer: "queue".to_owned(),
            enqueue_per_s: Some(100.0),
            drain_per_s: Some(50.0),
            mixed_per_s: Some(40.0),
            our_mixed_per_s: Some(60.0),
            enqueue_ratio: Some(2.0),
            drain_ratio: Some(1.5),
            runtime_drain_ratio: Some(1.2),
            mixed_ratio: Some(1.5),
            enqueue_in_turns_ratio: None,
            drain_in_turns_ratio: None,
            mixed_to_its_drain_ratio: Some(1.2),
            no_mixed_run: None,
            failed: None,
        }
    }

    #[test]
    fn a_peer_without_a_mixed_run_is_compared_by_its_drain_and_says_why() {
        assert!(peers_table(&[report()]).ends_with("1.50"), "nothing is to be said of a full row");
        let in_turns = PeerReport { enqueue_in_turns_ratio: Some(0.9), drain_in_turns_ratio: Some(1.8), ..report() };
        let text = peers_table(&[in_turns]);
        assert!(text.ends_with("queue: in turns of a second: 0.90 of its enqueue, 1.80 of its drain"), "{text}");
        let closed = PeerReport { mixed_ratio: None, no_mixed_run: Some("closed".to_owned()), ..report() };
        let text = peers_table(&[closed]);
        assert!(text.ends_with("queue: no mixed run: closed; our mixed load to its drain alone: 1.20"), "{text}");
        let broken = PeerReport { failed: Some("no server".to_owned()), ..report() };
        assert!(peers_table(&[broken]).ends_with("queue: failed: no server"));
    }
}

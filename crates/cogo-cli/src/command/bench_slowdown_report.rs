//! What the pairs of measurements come to: medians, speeds beside the empty bus, and how a long transaction told on it.

use serde::Serialize;

use crate::{
    command::{
        bench_bus_database::ServerSettings,
        bench_slowdown_circumstance::Circumstance,
        bench_slowdown_held::Moment,
        bench_slowdown_measure::{Figures, Pace},
        bench_slowdown_tenants::Crowd,
    },
    failure::Failure,
    output::table,
};

/// One circumstance, measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Examined {
    pub(crate) circumstance: Circumstance,
    /// Messages, routes, or seconds.
    pub(crate) size: u64,
    /// How many of them the database had; of the transaction, how many were open; of the tenants, the big one's messages.
    pub(crate) counted: i64,
    /// What it took to make it.
    pub(crate) prepared_s: f64,
    pub(crate) empty: Figures,
    pub(crate) under: Figures,
    /// 1 is as fast as the empty bus, less is slower; medians of the ratios within the pairs.
    pub(crate) speed_ratio: Figures,
    pub(crate) lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crowd: Option<Crowd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) over_time: Vec<Moment>,
}

impl Examined {
    /// The figures of pairs `(empty, under)`.
    pub(crate) fn of<'a>(circumstance: Circumstance, size: u64, pairs: &[(&'a Figures, &'a Figures)]) -> Self {
        let ratios: Vec<Figures> = pairs.iter().map(|(empty, under)| under.speed_beside(empty)).collect();
        Self {
            circumstance,
            size,
            counted: 0,
            prepared_s: 0.0,
            empty: Figures::median(pairs.iter().map(|(empty, _)| *empty)),
            under: Figures::median(pairs.iter().map(|(_, under)| *under)),
            speed_ratio: Figures::median(&ratios),
            lost: 0,
            crowd: None,
            over_time: Vec::new(),
        }
    }

    /// A line for the person who waits.
    pub(crate) fn summary(&self) -> String {
        let of = |name: &str| self.speed_ratio.get(name).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        format!(
            "{}: speed beside the empty bus: enqueue {}, drain {}, send {}, claim {}, complete {}",
            self.circumstance.title(self.size),
            of("enqueue_per_s"),
            of("drain_per_s"),
            of("send_p50_ms"),
            of("claim_p50_ms"),
            of("complete_p50_ms")
        )
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    messages: u32,
    steps: u32,
    runs: u16,
    producers: u16,
    consumers: u16,
    batch: u16,
    payload_bytes: u32,
    server: ServerSettings,
    circumstances: Vec<Examined>,
    lost: u64,
}

impl Report {
    pub(crate) fn new(pace: Pace, server: ServerSettings, circumstances: Vec<Examined>) -> Self {
        Self {
            messages: pace.plan.messages,
            steps: pace.steps,
            runs: pace.runs,
            producers: pace.plan.producers,
            consumers: pace.plan.consumers,
            batch: pace.plan.batch,
            payload_bytes: pace.plan.payload_bytes,
            server,
            lost: circumstances.iter().map(|one| one.lost).sum(),
            circumstances,
        }
    }

    /// How slow is too slow is for the reader; a lost message is not.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        match self.lost {
            0 => Ok(()),
            lost => Err(Failure::failed(format!("{lost} messages were lost"))),
        }
    }
}

/// The tables for people.
pub(crate) fn readable(report: &Report) -> String {
    let mut parts = vec![format!(
        "{} messages in batches of {}, then {} one by one; medians of {}; speed 1 is as fast as the empty bus; Postgres {}{}",
        report.messages,
        report.batch,
        report.steps,
        report.runs,
        report.server.version,
        if report.server.durable { "" } else { ", not durable" }
    )];
    for examined in &report.circumstances {
        parts.push(examined.circumstance.title(examined.size));
        parts.push(figures_table(examined));
        if let Some(crowd) = &examined.crowd {
            parts.push(format!(
                "{:.1} % were the big tenant's and waited {:.0} ms (p50); the {} of the others were all handed out within \
                 the first {:.0} % of the messages",
                crowd.share_of_the_big_one * 100.0,
                crowd.big_wait_p50_ms,
                crowd.messages_of_others,
                crowd.others_handed_out_within * 100.0
            ));
        }
        if !examined.over_time.is_empty() {
            parts.push(moments_table(&examined.over_time));
        }
    }
    parts.join("\n\n")
}

fn figures_table(examined: &Examined) -> String {
    let cell = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
    table(
        ["figure", ">empty", ">under it", ">speed"],
        examined.under.names().map(|name| {
            [
                name.to_owned(),
                cell(examined.empty.get(name)),
                cell(examined.under.get(name)),
                cell(examined.speed_ratio.get(name)),
            ]
        }),
    )
}

fn moments_table(moments: &[Moment]) -> String {
    let cell = |figures: &Figures, name: &str| {
        figures.get(name).map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"))
    };
    table(
        [
            ">s",
            "held",
            ">dead in ready",
            ">in claims",
            ">drain/s",
            ">claim ms",
            ">empty bus",
            ">claim pages",
            ">empty claim pages",
            ">complete pages",
        ],
        moments.iter().map(|moment| {
            [
                format!("{:.0}", moment.at_s),
                if moment.is_held { "yes" } else { "no" }.to_owned(),
                moment.left.dead_in_ready.to_string(),
                moment.left.dead_in_claims.to_string(),
                cell(&moment.under, "drain_per_s"),
                cell(&moment.under, "claim_p50_ms"),
                cell(&moment.empty, "claim_p50_ms"),
                cell(&moment.under, "claim_pages"),
                cell(&moment.under, "empty_claim_pages"),
                cell(&moment.under, "complete_pages"),
            ]
        }),
    )
}

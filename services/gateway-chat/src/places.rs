//! A structural answer in the making: a sentence, places with lines, and what is not known.

use std::{collections::BTreeMap, fmt::Write as _};

use cogo_contracts::{ChatMode, ChatReply, Citation};
use cogo_kg_core::GraphNode;
use cogo_rag_core::Lines;
use sqlx::PgPool;

use crate::{
    indexed::cite,
    reply::{counted, free},
};

/// Most places that an answer lists; the sentence above them counts all.
pub(crate) const MAX_PLACES: usize = 25;
/// References are one line long nearly always; a longer text is cut.
const MAX_TEXT_CHARS: usize = 160;

/// A place that the answer lists.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) lines: Lines,
    /// What stands there.
    pub(crate) text: String,
    /// Remarks in brackets.
    pub(crate) remarks: Vec<String>,
    /// Where it is, if not in the collection of the answer.
    collection: Option<String>,
}

impl Place {
    pub(crate) fn new(path: &str, start: i32, end: i32, text: &str) -> Self {
        let start = start.unsigned_abs().max(1);
        let lines = Lines { path: path.to_owned(), start, end: end.unsigned_abs().max(start) };
        Self { lines, text: text.to_owned(), remarks: Vec::new(), collection: None }
    }

    pub(crate) fn remark(mut self, condition: bool, remark: impl Into<String>) -> Self {
        if condition {
            self.remarks.push(remark.into());
        }
        self
    }

    pub(crate) fn in_collection(mut self, collection: &str) -> Self {
        self.collection = Some(collection.to_owned());
        self
    }

    /// Takes over what another place says about the same lines.
    pub(crate) fn absorb(&mut self, other: Self) {
        let text = other.text.strip_prefix("use ").unwrap_or(&other.text);
        if !self.text.contains(text) && self.text.len() < MAX_TEXT_CHARS {
            self.text = format!("{}, {text}", self.text);
        }
        for remark in other.remarks {
            if !self.remarks.contains(&remark) {
                self.remarks.push(remark);
            }
        }
    }
}

/// A group of places under a heading of its own.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Stands above the list; empty for the first one, which the answer's sentence introduces.
    heading: String,
    places: Vec<Place>,
    /// Places that are not listed.
    left_out: usize,
}

/// Everything that an answer is made of.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) collection: String,
    pub(crate) sentence: String,
    pub(crate) sections: Vec<Section>,
    pub(crate) notes: Vec<String>,
}

impl Draft {
    pub(crate) fn new(collection: &str, sentence: String) -> Self {
        Self { collection: collection.to_owned(), sentence, sections: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn section(mut self, heading: impl Into<String>, places: Vec<Place>) -> Self {
        if !places.is_empty() {
            self.sections.push(Section { heading: heading.into(), places, left_out: 0 });
        }
        self
    }

    pub(crate) fn note(mut self, note: Option<String>) -> Self {
        self.notes.extend(note);
        self
    }

    /// Numbers the places whose lines are indexed and writes the answer.
    pub(crate) async fn finish(mut self, pool: &PgPool, tenant: &str) -> anyhow::Result<ChatReply> {
        self.shorten();
        let mut cited = self.cited(pool, tenant).await?.into_iter();
        let mut answer = self.sentence.clone();
        let mut citations: Vec<Citation> = Vec::new();
        let mut uncited = 0;
        for section in &self.sections {
            if !section.heading.is_empty() {
                // writing to a string cannot fail
                let _ = write!(answer, "\n{}", section.heading);
            }
            for place in &section.places {
                let mark = match cited.next().flatten() {
                    Some(citation) => mark_of(&mut citations, citation),
                    None => {
                        uncited += 1;
                        String::new()
                    }
                };
                let _ = write!(answer, "\n- {}{mark}", line_of(place));
            }
            if section.left_out > 0 {
                let _ = write!(answer, "\n- and {}", counted(section.left_out, "more place"));
            }
        }
        if uncited > 0 {
            let _ = write!(
                answer,
                "\n{} without a citation: the text index does not hold the content that the graph was built from.",
                counted(uncited, "place")
            );
        }
        for note in &self.notes {
            let _ = write!(answer, "\n{note}");
        }
        Ok(free(ChatMode::Graph, answer, citations))
    }

    /// The citation of each place, in order.
    async fn cited(&self, pool: &PgPool, tenant: &str) -> anyhow::Result<Vec<Option<Citation>>> {
        let collection_of = |place: &Place| place.collection.clone().unwrap_or_else(|| self.collection.clone());
        let mut by_collection: BTreeMap<String, Vec<(usize, Lines)>> = BTreeMap::new();
        for (index, place) in self.places().enumerate() {
            by_collection.entry(collection_of(place)).or_default().push((index, place.lines.clone()));
        }
        let mut all = vec![None; self.places().count()];
        for (collection, places) in by_collection {
            let (indexes, lines): (Vec<usize>, Vec<Lines>) = places.into_iter().unzip();
            let cited = cite(pool, tenant, &collection, &lines).await?;
            for (index, citation) in indexes.into_iter().zip(cited) {
                all[index] = citation;
            }
        }
        Ok(all)
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.sections.iter().flat_map(|section| &section.places)
    }

    /// Keeps the first places of each section: an equal share for all, and what one does not need goes to the others.
    fn shorten(&mut self) {
        let share = (MAX_PLACES / self.sections.len().max(1)).max(1);
        let needed: usize = self.sections.iter().map(|section| section.places.len().min(share)).sum();
        let mut spare = MAX_PLACES.saturating_sub(needed);
        for section in &mut self.sections {
            let length = section.places.len();
            let kept = length.min(share + spare);
            spare -= kept.saturating_sub(share);
            section.places.truncate(kept);
            section.left_out = length - kept;
        }
    }
}

/// The number of the citation, which is added unless the same lines are cited already.
fn mark_of(citations: &mut Vec<Citation>, citation: Citation) -> String {
    let known = citations.iter().position(|other| *other == citation);
    let index = known.unwrap_or_else(|| {
        citations.push(citation);
        citations.len() - 1
    });
    format!(" [{}]", index + 1)
}

fn line_of(place: &Place) -> String {
    let Lines { path, start, end } = &place.lines;
    let range = if start == end { start.to_string() } else { format!("{start}-{end}") };
    let text: String = place.text.chars().take(MAX_TEXT_CHARS).collect();
    let shown = if text.is_empty() { String::new() } else { format!(" `{}`", text.replace('`', "'")) };
    let remarks = if place.remarks.is_empty() { String::new() } else { format!(" ({})", place.remarks.join(", ")) };
    format!("{path}:{range}{shown}{remarks}")
}

/// `` `bus_core::claim::Claim` (struct, bus-core/src/claim.rs:7)``.
pub(crate) fn described(node: &GraphNode) -> String {
    let place = match (&node.path, node.is_definition()) {
        (Some(path), true) => format!("{}, {path}:{}", node.kind, node.start_line),
        (Some(path), false) => format!("{}, {path}", node.kind),
        (None, _) => node.kind.clone(),
    };
    format!("`{}` ({place})", node.qualified_name)
}

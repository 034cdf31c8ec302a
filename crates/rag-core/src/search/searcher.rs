//! Puts the parts of a search together.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sqlx::{PgConnection, PgPool};

use super::{
    Components, Passage, Retrieved, Terms,
    candidates::{self, Candidate},
    lexical::{self, Scope, Vocabulary},
    question::Question,
    rank::{Ranked, Signals, rank},
    reading::{Reader, Reading},
    vectors::VectorCache,
};
use crate::{echo::Asked, embed::Embedder, store::Error, tokens::Tokenizer};

/// Chunks that come into ranking by their vectors alone.
const DENSE_CANDIDATES: usize = 100;
/// Candidates whose lines are read before any is answered.
const FIRST_READ: usize = 32;

/// Answers searches of one process; holds the vectors that it has read.
pub struct Searcher {
    pool: PgPool,
    embedder: Option<Arc<dyn Embedder>>,
    tokenizer: Tokenizer,
    vectors: VectorCache,
}

impl Searcher {
    /// A searcher that compares meaning by `embedder`, or words only without one.
    #[must_use]
    pub fn new(pool: PgPool, embedder: Option<Arc<dyn Embedder>>) -> Self {
        Self { pool, embedder, tokenizer: Tokenizer::default(), vectors: VectorCache::default() }
    }

    /// The best `limit` passages of one collection, or of all collections of the tenant.
    ///
    /// An embedder that fails costs the dense part of the scores, not the answer.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn search(
        &self,
        tenant: &str,
        collection: Option<&str>,
        question: &str,
        limit: usize,
    ) -> Result<Retrieved, Error> {
        let question_vector = self.embed(question).await;
        let asked = question;
        let question = Question::parse(&self.tokenizer, asked);
        let mut connection = self.pool.acquire().await?;
        let scopes = lexical::scopes(&mut connection, tenant, collection).await?;
        let scope_ids: Vec<i64> = scopes.iter().map(|scope| scope.scope_id).collect();
        let weights = question.weights();
        let terms: Vec<&str> = weights.keys().copied().collect();
        let vocabulary = Vocabulary::load(&mut connection, tenant, &scopes, &terms).await?;
        let best = vocabulary.best(&mut connection, tenant, &scopes, &weights).await?;
        let bm25: HashMap<i64, f64> = best.into_iter().collect();

        let mut chunk_ids: HashSet<i64> = bm25.keys().copied().collect();
        let names = names(&question);
        if !names.is_empty() {
            chunk_ids.extend(candidates::named(&mut connection, tenant, &scope_ids, &names).await?);
        }
        let mut of_named_files = HashSet::new();
        if !question.paths.is_empty() {
            let paths: Vec<String> = question.paths.iter().cloned().collect();
            of_named_files.extend(candidates::of_files(&mut connection, tenant, &scope_ids, &paths).await?);
            chunk_ids.extend(&of_named_files);
        }
        let semantic = question_vector.is_some() && self.embedder.as_ref().is_some_and(|embedder| !embedder.degraded());
        if let (true, Some(vector), Some(embedder)) = (semantic, &question_vector, &self.embedder) {
            let identity = embedder.identity();
            let nearest = self.vectors.nearest(&mut connection, tenant, &scopes, identity, vector, DENSE_CANDIDATES);
            chunk_ids.extend(nearest.await?);
        }
        let chunk_ids: Vec<i64> = chunk_ids.into_iter().collect();
        let identity = self.embedder.as_ref().map(|embedder| embedder.identity());
        let candidates = candidates::load(&mut connection, tenant, &chunk_ids, identity).await?;
        let dense = question_vector.as_deref().zip(self.embedder.as_ref().map(|embedder| embedder.weight()));
        let (words, chunk_count) = (vocabulary.words(&question), chunk_count(&scopes));
        let reader = Reader {
            tokenizer: &self.tokenizer,
            asked: Asked::of(&self.tokenizer, asked),
            terms: Terms::of(&words, chunk_count),
        };
        let no_readings = HashMap::new();
        let signals = Signals {
            question: &question,
            bm25: &bm25,
            dense,
            of_named_files: &of_named_files,
            readings: &no_readings,
        };
        let passages = read_and_rank(&mut connection, tenant, &candidates, signals, &reader, limit).await?;
        Ok(Retrieved { question: asked.to_owned(), passages, words, chunk_count, semantic })
    }

    /// Definitions named `symbol`, simple (`claim`) or qualified (`Bus::claim`, `Bus.claim`), whatever the case.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn passages_for_symbol(
        &self,
        tenant: &str,
        collection: Option<&str>,
        symbol: &str,
        limit: usize,
    ) -> Result<Vec<Passage>, Error> {
        let wanted = symbol.replace("::", ".").replace(['\0', '`', '(', ')'], "").to_lowercase();
        let simple = wanted.rsplit('.').next().unwrap_or(&wanted).to_owned();
        let mut connection = self.pool.acquire().await?;
        let scopes = lexical::scopes(&mut connection, tenant, collection).await?;
        let scope_ids: Vec<i64> = scopes.iter().map(|scope| scope.scope_id).collect();
        let chunk_ids = candidates::named(&mut connection, tenant, &scope_ids, &[simple]).await?;
        let mut found = candidates::load(&mut connection, tenant, &chunk_ids, None).await?;
        found.retain(|candidate| is_called(candidate, &wanted));
        // The definition before the impl blocks and comments that stand under the same name.
        found.sort_by_key(|candidate| (matches!(candidate.kind.as_str(), "impl" | "comment"), candidate.chunk_id));
        found.truncate(limit);
        let kept: Vec<i64> = found.iter().map(|candidate| candidate.chunk_id).collect();
        let mut texts = candidates::texts(&mut connection, tenant, &kept).await?;
        let ranked = found.iter().map(|candidate| {
            let components = Components { symbol: 1.0, ..Components::default() };
            Ranked { candidate, score: 1.0, components }
        });
        Ok(ranked.filter_map(|entry| passage(&entry, &mut texts)).collect())
    }

    async fn embed(&self, question: &str) -> Option<Vec<f32>> {
        let embedder = self.embedder.as_ref()?;
        match embedder.embed(&[question.to_owned()]).await {
            Ok(mut vectors) => vectors.pop().filter(|vector| vector.len() == embedder.dimensions()),
            Err(error) => {
                let error = format!("{:#}", ErrorChain(&error));
                tracing::warn!(error, "embed question, searching by words only");
                None
            }
        }
    }
}

/// An error with its causes on one line.
struct ErrorChain<'error>(&'error dyn std::error::Error);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Lower-case simple names that definitions are looked up by.
fn names(question: &Question) -> Vec<String> {
    let identifiers = question.identifiers.iter().filter_map(|name| name.rsplit('.').next());
    let mut names: Vec<String> =
        identifiers.map(str::to_lowercase).chain(question.possible_names.iter().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn is_called(candidate: &Candidate, wanted: &str) -> bool {
    let simple = candidate.symbol.as_deref().unwrap_or("").to_lowercase();
    let qualified = candidate.qualified_name.as_deref().unwrap_or("").replace("::", ".").to_lowercase();
    simple == wanted || qualified == wanted || qualified.ends_with(&format!(".{wanted}"))
}

fn chunk_count(scopes: &[Scope]) -> u64 {
    scopes.iter().map(|scope| scope.chunk_count.unsigned_abs()).sum()
}

/// Ranks by counts, reads the first candidates and ranks again, until all that would be answered have been read.
async fn read_and_rank(
    connection: &mut PgConnection,
    tenant: &str,
    candidates: &[Candidate],
    signals: Signals<'_>,
    reader: &Reader<'_>,
    limit: usize,
) -> Result<Vec<Passage>, sqlx::Error> {
    let mut texts: HashMap<i64, String> = HashMap::new();
    let mut readings: HashMap<i64, Reading> = HashMap::new();
    loop {
        let signals = Signals { readings: &readings, ..signals };
        // The first time more are read than are wanted, since reading also moves candidates up.
        let depth = if readings.is_empty() { limit.max(FIRST_READ) } else { limit };
        let mut ranked = rank(candidates, &signals, depth);
        let unread: Vec<&Candidate> = ranked
            .iter()
            .map(|entry| entry.candidate)
            .filter(|candidate| !readings.contains_key(&candidate.chunk_id))
            .collect();
        if unread.is_empty() || limit == 0 {
            ranked.truncate(limit);
            return Ok(ranked.into_iter().filter_map(|entry| passage(&entry, &mut texts)).collect());
        }
        let chunk_ids: Vec<i64> = unread.iter().map(|candidate| candidate.chunk_id).collect();
        texts.extend(candidates::texts(connection, tenant, &chunk_ids).await?);
        let read = unread.into_iter().map(|candidate| {
            let text = texts.get(&candidate.chunk_id).map_or("", String::as_str);
            (candidate.chunk_id, reader.read(candidate, text))
        });
        let read: Vec<(i64, Reading)> = read.collect();
        readings.extend(read);
    }
}

fn passage(entry: &Ranked<'_>, texts: &mut HashMap<i64, String>) -> Option<Passage> {
    let Ranked { candidate, score, components } = *entry;
    Some(Passage {
        text: texts.remove(&candidate.chunk_id)?,
        collection: candidate.collection.clone(),
        path: candidate.path.clone(),
        language: candidate.language.clone(),
        is_start: candidate.part == 0 && candidate.kind != "members",
        kind: candidate.kind.clone(),
        symbol: candidate.qualified_name.clone(),
        heading: candidate.heading.clone(),
        start_line: candidate.start_line.cast_unsigned(),
        end_line: candidate.end_line.cast_unsigned(),
        sha256: hexadecimal(&candidate.content_sha256),
        score,
        components,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

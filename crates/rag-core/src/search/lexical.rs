//! BM25 over the postings.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::question::{Question, QuestionTerm, QuestionWord};

/// Saturation of repeated terms.
const K1: f64 = 1.2;
/// How much length counts.
const B: f64 = 0.75;
/// Shorter chunks count as this share of the mean length: a one-line constant must not win by being short.
const SHORTEST_SHARE: f64 = 0.7;
/// Chunks that go into ranking.
const CANDIDATES: i64 = 100;

/// A collection that is searched.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Scope {
    pub(super) scope_id: i64,
    pub(super) chunk_count: i64,
    pub(super) token_sum: i64,
    pub(super) version: i64,
}

/// One collection of the tenant, or all of them.
pub(super) async fn scopes(
    connection: &mut PgConnection,
    tenant: &str,
    collection: Option<&str>,
) -> Result<Vec<Scope>, sqlx::Error> {
    sqlx::query_as(
        "select scope_id, chunk_count, token_sum, version
           from public.rag_scopes
          where tenant = $1 and ($2::text is null or collection = $2) and chunk_count > 0
          order by scope_id",
    )
    .bind(tenant)
    .bind(collection)
    .fetch_all(connection)
    .await
}

/// The question's terms as these scopes know them.
pub(super) struct Vocabulary {
    known: Vec<KnownTerm>,
    frequencies: BTreeMap<String, u64>,
    chunk_count: u64,
}

#[derive(sqlx::FromRow)]
struct KnownTerm {
    term_id: i64,
    term: String,
    df: i64,
}

impl Vocabulary {
    /// Looks the terms up; frequencies are summed over the scopes.
    pub(super) async fn load(
        connection: &mut PgConnection,
        tenant: &str,
        scopes: &[Scope],
        terms: &[&str],
    ) -> Result<Self, sqlx::Error> {
        let ids: Vec<i64> = scopes.iter().map(|scope| scope.scope_id).collect();
        let known: Vec<KnownTerm> = sqlx::query_as(
            "select term_id, term, df
               from public.rag_terms
              where tenant = $1 and scope_id = any($2) and term = any($3)",
        )
        .bind(tenant)
        .bind(ids)
        .bind(terms)
        .fetch_all(connection)
        .await?;
        let mut frequencies: BTreeMap<String, u64> = BTreeMap::new();
        for term in &known {
            *frequencies.entry(term.term.clone()).or_default() += term.df.unsigned_abs();
        }
        let chunk_count = scopes.iter().map(|scope| scope.chunk_count.unsigned_abs()).sum();
        Ok(Self { known, frequencies, chunk_count })
    }

    /// The question's words with frequencies.
    pub(super) fn words(&self, question: &Question) -> Vec<QuestionWord> {
        let look_up = |term: &String| {
            let df = self.frequencies.get(term).copied().unwrap_or(0);
            QuestionTerm { term: term.clone(), df, idf: idf(self.chunk_count, df) }
        };
        question
            .words
            .iter()
            .map(|word| QuestionWord {
                raw: word.raw.clone(),
                joined: word.joined.as_ref().map(look_up),
                parts: word.parts.iter().map(look_up).collect(),
            })
            .collect()
    }

    /// The best chunks by BM25, best first.
    pub(super) async fn best(
        &self,
        connection: &mut PgConnection,
        tenant: &str,
        scopes: &[Scope],
        weights: &BTreeMap<&str, f64>,
    ) -> Result<Vec<(i64, f64)>, sqlx::Error> {
        let tokens: i64 = scopes.iter().map(|scope| scope.token_sum).sum();
        let mean_length = (tokens as f64 / self.chunk_count.max(1) as f64).max(1.0);
        let (mut term_ids, mut term_weights) = (Vec::new(), Vec::new());
        for known in &self.known {
            let df = self.frequencies.get(&known.term).copied().unwrap_or(0);
            term_ids.push(known.term_id);
            term_weights.push(weights.get(known.term.as_str()).copied().unwrap_or(0.0) * idf(self.chunk_count, df));
        }
        if term_ids.is_empty() {
            return Ok(Vec::new());
        }
        // The lateral with offset 0 makes the planner look each term up by the primary key, even without statistics.
        sqlx::query_as(
            "select c.chunk_id,
                    sum(q.weight * c.term_count * ($4 + 1)
                        / (c.term_count + $4 * (1 - $5 + $5 * greatest(c.chunk_length, $6) / $7))) as score
               from unnest($2::bigint[], $3::float8[]) as q (term_id, weight)
              cross join lateral (
                    select p.chunk_ids, p.term_counts, p.chunk_lengths
                      from public.rag_postings p
                     where p.tenant = $1 and p.term_id = q.term_id
                    offset 0) as p
              cross join lateral unnest(p.chunk_ids, p.term_counts, p.chunk_lengths)
                    as c (chunk_id, term_count, chunk_length)
              group by c.chunk_id
              order by score desc, c.chunk_id
              limit $8",
        )
        .bind(tenant)
        .bind(term_ids)
        .bind(term_weights)
        .bind(K1)
        .bind(B)
        .bind(SHORTEST_SHARE * mean_length)
        .bind(mean_length)
        .bind(CANDIDATES)
        .fetch_all(connection)
        .await
    }
}

/// Inverse document frequency, never negative.
fn idf(chunk_count: u64, df: u64) -> f64 {
    let (all, with) = (chunk_count as f64, (df as f64).min(chunk_count as f64));
    (1.0 + (all - with + 0.5) / (with + 0.5)).ln()
}

//! Vectors of a collection in memory, for embedders whose vectors mean more than the words.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::PgConnection;

use super::lexical::Scope;
use crate::embed::dot;

/// Collections kept; the one unused for the longest time goes first.
const MAX_SCOPES: usize = 8;
/// While a collection is being indexed its vectors are read again this often at most.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// Vectors by collection, all of one embedder.
#[derive(Default)]
pub(super) struct VectorCache {
    scopes: Mutex<HashMap<(String, i64), Arc<Matrix>>>,
}

struct Matrix {
    version: i64,
    loaded: Instant,
    dimensions: usize,
    chunk_ids: Vec<i64>,
    /// All vectors end to end.
    values: Vec<f32>,
}

impl VectorCache {
    /// The chunks nearest to `question`, in no particular order.
    pub(super) async fn nearest(
        &self,
        connection: &mut PgConnection,
        tenant: &str,
        scopes: &[Scope],
        identity: &str,
        question: &[f32],
        limit: usize,
    ) -> Result<Vec<i64>, sqlx::Error> {
        let mut scored: Vec<(f32, i64)> = Vec::new();
        for scope in scopes {
            let matrix = self.matrix(connection, tenant, scope, identity, question.len()).await?;
            let rows = matrix.values.chunks_exact(matrix.dimensions);
            scored.extend(rows.map(|row| dot(row, question)).zip(matrix.chunk_ids.iter().copied()));
        }
        if scored.len() > limit {
            scored.select_nth_unstable_by(limit, |left, right| right.0.total_cmp(&left.0));
            scored.truncate(limit);
        }
        Ok(scored.into_iter().map(|(_, chunk_id)| chunk_id).collect())
    }

    async fn matrix(
        &self,
        connection: &mut PgConnection,
        tenant: &str,
        scope: &Scope,
        identity: &str,
        dimensions: usize,
    ) -> Result<Arc<Matrix>, sqlx::Error> {
        let key = (tenant.to_owned(), scope.scope_id);
        let held = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(matrix) =
            held.filter(|matrix| matrix.version == scope.version || matrix.loaded.elapsed() < FRESH_FOR)
        {
            return Ok(matrix);
        }
        let rows: Vec<(i64, Vec<f32>)> = sqlx::query_as(
            "select chunk_id, embedding from public.code_vectors
              where tenant = $1 and scope_id = $2 and embedder = $3
             union all
             select chunk_id, embedding from public.vector_documents
              where tenant = $1 and scope_id = $2 and embedder = $3",
        )
        .bind(tenant)
        .bind(scope.scope_id)
        .bind(identity)
        .fetch_all(connection)
        .await?;
        let mut matrix = Matrix {
            version: scope.version,
            loaded: Instant::now(),
            dimensions: dimensions.max(1),
            chunk_ids: Vec::with_capacity(rows.len()),
            values: Vec::with_capacity(rows.len() * dimensions),
        };
        for (chunk_id, vector) in rows.into_iter().filter(|(_, vector)| vector.len() == dimensions) {
            matrix.chunk_ids.push(chunk_id);
            matrix.values.extend(vector);
        }
        let matrix = Arc::new(matrix);
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if scopes.len() >= MAX_SCOPES && !scopes.contains_key(&key) {
            let oldest = scopes.iter().min_by_key(|(_, held)| held.loaded).map(|(oldest, _)| oldest.clone());
            oldest.and_then(|oldest| scopes.remove(&oldest));
        }
        scopes.insert(key, Arc::clone(&matrix));
        Ok(matrix)
    }
}

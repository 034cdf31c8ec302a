//! The citation of a place in the code graph: its lines as they were indexed, if both know the same content.

use cogo_contracts::Citation;
use cogo_kg_core::CodeGraph;
use cogo_rag_core::{Lines, lines};
use sqlx::PgPool;

/// The citation of each place; none where the lines are not indexed, or where graph and index read different contents
/// of the file, so that the graph's line numbers cannot be trusted.
pub(crate) async fn cite(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    places: &[Lines],
) -> anyhow::Result<Vec<Option<Citation>>> {
    let paths: Vec<String> = places.iter().map(|place| place.path.clone()).collect();
    let of_graph = CodeGraph::new(pool.clone(), tenant, collection).content_hashes(&paths).await?;
    let stored = lines(pool, tenant, collection, places).await?;
    let citation = |(place, stored): (&Lines, Option<cogo_rag_core::StoredLines>)| {
        let stored = stored.filter(|stored| of_graph.get(&place.path) == Some(&stored.sha256))?;
        Some(Citation {
            path: place.path.clone(),
            start: place.start,
            end: place.end,
            collection: collection.to_owned(),
            sha256: stored.sha256,
            text: stored.text,
        })
    };
    Ok(places.iter().zip(stored).map(citation).collect())
}

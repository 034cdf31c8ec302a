//! Terms and postings, and the document frequencies that must stay exact.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::PgConnection;

use super::chunks::StoredChunk;

/// Changes of document frequencies by term, summed over a batch and written once.
pub(super) type Frequencies = BTreeMap<i64, i64>;

/// Removes the postings of these files and notes what their terms lose.
pub(super) async fn delete(
    connection: &mut PgConnection,
    tenant: &str,
    sources: &[i64],
    frequencies: &mut Frequencies,
) -> Result<(), sqlx::Error> {
    let lost: Vec<(i64, i64)> = sqlx::query_as(
        // Laterals with offset 0 look every key up by the primary key. Written as a plain join, the planner may walk
        // all postings once per key, since a table that was just filled has no statistics yet.
        "with keys as (
           select f.source_id, unnest(f.term_ids) as term_id
             from public.rag_sources f
            where f.tenant = $1 and f.source_id = any($2)),
         outdated as (
           select found.ctid
             from keys
            cross join lateral (
                  select p.ctid
                    from public.rag_postings p
                   where p.tenant = $1 and p.term_id = keys.term_id and p.source_id = keys.source_id
                  offset 0) as found),
         gone as (
           delete from public.rag_postings p
            using outdated
            where p.ctid = outdated.ctid
           returning p.term_id, cardinality(p.chunk_ids) as chunks)
         select term_id, sum(chunks)::bigint from gone group by term_id",
    )
    .bind(tenant)
    .bind(sources)
    .fetch_all(connection)
    .await?;
    for (term_id, chunks) in lost {
        *frequencies.entry(term_id).or_default() -= chunks;
    }
    Ok(())
}

/// Writes the postings of these chunks and notes what their terms gain.
pub(super) async fn insert(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    chunks: &[StoredChunk<'_>],
    frequencies: &mut Frequencies,
) -> Result<(), sqlx::Error> {
    let distinct: BTreeSet<&str> =
        chunks.iter().flat_map(|stored| stored.prepared.terms.keys().map(String::as_str)).collect();
    let ids = term_ids(connection, tenant, scope_id, distinct.into_iter().collect()).await?;
    let (mut terms, mut sources, mut chunk_ids, mut counts, mut lengths) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for stored in chunks {
        for (term, count) in &stored.prepared.terms {
            let Some(term_id) = ids.get(term) else { continue };
            *frequencies.entry(*term_id).or_default() += 1;
            terms.push(*term_id);
            sources.push(stored.source_id);
            chunk_ids.push(stored.chunk_id);
            counts.push(*count);
            lengths.push(stored.prepared.token_count);
        }
    }
    // The keys of a file's postings are kept with the file, for its next change.
    sqlx::query(
        "with posted as (
           insert into public.rag_postings
                  (tenant, scope_id, term_id, source_id, chunk_ids, term_counts, chunk_lengths)
           select $1, $2, term_id, source_id, array_agg(chunk_id), array_agg(term_count), array_agg(chunk_length)
             from unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::integer[], $7::integer[])
                  as p (term_id, source_id, chunk_id, term_count, chunk_length)
            group by term_id, source_id
           returning source_id, term_id),
         keys as (
           select source_id, array_agg(term_id) as term_ids from posted group by source_id),
         found as (
           select keys.term_ids, source.ctid
             from keys
            cross join lateral (
                  select f.ctid from public.rag_sources f
                   where f.tenant = $1 and f.source_id = keys.source_id
                  offset 0) as source)
         update public.rag_sources f
            set term_ids = found.term_ids
           from found
          where f.ctid = found.ctid",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(terms)
    .bind(sources)
    .bind(chunk_ids)
    .bind(counts)
    .bind(lengths)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the changed frequencies; a term that no chunk has any more is removed.
pub(super) async fn apply(
    connection: &mut PgConnection,
    tenant: &str,
    frequencies: &Frequencies,
) -> Result<(), sqlx::Error> {
    let (terms, deltas): (Vec<i64>, Vec<i64>) = frequencies.iter().filter(|(_, delta)| **delta != 0).unzip();
    if terms.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update public.rag_terms t
            set df = t.df + found.delta
           from (select d.delta, term.ctid
                   from unnest($2::bigint[], $3::bigint[]) as d (term_id, delta)
                  cross join lateral (
                        select k.ctid from public.rag_terms k
                         where k.tenant = $1 and k.term_id = d.term_id
                        offset 0) as term) as found
          where t.ctid = found.ctid",
    )
    .bind(tenant)
    .bind(&terms)
    .bind(deltas)
    .execute(&mut *connection)
    .await?;
    sqlx::query("delete from public.rag_terms where tenant = $1 and term_id = any($2) and df = 0")
        .bind(tenant)
        .bind(terms)
        .execute(connection)
        .await?;
    Ok(())
}

/// Keys of the terms, made where missing. No conflict can arise under the scope's lock.
async fn term_ids(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    terms: Vec<&str>,
) -> Result<HashMap<String, i64>, sqlx::Error> {
    let known: Vec<(String, i64)> = sqlx::query_as(
        "select term, term_id from public.rag_terms where tenant = $1 and scope_id = $2 and term = any($3)",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(&terms)
    .fetch_all(&mut *connection)
    .await?;
    let mut ids: HashMap<String, i64> = known.into_iter().collect();
    let missing: Vec<&str> = terms.into_iter().filter(|term| !ids.contains_key(*term)).collect();
    if !missing.is_empty() {
        let made: Vec<(String, i64)> = sqlx::query_as(
            "insert into public.rag_terms (tenant, scope_id, term, df)
             select $1, $2, term, 0 from unnest($3::text[]) as t (term)
             returning term, term_id",
        )
        .bind(tenant)
        .bind(scope_id)
        .bind(missing)
        .fetch_all(connection)
        .await?;
        ids.extend(made);
    }
    Ok(ids)
}

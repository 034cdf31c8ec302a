//! A tree of files that tests change, and an independent recount of everything the index says about itself.

use std::{collections::BTreeMap, fs, path::Path};

use cogo_rag_core::{SyncReport, sync};
use sqlx::{PgPool, Row};
use tempfile::TempDir;

pub(crate) const TENANT: &str = "acme";

/// A throw-away source tree.
pub(crate) struct Tree {
    directory: TempDir,
}

impl Tree {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self { directory: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(path, text)| tree.write(path, text));
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let full = self.root().join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(full, text).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.root().join(path)).unwrap();
    }

    pub(crate) async fn sync(&self, pool: &PgPool, collection: &str) -> SyncReport {
        sync(pool, TENANT, collection, self.root(), |_| {}).await.unwrap()
    }
}

/// Totals and document frequencies must equal what a recount of the rows gives.
pub(crate) async fn check_recount(pool: &PgPool) {
    let wrong_totals: Vec<String> = sqlx::query_scalar(
        "select s.collection
           from public.rag_scopes s
           left join lateral (
             select count(*) as chunks, coalesce(sum(token_count), 0) as tokens
               from (select tenant, scope_id, token_count from public.code_vectors
                     union all select tenant, scope_id, token_count from public.vector_documents) c
              where c.tenant = s.tenant and c.scope_id = s.scope_id) r on true
          where r.chunks <> s.chunk_count or r.tokens <> s.token_sum",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(wrong_totals.is_empty(), "totals of {wrong_totals:?}");

    let wrong_terms: Vec<String> = sqlx::query_scalar(
        "select coalesce(t.term, '?')
           from public.rag_terms t
           full join (select tenant, scope_id, term_id, sum(cardinality(chunk_ids)) as df
                        from public.rag_postings group by 1, 2, 3) p using (tenant, scope_id, term_id)
          where t.df is distinct from p.df",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(wrong_terms.is_empty(), "frequencies of {wrong_terms:?}");

    let row = sqlx::query(
        "select (select count(*) from public.rag_sources where cardinality(term_ids) <>
                   (select count(*) from public.rag_postings p
                     where p.tenant = rag_sources.tenant and p.source_id = rag_sources.source_id)),
                (select count(*) from (select unnest(chunk_ids) as chunk_id from public.rag_postings
                  except (select chunk_id from public.code_vectors union all
                          select chunk_id from public.vector_documents)) as dangling),
                (select coalesce(sum(count), 0)::bigint from (select unnest(term_counts) as count from public.rag_postings) p),
                (select coalesce(sum(token_sum), 0)::bigint from public.rag_scopes)",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let [wrong_keys, dangling, posted, tokens] = [0, 1, 2, 3].map(|index| row.get::<i64, _>(index));
    assert_eq!((wrong_keys, dangling), (0, 0));
    assert_eq!(posted, tokens, "every term of every chunk is posted");
}

/// Where every row of every table stands and which transaction wrote it: equal before and after means nothing written.
pub(crate) async fn row_versions(pool: &PgPool) -> BTreeMap<String, String> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select 'scopes', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.rag_scopes
         union all
         select 'sources', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.rag_sources
         union all
         select 'code', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.code_vectors
         union all
         select 'prose', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.vector_documents
         union all
         select 'terms', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.rag_terms
         union all
         select 'postings', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.rag_postings
         union all
         select 'cache', coalesce(md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)), '') from public.embedding_cache
         union all
         select 'ids', last_value::text from public.rag_chunk_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    rows.into_iter().collect()
}

//! Vectors come late, once per text, and never from another embedder.

use std::sync::atomic::{AtomicUsize, Ordering};

use cogo_rag_core::{EmbedError, Embedder, Embedding, Error, HashEmbedder, collections, embed_files, embed_pending};
use cogo_test_support::database;
use sqlx::PgPool;
use tokio::sync::Barrier;

use crate::support::{TENANT, Tree};

/// Counts the texts that really reach a provider; can answer wrongly.
struct Counting {
    identity: &'static str,
    texts: AtomicUsize,
    dimensions_short: usize,
}

impl Counting {
    fn new(identity: &'static str) -> Self {
        Self { identity, texts: AtomicUsize::new(0), dimensions_short: 0 }
    }
}

impl Embedder for Counting {
    fn identity(&self) -> &str {
        self.identity
    }

    fn dimensions(&self) -> usize {
        4
    }

    fn degraded(&self) -> bool {
        false
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        self.texts.fetch_add(texts.len(), Ordering::Relaxed);
        let vector = vec![0.5; 4 - self.dimensions_short];
        Box::pin(std::future::ready(Ok(vec![vector; texts.len()])))
    }
}

async fn embed_all(pool: &PgPool, embedder: &dyn Embedder) -> (usize, usize) {
    let (mut embedded, mut from_cache) = (0, 0);
    loop {
        let report = embed_pending(pool, TENANT, "repo", embedder, 3).await.unwrap();
        embedded += report.embedded;
        from_cache += report.from_cache;
        if !report.more {
            return (embedded, from_cache);
        }
    }
}

fn tree() -> Tree {
    Tree::new(&[
        ("a.rs", "fn a() {}\n\nfn b() {}\n\nfn c() {}\n"),
        ("b.md", "# One\n\ntext one\n\n# Two\n\ntext two\n"),
        ("copy.rs", "fn a() {}\n"),
    ])
}

#[tokio::test]
async fn same_text_is_embedded_once() {
    let database = database().await;
    let tree = tree();
    tree.sync(&database.pool, "repo").await;
    let embedder = Counting::new("counting/4/1");
    let (embedded, from_cache) = embed_all(&database.pool, &embedder).await;
    // Six chunks, five texts; the copy is met in the same call or found in the cache.
    assert_eq!((embedded, embedder.texts.load(Ordering::Relaxed)), (6, 5));
    assert!(from_cache <= 1);
    assert_eq!(collections(&database.pool, TENANT).await.unwrap()[0].embedded, 6);

    tree.remove("a.rs");
    tree.write("renamed.rs", "fn a() {}\n\nfn b() {}\n\nfn c() {}\n\nfn d() {}\n");
    tree.sync(&database.pool, "repo").await;
    assert_eq!(embed_all(&database.pool, &embedder).await, (4, 3));
    assert_eq!(embedder.texts.load(Ordering::Relaxed), 6, "only the new function reaches the provider");
    assert_eq!(embed_all(&database.pool, &embedder).await, (0, 0));
}

#[tokio::test]
async fn another_embedder_replaces_every_vector() {
    let database = database().await;
    tree().sync(&database.pool, "repo").await;
    embed_all(&database.pool, &Counting::new("counting/4/1")).await;
    assert_eq!(embed_all(&database.pool, &HashEmbedder::default()).await.0, 6);
    let kinds: Vec<(String, i32)> = sqlx::query_as(
        "select distinct embedder, cardinality(embedding) from public.code_vectors
         union select distinct embedder, cardinality(embedding) from public.vector_documents",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(kinds, [("local-hash/256/1".to_owned(), 256)]);
}

#[tokio::test]
async fn stored_vector_is_the_vector_of_its_own_text() {
    let database = database().await;
    tree().sync(&database.pool, "repo").await;
    let embedder = HashEmbedder::default();
    embed_all(&database.pool, &embedder).await;
    let rows: Vec<(String, String, Vec<f32>)> =
        sqlx::query_as("select qualified_name, content, embedding from public.code_vectors")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    for (name, content, vector) in rows {
        assert_eq!(vector, embedder.vector(&format!("{name}\n{content}")), "{name}");
    }
}

#[tokio::test]
async fn vectors_of_the_wrong_shape_are_refused() {
    let database = database().await;
    tree().sync(&database.pool, "repo").await;
    let embedder = Counting { dimensions_short: 1, ..Counting::new("short/4/1") };
    let refused = embed_pending(&database.pool, TENANT, "repo", &embedder, 10).await;
    assert!(matches!(refused, Err(Error::Embed(EmbedError::Shape { .. }))), "{refused:?}");
    assert_eq!(collections(&database.pool, TENANT).await.unwrap()[0].embedded, 0);
}

/// Answers once this many calls are under way, so that they surely overlap.
struct Together {
    counting: Counting,
    barrier: Barrier,
}

impl Embedder for Together {
    fn identity(&self) -> &str {
        self.counting.identity()
    }

    fn dimensions(&self) -> usize {
        self.counting.dimensions()
    }

    fn degraded(&self) -> bool {
        false
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        Box::pin(async move {
            self.barrier.wait().await;
            self.counting.embed(texts).await
        })
    }
}

#[tokio::test]
async fn messages_at_once_embed_each_chunk_once() {
    let database = database().await;
    let tree = Tree::new(&[]);
    let batches: Vec<Vec<String>> =
        (0..6).map(|batch| (0..3).map(|file| format!("f{batch}_{file}.rs")).collect()).collect();
    for path in batches.iter().flatten() {
        tree.write(path, &format!("fn {}() {{}}\n\nfn also_{0}() {{}}\n", path.trim_end_matches(".rs")));
    }
    tree.sync(&database.pool, "repo").await;
    let embedder = Together { counting: Counting::new("counting/4/1"), barrier: Barrier::new(batches.len()) };
    let (pool, embedder) = (&database.pool, &embedder);
    let one = |paths: &'_ [String]| {
        let paths = paths.to_vec();
        async move { embed_files(pool, TENANT, "repo", embedder, &paths, 100).await.unwrap() }
    };
    let reports = tokio::join!(
        one(&batches[0]),
        one(&batches[1]),
        one(&batches[2]),
        one(&batches[3]),
        one(&batches[4]),
        one(&batches[5])
    );
    let computed = [reports.0, reports.1, reports.2, reports.3, reports.4, reports.5].map(|report| report.computed);
    assert_eq!(computed, [6; 6]);
    assert_eq!(embedder.counting.texts.load(Ordering::Relaxed), 36);
    assert_eq!(collections(pool, TENANT).await.unwrap()[0].embedded, 36);
}

#[tokio::test]
async fn files_leave_the_chunks_of_others_to_the_whole() {
    let database = database().await;
    tree().sync(&database.pool, "repo").await;
    let embedder = Counting::new("counting/4/1");
    let paths = ["a.rs", "absent.rs", "nul\0name"].map(str::to_owned);
    let of_files = async |limit| embed_files(&database.pool, TENANT, "repo", &embedder, &paths, limit).await.unwrap();
    let first = of_files(2).await;
    assert_eq!((first.embedded, first.computed, first.more), (2, 2, true));
    let rest = of_files(2).await;
    assert_eq!((rest.embedded, rest.computed, rest.more), (1, 1, false));
    assert_eq!(collections(&database.pool, TENANT).await.unwrap()[0].embedded, 3);

    let left = embed_pending(&database.pool, TENANT, "repo", &embedder, 100).await.unwrap();
    // The copy of a function of a.rs is known by its text.
    assert_eq!((left.embedded, left.from_cache, left.computed), (3, 1, 2));
}

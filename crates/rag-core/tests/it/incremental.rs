//! The index follows the files and writes only what changed.

use std::{path::Path, time::Duration};

use cogo_rag_core::{WalkLimits, collections, index_files, plan, remove_files, sync, walk};
use cogo_test_support::database;

use crate::support::{TENANT, Tree, check_recount, row_versions};

const FILES: [(&str, &str); 4] = [
    ("src/lib.rs", "//! Bus.\n\n/// Claims messages.\npub fn claim() {}\n\nfn helper() {}\n"),
    ("app/main.py", "def main():\n    claim()\n"),
    ("docs/guide.md", "# Guide\n\nHow messages are claimed.\n"),
    ("schema.sql", "create table jobs (id int);\n"),
];

#[tokio::test]
async fn unchanged_tree_writes_no_row() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    let first = tree.sync(&database.pool, "repo").await;
    assert_eq!((first.indexed, first.unchanged, first.chunks), (4, 0, 6));
    check_recount(&database.pool).await;

    let before = row_versions(&database.pool).await;
    let second = tree.sync(&database.pool, "repo").await;
    assert_eq!((second.indexed, second.unchanged, second.removed), (0, 4, 0));
    // A redelivered message of a worker takes the other way in.
    let paths: Vec<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
    let again = index_files(&database.pool, TENANT, "repo", tree.root(), &paths, WalkLimits::default()).await.unwrap();
    assert_eq!((again.indexed, again.unchanged), (0, 4));
    assert_eq!(row_versions(&database.pool).await, before);
}

#[tokio::test]
async fn change_touches_only_its_own_file() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    tree.sync(&database.pool, "repo").await;
    let versions =
        "select string_agg(path || xmin::text, ',' order by path) from public.rag_sources where path <> 'app/main.py'";
    let before: String = sqlx::query_scalar(versions).fetch_one(&database.pool).await.unwrap();

    tree.write("app/main.py", "def main():\n    release()\n\ndef extra():\n    pass\n");
    let report = tree.sync(&database.pool, "repo").await;
    assert_eq!((report.indexed, report.unchanged, report.chunks), (1, 3, 2));
    check_recount(&database.pool).await;
    let after: String = sqlx::query_scalar(versions).fetch_one(&database.pool).await.unwrap();
    assert_eq!(before, after);
}

#[tokio::test]
async fn renamed_and_deleted_files_leave_nothing_behind() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    tree.sync(&database.pool, "repo").await;
    tree.remove("app/main.py");
    tree.write("app/start.py", "def main():\n    claim()\n");
    tree.write("src/lib.rs", "\0");
    let report = tree.sync(&database.pool, "repo").await;
    assert_eq!((report.indexed, report.removed), (1, 2));
    check_recount(&database.pool).await;

    for (path, _) in FILES {
        if tree.root().join(path).exists() {
            tree.remove(path);
        }
    }
    tree.remove("app/start.py");
    tree.sync(&database.pool, "repo").await;
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from public.rag_sources) + (select count(*) from public.rag_terms)
              + (select count(*) from public.rag_postings) + (select count(*) from public.code_vectors)
              + (select count(*) from public.vector_documents)",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(left, 0);
}

/// A small generator, so that a failing sequence can be run again by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[tokio::test]
async fn totals_stay_exact_after_any_sequence() {
    let words = ["claim", "lease", "retry", "bus", "agent", "dead letter", "budget", "BusReclaimer", "snake_case_name"];
    for seed in 1..=3 {
        let database = database().await;
        let mut dice = Dice(seed);
        let tree = Tree::new(&[]);
        for _ in 0..12 {
            for _ in 0..=dice.below(4) {
                let path = format!(
                    "d{}/f{}.{}",
                    dice.below(2),
                    dice.below(4),
                    ["rs", "md", "py", "txt"][dice.below(4) as usize]
                );
                if dice.below(4) == 0 && tree.root().join(&path).exists() {
                    tree.remove(&path);
                    continue;
                }
                let text: String = (0..dice.below(6))
                    .map(|_| {
                        format!("fn {}() {{}}\n# {}\n\n", words[dice.below(9) as usize], words[dice.below(9) as usize])
                    })
                    .collect();
                tree.write(&path, &text);
            }
            tree.sync(&database.pool, "repo").await;
            check_recount(&database.pool).await;
        }
        let walked = walk(tree.root(), WalkLimits::default()).unwrap();
        let settled = plan(&database.pool, TENANT, "repo", &walked.files).await.unwrap();
        assert_eq!((settled.changed.len(), settled.removed.len()), (0, 0), "seed {seed}");
    }
}

#[tokio::test]
async fn concurrent_syncs_of_one_collection_agree() {
    let database = database().await;
    let tree = Tree::new(&[]);
    for index in 0..150 {
        tree.write(&format!("m{index}.rs"), &format!("/// Shared words {index}.\nfn shared_name_{index}() {{}}\n"));
    }
    let (left, right, third) = tokio::join!(
        tree.sync(&database.pool, "repo"),
        tree.sync(&database.pool, "repo"),
        tree.sync(&database.pool, "other")
    );
    assert_eq!(left.indexed + right.indexed, 150, "each file is written once");
    assert_eq!(third.indexed, 150);
    check_recount(&database.pool).await;
}

#[tokio::test]
async fn tenants_and_collections_are_kept_apart() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    tree.sync(&database.pool, "repo").await;
    sync(&database.pool, "other-tenant", "repo", tree.root(), |_| {}).await.unwrap();
    let everything: Vec<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(remove_files(&database.pool, "other-tenant", "repo", &everything).await.unwrap(), 4);
    let own = collections(&database.pool, TENANT).await.unwrap();
    assert_eq!(
        own.iter()
            .map(|status| (status.collection.as_str(), status.files, status.chunks, status.embedded))
            .collect::<Vec<_>>(),
        [("repo", 4, 6, 0)]
    );
    check_recount(&database.pool).await;
}

#[tokio::test]
async fn unreadable_paths_are_reported_and_the_rest_is_indexed() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    let paths = ["src/lib.rs", "../outside", "nul\0name", "absent.rs"].map(str::to_owned);
    let report = index_files(&database.pool, TENANT, "repo", tree.root(), &paths, WalkLimits::default()).await.unwrap();
    assert_eq!((report.indexed, report.removed, report.errors.len()), (1, 0, 2));
    assert!(
        index_files(&database.pool, TENANT, "repo", Path::new("/nonexistent"), &paths, WalkLimits::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn file_that_changes_while_its_message_waits_is_stored_as_it_is_then() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    tree.sync(&database.pool, "repo").await;
    tree.write("src/lib.rs", "fn first_change() {}\n");
    tree.write("docs/guide.md", "# Guide\n\nChanged once.\n");
    let mut other = database.pool.begin().await.unwrap();
    // What a writer of this collection holds.
    let lock = "select pg_advisory_xact_lock(hashtextextended($1, $2))";
    let key = format!("{TENANT}/repo");
    sqlx::query(lock).bind(&key).bind(0x7261_6763_i64).execute(&mut *other).await.unwrap();
    let paths = ["src/lib.rs", "docs/guide.md"].map(str::to_owned);
    let waiting = index_files(&database.pool, TENANT, "repo", tree.root(), &paths, WalkLimits::default());
    let release = async {
        let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                                       and database = (select oid from pg_database where datname = current_database()))";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&database.pool).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tree.write("src/lib.rs", "fn second_change() {}\n\nfn third() {}\n");
        other.rollback().await.unwrap();
    };
    let (report, ()) = tokio::join!(waiting, release);
    assert_eq!((report.as_ref().unwrap().indexed, report.unwrap().chunks), (2, 3));
    check_recount(&database.pool).await;
    let stored =
        "select string_agg(symbol, ',' order by chunk_id) from public.code_vectors where symbol ~ 'change|third'";
    let symbols: Option<String> = sqlx::query_scalar(stored).fetch_one(&database.pool).await.unwrap();
    assert_eq!(symbols.as_deref(), Some("second_change,third"));
    assert_eq!(tree.sync(&database.pool, "repo").await.unchanged, 4, "hash and chunks belong together");
}

#[tokio::test]
async fn progress_ends_at_its_total() {
    let database = database().await;
    let tree = Tree::new(&[]);
    (0..130).for_each(|index| tree.write(&format!("f{index}.txt"), "some text\n"));
    let mut seen = Vec::new();
    sync(&database.pool, TENANT, "repo", tree.root(), |progress| seen.push((progress.done, progress.total)))
        .await
        .unwrap();
    assert_eq!(seen, [(64, 130), (128, 130), (130, 130)]);
}

#[tokio::test]
async fn roles_of_the_outside_may_not_read_the_tables() {
    let database = database().await;
    let open: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where n.nspname = 'public' and c.relkind = 'r'
            and (c.relname like 'rag\\_%' or c.relname in ('vector_documents', 'code_vectors', 'embedding_cache'))
            and (not c.relrowsecurity or has_table_privilege('anon', c.oid, 'select')
                 or has_table_privilege('authenticated', c.oid, 'select')
                 or not has_table_privilege('service_role', c.oid, 'select'))",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(open.is_empty(), "{open:?}");
    let silent: i64 = sqlx::query_scalar(
        "select count(*) from pg_attribute a join pg_class c on c.oid = a.attrelid
          where c.relname in ('rag_scopes', 'rag_sources', 'rag_terms', 'rag_postings', 'vector_documents', 'code_vectors', 'embedding_cache')
            and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(silent, 0, "columns without a comment");
}

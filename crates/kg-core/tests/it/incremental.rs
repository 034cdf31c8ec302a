//! Builds after changes: nothing for nothing, the same graph as a fresh build, one at a time.

use std::{fs, path::Path, sync::Arc};

use cogo_kg_core::{BuildError, BuildTarget, Progress, build, forget};
use cogo_test_support::database;
use sqlx::PgPool;
use tempfile::TempDir;

use crate::support::{REPO, TENANT, build_repo, everything, fixture, graph_lines, silent};

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn copied(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    copy_tree(&fixture(name), directory.path());
    directory
}

async fn row_versions(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select 'file ' || id || ' ' || xmin || ' ' || ctid from public.kg_files
         union all select 'node ' || id || ' ' || xmin || ' ' || ctid from public.kg_nodes
         union all select 'edge ' || src_id || ' ' || xmin || ' ' || ctid from public.kg_edges
         union all select 'unresolved ' || file_id || ' ' || xmin || ' ' || ctid from public.kg_unresolved
         union all select 'build ' || id || ' ' || xmin || ' ' || ctid from public.kg_builds
         order by 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn unchanged_tree_writes_no_rows() {
    let database = database().await;
    let tree = copied("rust");
    let first = build_repo(&database.pool, REPO, tree.path()).await;
    assert!(first.build_id.is_some() && first.rows_written > 0);
    let before = row_versions(&database.pool).await;
    let second = build_repo(&database.pool, REPO, tree.path()).await;
    assert_eq!((second.build_id, second.rows_written, second.files_extracted), (None, 0, 0));
    assert_eq!(second.totals, first.totals);
    assert_eq!(row_versions(&database.pool).await, before);
}

#[tokio::test]
async fn new_file_resolves_what_was_unresolved_elsewhere() {
    let database = database().await;
    let tree = copied("python");
    build_repo(&database.pool, REPO, tree.path()).await;
    let gone = "src/shop/orders/store.py:9 imports ? from shop.orders.gone import Lost no_such_module";
    assert!(graph_lines(&database.pool, REPO).await.contains(&gone.to_owned()));

    fs::write(tree.path().join("src/shop/orders/gone.py"), "class Lost:\n    pass\n").unwrap();
    let report = build_repo(&database.pool, REPO, tree.path()).await;
    assert_eq!((report.files_extracted, report.files_changed), (1, 1));
    let found = "src/shop/orders/store.py:9 imports src/shop/orders/gone.py#Lost exact";
    assert!(graph_lines(&database.pool, REPO).await.contains(&found.to_owned()));
    let build_of_untouched: i64 =
        sqlx::query_scalar("select build_id from public.kg_files where path = 'src/shop/orders/store.py'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert!(Some(build_of_untouched) < report.build_id, "the file itself was not rewritten");
}

#[tokio::test]
async fn renamed_and_deleted_files_leave_nothing_behind() {
    let database = database().await;
    let tree = copied("typescript");
    let ui = tree.path().join("packages/ui/src");
    build_repo(&database.pool, REPO, tree.path()).await;
    fs::rename(ui.join("button.tsx"), ui.join("knob.tsx")).unwrap();
    fs::remove_file(ui.join("icons.ts")).unwrap();
    let report = build_repo(&database.pool, REPO, tree.path()).await;
    assert_eq!((report.files_changed, report.files_removed), (1, 2));
    let lines = graph_lines(&database.pool, REPO).await;
    assert!(!lines.iter().any(|line| line.contains("button.tsx") || line.contains("icons.ts#")));
    assert!(lines.iter().any(|line| line.ends_with("export * from './icons' no_such_file")), "{lines:#?}");
    build_repo(&database.pool, "fresh", tree.path()).await;
    assert_eq!(everything(&database.pool, REPO).await, everything(&database.pool, "fresh").await);
}

/// A small generator of its own, so that a failing round can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

fn files_below(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

fn edit(dice: &mut Dice, tree: &Path, round: usize) {
    let mut files = Vec::new();
    files_below(tree, &mut files);
    let file = files[dice.roll(files.len())].clone();
    match dice.roll(4) {
        0 => fs::remove_file(&file).unwrap(),
        1 => {
            let text = fs::read_to_string(&file).unwrap();
            let keep = text.lines().skip(dice.roll(3)).collect::<Vec<_>>().join("\n");
            fs::write(&file, keep).unwrap();
        }
        2 => {
            let other = files[dice.roll(files.len())].clone();
            let name = format!("moved_{round}_{}", file.file_name().unwrap().to_string_lossy());
            fs::rename(&file, other.parent().unwrap().join(name)).unwrap();
        }
        _ => {
            let other = fs::read(&files[dice.roll(files.len())]).unwrap();
            fs::write(&file, other).unwrap();
        }
    }
}

#[tokio::test]
async fn incremental_build_equals_fresh_build_after_random_edits() {
    let database = database().await;
    for (seed, name) in ["rust", "python", "typescript", "go"].into_iter().enumerate() {
        let tree = copied(name);
        let mut dice = Dice(u64::try_from(seed).unwrap() + 7);
        for round in 0..12 {
            edit(&mut dice, tree.path(), round);
            edit(&mut dice, tree.path(), round + 100);
            let fresh = format!("{name}-{round}");
            build_repo(&database.pool, name, tree.path()).await;
            build_repo(&database.pool, &fresh, tree.path()).await;
            assert_eq!(
                everything(&database.pool, name).await,
                everything(&database.pool, &fresh).await,
                "{name}, round {round}"
            );
            forget(&database.pool, TENANT, &fresh).await.unwrap();
        }
    }
}

#[tokio::test]
async fn concurrent_builds_of_one_repository_wait_for_each_other() {
    let database = database().await;
    let tree = copied("rust");
    let (left, right) =
        tokio::join!(build_repo(&database.pool, REPO, tree.path()), build_repo(&database.pool, REPO, tree.path()),);
    let published = [left.build_id, right.build_id].into_iter().flatten().count();
    assert_eq!(published, 1, "the second finds its work done");
    let builds: i64 =
        sqlx::query_scalar("select count(*) from public.kg_builds").fetch_one(&database.pool).await.unwrap();
    assert_eq!(builds, 1);
}

#[tokio::test]
async fn repositories_and_tenants_do_not_mix() {
    let database = database().await;
    build_repo(&database.pool, "a", &fixture("go")).await;
    build_repo(&database.pool, "b", &fixture("rust")).await;
    let before = everything(&database.pool, "b").await;
    assert!(forget(&database.pool, TENANT, "a").await.unwrap() > 0);
    assert!(everything(&database.pool, "a").await.is_empty());
    assert_eq!(everything(&database.pool, "b").await, before);
    assert_eq!(forget(&database.pool, "other", "b").await.unwrap(), 0);
}

#[tokio::test]
async fn missing_directory_is_refused_and_the_graph_stays() {
    let database = database().await;
    let tree = copied("go");
    build_repo(&database.pool, REPO, tree.path()).await;
    let before = everything(&database.pool, REPO).await;
    let target = BuildTarget {
        tenant: TENANT.to_owned(),
        repo: REPO.to_owned(),
        root: tree.path().join("nowhere"),
        revision: None,
    };
    let refused = build(&database.pool, &target, &silent()).await;
    assert!(matches!(refused, Err(BuildError::Walk(_))), "{refused:?}");
    assert_eq!(everything(&database.pool, REPO).await, before);
}

#[tokio::test]
async fn ignored_hidden_large_and_binary_files_stay_out() {
    let database = database().await;
    let tree = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write(".gitignore", b"generated/\n");
    write("kept.py", b"import generated.thing\n");
    write("generated/thing.py", b"X = 1\n");
    write(".hidden/secret.py", b"X = 1\n");
    write("node_modules/left/index.js", b"export const x = 1;\n");
    write("large.py", "x = 1\n".repeat(100_000).as_bytes());
    write("binary.py", b"x = '\0'\n");
    write("latin.py", b"x = '\xe9'\n");
    std::os::unix::fs::symlink(fixture("python"), tree.path().join("link")).unwrap();
    let report = build_repo(&database.pool, REPO, tree.path()).await;
    assert_eq!(report.files, 1);
    assert_eq!((report.skipped.too_large, report.skipped.not_text), (1, 2));
}

#[tokio::test]
async fn progress_names_every_phase() {
    let database = database().await;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let progress: cogo_kg_core::ProgressFn = Arc::new(move |progress: Progress| sink.lock().unwrap().push(progress));
    let target = BuildTarget {
        tenant: TENANT.to_owned(),
        repo: REPO.to_owned(),
        root: fixture("go"),
        revision: Some("abc".to_owned()),
    };
    build(&database.pool, &target, &progress).await.unwrap();
    let seen = seen.lock().unwrap();
    for phase in ["read", "resolve", "write"] {
        let last = seen.iter().rfind(|progress| progress.phase == phase).expect("phase is reported");
        assert_eq!(last.done, last.total, "{phase} ends complete");
    }
}

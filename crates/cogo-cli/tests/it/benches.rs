//! `cogo bench bus` on a real Postgres with stand-ins for its peers, and `cogo bench idle` of a fleet.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{Cogo, free_offset};

/// What a script of a peer prints at its end.
const RESULT: &str = r#"{"peer": "stand-in", "enqueue_per_s": 1000, "process_per_s": 500}"#;

fn peer(directory: &Path, name: &str, script: &str) {
    fs::create_dir_all(directory.join(name)).unwrap();
    let path = directory.join(name).join("run.sh");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The database that the script of pgmq would have made.
async fn database_of_pgmq(cluster: &cogo_test_support::PrivateCluster) -> String {
    let name = "cogo_bench_peer_pgmq";
    cluster.pool.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    let url = cluster.cluster.url(name);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(include_str!("../small_queue.sql")).await.unwrap();
    connection.close().await.unwrap();
    name.to_owned()
}

#[tokio::test]
async fn a_bench_of_the_bus_ends_with_one_object_and_compares_with_its_peers() {
    let cluster = cogo_test_support::private_cluster().await;
    let cogo = Cogo::on(&cluster.url);
    let left_behind = database_of_pgmq(&cluster).await;
    let peers = tempfile::tempdir().unwrap();
    let answers = format!("echo talk; echo '{RESULT}'");
    for name in ["pgmq", "graphile-worker", "pg-boss"] {
        peer(peers.path(), name, &answers);
    }
    peer(peers.path(), "procrastinate", "echo 'no server' >&2; exit 3");
    let words = ["--messages", "200", "--batch", "50", "--payload-bytes", "100", "--samples", "3", "--runs", "1"];
    let mut arguments =
        vec!["bench", "bus", "--mixed-seconds", "1", "--json", "--peers", peers.path().to_str().unwrap()];
    arguments.extend(words);
    let ended = cogo.run(&arguments).await.expect(0);
    let last: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();

    for key in ["enqueue_per_s", "drain_per_s", "mixed_per_s", "ping_p50_ms", "ping_p99_ms", "limit_ratio"] {
        assert!(last[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {last}");
    }
    for key in ["drain_runtime_per_s", "drain_bare_beside_per_s"] {
        assert!(last[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {last}");
    }
    // of so few messages it may be less than the clock of the processor tells
    assert!(last["runtime_own_us"].as_f64().is_some_and(|figure| figure >= 0.0), "{last}");
    assert!(last["runtime_cost"].as_f64().is_some_and(|share| share < 1.0), "{last}");
    assert_eq!((last["lost"].as_i64(), last["duplicated"].as_i64()), (Some(0), Some(0)), "{last}");
    let of = |name: &str| last["peers"].as_array().unwrap().iter().find(|peer| peer["peer"] == name).unwrap();
    for key in ["enqueue_ratio", "drain_ratio", "runtime_drain_ratio", "mixed_per_s", "our_mixed_per_s", "mixed_ratio"]
    {
        assert!(of("pgmq")[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {last}");
    }
    assert!(of("pgmq")["no_mixed_run"].is_null() && of("pgmq")["failed"].is_null());
    for (name, why) in [("graphile-worker", "done before the time was up"), ("pg-boss", "no SQL function")] {
        assert!(of(name)["no_mixed_run"].as_str().is_some_and(|text| text.contains(why)), "{last}");
        assert!(of(name)["mixed_ratio"].is_null() && of(name)["mixed_to_its_drain_ratio"].is_number(), "{last}");
    }
    assert!(of("procrastinate")["failed"].as_str().is_some_and(|why| why.contains("no server")), "{last}");
    let left: i64 =
        sqlx::query_scalar("select count(*) from pg_database where datname like 'cogo_bench%' or datname = $1")
            .bind(left_behind)
            .fetch_one(&cluster.pool)
            .await
            .unwrap();
    assert_eq!(left, 0, "nothing of the measurement is left");
}

#[tokio::test]
async fn a_bench_names_a_peer_that_is_not_there_and_explains_itself() {
    let cogo = Cogo::without_database();
    let peers = tempfile::tempdir().unwrap();
    peer(peers.path(), "pgmq", "exit 0");
    let directory = peers.path().to_str().unwrap();
    let ended = cogo.run(&["bench", "bus", "--peers", directory, "--peer", "river"]).await.expect(3);
    assert!(ended.stderr.contains("river/run.sh"), "{ended:?}");
    let help = cogo.run(&["bench", "bus", "--help"]).await.expect(0).stdout;
    assert!(help.contains("cogo bench bus --peers") && help.contains("mixed load"), "{help}");
}

#[tokio::test]
async fn a_bench_of_a_fleet_at_rest_names_the_process_that_costs_most() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let (list, offset) = (cogo.process_list("answering_process"), free_offset().to_string());
    cogo.run(&["up", "--detach", "--processes", &list, "--port-offset", &offset]).await.expect(0);
    let measured = cogo.run(&["bench", "idle", "--seconds", "2", "--json"]).await.expect(0);
    let last: Value = serde_json::from_str(measured.stdout.lines().last().unwrap()).unwrap();
    let processes = last["processes"].as_array().unwrap();
    let most = processes.iter().map(|process| {
        process["cpu_percent_of_one_core"].as_f64().unwrap()
            + process["sessions_cpu_percent_of_one_core"].as_f64().unwrap()
    });
    let most = most.fold(0.0, f64::max);
    assert!((last["busiest"]["cpu_percent_of_one_core"].as_f64().unwrap() - most).abs() < 0.01, "{last}");
    assert!(processes.iter().any(|process| process["name"] == last["busiest"]["name"]), "{last}");
    let table = cogo.run(&["bench", "idle", "--seconds", "1"]).await.expect(0).stdout;
    assert!(table.contains("stand-in") && table.contains("SESSIONS"), "{table}");
    cogo.run(&["down"]).await.expect(0);
}

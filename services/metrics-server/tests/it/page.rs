//! The page and its files: what is served, and what must never stand in them.

use crate::it::seeded::{get, get_json, seed, server};

const HTML: &str = include_str!("../../src/page/dashboard.html");
const SCRIPT: &str = include_str!("../../src/page/dashboard.js");
const STYLE: &str = include_str!("../../src/page/dashboard.css");

#[tokio::test]
async fn the_page_and_its_files_come_with_a_strict_policy() {
    let database = cogo_test_support::database().await;
    let server = server(&database.pool);
    for (address, media_type) in [
        ("/dashboard/local", "text/html; charset=utf-8"),
        ("/dashboard/files/dashboard.css", "text/css; charset=utf-8"),
        ("/dashboard/files/dashboard.js", "text/javascript; charset=utf-8"),
        ("/dashboard/files/icon.svg", "image/svg+xml"),
    ] {
        let answer = get(&server, address).await;
        assert_eq!(answer.status, 200, "{address}");
        assert_eq!(answer.header("content-type"), media_type);
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert!(!answer.body.is_empty());
    }
    for address in ["/", "/dashboard", "/dashboard/"] {
        let answer = get(&server, address).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (307, "/dashboard/local"), "{address}");
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_runs_nothing_inline() {
    for (name, file) in [("html", HTML), ("js", SCRIPT), ("css", STYLE)] {
        assert!(!file.contains("http://") && !file.contains("https://") && !file.contains("//cdn"), "{name}");
    }
    for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!HTML.contains(inline), "{inline}");
    }
    let scripts: Vec<_> = HTML.match_indices("<script").map(|(at, _)| &HTML[at..]).collect();
    assert!(scripts.iter().all(|script| script.starts_with("<script type=\"module\" src=\"/dashboard/files/")));
}

#[test]
fn what_comes_from_the_database_is_written_as_text() {
    for sink in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc", "href ="]
    {
        assert!(!SCRIPT.contains(sink), "{sink} makes markup of data");
    }
}

#[test]
fn every_table_has_a_caption_and_headed_columns_and_its_own_scroll() {
    let tables = HTML.matches("<table>").count();
    assert_eq!(tables, 5);
    assert_eq!(HTML.matches("<caption>").count(), tables);
    assert_eq!(HTML.matches("<th ").count(), HTML.matches("<th scope=\"col\"").count());
    assert_eq!(HTML.matches("class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=").count(), tables);
    assert!(HTML.contains("lang=\"en\"") && HTML.contains("role=\"status\"") && HTML.contains("class=\"skip\""));
    assert!(STYLE.contains("prefers-color-scheme: dark") && STYLE.contains("prefers-reduced-motion"));
}

#[test]
fn every_place_that_the_script_fills_is_on_the_page() {
    let names = SCRIPT.match_indices("element(\"").map(|(at, marker)| &SCRIPT[at + marker.len()..]);
    for name in names.map(|rest| rest.split('"').next().unwrap()) {
        assert!(HTML.contains(&format!("id=\"{name}\"")), "{name}");
    }
}

#[tokio::test]
async fn hostile_text_stays_data_on_its_way_to_the_page() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    let hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>";
    sqlx::query("update public.agent_messages set error = $1 where status = 'failed'")
        .bind(hostile)
        .execute(&database.pool)
        .await
        .unwrap();
    let server = server(&database.pool);
    let answer = get(&server, "/api/metrics/bus/failures").await;
    assert_eq!(answer.header("content-type"), "application/json", "a browser must not take it for a page");
    let failures = get_json(&server, "/api/metrics/bus/failures").await;
    assert_eq!(failures["items"][0]["sample_error"], hostile);
}

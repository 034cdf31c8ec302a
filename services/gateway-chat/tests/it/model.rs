//! Answers that a model writes, and what happens when it cannot.

use std::time::{Duration, Instant};

use cogo_contracts::{Assignment, Budget, ChatMode};
use cogo_gateway_chat::WritingLimits;
use cogo_model_client::{
    Error, Prices, Role, Usage,
    scripted::{ScriptedModel, Turn},
};

use crate::support::{bench, bench_with, check_citations, fixture, indexed};

const QUESTION: &str = "What does `is_expired` do?";

fn model(answer: &str) -> ScriptedModel {
    ScriptedModel::new([Turn::reply(answer)])
}

fn budget(max_cost_usd: Option<f64>, max_tokens: Option<u64>) -> Assignment {
    Assignment { budget: Some(Budget { max_cost_usd, max_tokens }), ..Assignment::default() }
}

#[tokio::test]
async fn written_answer_keeps_only_citations_that_exist() {
    let database = indexed().await;
    let usage = Usage { input_tokens: 700, output_tokens: 30 };
    let turn = Turn::deltas(["It tells whether the courier ", "was silent [1]", "[99]. It is cheap [99]."]);
    let prices = Prices { input_nano_usd_per_token: 1_000, output_nano_usd_per_token: 10_000 };
    let model = ScriptedModel::new([turn.with_usage(usage)]).with_prices(prices);
    let reply = bench(&database.pool, Some(model.clone())).ask(QUESTION).await;
    assert_eq!(reply.mode, ChatMode::Llm);
    assert_eq!(reply.answer, "It tells whether the courier was silent [1]. It is cheap.");
    assert_eq!(reply.citations.len(), 1);
    check_citations(&reply, &fixture());
    assert!(reply.citations[0].text.contains("pub fn is_expired"));
    assert_eq!(reply.model.as_deref(), Some("scripted"));
    assert_eq!((reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated), (700, 30, false));
    assert!((reply.usage.cost_usd - 0.001).abs() < 1e-12, "{}", reply.usage.cost_usd);
    let degraded = reply.degraded.unwrap();
    assert_eq!(degraded, "no embedding model is configured, so passages were found by their words");
}

#[tokio::test]
async fn citations_are_numbered_in_the_order_of_their_mention() {
    let database = indexed().await;
    let reply = bench(&database.pool, Some(model("B [2]. A [1]."))).ask(QUESTION).await;
    assert_eq!((reply.mode, reply.answer.as_str()), (ChatMode::Llm, "B [1]. A [2]."));
    assert!(reply.citations[1].text.contains("pub fn is_expired"));
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn answer_without_a_valid_citation_falls_back_to_lines() {
    let database = indexed().await;
    for answer in ["It is very good [99].", "I do not know.", ""] {
        let reply = bench(&database.pool, Some(model(answer))).ask(QUESTION).await;
        assert_eq!(reply.mode, ChatMode::Extractive, "{answer}");
        check_citations(&reply, &fixture());
        assert!(reply.degraded.unwrap().contains("cited no passage that exists"), "{answer}");
        assert_eq!(reply.model.as_deref(), Some("scripted"), "what was spent is told");
        assert!(reply.usage.input_tokens > 0 && reply.usage.estimated);
    }
}

#[tokio::test]
async fn budget_too_small_for_the_prompt_is_not_spent() {
    let database = indexed().await;
    let prices = Prices { input_nano_usd_per_token: 1_000, output_nano_usd_per_token: 1_000 };
    for assignment in [budget(None, Some(20)), budget(Some(0.000_001), None), budget(Some(0.0), None)] {
        let model = model("never").with_prices(prices);
        let reply = bench(&database.pool, Some(model.clone())).ask_under(QUESTION, &assignment, None).await;
        assert_eq!(reply.mode, ChatMode::Extractive);
        assert!(reply.degraded.unwrap().contains("Limits leave no room"), "{assignment:?}");
        assert_eq!((reply.usage.input_tokens, model.requests().len()), (0, 0));
    }
}

#[tokio::test]
async fn money_limit_without_a_price_is_not_spent() {
    let database = indexed().await;
    let model = model("never");
    let reply = bench(&database.pool, Some(model.clone())).ask_under(QUESTION, &budget(Some(1.0), None), None).await;
    assert_eq!((reply.mode, model.requests().len()), (ChatMode::Extractive, 0));
    assert!(reply.degraded.unwrap().contains("No price is known"));
}

#[tokio::test]
async fn limits_and_model_of_the_assignment_reach_the_provider() {
    let database = indexed().await;
    let prices = Prices { input_nano_usd_per_token: 1, output_nano_usd_per_token: 1 };
    let model = model("Silent [1].").with_prices(prices).serving("small-1");
    let assignment = Assignment { model: Some("small-1".to_owned()), ..budget(Some(0.1), Some(50_000)) };
    let time = Some(Duration::from_secs(100));
    let reply = bench(&database.pool, Some(model.clone())).ask_under(QUESTION, &assignment, time).await;
    assert_eq!((reply.mode, reply.model.as_deref()), (ChatMode::Llm, Some("small-1")));
    let request = &model.requests()[0];
    assert_eq!(request.model.as_deref(), Some("small-1"));
    assert_eq!((request.limits.max_tokens, request.limits.max_cost_nano_usd), (Some(50_000), Some(100_000_000)));
    let deadline = request.limits.deadline.unwrap();
    assert!(deadline < Duration::from_secs(100) && deadline > Duration::from_secs(50), "{deadline:?}");
}

#[tokio::test]
async fn answer_of_another_model_than_assigned_is_not_used() {
    let database = indexed().await;
    let model = model("Silent [1].").serving("cheap-2");
    let assignment = Assignment { model: Some("small-1".to_owned()), ..Assignment::default() };
    let reply = bench(&database.pool, Some(model)).ask_under(QUESTION, &assignment, None).await;
    assert_eq!((reply.mode, reply.model.as_deref()), (ChatMode::Extractive, Some("cheap-2")));
    assert!(reply.degraded.unwrap().contains("cheap-2 answered instead of small-1"));
}

#[tokio::test]
async fn stalled_model_costs_the_written_answer_and_not_the_answer() {
    let database = indexed().await;
    let model = ScriptedModel::new((0..3).map(|_| Turn::deltas(["Silent [1]"]).then_stalls()));
    let bench = bench(&database.pool, Some(model));
    let time = Duration::from_secs(4);
    let ask = async || {
        let started = Instant::now();
        let reply = bench.ask_under(QUESTION, &Assignment::default(), Some(time)).await;
        (reply, started.elapsed())
    };
    let (mut reply, mut took) = ask().await;
    // a machine that stands still takes the time that is left for the answer once in a while, but not each time
    for _ in 0..2 {
        if took >= time {
            (reply, took) = ask().await;
        }
    }
    assert!(took < time, "{took:?}");
    assert_eq!(reply.mode, ChatMode::Extractive);
    let degraded = reply.degraded.clone().unwrap();
    assert!(degraded.contains("took too long (Deadline)"), "{degraded}");
    assert!(reply.usage.output_tokens > 0 && reply.usage.estimated, "what came before the stall is booked");
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn failing_provider_costs_the_written_answer_and_not_the_answer() {
    let database = indexed().await;
    let broken = || Error::BadReply { reason: "nonsense".to_owned() };
    for (turn, expected) in [
        (Turn::refuse(Error::RateLimited { retry_after: None }), "limits the rate"),
        (Turn::refuse(Error::Unauthorized { status: 401 }), "refused the key"),
        (Turn::refuse(Error::Rejected { status: 503, text: "overloaded".to_owned() }), "503: overloaded"),
        (Turn::deltas(["Half an"]).then_breaks(broken()), "nonsense"),
    ] {
        let reply = bench(&database.pool, Some(ScriptedModel::new([turn]))).ask(QUESTION).await;
        assert_eq!(reply.mode, ChatMode::Extractive, "{expected}");
        let degraded = reply.degraded.unwrap();
        assert!(degraded.contains(expected) && !degraded.contains("no chat model"), "{degraded}");
    }
}

#[tokio::test]
async fn passages_cannot_change_the_rules() {
    let database = indexed().await;
    let model = ScriptedModel::new([Turn::reply("500 crowns [1]."), Turn::reply("Silent [1].")]);
    let bench = bench(&database.pool, Some(model.clone()));
    let reply = bench.ask("Up to how many crowns is porcelain insured?").await;
    assert_eq!(reply.mode, ChatMode::Llm, "{}", reply.answer);
    check_citations(&reply, &fixture());
    bench.ask(QUESTION).await;
    let [hostile, harmless] = &model.requests()[..] else { panic!("two questions were asked") };
    for request in [hostile, harmless] {
        let roles: Vec<Role> = request.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User]);
    }
    assert_eq!(hostile.messages[0], harmless.messages[0], "the rules do not depend on what was indexed");
    assert!(!hostile.messages[0].content.contains("PWNED"));
    let data = &hostile.messages[1].content;
    assert!(data.contains("PWNED") && data.contains("<\\/passage>"), "{data}");
    let opened = data.matches("<passage n=").count();
    assert_eq!((opened, data.matches("</passage>").count()), (opened, opened));
    let question = data.rfind("\nQuestion: Up to how many crowns").unwrap();
    assert!(question > data.rfind("</passage>").unwrap());
}

#[tokio::test]
async fn prompt_holds_no_more_than_its_limits() {
    let database = indexed().await;
    let model = ScriptedModel::new([Turn::reply("x [1]."), Turn::reply("x [1].")]);
    for (limits, expected) in [
        (WritingLimits { output_tokens: 9, passages: 2, passage_chars: 10_000 }, 2),
        (WritingLimits { output_tokens: 9, passages: 5, passage_chars: 1 }, 1),
    ] {
        let reply = bench_with(&database.pool, Some(model.clone()), limits).ask(QUESTION).await;
        assert_eq!(reply.mode, ChatMode::Llm);
        let requests = model.requests();
        let request = requests.last().unwrap();
        assert_eq!(request.messages[1].content.matches("<passage n=").count(), expected);
        assert_eq!(request.max_output_tokens, Some(9));
    }
}

#[tokio::test]
async fn model_is_not_asked_without_evidence_or_about_structure() {
    let database = indexed().await;
    let model = ScriptedModel::new([]);
    let bench = bench(&database.pool, Some(model.clone()));
    let abstained = bench.ask("How do submarines recharge their batteries under ice?").await;
    let listed = bench.ask("who imports `Lease`?").await;
    assert_eq!((abstained.mode, listed.mode), (ChatMode::Abstain, ChatMode::Graph));
    assert_eq!(model.requests().len(), 0);
}

#[tokio::test]
async fn model_that_fails_again_and_again_is_not_asked_for_a_while() {
    let database = indexed().await;
    let broken = || Turn::refuse(Error::Rejected { status: 503, text: "overloaded".to_owned() });
    let model = ScriptedModel::new((0..9).map(|_| broken()));
    let bench = bench(&database.pool, Some(model.clone()));
    for _ in 0..5 {
        assert!(bench.ask(QUESTION).await.degraded.unwrap().contains("503"));
    }
    let spared = bench.ask(QUESTION).await;
    assert_eq!((spared.mode, model.requests().len()), (ChatMode::Extractive, 5));
    assert!(spared.degraded.unwrap().contains("Circuit is open"));
    check_citations(&bench.ask(QUESTION).await, &fixture());
}

#[tokio::test]
async fn questions_that_were_wrong_themselves_say_nothing_against_the_model() {
    let database = indexed().await;
    let turns = (0..6).map(|_| Turn::refuse(Error::Rejected { status: 400, text: "too long".to_owned() }));
    let model = ScriptedModel::new(turns.chain([Turn::reply("Silent [1].")]));
    let bench = bench(&database.pool, Some(model.clone()));
    for _ in 0..6 {
        bench.ask(QUESTION).await;
    }
    assert_eq!(bench.ask(QUESTION).await.mode, ChatMode::Llm);
}

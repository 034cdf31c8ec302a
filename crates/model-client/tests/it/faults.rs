//! Providers that fail: what is repeated, what is not, and which error says so.

use std::time::{Duration, Instant};

use cogo_model_client::{ChatModel, Completion, Error, Limits, OpenAi, Phase, Settings};

use crate::it::provider::{Answer, END, Provider, delta, question};

async fn outcome_of(answer: Answer) -> Result<Completion, Error> {
    let provider = Provider::start([answer]).await;
    provider.client().complete(question()).await
}

#[tokio::test]
async fn busy_provider_is_asked_again_after_the_time_it_names() {
    let busy = Answer::Json(429, "0.2", "{}".to_owned());
    let provider = Provider::start([busy, Answer::status(503), Answer::events(END)]).await;
    let started = Instant::now();
    provider.client().complete(question()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(provider.asked().len(), 3);
}

#[tokio::test]
async fn wait_beyond_the_deadline_is_not_begun() {
    let provider = Provider::start([Answer::Json(429, "60", "{}".to_owned())]).await;
    let mut request = question();
    request.limits = Limits { deadline: Some(Duration::from_secs(50)), ..Limits::default() };
    let started = Instant::now();
    let error = provider.client().complete(request).await.unwrap_err();
    let asked = Some(Duration::from_secs(60));
    assert!(matches!(error, Error::RateLimited { retry_after } if retry_after == asked));
    assert!(error.is_retriable());
    assert!(started.elapsed() < Duration::from_secs(40));
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn provider_that_always_fails_is_given_up() {
    let provider = Provider::start([Answer::status(500)]).await;
    let error = provider.client().complete(question()).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { status: 500, text } if text == "not now"));
    assert!(error.is_retriable());
    assert_eq!(provider.asked().len(), 3);
}

#[tokio::test]
async fn refusals_are_not_repeated() {
    for (status, unauthorized) in [(400, false), (401, true), (403, true), (404, false)] {
        let provider = Provider::start([Answer::status(status)]).await;
        let error = provider.client().complete(question()).await.unwrap_err();
        assert_eq!(matches!(error, Error::Unauthorized { .. }), unauthorized, "{status}");
        assert!(!error.is_retriable(), "{status}");
        assert_eq!(provider.asked().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn redirect_does_not_carry_the_key_away() {
    let elsewhere = Provider::start([Answer::events(END)]).await;
    let outcome = outcome_of(Answer::Redirect(format!("{}/chat/completions", elsewhere.base_url))).await;
    assert!(matches!(outcome, Err(Error::Rejected { status: 307, .. })), "{outcome:?}");
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn unreachable_provider_is_said_to_be() {
    let settings = {
        let provider = Provider::start([Answer::Silence]).await;
        // Nobody listens at this address once the provider is gone.
        Settings { base_url: "http://127.0.0.1:9/v1".to_owned(), ..provider.settings() }
    };
    let error = OpenAi::new(settings).unwrap().complete(question()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.is_retriable());
}

#[tokio::test]
async fn silence_before_and_inside_the_reply_are_told_apart() {
    const SOON: Duration = Duration::from_millis(400);
    let provider = Provider::start([Answer::Silence]).await;
    let hasty = Settings { header_timeout: SOON, ..provider.settings() };
    let outcome = OpenAi::new(hasty).unwrap().complete(question()).await;
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Header))), "{outcome:?}");
    let provider = Provider::start([Answer::stalling(&delta("a"))]).await;
    let hasty = Settings { idle_timeout: SOON, ..provider.settings() };
    let outcome = OpenAi::new(hasty).unwrap().complete(question()).await;
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Idle))), "{outcome:?}");
}

#[tokio::test]
async fn comments_keep_a_slow_stream_alive() {
    let provider = Provider::start([Answer::endless(": waiting\n\n")]).await;
    let settings = Settings {
        idle_timeout: Duration::from_millis(500),
        total_timeout: Duration::from_millis(1500),
        ..provider.settings()
    };
    let client = OpenAi::new(settings).unwrap();
    // a machine that stands still makes the stream idle once in a while, but not time and again
    let mut outcome = client.complete(question()).await;
    for _ in 0..9 {
        if !matches!(outcome, Err(Error::Timeout(Phase::Idle))) {
            break;
        }
        outcome = client.complete(question()).await;
    }
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Total))), "{outcome:?}");
}

#[tokio::test]
async fn reply_of_the_wrong_shape_is_a_bad_reply() {
    let truncated = delta("half an answer");
    for answer in [
        Answer::events("data: {not json\n\n"),
        Answer::events(&truncated),
        Answer::events(&truncated[..truncated.len() - 9]),
        Answer::events(""),
        Answer::ok("<html>"),
        Answer::ok("{}"),
    ] {
        let outcome = outcome_of(answer.clone()).await;
        assert!(matches!(outcome, Err(Error::BadReply { .. })), "{answer:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn broken_answer_is_not_repeated_and_its_cost_is_known() {
    let provider = Provider::start([Answer::events(&delta("12345678"))]).await;
    let mut stream = provider.client().stream(question()).await.unwrap();
    assert!(stream.finish().await.is_err());
    assert!(stream.next().await.is_none());
    assert_eq!(stream.so_far().usage.output_tokens, 2);
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn error_inside_the_stream_is_the_outcome() {
    let events = format!("{}data: {{\"error\": {{\"message\": \"overloaded\", \"code\": 503}}}}\n\n", delta("a"));
    let outcome = outcome_of(Answer::events(&events)).await;
    assert!(matches!(&outcome, Err(Error::Rejected { status: 503, text }) if text == "overloaded"), "{outcome:?}");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let key_of = |settings: Settings| match OpenAi::new(settings) {
        Err(Error::Settings { key, .. }) => key,
        outcome => panic!("must be refused: {outcome:?}"),
    };
    assert_eq!(key_of(Settings::default()), "base_url");
    let local = || Settings { base_url: "http://localhost:1/v1".to_owned(), ..Settings::default() };
    assert_eq!(key_of(Settings { idle_timeout: Duration::ZERO, ..local() }), "idle_timeout_ms");
    let key = Some(cogo_model_client::Secret::new("two\nlines"));
    assert_eq!(key_of(Settings { api_key: key, ..local() }), "api_key");
}

//! Limits of tokens, money and time hold while the provider ignores them.

use std::time::Duration;

use cogo_model_client::{
    ChatEvent, ChatModel, ChatRequest, Error, FinishReason, Limits, OpenAi, Phase, Prices, Settings,
};
use tokio_util::sync::CancellationToken;

use crate::it::provider::{Answer, END, Provider, delta, question};

const PRICES: Prices = Prices { input_nano_usd_per_token: 10, output_nano_usd_per_token: 100 };

fn limited(limits: Limits) -> ChatRequest {
    ChatRequest { limits, ..question() }
}

#[tokio::test]
async fn answer_is_cut_off_at_the_token_limit_and_the_connection_closed() {
    let mut provider = Provider::start([Answer::endless(&delta("four"))]).await;
    let request = limited(Limits { max_tokens: Some(14 + 6), ..Limits::default() });
    let completion = provider.client().complete(request).await.unwrap();
    assert_eq!(completion.finish_reason, FinishReason::CutOff);
    assert_eq!(completion.text, "four".repeat(6));
    // The seventh piece was not passed on, but it was made and will be billed.
    assert_eq!(completion.usage.output_tokens, 7);
    assert!(completion.usage_estimated);
    assert_eq!(provider.asked()[0].body["max_tokens"], 6);
    provider.client_left().await;
}

#[tokio::test]
async fn answer_is_cut_off_at_the_money_limit() {
    let provider = Provider::start([Answer::endless(&delta("four"))]).await;
    let settings = Settings { prices: Some(PRICES), ..provider.settings() };
    let request = limited(Limits { max_cost_nano_usd: Some(14 * 10 + 399), ..Limits::default() });
    let completion = OpenAi::new(settings).unwrap().complete(request).await.unwrap();
    assert_eq!(completion.finish_reason, FinishReason::CutOff);
    assert_eq!(completion.text, "four".repeat(3));
    assert_eq!(completion.cost_nano_usd, Some(14 * 10 + 4 * 100));
}

#[tokio::test]
async fn thoughts_count_against_the_limit() {
    let thought = r#"data: {"choices": [{"delta": {"reasoning_content": "hmmm"}}]}"#;
    let provider = Provider::start([Answer::endless(&format!("{thought}\n\n"))]).await;
    let request = limited(Limits { max_tokens: Some(14 + 3), ..Limits::default() });
    let completion = provider.client().complete(request).await.unwrap();
    assert_eq!(completion.finish_reason, FinishReason::CutOff);
    assert_eq!(completion.text, "");
    assert_eq!(completion.usage.output_tokens, 4);
}

#[tokio::test]
async fn answer_that_uses_its_cap_exactly_keeps_the_reported_usage() {
    let events = format!("{}{END}", delta("five").repeat(5));
    let provider = Provider::start([Answer::events(&events)]).await;
    let request = limited(Limits { max_tokens: Some(14 + 5), ..Limits::default() });
    let completion = provider.client().complete(request).await.unwrap();
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    assert!(!completion.usage_estimated);
}

#[tokio::test]
async fn nothing_is_sent_when_the_limits_leave_nothing() {
    let provider = Provider::start([Answer::events(END)]).await;
    let no_tokens = limited(Limits { max_tokens: Some(14), ..Limits::default() });
    let outcome = provider.client().complete(no_tokens).await;
    assert!(matches!(outcome, Err(Error::OverBudget { prompt_tokens: 14 })), "{outcome:?}");

    let money_without_price = limited(Limits { max_cost_nano_usd: Some(1_000_000_000), ..Limits::default() });
    let outcome = provider.client().complete(money_without_price).await;
    assert!(matches!(outcome, Err(Error::Unpriced { model }) if model == "small"));
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn deadline_of_the_caller_ends_a_stream_that_never_pauses() {
    let mut provider = Provider::start([Answer::endless(&delta("more"))]).await;
    let request = limited(Limits { deadline: Some(Duration::from_secs(3)), ..Limits::default() });
    let mut stream = provider.client().stream(request).await.unwrap();
    let outcome = stream.finish().await;
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Deadline))), "{outcome:?}");
    let so_far = stream.so_far();
    assert_eq!(so_far.finish_reason, FinishReason::Unfinished);
    assert!(so_far.usage.output_tokens > 0 && so_far.text.starts_with("more"));
    provider.client_left().await;
}

#[tokio::test]
async fn total_timeout_ends_a_stream_that_never_pauses() {
    let provider = Provider::start([Answer::endless(&delta("more"))]).await;
    let settings = Settings { total_timeout: Duration::from_millis(150), ..provider.settings() };
    let outcome = OpenAi::new(settings).unwrap().complete(question()).await;
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Total))), "{outcome:?}");
}

#[tokio::test]
async fn dropping_the_stream_ends_the_call_at_the_provider() {
    let mut provider = Provider::start([Answer::stalling(&delta("a"))]).await;
    let mut stream = provider.client().stream(question()).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first, ChatEvent::Delta("a".to_owned()));
    drop(stream);
    provider.client_left().await;
}

#[tokio::test]
async fn cancellation_ends_waiting_for_headers_and_for_text() {
    let silent = Provider::start([Answer::Silence]).await;
    let mut stalling = Provider::start([Answer::stalling(&delta("a"))]).await;
    for client in [silent.client(), stalling.client()] {
        let cancellation = CancellationToken::new();
        let request = ChatRequest { cancellation: cancellation.clone(), ..question() };
        let cancel_soon = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cancellation.cancel();
        };
        let (outcome, ()) = tokio::join!(client.complete(request), cancel_soon);
        assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    }
    stalling.client_left().await;
}

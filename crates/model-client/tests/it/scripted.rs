//! The fake for tests of other crates behaves like a provider.

use std::time::Duration;

use cogo_model_client::{
    ChatModel, ChatRequest, Error, FinishReason, Limits, Phase, Prices, Usage,
    scripted::{ScriptedModel, Turn},
};

use crate::it::provider::question;

#[tokio::test]
async fn turns_are_taken_in_order_and_requests_are_kept() {
    let usage = Usage { input_tokens: 2, output_tokens: 3 };
    let model = ScriptedModel::new([
        Turn::deltas(["one ", "two"]).with_usage(usage),
        Turn::refuse(Error::Unauthorized { status: 401 }),
    ])
    .with_prices(Prices { input_nano_usd_per_token: 1, output_nano_usd_per_token: 10 });
    let completion = model.complete(question()).await.unwrap();
    assert_eq!(completion.text, "one two");
    assert_eq!((completion.usage, completion.cost_nano_usd), (usage, Some(32)));
    assert_eq!(completion.model_served.as_deref(), Some("scripted"));

    let refused = model.complete(question()).await;
    assert!(matches!(refused, Err(Error::Unauthorized { .. })));
    assert!(model.complete(question()).await.is_err(), "the script is over");
    assert_eq!(model.requests().len(), 3);
}

#[tokio::test]
async fn limits_hold_for_the_script_too() {
    let model = ScriptedModel::new([Turn::deltas(["four"; 9]), Turn::deltas(["a"]).then_stalls()]);
    let request = ChatRequest { limits: Limits { max_tokens: Some(14 + 2), ..Limits::default() }, ..question() };
    let completion = model.complete(request).await.unwrap();
    assert_eq!(completion.finish_reason, FinishReason::CutOff);
    assert_eq!(completion.text, "fourfour");

    let request =
        ChatRequest { limits: Limits { deadline: Some(Duration::from_millis(20)), ..Limits::default() }, ..question() };
    let outcome = model.complete(request).await;
    assert!(matches!(outcome, Err(Error::Timeout(Phase::Deadline))));
}

#[tokio::test]
async fn broken_turn_gives_its_pieces_first() {
    let fault = Error::RateLimited { retry_after: None };
    let model = ScriptedModel::new([Turn::reply("half").then_breaks(fault)]).serving("other");
    let request = ChatRequest { model: Some("wanted".to_owned()), ..question() };
    let mut stream = model.stream(request).await.unwrap();
    assert!(matches!(stream.finish().await, Err(Error::RateLimited { .. })));
    assert_eq!(stream.so_far().text, "half");
}

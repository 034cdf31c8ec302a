//! Answers that come as they should, in all the shapes that servers give them.

use std::time::Duration;

use cogo_model_client::{
    ChatEvent, ChatModel, ChatRequest, FinishReason, Message, OpenAi, OutputCapField, Prices, Settings, Usage,
};

use crate::it::provider::{Answer, END, Provider, Then, delta, question};

#[tokio::test]
async fn answer_streams_and_ends_with_what_it_cost() {
    let events = format!("{}{}{END}", delta("Hel"), delta("lo"));
    let provider = Provider::start([Answer::events(&events)]).await;
    let settings = Settings {
        prices: Some(Prices { input_nano_usd_per_token: 10, output_nano_usd_per_token: 100 }),
        ..provider.settings()
    };
    let mut stream = OpenAi::new(settings).unwrap().stream(question()).await.unwrap();

    let mut deltas = Vec::new();
    let completion = loop {
        match stream.next().await.unwrap().unwrap() {
            ChatEvent::Delta(text) => deltas.push(text),
            ChatEvent::Done(completion) => break completion,
        }
    };
    assert_eq!(deltas, ["Hel", "lo"]);
    assert_eq!(completion.text, "Hello");
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    let usage = Usage { input_tokens: 7, output_tokens: 5 };
    assert_eq!((completion.usage, completion.usage_estimated), (usage, false));
    assert_eq!(completion.cost_nano_usd, Some(7 * 10 + 5 * 100));
    assert!(stream.next().await.is_none());
    assert!(stream.finish().await.is_err());
}

#[tokio::test]
async fn request_carries_key_model_and_the_wish_for_usage() {
    let provider = Provider::start([Answer::events(END)]).await;
    let request = ChatRequest {
        model: Some("large".to_owned()),
        temperature: Some(0.5),
        ..ChatRequest::new(vec![Message::system("be brief"), Message::user("hi")])
    };
    let completion = provider.client().complete(request).await.unwrap();

    let asked = provider.asked().remove(0);
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.authorization.as_deref(), Some("Bearer sk-test"));
    let expected = serde_json::json!({
        "model": "large",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0.5,
    });
    assert_eq!(asked.body, expected);
    assert_eq!(completion.model_requested, "large");
    assert_eq!(completion.model_served.as_deref(), Some("small"));
    assert!(completion.model_mismatch());
}

#[tokio::test]
async fn output_cap_goes_out_under_the_name_that_the_provider_takes() {
    for (output_cap_field, name, other) in [
        (OutputCapField::MaxTokens, "max_tokens", "max_completion_tokens"),
        (OutputCapField::MaxCompletionTokens, "max_completion_tokens", "max_tokens"),
    ] {
        let provider = Provider::start([Answer::events(END)]).await;
        let settings = Settings { output_cap_field, ..provider.settings() };
        let request = ChatRequest { max_output_tokens: Some(9), ..question() };
        OpenAi::new(settings).unwrap().complete(request).await.unwrap();
        let body = provider.asked().remove(0).body;
        assert_eq!(body[name], 9);
        assert!(body.get(other).is_none());
    }
}

#[tokio::test]
async fn frames_cut_inside_a_character_are_put_together() {
    let events = format!(": queued\r\n\r\n{}{}{END}", delta("zażółć "), delta("🦀"));
    let pieces = events.as_bytes().chunks(3).map(<[u8]>::to_vec).collect();
    let provider = Provider::start([Answer::Events(pieces, Then::Closes)]).await;
    let completion = provider.client().complete(question()).await.unwrap();
    assert_eq!(completion.text, "zażółć 🦀");
}

#[tokio::test]
async fn missing_usage_is_estimated_and_said_to_be() {
    let events = format!(
        "{}data: {{\"choices\": [{{\"delta\": {{}}, \"finish_reason\": \"length\"}}]}}\n\n",
        delta("twelve bytes")
    );
    let provider = Provider::start([Answer::events(&events)]).await;
    let completion = provider.client().complete(question()).await.unwrap();
    let usage = Usage { input_tokens: 14, output_tokens: 3 };
    assert_eq!((completion.usage, completion.usage_estimated), (usage, true));
    assert_eq!(completion.finish_reason, FinishReason::Length);
    assert_eq!(completion.cost_nano_usd, None);
}

#[tokio::test]
async fn usage_of_zero_does_not_make_an_answer_free() {
    let usage = r#"data: {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}"#;
    let events = format!("{}{usage}\n\ndata: [DONE]\n\n", delta("text"));
    let provider = Provider::start([Answer::events(&events)]).await;
    let completion = provider.client().complete(question()).await.unwrap();
    assert!(completion.usage_estimated);
    assert_eq!(completion.usage.output_tokens, 1);
}

#[tokio::test]
async fn answer_that_is_not_streamed_is_read_as_well() {
    let body = r#"{"model": "small", "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "choices": [{"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}]}"#;
    let provider = Provider::start([Answer::ok(body)]).await;
    let completion = provider.client().complete(question()).await.unwrap();
    assert_eq!(completion.text, "whole");
    assert_eq!(completion.usage.total(), 5);
    assert!(!completion.usage_estimated);
}

#[tokio::test]
async fn server_that_hangs_after_the_finish_reason_has_answered() {
    let events =
        format!("{}data: {{\"choices\": [{{\"delta\": {{}}, \"finish_reason\": \"stop\"}}]}}\n\n", delta("done"));
    let provider = Provider::start([Answer::stalling(&events)]).await;
    // long enough for what comes before the silence
    let settings = Settings { idle_timeout: Duration::from_secs(4), ..provider.settings() };
    let completion = OpenAi::new(settings).unwrap().complete(question()).await.unwrap();
    assert_eq!(completion.text, "done");
    assert!(completion.usage_estimated);
}

//! Vectors come back for the texts that they belong to, or not at all.

use cogo_model_client::{Error, OpenAi, Settings};
use serde_json::json;

use crate::it::provider::{Answer, Provider};

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text {number}")).collect()
}

fn vectors(items: &[(usize, &[f32])]) -> Answer {
    let data: Vec<_> = items.iter().map(|(index, vector)| json!({"index": index, "embedding": vector})).collect();
    Answer::ok(json!({ "data": data }).to_string())
}

#[tokio::test]
async fn vectors_in_the_wrong_order_are_put_right() {
    let provider = Provider::start([vectors(&[(1, &[0.0, 1.0]), (0, &[1.0, 0.0])])]).await;
    let embedded = provider.client().embed(&texts(2)).await.unwrap();
    assert_eq!(embedded, [[1.0, 0.0], [0.0, 1.0]]);
    let asked = provider.asked().remove(0);
    assert_eq!(asked.path, "/v1/embeddings");
    let expected = json!({"model": "tiny", "input": ["text 0", "text 1"], "encoding_format": "float"});
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn many_texts_are_sent_in_batches() {
    let first: Vec<(usize, &[f32])> = (0..64).map(|index| (index, &[1.0_f32] as &[f32])).collect();
    let second = vectors(&[(0, &[2.0])]);
    let provider = Provider::start([vectors(&first), Answer::status(503), second]).await;
    let embedded = provider.client().embed(&texts(65)).await.unwrap();
    assert_eq!(embedded.len(), 65);
    assert_eq!(embedded[63..], [[1.0], [2.0]]);
    let sizes: Vec<_> = provider.asked().iter().map(|asked| asked.body["input"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [64, 1, 1]);
}

#[tokio::test]
async fn no_texts_need_no_call() {
    let provider = Provider::start([Answer::status(500)]).await;
    assert!(provider.client().embed(&[]).await.unwrap().is_empty());
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn vectors_that_do_not_fit_are_refused() {
    for answer in [
        vectors(&[(0, &[1.0])]),
        vectors(&[(0, &[1.0]), (0, &[1.0])]),
        vectors(&[(0, &[1.0]), (2, &[1.0])]),
        vectors(&[(0, &[1.0]), (1, &[1.0, 2.0])]),
        Answer::ok(r#"{"data": [{"index": 0, "embedding": [null]}, {"index": 1, "embedding": [1]}]}"#),
        Answer::ok(r#"{"data": [{"index": 0, "embedding": [1e99]}, {"index": 1, "embedding": [1]}]}"#),
        Answer::ok("not json"),
    ] {
        let provider = Provider::start([answer.clone()]).await;
        let outcome = provider.client().embed(&texts(2)).await;
        assert!(matches!(outcome, Err(Error::BadReply { .. })), "{answer:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn length_in_the_settings_is_the_length_that_counts() {
    let provider = Provider::start([vectors(&[(0, &[1.0, 2.0])])]).await;
    for (dimensions, fits) in [(2, true), (3, false)] {
        let settings = Settings { embedding_dimensions: Some(dimensions), ..provider.settings() };
        let outcome = OpenAi::new(settings).unwrap().embed(&texts(1)).await;
        assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
    }
}

#[tokio::test]
async fn embedding_without_a_model_is_refused_by_name() {
    let provider = Provider::start([Answer::status(500)]).await;
    let settings = Settings { embedding_model: String::new(), ..provider.settings() };
    let outcome = OpenAi::new(settings).unwrap().embed(&texts(1)).await;
    assert!(matches!(outcome, Err(Error::Settings { key: "embedding_model", .. })));
}

//! Answers that a model writes from numbered passages, held to those passages afterwards.

use std::time::Duration;

use cogo_contracts::{Assignment, Budget, Citation, Usage};
use cogo_model_client::{ChatEvent, ChatModel, ChatRequest, Completion, Error, FinishReason, Limits, Phase};
use cogo_rag_core::Passage;
use tokio::time::Instant;

use crate::{
    chat::Asked, live::Writer, markers, prompt, reply::citation_of_passage, settings::WritingLimits, writing::Guarded,
};

/// Kept back from the time to live for falling back and recording the result: a tenth of it, within these bounds.
const RESERVE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Answers quote facts, so the model need not be inventive.
const TEMPERATURE: f32 = 0.1;

/// What came of asking the model.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer that cites passages which exist.
    Answer {
        text: String,
        citations: Vec<Citation>,
        /// What is worse about it than it could be.
        degraded: Option<String>,
        cost: Cost,
    },
    /// Nothing that can be used.
    Unusable { reason: String, cost: Cost },
}

/// Who answered and what it cost.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) model: Option<String>,
    pub(crate) usage: Usage,
}

/// Lets the model write an answer within the limits of the assignment.
pub(crate) async fn write<M: ChatModel>(
    model: &Guarded<M>,
    question: &str,
    passages: &[Passage],
    limits: WritingLimits,
    asked: &Asked<'_>,
    writer: &Writer,
) -> Outcome {
    let passages = prompt::fitting(passages, limits);
    let deadline = match asked.deadline.map(time_for_model) {
        Some(None) => return unusable("no time was left for the model", Cost::default()),
        Some(Some(left)) => Some(left),
        None => None,
    };
    let request = ChatRequest {
        model: asked.assignment.model.clone(),
        temperature: Some(TEMPERATURE),
        max_output_tokens: Some(limits.output_tokens),
        limits: Limits { deadline, ..limits_of(asked.assignment) },
        cancellation: asked.token.clone(),
        ..ChatRequest::new(prompt::messages(question, passages))
    };
    // ends by itself at the deadline of the request, so that what came until then is booked
    let call = stream(&model.model, request, writer);
    match model.guard.call(asked.tenant, None, call, |(error, _)| tells_against(error, deadline)).await {
        Ok(completion) => judge(&completion, passages, asked.assignment),
        Err(unanswered) => match unanswered.failure() {
            Ok((error, cost)) => unusable(&in_words(&error), cost),
            Err(not_asked) => unusable(&in_words(&not_asked), Cost::default()),
        },
    }
}

/// A model that says nothing for as long as this is not well, even if its caller had no more time.
const LONG_SILENCE: Duration = Duration::from_secs(10);

fn tells_against(error: &Error, deadline: Option<Duration>) -> bool {
    let was_patient =
        matches!(error, Error::Timeout(Phase::Deadline)) && deadline.is_some_and(|time| time >= LONG_SILENCE);
    was_patient || error.tells_against_provider()
}

/// How long the model may take; none if too little is left for it to be of use.
fn time_for_model(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    let reserve = (left / 10).clamp(RESERVE.0, RESERVE.1);
    left.checked_sub(reserve).filter(|time| !time.is_zero())
}

fn limits_of(assignment: &Assignment) -> Limits {
    let Budget { max_cost_usd, max_tokens } = assignment.budget.unwrap_or_default();
    // rounded down: the budget is an upper limit; the cast saturates
    let max_cost_nano_usd = max_cost_usd.map(|usd| (usd * 1e9).floor() as u64);
    Limits { max_tokens, max_cost_nano_usd, deadline: None }
}

async fn stream<M: ChatModel>(model: &M, request: ChatRequest, writer: &Writer) -> Result<Completion, (Error, Cost)> {
    let mut stream = model.stream(request).await.map_err(|error| (error, Cost::default()))?;
    loop {
        match stream.next().await {
            Some(Ok(ChatEvent::Delta(delta))) => writer.push(&delta),
            Some(Ok(ChatEvent::Done(completion))) => return Ok(completion),
            Some(Err(error)) => return Err((error, cost_of(&stream.so_far()))),
            None => {
                let reason = "the stream ended without its end".to_owned();
                return Err((Error::BadReply { reason }, cost_of(&stream.so_far())));
            }
        }
    }
}

fn judge(completion: &Completion, passages: &[Passage], assignment: &Assignment) -> Outcome {
    let cost = cost_of(completion);
    if assignment.model.is_some() && completion.model_mismatch() {
        let served = completion.model_served.as_deref().unwrap_or("another model");
        return unusable(&format!("{served} answered instead of {}", completion.model_requested), cost);
    }
    let checked = markers::check(&completion.text.replace('\0', ""), passages.len());
    if checked.used.is_empty() {
        return unusable("the model's answer cited no passage that exists", cost);
    }
    let citations = checked.used.iter().filter_map(|number| passages.get(number - 1)).map(citation_of_passage);
    let cut = matches!(completion.finish_reason, FinishReason::Length | FinishReason::CutOff);
    let degraded = cut.then(|| "the answer was cut off at its token limit".to_owned());
    if checked.invented > 0 {
        tracing::info!(invented = checked.invented, "dropped citations that do not exist");
    }
    Outcome::Answer { text: checked.text, citations: citations.collect(), degraded, cost }
}

fn cost_of(completion: &Completion) -> Cost {
    let nano_usd = completion.cost_nano_usd;
    let served = completion.model_served.clone().unwrap_or_else(|| completion.model_requested.clone());
    Cost {
        model: Some(served),
        usage: Usage {
            input_tokens: completion.usage.input_tokens,
            output_tokens: completion.usage.output_tokens,
            cost_usd: nano_usd.unwrap_or(0) as f64 / 1e9,
            // without a price the money is not known, and 0 must not look like a fact
            estimated: completion.usage_estimated || nano_usd.is_none(),
        },
    }
}

fn unusable(reason: &str, cost: Cost) -> Outcome {
    Outcome::Unusable { reason: reason.to_owned(), cost }
}

/// The error with its causes, on one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        words = format!("{words}: {source}");
        cause = source.source();
    }
    words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

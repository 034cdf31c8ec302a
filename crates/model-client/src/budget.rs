//! How many tokens a text is worth, what tokens cost, and how long an answer may become under a request's limits.

use crate::{
    chat::{ChatRequest, Message, Usage},
    error::Error,
    settings::Prices,
};

/// Tokens that a provider adds around each message of a chat (role and separators).
const TOKENS_PER_MESSAGE: u64 = 4;

/// Estimated tokens of a text: four bytes each, rounded up.
/// Bytes rather than characters, because scripts beyond ASCII take more tokens per character.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    tokens_of_bytes(text.len())
}

pub(crate) fn tokens_of_bytes(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX)
}

pub(crate) fn estimate_prompt_tokens(messages: &[Message]) -> u64 {
    messages.iter().map(|message| estimate_tokens(&message.content) + TOKENS_PER_MESSAGE).sum()
}

pub(crate) fn cost_nano_usd(prices: Prices, usage: Usage) -> u64 {
    let input = usage.input_tokens.saturating_mul(prices.input_nano_usd_per_token);
    let output = usage.output_tokens.saturating_mul(prices.output_nano_usd_per_token);
    input.saturating_add(output)
}

/// The most tokens that the answer may have; absent: no limit was set.
pub(crate) fn output_cap(request: &ChatRequest, model: &str, prices: Option<Prices>) -> Result<Option<u64>, Error> {
    let prompt_tokens = estimate_prompt_tokens(&request.messages);
    let wanted = request.max_output_tokens.map(u64::from);
    let by_tokens = request.limits.max_tokens.map(|max_tokens| max_tokens.saturating_sub(prompt_tokens));
    let by_money = match request.limits.max_cost_nano_usd {
        Some(max_cost) => affordable_output(max_cost, prompt_tokens, model, prices)?,
        None => None,
    };
    let cap = [wanted, by_tokens, by_money].into_iter().flatten().min();
    if cap == Some(0) {
        return Err(Error::OverBudget { prompt_tokens });
    }
    Ok(cap)
}

fn affordable_output(
    max_cost: u64,
    prompt_tokens: u64,
    model: &str,
    prices: Option<Prices>,
) -> Result<Option<u64>, Error> {
    let Some(prices) = prices else {
        return Err(Error::Unpriced { model: model.to_owned() });
    };
    let prompt_only = Usage { input_tokens: prompt_tokens, output_tokens: 0 };
    let Some(left) = max_cost.checked_sub(cost_nano_usd(prices, prompt_only)) else {
        return Err(Error::OverBudget { prompt_tokens });
    };
    Ok(left.checked_div(prices.output_nano_usd_per_token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Limits;

    const PRICES: Prices = Prices { input_nano_usd_per_token: 10, output_nano_usd_per_token: 100 };

    /// A prompt of 10 + 4 tokens.
    fn request(limits: Limits, wanted: Option<u32>) -> ChatRequest {
        ChatRequest { max_output_tokens: wanted, limits, ..ChatRequest::new(vec![Message::user("x".repeat(40))]) }
    }

    fn cap(max_tokens: Option<u64>, max_cost: Option<u64>, wanted: Option<u32>) -> Option<u64> {
        let limits = Limits { max_tokens, max_cost_nano_usd: max_cost, deadline: None };
        output_cap(&request(limits, wanted), "m", Some(PRICES)).unwrap()
    }

    #[test]
    fn cap_is_the_smallest_of_wish_tokens_and_money() {
        assert_eq!(cap(None, None, None), None);
        assert_eq!(cap(None, None, Some(7)), Some(7));
        assert_eq!(cap(Some(20), None, Some(7)), Some(6));
        assert_eq!(cap(Some(20), Some(140 + 399), Some(7)), Some(3));
    }

    #[test]
    fn limits_that_leave_nothing_are_over_budget() {
        let exhausted = [(Some(14), None), (Some(0), None), (None, Some(140 + 99)), (None, Some(139))];
        for (max_tokens, max_cost_nano_usd) in exhausted {
            let limits = Limits { max_tokens, max_cost_nano_usd, deadline: None };
            let outcome = output_cap(&request(limits, None), "m", Some(PRICES));
            assert!(matches!(outcome, Err(Error::OverBudget { prompt_tokens: 14 })), "{limits:?}: {outcome:?}");
        }
    }

    #[test]
    fn money_limit_without_a_price_is_refused() {
        let limits = Limits { max_cost_nano_usd: Some(u64::MAX), ..Limits::default() };
        let outcome = output_cap(&request(limits, None), "m", None);
        assert!(matches!(outcome, Err(Error::Unpriced { model }) if model == "m"));
        assert_eq!(output_cap(&request(Limits::default(), None), "m", None).unwrap(), None);
    }

    #[test]
    fn free_model_has_no_cap_by_money() {
        let limits = Limits { max_cost_nano_usd: Some(0), ..Limits::default() };
        let free = Some(Prices::default());
        assert_eq!(output_cap(&request(limits, None), "m", free).unwrap(), None);
    }

    #[test]
    fn absurd_usage_does_not_overflow() {
        let usage = Usage { input_tokens: u64::MAX, output_tokens: 1 };
        assert_eq!(cost_nano_usd(PRICES, usage), u64::MAX);
    }
}

//! What Postgres makes of a JSON value: whether jsonb can hold it, and how many bytes it takes as such.

use serde_json::{Number, Value};

/// What each value of an array, and each key and each value of an object, takes beside its content.
const ENTRY: usize = 4;
/// What an array or object takes beside its entries, and a value beside all it holds.
const HEADER: usize = 4;

/// Whether a string or a key has the one character that jsonb cannot hold.
pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, field)| key.contains('\0') || has_nul(field)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Bytes that a value takes as jsonb, to a few: numbers of many digits count for more than they take.
pub(crate) fn stored_bytes(value: &Value) -> usize {
    // a scalar stands in an array of one
    let mut end = if value.is_array() || value.is_object() { HEADER } else { 2 * HEADER + ENTRY };
    append(value, &mut end);
    end
}

fn append(value: &Value, end: &mut usize) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::String(text) => *end += text.len(),
        Value::Number(number) => *end = end.next_multiple_of(4) + numeric_bytes(number),
        Value::Array(items) => {
            *end = end.next_multiple_of(4) + HEADER + ENTRY * items.len();
            for item in items {
                append(item, end);
            }
        }
        Value::Object(fields) => {
            *end = end.next_multiple_of(4) + HEADER + 2 * ENTRY * fields.len();
            *end += fields.keys().map(String::len).sum::<usize>();
            for field in fields.values() {
                append(field, end);
            }
        }
    }
}

/// A numeric has a head of 6 bytes, or 8 when its exponent is large, and 2 for each four digits before and after its point.
fn numeric_bytes(number: &Number) -> usize {
    let text = number.to_string();
    let digits = text.trim_start_matches('-');
    if let Some((digits, _exponent)) = digits.split_once(['e', 'E']) {
        return 8 + 2 * (digits.len().div_ceil(4) + 1);
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    6 + 2 * (whole.len().div_ceil(4) + fraction.len().div_ceil(4))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn values_take_what_the_database_says() {
        let database = cogo_test_support::database().await;
        let scalars = [json!(null), json!(true), json!("täxt"), json!(0), json!(-7), json!(1234), json!(12_345)];
        let numbers =
            [json!(i64::MIN), json!(u64::MAX), json!(0.1), json!(123_456.789), json!(-2.5e-300), json!(1e300)];
        let nested = json!([[], {}, {"a": "b", "longer": [1, "two", {"three": 3}]}, "x", 5]);
        let many = [json!([1]), json!(vec![7; 5000]), json!(vec!["four"; 5000]), json!(vec![json!([]); 5000])];
        let wide: Value =
            (0..2000).map(|n| (format!("key {n}"), json!({"n": n}))).collect::<serde_json::Map<_, _>>().into();
        for value in scalars.iter().chain(&numbers).chain(&many).chain([&nested, &wide]) {
            let taken: i32 = sqlx::query_scalar("select pg_column_size($1::text::jsonb)")
                .bind(value.to_string())
                .fetch_one(&database.pool)
                .await
                .unwrap();
            let (counted, taken) = (stored_bytes(value), usize::try_from(taken).unwrap());
            assert!((taken..=taken + 8).contains(&counted), "{counted} of {taken}: {value:.100}");
        }
    }

    #[test]
    fn nul_is_found_wherever_it_stands() {
        for value in [json!("\0"), json!([1, ["a\0b"]]), json!({"a": {"\0": 1}})] {
            assert!(has_nul(&value), "{value}");
        }
        assert!(!has_nul(&json!(["\\u0000", "\u{1}", {"u0000": null}])));
    }
}

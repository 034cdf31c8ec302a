//! Times and sizes as people read them.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// From one moment to a later one, in milliseconds; 0 if it is not later.
pub(crate) fn milliseconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    // two stamps of one task are never so far apart that this overflows
    let microseconds = (to - from).num_microseconds().unwrap_or(i64::MAX).max(0);
    Duration::from_micros(microseconds.unsigned_abs()).as_secs_f64() * 1000.0
}

/// Milliseconds with about three digits: `4.2 ms`, `420 ms`, `4.20 s`, `4 min 02 s`.
pub(crate) fn milliseconds(value: f64) -> String {
    let value = value.max(0.0);
    if value < 99.95 {
        format!("{value:.1} ms")
    } else if value < 999.5 {
        format!("{value:.0} ms")
    } else if value < 59_995.0 {
        format!("{:.2} s", value / 1000.0)
    } else {
        let seconds = (value / 1000.0).round();
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

/// An age given in whole milliseconds.
pub(crate) fn age(milliseconds_ago: Option<i64>) -> String {
    let Some(value) = milliseconds_ago else { return "-".to_owned() };
    // ages fit an i32 of seconds for the next 60 years
    let seconds = f64::from(i32::try_from(value / 1000).unwrap_or(i32::MAX));
    if seconds < 120.0 {
        format!("{:.1} s", f64::from(i32::try_from(value).unwrap_or(i32::MAX)) / 1000.0)
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else if seconds < 172_800.0 {
        format!("{:.0} h", seconds / 3600.0)
    } else {
        format!("{:.0} d", seconds / 86_400.0)
    }
}

/// Bytes in MiB, with one digit behind the point.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    let kibibytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    (f64::from(kibibytes) / 1024.0 * 10.0).round() / 10.0
}

/// Text of a stranger without what would steer the terminal; its lines stay as they are.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|character| matches!(character, '\t' | '\n') || !character.is_control()).collect()
}

/// The same on one line, so that it does not pass for several.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The first characters of one line; cut text ends with `…`.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    let line = one_line(text);
    if line.chars().count() <= width {
        return line;
    }
    let kept: String = line.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_about_three_digits() {
        for (value, expected) in [
            (0.0, "0.0 ms"),
            (4.24, "4.2 ms"),
            (99.96, "100 ms"),
            (420.4, "420 ms"),
            (999.6, "1.00 s"),
            (4200.0, "4.20 s"),
            (242_000.0, "4 min 02 s"),
            (-3.0, "0.0 ms"),
        ] {
            assert_eq!(milliseconds(value), expected);
        }
    }

    #[test]
    fn ages_get_coarser_as_they_grow() {
        for (value, expected) in
            [(None, "-"), (Some(1500), "1.5 s"), (Some(600_000), "10 min"), (Some(259_200_000), "3 d")]
        {
            assert_eq!(age(value), expected);
        }
    }

    #[test]
    fn sizes_and_cuts() {
        assert!((mebibytes(5 * 1024 * 1024 + 512 * 1024) - 5.5).abs() < f64::EPSILON);
        assert_eq!(shortened("äbcdef", 4), "äbc…");
        assert_eq!(shortened("a\nb", 10), "a b");
    }

    #[test]
    fn control_characters_do_not_get_through() {
        let hostile = "a\u{1b}[2Jb\r\u{7}\u{9b}c\n\td";
        assert_eq!(harmless(hostile), "a[2Jbc\n\td");
        assert_eq!(one_line(hostile), "a [2Jb   c  d");
    }
}

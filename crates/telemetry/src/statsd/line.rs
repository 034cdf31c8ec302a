//! One figure as StatsD writes it.

use std::fmt::Write;

use opentelemetry::KeyValue;

/// What kind of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To be added.
    Counter,
    /// As it is now.
    Gauge,
    /// Milliseconds of one or, by its rate, of several.
    Timing,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "c",
            Self::Gauge => "g",
            Self::Timing => "ms",
        }
    }
}

/// A figure without line break; none if it is no number. `times` is for how many of the same it stands.
pub(super) fn line(name: &str, value: f64, kind: Kind, times: u64, tags: &str, labels: &[&KeyValue]) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    let name = plain(name);
    // a gauge with a sign would be a change of the one before
    let mut line = String::new();
    if kind == Kind::Gauge && value < 0.0 {
        line = self::line(&name, 0.0, kind, 1, tags, labels)? + "\n";
    }
    write!(line, "{name}:{value}|{}", kind.word()).expect("writing to a String does not fail");
    if times > 1 {
        #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let share = 1.0 / times as f64;
        write!(line, "|@{share}").expect("writing to a String does not fail");
    }
    line.push_str("|#");
    line.push_str(tags);
    for label in labels {
        write!(line, ",{}:{}", plain(label.key.as_str()), plain(&label.value.as_str()))
            .expect("writing to a String does not fail");
    }
    Some(line)
}

/// A tag that every line has.
pub(super) fn tag(key: &str, value: &str) -> String {
    format!("{}:{}", plain(key), plain(value))
}

/// Without what has a meaning in a line.
fn plain(text: &str) -> String {
    let harmless = |letter: char| if letter.is_control() || ":|@#, ".contains(letter) { '_' } else { letter };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: f64, kind: Kind, times: u64, expected: Option<&str>) {
        let labels = [KeyValue::new("outcome", "a,b|c")];
        let labels: Vec<&KeyValue> = labels.iter().collect();
        assert_eq!(line("cogo.x:y", value, kind, times, "service:s", &labels).as_deref(), expected);
    }

    #[test]
    fn figures_are_written_as_servers_read_them() {
        check(3.0, Kind::Counter, 1, Some("cogo.x_y:3|c|#service:s,outcome:a_b_c"));
        check(1.5, Kind::Timing, 4, Some("cogo.x_y:1.5|ms|@0.25|#service:s,outcome:a_b_c"));
        check(
            -2.0,
            Kind::Gauge,
            1,
            Some("cogo.x_y:0|g|#service:s,outcome:a_b_c\ncogo.x_y:-2|g|#service:s,outcome:a_b_c"),
        );
        check(f64::NAN, Kind::Gauge, 1, None);
    }
}

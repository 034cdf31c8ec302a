//! Reads server-sent events from bytes that arrive cut anywhere, even inside a character.

/// Longest event that is accepted; a provider that never ends a line must not fill the memory.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// An event grew beyond what any provider sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Collects bytes until they make whole events; only the `data` of an event is kept.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    data: Option<String>,
    after_carriage_return: bool,
    started: bool,
}

impl Parser {
    /// Takes the next bytes and gives the data of the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let completes_line_end = byte == b'\n' && self.after_carriage_return;
            self.after_carriage_return = byte == b'\r';
            match byte {
                _ if completes_line_end => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if held > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    /// The event that the end of the connection left without its empty line, if any.
    pub(crate) fn finish(&mut self) -> Option<String> {
        // A line without its end may be half a line; a JSON reader tells a whole one from a half.
        self.end_line().or_else(|| self.data.take())
    }

    fn end_line(&mut self) -> Option<String> {
        let mut line = std::mem::take(&mut self.line);
        if !self.started {
            self.started = true;
            if line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
        }
        if line.is_empty() {
            return self.data.take();
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut the input in two must give the same events, and so must one byte at a time.
    fn check(input: &str, expected: &[&str]) {
        let bytes = input.as_bytes();
        for cut in 0..=bytes.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&bytes[..cut]).unwrap();
            events.extend(parser.push(&bytes[cut..]).unwrap());
            events.extend(parser.finish());
            assert_eq!(events, expected, "{input:?} cut at {cut}");
        }
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for byte in bytes {
            events.extend(parser.push(&[*byte]).unwrap());
        }
        events.extend(parser.finish());
        assert_eq!(events, expected, "{input:?} byte by byte");
    }

    #[test]
    fn events_end_at_empty_lines_of_any_kind() {
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
    }

    #[test]
    fn comments_and_other_fields_are_skipped() {
        check(": keep-alive\n\nevent: x\nid: 7\ndata: a\nretry: 3\n\n", &["a"]);
        check(":\n\n:\n\n", &[]);
    }

    #[test]
    fn lines_of_one_event_are_joined() {
        check("data: {\ndata: }\n\n", &["{\n}"]);
        check("data\n\ndata:no space\n\n", &["", "no space"]);
    }

    #[test]
    fn characters_cut_in_the_middle_stay_whole() {
        check("data: zażółć 🦀\n\n", &["zażółć 🦀"]);
    }

    #[test]
    fn last_event_needs_no_empty_line() {
        check("data: a\n\ndata: [DONE]", &["a", "[DONE]"]);
        check("\u{feff}data: a\n", &["a"]);
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        let events = Parser::default().push(b"data: a\xffb\n\n").unwrap();
        assert_eq!(events, ["a\u{fffd}b"]);
    }

    #[test]
    fn endless_line_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'x'; MAX_EVENT_BYTES]), Ok(vec![]));
        assert_eq!(parser.push(b"x"), Err(TooLong));
    }
}

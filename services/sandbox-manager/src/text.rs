//! Output as text: lossy where it is not UTF-8, whole where a character falls between two reads.

/// Turns the bytes of one stream into text.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Text of all bytes so far that form whole characters.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() - unfinished(&self.held);
        let rest = self.held.split_off(whole);
        storable(&String::from_utf8_lossy(&std::mem::replace(&mut self.held, rest)))
    }

    /// Text of what is left at the end of the stream.
    pub(crate) fn finish(self) -> String {
        storable(&String::from_utf8_lossy(&self.held))
    }
}

/// The database stores no NUL characters.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// How many bytes at the end begin a character without ending it.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.len().min(3);
    for length in 1..=tail {
        let byte = bytes[bytes.len() - length];
        let needed = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needed > length { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_cut_between_reads_stay_whole() {
        let text = "aé€😀z";
        for at in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(at);
            let mut decoder = Decoder::default();
            let decoded = decoder.push(head) + &decoder.push(tail) + &decoder.finish();
            assert_eq!(decoded, text, "cut at {at}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        let mut decoder = Decoder::default();
        let decoded = decoder.push(b"a\xff\0b\xe2\x82") + &decoder.finish();
        assert_eq!(decoded, "a\u{fffd}\u{fffd}b\u{fffd}");
    }
}

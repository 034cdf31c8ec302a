//! Takes the bytes of a Postgres conversation apart into its frames.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Asks for TLS or GSS encryption before the conversation begins.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];
/// No frame of the bus is longer; a longer one is rubbish.
const MOST_BYTES: usize = 64 << 20;

/// One frame as it came; the kind is zero before the conversation begins.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) bytes: Vec<u8>,
}

/// Executes a prepared statement; comes with its parameters before it.
pub(super) const BIND: u8 = b'B';
/// A statement as text, such as a commit.
pub(super) const QUERY: u8 = b'Q';
/// A row of a result.
pub(super) const DATA_ROW: u8 = b'D';
/// What a statement did.
pub(super) const COMMAND_COMPLETE: u8 = b'C';
/// The server has done everything, a commit included, and waits.
pub(super) const READY: u8 = b'Z';
/// A notification.
pub(super) const NOTIFICATION: u8 = b'A';

impl Frame {
    /// Whether it asks for encryption, which the proxy declines by itself.
    pub(super) fn asks_for_encryption(&self) -> bool {
        let code = self.bytes.get(4..8).map(|code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
        self.kind == 0 && code.is_some_and(|code| ENCRYPTION_REQUESTS.contains(&code))
    }

    /// Whether it is this statement as text.
    pub(super) fn is_query(&self, text: &str) -> bool {
        let body = self.bytes.get(5..).unwrap_or_default();
        self.kind == QUERY && body.len() >= text.len() && body[..text.len()].eq_ignore_ascii_case(text.as_bytes())
    }
}

/// Reads a frame before the conversation begins: a length and that much.
pub(super) async fn read_first(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut bytes = length.to_vec();
    read_body(from, &mut bytes, length).await?;
    Ok(Frame { kind: 0, bytes })
}

/// Reads a frame of the conversation: a kind, a length and that much.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let mut bytes = head.to_vec();
    let [kind, length @ ..] = head;
    read_body(from, &mut bytes, length).await?;
    Ok(Frame { kind, bytes })
}

async fn read_body(from: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>, length: [u8; 4]) -> io::Result<()> {
    let length = u32::from_be_bytes(length) as usize;
    if !(4..=MOST_BYTES).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of Postgres"));
    }
    let begin = bytes.len();
    bytes.resize(begin + length - 4, 0);
    from.read_exact(&mut bytes[begin..]).await?;
    Ok(())
}

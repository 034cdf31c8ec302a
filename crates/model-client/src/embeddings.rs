//! The embedding side of an OpenAI-compatible provider.

use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Phase},
    http::{self, Deadline},
    openai::OpenAi,
    wire::{EmbeddingBody, EmbeddingItem, EmbeddingReply},
};

/// Most texts in one call; local servers refuse or stall on more.
const BATCH: usize = 64;

/// Longest reply to one batch: 64 vectors of 8,192 numbers of 24 characters, and room.
const MAX_REPLY_BYTES: usize = 16 << 20;

impl OpenAi {
    /// One vector for each text, in the order of the texts; dropping the future ends the calls.
    ///
    /// # Errors
    /// [`Error::Settings`] when no embedding model is set; [`Error::BadReply`] when vectors are missing, have the wrong
    /// length or hold something that is not a finite number; else as for chat.
    pub async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Error> {
        if self.settings.embedding_model.is_empty() {
            return Err(Error::Settings { key: "embedding_model", reason: "is not set".to_owned() });
        }
        let mut vectors = Vec::with_capacity(texts.len());
        let mut dimensions = self.settings.embedding_dimensions;
        for batch in texts.chunks(BATCH) {
            let reply = self.embed_batch(batch).await?;
            for vector in in_order(reply.data, batch.len())? {
                let expected = *dimensions.get_or_insert(vector.len());
                check_vector(&vector, expected)?;
                vectors.push(vector);
            }
        }
        Ok(vectors)
    }

    async fn embed_batch(&self, batch: &[String]) -> Result<EmbeddingReply, Error> {
        let deadline = Deadline::start(self.settings.total_timeout, None);
        // Never fires: whoever embeds cancels by dropping the future.
        let cancellation = CancellationToken::new();
        let body = EmbeddingBody { model: &self.settings.embedding_model, input: batch, encoding_format: "float" };
        let response = self.transport.post("/embeddings", &body, &deadline, &cancellation).await?;
        let reading = http::read_body(response, MAX_REPLY_BYTES);
        let reply = deadline.within(self.settings.idle_timeout, Phase::Idle, &cancellation, reading).await??;
        serde_json::from_slice(&reply)
            .map_err(|error| Error::bad_reply(format!("not a list of embeddings ({:?})", error.classify())))
    }
}

fn in_order(items: Vec<EmbeddingItem>, count: usize) -> Result<Vec<Vec<f32>>, Error> {
    let mut slots: Vec<Option<Vec<f32>>> = vec![None; count];
    for item in items {
        let Some(slot) = slots.get_mut(item.index) else {
            return Err(Error::bad_reply(format!("vector {} was not asked for", item.index)));
        };
        if slot.replace(item.embedding).is_some() {
            return Err(Error::bad_reply(format!("vector {} came twice", item.index)));
        }
    }
    let whole: Option<Vec<Vec<f32>>> = slots.into_iter().collect();
    whole.ok_or_else(|| Error::bad_reply("a vector is missing"))
}

fn check_vector(vector: &[f32], expected: usize) -> Result<(), Error> {
    if vector.len() != expected || vector.is_empty() {
        return Err(Error::bad_reply(format!("a vector has {} dimensions, not {expected}", vector.len())));
    }
    if !vector.iter().all(|number| number.is_finite()) {
        return Err(Error::bad_reply("a vector holds something that is not a finite number"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_do_not_fit_are_refused() {
        assert!(check_vector(&[1.0, 2.0], 2).is_ok());
        for (vector, expected) in [(vec![1.0], 2), (vec![], 0), (vec![f32::NAN, 1.0], 2), (vec![f32::INFINITY, 1.0], 2)]
        {
            assert!(check_vector(&vector, expected).is_err(), "{vector:?}");
        }
    }
}

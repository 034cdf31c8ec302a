//! The seam behind which vectors are made, and the local backend that needs no model.

use std::{collections::HashMap, future::Future, pin::Pin};

use crate::tokens::Tokenizer;

/// Dimensions of the local vectors: enough that two unrelated terms seldom share one.
const HASH_DIMENSIONS: usize = 256;

/// Vectors in the order of the texts.
pub type Embedding<'a> = Pin<Box<dyn Future<Output = Result<Vec<Vec<f32>>, EmbedError>> + Send + 'a>>;

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The provider may answer later: overload, time-out, network.
    #[error("Embedding provider is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The provider will not answer this request however often it is asked.
    #[error("Embedding provider refused the request")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer has the wrong number of vectors or dimensions.
    #[error("Embedding provider answered {got} instead of {expected}")]
    Shape {
        /// What came.
        got: String,
        /// What was asked for.
        expected: String,
    },
}

/// Makes vectors; dyn-compatible because the backend is chosen by a setting.
pub trait Embedder: Send + Sync {
    /// `name/dimensions/version`; vectors of different identities are never compared.
    fn identity(&self) -> &str;

    /// Length of every vector.
    fn dimensions(&self) -> usize;

    /// Whether the vectors carry no more meaning than the words themselves.
    fn degraded(&self) -> bool;

    /// Share of the dense score in the fused one, 0 to 1.
    fn weight(&self) -> f64 {
        // Measured on code search: 0.8 for a model; hashed words only smooth the lexical score.
        if self.degraded() { 0.3 } else { 0.8 }
    }

    /// One vector of unit length for each text, in order.
    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a>;
}

/// Feature hashing of code-aware terms: deterministic, local, free, and honest about being degraded.
#[derive(Default)]
pub struct HashEmbedder {
    tokenizer: Tokenizer,
}

impl HashEmbedder {
    /// The vector of one text; all zeros for a text without terms.
    #[must_use]
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let mut counts: HashMap<String, u32> = HashMap::new();
        for term in self.tokenizer.terms(text) {
            *counts.entry(term).or_default() += 1;
        }
        let mut counted: Vec<(String, u32)> = counts.into_iter().collect();
        // Sums of floats depend on their order, and equal texts must give equal vectors.
        counted.sort_unstable();
        let mut vector = vec![0.0_f32; HASH_DIMENSIONS];
        for (term, count) in counted {
            let hash = fnv1a(term.as_bytes());
            let slot = (hash % HASH_DIMENSIONS as u64) as usize;
            let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
            vector[slot] += sign * (1.0 + (count as f32).ln());
        }
        normalise(&mut vector);
        vector
    }
}

impl Embedder for HashEmbedder {
    fn identity(&self) -> &str {
        "local-hash/256/1"
    }

    fn dimensions(&self) -> usize {
        HASH_DIMENSIONS
    }

    fn degraded(&self) -> bool {
        true
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        let vectors = texts.iter().map(|text| self.vector(text)).collect();
        Box::pin(std::future::ready(Ok(vectors)))
    }
}

/// Scales to unit length, so that a dot product is the cosine; leaves a zero vector alone.
pub(crate) fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

/// Dot product; the cosine for vectors of unit length.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    // Eight sums side by side let the compiler use vector instructions, which one running sum forbids.
    let (left_blocks, left_rest) = left.as_chunks::<8>();
    let (right_blocks, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (left_block, right_block) in left_blocks.iter().zip(right_blocks) {
        for lane in 0..8 {
            sums[lane] += left_block[lane] * right_block[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// FNV-1a with a final mix, since its high bits alone are poor for short terms.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::{Embedder, HashEmbedder, dot};

    #[test]
    fn local_vectors_are_deterministic_and_of_unit_length() {
        let embedder = HashEmbedder::default();
        let vector = embedder.vector("fn claim_batch(limit: u32) -> Vec<Message>");
        assert_eq!(vector, HashEmbedder::default().vector("fn claim_batch(limit: u32) -> Vec<Message>"));
        assert_eq!(vector.len(), embedder.dimensions());
        assert!((dot(&vector, &vector) - 1.0).abs() < 1e-5);
        assert!(embedder.degraded());
    }

    #[test]
    fn text_that_shares_words_is_nearer() {
        let embedder = HashEmbedder::default();
        let question = embedder.vector("how is a batch of messages claimed");
        let near = embedder.vector("claims a batch of queued messages");
        let far = embedder.vector("renders the dashboard page as html");
        assert!(dot(&question, &near) > dot(&question, &far) + 0.2);
    }

    #[test]
    fn text_without_terms_gives_a_zero_vector() {
        assert!(HashEmbedder::default().vector("\0 {} ;").iter().all(|value| *value == 0.0));
    }
}

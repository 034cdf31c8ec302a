//! Vectors of an OpenAI-compatible endpoint.

use cogo_model_client::{Error as ModelError, OpenAi, Settings};

use crate::embed::{EmbedError, Embedder, Embedding, HashEmbedder, normalise};

/// A model behind HTTP.
pub struct ModelEmbedder {
    client: OpenAi,
    identity: String,
    dimensions: usize,
}

impl ModelEmbedder {
    /// Asks the endpoint for one vector, to learn whether it answers and how long its vectors are.
    ///
    /// # Errors
    /// When the endpoint does not answer or refuses.
    pub async fn connect(settings: Settings) -> Result<Self, EmbedError> {
        let model = settings.embedding_model.clone();
        let client = OpenAi::new(settings).map_err(refused)?;
        let probe = client.embed(&["dimensions".to_owned()]).await.map_err(told)?;
        let dimensions = probe.first().map_or(0, Vec::len);
        if dimensions == 0 {
            return Err(EmbedError::Shape { got: "an empty vector".to_owned(), expected: "a vector".to_owned() });
        }
        Ok(Self { client, identity: format!("{model}/{dimensions}"), dimensions })
    }
}

impl Embedder for ModelEmbedder {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn degraded(&self) -> bool {
        false
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        Box::pin(async move {
            let mut vectors = self.client.embed(texts).await.map_err(told)?;
            vectors.iter_mut().for_each(|vector| normalise(vector));
            Ok(vectors)
        })
    }
}

/// The embedder that the settings ask for: a model if an endpoint and an embedding model are named, else the local one.
///
/// # Errors
/// When a model is asked for and does not answer; the local one never takes its place in silence, since vectors of
/// different embedders cannot be compared.
pub async fn embedder_of(settings: Settings) -> Result<Box<dyn Embedder>, EmbedError> {
    if settings.is_configured() && !settings.embedding_model.is_empty() {
        return Ok(Box::new(ModelEmbedder::connect(settings).await?));
    }
    Ok(Box::new(HashEmbedder::default()))
}

impl EmbedError {
    /// Whether it says something about the provider, rather than about this one request.
    #[must_use]
    pub fn tells_against_provider(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Shape { .. } => true,
            Self::Refused(source) => {
                source.downcast_ref::<ModelError>().is_some_and(ModelError::tells_against_provider)
            }
        }
    }
}

fn told(error: ModelError) -> EmbedError {
    if error.is_retriable() { EmbedError::Unavailable(Box::new(error)) } else { refused(error) }
}

fn refused(error: ModelError) -> EmbedError {
    EmbedError::Refused(Box::new(error))
}

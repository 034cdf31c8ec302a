//! The client against a real HTTP server that plays the provider.
#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on stops the test")]

mod it {
    //! One module per family of behaviour.
    mod chat;
    mod embeddings;
    mod faults;
    mod limits;
    mod provider;
    mod scripted;
}

//! The registry on a real Postgres.
#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on stops the test")]

mod it {
    //! One module per family of behaviour.
    mod fleet;
    mod heartbeat;
    mod lifecycle;
    mod outage;
    mod slots;
    mod sweep;
}

//! The registry on a real Postgres.
#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on stops the test")]

mod it {
    //! One module per family of behaviour.
    mod breakers;
    mod carried;
    mod config;
    mod credentials;
    mod epochs;
    mod examples;
    mod fleet;
    mod heartbeat;
    mod kv;
    mod lifecycle;
    mod matrix;
    mod orders;
    mod outage;
    mod pools;
    mod replay;
    mod routing;
    mod schemas;
    mod schemas_in_memory;
    mod slots;
    mod standing_orders;
    mod sweep;
    mod view;
}

//! The sandbox manager with real commands and real connections.
#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on stops the test")]

mod it {
    //! One module per family of behaviour.
    mod support;

    mod children;
    mod commands;
    mod ends;
    mod workers;
}

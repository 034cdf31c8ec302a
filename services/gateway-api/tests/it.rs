//! The front door over HTTP, on a real database.
#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on stops the test")]

mod it {
    //! One module per family of behaviour.
    mod support;

    mod access;
    mod artifacts;
    mod bad_input;
    mod partials;
    mod process;
    mod results;
    mod streams;
    mod submissions;
}

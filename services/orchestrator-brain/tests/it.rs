//! The orchestrator on a real database: deciding, learning, HTTP.

#[cfg(test)]
mod it {
    mod deciding;
    mod http;
    mod limits;
    mod observing;
    mod process;
    mod support;
}

//! The dispatcher on a real database.

#[cfg(test)]
mod it {
    mod dispatching;
    mod process;
}

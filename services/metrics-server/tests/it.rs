//! The metrics server over HTTP on a real database.

#[cfg(test)]
mod it {
    mod lists;
    mod live;
    mod page;
    mod scrape;
    mod seeded;
    mod summary;
}

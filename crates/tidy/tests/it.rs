//! The rules that the design and the style of the workspace set, each as a test that names every place which breaks it.

#[cfg(test)]
mod it {
    //! One module per group of rules.
    mod directions;
    mod files;
    mod forbidden;
    mod manifests;
    mod migrations;
    mod paths;
    mod processes;
    mod tables;

    /// Fails with the whole list, so that one run shows all there is to mend.
    fn hold(rule: &str, breaches: &[String]) {
        assert!(breaches.is_empty(), "{rule}:\n  {}\n", breaches.join("\n  "));
    }
}

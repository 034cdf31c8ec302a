//! Tells questions about structure, which the code graph answers, from all others. Deterministic, and shy: what is not
//! clearly about structure is searched for instead.

use crate::{
    patterns::name_in,
    words::{Word, words},
};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Who imports or uses the named thing.
    Importers(String),
    /// What the named file takes from elsewhere.
    Imports(String),
    /// What may break when the named thing changes.
    Impact(String),
    /// Whether files import each other in a circle.
    Cycles,
    /// Anything else.
    Other,
}

const IMPORTERS: [&str; 10] = [
    "@ask? @who|which that|which? @be? @use on|upon|in? T",
    "@ask? which|what|the|every? @things that|which|do|does|@be? @use on|upon|in? T",
    "@ask? where|what|who|which? @things? @be T @used in|by|from|anywhere|somewhere|anything? what|anything|anyone?",
    "where|how do|does @person|it @use T",
    "who|what @things? @be T @used by",
    "T @be @used by|in who|whom|what|where|which @things?",
    "by what|whom|which @things? @be T @used",
    "@ask? who|what|which|where? @be? the? importers|users|dependents|usages|uses|references|consumers|importer of|to T",
    "does @who|@things @use on|upon? T",
    "what|which @things|tests? would? need|needs T",
];

const IMPORTS: [&str; 5] = [
    "@ask? what|which @things? does|do|did T @use on|upon|in?",
    "@ask? what|which? @be? the? imports|dependencies|deps|requirements of|for T",
    "@ask? what|which @things? @be @used by T",
    "@ask? what|which @things? @be T @use on|upon?",
    "on? what|which @things? does T @use on|upon?",
];

const IMPACT: [&str; 11] = [
    "what|which|who @things|tests? @modal? @be? needs|need|has|have? to? @be? @broken working? if|when|once|after @person @change T",
    "what|which|who @things|tests? @modal? @be? needs|need|has|have? to? @be? @broken working? if|when|once|after T @modal? @be? @change",
    "what|which|who @things|tests? @modal? @be? @broken working? by|after|when|from @changing T",
    "what|which|who @things|tests? @modal? @be? @broken by a|any|the? change|changes to|in|of T",
    "if|when|once @person @change T what|which|who @things|tests? @modal? @be? @broken working?",
    "if|when|once T @modal? @be? @change what|which|who @things|tests? @modal? @be? @broken working?",
    "what|which @things|tests? @modal @changing T @broken",
    "what|which @things|tests? @modal T break|affect|impact",
    "@ask? what? @be|@modal? be? the? blast|ripple|possible? @impact of|from|on? a|any|the? @changing|change|changes? to|in|of? T",
    "how risky @be it? to? @change|@changing T",
    "what|which @things|tests? @be? @broken|covered by T",
];

/// Words of which a question about cycles consists; any other word means that something else is asked.
const CYCLE_WORDS: [&str; 46] = [
    "are",
    "is",
    "there",
    "any",
    "do",
    "does",
    "we",
    "have",
    "has",
    "the",
    "a",
    "an",
    "which",
    "what",
    "name",
    "list",
    "find",
    "give",
    "import",
    "imports",
    "importing",
    "dependency",
    "dependencies",
    "module",
    "modules",
    "file",
    "files",
    "package",
    "packages",
    "crate",
    "crates",
    "cycle",
    "cycles",
    "cyclic",
    "circular",
    "circle",
    "circles",
    "in",
    "between",
    "among",
    "exist",
    "it",
    "each",
    "other",
    "of",
    "code",
];

/// What the question asks for.
pub(crate) fn classify(question: &str) -> Intent {
    let words = words(question);
    if asks_for_cycles(&words) {
        return Intent::Cycles;
    }
    let first_in = |patterns: &[&str]| patterns.iter().find_map(|pattern| name_in(pattern, &words));
    first_in(&IMPACT)
        .map(Intent::Impact)
        .or_else(|| first_in(&IMPORTS).map(Intent::Imports))
        .or_else(|| first_in(&IMPORTERS).map(Intent::Importers))
        .unwrap_or(Intent::Other)
}

fn asks_for_cycles(words: &[Word]) -> bool {
    let has = |set: &[&str]| words.iter().any(|word| set.contains(&word.lower.as_str()));
    let about_imports = has(&["import", "imports", "importing", "dependency", "dependencies", "module", "modules"]);
    let about_cycles = has(&["cycle", "cycles", "cyclic", "circular", "circle", "circles"]);
    about_imports && about_cycles && words.iter().all(|word| CYCLE_WORDS.contains(&word.lower.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{Intent, classify};

    fn check(question: &str, expected: Intent) {
        assert_eq!(classify(question), expected, "{question}");
    }

    #[test]
    fn questions_about_users_are_recognised() {
        for (question, name) in [
            ("who imports `bus_core::claim`?", "bus_core::claim"),
            ("Who imports Claim", "Claim"),
            ("What uses crates/bus-core/src/claim.rs?", "crates/bus-core/src/claim.rs"),
            ("what depends on the claim module?", "claim"),
            ("which files import \"Claim\" in this repository?", "Claim"),
            ("List all files that import Claim::renew()", "Claim::renew()"),
            ("show me everything that uses `retry`", "retry"),
            ("Where is `Claim` used?", "Claim"),
            ("where is the struct Claim imported", "Claim"),
            ("what are the users of bus_core", "bus_core"),
            ("importers of claim.rs", "claim.rs"),
            ("what is Claim used by?", "Claim"),
            ("is `Claim` used anywhere?", "Claim"),
            ("Does anything depend on ./util?", "./util"),
            ("which modules are using Bus?", "Bus"),
            ("who's importing tokio?", "tokio"),
            ("can you tell me who uses the function next_claim", "next_claim"),
        ] {
            check(question, Intent::Importers(name.to_owned()));
        }
    }

    #[test]
    fn questions_about_own_imports_are_recognised() {
        for (question, name) in [
            ("What does claim.rs import?", "claim.rs"),
            ("what does `bus_core::lease` depend on?", "bus_core::lease"),
            ("Which modules does src/lib.rs use?", "src/lib.rs"),
            ("dependencies of bus-core", "bus-core"),
            ("list the imports of main.rs", "main.rs"),
            ("what is imported by claim.rs", "claim.rs"),
            ("what is claim.rs importing?", "claim.rs"),
        ] {
            check(question, Intent::Imports(name.to_owned()));
        }
    }

    #[test]
    fn questions_about_impact_are_recognised() {
        for (question, name) in [
            ("what breaks if `Claim` changes?", "Claim"),
            ("What would break if I change bus_core::claim?", "bus_core::claim"),
            ("what is affected if claim.rs is removed", "claim.rs"),
            ("Which files are affected when Claim is renamed?", "Claim"),
            ("which tests fail if I break next_claim", "next_claim"),
            ("What happens if I delete the file src/claim.rs?", "src/claim.rs"),
            ("if I rename Claim, what breaks?", "Claim"),
            ("If `Claim` changes, which tests are affected?", "Claim"),
            ("impact of Claim", "Claim"),
            ("what is the impact of changing `Claim`?", "Claim"),
            ("What's the blast radius of a change to claim.rs?", "claim.rs"),
            ("what is affected by changes to Claim", "Claim"),
            ("what needs to change if Claim changes?", "Claim"),
            ("what stops working when claim.rs is deleted?", "claim.rs"),
            ("what does changing Claim break?", "Claim"),
        ] {
            check(question, Intent::Impact(name.to_owned()));
        }
    }

    #[test]
    fn questions_about_cycles_are_recognised() {
        for question in [
            "Are there import cycles?",
            "are there any circular imports in this repository?",
            "which modules import each other in a circle",
            "list cyclic dependencies",
            "show me the import cycles",
        ] {
            check(question, Intent::Cycles);
        }
    }

    #[test]
    fn everything_else_is_searched_for() {
        for question in [
            "",
            "?",
            "who",
            "what does Claim do?",
            "How does the code detect import cycles?",
            "what happens when the lease expires?",
            "What uses the lease to detect dead workers?",
            "who imports it?",
            "what depends on this?",
            "what does the dispatcher use for retries?",
            "how is a message claimed",
            "why does Claim import Lease?",
            "where is the retry delay computed?",
            "what is a lease used for?",
            "which embedder is used when no model is configured?",
            "explain what breaks if `Claim` changes and why we should care about the lease",
            "what is the impact of a lost notification on latency?",
        ] {
            check(question, Intent::Other);
        }
    }
}

//! Documents of settings as people write them: JSON or TOML, one for each name of processes.

use std::io::Read;

use serde_json::{Map, Value};

use crate::{
    command::key::agent_name,
    failure::{Failure, Kind, about_file},
};

/// The documents of a file by scope; null where one is to be taken away.
pub(super) fn read(file: &str) -> Result<Map<String, Value>, Failure> {
    let text = if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file).map_err(about_file("read", file.as_ref()))?
    };
    parse(&text, file.to_ascii_lowercase().ends_with(".toml"))
}

fn parse(text: &str, is_toml: bool) -> Result<Map<String, Value>, Failure> {
    let value: Value = if is_toml {
        toml::from_str(text)
            .map_err(|error| Failure::new(Kind::Usage, "The file is not TOML").cause(error.to_string()))?
    } else {
        serde_json::from_str(text)
            .map_err(|error| Failure::new(Kind::Usage, "The file is not JSON").cause(error.to_string()))?
    };
    let Value::Object(documents) = value else {
        return Err(wrong("The file is not an object of names and their settings"));
    };
    if documents.is_empty() {
        return Err(wrong("The file changes nothing"));
    }
    for (name, document) in &documents {
        scope(name)?;
        if !document.is_object() && !document.is_null() {
            return Err(wrong(&format!("The settings of {name} are neither an object nor null")));
        }
    }
    Ok(documents)
}

/// A name of processes, or all of them.
pub(super) fn scope(name: &str) -> Result<&str, Failure> {
    match name {
        "*" => Ok(name),
        _ => agent_name(name).map(|_| name).map_err(|rule| wrong(&format!("{name:?} names no process: {rule}, or *"))),
    }
}

fn wrong(what: &str) -> Failure {
    Failure::new(Kind::Usage, what).hint("such as {\"rag-embed\": {\"concurrency\": 8}}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_and_toml_say_the_same() {
        let expected = json!({"*": {"concurrency": 4}, "rag-embed": {"concurrency": 8}});
        let of_json = parse(&expected.to_string(), false).unwrap();
        let of_toml = parse("[\"*\"]\nconcurrency = 4\n[rag-embed]\nconcurrency = 8\n", true).unwrap();
        assert_eq!((Value::Object(of_json), Value::Object(of_toml)), (expected.clone(), expected));
        assert_eq!(parse("{\"rag-embed\": null}", false).unwrap()["rag-embed"], Value::Null);
    }

    #[test]
    fn what_is_no_document_by_name_is_refused_as_usage() {
        for text in ["", "[]", "{}", "3", "{\"Rag\": {}}", "{\"rag-embed\": 3}", "{\"rag embed\": {}}"] {
            assert_eq!(parse(text, false).unwrap_err().kind, Kind::Usage, "{text}");
        }
        assert_eq!(parse("concurrency = 8", true).unwrap_err().kind, Kind::Usage);
    }
}

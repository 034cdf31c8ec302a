//! Which lines of code are written in sentences: comments, docstrings and what SQL says in `comment on`.

/// For each line whether it is told in words rather than in code.
pub(crate) fn told(lines: &[impl AsRef<str>]) -> Vec<bool> {
    let mut docstring: Option<&str> = None;
    let mut comment_on = false;
    let judge = |line: &str| {
        let line = line.trim();
        if let Some(quote) = docstring {
            if line.contains(quote) {
                docstring = None;
            }
            return true;
        }
        let opened = ["\"\"\"", "'''"].into_iter().find(|quote| line.starts_with(quote));
        if let Some(quote) = opened {
            docstring = Some(quote).filter(|quote| !line[quote.len()..].contains(quote));
            return true;
        }
        comment_on = (comment_on || starts_comment_on(line)) && !line.is_empty();
        let told = comment_on || is_comment(line);
        comment_on &= !line.ends_with(';');
        told
    };
    lines.iter().map(AsRef::as_ref).map(judge).collect()
}

/// Whether the line starts an SQL statement that says in words what something is.
pub(crate) fn starts_comment_on(line: &str) -> bool {
    line.get(..11).is_some_and(|start| start.eq_ignore_ascii_case("comment on "))
}

fn is_comment(line: &str) -> bool {
    let attribute = line.starts_with("#[") || line.starts_with("#!");
    !attribute && ["//", "#", "/*", "* ", "--", "<!--"].iter().any(|mark| line.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use super::told;

    fn check(text: &str, expected: &[usize]) {
        let lines: Vec<&str> = text.lines().collect();
        let found: Vec<usize> =
            told(&lines).into_iter().enumerate().filter(|(_, told)| *told).map(|(row, _)| row).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn comments_docstrings_and_sql_comments_are_told() {
        check("/// Doc.\n#[must_use]\nfn a() {\n    // Why.\n    b() // not a line of its own\n}", &[0, 3]);
        check("def a():\n    \"\"\"Doc.\n\n    More.\n    \"\"\"\n    b()", &[1, 2, 3, 4]);
        check("def a():\n    '''Doc.'''\n    b()", &[1]);
        check("-- Why.\nselect 1;\ncomment on function a()\n  is 'x';\nselect 2;", &[0, 2, 3]);
        check("# Why.\na = 1\n", &[0]);
    }
}

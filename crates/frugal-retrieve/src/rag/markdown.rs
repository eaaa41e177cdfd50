//! The sections of a Markdown text.

use std::ops::Range;

/// A section: a heading with what stands below it, up to the next heading of any level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its headings from the first level down; empty for what stands before the first heading.
    pub path: Vec<String>,
    /// Its bytes, heading included.
    pub bytes: Range<usize>,
}

/// The sections of a Markdown text, in order, without gaps. Lines of fenced code are no headings.
pub fn sections(text: &str) -> Vec<Section> {
    let mut found = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut fence: Option<&str> = None;
    let (mut start, mut at) = (0, 0);
    let names = |path: &[(usize, String)]| path.iter().map(|(_, name)| name.clone()).collect();
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| bare.starts_with(mark));
        match (fence, mark) {
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, Some(mark)) => fence = Some(mark),
            (None, None) => {
                if let Some((level, name)) = heading(line) {
                    if at > start {
                        found.push(Section {
                            path: names(&path),
                            bytes: start..at,
                        });
                    }
                    start = at;
                    path.retain(|(other, _)| *other < level);
                    path.push((level, name));
                }
            }
            (Some(_), _) => {}
        }
        at += line.len();
    }
    if at > start {
        found.push(Section {
            path: names(&path),
            bytes: start..at,
        });
    }
    found
}

/// Level and text of an ATX heading.
fn heading(line: &str) -> Option<(usize, String)> {
    let indented = line.len() - line.trim_start_matches(' ').len();
    let bare = line.trim();
    let level = bare.len() - bare.trim_start_matches('#').len();
    let name = &bare[level..];
    let is_heading = (1..=6).contains(&level)
        && indented < 4
        && (name.is_empty() || name.starts_with([' ', '\t']));
    is_heading.then(|| {
        (
            level,
            name.trim().trim_end_matches('#').trim_end().to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_no_heading_and_paths_go_down() {
        let text = "intro\n# A\n```\n# not\n```\n### B ##\nx\n## C\n#hashtag\n";
        let found: Vec<(String, &str)> = sections(text)
            .into_iter()
            .map(|s| (s.path.join("/"), &text[s.bytes]))
            .collect();
        let expected = [
            ("", "intro\n"),
            ("A", "# A\n```\n# not\n```\n"),
            ("A/B", "### B ##\nx\n"),
            ("A/C", "## C\n#hashtag\n"),
        ];
        let expected = expected.map(|(path, text)| (path.to_owned(), text));
        assert_eq!(found, expected);
    }
}

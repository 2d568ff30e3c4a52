//! As much of YAML as netplan and cloud-init files are written in: maps and lists by indentation, flow lists
//! and maps on one line, quoted and plain scalars, comments. Anchors, tags and text blocks are not.

/// The deepest nesting that is followed.
const DEPTH_MAX: usize = 32;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Yaml {
    Scalar(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// The value of a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Yaml> {
        self.entries().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The keys and values of a map; none of anything else.
    pub(super) fn entries(&self) -> impl Iterator<Item = &(String, Yaml)> {
        if let Yaml::Map(entries) = self { entries.as_slice() } else { &[] }.iter()
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        if let Yaml::Scalar(text) = self { Some(text) } else { None }
    }

    /// The items of a list, or a single scalar as if it were in one.
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Yaml::Scalar(text) => vec![text.clone()],
            Yaml::List(items) => items.iter().filter_map(Yaml::text).map(str::to_owned).collect(),
            Yaml::Map(_) => Vec::new(),
        }
    }
}

/// Reads a document; `None` where it is not written in what is understood.
pub(super) fn parse(text: &str) -> Option<Yaml> {
    let mut lines = Lines { lines: text.lines().filter_map(line).collect(), at: 0 };
    let document = lines.value(0, 0)?;
    (lines.at == lines.lines.len()).then_some(document)
}

/// Indentation and content of a line that has any.
fn line(line: &str) -> Option<(usize, String)> {
    let content = without_comment(line).trim_end();
    let trimmed = content.trim_start_matches(' ');
    let skipped = trimmed.is_empty() || trimmed == "---" || trimmed == "...";
    (!skipped).then(|| (content.len() - trimmed.len(), trimmed.to_owned()))
}

/// Which bytes of a line are outside of quotes. Quotes open where a scalar may begin.
fn outside_quotes(line: &str) -> Vec<bool> {
    let (mut quote, mut escaped, mut before) = (None, false, ' ');
    let mut outside = Vec::with_capacity(line.len());
    for character in line.chars() {
        let was_inside = quote.is_some();
        match quote {
            None if matches!(character, '"' | '\'') && matches!(before, ' ' | '[' | '{' | ',' | ':') => {
                quote = Some(character);
            }
            Some('"') if escaped => escaped = false,
            Some('"') if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            _ => {}
        }
        before = character;
        outside.extend(std::iter::repeat_n(!was_inside && quote.is_none(), character.len_utf8()));
    }
    outside
}

/// A `#` begins a comment at the start or after a blank, outside of quotes.
fn without_comment(line: &str) -> &str {
    let outside = outside_quotes(line);
    let begins = |&(at, _): &(usize, &str)| outside[at] && (at == 0 || line[..at].ends_with([' ', '\t']));
    line.match_indices('#').find(begins).map_or(line, |(at, _)| &line[..at])
}

struct Lines {
    lines: Vec<(usize, String)>,
    at: usize,
}

impl Lines {
    fn peek(&self) -> Option<(usize, &str)> {
        self.lines.get(self.at).map(|(indent, content)| (*indent, content.as_str()))
    }

    /// Reads what is indented by at least `least`.
    fn value(&mut self, least: usize, depth: usize) -> Option<Yaml> {
        if depth > DEPTH_MAX {
            return None;
        }
        let Some((indent, content)) = self.peek().filter(|(indent, _)| *indent >= least) else {
            return Some(Yaml::Scalar(String::new()));
        };
        if content == "-" || content.starts_with("- ") {
            self.list(indent, depth)
        } else if split_key(content).is_some() {
            self.map(indent, depth)
        } else {
            let value = flow(content, depth);
            self.at += 1;
            value
        }
    }

    fn list(&mut self, indent: usize, depth: usize) -> Option<Yaml> {
        let mut items = Vec::new();
        while let Some((_, content)) = self.peek().filter(|(found, _)| *found == indent) {
            if content != "-" && !content.starts_with("- ") {
                break;
            }
            let item = content[1..].trim_start().to_owned();
            if item.is_empty() {
                self.at += 1;
            } else {
                // What follows the dash stands as if on a line of its own.
                let moved = indent + content.len() - item.len();
                self.lines[self.at] = (moved, item);
            }
            items.push(self.value(indent + 1, depth + 1)?);
        }
        Some(Yaml::List(items))
    }

    fn map(&mut self, indent: usize, depth: usize) -> Option<Yaml> {
        let mut entries = Vec::new();
        while let Some((_, content)) = self.peek().filter(|(found, _)| *found == indent) {
            let Some((key, rest)) = split_key(content) else { break };
            let (key, rest) = (scalar(key), rest.to_owned());
            self.at += 1;
            let value = if !rest.is_empty() {
                flow(&rest, depth)?
            } else {
                // A list may stand as far left as the key that it belongs to.
                let list_here =
                    self.peek().is_some_and(|(found, content)| found == indent && content.starts_with('-'));
                self.value(if list_here { indent } else { indent + 1 }, depth + 1)?
            };
            entries.push((key, value));
        }
        Some(Yaml::Map(entries))
    }
}

/// Splits `key: value`; the colon ends the line or is followed by a blank, outside of quotes.
fn split_key(content: &str) -> Option<(&str, &str)> {
    if content.starts_with(['[', '{']) {
        return None;
    }
    let outside = outside_quotes(content);
    let ends =
        |at: &usize| outside[*at] && (content[at + 1..].is_empty() || content[at + 1..].starts_with(' '));
    let colon = content.match_indices(':').map(|(at, _)| at).find(ends)?;
    Some((&content[..colon], content[colon + 1..].trim()))
}

/// Reads a value on one line: a flow list, a flow map or a scalar.
fn flow(text: &str, depth: usize) -> Option<Yaml> {
    if depth > DEPTH_MAX {
        return None;
    }
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('[') {
        let items = split_flow(rest.strip_suffix(']')?);
        return Some(Yaml::List(items.into_iter().map(|item| flow(item, depth + 1)).collect::<Option<_>>()?));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let entries = split_flow(rest.strip_suffix('}')?).into_iter().map(|entry| {
            let (key, value) = split_key(entry.trim())?;
            Some((scalar(key), flow(value, depth + 1)?))
        });
        return Some(Yaml::Map(entries.collect::<Option<_>>()?));
    }
    Some(Yaml::Scalar(scalar(text)))
}

/// Splits at commas that are inside of no quotes and no inner brackets.
fn split_flow(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    let outside = outside_quotes(text);
    for (at, character) in text.char_indices().filter(|(at, _)| outside[*at]) {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn scalar(text: &str) -> String {
    super::unquoted(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_netplan_file_is_understood() {
        let text = "# made by hand\nnetwork:\n  version: 2\n  ethernets:\n    eth0: # the first\n      dhcp4: no\n      \
                    addresses:\n      - 10.0.0.2/24\n      - \"fe80::1/64\"\n      nameservers: {addresses: [1.1.1.1, 8.8.8.8]}\n      \
                    routes:\n        - to: default\n          via: 10.0.0.1\n        - to: 10.1.0.0/16\n          via: 10.0.0.3\n    eth1: {}\n";
        let yaml = parse(text).unwrap();
        let eth0 = yaml.get("network").unwrap().get("ethernets").unwrap().get("eth0").unwrap();
        assert_eq!(eth0.get("addresses").unwrap().texts(), ["10.0.0.2/24", "fe80::1/64"]);
        assert_eq!(
            eth0.get("nameservers").unwrap().get("addresses").unwrap().texts(),
            ["1.1.1.1", "8.8.8.8"]
        );
        let Some(Yaml::List(routes)) = eth0.get("routes") else { panic!() };
        assert_eq!(routes[1].get("via").unwrap().text(), Some("10.0.0.3"));
        assert!(yaml.get("network").unwrap().get("ethernets").unwrap().get("eth1").is_some());
    }

    #[test]
    fn what_is_not_understood_is_refused_and_ends() {
        let deep: String = (0..100).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        assert_eq!(parse(&deep), None);
        assert_eq!(parse(&"[".repeat(1000)), None);
        assert_eq!(parse("a: 1\n  b: 2\n"), None);
        for text in ["", "-", "- -", ":", "a:\n-", "'", "\"a: b", "a: 'b"] {
            let _ = parse(text);
        }
    }

    fn trees() -> impl Strategy<Value = Yaml> {
        let text = "[a-z0-9/.]{1,6}|[ -~]{0,8}|[a\"#:', \\\\]{0,8}";
        let leaf = text.prop_map(Yaml::Scalar);
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Yaml::List),
                proptest::collection::vec(("[a-z]{1,5}|[ -~]{1,6}|[a\"#:', \\\\]{1,6}", inner), 1..4)
                    .prop_map(Yaml::Map),
            ]
        })
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// Writes a value as others would, scalars always in quotes.
    fn render(value: &Yaml, indent: usize, out: &mut String) {
        let blanks = " ".repeat(indent);
        match value {
            Yaml::Scalar(text) => *out += &format!("{blanks}{}\n", quoted(text)),
            Yaml::List(items) => items.iter().for_each(|item| {
                *out += &format!("{blanks}-\n");
                render(item, indent + 2, out);
            }),
            Yaml::Map(entries) => entries.iter().for_each(|(key, item)| {
                *out += &format!("{blanks}{}:\n", quoted(key));
                render(item, indent + 1, out);
            }),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(tree in trees()) {
            let mut text = String::new();
            render(&tree, 0, &mut text);
            prop_assert_eq!(parse(&text), Some(tree), "{}", text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "([ a:\\-\\[\\]{}\"',#\n]|[a-z]){0,80}") {
            let _ = parse(&text);
        }
    }
}

//! Manifests as text: several documents, YAML or JSON, of which only the changed ones are written anew.

use serde_json::Value;

/// What can go wrong with manifests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document can't be read.
    #[error("document {number} (line {line} on) is not valid: {text}")]
    Read {
        /// Which document, from 1.
        number: usize,
        /// The line that it starts on, from 1.
        line: usize,
        /// What the reader says.
        text: String,
    },
    /// An object can't be written.
    #[error("failed to write YAML: {0}")]
    Write(String),
}

/// The notation of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The text, with the marker before it.
    pub text: String,
    /// What it says; `null` for an empty one.
    pub value: Value,
    /// The document's number, from 1.
    pub number: usize,
    /// How it is written.
    pub notation: Notation,
}

/// Reads all documents of a file, as `kubectl` does: YAML with its older rules (`yes` is a boolean, `0755` is octal), or JSON.
pub fn read(text: &str) -> Result<Vec<Document>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with(['{', '['])
        && let Some(documents) = read_json(text)
    {
        return Ok(documents);
    }
    let mut documents = Vec::new();
    let mut line = 1;
    for (index, part) in split(text).into_iter().enumerate() {
        let number = index + 1;
        let value = read_yaml(part).map_err(|text| Error::Read { number, line, text })?;
        line += part.lines().count();
        documents.push(Document { text: part.to_owned(), value, number, notation: Notation::Yaml });
    }
    Ok(documents)
}

/// Writes an object as one YAML document, without a marker.
pub fn to_yaml(value: &Value) -> Result<String, Error> {
    // Folding long lines would be right too, but makes long commands and annotations hard to compare.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).map_err(|error| Error::Write(error.to_string()))
}

/// The line with `---` that starts a document, and comments before its first field; kept when the rest is written anew.
pub fn head(text: &str) -> String {
    let is_head = |line: &&str| line.trim().is_empty() || line.starts_with('#') || is_marker(line);
    text.split_inclusive('\n').take_while(is_head).collect()
}

/// `---` at the start of a line always starts a document, in a block of text too.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if is_marker(line) && !text.get(start..at).unwrap_or_default().trim().is_empty() {
            parts.push(text.get(start..at).unwrap_or_default());
            start = at;
        }
        at += line.len();
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn read_yaml(text: &str) -> Result<Value, String> {
    let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || is_marker(line);
    if text.lines().all(is_comment) {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

fn read_json(text: &str) -> Option<Vec<Document>> {
    let mut documents = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut start = 0;
    while let Some(value) = reader.next() {
        let end = reader.byte_offset();
        let part = text.get(start..end)?.to_owned();
        documents.push(Document {
            text: part,
            value: value.ok()?,
            number: documents.len() + 1,
            notation: Notation::Json,
        });
        start = end;
    }
    if let Some(last) = documents.last_mut() {
        last.text.push_str(text.get(start..)?);
    }
    Some(documents)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        read(text).unwrap().into_iter().map(|document| document.value).collect()
    }

    #[test]
    fn reads_several_documents_and_keeps_their_text() {
        let text = "# first\n---\na: 1\n--- # second\nb: |\n  x\n  --- y\n---\n# nothing\n---\nc: 3";
        let documents = read(text).unwrap();
        assert_eq!(documents.iter().map(|it| it.text.as_str()).collect::<String>(), text);
        let values: Vec<_> = documents.iter().map(|it| it.value.clone()).filter(|it| !it.is_null()).collect();
        assert_eq!(values, [json!({ "a": 1 }), json!({ "b": "x\n--- y\n" }), json!({ "c": 3 })]);
    }

    #[test]
    fn reads_json_one_after_the_other() {
        let text = "{\"a\": 1}\n{\"b\": [2]}\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.iter().map(|it| it.text.as_str()).collect::<String>(), text);
        assert_eq!(values(text), [json!({ "a": 1 }), json!({ "b": [2] })]);
    }

    #[test]
    fn reads_yaml_in_flow_style_too() {
        assert_eq!(values("{a: 1, b: [x]}"), [json!({ "a": 1, "b": ["x"] })]);
    }

    #[test]
    fn reads_what_kubectl_reads() {
        let text = "a: yes\nb: 0755\nc: ~\nd: '1e3'\ne: 0x1f\nf: 9223372036854775807\ng: \"no\"\nh: 12:30\ni: 1.5\n";
        let expected = json!({
            "a": true, "b": 493, "c": null, "d": "1e3", "e": 31, "f": 9_223_372_036_854_775_807_u64, "g": "no", "h": "12:30",
            "i": 1.5,
        });
        assert_eq!(values(text), [expected]);
    }

    #[test]
    fn expands_anchors() {
        let text = "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\n";
        assert_eq!(values(text), [json!({ "a": { "b": 1 }, "c": { "b": 1 }, "d": { "b": 1, "e": 2 } })]);
    }

    #[test]
    fn names_the_document_that_is_wrong() {
        let error = read("a: 1\n---\nb: [\n").unwrap_err().to_string();
        assert!(error.starts_with("document 2 (line 2 on) is not valid:"), "{error}");
    }

    #[test]
    fn what_looks_like_something_else_stays_a_string() {
        let value = json!({
            "texts": [
                "yes", "no", "on", "off", "y", "n", "true", "null", "~", "", " ", "1e3", "0755", "0o755", "0x1f", "1_000", "12:30:45",
                "2001-01-01", "=", "<<", "- a", "a: b", "a #b", "#a", "*a", "&a", "!a", "%a", "@a", "`a", "a\nb", "a\n", "\na", "a\n\n",
                "\ta", "a\tb", "é", "\u{7f}", "\u{0}", "\u{2028}", "---", "---\na", "...", "'", "\"", "\\", "|", ">", "[a", "{a", "1.",
                ".5", "+1", "-1", ".inf", ".nan", "NaN", "a'b\"c", "trailing ", "x: |\n  y\n", "\r\n", "\u{feff}", "1e", "0b1", "-",
                "?", ":", ",", "key:",
            ],
            "numbers": [0, -1, 1.5, 1e100, u64::MAX, i64::MIN],
            "others": [null, true, false, {}, [], [[]], [{}], { "yes": 1, "1": 2, "": 3, "a: b": 4, "null": 5, "~": 6 }],
        });
        assert_eq!(values(&to_yaml(&value).unwrap()), [value]);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[ -~\n\t]{0,12}".prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[ -~]{0,8}", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_json()) {
            let text = to_yaml(&value).unwrap();
            let read: Vec<Value> = values(&text);
            prop_assert_eq!(&read, &[value], "{}", text);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = read(&text);
        }
    }
}

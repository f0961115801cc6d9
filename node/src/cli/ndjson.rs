//! Records as lines of text: what `import` reads and `export` writes.
//!
//! ```text
//! {"key":"greeting","value":"hello"}            UTF-8 text as it is
//! {"key_b64":"/w==","value_b64":"AAE="}         other bytes in base64, padded
//! {"key":"cart","values":["eggs","milk"]}       siblings; written by `export --siblings all`
//! ```
//!
//! A record has one form only, compact, with the key first and siblings in the order of their bytes, so that two exports of the
//! same data are the same bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use quorate_wire::{KEY_LEN_MAX, SIBLINGS_MAX, VALUE_LEN_MAX};
use serde::{Deserialize, Serialize};

/// A key and its value, or its siblings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// 1 to [`KEY_LEN_MAX`] bytes.
    pub(crate) key: Bytes,
    /// One to [`SIBLINGS_MAX`], each of at most [`VALUE_LEN_MAX`] bytes.
    pub(crate) values: Vec<Bytes>,
}

/// The longest line that can hold a legal record: each byte of text may be escaped as six characters. A node takes no write that
/// makes a record of siblings larger than sixteen of the largest values.
pub(crate) const LINE_LEN_MAX: usize = 6 * (KEY_LEN_MAX + 16 * VALUE_LEN_MAX) + 1024;

/// Parses one line.
///
/// # Errors
/// What is wrong with it, for people, without the line number.
pub(crate) fn parse(line: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object with `key` and `value`")]
    struct Line {
        key: Option<String>,
        key_b64: Option<String>,
        value: Option<String>,
        value_b64: Option<String>,
        values: Option<Vec<String>>,
        values_b64: Option<Vec<String>>,
    }
    // serde takes an array as the fields in their order, and calls what begins otherwise an "ident".
    match line.trim_ascii().first() {
        Some(b'[') => {
            return Err("an array, expected an object with `key` and `value`; `jq -c '.[]' FILE` writes those of an array in lines".to_owned());
        }
        Some(first) if *first != b'{' => {
            return Err(r#"no JSON object; a line is one as {"key":"k","value":"v"}"#.to_owned());
        }
        _ => {}
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| {
        // serde_json counts lines within the line, which misleads here.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned();
        format!("{what} (column {})", error.column())
    })?;
    let key = one_of("key", line.key, line.key_b64)?;
    let values = match (&line.values, &line.values_b64) {
        (None, None) => vec![one_of("value", line.value, line.value_b64)?],
        _ if line.value.is_some() || line.value_b64.is_some() => {
            return Err("one value and several are both there, one of them is enough".to_owned());
        }
        (Some(_), Some(_)) => return Err("`values` and `values_b64` are both there, one is enough".to_owned()),
        _ => {
            let texts = line.values.into_iter().flatten().map(|text| one_of("values", Some(text), None));
            let encoded = line.values_b64.into_iter().flatten().map(|text| one_of("values", None, Some(text)));
            texts.chain(encoded).collect::<Result<Vec<_>, _>>()?
        }
    };
    if !(1..=SIBLINGS_MAX).contains(&values.len()) {
        return Err(format!("{} values, a key has 1 to {SIBLINGS_MAX}", values.len()));
    }
    match key.len() {
        0 => return Err(format!("the key is empty, it needs 1 to {KEY_LEN_MAX} bytes")),
        got if got > KEY_LEN_MAX => return Err(format!("the key has {got} bytes, at most {KEY_LEN_MAX} are allowed")),
        _ => {}
    }
    if let Some(value) = values.iter().find(|value| value.len() > VALUE_LEN_MAX) {
        return Err(format!("the value has {} bytes, at most {VALUE_LEN_MAX} are allowed", value.len()));
    }
    Ok(Record { key, values })
}

/// Bytes as JSON: text under one name, or base64 under another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Text<'a> {
    /// UTF-8.
    Utf8(&'a str),
    /// Anything.
    Base64(String),
}

impl<'a> Text<'a> {
    /// The shorter form that is exact.
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(|_| Self::Base64(STANDARD.encode(bytes)), Self::Utf8)
    }
}

/// Appends the line of a key with one value, or with several, and a newline.
pub(crate) fn write(buffer: &mut Vec<u8>, key: &[u8], values: &[&[u8]]) {
    buffer.push(b'{');
    field(buffer, "key", &Text::of(key));
    buffer.push(b',');
    match values {
        [value] => field(buffer, "value", &Text::of(value)),
        several => {
            let texts: Vec<_> = several.iter().map(|value| Text::of(value)).collect();
            if texts.iter().all(|text| matches!(text, Text::Utf8(_))) {
                pair(buffer, "values", &texts);
            } else {
                let encoded: Vec<_> = several.iter().map(|value| STANDARD.encode(value)).collect();
                pair(buffer, "values_b64", &encoded);
            }
        }
    }
    buffer.extend_from_slice(b"}\n");
}

/// The values of a key, each once and in order. Writes of the same bytes that knew nothing of one another are siblings in the cluster;
/// whoever reads the values finds nothing to choose between.
pub(crate) fn distinct(values: &[impl AsRef<[u8]>]) -> Vec<&[u8]> {
    let mut distinct: Vec<&[u8]> = values.iter().map(AsRef::as_ref).collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
}

fn field(buffer: &mut Vec<u8>, name: &str, text: &Text<'_>) {
    match text {
        Text::Utf8(_) => pair(buffer, name, text),
        Text::Base64(_) => pair(buffer, &format!("{name}_b64"), text),
    }
}

fn pair(buffer: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    serde_json::to_writer(&mut *buffer, name).expect("a Vec takes every byte");
    buffer.push(b':');
    serde_json::to_writer(buffer, value).expect("texts are JSON, and a Vec takes every byte");
}

fn one_of(name: &str, text: Option<String>, encoded: Option<String>) -> Result<Bytes, String> {
    match (text, encoded) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(encoded)) => {
            STANDARD.decode(encoded).map(Into::into).map_err(|error| format!("{name}_b64 is no base64: {error}"))
        }
        (None, None) => Err(format!("`{name}` (or `{name}_b64`) is missing")),
        (Some(_), Some(_)) => Err(format!("`{name}` and `{name}_b64` are both there, one is enough")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(key: &[u8], values: &[&[u8]]) -> String {
        let mut buffer = Vec::new();
        write(&mut buffer, key, values);
        String::from_utf8(buffer).expect("JSON is UTF-8")
    }

    #[test]
    fn a_record_has_one_form() {
        assert_eq!(line(b"greeting", &[b"hello"]), "{\"key\":\"greeting\",\"value\":\"hello\"}\n");
        assert_eq!(line(b"\xff", &[b"\x00\x01"]), "{\"key_b64\":\"/w==\",\"value\":\"\\u0000\\u0001\"}\n");
        assert_eq!(line(b"k", &[b"\xff"]), "{\"key\":\"k\",\"value_b64\":\"/w==\"}\n");
        assert_eq!(line(b"k", &[b""]), "{\"key\":\"k\",\"value\":\"\"}\n");
        assert_eq!(line(b"k", &[b"a", b"b"]), "{\"key\":\"k\",\"values\":[\"a\",\"b\"]}\n");
        assert_eq!(line(b"k", &[b"a", b"\xff"]), "{\"key\":\"k\",\"values_b64\":[\"YQ==\",\"/w==\"]}\n");
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, wanted) in [
            (r#" ["k",null,"v",null,null,null]"#, "expected an object"),
            ("", "EOF"),
            ("hello", r#"no JSON object; a line is one as {"key":"k","value":"v"}"#),
            ("key,value", "no JSON object"),
            ("{key:1}", "key must be a string"),
            ("[]", "expected"),
            ("{}", "`key` (or `key_b64`) is missing"),
            ("{\"key\":\"k\"}", "`value` (or `value_b64`) is missing"),
            ("{\"key\":\"k\",\"value\":1}", "expected a string"),
            ("{\"key\":\"k\",\"val\":\"v\"}", "unknown field `val`"),
            ("{\"key\":\"\",\"value\":\"v\"}", "the key is empty"),
            ("{\"key\":\"k\",\"key_b64\":\"aw==\",\"value\":\"v\"}", "both there"),
            ("{\"key\":\"k\",\"value_b64\":\"?\"}", "no base64"),
            ("{\"key\":\"k\",\"values\":[]}", "0 values, a key has 1 to 100"),
            ("{\"key\":\"k\",\"values\":[\"a\"],\"value\":\"b\"}", "one value and several"),
            ("{\"key\":\"k\",\"values\":[\"a\"],\"values_b64\":[]}", "both there"),
            ("{\"key\":\"k\",\"values_b64\":[\"?\"]}", "no base64"),
            ("{\"key\":\"k\",\"value\":\"v\"} x", "trailing"),
            ("{\"key\":\"k\",\"value\":\"v\"", "EOF"),
        ] {
            let error = parse(line.as_bytes()).expect_err(line);
            assert!(error.contains(wanted), "{line}: {error}");
            assert!(!error.contains("line 1"), "{error}");
        }
        let long = format!("{{\"key\":\"{}\",\"value\":\"\"}}", "k".repeat(KEY_LEN_MAX + 1));
        assert!(parse(long.as_bytes()).expect_err("too long").contains("1025 bytes"));
        assert!(parse(b"{\"key\":\"\xff\",\"value\":\"v\"}").is_err(), "JSON is UTF-8");
    }

    #[test]
    fn equal_siblings_are_one_value() {
        let none: [&[u8]; 0] = [];
        assert_eq!(distinct(&none), none);
        assert_eq!(distinct(&[&b"b"[..], b"a", b"b"]), [b"a", b"b"]);
    }

    #[test]
    fn the_longest_record_fits_a_line() {
        let (key, value) = ([1; KEY_LEN_MAX], vec![1; VALUE_LEN_MAX]);
        let mut buffer = Vec::new();
        write(&mut buffer, &key, &[&value[..]; 15]);
        assert!(buffer.len() <= LINE_LEN_MAX, "{} characters", buffer.len());
        assert!(parse(&buffer).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_survive_the_round_trip(key in prop::collection::vec(any::<u8>(), 1..40), value: Vec<u8>) {
            let mut buffer = Vec::new();
            write(&mut buffer, &key, &[&value]);
            prop_assert_eq!(buffer.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(parse(&buffer).expect("legal"), Record { key: key.into(), values: vec![value.into()] });
        }

        #[test]
        fn siblings_survive_the_round_trip(mut values in prop::collection::vec(any::<Vec<u8>>(), 1..9)) {
            let mut buffer = Vec::new();
            write(&mut buffer, b"k", &distinct(&values));
            values.sort();
            values.dedup();
            let values = values.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(parse(&buffer).expect("legal"), Record { key: "k".into(), values });
        }

        #[test]
        fn any_text_survives_the_round_trip(key in ".{1,40}", value in ".*") {
            let mut buffer = Vec::new();
            write(&mut buffer, key.as_bytes(), &[value.as_bytes()]);
            prop_assert_eq!(parse(&buffer).expect("legal"), Record { key: key.into(), values: vec![value.into()] });
        }

        #[test]
        fn any_bytes_as_a_line_are_refused_or_parsed(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}

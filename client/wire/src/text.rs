//! Texts that people have written, with whatever editor they have.

/// The text of a file, without the byte order mark that some editors put before it.
///
/// # Errors
/// What it is instead of UTF-8, and what to do about it.
pub fn of_file(mut file: Vec<u8>) -> Result<String, String> {
    if let Some(why) = other_encoding(&file) {
        return Err(why);
    }
    file.drain(..file.len() - without_mark(&file).len());
    String::from_utf8(file).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not text in UTF-8: save the file as UTF-8")
    })
}

/// These bytes without the byte order mark of UTF-8.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// What these bytes are if they are text of two or four bytes a character, and what to do about it.
pub fn other_encoding(text: &[u8]) -> Option<String> {
    let name = match text {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        // Without a mark: letters of ASCII have a zero on one side.
        [first, 0, third, ..] if first.is_ascii() && *first > 0 && *third > 0 => "UTF-16LE",
        [0, second, 0, ..] if second.is_ascii() && *second > 0 => "UTF-16BE",
        _ => return None,
    };
    Some(format!("it is text in {name}: save it as UTF-8, or run `iconv -f {name} -t UTF-8 OLD > NEW`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_is_read_with_and_without_a_mark_and_everything_else_is_named() {
        assert_eq!(of_file(b"\xef\xbb\xbfr = 1\n".to_vec()), Ok("r = 1\n".to_owned()));
        assert_eq!(of_file("ä".into()), Ok("ä".to_owned()));
        assert_eq!(of_file(Vec::new()), Ok(String::new()));
        let wide = |order: fn(u16) -> [u8; 2], mark: &[u8]| {
            [mark, &"r = 1".encode_utf16().flat_map(order).collect::<Vec<_>>()].concat()
        };
        for (file, wanted) in [
            (wide(u16::to_le_bytes, b"\xff\xfe"), "text in UTF-16: save it as UTF-8, or run `iconv -f UTF-16 -t"),
            (wide(u16::to_be_bytes, b"\xfe\xff"), "text in UTF-16:"),
            (wide(u16::to_le_bytes, b""), "text in UTF-16LE:"),
            (wide(u16::to_be_bytes, b""), "text in UTF-16BE:"),
            (b"\xff\xfe\0\0r\0\0\0".to_vec(), "UTF-32"),
            (b"r = 1\n# caf\xe9\n".to_vec(), "line 2 is not text in UTF-8"),
        ] {
            let why = of_file(file).expect_err(wanted);
            assert!(why.contains(wanted), "{wanted}: {why}");
        }
    }
}

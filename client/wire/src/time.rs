//! Times as people write them: one spelling in flags, variables, files and messages.

use std::time::Duration;

/// Parses a time as flags, variables and files have it: `250ms`, `5s`, `10m`, `1h 30m`.
///
/// # Errors
/// When it is none; the text says how one is written.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let bare = text.trim();
    if bare.parse::<u64>().is_ok() {
        return Err(format!("{text:?} lacks a unit: write {bare}ms or {bare}s"));
    }
    humantime::parse_duration(bare).map_err(|_| format!("{text:?} is no time: write 250ms, 2s or 1m"))
}

/// A time as people read it and [`parse_time`] reads it back, rounded to three digits or so: `250ms`, `2s`, `1m 30s`.
pub fn time_text(time: Duration) -> String {
    let rounded = match time.as_micros() {
        0..1_000 => Duration::from_micros(time.as_micros() as u64),
        1_000..10_000_000 => Duration::from_millis((time.as_micros() as u64 + 500) / 1_000),
        _ => Duration::from_secs((time.as_millis() as u64 + 500) / 1_000),
    };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_are_read_back() {
        for (text, ms) in
            [("0ms", 0), ("250ms", 250), ("2s", 2_000), ("1m", 60_000), ("2min", 120_000), ("1m 30s", 90_000)]
        {
            assert_eq!(parse_time(text).expect(text), Duration::from_millis(ms));
        }
        for bad in ["", "s", "1", "0", "-1s", "1 x", "soon", "99999999999999999999s"] {
            assert!(parse_time(bad).expect_err(bad).contains("write "), "{bad:?}");
        }
        for (micros, text) in
            [(12, "12us"), (499_998, "500ms"), (1_000_000, "1s"), (2_345_678, "2s 346ms"), (90_400_000, "1m 30s")]
        {
            assert_eq!(time_text(Duration::from_micros(micros)), text);
        }
    }
}

#![forbid(unsafe_code)]
//! JSON, appended to a buffer: no tree, no allocation.

use std::io::Write;

pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

pub fn write_number(out: &mut Vec<u8>, number: u64) {
    // Writing into memory does not fail.
    let _ = write!(out, "{number}");
}

/// Appends a JSON string, quotes included.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    write_utf8(out, text.as_bytes());
}

/// Appends a JSON string of bytes that are UTF-8. Quotes, backslashes and control characters are
/// escaped (RFC 8259 §7), everything else stands as it is.
pub fn write_utf8(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    out.push(b'"');
    for chunk in text.chunk_by(|_, next| !is_special(*next)) {
        let (first, plain) = match chunk.split_first() {
            Some((first, plain)) if is_special(*first) => (Some(*first), plain),
            _ => (None, chunk),
        };
        match first {
            Some(byte @ (b'"' | b'\\')) => write_bytes(out, &[b'\\', byte]),
            Some(b'\n') => write_bytes(out, b"\\n"),
            Some(b'\r') => write_bytes(out, b"\\r"),
            Some(b'\t') => write_bytes(out, b"\\t"),
            Some(byte) => {
                let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
                write_bytes(out, b"\\u00");
                write_bytes(out, &[digit(byte >> 4), digit(byte & 0x0f)]);
            }
            None => {}
        }
        write_bytes(out, plain);
    }
    out.push(b'"');
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Appends a time as RFC 3339 in UTC with milliseconds. `at_us` is microseconds since the Unix
/// epoch. Years beyond 9999 do not happen: Postgres' own clock made the time.
pub fn write_timestamp(out: &mut Vec<u8>, at_us: i64) {
    const DAY_MS: i64 = 86_400_000;
    let at_ms = at_us.div_euclid(1_000);
    let (day, ms) = (at_ms.div_euclid(DAY_MS), at_ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil_from_days(day);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1_000 % 60, ms % 1_000);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
}

/// As `write_timestamp`, with all six digits of the microseconds.
pub fn write_timestamp_us(out: &mut Vec<u8>, at_us: i64) {
    write_timestamp(out, at_us);
    out.pop();
    let _ = write!(out, "{:03}Z", at_us.rem_euclid(1_000));
}

/// Year, month and day of a number of days since 1970-01-01, by counting from a March 1st, so
/// that the leap day is the last of its year (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        let mut out = Vec::new();
        write_text(&mut out, text);
        String::from_utf8_lossy(&out).into_owned()
    }

    fn timestamp(at_us: i64) -> String {
        let mut out = Vec::new();
        write_timestamp(&mut out, at_us);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn text_is_what_serde_json_reads_back() {
        let all: String =
            (0..0x300).filter_map(char::from_u32).chain("日本 🦀\u{2028}".chars()).collect();
        let plain = ["", "a", "\"", "\\\"\\", "\n", "a\nb", "tab\t", "\u{0}", "ends\"", &all];
        for sample in plain {
            let written = text(sample);
            assert_eq!(serde_json::from_str::<String>(&written).ok().as_deref(), Some(sample));
        }
        assert_eq!(text("o\"r\\g\n\u{1}1"), r#""o\"r\\g\n\u00011""#);
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(timestamp(1_795_539_600_123_999), "2026-11-24T17:00:00.123Z");
        assert_eq!(timestamp(951_782_400_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(951_868_799_999_999), "2000-02-29T23:59:59.999Z");
        assert_eq!(timestamp(4_107_542_400_000_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(timestamp(253_402_300_799_999_999), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn microseconds_are_kept_where_they_matter() {
        for (at_us, expected) in
            [(0, "1970-01-01T00:00:00.000000Z"), (-1, "1969-12-31T23:59:59.999999Z")]
        {
            let mut out = Vec::new();
            write_timestamp_us(&mut out, at_us);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut previous = civil_from_days(-800_000);
        for days in -799_999..800_000 {
            let (year, month, day) = civil_from_days(days);
            let next_day = (previous.0, previous.1, previous.2 + 1);
            let next_month = (previous.0, previous.1 + 1, 1);
            let next_year = (previous.0 + 1, 1, 1);
            let today = (year, month, day);
            assert!([next_day, next_month, next_year].contains(&today), "{today:?}");
            previous = today;
        }
    }
}

//! Values as text and JSON, whatever the session's settings are.

#[pgrx::pg_schema]
mod tests {
    use crate::pg::value::Encoding;
    use pgrx::pg_sys::Datum;
    use pgrx::prelude::*;

    /// What an encoding writes of a value, given as an expression.
    fn written(expression: &str, write: impl Fn(Encoding, Datum, &mut Vec<u8>)) -> String {
        Spi::connect(|client| {
            let rows = client.select(&format!("select {expression}"), Some(1), &[]).unwrap();
            let encoding = Encoding::of(rows.column_type_oid(1).unwrap().value());
            let datum = rows.first().get_datum_by_ordinal(1).unwrap().unwrap();
            let mut out = Vec::new();
            write(encoding, datum, &mut out);
            String::from_utf8(out).unwrap()
        })
    }

    fn value_of(type_name: &str, literal: &str) -> String {
        format!("'{}'::{type_name}", literal.replace('\'', "''"))
    }

    fn json(type_name: &str, literal: &str) -> String {
        written(&value_of(type_name, literal), Encoding::write_json)
    }

    fn text(type_name: &str, literal: &str) -> String {
        written(&value_of(type_name, literal), Encoding::write_text)
    }

    /// What stands for itself in both forms, but for the quotes.
    const SAME: &[(&str, &str)] = &[
        ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        ("date", "2026-02-28"),
        ("timestamp", "2026-02-28T23:59:59.123456"),
        ("time", "23:59:59.5"),
        ("text", ""),
        ("text", "\u{e4}\u{1f600} caf\u{e9}"),
        ("varchar", "a.b/c"),
        ("inet", "10.0.0.1"),
        ("bytea", "\\x00ff"),
        ("money", "$1.00"),
        ("int4range", "[1,5)"),
        ("interval", "1 day"),
    ];

    #[pg_test]
    fn most_values_are_their_text() {
        Spi::run("set datestyle = 'German'; set timezone = 'America/New_York'").unwrap();
        Spi::run("set lc_monetary = 'C'; set intervalstyle = 'postgres'").unwrap();
        for (type_name, literal) in SAME {
            assert_eq!(text(type_name, literal), *literal, "{type_name}");
            let quoted = format!("\"{}\"", literal.replace('\\', "\\\\"));
            assert_eq!(json(type_name, literal), quoted, "{type_name}");
        }
    }

    #[pg_test]
    fn numbers_are_json_numbers_as_far_as_javascript_is_exact() {
        for (type_name, literal) in [
            ("smallint", "-32768"),
            ("integer", "2147483647"),
            ("bigint", "9007199254740992"),
            ("bigint", "-9007199254740992"),
            ("numeric", "12.50"),
            ("real", "1.5"),
            ("double precision", "-0.25"),
        ] {
            assert_eq!(json(type_name, literal), literal, "{type_name}");
        }
        for (type_name, literal) in [
            ("bigint", "9007199254740993"),
            ("bigint", "-9223372036854775808"),
            ("numeric", "9007199254740993"),
            ("numeric", "NaN"),
            ("double precision", "Infinity"),
            ("double precision", "1e+300"),
        ] {
            assert_eq!(json(type_name, literal), format!("\"{literal}\""), "{type_name}");
            assert_eq!(text(type_name, literal), literal, "{type_name}");
        }
    }

    #[pg_test]
    fn moments_are_in_utc() {
        Spi::run("set timezone = 'Asia/Kathmandu'; set datestyle = 'SQL, DMY'").unwrap();
        let moment = "2026-02-28 23:59:59.5+05:45";
        assert_eq!(json("timestamptz", moment), "\"2026-02-28T18:14:59.5+00:00\"");
        assert_eq!(text("timestamptz", moment), "2026-02-28T18:14:59.5+00:00");
        assert_eq!(text("timestamptz", "infinity"), "infinity");
    }

    #[pg_test]
    fn json_and_booleans_stand_unquoted() {
        assert_eq!(json("boolean", "t"), "true");
        assert_eq!(text("boolean", "f"), "false");
        assert_eq!(json("json", "{\"a\":  1}"), "{\"a\":  1}");
        assert_eq!(json("jsonb", "{\"b\":[null]}"), "{\"b\": [null]}");
    }

    #[pg_test]
    fn whatever_is_in_a_text_its_json_reads_back() {
        let literal: String = (1..=0x24fu32).filter_map(char::from_u32).collect();
        let literal = format!("{literal}\u{2028}\u{1f600}\"\\\\u0041</script>");
        let written = json("text", &literal);
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), literal);
    }

    #[pg_test]
    fn a_domain_is_what_it_stands_on() {
        Spi::run(
            "create domain pg_temp.number as bigint;
             create domain pg_temp.positive as pg_temp.number check (value > 0);
             create domain pg_temp.org as uuid;
             create type pg_temp.mood as enum ('gl\u{e4}d')",
        )
        .unwrap();
        assert_eq!(json("pg_temp.positive", "7"), "7");
        assert_eq!(json("pg_temp.positive", "9007199254740993"), "\"9007199254740993\"");
        let org = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(text("pg_temp.org", org), org);
        assert_eq!(json("pg_temp.mood", "gl\u{e4}d"), "\"gl\u{e4}d\"");
    }

    #[pg_test]
    fn a_toasted_text_is_read_whole() {
        Spi::run(
            "create temp table wide (t text, compressed text);
             alter table wide alter t set storage external;
             insert into wide select string_agg(md5(i::text), ''), repeat('ab', 50000)
             from generate_series(1, 1000) i",
        )
        .unwrap();
        let read = |column| written(&format!("{column} from wide"), Encoding::write_text);
        assert_eq!((read("t").len(), read("compressed")), (32_000, "ab".repeat(50_000)));
    }
}

//! Meaning of patterns, compared with Go's own results.

use super::*;

fn matches(pattern: &str, text: &str) -> bool {
    compile(pattern)
        .unwrap_or_else(|e| panic!("{pattern}: {e}"))
        .is_match(text.as_bytes())
}

#[test]
fn patterns_mean_what_they_mean_in_go() {
    let rows: &[(&str, &str, bool)] = &[
        (r"^\w+$", "abc_9", true),
        (r"^\w+$", "é", false),
        (r"\d", "٣", false),
        (r"^\D$", "٣", true),
        (r"\s", "\u{a0}", false),
        (r"^\S$", "\u{a0}", true),
        (r"\bé", "é", false),
        (r"a\b", "aé", true),
        (r"\Qa.b\E+", "a.bbb", true),
        (r"\Qa.b\E", "axb", false),
        (r"\Q[", "[", true),
        (r"\07", "\u{7}", true),
        (r"^\101$", "A", true),
        (r"^\x41\x{1F600}$", "A😀", true),
        (r"^a{,5}$", "a{,5}", true),
        (r"^a{01}$", "a{01}", true),
        (r"^{$", "{", true),
        (r"^a{2,3}$", "aaa", true),
        (r"^a{2}?$", "aa", true),
        (r"^[[a]$", "[", true),
        (r"^[]a]+$", "a]", true),
        (r"^[^]a]$", "b", true),
        (r"^[a&&b]+$", "a&b", true),
        (r"^[+--]+$", "+,-", true),
        (r"^[\d-z]+$", "3-z", true),
        (r"^[[:word:]]+$", "aZ_0", true),
        (r"^[[:^alpha:]]+$", "12", true),
        (r"^[\pN]$", "٣", true),
        (r"^\p{Greek}$", "λ", true),
        (r"^\p{^Greek}$", "λ", false),
        (r"^\P{Greek}$", "l", true),
        (r"(?i)k", "\u{212a}", true),
        (r"(?i:A)b", "ab", true),
        (r"(?s).", "\n", true),
        (r".", "\n", false),
        (r"(?U)a+", "a", true),
        (r"(?P<x>a)(?P<x>b)", "ab", true),
        (r"(?<year>\d{4})", "2025", true),
        (r"(?)a", "a", true),
        (r"^$", "", true),
        (r"a$", "a\n", false),
        (r"\_\-\/", "_-/", true),
        (r"()", "", true),
        (r"[\x{D800}-\x{DFFF}]", "a", false),
    ];
    for (pattern, text, want) in rows {
        assert_eq!(matches(pattern, text), *want, "{pattern} on {text:?}");
    }
}

#[test]
fn what_go_refuses_is_refused_with_its_words() {
    let rows = [
        (r"a{1001}", "invalid repeat count: `{1001}`"),
        (r"a{2,1}", "invalid repeat count: `{2,1}`"),
        (r"a{1,9876543210}", "invalid repeat count: `{1,9876543210}`"),
        (r"(a{100}){11}", "invalid repeat count: `{11}`"),
        (r"x*+", "invalid nested repetition operator: `*+`"),
        (r"x**", "invalid nested repetition operator: `**`"),
        (r"x*??", "invalid nested repetition operator: `*??`"),
        (r"x{2}*", "invalid nested repetition operator: `{2}*`"),
        (r"*a", "missing argument to repetition operator: `*`"),
        (r"a|*", "missing argument to repetition operator: `*`"),
        (r"(+)", "missing argument to repetition operator: `+`"),
        (r"{2}", "missing argument to repetition operator: `{2}`"),
        (r"(?i)*", "missing argument to repetition operator: `*`"),
        (r"\Q\E*", "missing argument to repetition operator: `*`"),
        (r"a(b", "missing closing ): `a(b`"),
        (r"a)b", "unexpected ): `a)b`"),
        (r"a[b", "missing closing ]: `[b`"),
        (r"[]", "missing closing ]: `[]`"),
        (r"[b-a]", "invalid character class range: `b-a`"),
        (r"[a--b]", "invalid character class range: `a--`"),
        (r"[[:foo:]]", "invalid character class range: `[:foo:]`"),
        (
            r"\p{Alphabetic}",
            r"invalid character class range: `\p{Alphabetic}`",
        ),
        (r"\p{greek}", r"invalid character class range: `\p{greek}`"),
        (r"\C", r"invalid escape sequence: `\C`"),
        (r"\Z", r"invalid escape sequence: `\Z`"),
        (r"\1", r"invalid escape sequence: `\1`"),
        (r"\8", r"invalid escape sequence: `\8`"),
        (r"\E", r"invalid escape sequence: `\E`"),
        (r"\xg1", r"invalid escape sequence: `\xg1`"),
        (r"a\", "trailing backslash at end of expression: ``"),
        (r"(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        (r"(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
        (r"(?-)a", "invalid or unsupported Perl syntax: `(?-)`"),
        (r"(?<=a", "invalid or unsupported Perl syntax: `(?<`"),
        (r"(?P<x y>a)", "invalid named capture: `(?P<x y>`"),
        (r"(?P<>a)", "invalid named capture: `(?P<>`"),
    ];
    for (pattern, want) in rows {
        let got = compile(pattern).map(|_| ()).unwrap_err().to_string();
        assert_eq!(got, format!("error parsing regexp: {want}"), "{pattern}");
    }
}

proptest::proptest! {
    #[test]
    fn whatever_is_accepted_is_a_pattern_for_this_engine(
        pattern in r"([a-c]|[-(){}\[\]|*+?^$.,:=<>!&~/]|\(\?[imsU:P<-]|\\[dDwWsSbBAzQEpPx017nt.]|\[:[a-z^]{1,6}:\]|[0-9]|é){0,14}"
    ) {
        if let Ok(translated) = translate(&pattern) {
            let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(&translated);
            proptest::prop_assert!(parsed.is_ok(), "{pattern} became {translated}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn sizes_are_limited_with_a_message() {
    let long = "a".repeat(MAX_PATTERN + 1);
    assert_eq!(
        compile(&long).unwrap_err(),
        PatternError::TooLong(MAX_PATTERN + 1)
    );
    assert_eq!(
        compile(r"(?:\pL{50}\pL{50}){10}").unwrap_err(),
        PatternError::TooLarge
    );
    let deep = format!("{}a{}", "(".repeat(500), ")".repeat(500));
    assert_eq!(compile(&deep).unwrap_err(), PatternError::TooLarge);
}

#[test]
fn a_whole_match_looks_at_both_ends() {
    let whole = compile_whole("a|bc").unwrap();
    assert!(whole.is_match(b"bc") && !whole.is_match(b"bcd") && !whole.is_match(b"xa"));
}

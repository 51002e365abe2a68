#![no_main]
//! Structured clauses compile or are refused; a negated one says the opposite; a match agrees with
//! its explanation, and a member that was put into a list is found in it.
use libfuzzer_sys::fuzz_target;
use traffic_core::routing::Request;
use traffic_core::routing::clause::Clause;
use traffic_core::routing::matcher::{Filters, Names, View};

struct Asked<'a> {
    method: &'a [u8],
    target: &'a [u8],
    line: &'a [u8],
}

impl Request for Asked<'_> {
    fn method(&self) -> &[u8] {
        self.method
    }
    fn target(&self) -> &[u8] {
        self.target
    }
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        for name in [&b"Cookie"[..], b"baggage", b"tracestate", b"content-type"] {
            visit(name, self.line);
        }
    }
}

fn matches(name: &str, value: &str, asked: &Asked<'_>) -> Option<bool> {
    let clause = Clause::parse(name, value).ok()?;
    assert_eq!(Clause::parse(&clause.wire_name(), value).unwrap().subject(), clause.subject());
    let filters = Filters { clauses: vec![clause], ..Filters::default() };
    let names = Names::of(std::iter::once(&filters));
    let view = View::new(asked, &names);
    let matched = filters.matches(&view);
    assert_eq!(matched, filters.first_failure(&view).is_none());
    Some(matched)
}

fuzz_target!(|input: (&str, &str, &[u8], &[u8], &[u8])| {
    let (name, value, method, target, line) = input;
    let asked = Asked { method, target, line };
    if let Some(matched) = matches(name, value, &asked) {
        // The probe rule is none of the clause.
        if !name.contains(':') {
            assert_eq!(matches(&format!("not:{name}"), value, &asked), Some(!matched));
            assert_eq!(matches(&format!("any:{name}"), value, &asked), Some(matched));
        }
    }
    let known = [line, b";k=v,k=v"].concat();
    let asked = Asked { method, target, line: &known };
    for name in ["cookie[k]", "baggage[k]", "tracestate[k]"] {
        // The last member of the other kind's list is a value with a comma, or a property.
        assert_eq!(matches(name, "^v(?:,k=v)?$", &asked), Some(true), "{name}");
    }
});

//! Conflict rule of two intercepts on one port: they cannot both be served if every request matched
//! by one is matched by the other. Pure.

use traffic_core::routing::matcher::Filters;
use traffic_core::routing::within;

/// Returns the reason two intercepts conflict; `None` if both can be served.
#[must_use]
pub(crate) fn between(held: &Filters, wanted: &Filters) -> Option<&'static str> {
    match (held.is_empty(), wanted.is_empty()) {
        (true, _) => return Some("it has no filters and takes everything"),
        (_, true) => return Some("an intercept without filters would take its requests too"),
        (false, false) => {}
    }
    match (held.has_headers(), wanted.has_headers()) {
        (true, true) => {
            if !(within(held, wanted) || within(wanted, held)) {
                None
            } else if held.paths.is_empty() || wanted.paths.is_empty() {
                Some("the header filters of one include those of the other")
            } else if paths_overlap(held, wanted) {
                Some("the header filters of one include those of the other, and the paths overlap")
            } else {
                None
            }
        }
        // Rules with headers are evaluated before those with paths only, so both can be served.
        (true, false) | (false, true) => None,
        (false, false) => paths_overlap(held, wanted).then_some("the paths overlap"),
    }
}

fn paths_overlap(a: &Filters, b: &Filters) -> bool {
    a.paths
        .iter()
        .any(|p| b.paths.iter().any(|q| p.overlaps(q)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_core::routing::matcher::PathFilter;

    fn filters(text: &str) -> Filters {
        let mut filters = Filters::default();
        for clause in text.split_whitespace() {
            match clause.split_once('=') {
                Some((name, value)) => filters.add(name, value).unwrap(),
                None => filters.paths.push(PathFilter::parse(clause).unwrap()),
            }
        }
        filters
    }

    #[test]
    fn every_rule_of_conflict() {
        let rows = [
            ("", "", true),
            ("", "x=a", true),
            ("", "/p", true),
            ("x=a", "x=a", true),
            ("x=a", "X=a", true),
            ("x=a", "x=b", false),
            ("x=a", "y=a", false),
            ("x=a", "x=a y=b", true),
            ("x=a z=c", "x=a y=b", false),
            ("x=^a", "x=^b", true),
            ("x=^a", "x=adam", true),
            ("x=^b", "x=adam", false),
            ("x=a", "/p", false),
            ("x=a", "x=a /p", true),
            ("x=a /p", "x=a /q", false),
            ("x=a /p", "x=a /p", true),
            ("x=a :path-prefix:/p", "x=a /p/q", true),
            ("x=a /p", "x=b /p", false),
            ("/p", "/p", true),
            ("/p", "/q", false),
            (":path-prefix:/p", ":path-prefix:/p/q", true),
            (":path-prefix:/p", "/q", false),
            (":path-regex:x", "/q", true),
            ("/p /q", "/q /r", true),
            ("cookie[u]=a", "cookie[u]=a", true),
            ("cookie[u]=a", "cookie[u]=b", false),
            ("cookie[u]=a", "cookie[U]=a", false),
            ("cookie[u]=a", "baggage[u]=a", false),
            ("cookie[u]=a", "cookie[u]=a :method=GET", true),
            ("cookie[u]=a :method=PUT", "cookie[u]=a :method=GET", false),
            (":method=^(?:GET|PUT)$", ":method=PUT", true),
            (":method=^(?:GET|PUT)$", ":method=^(?:POST|HEAD)$", false),
            ("cookie[u]=^a", "cookie[u]=^b", true),
            ("x=a", "any:x=a any:cookie[u]=a", true),
            ("x=b", "any:x=a any:cookie[u]=a", false),
            ("x=a y=b", "any:x=a any:cookie[u]=a", true),
            ("any:x=a any:y=b", "any:y=b any:z=c", true),
            ("any:x=a any:y=b", "any:y=c any:z=c", false),
            ("not:x=a", "not:y=b", true),
            ("not:x=a", "x=a", false),
            ("not:x=a", "x=b", true),
            ("not:x=a", "y=b", true),
            ("not:x=a y=b", "x=a y=b", false),
            ("not:x=a y=b", "y=b", true),
            ("not:x=^(?:a|b)$", "x=b", false),
            ("not:x=a", "any:x=a any:y=b", true),
            ("cookie[u]=a", "/p", false),
        ];
        for (a, b, want) in rows {
            assert_eq!(
                between(&filters(a), &filters(b)).is_some(),
                want,
                "{a:?} and {b:?}"
            );
            assert_eq!(
                between(&filters(b), &filters(a)).is_some(),
                want,
                "{b:?} and {a:?}"
            );
        }
    }
}

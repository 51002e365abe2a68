//! Conflict rule of two intercepts on one port: they cannot both be served if every request matched
//! by one is matched by the other. Pure.

use traffic_core::routing::matcher::Filters;

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

/// Returns true if every clause of `small` has one in `large` that the same value can satisfy.
fn within(small: &Filters, large: &Filters) -> bool {
    small
        .headers
        .iter()
        .all(|s| large.headers.iter().any(|l| s.overlaps(l)))
}

fn paths_overlap(a: &Filters, b: &Filters) -> bool {
    a.paths
        .iter()
        .any(|p| b.paths.iter().any(|q| p.overlaps(q)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_core::routing::matcher::{HeaderFilter, PathFilter};

    fn filters(text: &str) -> Filters {
        let mut filters = Filters::default();
        for clause in text.split_whitespace() {
            match clause.split_once('=') {
                Some((name, value)) => filters.headers.push(HeaderFilter::new(name, value)),
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

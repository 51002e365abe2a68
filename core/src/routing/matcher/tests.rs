//! The documented filter rules as a table.

use super::*;

struct Sample<'s>(&'s str, &'s [(&'s str, &'s [u8])]);

impl Request for Sample<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        self.1
            .iter()
            .for_each(|(name, value)| visit(name.as_bytes(), value));
    }
}

fn filters(headers: &[(&str, &str)], paths: &[&str]) -> Filters {
    Filters {
        headers: headers
            .iter()
            .map(|(n, v)| HeaderFilter::new(n, v))
            .collect(),
        paths: paths
            .iter()
            .map(|p| PathFilter::parse(p).unwrap())
            .collect(),
        ..Filters::default()
    }
}

fn hit(f: &Filters, target: &str, headers: &[(&str, &[u8])]) -> bool {
    let names = Names::of([f].into_iter());
    let request = Sample(target, headers);
    let view = View::new(&request, &names);
    let matched = f.matches(&view);
    assert_eq!(
        matched,
        f.first_failure(&view).is_none(),
        "matches and first_failure must agree"
    );
    matched
}

#[test]
fn headers_match_by_the_documented_rules() {
    type Row<'r> = (&'r [(&'r str, &'r str)], &'r [(&'r str, &'r [u8])], bool);
    let rows: &[Row<'_>] = &[
        (&[("x-dev", "a")], &[("X-DEV", b"a")], true),
        (&[("X-Dev", "a")], &[("x-dev", b"A")], false),
        (&[("x-dev", "a")], &[("x-dev", b"ab")], false),
        (&[("x-dev", "a")], &[], false),
        (&[("x-dev", "a")], &[("x-dev", b"b"), ("X-Dev", b"a")], true),
        (&[("x-dev", "^a")], &[("x-dev", b"abc")], true),
        (&[("x-dev", "b.")], &[("x-dev", b"abc")], true),
        (&[("x-dev", "1.2")], &[("x-dev", b"1x2")], true),
        (&[("x-dev", "a(")], &[("x-dev", b"a(")], true),
        (&[("x-dev", "x*+")], &[("x-dev", b"x*+")], true),
        (&[("x-dev", ".*")], &[], false),
        (&[("x-dev", ".*")], &[("x-dev", b"")], false),
        (&[("x-dev", "")], &[], true),
        (&[("x-dev", "")], &[("x-dev", b"")], true),
        (&[("x-dev", "")], &[("x-dev", b"a")], false),
        (&[("x-dev", "^.\\z")], &[("x-dev", b"\xff")], true),
        (&[("x-dev", "^..$")], &[("x-dev", b"\xff\xfe")], true),
        (&[("a", "1"), ("b", "2")], &[("a", b"1"), ("b", b"2")], true),
        (&[("a", "1"), ("b", "2")], &[("a", b"1")], false),
        (
            &[("baggage", "session=adam")],
            &[("baggage", b"session=adam")],
            true,
        ),
        (
            &[("baggage", r"\bsession=adam\b")],
            &[("baggage", b"k=v,session=adam,x=y")],
            true,
        ),
    ];
    for (wanted, sent, want) in rows {
        assert_eq!(
            hit(&filters(wanted, &[]), "/", sent),
            *want,
            "{wanted:?} on {sent:?}"
        );
    }
}

#[test]
fn paths_match_without_their_query_as_received_and_decoded() {
    let rows: &[(&[&str], &str, bool)] = &[
        (&["/a"], "/a?x=1", true),
        (&["/a"], "/a#f", true),
        (&[":path-equal:/a"], "/a/", false),
        (&[":path-prefix:/a"], "/ab", true),
        (&[":path-prefix:/a"], "/b?/a", false),
        (&[":path-regex:b.d"], "/abcd/e", true),
        (&[":path-regex:^/b"], "/ab", false),
        (&["/a b"], "/a%20b", true),
        (&["/a%20b"], "/a%20b", true),
        (&["/a/b"], "/a%2fb", true),
        (&["/a%"], "/a%", true),
        (&["/a%zz"], "/a%zz", true),
        (&["//a"], "//a", true),
        (&["/a"], "//a", false),
        (&["/x", ":path-prefix:/y"], "/yes", true),
        (&["/x", ":path-prefix:/y"], "/z", false),
    ];
    for (wanted, target, want) in rows {
        assert_eq!(
            hit(&filters(&[], wanted), target, &[]),
            *want,
            "{wanted:?} on {target}"
        );
    }
}

#[test]
fn a_kubelet_probe_matches_only_a_filter_that_names_user_agent() {
    let probe: &[(&str, &[u8])] = &[("User-Agent", b"kube-probe/1.31"), ("x", b"1")];
    assert!(!hit(&filters(&[], &[":path-prefix:/"]), "/healthz", probe));
    assert!(!hit(&filters(&[("x", "1")], &[]), "/healthz", probe));
    assert!(!hit(&Filters::default(), "/healthz", probe));
    assert!(hit(
        &filters(&[("user-agent", "^kube-probe/")], &[]),
        "/healthz",
        probe
    ));
    assert!(hit(
        &filters(&[("x", "1")], &[]),
        "/healthz",
        &[("user-agent", b"curl"), ("x", b"1")]
    ));
}

#[test]
fn many_lines_of_wanted_names_are_all_looked_at() {
    let mut sent: Vec<(&str, &[u8])> = vec![("x-dev", b"other"); 40];
    sent.push(("x-dev", b"a"));
    assert!(hit(&filters(&[("x-dev", "a")], &[]), "/", &sent));
}

#[test]
fn a_too_large_header_pattern_is_refused_and_a_wrong_one_is_text() {
    assert!(matches!(
        HeaderFilter::compile("x", &".".repeat(10_000)),
        Err(PatternError::TooLong(10_000))
    ));
    assert!(!HeaderFilter::compile("x", "a(").unwrap().is_regex());
    assert!(HeaderFilter::compile("x", "a.c").unwrap().is_regex());
}

#[test]
fn overlap_of_header_values() {
    let rows = [
        ("a", "a", true),
        ("a", "b", false),
        ("a.*", "b.*", true),
        ("^a", "adam", true),
        ("^b", "adam", false),
        ("ad*", "adam", true),
        ("*", "adam", true),
    ];
    for (a, b, want) in rows {
        let (a, b) = (HeaderFilter::new("X", a), HeaderFilter::new("x", b));
        assert_eq!(a.overlaps(&b), want, "{} and {}", a.text, b.text);
        assert_eq!(b.overlaps(&a), want, "{} and {}", b.text, a.text);
    }
    assert!(!HeaderFilter::new("x", "a").overlaps(&HeaderFilter::new("y", "a")));
}

#[test]
fn overlap_of_paths() {
    let rows = [
        ("/a", "/a", true),
        ("/a", "/b", false),
        (":path-prefix:/a", ":path-prefix:/ab", true),
        (":path-prefix:/a", ":path-prefix:/b", false),
        (":path-prefix:/a", "/ab", true),
        (":path-prefix:/ab", "/a", false),
        (":path-regex:x", "/b", true),
    ];
    for (a, b, want) in rows {
        let (p, q) = (PathFilter::parse(a).unwrap(), PathFilter::parse(b).unwrap());
        assert_eq!(
            (p.overlaps(&q), q.overlaps(&p)),
            (want, want),
            "{a} and {b}"
        );
    }
}

#[test]
fn what_takes_requests_of_nobody_is_told() {
    let of = |headers: &[(&str, &str)], paths: &[&str]| {
        let mut f = filters(&[], paths);
        headers.iter().for_each(|(n, v)| f.add(n, v).unwrap());
        f.take_anonymous()
    };
    assert!(of(&[], &[]));
    for path in [
        ":path-prefix:/",
        ":path-prefix:",
        ":path-regex:.*",
        ":path-regex:^/",
    ] {
        assert!(of(&[], &[path]), "{path}");
        assert!(!of(&[("x-dev", "a")], &[path]), "{path}");
    }
    for (name, value) in [("not:x-dev", "a"), (":method", "POST"), ("x-dev", "")] {
        let Ok(()) = Filters::default().add(name, value) else {
            panic!("{name} is no filter");
        };
        assert!(of(&[(name, value)], &[]), "{name}");
    }
    for (name, value) in [("x-dev", ".*"), ("cookie[user]", "a"), ("query[user]", "a")] {
        assert!(!of(&[(name, value)], &[]), "{name}");
    }
    assert!(!of(&[], &[":path-prefix:/shop"]));
}

//! Structured clauses over both protocols, and over hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::http1::head::{Kind, Parser, Step};
use crate::http2::hpack::{Field, FieldList};
use crate::http2::request::RequestHead;
use crate::routing::matcher::{Filters, Names};
use crate::routing::request::Request;

type Fields<'r> = &'r [(&'r str, &'r str)];

fn filters(clauses: Fields<'_>) -> Filters {
    let mut filters = Filters::default();
    for (name, value) in clauses {
        filters.add(name, value).unwrap();
    }
    filters
}

fn verdict(filters: &Filters, request: &impl Request) -> bool {
    let names = Names::of([filters].into_iter());
    let view = View::new(request, &names);
    let matched = filters.matches(&view);
    assert_eq!(matched, filters.first_failure(&view).is_none());
    matched
}

fn over_http1(filters: &Filters, method: &str, target: &str, fields: Fields<'_>) -> bool {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: shop\r\n");
    for (name, value) in fields {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    let Ok(Step::Complete(head)) = Parser::new(Kind::Request).parse(text.as_bytes()) else {
        panic!("no head: {text:?}")
    };
    verdict(filters, &head.request(text.as_bytes()))
}

fn over_http2(filters: &Filters, method: &str, target: &str, fields: Fields<'_>) -> bool {
    let mut list = FieldList::default();
    for (name, value) in [(":method", method), (":scheme", "http"), (":path", target)] {
        list.push(Field::plain(name.as_bytes(), value.as_bytes()));
    }
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        list.push(Field::plain(name.as_bytes(), value.as_bytes()));
    }
    verdict(filters, &RequestHead::new(&list))
}

fn check(clauses: Fields<'_>, (method, target): (&str, &str), fields: Fields<'_>, want: bool) {
    let filters = filters(clauses);
    let found = (
        over_http1(&filters, method, target, fields),
        over_http2(&filters, method, target, fields),
    );
    assert_eq!(
        found,
        (want, want),
        "{clauses:?} on {method} {target} {fields:?}"
    );
}

#[test]
fn cookies() {
    let rows: &[(&str, &str, Fields<'_>, bool)] = &[
        ("cookie[u]", "me", &[("Cookie", "u=me")], true),
        ("cookie[u]", "me", &[("cookie", "a=1; u=me; b=2")], true),
        ("cookie[u]", "me", &[("cookie", "a=1;u=me;b=2")], true),
        (
            "cookie[u]",
            "me",
            &[("cookie", "a=1  ;\t u = me ;b=2")],
            true,
        ),
        (
            "cookie[u]",
            "me",
            &[("cookie", "a=1"), ("cookie", "u=me")],
            true,
        ),
        ("cookie[u]", "me", &[("cookie", "u=you; u=me")], true),
        ("cookie[u]", "me", &[("cookie", "u=\"me\"")], true),
        ("cookie[u]", "\"me\"", &[("cookie", "u=\"me\"")], true),
        ("cookie[u]", "a b", &[("cookie", "u=a%20b")], true),
        ("cookie[u]", "a%20b", &[("cookie", "u=a%20b")], true),
        ("cookie[u]", "a b", &[("cookie", "u=\"a%20b\"")], true),
        ("cookie[u]", "100%", &[("cookie", "u=100%")], true),
        ("cookie[u]", "a=b", &[("cookie", "u=a=b")], true),
        ("cookie[u]", "^$", &[("cookie", "u=")], true),
        ("cookie[u]", "^$", &[("cookie", "u")], true),
        ("cookie[u]", "^$", &[], false),
        ("cookie[u]", ".*", &[("cookie", "u=")], true),
        ("cookie[u]", ".*", &[("cookie", "v=u=me")], false),
        ("cookie[u]", "^m", &[("cookie", "u=me")], true),
        ("cookie[u]", "me", &[("cookie", "U=me")], false),
        (
            "cookie[u]",
            "me",
            &[("cookie", "uu=me; xu=me; u2=me")],
            false,
        ),
        ("cookie[u]", "me", &[("cookie", "u=men")], false),
        ("cookie[u]", "me", &[("set-cookie", "u=me")], false),
        ("cookie[u]", "me", &[("cookie", "")], false),
        ("cookie[u]", "me", &[("cookie", ";;;=;u")], false),
    ];
    for (name, value, fields, want) in rows {
        check(&[(name, value)], ("GET", "/"), fields, *want);
    }
}

#[test]
fn baggage_and_trace_state() {
    let rows: &[(&str, &str, Fields<'_>, bool)] = &[
        ("baggage[u]", "me", &[("Baggage", "u=me")], true),
        ("baggage[u]", "me", &[("baggage", "a=1,u=me,b=2")], true),
        (
            "baggage[u]",
            "me",
            &[("baggage", "a=1 , u = me , b=2")],
            true,
        ),
        (
            "baggage[u]",
            "me",
            &[("baggage", "a=1"), ("baggage", "u=me")],
            true,
        ),
        (
            "baggage[u]",
            "me",
            &[("baggage", "u=me;ttl=3;private")],
            true,
        ),
        ("baggage[u]", "me", &[("baggage", "u=me ; ttl=3")], true),
        ("baggage[u]", "a,b", &[("baggage", "u=a%2Cb")], true),
        ("baggage[u]", "a%2Cb", &[("baggage", "u=a%2Cb")], true),
        ("baggage[u]", "me", &[("baggage", "a=1;u=me")], false),
        ("baggage[u]", "me", &[("baggage", "u=you,u=me")], true),
        ("baggage[u]", "\"me\"", &[("baggage", "u=\"me\"")], true),
        ("baggage[u]", "me", &[("baggage", "u=\"me\"")], false),
        ("baggage[u]", "me", &[("baggage", "U=me")], false),
        ("baggage[u]", ".*", &[("baggage", "u")], false),
        (
            "tracestate[s@d]",
            "1:a",
            &[("tracestate", "x=2,s@d=1:a")],
            true,
        ),
        (
            "tracestate[s]",
            "a",
            &[("tracestate", "x=2"), ("TraceState", " s=a ,y=1")],
            true,
        ),
        ("tracestate[s]", "a b", &[("tracestate", "s=a%20b")], false),
        ("tracestate[s]", "a", &[("baggage", "s=a")], false),
    ];
    for (name, value, fields, want) in rows {
        check(&[(name, value)], ("GET", "/"), fields, *want);
    }
}

#[test]
fn methods_queries_and_calls() {
    const GRPC: Fields<'_> = &[("Content-Type", "application/grpc+proto")];
    let call = ("POST", "/shop.v1.Cart/Add");
    type Row<'r> = (&'r str, &'r str, (&'r str, &'r str), Fields<'r>, bool);
    let rows: &[Row<'_>] = &[
        (":method", "PUT", ("PUT", "/"), &[], true),
        (":method", "put", ("PUT", "/"), &[], false),
        (":method", "^(?:GET|PUT)$", ("PUT", "/"), &[], true),
        (":method", "^(?:GET|PUT)$", ("PURGE", "/"), &[], false),
        ("query[u]", "me", ("GET", "/?u=me"), &[], true),
        ("query[u]", "me", ("GET", "/?a=1&u=me#u=you"), &[], true),
        ("query[u]", "me", ("GET", "/u=me"), &[], false),
        ("query[u]", "me", ("GET", "/?u=you&u=me"), &[], true),
        ("query[u]", "a b&c", ("GET", "/?u=a+b%26c"), &[], true),
        ("query[a b]", "1", ("GET", "/?a%20b=1"), &[], true),
        ("query[u[]]", "1", ("GET", "/?%75%5B%5D=1"), &[], true),
        ("query[u]", "^$", ("GET", "/?u"), &[], true),
        ("query[u]", ".*", ("GET", "/?v=u"), &[], false),
        ("grpc[service]", r"^shop\.v1\.Cart$", call, GRPC, true),
        ("grpc[method]", "Add", call, GRPC, true),
        ("grpc[method]", "Get", call, GRPC, false),
        (
            "grpc[method]",
            "Add",
            call,
            &[("content-type", "application/json")],
            false,
        ),
        (
            "grpc[method]",
            "Add",
            call,
            &[("content-type", "application/grpcx")],
            false,
        ),
        (
            "grpc[method]",
            "Add",
            call,
            &[("content-type", "Application/gRPC")],
            true,
        ),
        ("grpc[method]", "Add", ("POST", "/Add"), GRPC, false),
        ("grpc[service]", ".*", ("POST", "//Add"), GRPC, false),
        ("grpc[service]", "a/b", ("POST", "/a/b/Add"), GRPC, true),
    ];
    for (name, value, line, fields, want) in rows {
        check(&[(name, value)], *line, fields, *want);
    }
}

#[test]
fn negation_and_alternatives() {
    let rows: &[(Fields<'_>, Fields<'_>, bool)] = &[
        (&[("not:cookie[u]", "me")], &[("cookie", "u=me")], false),
        (&[("not:cookie[u]", "me")], &[("cookie", "u=you")], true),
        (&[("not:cookie[u]", "me")], &[], true),
        (&[("not:x-dev", ".*")], &[("X-Dev", "a")], false),
        (&[("not:x-dev", ".*")], &[], true),
        (&[("not::method", "GET")], &[], false),
        (
            &[("x-dev", "me"), ("not:x-canary", "yes")],
            &[("x-dev", "me")],
            true,
        ),
        (
            &[("x-dev", "me"), ("not:x-canary", "yes")],
            &[("x-dev", "me"), ("x-canary", "yes")],
            false,
        ),
        (
            &[("any:X-Dev", "me"), ("any:cookie[u]", "me")],
            &[("x-dev", "me")],
            true,
        ),
        (
            &[("any:X-Dev", "me"), ("any:cookie[u]", "me")],
            &[("cookie", "u=me")],
            true,
        ),
        (
            &[("any:X-Dev", "me"), ("any:cookie[u]", "me")],
            &[("cookie", "u=you")],
            false,
        ),
        (
            &[("any:X-Dev", "me"), ("a", "1")],
            &[("x-dev", "me")],
            false,
        ),
        (
            &[("any:X-Dev", "me"), ("a", "1")],
            &[("x-dev", "me"), ("a", "1")],
            true,
        ),
    ];
    for (clauses, fields, want) in rows {
        check(clauses, ("GET", "/"), fields, *want);
    }
}

#[test]
fn a_probe_is_taken_by_a_filter_that_wants_it_only() {
    let probe: Fields<'_> = &[("user-agent", "kube-probe/1.31")];
    for (clauses, want) in [
        (&[("any:user-agent", "^kube-probe/")], true),
        (&[("not:user-agent", "curl")], false),
        (&[(":method", "GET")], false),
    ] {
        check(clauses, ("GET", "/"), probe, want);
    }
}

#[test]
fn failures_and_descriptions_are_for_people() {
    let filters = filters(&[
        ("cookie[u]", "me"),
        ("not::method", "PUT"),
        ("any:x-dev", "a"),
        ("any:query[u]", "b"),
    ]);
    assert_eq!(
        descriptions(&filters.clauses).join(" and "),
        "cookie u: me and not method: PUT and (header x-dev: a or query u: b)"
    );
    let names = Names::of([&filters].into_iter());
    let said = |method: &str, fields: Fields<'_>| {
        let mut list = FieldList::default();
        list.push(Field::plain(b":method", method.as_bytes()));
        for (name, value) in fields {
            list.push(Field::plain(name.as_bytes(), value.as_bytes()));
        }
        let head = RequestHead::new(&list);
        filters.first_failure(&View::new(&head, &names))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(said("GET", &[]), text("cookie u: me (absent)"));
    assert_eq!(said("GET", &[("cookie", "u=x")]), text("cookie u: me"));
    assert_eq!(said("PUT", &[("cookie", "u=me")]), text("not method: PUT"));
    assert_eq!(
        said("GET", &[("cookie", "u=me")]),
        text("header x-dev: a or query u: b")
    );
    assert_eq!(said("GET", &[("cookie", "u=me"), ("x-dev", "a")]), None);
}

#[test]
fn names_come_back_as_they_went_and_wrong_ones_are_refused() {
    for name in [
        ":method",
        "query[a[b]]",
        "cookie[u]",
        "baggage[u]",
        "tracestate[a@b]",
        "grpc[service]",
        "any:grpc[method]",
        "not:x-dev",
        "not::method",
    ] {
        let clause = Clause::parse(name, "a").unwrap();
        assert_eq!(clause.wire_name(), name);
        assert!(!traffic_proto::token::is_token_text(name));
    }
    for name in [
        "",
        ":path",
        "cookie[]",
        "cookie[u",
        "cookie[a;b]",
        "baggage[a,b]",
        "grpc[x]",
        "not:",
        "not:any:x",
        "cookie [u]",
        "x y",
    ] {
        let error = Clause::parse(name, "a").unwrap_err().to_string();
        assert!(error.contains("is not a header name"), "{name:?}: {error}");
    }
    let error = Clause::parse("cookie[u]", "a(").unwrap_err().to_string();
    assert!(error.contains("cookie[u]") && error.contains("missing closing )"));
}

proptest! {
    /// Whatever a line holds: what was put into a list is found in it, both protocols say the same,
    /// and nothing panics.
    #[test]
    fn any_line(noise in "[ -~]{0,40}", key in "[a-z]{1,4}", value in "[a-z0-9]{1,6}") {
        let (cookie, baggage) = (format!("{noise};{key}={value}"), format!("{noise},{key}={value}"));
        // Blanks at the ends belong to no value.
        let fields = [("cookie", cookie.trim()), ("baggage", baggage.trim()), ("tracestate", baggage.trim())];
        for kind in ["cookie", "baggage", "tracestate"] {
            let name = format!("{kind}[{key}]");
            check(&[(&name, &value)], ("GET", "/"), &fields, true);
            let denied = format!("not:{name}");
            check(&[(&denied, &value)], ("GET", "/"), &fields, false);
        }
    }

    #[test]
    fn any_query(before in "[!-~&&[^#?]]{0,30}", key in "[a-z]{1,4}", value in "[a-z ]{1,6}") {
        let target = format!("/?{before}&{key}={}", value.replace(' ', "%20"));
        check(&[(&format!("query[{key}]"), &value)], ("GET", &target), &[], true);
    }
}

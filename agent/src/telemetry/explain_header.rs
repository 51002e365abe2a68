//! The explanation header of a response, sent on request: pod, port protocol and its source, route,
//! and for every evaluated rule the first clause that failed.
//!
//! Rules are named by their owners' names, never by id: knowing an id is what entitles a caller to
//! ask.

use std::fmt::Write as _;

use crate::telemetry::metrics::{FailOpen, Label as _};
use traffic_core::routing::{Decision, Request, RouteTable};

/// Name of the explanation header.
pub const HEADER: &str = "x-traffic-agent-explained";
/// Maximum length of the value in bytes; longer ones end in `...`.
pub const MAX_LENGTH: usize = 1024;

/// Explanation of a routing decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    before: String,
    route: &'static str,
    after: String,
}

impl Explanation {
    /// Explains the decision of `table` on `request`; `protocol` describes the connection and the
    /// port.
    #[must_use]
    pub fn of<R: Request + ?Sized>(
        pod: &str,
        port: u16,
        protocol: std::fmt::Arguments<'_>,
        table: &RouteTable,
        request: &R,
    ) -> Self {
        let (decision, considered) = table.explain(request);
        let (route, intercept) = match decision {
            Decision::App => ("app", None),
            Decision::Client(i) => ("client", Some(&i.name)),
            Decision::Expired(i) => ("expired", Some(&i.name)),
        };
        let before = format!("pod={pod}; port={port}; protocol={protocol}");
        let mut after = String::new();
        if let Some(name) = intercept {
            let _ = write!(after, "; intercept={name}");
        }
        for c in considered {
            let said = c.failed.as_deref().unwrap_or("matches");
            let kind = if c.wiretap { " (wiretap)" } else { "" };
            let _ = write!(after, "; {}{kind}: {said}", c.name);
        }
        Self {
            before,
            route,
            after,
        }
    }

    /// Returns the header value, once it is known whether a matched request failed open to the app.
    #[must_use]
    pub fn value(&self, failed_open: Option<FailOpen>) -> String {
        let Self {
            before,
            route,
            after,
        } = self;
        let text = match failed_open {
            Some(why) => format!(
                "{before}; route=app instead of {route} ({}){after}",
                why.label()
            ),
            None => format!("{before}; route={route}{after}"),
        };
        visible(&text)
    }

    /// Returns the whole HTTP/1 header line, including its newline.
    #[must_use]
    pub fn line(&self, failed_open: Option<FailOpen>) -> String {
        format!("{HEADER}: {}\r\n", self.value(failed_open))
    }
}

/// Sanitises filters and names, which users choose: all but visible ASCII and single blanks becomes
/// a question mark.
fn visible(text: &str) -> String {
    let mut out: String = text
        .chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .take(MAX_LENGTH)
        .collect();
    if text.chars().nth(MAX_LENGTH).is_some() {
        out.truncate(MAX_LENGTH - 3);
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;
    use traffic_core::routing::matcher::{Filters, HeaderFilter};
    use traffic_core::routing::{Entry, Intercept, Mechanism, State};

    struct Sample(&'static str);

    impl Request for Sample {
        fn method(&self) -> &[u8] {
            b"GET"
        }

        fn target(&self) -> &[u8] {
            b"/"
        }

        fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
            visit(b"x-dev", self.0.as_bytes());
        }
    }

    fn rule(name: &str, value: &str) -> Entry {
        let intercept = Intercept {
            id: format!("secret-session:{name}"),
            name: name.to_owned(),
            client: "jane@host".to_owned(),
            client_session: "secret-session".to_owned(),
            mechanism: Mechanism::Http,
            wiretap: false,
            filters: Filters {
                headers: vec![HeaderFilter::new("x-dev", value)],
                paths: Vec::new(),
                ..Filters::default()
            },
            plaintext: false,
            target_host: "127.0.0.1".to_owned(),
            target_port: 3000,
            roundtrip_latency: Duration::ZERO,
            dial_timeout: Duration::ZERO,
            metadata: std::collections::BTreeMap::new(),
            stats: Arc::default(),
        };
        Entry {
            intercept: Arc::new(intercept),
            state: State::Active,
        }
    }

    fn explained(rules: Vec<Entry>, sent: &'static str) -> Explanation {
        Explanation::of(
            "echo-1",
            8080,
            format_args!("http1"),
            &RouteTable::new(rules),
            &Sample(sent),
        )
    }

    #[test]
    fn it_names_the_first_clause_that_fails_and_nobodys_id() {
        let e = explained(vec![rule("one", "a"), rule("two", "b")], "b");
        assert_eq!(
            e.value(None),
            "pod=echo-1; port=8080; protocol=http1; route=client; intercept=two; one: header \
            x-dev: a; two: matches"
        );
        assert!(
            e.value(Some(FailOpen::NoTunnel))
                .contains("route=app instead of client (no_tunnel)")
        );
    }

    #[test]
    fn what_people_wrote_cannot_forge_a_header_and_the_length_is_bounded() {
        let e = explained(vec![rule("a\r\nset-cookie: x", "v\u{e4}")], "b");
        assert!(
            e.value(None).bytes().all(|b| (b' '..=b'~').contains(&b)),
            "{}",
            e.value(None)
        );
        assert_eq!(e.line(None).matches("\r\n").count(), 1);
        let e = explained(vec![rule(&"n".repeat(5000), "v")], "b");
        assert!(e.value(None).len() == MAX_LENGTH && e.value(None).ends_with("..."));
    }
}

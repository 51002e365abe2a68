//! Structured matchers of the command line, and their form on the wire: header filters whose names
//! no header can have, and whose values are exact texts or regular expressions.

use std::collections::BTreeMap;

use clap::Args;
use traffic_core::routing::clause::Clause;
use traffic_core::routing::go_regex;

use crate::filters;

/// Flags that look at more than a header's text.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Structured matchers")]
pub struct Matchers {
    /// Take requests with this method; may be repeated, and one has to match
    #[arg(long, value_name = "METHOD", value_delimiter = ',')]
    pub http_method: Vec<String>,
    /// Take requests with this parameter in the query. KEY=VALUE is exact, KEY=~REGEX a regular
    /// expression that may match anywhere, KEY alone any value; of one key given several times
    /// one has to match. So it is for all flags with KEY=VALUE here
    #[arg(long, value_name = "KEY=VALUE")]
    pub http_query: Vec<String>,
    /// Take requests with this cookie
    #[arg(long, value_name = "KEY=VALUE")]
    pub http_cookie: Vec<String>,
    /// Take requests with this member in the baggage header (W3C)
    #[arg(long, value_name = "KEY=VALUE")]
    pub http_baggage: Vec<String>,
    /// Take requests with this member in the tracestate header (W3C)
    #[arg(long, value_name = "KEY=VALUE")]
    pub http_tracestate: Vec<String>,
    /// Take calls of this gRPC service, such as shop.v1.Cart; may be repeated
    #[arg(long, value_name = "SERVICE")]
    pub grpc_service: Vec<String>,
    /// Take calls of this gRPC method, such as AddItem; may be repeated
    #[arg(long, value_name = "METHOD")]
    pub grpc_method: Vec<String>,
    /// Leave requests to the app that match this: NAME=VALUE, where NAME is a header, :method,
    /// query[KEY], cookie[KEY], baggage[KEY], tracestate[KEY], grpc[service] or grpc[method]
    #[arg(long, value_name = "NAME=VALUE")]
    pub http_not: Vec<String>,
    /// Take requests that match one of these; NAME as for --http-not
    #[arg(long, value_name = "NAME=VALUE")]
    pub http_any_of: Vec<String>,
}

/// Wanted value of a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Any,
    Exact(String),
    Regex(String),
}

impl Matchers {
    /// Returns the flags that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let Self {
            http_method,
            http_query,
            http_cookie,
            http_baggage,
            http_tracestate,
            grpc_service,
            grpc_method,
            http_not,
            http_any_of,
        } = self;
        let all = [
            ("--http-method", http_method),
            ("--http-query", http_query),
            ("--http-cookie", http_cookie),
            ("--http-baggage", http_baggage),
            ("--http-tracestate", http_tracestate),
            ("--grpc-service", grpc_service),
            ("--grpc-method", grpc_method),
            ("--http-not", http_not),
            ("--http-any-of", http_any_of),
        ];
        let given = all.into_iter().filter(|(_, values)| !values.is_empty());
        given.map(|(flag, _)| flag).collect()
    }

    /// Returns the filters for the wire. An error is the user's mistake.
    pub(crate) fn on_wire(&self) -> Result<BTreeMap<String, String>, String> {
        let Self {
            http_method,
            http_query,
            http_cookie,
            http_baggage,
            http_tracestate,
            grpc_service,
            grpc_method,
            http_not,
            http_any_of,
        } = self;
        let mut clauses: BTreeMap<String, Vec<Wanted>> = BTreeMap::new();
        let mut add = |name: String, wanted| clauses.entry(name).or_default().push(wanted);
        for (name, flag, values, example) in [
            (":method", "--http-method", http_method, "GET"),
            (
                "grpc[service]",
                "--grpc-service",
                grpc_service,
                "shop.v1.Cart",
            ),
            ("grpc[method]", "--grpc-method", grpc_method, "AddItem"),
        ] {
            for value in values {
                // An empty method or service never matches.
                if value.is_empty() {
                    return Err(format!("{flag}: nothing in it; write {flag} {example}"));
                }
                add(name.to_owned(), value_of(value));
            }
        }
        for (kind, flag, values) in [
            ("query", "--http-query", http_query),
            ("cookie", "--http-cookie", http_cookie),
            ("baggage", "--http-baggage", http_baggage),
            ("tracestate", "--http-tracestate", http_tracestate),
        ] {
            for text in values {
                let (key, wanted) = parts(text);
                if key.is_empty() {
                    return Err(format!(
                        "{flag} {text}: nothing before the '='; write KEY=VALUE"
                    ));
                }
                add(format!("{kind}[{key}]"), wanted);
            }
        }
        for (role, values) in [("not", http_not), ("any", http_any_of)] {
            for text in values {
                let (name, wanted) = parts(text);
                add(format!("{role}:{name}"), wanted);
            }
        }
        clauses
            .into_iter()
            .map(|(name, wanted)| checked(name, &wanted))
            .collect()
    }
}

/// Splits at the first `=` that is not part of a name in brackets.
fn parts(text: &str) -> (&str, Wanted) {
    let is_before = |a: Option<usize>, b: Option<usize>| a.is_some_and(|a| b.is_none_or(|b| a < b));
    let is_bracketed = is_before(text.find('['), text.find('='));
    let inside = text.find("]=").filter(|_| is_bracketed).unwrap_or(0);
    let (before, rest) = text.split_at_checked(inside).unwrap_or(("", text));
    match rest.split_once('=') {
        Some((name, value)) => {
            let end = before.len() + name.len();
            (text.get(..end).unwrap_or(text), value_of(value))
        }
        None => (text, Wanted::Any),
    }
}

fn value_of(text: &str) -> Wanted {
    match text.strip_prefix('~') {
        Some(regex) => Wanted::Regex(regex.to_owned()),
        None => Wanted::Exact(text.to_owned()),
    }
}

/// Returns name and pattern, once an agent would take them.
fn checked(name: String, wanted: &[Wanted]) -> Result<(String, String), String> {
    for one in wanted {
        if let Wanted::Regex(regex) = one {
            // Of several, the message has to show the broken one.
            go_regex::compile(regex).map_err(|error| format!("{name}=~{regex}: {error}"))?;
        }
    }
    let pattern = pattern(wanted);
    Clause::parse(&name, &pattern).map_err(|error| error.to_string())?;
    Ok((name, pattern))
}

/// Returns the pattern of values of which one has to match.
fn pattern(wanted: &[Wanted]) -> String {
    let exact = |text: &String| match text.as_str() {
        // Stock agents take an empty text for a header that is absent.
        "" => "^$".to_owned(),
        text => filters::exact(text),
    };
    match wanted {
        [Wanted::Any] => ".*".to_owned(),
        [Wanted::Exact(text)] => exact(text),
        [Wanted::Regex(regex)] if filters::is_regex(regex) => regex.clone(),
        several => {
            let exact = several.iter().filter_map(|one| match one {
                Wanted::Exact(text) => Some(filters::escaped(text)),
                Wanted::Any | Wanted::Regex(_) => None,
            });
            let exact: Vec<_> = exact.collect();
            let regexes = several.iter().filter_map(|one| match one {
                Wanted::Any => Some("(?:.*)".to_owned()),
                Wanted::Regex(regex) => Some(format!("(?:{regex})")),
                Wanted::Exact(_) => None,
            });
            let texts = (!exact.is_empty()).then(|| format!("^(?:{})$", exact.join("|")));
            let all: Vec<_> = texts.into_iter().chain(regexes).collect();
            all.join("|")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_wire(set: impl FnOnce(&mut Matchers)) -> Result<Vec<String>, String> {
        let mut matchers = Matchers::default();
        set(&mut matchers);
        let all = matchers.on_wire()?;
        Ok(all
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect())
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn what_no_request_is_without_has_to_be_named() {
        type Set = fn(&mut Matchers);
        let rows: [(&str, Set); 4] = [
            ("--http-method GET", |m| m.http_method = texts(&[""])),
            ("--http-method GET", |m| m.http_method = texts(&["PUT", ""])),
            ("--grpc-service shop", |m| m.grpc_service = texts(&[""])),
            ("--grpc-method AddItem", |m| m.grpc_method = texts(&[""])),
        ];
        for (remedy, set) in rows {
            let problem = on_wire(set).unwrap_err();
            assert!(problem.contains(remedy), "{problem}");
        }
    }

    #[test]
    fn every_flag_has_its_name_on_the_wire() {
        let all = on_wire(|m| {
            m.http_method = texts(&["GET", "POST"]);
            m.http_query = texts(&["a b[]=1.5"]);
            m.http_cookie = texts(&["user=jane.doe"]);
            m.http_baggage = texts(&["user=~^jane"]);
            m.http_tracestate = texts(&["shop@dev"]);
            m.grpc_service = texts(&["shop.v1.Cart"]);
            m.grpc_method = texts(&["Add", "~^Get"]);
            m.http_not = texts(&["x-canary=~.*", "cookie[a=b]=x"]);
            m.http_any_of = texts(&["X-Dev=me", ":method=PUT", "cookie[user]="]);
        });
        // A cookie's name has no '='.
        assert!(all.unwrap_err().contains("cookie[a=b]"));
        let all = on_wire(|m| {
            m.http_method = texts(&["GET", "POST"]);
            m.http_query = texts(&["a b[]=1.5"]);
            m.http_cookie = texts(&["user=jane.doe"]);
            m.http_baggage = texts(&["user=~^jane"]);
            m.http_tracestate = texts(&["shop@dev"]);
            m.grpc_service = texts(&["shop.v1.Cart"]);
            m.grpc_method = texts(&["Add", "~^Get"]);
            m.http_not = texts(&["x-canary=~.*", "query[a=b]=x"]);
            m.http_any_of = texts(&["X-Dev=me", ":method=PUT", "cookie[user]="]);
        });
        assert_eq!(
            all.unwrap(),
            [
                ":method ^(?:GET|POST)$",
                "any::method PUT",
                "any:X-Dev me",
                "any:cookie[user] ^$",
                "baggage[user] ^jane",
                "cookie[user] ^jane\\.doe$",
                "grpc[method] ^(?:Add)$|(?:^Get)",
                "grpc[service] ^shop\\.v1\\.Cart$",
                "not:query[a=b] x",
                "not:x-canary .*",
                "query[a b[]] ^1\\.5$",
                "tracestate[shop@dev] .*",
            ]
        );
    }

    #[test]
    fn a_plain_word_may_be_a_regex() {
        let all = on_wire(|m| m.http_cookie = texts(&["user=~jane"]));
        assert_eq!(all.unwrap(), ["cookie[user] (?:jane)"]);
    }

    #[test]
    fn mistakes_name_the_flag_or_the_filter() {
        for (given, word) in [
            (
                on_wire(|m| m.http_cookie = texts(&["=x"])),
                "--http-cookie =x",
            ),
            (
                on_wire(|m| m.http_cookie = texts(&["u=~a("])),
                "cookie[u]=~a(",
            ),
            (
                on_wire(|m| m.http_not = texts(&["cookies[u]=a"])),
                "not:cookies[u]",
            ),
            (
                on_wire(|m| m.http_any_of = texts(&["=a"])),
                "is not a header name",
            ),
            (
                on_wire(|m| m.http_any_of = texts(&["x y=[a]=b"])),
                "\"any:x y\"",
            ),
        ] {
            let error = given.unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}

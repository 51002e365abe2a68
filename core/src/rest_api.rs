//! Answers of the local REST API, by which a consumer of messages asks whether a message with
//! certain headers is to be taken here or left to the other side. Agent and workstation serve the
//! same endpoints with opposite answers: what one takes the other leaves.
//!
//! | endpoint | answer |
//! | --- | --- |
//! | `/healthz` | 200, empty |
//! | `/consume-here` | `true` or `false` |
//! | `/intercept-info` | `{"intercepted":…,"clientSide":…,"metadata":{…}}`, metadata only if there is some |
//!
//! Parameters, in the query or as a form: `path` of the message and `containerPort`. Headers of the
//! message are headers of the request; [`CALLER`] narrows the question to one intercept.

use std::collections::BTreeMap;

use crate::routing::Request;
use crate::routing::matcher::{Filters, Names, View};

/// Header with the id of the one intercept that is asked about.
pub const CALLER: &str = "x-telepresence-caller-intercept-id";
/// Maximum size of a form, in bytes.
pub const MAX_FORM: usize = 64 * 1024;

/// End of the tunnel that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The pod: consumes what is not intercepted.
    Agent,
    /// The developer's machine: consumes what is intercepted.
    Workstation,
}

/// A request to the API.
#[derive(Clone, Debug, Default)]
pub struct Question<'q> {
    /// Path of the endpoint.
    pub endpoint: &'q str,
    /// Query of the request, as received.
    pub query: &'q str,
    /// Body, if it is a form.
    pub form: &'q [u8],
    /// Header fields in any letter case.
    pub headers: Vec<(&'q [u8], &'q [u8])>,
}

/// An active intercept that may take the message.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'c> {
    /// `<client session>:<name>`.
    pub id: &'c str,
    /// Filters of the intercept; none takes every message.
    pub filters: &'c Filters,
    /// Key-value pairs its owner gave along.
    pub metadata: &'c BTreeMap<String, String>,
}

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// JSON and a line end, or empty.
    pub json: String,
}

struct Message<'m> {
    path: &'m str,
    headers: &'m [(&'m [u8], &'m [u8])],
}

impl Request for Message<'_> {
    fn method(&self) -> &[u8] {
        b""
    }

    fn target(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        for (name, value) in self.headers {
            visit(name, value);
        }
    }
}

/// Answers a question; `candidates` returns the intercepts of a container port, 0 where none was
/// named.
pub fn answer<'c>(
    place: Place,
    question: &Question<'_>,
    candidates: impl FnOnce(u16) -> Vec<Candidate<'c>>,
) -> Answer {
    if question.endpoint == "/healthz" {
        return ok(String::new());
    }
    if !matches!(question.endpoint, "/consume-here" | "/intercept-info") {
        return refusal(404, "there are /healthz, /consume-here and /intercept-info");
    }
    let param = |name: &str| {
        let form = form_urlencoded::parse(question.form);
        let mut pairs = form.chain(form_urlencoded::parse(question.query.as_bytes()));
        pairs.find(|(key, _)| key == name).map(|(_, value)| value)
    };
    let port = param("containerPort").filter(|text| !text.is_empty());
    let port = match port.as_deref().map_or(Ok(0), str::parse) {
        Ok(port) => port,
        Err(_) => {
            let given = port.unwrap_or_default();
            let problem = format!("containerPort: {given:?} is not a port number; use 1 to 65535");
            return refusal(400, &problem);
        }
    };
    let candidates = candidates(port);
    let path = param("path").unwrap_or_default();
    let taken = taker(&candidates, &path, &question.headers);
    if question.endpoint == "/consume-here" {
        let here = taken.is_some() == (place == Place::Workstation);
        return ok(format!("{here}\n"));
    }
    let metadata = taken.map_or_else(String::new, |candidate| with_metadata(candidate.metadata));
    let (intercepted, client_side) = (taken.is_some(), place == Place::Workstation);
    ok(format!(
        "{{\"intercepted\":{intercepted},\"clientSide\":{client_side}{metadata}}}\n"
    ))
}

/// Finds the intercept that takes a message.
fn taker<'a, 'c>(
    candidates: &'a [Candidate<'c>],
    path: &str,
    headers: &[(&[u8], &[u8])],
) -> Option<&'a Candidate<'c>> {
    let caller = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(CALLER.as_bytes()))
        .map(|(_, id)| *id);
    let names = Names::of(candidates.iter().map(|candidate| candidate.filters));
    let message = Message { path, headers };
    let view = View::new(&message, &names);
    let mut asked = candidates
        .iter()
        .filter(|candidate| caller.is_none_or(|id| id.is_empty() || id == candidate.id.as_bytes()));
    asked.find(|candidate| candidate.filters.matches(&view))
}

fn with_metadata(metadata: &BTreeMap<String, String>) -> String {
    // Strings always have a form in JSON.
    let json = serde_json::to_string(metadata).unwrap_or_default();
    if metadata.is_empty() {
        return String::new();
    }
    format!(",\"metadata\":{json}")
}

fn ok(json: String) -> Answer {
    Answer { status: 200, json }
}

fn refusal(status: u16, problem: &str) -> Answer {
    let json = serde_json::json!({ "error": problem });
    Answer {
        status,
        json: format!("{json}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::matcher::{HeaderFilter, PathFilter};

    type Headers<'h> = &'h [(&'h str, &'h str)];

    fn ask(place: Place, endpoint: &str, query: &str, headers: Headers<'_>) -> Answer {
        let filters = Filters {
            headers: vec![HeaderFilter::new("x-dev", "me")],
            paths: vec![PathFilter::parse(":path-prefix:/orders").unwrap()],
            ..Filters::default()
        };
        let metadata = BTreeMap::from([("team".to_owned(), "a \"b\"".to_owned())]);
        let other = (Filters::default(), BTreeMap::new());
        let headers = headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let question = Question {
            endpoint,
            query,
            form: b"",
            headers: headers.collect(),
        };
        answer(place, &question, |port| match port {
            0 | 8080 => vec![Candidate {
                id: "s:mine",
                filters: &filters,
                metadata: &metadata,
            }],
            9090 => vec![Candidate {
                id: "s:all",
                filters: &other.0,
                metadata: &other.1,
            }],
            _ => Vec::new(),
        })
    }

    #[test]
    fn agent_and_workstation_never_both_consume_a_message() {
        let me: Headers<'_> = &[("X-Dev", "me")];
        let rows: &[(&str, Headers<'_>, bool)] = &[
            ("path=/orders/1", me, true),
            ("path=%2Forders", me, true),
            ("path=/orders&containerPort=8080", me, true),
            ("path=/orders&containerPort=", me, true),
            ("path=/other", me, false),
            ("", me, false),
            ("path=/orders", &[("x-dev", "you")], false),
            ("path=/orders", &[], false),
            ("path=/orders&containerPort=1", me, false),
            ("containerPort=9090", &[], true),
            ("path=/orders", &[("x-dev", "me"), (CALLER, "s:mine")], true),
            ("path=/orders", &[("x-dev", "me"), (CALLER, "s:all")], false),
            (
                "containerPort=9090",
                &[("X-Telepresence-Caller-Intercept-Id", "s:all")],
                true,
            ),
        ];
        for (query, headers, taken) in rows {
            let here = |place| ask(place, "/consume-here", query, headers).json;
            assert_eq!(
                here(Place::Agent),
                format!("{}\n", !taken),
                "{query} {headers:?}"
            );
            assert_eq!(
                here(Place::Workstation),
                format!("{taken}\n"),
                "{query} {headers:?}"
            );
        }
    }

    #[test]
    fn information_names_the_side_and_metadata_only_of_what_takes_it() {
        let info = |place, query, headers| ask(place, "/intercept-info", query, headers).json;
        assert_eq!(
            info(Place::Agent, "path=/orders", &[("x-dev", "me")]),
            "{\"intercepted\":true,\"clientSide\":false,\"metadata\":{\"team\":\"a \\\"b\\\"\"}}\n"
        );
        assert_eq!(
            info(Place::Workstation, "containerPort=9090", &[]),
            "{\"intercepted\":true,\"clientSide\":true}\n"
        );
        assert_eq!(
            info(Place::Agent, "", &[]),
            "{\"intercepted\":false,\"clientSide\":false}\n"
        );
    }

    #[test]
    fn other_questions_are_answered_with_what_there_is() {
        assert_eq!(ask(Place::Agent, "/healthz", "", &[]), ok(String::new()));
        assert_eq!(ask(Place::Agent, "/x", "", &[]).status, 404);
        for port in ["x", "-1", "65536", "80.0"] {
            let query = format!("containerPort={port}");
            let answer = ask(Place::Agent, "/consume-here", &query, &[]);
            assert_eq!(answer.status, 400);
            let begin = format!("{{\"error\":\"containerPort: \\\"{port}\\\" is not");
            assert!(answer.json.starts_with(&begin), "{}", answer.json);
        }
    }

    #[test]
    fn a_form_counts_like_the_query() {
        let (filters, metadata) = (Filters::default(), BTreeMap::new());
        let question = Question {
            endpoint: "/consume-here",
            form: b"containerPort=7",
            ..Question::default()
        };
        let answer = answer(Place::Workstation, &question, |port| {
            assert_eq!(port, 7);
            vec![Candidate {
                id: "s:a",
                filters: &filters,
                metadata: &metadata,
            }]
        });
        assert_eq!(answer.json, "true\n");
    }
}

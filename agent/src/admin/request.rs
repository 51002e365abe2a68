//! Requests to the admin server, its responses, and the endpoint type that joins them.

use traffic_proto::printable::{Notation, escaped};

use crate::admin::Agent;

/// Parts of a request that the admin uses.
#[derive(Clone, Copy, Debug)]
pub struct AdminRequest<'a> {
    /// The method is POST.
    pub post: bool,
    /// Method, for messages.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// Query after the question mark, and the fields of a form.
    pub query: &'a str,
    /// The `Accept` header.
    pub accept: &'a str,
    /// A browser sends it on behalf of another site.
    pub cross_site: bool,
}

impl AdminRequest<'_> {
    /// Returns the decoded value of a query parameter; empty for one without `=`.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        self.params().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Iterates over the decoded query parameters in order.
    pub fn params(&self) -> impl Iterator<Item = (String, String)> + '_ {
        form_urlencoded::parse(self.query.as_bytes()).into_owned()
    }

    /// Returns true for a browser.
    #[must_use]
    pub fn wants_html(&self) -> bool {
        self.accept
            .split(',')
            .any(|m| m.trim().starts_with("text/html"))
            // Who asks for a format is no browser, whatever it accepts.
            && self.param("format").is_none_or(|format| format.is_empty())
    }

    /// Returns true for a program that asks for JSON.
    #[must_use]
    pub fn wants_json(&self) -> bool {
        self.param("format").as_deref() == Some("json")
    }
}

/// A response.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// Response body.
    pub body: String,
}

impl Page {
    /// Plain text.
    #[must_use]
    pub fn text(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=UTF-8",
            body,
        }
    }

    /// Envoy's word for a change that was made.
    #[must_use]
    pub fn ok() -> Self {
        Self::text(200, "OK\n".to_owned())
    }

    /// A page for browsers.
    #[must_use]
    pub fn html(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "text/html; charset=UTF-8",
            body,
        }
    }

    /// JSON, indented.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        let mut body = String::new();
        // JSON allows some characters in strings that a terminal obeys.
        for line in serde_json::to_string_pretty(value)
            .unwrap_or_default()
            .lines()
        {
            body.push_str(&escaped(line, Notation::Json));
            body.push('\n');
        }
        Self {
            status: 200,
            content_type: "application/json",
            body,
        }
    }
}

/// A path of the admin server and its handler.
#[derive(Debug)]
pub struct Endpoint {
    /// Path that selects the endpoint.
    pub path: &'static str,
    /// Way of calling it.
    pub kind: Kind,
    /// Description on the index page.
    pub help: &'static str,
    /// Parameters, as fields of a form on the index page.
    pub fields: &'static [Field],
    /// Handler of the endpoint.
    pub answer: fn(&AdminRequest<'_>, &Agent) -> Page,
}

impl Endpoint {
    /// An endpoint that shows something.
    #[must_use]
    pub const fn get(
        path: &'static str,
        help: &'static str,
        fields: &'static [Field],
        answer: fn(&AdminRequest<'_>, &Agent) -> Page,
    ) -> Self {
        Self {
            path,
            kind: Kind::Read,
            help,
            fields,
            answer,
        }
    }

    /// An endpoint that changes something; only POST is accepted.
    #[must_use]
    pub const fn post(
        path: &'static str,
        kind: Kind,
        help: &'static str,
        fields: &'static [Field],
        answer: fn(&AdminRequest<'_>, &Agent) -> Page,
    ) -> Self {
        Self {
            path,
            kind,
            help,
            fields,
            answer,
        }
    }

    /// Returns true if it changes something.
    #[must_use]
    pub fn is_post(&self) -> bool {
        !matches!(self.kind, Kind::Read)
    }
}

/// Way of calling an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing.
    Read,
    /// Changes something that is changed back as easily.
    Change,
    /// Takes something away: browsers ask first, with this sentence.
    Danger(&'static str),
}

/// A parameter of an endpoint.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// A text, with what to write.
    Text(&'static str, &'static str),
    /// A parameter that is there or not.
    Flag(&'static str),
    /// One of several words, or none.
    Choice(&'static str, &'static [&'static str]),
}

//! Structured clauses: the method, a parameter of the query, a cookie, a member of `baggage` or
//! `tracestate`, service and method of a gRPC call; each may be negated or one of several.
//!
//! On the wire a clause is a header filter whose name no header can have, so that stock agents
//! never match it and stock managers carry it:
//!
//! | name | what is compared |
//! | --- | --- |
//! | `:method` | the method |
//! | `query[NAME]` | a parameter of the query, decoded |
//! | `cookie[NAME]` | a cookie: as it is, without quotes, or decoded |
//! | `baggage[KEY]` | a member of W3C baggage: as it is, or decoded |
//! | `tracestate[KEY]` | a member of W3C trace state |
//! | `grpc[service]`, `grpc[method]` | the parts of a gRPC call's path |
//! | `not:…` | no value matches; also for a header's name |
//! | `any:…` | one of all clauses with this mark has to match; also for a header's name |
//!
//! A value is exact text, or a regex under the rule of header filters; a regex that does not
//! compile is refused.

mod lists;

use std::fmt;

use memchr::memmem::Finder;

use crate::routing::clause::lists::List;
use crate::routing::go_regex::PatternError;
use crate::routing::pattern::Pattern;
use crate::routing::view::View;

/// Part of a request that a clause looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The request method.
    Method,
    /// All lines of a header; the name is lower-case.
    Header(String),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
    /// A member of the `baggage` header.
    Baggage(String),
    /// A member of the `tracestate` header.
    TraceState(String),
    /// The service of a gRPC call.
    GrpcService,
    /// The method of a gRPC call.
    GrpcMethod,
}

/// Part that a clause has in its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has to match.
    All,
    /// It must not match.
    Not,
    /// One of all clauses with this role has to match.
    Any,
}

/// A structured clause.
#[derive(Clone, Debug)]
pub struct Clause {
    subject: Subject,
    role: Role,
    text: String,
    pattern: Pattern,
    /// Finds the name in a line; most lines without it need not be taken apart.
    name: Finder<'static>,
}

/// A filter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClauseError {
    /// The name is of no known form.
    #[error(
        "{0:?} is not a header name; write a header's name, :method, query[NAME], cookie[NAME], \
         baggage[KEY], tracestate[KEY], grpc[service] or grpc[method], with not: or any: before it \
         where that is meant"
    )]
    Name(String),
    /// The value is no usable pattern.
    #[error("header filter {name}: {error}")]
    Pattern {
        /// Name of the filter on the wire.
        name: String,
        /// Fault of the value.
        error: PatternError,
    },
}

impl ClauseError {
    pub(crate) fn pattern(name: &str, error: PatternError) -> Self {
        let name = name.to_owned();
        Self::Pattern { name, error }
    }
}

/// First clause, or group of clauses, that a request fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure<'c> {
    /// A clause that does not match, or is negated and does.
    One(&'c Clause),
    /// None of those that are alternatives.
    NoneOf(&'c [Clause]),
}

/// Returns what a request fails; nothing if all clauses hold in their roles.
pub(crate) fn first_failure<'c>(clauses: &'c [Clause], view: &View<'_>) -> Option<Failure<'c>> {
    let (mut alternatives, mut chosen) = (false, false);
    for clause in clauses {
        let fails = match clause.role {
            Role::All => !clause.holds(view),
            Role::Not => clause.holds(view),
            Role::Any => {
                alternatives = true;
                chosen = chosen || clause.holds(view);
                false
            }
        };
        if fails {
            return Some(Failure::One(clause));
        }
    }
    (alternatives && !chosen).then_some(Failure::NoneOf(clauses))
}

/// Describes clauses for people; those of which one has to match are one description.
#[must_use]
pub fn descriptions(clauses: &[Clause]) -> Vec<String> {
    let lone = clauses.iter().filter(|c| c.role != Role::Any);
    let mut all: Vec<_> = lone.map(ToString::to_string).collect();
    match &alternatives(clauses)[..] {
        [] => {}
        [one] => all.push(one.clone()),
        several => all.push(format!("({})", several.join(" or "))),
    }
    all
}

fn alternatives(clauses: &[Clause]) -> Vec<String> {
    let any = clauses.iter().filter(|c| c.role == Role::Any);
    any.map(ToString::to_string).collect()
}

impl Failure<'_> {
    /// Describes the failure.
    pub(crate) fn text(self, view: &View<'_>) -> String {
        match self {
            Self::One(clause) => {
                let absent = clause.role == Role::All && !clause.has_value(view, &mut |_| true);
                let absent = if absent { " (absent)" } else { "" };
                format!("{clause}{absent}")
            }
            Self::NoneOf(clauses) => alternatives(clauses).join(" or "),
        }
    }
}

impl Clause {
    /// Parses a filter of the wire.
    ///
    /// # Errors
    /// The name is of no known form, or the value is no usable pattern.
    pub fn parse(name: &str, value: &str) -> Result<Self, ClauseError> {
        let (role, rest) = match name.split_once(':') {
            Some(("not", rest)) => (Role::Not, rest),
            Some(("any", rest)) => (Role::Any, rest),
            _ => (Role::All, name),
        };
        let subject = Subject::parse(rest).ok_or_else(|| {
            // Names come from anywhere; a message must stay readable.
            ClauseError::Name(name.chars().take(100).collect())
        })?;
        let pattern = Pattern::compile(value).map_err(|error| ClauseError::pattern(name, error))?;
        let finder = Finder::new(subject.name().as_bytes()).into_owned();
        Ok(Self {
            subject,
            role,
            text: value.to_owned(),
            pattern,
            name: finder,
        })
    }

    /// Returns the part of the request it looks at.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Returns its part in the rule.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the value as given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Returns its name on the wire.
    #[must_use]
    pub fn wire_name(&self) -> String {
        let role = match self.role {
            Role::All => "",
            Role::Not => "not:",
            Role::Any => "any:",
        };
        match &self.subject {
            Subject::Method => format!("{role}:method"),
            Subject::Header(name) => format!("{role}{name}"),
            other => format!("{role}{}[{}]", other.kind(), other.name()),
        }
    }

    /// Returns the header whose lines it looks at, if it does.
    pub(crate) fn header(&self) -> Option<&str> {
        match &self.subject {
            Subject::Method | Subject::Query(_) => None,
            Subject::Header(name) => Some(name),
            Subject::Cookie(_) => Some("cookie"),
            Subject::Baggage(_) => Some("baggage"),
            Subject::TraceState(_) => Some("tracestate"),
            Subject::GrpcService | Subject::GrpcMethod => Some("content-type"),
        }
    }

    /// Returns true if a value of the subject matches, whatever the role.
    fn holds(&self, view: &View<'_>) -> bool {
        self.has_value(view, &mut |value| self.pattern.holds(value))
    }

    /// Returns true if one of the subject's values, in one of its forms, satisfies `wanted`.
    fn has_value(&self, view: &View<'_>, wanted: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let grpc = || lists::grpc_call(view.path(), view.values("content-type"));
        match &self.subject {
            Subject::Method => !view.method().is_empty() && wanted(view.method()),
            Subject::Header(name) => view.values(name).any(wanted),
            Subject::Query(name) => view.query().is_some_and(|query| {
                let escaped = || query.iter().any(|b| matches!(b, b'%' | b'+'));
                (self.name.find(query).is_some() || escaped())
                    && form_urlencoded::parse(query)
                        .any(|(key, value)| key == *name && wanted(value.as_bytes()))
            }),
            Subject::Cookie(_) => self.has_member(view, lists::cookie, wanted),
            Subject::Baggage(_) => self.has_member(view, lists::baggage, wanted),
            Subject::TraceState(_) => self.has_member(view, lists::trace_state, wanted),
            Subject::GrpcService => grpc().is_some_and(|(service, _)| wanted(service)),
            Subject::GrpcMethod => grpc().is_some_and(|(_, method)| wanted(method)),
        }
    }

    /// Looks for a member of lists in header lines.
    fn has_member(
        &self,
        view: &View<'_>,
        list: List,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let name = self.subject.name().as_bytes();
        let mut lines = self.header().into_iter().flat_map(|h| view.values(h));
        lines.any(|line| {
            self.name.find(line).is_some()
                && list(line, name, &mut |value, forms| forms.any(value, wanted))
        })
    }
}

impl Subject {
    fn parse(name: &str) -> Option<Self> {
        if name == ":method" {
            return Some(Self::Method);
        }
        if traffic_proto::token::is_token_text(name) {
            return Some(Self::Header(name.to_ascii_lowercase()));
        }
        let (kind, rest) = name.split_once('[')?;
        let key = rest.strip_suffix(']')?;
        // A separator of the list cannot be part of a name in it.
        let within = |separators: &str| {
            let plain = key.trim() == key && !key.contains(|c| separators.contains(c));
            (plain && !key.is_empty()).then(|| key.to_owned())
        };
        match (kind, key) {
            ("query", "") => None,
            ("query", _) => Some(Self::Query(key.to_owned())),
            ("cookie", _) => within(";=").map(Self::Cookie),
            ("baggage", _) => within(",;=").map(Self::Baggage),
            ("tracestate", _) => within(",=").map(Self::TraceState),
            ("grpc", "service") => Some(Self::GrpcService),
            ("grpc", "method") => Some(Self::GrpcMethod),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Header(_) => "header",
            Self::Query(_) => "query",
            Self::Cookie(_) => "cookie",
            Self::Baggage(_) => "baggage",
            Self::TraceState(_) => "tracestate",
            Self::GrpcService | Self::GrpcMethod => "grpc",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Method => "",
            Self::Header(name)
            | Self::Query(name)
            | Self::Cookie(name)
            | Self::Baggage(name)
            | Self::TraceState(name) => name,
            Self::GrpcService => "service",
            Self::GrpcMethod => "method",
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.role == Role::Not { "not " } else { "" };
        let (kind, name) = (self.subject.kind(), self.subject.name());
        let blank = if name.is_empty() { "" } else { " " };
        write!(f, "{not}{kind}{blank}{name}: {}", self.text)
    }
}

#[cfg(test)]
mod tests;

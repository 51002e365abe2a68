//! Compiled header and path filters, and the view of a request they are matched against.
//!
//! A header filter matches if any field line of its name does: exact text, or, if the value has a
//! regex metacharacter and compiles, an unanchored linear-time regex in Go's dialect. Paths are
//! compared without their query; path filters are OR-ed, headers and paths are AND-ed.

use std::fmt;

use regex::bytes::Regex;

use crate::routing::clause::{self, Clause, ClauseError, Role, Subject};
use crate::routing::go_regex;
use crate::routing::go_regex::PatternError;
use crate::routing::pattern::{Pattern, as_go_reads, glob};
use crate::routing::request::Request;
use crate::routing::view::USER_AGENT;
pub(crate) use crate::routing::view::compare_names;
pub use crate::routing::view::{EXPLAIN, Names, View};

/// A clause on a header.
#[derive(Clone, Debug)]
pub struct HeaderFilter {
    /// Lower-case field name.
    pub name: String,
    /// Pattern text as given.
    pub text: String,
    pattern: Pattern,
}

/// An alternative on the path.
#[derive(Clone, Debug)]
pub enum PathFilter {
    /// The path equals this text.
    Equal(String),
    /// The path starts with this text.
    Prefix(String),
    /// The path contains a match of this regex; text and compiled form.
    Regex(String, Regex),
}

/// Filters a request has to match.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Header clauses, AND-ed, in name order.
    pub headers: Vec<HeaderFilter>,
    /// Path alternatives, OR-ed; empty means any path.
    pub paths: Vec<PathFilter>,
    /// Structured clauses, each in its role.
    pub clauses: Vec<Clause>,
}

impl HeaderFilter {
    /// Creates a clause; a value that has metacharacters but does not compile is taken as exact
    /// text.
    #[must_use]
    pub fn new(name: &str, value: &str) -> Self {
        Self::compile(name, value)
            .unwrap_or_else(|_| Self::with(name, value, Pattern::exact(value)))
    }

    /// Creates like [`Self::new`], but rejects a pattern that is too large to be compiled.
    ///
    /// # Errors
    /// [`PatternError::TooLong`] and [`PatternError::TooLarge`].
    pub fn compile(name: &str, value: &str) -> Result<Self, PatternError> {
        let pattern = match Pattern::compile(value) {
            Ok(pattern) => pattern,
            // The stock agent also takes an invalid pattern as literal text.
            Err(PatternError::Syntax { .. }) => Pattern::exact(value),
            Err(too_big) => return Err(too_big),
        };
        Ok(Self::with(name, value, pattern))
    }

    fn with(name: &str, value: &str, pattern: Pattern) -> Self {
        Self {
            // Names are compared without case; values keep theirs.
            name: name.to_ascii_lowercase(),
            text: value.to_owned(),
            pattern,
        }
    }

    /// Returns true if the value is matched as a regex.
    #[must_use]
    pub fn is_regex(&self) -> bool {
        matches!(self.pattern, Pattern::Regex(_))
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Returns true if some value may satisfy both clauses, as far as that can be decided: equal
    /// texts, two regexes, or a regex (or a `*` glob) that matches the other's text.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.name != other.name {
            return false;
        }
        match (&self.pattern, &other.pattern) {
            // Whether two languages meet is not worth deciding: a conflict that is told can be
            // resolved, one that is missed splits traffic.
            (Pattern::Regex(_), Pattern::Regex(_)) => true,
            (Pattern::Exact(a), Pattern::Exact(b)) => a == b || glob(a, b) || glob(b, a),
            (Pattern::Regex(r), Pattern::Exact(text)) => {
                r.is_match(text) || glob(self.text.as_bytes(), text)
            }
            (Pattern::Exact(text), Pattern::Regex(r)) => {
                r.is_match(text) || glob(other.text.as_bytes(), text)
            }
        }
    }
}

impl PathFilter {
    /// Parses the wire form: `:path-equal:X`, `:path-prefix:X`, `:path-regex:X`, or a bare path
    /// that must be equal.
    ///
    /// # Errors
    /// A regex that does not compile or is too large.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if let Some(prefix) = text.strip_prefix(":path-prefix:") {
            Ok(Self::Prefix(prefix.to_owned()))
        } else if let Some(pattern) = text.strip_prefix(":path-regex:") {
            Ok(Self::Regex(pattern.to_owned(), go_regex::compile(pattern)?))
        } else {
            Ok(Self::Equal(
                text.strip_prefix(":path-equal:").unwrap_or(text).to_owned(),
            ))
        }
    }

    /// Compiles a regex that has to match the whole path, as in the older generation of filters.
    ///
    /// # Errors
    /// A regex that does not compile or is too large.
    pub fn whole(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self::Regex(
            pattern.to_owned(),
            go_regex::compile_whole(pattern)?,
        ))
    }

    /// Returns true if some path may satisfy both; a regex overlaps with everything.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Regex(..), _) | (_, Self::Regex(..)) => true,
            (Self::Equal(a), Self::Equal(b)) => a == b,
            (Self::Prefix(a), Self::Prefix(b)) => a.starts_with(b) || b.starts_with(a),
            (Self::Prefix(prefix), Self::Equal(path))
            | (Self::Equal(path), Self::Prefix(prefix)) => path.starts_with(prefix),
        }
    }

    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Equal(p) => p.as_bytes() == path,
            Self::Prefix(p) => path.starts_with(p.as_bytes()),
            Self::Regex(_, r) => r.is_match(&as_go_reads(path)),
        }
    }
}

impl fmt::Display for PathFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(p) => write!(f, "path {p}"),
            Self::Prefix(p) => write!(f, "path prefix {p}"),
            Self::Regex(p, _) => write!(f, "path regex {p}"),
        }
    }
}

impl Names {
    /// Collects the names of all filters, `user-agent` for the probe rule, and [`EXPLAIN`].
    pub fn of<'a>(filters: impl Iterator<Item = &'a Filters>) -> Self {
        Self::new(filters.flat_map(Filters::header_names))
    }
}

impl Filters {
    /// Returns the number of clauses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.headers.len() + self.paths.len() + self.clauses.len()
    }

    /// Returns the memory to reckon with for all compiled patterns, in bytes. Compiles them again,
    /// so it is not for a hot path.
    #[must_use]
    pub fn memory(&self) -> usize {
        let headers = self.headers.iter().filter_map(|h| h.pattern.regex());
        let clauses = self.clauses.iter().filter_map(|c| c.pattern().regex());
        let paths = self.paths.iter().filter_map(|p| match p {
            PathFilter::Regex(_, regex) => Some(regex),
            PathFilter::Equal(_) | PathFilter::Prefix(_) => None,
        });
        let all = headers.chain(clauses).chain(paths);
        all.map(go_regex::memory).sum()
    }

    /// Returns true if there is no clause: a global intercept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.has_headers() && self.paths.is_empty()
    }

    /// Returns true if there is a clause on anything but the path.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        !self.headers.is_empty() || !self.clauses.is_empty()
    }

    /// Adds a filter as it stands on the wire: a header's name, or a structured one such as
    /// `cookie[user]`.
    ///
    /// # Errors
    /// The name is neither, or the value is no usable pattern.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), ClauseError> {
        if traffic_proto::token::is_token_text(name) {
            let filter = HeaderFilter::compile(name, value);
            let filter = filter.map_err(|error| ClauseError::pattern(name, error))?;
            self.headers.push(filter);
        } else {
            self.clauses.push(Clause::parse(name, value)?);
        }
        Ok(())
    }

    /// Returns all filters but those on the path, by their names on the wire.
    pub fn on_wire(&self) -> impl Iterator<Item = (String, &str)> {
        let headers = self
            .headers
            .iter()
            .map(|h| (h.name.clone(), h.text.as_str()));
        headers.chain(self.clauses.iter().map(|c| (c.wire_name(), c.text())))
    }

    /// Returns true if a request that carries nothing of a developer's would match: an ordinary
    /// method, a path nobody has, and no header.
    #[must_use]
    pub fn take_anonymous(&self) -> bool {
        let names = Names::of([self].into_iter());
        let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        methods
            .iter()
            .any(|method| self.matches(&View::new(&Anonymous(method), &names)))
    }

    /// Returns the headers whose content decides, in lower case.
    pub fn named_headers(&self) -> impl Iterator<Item = &str> {
        let headers = self.headers.iter().map(|h| h.name.as_str());
        let named =
            |c: &&Clause| !matches!(c.subject(), Subject::GrpcService | Subject::GrpcMethod);
        headers.chain(self.clauses.iter().filter(named).filter_map(Clause::header))
    }

    /// Returns the header names that have to be looked at.
    fn header_names(&self) -> impl Iterator<Item = String> {
        let headers = self.headers.iter().map(|h| h.name.as_str());
        let clauses = self.clauses.iter().filter_map(Clause::header);
        headers.chain(clauses).map(str::to_owned)
    }

    /// Returns name and value of a clause that only a line with exactly this value satisfies.
    pub(crate) fn exact_header(&self) -> Option<(&str, &[u8])> {
        self.headers.iter().find_map(|h| match &h.pattern {
            // An absent header satisfies an empty value as well.
            Pattern::Exact(text) if !text.is_empty() => Some((h.name.as_str(), text.as_slice())),
            Pattern::Exact(_) | Pattern::Regex(_) => None,
        })
    }

    /// Returns true if all clauses match.
    #[must_use]
    pub fn matches(&self, view: &View<'_>) -> bool {
        if view.is_probe() && !self.names_user_agent() {
            return false;
        }
        self.headers.iter().all(|h| h.holds(view))
            && self.path_holds(view)
            && (self.clauses.is_empty() || clause::first_failure(&self.clauses, view).is_none())
    }

    /// Describes the first clause that does not match; `None` if all do.
    #[must_use]
    pub fn first_failure(&self, view: &View<'_>) -> Option<String> {
        if view.is_probe() && !self.names_user_agent() {
            return Some("user-agent is a kubelet probe and no filter names user-agent".to_owned());
        }
        if let Some(h) = self.headers.iter().find(|h| !h.holds(view)) {
            let absent = if view.values(&h.name).next().is_none() {
                " (header absent)"
            } else {
                ""
            };
            return Some(format!("header {}: {}{absent}", h.name, h.text));
        }
        if let Some(failure) = clause::first_failure(&self.clauses, view) {
            return Some(failure.text(view));
        }
        if !self.path_holds(view) {
            return Some(
                self.paths
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" or "),
            );
        }
        None
    }

    fn names_user_agent(&self) -> bool {
        let mut clauses = self.clauses.iter();
        self.headers.iter().any(|h| h.name == USER_AGENT)
            || clauses.any(|c| c.role() != Role::Not && c.header() == Some(USER_AGENT))
    }

    fn path_holds(&self, view: &View<'_>) -> bool {
        self.paths.is_empty()
            || self.paths.iter().any(|p| {
                p.matches(view.path()) || view.decoded_path().is_some_and(|d| p.matches(d))
            })
    }
}

/// A request with this method and nothing of anybody's.
struct Anonymous(&'static str);

impl Request for Anonymous {
    fn method(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn target(&self) -> &[u8] {
        b"/0f5c9b1e/7ad2c386"
    }

    fn visit_headers<'a>(&'a self, _: &mut dyn FnMut(&'a [u8], &'a [u8])) {}
}

impl HeaderFilter {
    fn holds(&self, view: &View<'_>) -> bool {
        match &self.pattern {
            Pattern::Exact(text) if text.is_empty() => {
                // An absent header matches an exact empty value, as the stock agent has it.
                let mut values = view.values(&self.name).peekable();
                values.peek().is_none() || values.any(<[u8]>::is_empty)
            }
            Pattern::Exact(text) => view.values(&self.name).any(|v| v == text),
            Pattern::Regex(r) => view
                .values(&self.name)
                .any(|v| !v.is_empty() && r.is_match(&as_go_reads(v))),
        }
    }
}

#[cfg(test)]
mod tests;

//! Compiled header and path filters, and the view of a request they are matched against.
//!
//! A header filter matches if any field line of its name does: exact text, or, if the value has a
//! regex metacharacter and compiles, an unanchored linear-time regex in Go's dialect. Paths are
//! compared without their query; path filters are OR-ed, headers and paths are AND-ed.

use std::borrow::Cow;
use std::fmt;

use regex::bytes::Regex;

use crate::routing::go_regex;
use crate::routing::go_regex::PatternError;
use crate::routing::request::Request;

/// A value or path pattern.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Exact bytes.
    Exact(Vec<u8>),
    /// An unanchored regex.
    Regex(Regex),
}

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
}

impl HeaderFilter {
    /// Creates a clause; a value that has metacharacters but does not compile is taken as exact
    /// text.
    #[must_use]
    pub fn new(name: &str, value: &str) -> Self {
        Self::compile(name, value).unwrap_or_else(|_| Self::with(name, value, exact(value)))
    }

    /// Creates like [`Self::new`], but rejects a pattern that is too large to be compiled.
    ///
    /// # Errors
    /// [`PatternError::TooLong`] and [`PatternError::TooLarge`].
    pub fn compile(name: &str, value: &str) -> Result<Self, PatternError> {
        let pattern = if value.contains(|c| r"\.+*?()[]{}^$|".contains(c)) {
            match go_regex::compile(value) {
                Ok(regex) => Pattern::Regex(regex),
                // The stock agent also takes an invalid pattern as literal text.
                Err(PatternError::Syntax { .. }) => exact(value),
                Err(too_big) => return Err(too_big),
            }
        } else {
            exact(value)
        };
        Ok(Self::with(name, value, pattern))
    }

    fn with(name: &str, value: &str, pattern: Pattern) -> Self {
        Self {
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

    /// Returns true if some value may satisfy both clauses, as far as that can be decided: equal
    /// texts, two regexes, or a regex (or a `*` glob) that matches the other's text.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.name != other.name {
            return false;
        }
        match (&self.pattern, &other.pattern) {
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

fn exact(value: &str) -> Pattern {
    Pattern::Exact(value.as_bytes().to_vec())
}

/// Returns true if `pattern`, with `*` for any bytes, matches the whole of `text`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut parts = pattern.split(|b| *b == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    // Without a `*` the whole text has to equal the pattern.
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) =
            // The leftmost match is always right for inner parts, because `*` takes the rest.
            (0..=rest.len()).find(|at| rest.get(*at..).is_some_and(|r| r.starts_with(part)))
        else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
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

/// Returns text as Go's regexps see it: a byte that is not UTF-8 counts as one U+FFFD.
fn as_go_reads(text: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(text).is_ok() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len() * 3);
    for chunk in text.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        out.extend(chunk.invalid().iter().flat_map(|_| "\u{FFFD}".bytes()));
    }
    Cow::Owned(out)
}

/// Header names used by any rule of a table.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<String>,
    /// Bit `n` is set if some name is `n` bytes long (63 stands for all longer ones): most lines of
    /// a request are skipped by it alone.
    lengths: u64,
}

const USER_AGENT: &str = "user-agent";
/// Request header by which the owner of an intercept asks for an explanation of the routing.
pub const EXPLAIN: &str = "x-traffic-agent-explain";

impl Names {
    /// Collects the names of all filters, `user-agent` for the probe rule, and [`EXPLAIN`].
    pub fn of<'a>(filters: impl Iterator<Item = &'a Filters>) -> Self {
        let ours = [USER_AGENT.to_owned(), EXPLAIN.to_owned()];
        let mut names: Vec<String> = filters
            .flat_map(|f| f.headers.iter().map(|h| h.name.clone()))
            .chain(ours)
            .collect();
        names.sort();
        names.dedup();
        let lengths = names.iter().fold(0, |bits, n| bits | length_bit(n.len()));
        Self { names, lengths }
    }

    fn wants(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name.len()) != 0
            && self
                .names
                .iter()
                .any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
    }
}

fn length_bit(len: usize) -> u64 {
    1 << len.min(63)
}

const INLINE: usize = 16;

/// Parts of a request that rules use, gathered in one pass over its header.
pub struct View<'r> {
    path: &'r [u8],
    decoded: Option<Vec<u8>>,
    inline: [(&'r [u8], &'r [u8]); INLINE],
    used: usize,
    spilled: Vec<(&'r [u8], &'r [u8])>,
    probe: bool,
    token: Option<&'r [u8]>,
}

impl<'r> View<'r> {
    /// Gathers the path and the header lines named in `names`.
    pub fn new<R: Request + ?Sized>(request: &'r R, names: &Names) -> Self {
        let target = request.target();
        let path = target
            .split(|b| *b == b'?' || *b == b'#')
            .next()
            .unwrap_or(target);
        let decoded = path.contains(&b'%').then(|| percent_decoded(path));
        let inline = [(&b""[..], &b""[..]); INLINE];
        let mut view = Self {
            path,
            decoded,
            inline,
            used: 0,
            spilled: Vec::new(),
            probe: false,
            token: None,
        };
        request.visit_headers(&mut |name, value| {
            if names.wants(name) {
                view.keep(name, value);
            }
        });
        view
    }

    fn keep(&mut self, name: &'r [u8], value: &'r [u8]) {
        if name.eq_ignore_ascii_case(USER_AGENT.as_bytes()) && value.starts_with(b"kube-probe/") {
            self.probe = true;
        } else if name.eq_ignore_ascii_case(EXPLAIN.as_bytes()) {
            self.token = Some(value);
        }
        if let Some(slot) = self.inline.get_mut(self.used) {
            *slot = (name, value);
            self.used += 1;
        } else {
            self.spilled.push((name, value));
        }
    }

    /// Returns the value of [`EXPLAIN`], if the request has it.
    #[must_use]
    pub fn token(&self) -> Option<&'r [u8]> {
        self.token
    }

    fn values<'v>(&'v self, name: &'v str) -> impl Iterator<Item = &'r [u8]> + 'v {
        self.inline
            .iter()
            .take(self.used)
            .chain(&self.spilled)
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, v)| *v)
    }
}

impl Filters {
    /// Returns true if there is no clause: a global intercept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.paths.is_empty()
    }

    /// Returns true if there is a header clause.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    /// Returns true if all clauses match.
    #[must_use]
    pub fn matches(&self, view: &View<'_>) -> bool {
        if view.probe && !self.names_user_agent() {
            return false;
        }
        self.headers.iter().all(|h| h.holds(view)) && self.path_holds(view)
    }

    /// Describes the first clause that does not match; `None` if all do.
    #[must_use]
    pub fn first_failure(&self, view: &View<'_>) -> Option<String> {
        if view.probe && !self.names_user_agent() {
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
        self.headers.iter().any(|h| h.name == USER_AGENT)
    }

    fn path_holds(&self, view: &View<'_>) -> bool {
        self.paths.is_empty()
            || self.paths.iter().any(|p| {
                p.matches(view.path) || view.decoded.as_deref().is_some_and(|d| p.matches(d))
            })
    }
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

fn percent_decoded(path: &[u8]) -> Vec<u8> {
    let hex = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'%', [a, b, after @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                out.push(hex(*a).unwrap_or_default() << 4 | hex(*b).unwrap_or_default());
                after
            }
            _ => {
                out.push(*first);
                tail
            }
        };
    }
    out
}

/// Returns the path as rules see it, without its query, for messages.
#[must_use]
pub fn printable_path(target: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(target.split(|b| *b == b'?').next().unwrap_or(target))
}

#[cfg(test)]
mod tests;

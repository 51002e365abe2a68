//! Parts of a request that rules look at, gathered in one pass over its header.

use std::cmp::Ordering;

use crate::routing::pattern::percent_decoded;
use crate::routing::request::Request;

/// Header names used by any rule of a table.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<String>,
    /// Bit `n` is set if some name is `n` bytes long (63 stands for all longer ones): most lines of
    /// a request are skipped by it alone.
    lengths: u64,
}

/// Header by which probes of the kubelet are told.
pub(crate) const USER_AGENT: &str = "user-agent";
/// Request header by which the owner of an intercept asks for an explanation of the routing.
pub const EXPLAIN: &str = "x-traffic-agent-explain";

impl Names {
    /// Takes the names that filters look at; adds `user-agent` for the probe rule, and [`EXPLAIN`].
    pub(crate) fn new(names: impl Iterator<Item = String>) -> Self {
        // The probe rule and explanations hold whatever intercepts there are.
        let ours = [USER_AGENT.to_owned(), EXPLAIN.to_owned()];
        let mut names: Vec<String> = names.chain(ours).collect();
        names.sort_by(|a, b| compare_names(a.as_bytes(), b.as_bytes()));
        names.dedup();
        let lengths = names.iter().fold(0, |bits, n| bits | length_bit(n.len()));
        Self { names, lengths }
    }

    fn wants(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name.len()) != 0
            && self
                .names
                .binary_search_by(|known| compare_names(known.as_bytes(), name))
                .is_ok()
    }
}

/// Orders a known lower-case name and one in any letter case.
pub(crate) fn compare_names(known: &[u8], name: &[u8]) -> Ordering {
    // By length first, which tells most names apart.
    known.len().cmp(&name.len()).then_with(|| {
        let lower = name.iter().map(u8::to_ascii_lowercase);
        known.iter().copied().cmp(lower)
    })
}

fn length_bit(len: usize) -> u64 {
    1 << len.min(63)
}

const INLINE: usize = 16;

/// Parts of a request that rules use, gathered in one pass over its header.
pub struct View<'r> {
    method: &'r [u8],
    target: &'r [u8],
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
        // Filters are about paths; no client sends a fragment, but a request may hold one.
        let path = target
            .split(|b| *b == b'?' || *b == b'#')
            .next()
            .unwrap_or(target);
        let decoded = path.contains(&b'%').then(|| percent_decoded(path));
        let inline = [(&b""[..], &b""[..]); INLINE];
        let mut view = Self {
            method: request.method(),
            target,
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
        // Most requests have few of the wanted lines, and then nothing is allocated.
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

    /// Returns the lines that rules look at.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> + '_ {
        let inline = self.inline.iter().take(self.used);
        inline.chain(&self.spilled).copied()
    }

    /// Returns the method as received.
    pub(crate) fn method(&self) -> &'r [u8] {
        self.method
    }

    /// Returns the path as received, without the query.
    pub(crate) fn path(&self) -> &'r [u8] {
        self.path
    }

    /// Returns the path without percent-escapes, if it has some.
    pub(crate) fn decoded_path(&self) -> Option<&[u8]> {
        self.decoded.as_deref()
    }

    /// Returns true for a probe of the kubelet.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe
    }

    /// Returns the query, if there is one.
    pub(crate) fn query(&self) -> Option<&'r [u8]> {
        let query = self.target.get(self.path.len()..)?.strip_prefix(b"?")?;
        query.split(|b| *b == b'#').next()
    }

    /// Returns the values of all lines of a header.
    pub(crate) fn values<'v>(&'v self, name: &'v str) -> impl Iterator<Item = &'r [u8]> + 'v {
        self.lines()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, v)| v)
    }
}

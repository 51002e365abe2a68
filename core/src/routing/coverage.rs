//! Comparison of rules: whether one takes all requests that another takes, as far as filters tell.

use crate::routing::clause::{Clause, Role, Subject};
use crate::routing::matcher::{Filters, HeaderFilter};

/// Returns true if every clause of `small`, but for paths, is satisfied by requests that satisfy
/// those of `large`, as far as that can be decided. In doubt it is true: a conflict that is told
/// can be resolved, one that is missed splits traffic.
#[must_use]
pub fn within(small: &Filters, large: &Filters) -> bool {
    let headers = small.headers.iter().all(|h| gives_header(large, h));
    let mut alternatives = small.clauses.iter().filter(|c| c.role() == Role::Any);
    let has_alternatives = alternatives.clone().next().is_some();
    headers
        && small.clauses.iter().all(|c| match c.role() {
            Role::All => gives(large, c),
            Role::Not => !contradicts(large, c),
            Role::Any => true,
        })
        && (!has_alternatives || alternatives.any(|c| gives(large, c)))
}

fn is_about(clause: &Clause, header: &HeaderFilter) -> bool {
    matches!(clause.subject(), Subject::Header(name) if *name == header.name)
}

/// Returns true if requests that satisfy `large` may satisfy a header clause.
fn gives_header(large: &Filters, header: &HeaderFilter) -> bool {
    let mut clauses = large.clauses.iter().filter(|c| c.role() != Role::Not);
    large.headers.iter().any(|h| h.overlaps(header))
        || clauses.any(|c| is_about(c, header) && c.pattern().overlaps(header.pattern()))
}

/// Returns true if requests that satisfy `large` may satisfy a clause that has to match.
fn gives(large: &Filters, clause: &Clause) -> bool {
    let same = |other: &&Clause| other.role() != Role::Not && other.subject() == clause.subject();
    let mut clauses = large.clauses.iter().filter(same);
    let mut headers = large.headers.iter().filter(|h| is_about(clause, h));
    clauses.any(|c| c.pattern().overlaps(clause.pattern()))
        || headers.any(|h| h.pattern().overlaps(clause.pattern()))
}

/// Returns true if no request that satisfies `large` satisfies a negated clause.
fn contradicts(large: &Filters, negated: &Clause) -> bool {
    let same = |c: &&Clause| c.role() == Role::All && c.subject() == negated.subject();
    let mut clauses = large.clauses.iter().filter(same);
    let mut headers = large.headers.iter().filter(|h| is_about(negated, h));
    clauses.any(|c| negated.pattern().covers(c.pattern()))
        || headers.any(|h| negated.pattern().covers(h.pattern()))
}

//! Tables of rules, none of which matches the sample requests.

#![allow(dead_code, unreachable_pub)]

use agent_testkit::intercept::{entry, intercept};
use traffic_core::routing::{RouteTable, State};

/// `n` rules on `x-dev`, with exact values or regexes.
pub fn table(n: usize, regex: bool) -> RouteTable {
    let entries = (0..n).map(|i| {
        let value = if regex {
            format!("^dev-{i}-(alice|bob)$")
        } else {
            format!("developer{i}")
        };
        let mut rule = intercept(&format!("rule{i:02}"), &[("x-dev", &value)]);
        rule.plaintext = true;
        entry(rule, State::Active)
    });
    RouteTable::new(entries.collect())
}

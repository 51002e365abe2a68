//! Guard rails: the platform team's rules on intercepts, as charts and annotations of pods write
//! them. The agent holds intercepts to the rules of both.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::duration::GoDuration;
use crate::fault::{Fault, Faults};
use crate::token;

/// Domains of the annotations; the first one wins.
const DOMAINS: [&str; 2] = ["telepresence.io/", "telepresence.getambassador.io/"];

/// Rules from one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardRails {
    /// Patterns of the only headers that filters may name, in lower case; empty: any.
    pub allowed_headers: Vec<String>,
    /// Patterns of headers that no filter may name, in lower case.
    pub forbidden_headers: Vec<String>,
    /// Intercepts of a whole port are forbidden.
    pub forbid_global: bool,
    /// Time after which an intercept ends.
    pub max_lifetime: Option<Duration>,
    /// Most intercepts of a port at a time.
    pub max_per_port: Option<usize>,
}

/// One of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Headers that filters may name.
    AllowedHeaders,
    /// Headers that they may not.
    ForbiddenHeaders,
    /// Whether a whole port may be intercepted.
    AllowGlobal,
    /// How long an intercept lives.
    MaxLifetime,
    /// How many of them a port has.
    MaxPerPort,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 5] = [
        Self::AllowedHeaders,
        Self::ForbiddenHeaders,
        Self::AllowGlobal,
        Self::MaxLifetime,
        Self::MaxPerPort,
    ];

    /// Returns the rule's key in the chart.
    #[must_use]
    pub const fn chart_value(self) -> &'static str {
        match self {
            Self::AllowedHeaders => "intercept.allowedHeaders",
            Self::ForbiddenHeaders => "intercept.forbiddenHeaders",
            Self::AllowGlobal => "intercept.allowGlobalIntercepts",
            Self::MaxLifetime => "intercept.maxLifetime",
            Self::MaxPerPort => "intercept.maxPerPort",
        }
    }

    /// Returns the name of the rule's annotation, without its domain.
    #[must_use]
    pub const fn annotation(self) -> &'static str {
        match self {
            Self::AllowedHeaders => "intercept-allowed-headers",
            Self::ForbiddenHeaders => "intercept-forbidden-headers",
            Self::AllowGlobal => "intercept-allow-global",
            Self::MaxLifetime => "intercept-max-lifetime",
            Self::MaxPerPort => "intercept-max-per-port",
        }
    }

    /// Returns what to write.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::AllowedHeaders | Self::ForbiddenHeaders => {
                "write names of headers with commas between them, * for any text"
            }
            Self::AllowGlobal => "write true or false",
            Self::MaxLifetime => "write a duration such as 8h, 0s for none",
            Self::MaxPerPort => "write a whole number, 0 for none",
        }
    }
}

impl GuardRails {
    /// Reads the annotations of a pod.
    ///
    /// # Errors
    /// Every annotation that cannot be read.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, Faults> {
        let (mut rails, mut faults) = (Self::default(), Faults::default());
        for rule in Rule::ALL {
            let keys = DOMAINS.map(|domain| format!("{domain}{}", rule.annotation()));
            let written = keys.iter().find_map(|key| {
                let value = annotations.get(key)?.trim();
                (!value.is_empty()).then_some((key, value))
            });
            let Some((key, value)) = written else {
                continue;
            };
            if let Err(problem) = rails.set(rule, value) {
                faults.push(Fault::text(key, value, problem, rule.remedy()));
            }
        }
        faults.into_result()?;
        Ok(rails)
    }

    /// Sets a rule as text says.
    ///
    /// # Errors
    /// The problem, if the text does not suit the rule.
    pub fn set(&mut self, rule: Rule, text: &str) -> Result<(), &'static str> {
        let names = || headers(text.split(|c: char| c == ',' || c.is_whitespace()));
        match rule {
            Rule::AllowedHeaders => self.allowed_headers = names()?,
            Rule::ForbiddenHeaders => self.forbidden_headers = names()?,
            Rule::AllowGlobal => {
                self.forbid_global = match text {
                    "true" => false,
                    "false" => true,
                    _ => return Err("neither true nor false"),
                }
            }
            Rule::MaxLifetime => {
                let lifetime: GoDuration = text.parse().map_err(|_| "no duration")?;
                let lifetime = lifetime.to_std().ok_or("negative")?;
                self.max_lifetime = Some(lifetime).filter(|it| !it.is_zero());
            }
            Rule::MaxPerPort => {
                let most: usize = text.parse().map_err(|_| "no whole number")?;
                self.max_per_port = Some(most).filter(|it| *it != 0);
            }
        }
        Ok(())
    }
}

/// Reads patterns of header names.
///
/// # Errors
/// One of them can be no header's.
pub fn headers<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, &'static str> {
    let names = names.into_iter().map(str::trim).filter(|it| !it.is_empty());
    names
        // A `*` is a character of tokens as well.
        .map(|name| match token::is_token_text(name) {
            true => Ok(name.to_ascii_lowercase()),
            false => Err("no name of a header"),
        })
        .collect()
}

/// Returns true if `pattern`, with `*` for any text, is the whole of `name`.
#[must_use]
pub fn is_named(pattern: &str, name: &str) -> bool {
    let Some((first, more)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(first) else {
        return false;
    };
    let starts = (0..=rest.len()).filter(|at| rest.is_char_boundary(*at));
    // Patterns are short and few, so that trying all places costs nothing.
    starts.into_iter().any(|at| is_named(more, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn every_rule_is_read_in_both_domains() {
        for domain in DOMAINS {
            let texts = ["x-dev, X-Team-*", "authorization", "false", "90m", "3"];
            let annotations = Rule::ALL
                .iter()
                .zip(texts)
                .map(|(rule, text)| (format!("{domain}{}", rule.annotation()), text.to_owned()));
            let rails = GuardRails::of_annotations(&annotations.collect()).unwrap();
            let wanted = GuardRails {
                allowed_headers: vec!["x-dev".to_owned(), "x-team-*".to_owned()],
                forbidden_headers: vec!["authorization".to_owned()],
                forbid_global: true,
                max_lifetime: Some(Duration::from_secs(5400)),
                max_per_port: Some(3),
            };
            assert_eq!(rails, wanted, "{domain}");
        }
    }

    #[test]
    fn zero_and_empty_values_are_no_rules() {
        let rails = GuardRails::of_annotations(&map(&[
            ("telepresence.io/intercept-max-lifetime", "0s"),
            ("telepresence.io/intercept-max-per-port", "0"),
            ("telepresence.io/intercept-allow-global", "true"),
            ("telepresence.io/intercept-allowed-headers", " "),
        ]));
        assert_eq!(rails.unwrap(), GuardRails::default());
    }

    #[test]
    fn all_bad_values_are_named_with_their_annotation() {
        let bad = [
            ("telepresence.io/intercept-allowed-headers", "x dev:"),
            ("telepresence.io/intercept-allow-global", "no"),
            ("telepresence.io/intercept-max-lifetime", "-1h"),
            ("telepresence.getambassador.io/intercept-max-per-port", "-1"),
        ];
        let faults = GuardRails::of_annotations(&map(&bad)).unwrap_err();
        let text = faults.to_string();
        assert_eq!(faults.len(), 4, "{text}");
        for (key, _) in bad {
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn patterns_name_whole_headers() {
        for (pattern, name, is) in [
            ("x-dev", "x-dev", true),
            ("x-dev", "x-devil", false),
            ("x-*", "x-", true),
            ("x-*", "y-x-a", false),
            ("*-dev", "x-team-dev", true),
            ("x-*-dev", "x-a-dev-b-dev", true),
            ("x-*-dev", "x-dev", false),
            ("*", "anything", true),
        ] {
            assert_eq!(is_named(pattern, name), is, "{pattern} {name}");
        }
    }
}

//! Environment variables that never reach a workstation: names, and patterns with `*`.

use std::collections::BTreeMap;

use arc_swap::ArcSwap;

/// The variables, which may change while the manager runs.
#[derive(Debug, Default)]
pub(crate) struct ExcludedEnv {
    patterns: ArcSwap<Vec<String>>,
}

impl ExcludedEnv {
    /// Variables with these names, or names that fit these patterns.
    pub(crate) fn new(patterns: Vec<String>) -> Self {
        Self {
            patterns: ArcSwap::from_pointee(patterns),
        }
    }

    /// Puts other patterns in place of all.
    pub(crate) fn set(&self, patterns: Vec<String>) {
        self.patterns.store(patterns.into());
    }

    /// Takes the variables out.
    pub(crate) fn remove_from(&self, environment: &mut BTreeMap<String, String>) {
        let patterns = self.patterns.load();
        if !patterns.is_empty() {
            environment.retain(|name, _| !patterns.iter().any(|it| fits(it, name)));
        }
    }
}

/// Tells whether a name fits a pattern; `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<_> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, fit) in [
            ("DB_PASSWORD", "DB_PASSWORD", true),
            ("DB_PASSWORD", "DB_PASSWORD2", false),
            ("*_PASSWORD", "DB_PASSWORD", true),
            ("*_PASSWORD", "DB_PASSWORD_OLD", false),
            ("AWS_*", "AWS_SECRET", true),
            ("AWS_*", "XAWS_SECRET", false),
            ("*SECRET*", "MY_SECRET_KEY", true),
            ("A*B*C", "AxxByyC", true),
            ("A*B*C", "AxxC", false),
            ("A*A", "A", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn what_fits_is_taken_out() {
        let excluded = ExcludedEnv::new(vec!["A".to_owned(), "S_*".to_owned()]);
        let map = ["A", "AB", "S_1", "B"].map(|it| (it.to_owned(), String::new()));
        let mut map = BTreeMap::from(map);
        excluded.remove_from(&mut map);
        let mut left: Vec<_> = map.into_keys().collect();
        left.sort();
        assert_eq!(left, ["AB", "B"]);
    }

    proptest! {
        #[test]
        fn any_pattern_is_taken(pattern in "[*aä]{0,6}", name in "[aäb]{0,6}") {
            fits(&pattern, &name);
            prop_assert!(fits("*", &name));
            prop_assert!(fits(&name, &name));
        }
    }
}

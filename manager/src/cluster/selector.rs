//! Label selectors as charts write them, evaluated here.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A label selector; the empty one takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Selector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|it| it.matches(labels))
    }
}

impl Expression {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_understood() {
        let labels = BTreeMap::from([("env".to_owned(), "dev".to_owned())]);
        for (yaml, matches) in [
            ("{}", true),
            ("matchLabels: {env: dev}", true),
            ("matchLabels: {env: prod}", false),
            (
                "matchExpressions: [{key: env, operator: In, values: [dev, test]}]",
                true,
            ),
            (
                "matchExpressions: [{key: env, operator: NotIn, values: [dev]}]",
                false,
            ),
            (
                "matchExpressions: [{key: team, operator: NotIn, values: [dev]}]",
                true,
            ),
            ("matchExpressions: [{key: env, operator: Exists}]", true),
            (
                "matchExpressions: [{key: env, operator: DoesNotExist}]",
                false,
            ),
        ] {
            let selector: Selector = serde_saphyr::from_str(yaml).unwrap();
            assert_eq!(selector.matches(&labels), matches, "{yaml}");
        }
    }
}

//! Faults of a configuration: problem and remedy, collected so that an operator can fix all
//! mistakes in one restart.

use std::error::Error;
use std::fmt;

/// Maximum length of a value in messages, so that they stay on one readable line.
const MAX_SHOWN: usize = 200;

/// A mistake, printed on one line as `KEY=VALUE: problem; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Key path, environment variable, flag or file.
    pub key: String,
    /// Bad value as it is to be shown; none if a value is missing.
    pub value: Option<String>,
    /// Problem.
    pub problem: String,
    /// Remedy.
    pub remedy: String,
}

impl Fault {
    /// Creates a fault in a value printed as written, such as a number.
    pub fn new(
        key: impl Into<String>,
        value: impl fmt::Display,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: Some(shorten(value.to_string())),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Creates a fault in a text, which is shown in quotes, escaped and, if long, cut.
    pub fn text(
        key: impl Into<String>,
        value: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let cut = value
            .char_indices()
            .nth(MAX_SHOWN)
            .map_or(value.len(), |(at, _)| at);
        let dots = if cut < value.len() { "…" } else { "" };
        Self {
            value: Some(format!("{:?}{dots}", &value[..cut])),
            ..Self::missing(key, problem, remedy)
        }
    }

    /// Creates a fault without a value to show: a missing value, or a file that is not a
    /// configuration.
    pub fn missing(
        key: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

fn shorten(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(at);
        text.push('…');
    }
    text
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.key.clone();
        if let Some(value) = &self.value {
            line.push('=');
            line.push_str(value);
        }
        for (mark, part) in [(": ", &self.problem), ("; ", &self.remedy)] {
            if !part.is_empty() {
                line.push_str(mark);
                line.push_str(part);
            }
        }
        // Keys and parser messages can carry anything; a log line must stay one line.
        for c in line.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

impl Error for Fault {}

/// Collected faults; displays one on each line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds a fault.
    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Adds the faults of another collection.
    pub fn append(&mut self, other: Faults) {
        self.0.extend(other.0);
    }

    /// Returns true if there is no fault.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of faults.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Iterates in the order of discovery.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Returns an error with all faults if there is any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl Extend<Fault> for Faults {
    fn extend<I: IntoIterator<Item = Fault>>(&mut self, faults: I) {
        self.0.extend(faults);
    }
}

impl FromIterator<Fault> for Faults {
    fn from_iter<I: IntoIterator<Item = Fault>>(faults: I) -> Self {
        Self(faults.into_iter().collect())
    }
}

impl IntoIterator for Faults {
    type Item = Fault;
    type IntoIter = std::vec::IntoIter<Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_key_value_problem_and_remedy() {
        let grace = Fault::text("AGENT_DRAIN_GRACE", "30", "no unit", "write 30s or 2m");
        assert_eq!(
            grace.to_string(),
            r#"AGENT_DRAIN_GRACE="30": no unit; write 30s or 2m"#
        );
        let port = Fault::new("agentPort", 0, "no such port", "write 1 to 65535");
        assert_eq!(
            port.to_string(),
            "agentPort=0: no such port; write 1 to 65535"
        );
        let host = Fault::missing("managerHost", "missing", "name the manager's host");
        assert_eq!(
            host.to_string(),
            "managerHost: missing; name the manager's host"
        );
    }

    #[test]
    fn faults_print_one_on_each_line_whatever_is_in_them() {
        let mut faults = Faults::default();
        assert_eq!(faults.clone().into_result(), Ok(()));
        faults.push(Fault::text("a\nb", "c\nd", "bad\r\n", "mend"));
        faults.push(Fault::missing("e", "missing", ""));
        assert_eq!(faults.len(), 2);
        let text = faults.into_result().unwrap_err().to_string();
        assert_eq!(text, "a\\nb=\"c\\nd\": bad\\r\\n; mend\ne: missing");
    }

    #[test]
    fn long_values_are_cut() {
        let fault = Fault::text("k", &"é".repeat(1000), "long", "shorten it");
        assert_eq!(fault.to_string().chars().filter(|c| *c == 'é').count(), 200);
        let fault = Fault::new("k", "é".repeat(1000), "long", "shorten it");
        assert!(fault.to_string().contains("é…"));
    }
}

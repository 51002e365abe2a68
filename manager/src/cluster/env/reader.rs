//! Reads single variables; a value that cannot be meant is a fault with its remedy.

use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use traffic_proto::duration::GoDuration;
use traffic_proto::{Fault, Faults};

use crate::cluster::quantity;

/// Variables of the environment, and what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) get: &'a dyn Fn(&str) -> Option<String>,
    pub(super) faults: Faults,
}

impl Reader<'_> {
    /// A variable that is set to something.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        // A chart sets variables to nothing where a value is left out.
        let text = (self.get)(name)?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    pub(super) fn required(&mut self, name: &str, remedy: &str) -> String {
        let text = self.text(name);
        if text.is_none() {
            self.faults.push(Fault::missing(name, "is not set", remedy));
        }
        text.unwrap_or_default()
    }

    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &str,
        problem: &str,
        remedy: &str,
    ) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.faults.push(Fault::text(name, &text, problem, remedy));
        }
        parsed
    }

    pub(super) fn port(&mut self, name: &str) -> Option<u16> {
        self.parsed(name, "no port number", "write 0 to 65535")
    }

    pub(super) fn required_port(&mut self, name: &str) -> u16 {
        self.required(name, "write the port of the API, 8081");
        self.port(name).unwrap_or(0)
    }

    pub(super) fn count(&mut self, name: &str, default: usize) -> usize {
        let count: Option<usize> = self.parsed(name, "no number", "write 1 or more");
        // With 0 at a time nothing would ever be rolled.
        count.unwrap_or(default).max(1)
    }

    /// Booleans as Go's parser takes them.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => true,
            "0" | "f" | "false" => false,
            _ => {
                let problem = "neither true nor false";
                self.faults
                    // Never used: a fault ends the start once all are collected.
                    .push(Fault::text(name, &text, problem, "write true or false"));
                default
            }
        }
    }

    pub(super) fn list(&mut self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        // Charts join lists by spaces, as the stock one does.
        text.split_whitespace().map(str::to_owned).collect()
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        match text.parse::<GoDuration>().map(GoDuration::to_std) {
            Ok(Some(duration)) => return Some(duration),
            Ok(None) => self
                .faults
                .push(Fault::text(name, &text, "negative", "write 0s or more")),
            Err(error) => {
                let (problem, remedy) = (error.to_string(), error.remedy());
                self.faults.push(Fault::text(name, &text, problem, remedy));
            }
        }
        None
    }

    pub(super) fn size(&mut self, name: &str, default: usize) -> usize {
        let Some(text) = self.text(name) else {
            return default;
        };
        quantity::bytes(&text).unwrap_or_else(|| {
            let problem = "no quantity of bytes";
            self.faults
                .push(Fault::text(name, &text, problem, "write it like 4Mi"));
            default
        })
    }

    /// One of several words, in any letter case; the first is the default.
    pub(super) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> T {
        let default = words[0].1;
        let Some(text) = self.text(name) else {
            return default;
        };
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text));
        found.map_or_else(
            || {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let remedy = format!("write one of {}", known.join(", "));
                self.faults
                    .push(Fault::text(name, &text, "unknown word", remedy));
                default
            },
            |(_, value)| *value,
        )
    }

    pub(super) fn json<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let problem = format!("no JSON of the expected form: {error}");
                let remedy = "write it as in a pod's specification";
                self.faults.push(Fault::text(name, &text, problem, remedy));
                None
            }
        }
    }
}

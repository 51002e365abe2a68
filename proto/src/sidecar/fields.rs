//! Typed readers: convert a map's field to a value, or to a fault with path, value and remedy.
//!
//! A reader never stops the reading: it records the fault and returns nothing.

use std::str::FromStr;
use std::time::Duration;

use super::document::{Node, Value};
use crate::duration::GoDuration;
use crate::fault::{Fault, Faults};
use crate::near;

/// Shortest plausible integer duration: smaller ones were hardly meant in nanoseconds.
const MIN_PLAUSIBLE_INTERVAL: Duration = Duration::from_millis(1);

/// Collects faults and warnings.
pub(super) struct Notes<'a> {
    source: &'a str,
    pub(super) faults: Faults,
    pub(super) warnings: Vec<Fault>,
}

/// Place of a fault: key path and, in YAML, line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) line: Option<u64>,
}

/// A value that is present, with its place.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) place: Place,
    node: Node,
}

/// A map from which fields are taken by name.
pub(super) struct Section {
    pub(super) place: Place,
    /// Keys as written, with their values; no nulls.
    fields: Vec<(String, Field)>,
    /// Keys that were asked for.
    known: Vec<String>,
}

impl Place {
    pub(super) fn child(&self, key: &str) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            path,
            line: self.line,
        }
    }
}

impl<'a> Notes<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self {
            source,
            faults: Faults::default(),
            warnings: Vec::new(),
        }
    }

    fn problem(&self, place: &Place, problem: &str) -> String {
        match place.line {
            Some(line) => format!("{problem} ({} line {line})", self.source),
            None => format!("{problem} ({})", self.source),
        }
    }

    /// Records a fault in a value shown as it is.
    pub(super) fn fault(
        &mut self,
        place: &Place,
        value: impl std::fmt::Display,
        problem: &str,
        remedy: &str,
    ) {
        let problem = self.problem(place, problem);
        self.faults
            .push(Fault::new(&place.path, value, problem, remedy));
    }

    /// Records a fault without a value to show.
    pub(super) fn missing(&mut self, place: &Place, problem: &str, remedy: &str) {
        let problem = self.problem(place, problem);
        self.faults
            .push(Fault::missing(&place.path, problem, remedy));
    }

    pub(super) fn warn(&mut self, place: &Place, problem: &str, remedy: &str) {
        let problem = self.problem(place, problem);
        self.warnings
            .push(Fault::missing(&place.path, problem, remedy));
    }

    /// Records that the value is of the wrong type.
    pub(super) fn unfit(&mut self, field: &Field, problem: &str, remedy: &str) {
        let problem = self.problem(&field.place, problem);
        let path = &field.place.path;
        self.faults
            .push(match (&field.node.plain, &field.node.value) {
                (Some(plain), _) => Fault::new(path, plain, problem, remedy),
                (None, Value::Text(text)) => Fault::text(path, text, problem, remedy),
                (None, Value::Bool(value)) => Fault::new(path, value, problem, remedy),
                (None, Value::Int(value)) => Fault::new(path, value, problem, remedy),
                (None, Value::Float(value)) => Fault::new(path, value, problem, remedy),
                (None, Value::Null) => Fault::new(path, "null", problem, remedy),
                (None, Value::List(_)) => Fault::new(path, "[…]", problem, remedy),
                (None, Value::Map(_)) => Fault::new(path, "{…}", problem, remedy),
            });
    }
}

impl Field {
    pub(super) fn root(node: Node) -> Self {
        Self {
            place: Place {
                path: String::new(),
                line: node.line,
            },
            node,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// Reads a map; a null is an empty one.
    pub(super) fn section(self, notes: &mut Notes<'_>) -> Section {
        let mut section = Section {
            place: self.place.clone(),
            fields: Vec::new(),
            known: Vec::new(),
        };
        match self.node.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    let place = Place {
                        line: node.line,
                        ..self.place.child(&key)
                    };
                    let field = Field { place, node };
                    if !field.is_null() {
                        section.add(key, field, notes);
                    }
                }
            }
            Value::Null => {}
            _ => notes.unfit(&self, "not a map", "write key: value pairs"),
        }
        section
    }

    /// Reads the entries of a map whose keys are data: matched exactly, kept in order of writing.
    pub(super) fn entries(self, notes: &mut Notes<'_>) -> Vec<(String, Field)> {
        let Value::Map(map) = self.node.value else {
            if !self.is_null() {
                notes.unfit(&self, "not a map", "write key: value pairs");
            }
            return Vec::new();
        };
        let mut entries: Vec<(String, Field)> = Vec::new();
        for (key, node) in map {
            let path = format!("{}[{key:?}]", self.place.path);
            let field = Field {
                place: Place {
                    path,
                    line: node.line,
                },
                node,
            };
            match entries.iter_mut().find(|(old, _)| *old == key) {
                Some(entry) => {
                    notes.warn(
                        &field.place,
                        "given twice, the last one counts",
                        "remove one",
                    );
                    entry.1 = field;
                }
                None => entries.push((key, field)),
            }
        }
        entries
    }

    /// Reads the items of a list, in order.
    pub(super) fn list(self, notes: &mut Notes<'_>) -> Vec<Field> {
        match self.node.value {
            Value::List(items) => {
                let items = items.into_iter().enumerate();
                items
                    .map(|(index, node)| {
                        let path = format!("{}[{index}]", self.place.path);
                        Field {
                            place: Place {
                                path,
                                line: node.line,
                            },
                            node,
                        }
                    })
                    .collect()
            }
            Value::Null => Vec::new(),
            _ => {
                notes.unfit(&self, "not a list", "write a list");
                Vec::new()
            }
        }
    }

    /// Reads text; unquoted YAML that looks like another type counts as spelled.
    pub(super) fn text(&self, notes: &mut Notes<'_>) -> Option<String> {
        match (&self.node.plain, &self.node.value) {
            (_, Value::Text(text)) => Some(text.clone()),
            (_, Value::Null) => Some(String::new()),
            (Some(plain), _) => Some(plain.clone()),
            (None, _) => {
                notes.unfit(self, "not a text", "write a text in quotes");
                None
            }
        }
    }

    pub(super) fn flag(&self, notes: &mut Notes<'_>) -> Option<bool> {
        match self.node.value {
            Value::Bool(flag) => Some(flag),
            _ => {
                notes.unfit(self, "neither true nor false", "write true or false");
                None
            }
        }
    }

    /// Reads a boolean, if one is written.
    pub(super) fn as_flag(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// Reads an integer: decimal, `0x`, `0o` or the older `0777` for octal, or a float without a
    /// fraction such as `1e3`. A quoted number is not one.
    pub(super) fn as_integer(&self) -> Option<i128> {
        match &self.node.value {
            Value::Int(number) => Some(*number),
            // Exact up to 53 bits, more than any of our ranges.
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Some(*number as i128)
            }
            Value::Text(_) => {
                let plain = self.node.plain.as_deref()?.replace('_', "");
                let (negative, digits) = match plain.strip_prefix('-') {
                    Some(digits) => (true, digits),
                    None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
                };
                let number = match digits.strip_prefix('0') {
                    Some("") => 0,
                    Some(octal) if octal.starts_with(|c: char| c.is_ascii_digit()) => {
                        i128::from_str_radix(octal, 8).ok()?
                    }
                    _ => decimal(digits)?,
                };
                Some(if negative { -number } else { number })
            }
            _ => None,
        }
    }

    /// Reads a port number; 0 is none.
    pub(super) fn port(&self, notes: &mut Notes<'_>) -> Option<u16> {
        match self.as_integer() {
            Some(number) => match u16::try_from(number) {
                Ok(0) => None,
                Ok(port) => Some(port),
                Err(_) => {
                    notes.unfit(self, "out of range", "write 1 to 65535");
                    None
                }
            },
            None => {
                notes.unfit(
                    self,
                    "not a port number",
                    "write 1 to 65535, without quotes",
                );
                None
            }
        }
    }

    /// Reads a required port number.
    fn required_port(&self, notes: &mut Notes<'_>) -> Option<u16> {
        if self.as_integer() == Some(0) {
            notes.unfit(self, "0 is not a port number", "write 1 to 65535");
            return None;
        }
        self.port(notes)
    }

    /// Reads a duration in Go's notation, or an integer of nanoseconds.
    pub(super) fn duration(&self, notes: &mut Notes<'_>) -> Option<Duration> {
        let duration = match &self.node.value {
            Value::Text(text) if self.as_integer().is_none() => {
                match text.trim().parse::<GoDuration>() {
                    Ok(duration) => duration,
                    Err(error) => {
                        notes.unfit(self, &error.to_string(), error.remedy());
                        return None;
                    }
                }
            }
            _ => {
                let Some(nanos) = self
                    .as_integer()
                    .and_then(|nanos| i64::try_from(nanos).ok())
                else {
                    notes.unfit(
                        self,
                        "not a duration",
                        "write a text such as 30s, 1.5h or 2m30s",
                    );
                    return None;
                };
                let short = nanos > 0
                    && i128::from(nanos) < MIN_PLAUSIBLE_INTERVAL.as_nanos().cast_signed();
                if short {
                    let problem = format!("{nanos} is {nanos} nanoseconds");
                    notes.warn(
                        &self.place,
                        &problem,
                        "write a unit, such as 30s, if that is not meant",
                    );
                }
                GoDuration::from_nanos(nanos)
            }
        };
        if duration.to_std().is_none() {
            notes.unfit(self, "negative duration", "write 0s or more");
        }
        duration.to_std()
    }

    /// Reads a text that stands for a value.
    pub(super) fn word<T: FromStr<Err: std::fmt::Display>>(
        &self,
        notes: &mut Notes<'_>,
    ) -> Option<T> {
        let text = self.text(notes)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let message = T::Err::to_string(&error);
                let (problem, remedy) = message.split_once("; ").unwrap_or((&message, "mend it"));
                notes.unfit(self, problem, remedy);
                None
            }
        }
    }
}

fn decimal(digits: &str) -> Option<i128> {
    let plain =
        !digits.is_empty() && digits.len() < 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

impl Section {
    /// Adds a field; of a key given twice, in any letter case, the last one counts.
    fn add(&mut self, key: String, field: Field, notes: &mut Notes<'_>) {
        let known = self
            .fields
            .iter()
            .position(|(old, _)| old.eq_ignore_ascii_case(&key));
        let Some(at) = known else {
            self.fields.push((key, field));
            return;
        };
        let (old_key, old) = &self.fields[at];
        // A list and a map of mounts are two generations of one setting; the map says more.
        let mounts = key.eq_ignore_ascii_case("mounts") && old.is_list() != field.is_list();
        if mounts {
            if old.is_list() {
                self.fields[at] = (key, field);
            }
            return;
        }
        let problem = if *old_key == key {
            "given twice, the last one counts".to_owned()
        } else {
            format!("given twice, first as {old_key}, the last one counts")
        };
        notes.warn(&field.place, &problem, "remove one");
        self.fields[at] = (key, field);
    }

    /// Takes the field with this name, in any letter case, unless absent or null.
    pub(super) fn take(&mut self, key: &str) -> Option<Field> {
        self.known.push(key.to_owned());
        let at = self
            .fields
            .iter()
            .position(|(written, _)| written.eq_ignore_ascii_case(key))?;
        Some(self.fields.remove(at).1)
    }

    /// Takes text, empty if absent; none if faulty.
    pub(super) fn text(&mut self, key: &str, notes: &mut Notes<'_>) -> Option<String> {
        self.take(key)
            .map_or(Some(String::new()), |field| field.text(notes))
    }

    /// Takes text that must not be absent or empty.
    pub(super) fn required_text(
        &mut self,
        key: &str,
        remedy: &str,
        notes: &mut Notes<'_>,
    ) -> Option<String> {
        let text = self.text(key, notes)?;
        if text.is_empty() {
            notes.missing(&self.place.child(key), "missing", remedy);
            return None;
        }
        Some(text)
    }

    pub(super) fn flag(&mut self, key: &str, default: bool, notes: &mut Notes<'_>) -> bool {
        self.take(key)
            .and_then(|field| field.flag(notes))
            .unwrap_or(default)
    }

    pub(super) fn port(&mut self, key: &str, notes: &mut Notes<'_>) -> Option<u16> {
        self.take(key)?.port(notes)
    }

    /// Takes a port that must not be absent or 0.
    pub(super) fn required_port(
        &mut self,
        key: &str,
        remedy: &str,
        notes: &mut Notes<'_>,
    ) -> Option<u16> {
        match self.take(key) {
            Some(field) => field.required_port(notes),
            None => {
                notes.missing(&self.place.child(key), "missing", remedy);
                None
            }
        }
    }

    pub(super) fn duration(&mut self, key: &str, notes: &mut Notes<'_>) -> Option<Duration> {
        self.take(key)?.duration(notes)
    }

    /// Takes a whole number that is not negative.
    pub(super) fn count(&mut self, key: &str, notes: &mut Notes<'_>) -> Option<u64> {
        let field = self.take(key)?;
        let number = field.as_integer().and_then(|n| u64::try_from(n).ok());
        if number.is_none() {
            notes.unfit(&field, "not a whole number", "write 0 or more");
        }
        number
    }

    /// Takes a text that stands for a value; an empty one is none.
    pub(super) fn word<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &str,
        notes: &mut Notes<'_>,
    ) -> Option<T> {
        let field = self.take(key)?;
        match &field.node.value {
            Value::Text(text) if text.is_empty() => None,
            _ => field.word(notes),
        }
    }

    pub(super) fn list(&mut self, key: &str, notes: &mut Notes<'_>) -> Vec<Field> {
        self.take(key)
            .map_or_else(Vec::new, |field| field.list(notes))
    }

    /// Takes a nested map, empty if absent.
    pub(super) fn section(&mut self, key: &str, notes: &mut Notes<'_>) -> Section {
        match self.take(key) {
            Some(field) => field.section(notes),
            None => Section {
                place: self.place.child(key),
                fields: Vec::new(),
                known: Vec::new(),
            },
        }
    }

    /// Warns of all fields not taken, except for keys known to belong to others.
    pub(super) fn finish(self, not_for_us: &[&str], notes: &mut Notes<'_>) {
        for (key, field) in self.fields {
            if not_for_us
                .iter()
                .any(|known| known.eq_ignore_ascii_case(&key))
            {
                continue;
            }
            let known = self.known.iter().map(String::as_str);
            let remedy = match near::nearest(&key, known.chain(not_for_us.iter().copied())) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "check the spelling, or remove it".to_owned(),
            };
            notes.warn(&field.place, "unknown key, ignored", &remedy);
        }
    }
}

//! YAML or JSON text as a tree that keeps what faults need: lines, and scalars as spelled.
//!
//! The tree keeps all entries of a map, including repeated ones, so that the reader can warn about
//! them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use crate::fault::{Fault, Faults};

/// Maximum depth of a document; ours need seven levels.
const MAX_DEPTH: usize = 64;

/// A value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Line in a YAML text, counted from 1.
    pub(super) line: Option<u64>,
    /// Spelling of an unquoted YAML scalar, which type guessing may have lost.
    pub(super) plain: Option<String>,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

pub(super) fn yaml(text: &str, source: &str) -> Result<Node, Faults> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `0777` and `1_000` arrive as text; the reader converts them if it expects a number.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<YamlNode>(text, options) {
        Ok(node) => Ok(node.into_node(text)),
        Err(error) => {
            let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            Err(refused(source, "not valid YAML", &message))
        }
    }
}

pub(super) fn json(text: &str, source: &str) -> Result<Node, Faults> {
    match serde_json::from_str::<JsonNode>(text) {
        Ok(node) => Ok(node.into_node()),
        Err(error) => Err(refused(source, "not valid JSON", &error)),
    }
}

fn refused(source: &str, what: &str, error: &dyn fmt::Display) -> Faults {
    Fault::missing(source, format!("{what}: {error}"), "fix the configuration").into()
}

/// View of one value for serde; `C` is the view of its children.
enum Raw<C> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<C>),
    Map(Vec<(String, C)>),
}

impl<C> Raw<C> {
    fn into_value(self, node: impl Fn(C) -> Node) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Text(value) => Value::Text(value),
            Self::List(items) => Value::List(items.into_iter().map(node).collect()),
            Self::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, item)| (key, node(item)))
                    .collect(),
            ),
        }
    }
}

struct JsonNode(Raw<JsonNode>);

impl JsonNode {
    fn into_node(self) -> Node {
        Node {
            value: self.0.into_value(Self::into_node),
            line: None,
            plain: None,
        }
    }
}

impl<'de> Deserialize<'de> for JsonNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self)
    }
}

struct YamlNode(Spanned<Raw<YamlNode>>);

impl YamlNode {
    fn into_node(self, text: &str) -> Node {
        let place = self.0.defined;
        let scalar = !matches!(self.0.value, Raw::List(_) | Raw::Map(_));
        let plain = scalar.then(|| spelling(text, &place)).flatten();
        Node {
            value: self.0.value.into_value(|node| node.into_node(text)),
            line: Some(place.line()),
            plain,
        }
    }
}

/// Returns the text at a place, unless it is quoted or a block.
fn spelling(text: &str, place: &serde_saphyr::Location) -> Option<String> {
    let start = usize::try_from(place.span().byte_offset()?).ok()?;
    let length = usize::try_from(place.span().byte_len()?).ok()?;
    let found = text.get(start..start.checked_add(length)?)?.trim();
    let plain = !found.is_empty()
        && !found.starts_with(['"', '\'', '|', '>', '&', '*', '!'])
        && !found.contains('\n');
    plain.then(|| found.to_owned())
}

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de, C: Deserialize<'de>> Deserialize<'de> for Raw<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

struct Any<C>(PhantomData<C>);

impl<'de, C: Deserialize<'de>> Visitor<'de> for Any<C> {
    type Value = Raw<C>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Raw<C>, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw<C>, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw<C>, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw<C>, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw<C>, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw<C>, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw<C>, E> {
        // Far out of range for all our values.
        Ok(Raw::Int(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw<C>, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw<C>, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw<C>, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw<C>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw<C>, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

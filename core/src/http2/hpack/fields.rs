//! Header lists as they came.

use crate::http2::hpack::{ENTRY_OVERHEAD, MAX_LIST};

/// Representation of a field (RFC 7541 section 6): its sender's wish for tables on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The index of an entry.
    Indexed,
    /// Text that comes into the table.
    Incremental,
    /// Text that does not.
    Plain,
    /// Text that must never come into any table, here or further on.
    Never,
}

/// The part of a field that its sender took from the static table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StaticRef {
    /// No part of it.
    #[default]
    None,
    /// The name has this index.
    Name(u8),
    /// Name and value have this index.
    Whole(u8),
}

/// A field line, pseudo-header fields included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Field<'a> {
    /// The name's bytes, whatever they are.
    pub name: &'a [u8],
    /// The value's bytes, whatever they are.
    pub value: &'a [u8],
    /// Its representation.
    pub form: Form,
    /// Its part in the static table.
    pub known: StaticRef,
}

impl<'a> Field<'a> {
    /// A field that comes into no table.
    #[must_use]
    pub fn plain(name: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            name,
            value,
            form: Form::Plain,
            known: StaticRef::None,
        }
    }
}

/// Field lines in order.
#[derive(Clone, Debug, Default)]
pub struct FieldList {
    text: Vec<u8>,
    spans: Vec<Span>,
    size: usize,
    overflowed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    name: u32,
    value: u32,
    form: Form,
    known: StaticRef,
}

impl FieldList {
    /// The fields in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Field<'_>> + Clone {
        self.spans.iter().filter_map(|span| self.field(*span))
    }

    fn field(&self, span: Span) -> Option<Field<'_>> {
        let (name, text) = self
            .text
            .get(span.at as usize..)?
            .split_at_checked(span.name as usize)?;
        Some(Field {
            name,
            value: text.get(..span.value as usize)?,
            form: span.form,
            known: span.known,
        })
    }

    /// Returns the number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns true if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The size of the list as RFC 9113 section 6.5.2 counts it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns true if the list was larger than [`MAX_LIST`], so that fields are missing at its
    /// end.
    #[must_use]
    pub fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Forgets all fields; memory of an unusual size goes back.
    pub fn clear(&mut self) {
        self.text.clear();
        self.spans.clear();
        self.text.shrink_to(16 * 1024);
        self.spans.shrink_to(512);
        self.size = 0;
        self.overflowed = false;
    }

    /// Appends a field.
    pub fn push(&mut self, field: Field<'_>) {
        let start = self.text.len();
        self.text.extend_from_slice(field.name);
        self.text.extend_from_slice(field.value);
        self.commit(start, field.name.len(), field.form, field.known);
    }

    /// Takes out every field of this name, in whatever case.
    pub fn remove(&mut self, name: &[u8]) {
        let (text, size) = (&self.text, &mut self.size);
        self.spans.retain(|span| {
            let at = span.at as usize;
            let known = text.get(at..at + span.name as usize).unwrap_or_default();
            let keep = !known.eq_ignore_ascii_case(name);
            if !keep {
                *size -= span.name as usize + span.value as usize + ENTRY_OVERHEAD;
            }
            keep
        });
    }

    /// The text behind all fields, where a new one is put together: name and value, one behind the
    /// other. [`Self::commit`] makes a field of it.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Makes a field of the tail, which begins at `start`.
    pub(super) fn commit(&mut self, start: usize, name: usize, form: Form, known: StaticRef) {
        let text = self.text.len() - start;
        let size = self.size + text + ENTRY_OVERHEAD;
        let (false, Ok(at), Ok(name), Ok(text)) = (
            self.overflowed || size > MAX_LIST,
            u32::try_from(start),
            u32::try_from(name),
            u32::try_from(text),
        ) else {
            self.text.truncate(start);
            self.overflowed = true;
            return;
        };
        self.size = size;
        self.spans.push(Span {
            at,
            name,
            value: text - name,
            form,
            known,
        });
    }
}

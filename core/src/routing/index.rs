//! An index of a table's rules by the exact header values they ask for, so that a request costs the
//! same beside one rule and beside hundreds.

use std::collections::HashMap;

use crate::routing::matcher::{Filters, View, compare_names};

/// Places of rules by the value they ask for.
type ByValue = HashMap<Box<[u8]>, Vec<usize>>;

/// Rules by exact header value, and those that have to be tried for every request. Rules are known
/// by their place in the table.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Sorted by name.
    by_name: Vec<(String, ByValue)>,
    /// Rules without an exact header clause.
    others: Vec<usize>,
}

impl Index {
    /// Indexes the filters of a table, in its order.
    pub(crate) fn of<'f>(filters: impl Iterator<Item = &'f Filters>) -> Self {
        let mut index = Self::default();
        for (place, filters) in filters.enumerate() {
            match filters.exact_header() {
                Some((name, value)) => index.values_of(name).entry(value.into()),
                None => {
                    index.others.push(place);
                    continue;
                }
            }
            .or_default()
            .push(place);
        }
        index
    }

    fn values_of(&mut self, name: &str) -> &mut ByValue {
        let found = self.find(name.as_bytes());
        let at = found.unwrap_or_else(|at| {
            self.by_name.insert(at, (name.to_owned(), HashMap::new()));
            at
        });
        &mut self.by_name[at].1
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.by_name
            .binary_search_by(|(known, _)| compare_names(known.as_bytes(), name))
    }

    /// Returns the place of the first rule that `matches` among those that `view` leaves possible.
    pub(crate) fn first(&self, view: &View<'_>, matches: impl Fn(usize) -> bool) -> Option<usize> {
        let mut first: Option<usize> = None;
        let mut try_all = |places: &[usize]| {
            let before = |place: &usize| first.is_none_or(|first| *place < first);
            let mut possible = places.iter().copied().take_while(|place| before(place));
            if let Some(found) = possible.find(|place| matches(*place)) {
                first = Some(found);
            }
        };
        for (name, value) in view.lines() {
            let places = self.find(name).ok().and_then(|at| {
                let (_, values) = self.by_name.get(at)?;
                values.get(value)
            });
            if let Some(places) = places {
                try_all(places);
            }
        }
        try_all(&self.others);
        first
    }
}

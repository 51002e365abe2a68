//! Objects by namespace and name, kept up to date by watches, and a word to those who wait for
//! changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use traffic_proto::sync::lock;

/// Objects of one kind.
#[derive(Debug)]
pub(crate) struct Store<T> {
    by_namespace: Mutex<Namespaces<T>>,
}

type Namespaces<T> = BTreeMap<String, Objects<T>>;
/// Objects of one namespace by name.
pub(crate) type Objects<T> = BTreeMap<String, Arc<T>>;

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            by_namespace: Mutex::default(),
        }
    }
}

impl<T: PartialEq> Store<T> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.lock().get(namespace)?.get(name).cloned()
    }

    /// All objects of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> Vec<Arc<T>> {
        let namespaces = self.lock();
        let objects = namespaces.get(namespace).into_iter();
        objects.flat_map(BTreeMap::values).cloned().collect()
    }

    /// Calls `look` for every object.
    pub(crate) fn each(&self, mut look: impl FnMut(&T)) {
        for objects in self.lock().values() {
            for object in objects.values() {
                look(object);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().values().map(BTreeMap::len).sum()
    }

    /// Puts an object in; false when it is there already, just so.
    pub(crate) fn put(&self, namespace: &str, name: &str, object: T) -> bool {
        let mut namespaces = self.lock();
        let objects = namespaces.entry(namespace.to_owned()).or_default();
        let same = objects.get(name).is_some_and(|there| **there == object);
        if !same {
            objects.insert(name.to_owned(), Arc::new(object));
        }
        !same
    }

    /// Takes an object out; false when it is not there.
    pub(crate) fn remove(&self, namespace: &str, name: &str) -> bool {
        let mut namespaces = self.lock();
        let Some(objects) = namespaces.get_mut(namespace) else {
            return false;
        };
        let removed = objects.remove(name).is_some();
        if objects.is_empty() {
            namespaces.remove(namespace);
        }
        removed
    }

    /// Puts the objects of a whole list in place of those of its scope, one namespace or all;
    /// returns the namespaces in which something is different.
    pub(crate) fn replace(
        &self,
        scope: Option<&str>,
        list: Vec<(String, String, T)>,
    ) -> Vec<String> {
        let mut fresh: Namespaces<T> = BTreeMap::new();
        for (namespace, name, object) in list {
            let objects = fresh.entry(namespace).or_default();
            objects.insert(name, Arc::new(object));
        }
        let mut namespaces = self.lock();
        let in_scope = |namespace: &String| scope.is_none_or(|it| it == namespace);
        let old: Vec<_> = namespaces
            .keys()
            .filter(|it| in_scope(it))
            .cloned()
            .collect();
        let mut changed = Vec::new();
        for namespace in old {
            if fresh.get(&namespace) != namespaces.get(&namespace) {
                changed.push(namespace.clone());
            }
            if !fresh.contains_key(&namespace) {
                namespaces.remove(&namespace);
            }
        }
        for (namespace, objects) in fresh {
            let is_new = namespaces.insert(namespace.clone(), objects).is_none();
            if is_new {
                changed.push(namespace);
            }
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Namespaces<T>> {
        lock(&self.by_namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[(&str, &str, u8)]) -> Vec<(String, String, u8)> {
        let item = |(namespace, name, value): &(&str, &str, u8)| {
            ((*namespace).to_owned(), (*name).to_owned(), *value)
        };
        items.iter().map(item).collect()
    }

    #[test]
    fn only_what_is_different_counts_as_a_change() {
        let store = Store::default();
        assert!(store.put("a", "x", 1));
        assert!(!store.put("a", "x", 1));
        assert!(store.put("a", "x", 2));
        assert!(store.remove("a", "x"));
        assert!(!store.remove("a", "x"));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_list_replaces_its_scope_and_says_where() {
        let store = Store::default();
        let all = list(&[("a", "x", 1), ("b", "x", 1), ("c", "x", 1)]);
        assert_eq!(store.replace(None, all), ["a", "b", "c"]);
        let next = list(&[("a", "x", 1), ("b", "x", 2), ("d", "y", 1)]);
        assert_eq!(store.replace(None, next), ["b", "c", "d"]);
        assert_eq!(store.get("c", "x"), None);
        assert_eq!(store.replace(Some("a"), list(&[])), ["a"]);
        assert_eq!(store.len(), 2);
        assert_eq!(store.of("b"), [Arc::new(2)]);
    }
}

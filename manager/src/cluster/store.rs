//! Objects by namespace and name, kept up to date by watches, and found by what they belong to as well,
//! so that no question has to look at all of a namespace's pods.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

use injector::OwnerRef;
use traffic_proto::sync::lock;

/// What objects of a kind are found by, beside their names.
pub(crate) trait Indexed: PartialEq {
    /// Value that some objects carry, and that is looked for.
    type Mark: Clone + Debug + Ord + Send + Sync;

    /// Controller of the object.
    fn owner(&self) -> Option<&OwnerRef> {
        None
    }

    /// The object's mark; none for one that nobody looks for.
    fn mark(&self) -> Option<Self::Mark> {
        None
    }
}

/// Objects of one kind.
#[derive(Debug)]
pub(crate) struct Store<T: Indexed> {
    state: Mutex<StoreState<T>>,
}

#[derive(Debug)]
struct StoreState<T: Indexed> {
    by_namespace: BTreeMap<String, Objects<T>>,
    /// Number of changes so far.
    version: u64,
}

/// Objects of one namespace.
#[derive(Debug)]
struct Objects<T: Indexed> {
    by_name: BTreeMap<String, Arc<T>>,
    by_owner: BTreeMap<OwnerRef, Vec<Arc<T>>>,
    by_mark: BTreeMap<T::Mark, Vec<Arc<T>>>,
    /// The store's version at the last change here.
    version: u64,
}

impl<T: Indexed> Default for Store<T> {
    fn default() -> Self {
        let state = StoreState {
            by_namespace: BTreeMap::new(),
            version: 0,
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

impl<T: Indexed> Default for Objects<T> {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            by_mark: BTreeMap::new(),
            version: 0,
        }
    }
}

impl<T: Indexed> Objects<T> {
    fn put(&mut self, name: String, object: T) {
        let object = Arc::new(object);
        if let Some(owner) = object.owner() {
            link(&mut self.by_owner, owner, &object);
        }
        if let Some(mark) = object.mark() {
            link(&mut self.by_mark, &mark, &object);
        }
        if let Some(old) = self.by_name.insert(name, object) {
            self.forget(&old);
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        let removed = self.by_name.remove(name);
        if let Some(old) = &removed {
            self.forget(old);
        }
        removed.is_some()
    }

    /// Takes an object out of all but the names.
    fn forget(&mut self, old: &Arc<T>) {
        if let Some(owner) = old.owner() {
            unlink(&mut self.by_owner, owner, old);
        }
        if let Some(mark) = old.mark() {
            unlink(&mut self.by_mark, &mark, old);
        }
    }
}

fn link<K: Clone + Ord, T>(index: &mut BTreeMap<K, Vec<Arc<T>>>, key: &K, object: &Arc<T>) {
    match index.get_mut(key) {
        Some(objects) => objects.push(object.clone()),
        None => drop(index.insert(key.clone(), vec![object.clone()])),
    }
}

fn unlink<K: Ord, T>(index: &mut BTreeMap<K, Vec<Arc<T>>>, key: &K, object: &Arc<T>) {
    if let Some(objects) = index.get_mut(key) {
        objects.retain(|it| !Arc::ptr_eq(it, object));
        if objects.is_empty() {
            index.remove(key);
        }
    }
}

impl<T: Indexed> Store<T> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let state = self.lock();
        state
            .by_namespace
            .get(namespace)?
            .by_name
            .get(name)
            .cloned()
    }

    /// All objects of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> Vec<Arc<T>> {
        let state = self.lock();
        let objects = state.by_namespace.get(namespace).into_iter();
        objects
            .flat_map(|it| it.by_name.values())
            .cloned()
            .collect()
    }

    /// Objects of a namespace that a controller owns, in no order.
    pub(crate) fn owned_by(&self, namespace: &str, owner: &OwnerRef) -> Vec<Arc<T>> {
        let state = self.lock();
        let objects = state.by_namespace.get(namespace);
        let owned = objects.and_then(|it| it.by_owner.get(owner));
        owned.cloned().unwrap_or_default()
    }

    /// All marks of a namespace's objects.
    pub(crate) fn marks(&self, namespace: &str) -> Vec<T::Mark> {
        let state = self.lock();
        let objects = state.by_namespace.get(namespace).into_iter();
        objects.flat_map(|it| it.by_mark.keys()).cloned().collect()
    }

    /// Objects of a namespace with a mark, in no order.
    pub(crate) fn marked(&self, namespace: &str, mark: &T::Mark) -> Vec<Arc<T>> {
        let state = self.lock();
        let objects = state.by_namespace.get(namespace);
        let marked = objects.and_then(|it| it.by_mark.get(mark));
        marked.cloned().unwrap_or_default()
    }

    /// A number that is another one after any change of the namespace's objects.
    pub(crate) fn version(&self, namespace: &str) -> u64 {
        // They are numbered for all namespaces together, so that one that goes and comes back does
        // not have an earlier number again; one without objects has 0.
        let state = self.lock();
        let objects = state.by_namespace.get(namespace);
        objects.map_or(0, |it| it.version)
    }

    /// Calls `look` for every object.
    pub(crate) fn each(&self, mut look: impl FnMut(&T)) {
        for objects in self.lock().by_namespace.values() {
            for object in objects.by_name.values() {
                look(object);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        let state = self.lock();
        state.by_namespace.values().map(|it| it.by_name.len()).sum()
    }

    /// Puts an object in; false when it is there already, just so.
    pub(crate) fn put(&self, namespace: &str, name: &str, object: T) -> bool {
        let state = &mut *self.lock();
        let objects = match state.by_namespace.get_mut(namespace) {
            Some(objects) => objects,
            None => state.by_namespace.entry(namespace.to_owned()).or_default(),
        };
        let there = objects.by_name.get(name);
        if there.is_some_and(|there| **there == object) {
            return false;
        }
        objects.put(name.to_owned(), object);
        state.version += 1;
        objects.version = state.version;
        true
    }

    /// Takes an object out; false when it is not there.
    pub(crate) fn remove(&self, namespace: &str, name: &str) -> bool {
        let state = &mut *self.lock();
        let Some(objects) = state.by_namespace.get_mut(namespace) else {
            return false;
        };
        if !objects.remove(name) {
            return false;
        }
        state.version += 1;
        objects.version = state.version;
        if objects.by_name.is_empty() {
            state.by_namespace.remove(namespace);
        }
        true
    }

    /// Puts the objects of a whole list in place of those of its scope, one namespace or all;
    /// returns the namespaces in which something is different.
    pub(crate) fn replace(
        &self,
        scope: Option<&str>,
        list: Vec<(String, String, T)>,
    ) -> Vec<String> {
        let mut fresh: BTreeMap<String, Objects<T>> = BTreeMap::new();
        for (namespace, name, object) in list {
            fresh.entry(namespace).or_default().put(name, object);
        }
        let state = &mut *self.lock();
        let mut changed = Vec::new();
        let in_scope = |namespace: &String| scope.is_none_or(|it| it == namespace);
        state.by_namespace.retain(|namespace, _| {
            let stays = !in_scope(namespace) || fresh.contains_key(namespace);
            if !stays {
                changed.push(namespace.clone());
            }
            stays
        });
        // One number for the whole list: readers only ask whether theirs is another one.
        state.version += 1;
        for (namespace, mut objects) in fresh {
            let there = state.by_namespace.get(&namespace);
            if there.is_some_and(|it| it.by_name == objects.by_name) {
                continue;
            }
            objects.version = state.version;
            changed.push(namespace.clone());
            state.by_namespace.insert(namespace, objects);
        }
        changed.sort();
        changed
    }

    fn lock(&self) -> MutexGuard<'_, StoreState<T>> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Indexed for u8 {
        type Mark = u8;
    }

    /// Something that belongs to somebody, and is marked with a number unless that is 0.
    #[derive(Debug, PartialEq)]
    struct Owned(OwnerRef, u8);

    impl Indexed for Owned {
        type Mark = u8;

        fn owner(&self) -> Option<&OwnerRef> {
            Some(&self.0)
        }

        fn mark(&self) -> Option<u8> {
            Some(self.1).filter(|it| *it != 0)
        }
    }

    fn owner(name: &str) -> OwnerRef {
        let kind = "ReplicaSet".to_owned();
        let name = name.to_owned();
        OwnerRef { kind, name }
    }

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
    #[test]
    fn objects_are_found_by_owner_and_mark_whatever_becomes_of_them() {
        let store: Store<Owned> = Store::default();
        let owned = |name: &str| {
            let owned = store.owned_by("n", &owner(name)).into_iter();
            owned.map(|it| it.1).collect::<Vec<_>>()
        };
        store.put("n", "x", Owned(owner("a"), 1));
        store.put("n", "y", Owned(owner("a"), 1));
        store.put("other", "y", Owned(owner("a"), 9));
        assert_eq!((owned("a"), store.marks("n")), (vec![1, 1], vec![1]));
        store.put("n", "x", Owned(owner("a"), 2));
        store.put("n", "y", Owned(owner("b"), 0));
        assert_eq!((owned("a"), owned("b")), (vec![2], vec![0]));
        assert_eq!(store.marks("n"), [2]);
        assert_eq!(store.marked("n", &2), [Arc::new(Owned(owner("a"), 2))]);
        assert_eq!(store.marked("n", &1), []);
        store.remove("n", "x");
        assert_eq!((owned("a"), store.marks("n")), (vec![], vec![]));
        let place = |name: &str| ("n".to_owned(), name.to_owned());
        let item = |name: &str, object| (place(name).0, place(name).1, object);
        store.replace(
            Some("n"),
            vec![
                item("x", Owned(owner("b"), 3)),
                item("z", Owned(owner("b"), 3)),
            ],
        );
        assert_eq!((owned("b"), store.marks("n")), (vec![3, 3], vec![3]));
        store.remove("n", "x");
        store.remove("n", "z");
        assert_eq!((owned("b"), store.marks("n")), (vec![], vec![]));
        assert_eq!(store.marks("other"), [9]);
    }

    #[test]
    fn a_version_stands_for_what_is_there() {
        let store: Store<u8> = Store::default();
        let mut seen = vec![store.version("a")];
        let mut is_new = |version: u64| {
            let is_new = !seen.contains(&version);
            seen.push(version);
            is_new
        };
        store.put("a", "x", 1);
        assert!(is_new(store.version("a")));
        let same = store.version("a");
        store.put("a", "x", 1);
        store.put("b", "x", 1);
        store.replace(Some("a"), list(&[("a", "x", 1)]));
        assert_eq!(store.version("a"), same);
        store.put("a", "x", 2);
        assert!(is_new(store.version("a")));
        // All gone, and there once more: with another object, so under another number.
        store.remove("a", "x");
        store.put("a", "x", 3);
        assert!(is_new(store.version("a")));
        store.replace(None, list(&[("a", "x", 4)]));
        assert!(is_new(store.version("a")));
    }
}

//! The flows of one socket by caller, and the order in which they give way: least recently used
//! first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::proxy::udp::flow::{Flow, FlowKey, Stop};

/// Flows by caller.
pub(crate) struct FlowTable {
    limit: usize,
    flows: HashMap<FlowKey, (u64, Flow)>,
    /// Replaced flows by number, oldest first; they only wait for late answers.
    late: BTreeMap<u64, Stop>,
    /// Flows by a time they were used at, which is corrected when they come to the top: a datagram
    /// costs no change of order.
    order: BinaryHeap<Reverse<(u64, u64)>>,
    keys: HashMap<u64, FlowKey>,
}

impl FlowTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            flows: HashMap::new(),
            late: BTreeMap::new(),
            order: BinaryHeap::new(),
            keys: HashMap::new(),
        }
    }

    pub(crate) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key).map(|(_, flow)| flow)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.flows.len() + self.late.len() >= self.limit
    }

    /// Adds a flow; `id` is larger than those before.
    pub(crate) fn insert(&mut self, key: FlowKey, id: u64, flow: Flow) {
        self.order.push(Reverse((flow.last_used(), id)));
        self.keys.insert(id, key);
        self.flows.insert(key, (id, flow));
        // Flows that ended leave their entries in the order.
        if self.order.len() > 2 * self.limit.max(self.flows.len()) {
            let keys = &self.keys;
            self.order.retain(|Reverse((_, id))| keys.contains_key(id));
        }
    }

    /// The caller's datagrams go elsewhere from here on; late answers still pass.
    pub(crate) fn replace(&mut self, key: &FlowKey) {
        if let Some((id, flow)) = self.flows.remove(key) {
            self.keys.remove(&id);
            self.late.insert(id, flow.replace());
        }
    }

    /// Ends the flow that is missed least: a replaced one, else the least recently used.
    pub(crate) fn evict(&mut self) {
        if let Some((_, stop)) = self.late.pop_first() {
            return stop.evict();
        }
        while let Some(Reverse((used, id))) = self.order.pop() {
            let Some(key) = self.keys.get(&id).copied() else {
                continue;
            };
            let last_used = self.get(&key).map_or(0, Flow::last_used);
            if last_used > used {
                self.order.push(Reverse((last_used, id)));
                continue;
            }
            self.keys.remove(&id);
            if let Some((_, flow)) = self.flows.remove(&key) {
                flow.evict();
            }
            return;
        }
    }

    /// Drops what is left of a flow whose work has ended.
    pub(crate) fn forget(&mut self, key: &FlowKey, id: u64) {
        self.late.remove(&id);
        if self.keys.remove(&id).is_some() {
            self.flows.remove(key);
        }
    }
}

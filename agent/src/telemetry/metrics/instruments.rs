//! Instruments: what a metric is kept in, whatever it counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A monotone counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Resets to zero (the admin's `/reset_counters`).
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one until the guard is dropped.
    #[must_use]
    pub fn hold(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self)
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Returns the current value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Decrements a gauge when dropped.
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// An enum whose values index an array of counters.
pub trait Label: Copy + 'static {
    /// All values in index order.
    const ALL: &'static [Self];
    /// Position in [`Self::ALL`].
    fn index(self) -> usize;
    /// Label value in the exposition.
    fn label(self) -> &'static str;
}

/// One counter for each value of `L`.
#[derive(Debug)]
pub struct PerLabel<L: Label> {
    counters: Box<[Counter]>,
    _label: std::marker::PhantomData<L>,
}

impl<L: Label> Default for PerLabel<L> {
    fn default() -> Self {
        Self {
            counters: L::ALL.iter().map(|_| Counter::default()).collect(),
            _label: std::marker::PhantomData,
        }
    }
}

impl<L: Label> PerLabel<L> {
    /// Returns the counter of `label`.
    #[must_use]
    pub fn at(&self, label: L) -> &Counter {
        // `index` is a position in `ALL`, and there is one counter for each entry of `ALL`.
        &self.counters[label.index()]
    }

    /// Resets every counter to zero.
    pub fn reset(&self) {
        self.counters.iter().for_each(Counter::reset);
    }

    /// Iterates over labels with their values.
    pub fn iter(&self) -> impl Iterator<Item = (L, u64)> + '_ {
        L::ALL.iter().map(|l| (*l, self.at(*l).get()))
    }
}

/// Upper bounds, in microseconds, of the latency histogram's buckets; an unbounded one follows.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

/// A latency histogram with the fixed bounds of [`LATENCY_BOUNDS_US`].
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Counter; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Latency {
    /// Records one observation.
    pub fn observe(&self, took: std::time::Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        // `partition_point` is at most the number of bounds, and there is one bucket more than
        // bounds.
        self.buckets[at].inc();
        self.sum_us.add(us);
    }

    /// Returns the (non-cumulative) bucket counts and the sum in microseconds.
    #[must_use]
    pub fn read(&self) -> ([u64; LATENCY_BOUNDS_US.len() + 1], u64) {
        (
            std::array::from_fn(|i| self.buckets[i].get()),
            self.sum_us.get(),
        )
    }

    /// Resets to zero.
    pub fn reset(&self) {
        self.buckets.iter().for_each(Counter::reset);
        self.sum_us.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_latency_on_a_bound_belongs_to_its_bucket() {
        let l = Latency::default();
        l.observe(Duration::from_micros(100));
        l.observe(Duration::from_micros(101));
        l.observe(Duration::from_secs(60));
        let (buckets, sum) = l.read();
        assert_eq!((buckets[0], buckets[1], buckets[14]), (1, 1, 1));
        assert_eq!(sum, 60_000_201);
    }
}

//! Values in the views of watches: all watches share them, and keep fingerprints of what they sent.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use prost::Message;

/// A value in a view.
pub(crate) trait Watched: Send + 'static {
    /// Fingerprint by which a watch sees the next difference.
    type Kept: PartialEq + Send;

    /// Returns that.
    fn kept(&self) -> Self::Kept;

    /// Bytes that it takes in a message, about.
    fn size(&self) -> usize;
}

/// A value that all watches share.
#[derive(Debug)]
pub(crate) struct Viewed<T> {
    value: Arc<T>,
    /// Equal for equal values; no one outside can find two that are not.
    pub(crate) fingerprint: u64,
    size: usize,
}

impl<T: Message> Viewed<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let encoded = value.encode_to_vec();
        Self {
            value,
            fingerprint: KEYS.hash_one(&encoded),
            size: encoded.len(),
        }
    }

    /// Bytes of the value.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl<T> Viewed<T> {
    pub(crate) fn value(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for Viewed<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            ..*self
        }
    }
}

impl<T: Send + Sync + 'static> Watched for Viewed<T> {
    type Kept = u64;

    fn kept(&self) -> u64 {
        self.fingerprint
    }

    fn size(&self) -> usize {
        self.size
    }
}

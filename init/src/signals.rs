//! Signals that ask the program to end.
//!
//! As process 1 of a container a signal without a handler is ignored. The handlers only note the
//! number; loops that wait ask for it, so that the run ends in an orderly way and takes away what
//! it had begun.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Installs the handlers.
pub fn watch() {
    let received = RECEIVED.get_or_init(Arc::default);
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let number = usize::try_from(signal).unwrap_or(0);
        // Where a handler is refused the kernel's own treatment stays.
        let _ = signal_hook::flag::register_usize(signal, received.clone(), number);
    }
}

/// Number of a signal that came, if one did.
pub fn received() -> Option<i32> {
    let number = RECEIVED.get()?.load(Ordering::SeqCst);
    i32::try_from(number).ok().filter(|number| *number != 0)
}

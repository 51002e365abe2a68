//! One reserved file descriptor for each worker. A connection needs two, the caller's and the
//! app's; accepting waits for the reserve, so that a caller accepted with the last descriptor is
//! not refused for lack of the second. Others wait in the backlog, as they would for a busy app.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

thread_local! {
    static RESERVE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// Ensures that there is a reserve; false if no descriptor is available. It refers to no socket: a
/// copy would keep that one open.
pub fn ensure() -> bool {
    RESERVE.with_borrow_mut(|reserve| {
        if reserve.is_none() {
            *reserve = eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
        reserve.is_some()
    })
}

/// Releases the reserve; true if there was one, so that a retry makes sense.
pub fn release() -> bool {
    RESERVE.with_borrow_mut(|reserve| reserve.take().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_there_until_it_is_used_up_once() {
        assert!(!release());
        assert!(ensure() && ensure());
        assert!(release() && !release());
    }
}

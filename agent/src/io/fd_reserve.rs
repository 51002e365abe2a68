//! One descriptor in reserve for each worker. A connection needs two, the caller's and the app's;
//! accepting waits for the reserve, so that whoever was accepted with the last descriptor is not
//! turned away for want of the second. The others wait in the kernel's queue, where they would wait
//! for a busy app.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

thread_local! {
    static RESERVE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// Sees to it that there is a reserve; false while no descriptor is to be had. It stands for
/// nothing: a copy of some socket would keep that one open.
pub fn ensure() -> bool {
    RESERVE.with_borrow_mut(|reserve| {
        if reserve.is_none() {
            *reserve = eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
        reserve.is_some()
    })
}

/// Gives the reserve up; whether there was one, so that trying again is worth while.
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

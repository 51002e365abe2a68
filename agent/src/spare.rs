//! One descriptor in reserve for each worker. A connection needs two, the caller's and the app's; accepting waits for
//! the reserve, so that whoever was accepted with the last descriptor is not turned away for want of the second. The
//! others wait in the kernel's queue, where they would wait for a busy app.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};

thread_local! {
    static RESERVE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// Sees to it that there is a reserve, as a copy of `like`; false while no descriptor is to be had.
pub fn keep(like: impl AsFd) -> bool {
    RESERVE.with_borrow_mut(|reserve| {
        if reserve.is_none() {
            *reserve = like.as_fd().try_clone_to_owned().ok();
        }
        reserve.is_some()
    })
}

/// Gives the reserve up; whether there was one, so that trying again is worth while.
pub fn use_up() -> bool {
    RESERVE.with_borrow_mut(|reserve| reserve.take().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_there_until_it_is_used_up_once() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!use_up());
        assert!(keep(&file) && keep(&file));
        assert!(use_up() && !use_up());
    }
}

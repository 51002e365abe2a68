//! The caller's window for its whole connection. The app is told of all credit and keeps to it;
//! what workstations send counts against the same window, and the app does not know of that. So
//! their bytes are a debt: later credit pays it before the app gets any, and until it is paid the
//! app may send more than there is room for, which is then held back here.

use crate::http2::frames::DEFAULT_WINDOW;

/// Room at the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallerWindow {
    room: i64,
    debt: i64,
}

impl Default for CallerWindow {
    fn default() -> Self {
        Self {
            room: DEFAULT_WINDOW.into(),
            debt: 0,
        }
    }
}

impl CallerWindow {
    /// Bytes that may be sent.
    pub(super) fn room(self) -> usize {
        usize::try_from(self.room).unwrap_or(0)
    }

    /// Returns true if the app may believe in more room than there is.
    pub(super) fn is_shared(self) -> bool {
        self.debt > 0
    }

    /// The caller gives credit; the app is to be told of what is returned.
    pub(super) fn credit(&mut self, n: u32) -> u32 {
        self.room += i64::from(n);
        let paid = self.debt.min(n.into());
        self.debt -= paid;
        // Not more than `n`.
        n - paid as u32
    }

    /// The app has sent to the caller.
    pub(super) fn by_app(&mut self, n: usize) {
        self.room -= n as i64;
    }

    /// Somebody else has.
    pub(super) fn by_other(&mut self, n: usize) {
        self.room -= n as i64;
        self.debt += n as i64;
    }

    /// The app has sent what will not reach the caller; the app is to be given back what is
    /// returned.
    pub(super) fn dropped(&mut self, n: usize) -> u32 {
        let paid = self.debt.min(n as i64);
        self.debt -= paid;
        u32::try_from(n as i64 - paid).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The app's own account and the caller's stay in step with the router's.
        #[test]
        fn the_app_believes_in_the_room_and_the_debt_but_for_what_is_held(
            steps in proptest::collection::vec((0u8..5, 1u32..40_000), 0..200),
        ) {
            let mut window = CallerWindow::default();
            let (mut caller, mut app, mut held) = (65_535i64, 65_535i64, 0i64);
            for (what, n) in steps {
                let n_i = i64::from(n);
                match what {
                    0 => {
                        caller += n_i;
                        app += i64::from(window.credit(n));
                    }
                    1 => {
                        // The app sends as far as it believes it may.
                        let n = n_i.min(app);
                        app -= n;
                        held += n;
                    }
                    2 => {
                        let n = held.min(window.room() as i64);
                        held -= n;
                        caller -= n;
                        window.by_app(n as usize);
                    }
                    3 => {
                        let n = n_i.min(window.room() as i64);
                        caller -= n;
                        window.by_other(n as usize);
                    }
                    _ => {
                        let n = n_i.min(held);
                        held -= n;
                        app += i64::from(window.dropped(n as usize));
                    }
                }
                prop_assert_eq!(window.room() as i64, caller);
                prop_assert!(caller >= 0 && app >= 0);
                prop_assert_eq!(app, caller + window.debt - held);
            }
        }
    }
}

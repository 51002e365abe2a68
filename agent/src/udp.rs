//! Flows by caller, with idle expiry.

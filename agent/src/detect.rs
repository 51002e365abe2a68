//! The first bytes, looked at while the app is connected and may already speak.

pub mod prefix;

//! Policy of a volume mount on a workstation.

use std::fmt;
use std::str::FromStr;

/// Treatment of a mount when its container is intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MountPolicy {
    /// Offered to the workstation for reading and writing.
    #[default]
    Remote,
    /// Offered to the workstation for reading.
    RemoteReadonly,
    /// Left out in the agent: the workstation has its own.
    Local,
    /// Left out entirely.
    Ignore,
}

/// Error: the text names no mount policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mount policy; write Remote, RemoteReadonly, Local or Ignore")]
pub struct UnknownMountPolicy;

impl MountPolicy {
    const ALL: [Self; 4] = [
        Self::Remote,
        Self::RemoteReadonly,
        Self::Local,
        Self::Ignore,
    ];

    /// Returns the name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Remote => "Remote",
            Self::RemoteReadonly => "RemoteReadonly",
            Self::Local => "Local",
            Self::Ignore => "Ignore",
        }
    }

    /// Returns the number sent to managers and workstations.
    pub const fn number(self) -> i32 {
        match self {
            Self::Remote => 0,
            Self::RemoteReadonly => 1,
            Self::Local => 2,
            Self::Ignore => 3,
        }
    }

    /// Returns the policy with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.number() == number)
    }
}

impl FromStr for MountPolicy {
    type Err = UnknownMountPolicy;

    /// Parses a name in any letter case, since documents and programs disagree on it.
    fn from_str(text: &str) -> Result<Self, UnknownMountPolicy> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name().eq_ignore_ascii_case(text))
            .ok_or(UnknownMountPolicy)
    }
}

impl fmt::Display for MountPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

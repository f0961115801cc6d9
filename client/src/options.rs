//! What a request may ask for: quorums, named profiles of them, and how long it may take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub use quorate_wire::{Quorum, TIMEOUT_MAX};

/// A named choice of R, W and strictness: what a client's requests ask for unless they say otherwise.
///
/// What the modes promise is said word for word in the table of the [crate's documentation](crate#what-each-mode-promises).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// R = W = Majority, sloppy: a read sees every write that was acknowledged before it, as long as neither reply is
    /// flagged `degraded`; writes succeed wherever W nodes can be reached.
    #[default]
    Balanced,
    /// R = W = One, sloppy: the shortest latency and the highest availability. Eventual: every acknowledged write reaches
    /// all N replicas, but a read may miss a write that was just acknowledged.
    Fast,
    /// R = W = Majority, strict: a read that starts after a write was acknowledged returns that write or one that causally
    /// follows it, through crashes, restarts and layout changes. Unavailable for keys of which a majority of the primaries
    /// cannot be reached.
    Safe,
}

impl Profile {
    /// How many replicas must answer a read.
    pub fn r(self) -> Quorum {
        match self {
            Self::Balanced | Self::Safe => Quorum::Majority,
            Self::Fast => Quorum::One,
        }
    }

    /// How many replicas must hold a write.
    pub fn w(self) -> Quorum {
        match self {
            Self::Balanced | Self::Safe => Quorum::Majority,
            Self::Fast => Quorum::One,
        }
    }

    /// Whether only primaries count.
    pub fn strict(self) -> bool {
        match self {
            Self::Balanced | Self::Fast => false,
            Self::Safe => true,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balanced => "balanced",
            Self::Fast => "fast",
            Self::Safe => "safe",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "balanced" => Ok(Self::Balanced),
            "fast" => Ok(Self::Fast),
            "safe" => Ok(Self::Safe),
            _ => Err(format!("{text:?} is not a profile: balanced, fast or safe")),
        }
    }
}

/// How long a request may take, retries included, unless it says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// How one low-level request is carried out; see [`Client::request`](crate::Client::request).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// How long the request may take, retries included, at most [`TIMEOUT_MAX`]; the client's default if absent.
    pub timeout: Option<Duration>,
}

impl RequestOptions {
    /// The same with a deadline of its own.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_promises_what_its_name_says() {
        for n in 1..=7 {
            for (profile, overlap) in [(Profile::Balanced, true), (Profile::Safe, true), (Profile::Fast, n == 1)] {
                assert_eq!(profile.r().count(n) + profile.w().count(n) > n, overlap, "{profile} with N={n}");
            }
        }
        assert!(Profile::Safe.strict());
        assert!(!Profile::Balanced.strict());
        assert!(!Profile::Fast.strict());
    }

    #[test]
    fn names_of_profiles_are_read_back() {
        for profile in [Profile::Balanced, Profile::Fast, Profile::Safe] {
            assert_eq!(profile.to_string().parse::<Profile>(), Ok(profile));
        }
        assert!("Safe".parse::<Profile>().expect_err("capital").contains("balanced, fast or safe"));
    }
}

//! What a request may ask for: quorums, named profiles of them, and how long it may take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many of a key's N replicas must answer a read (R) or hold a write (W).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quorum {
    /// One replica.
    One,
    /// More than half: `N / 2 + 1`.
    Majority,
    /// All N.
    All,
    /// So many. A request with more than N, or with 0, is refused before anything happens.
    Exactly(u8),
}

impl Quorum {
    /// The number that this means with N replicas; may be impossible for [`Exactly`](Self::Exactly).
    pub fn count(self, n: u8) -> u8 {
        match self {
            Self::One => 1,
            Self::Majority => n / 2 + 1,
            Self::All => n,
            Self::Exactly(count) => count,
        }
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one"),
            Self::Majority => f.write_str("majority"),
            Self::All => f.write_str("all"),
            Self::Exactly(count) => count.fmt(f),
        }
    }
}

impl FromStr for Quorum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "one" => Ok(Self::One),
            "majority" => Ok(Self::Majority),
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(count) if count > 0 => Ok(Self::Exactly(count)),
                _ => Err(format!("{text:?} is not a quorum: one, majority, all or a number from 1 to 255")),
            },
        }
    }
}

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

/// The longest that a request may be asked to take: half of the ten minutes for which nodes remember operation ids, so that
/// no retry of a write arrives after its id was forgotten (rule V6).
pub const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Parses a time as flags, variables and files have it: `250ms`, `5s`, `10m`, `1h 30m`.
///
/// # Errors
/// When it is none; the text says how one is written.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let bare = text.trim();
    if bare.parse::<u64>().is_ok() {
        return Err(format!("{text:?} lacks a unit: write {bare}ms or {bare}s"));
    }
    humantime::parse_duration(bare).map_err(|_| format!("{text:?} is no time: write 250ms, 2s or 1m"))
}

/// A time as people read it and [`parse_time`] reads it back, rounded to three digits or so: `250ms`, `2s`, `1m 30s`.
pub fn time_text(time: Duration) -> String {
    let rounded = match time.as_micros() {
        0..1_000 => Duration::from_micros(time.as_micros() as u64),
        1_000..10_000_000 => Duration::from_millis((time.as_micros() as u64 + 500) / 1_000),
        _ => Duration::from_secs((time.as_millis() as u64 + 500) / 1_000),
    };
    humantime::format_duration(rounded).to_string()
}

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
    fn times_have_units_and_are_read_back() {
        for (text, ms) in
            [("0ms", 0), ("250ms", 250), ("2s", 2_000), ("1m", 60_000), ("2min", 120_000), ("1m 30s", 90_000)]
        {
            assert_eq!(parse_time(text).expect(text), Duration::from_millis(ms));
        }
        for bad in ["", "s", "1", "0", "-1s", "1 x", "soon", "99999999999999999999s"] {
            assert!(parse_time(bad).expect_err(bad).contains("write "), "{bad:?}");
        }
        for (micros, text) in
            [(12, "12us"), (499_998, "500ms"), (1_000_000, "1s"), (2_345_678, "2s 346ms"), (90_400_000, "1m 30s")]
        {
            assert_eq!(time_text(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn names_of_profiles_and_quorums_are_read_back() {
        for profile in [Profile::Balanced, Profile::Fast, Profile::Safe] {
            assert_eq!(profile.to_string().parse::<Profile>(), Ok(profile));
        }
        assert!("Safe".parse::<Profile>().expect_err("capital").contains("balanced, fast or safe"));
        for quorum in [Quorum::One, Quorum::Majority, Quorum::All, Quorum::Exactly(3)] {
            assert_eq!(quorum.to_string().parse::<Quorum>(), Ok(quorum));
        }
        for bad in ["0", "-1", "256", "", "most"] {
            assert!(bad.parse::<Quorum>().is_err(), "{bad:?}");
        }
    }
}

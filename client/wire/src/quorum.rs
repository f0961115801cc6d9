//! How many replicas a request asks for.

use std::fmt;
use std::str::FromStr;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_quorums_are_read_back() {
        for quorum in [Quorum::One, Quorum::Majority, Quorum::All, Quorum::Exactly(3)] {
            assert_eq!(quorum.to_string().parse::<Quorum>(), Ok(quorum));
        }
        for bad in ["0", "-1", "256", "", "most"] {
            assert!(bad.parse::<Quorum>().is_err(), "{bad:?}");
        }
    }
}

//! Nobody can look at hundreds of operations at once: a key's life is cut into windows, one after the other, none of it left out.

/// A part of a key's life, from one moment up to another one, which is the next window's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// When it begins, in microseconds.
    pub(super) from_us: u64,
    /// The first microsecond after it.
    pub(super) to_us: u64,
    /// The operations that begin in it: of all on the key, in the order of time, from this one up to that one.
    pub(super) operations: (usize, usize),
}

impl Window {
    pub(super) fn has(&self, at_us: u64) -> bool {
        (self.from_us..self.to_us).contains(&at_us)
    }

    /// Whether something that lasts from one moment to the other, or for ever, is seen in it.
    pub(super) fn sees(&self, from_us: u64, to_us: Option<u64>) -> bool {
        from_us < self.to_us && to_us.is_none_or(|to_us| to_us >= self.from_us)
    }
}

/// The windows over operations, each given by when it began and ended, in the order of time. Together they have everything from
/// the one moment to the other.
pub(super) fn windows(operations: &[(u64, Option<u64>)], (from_us, to_us): (u64, u64)) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut begin, mut begin_us) = (0, from_us);
    while operations.len() - begin > OPERATIONS_MAX {
        let end = begin + quietest(&operations[begin..]);
        let end_us = operations[end].0;
        windows.push(Window { from_us: begin_us, to_us: end_us, operations: (begin, end) });
        (begin, begin_us) = (end, end_us);
    }
    windows.push(Window { from_us: begin_us, to_us: to_us + 1, operations: (begin, operations.len()) });
    windows
}

/// How many operations the next window has: as many as can be looked at, or somewhat fewer where there is a pause.
fn quietest(operations: &[(u64, Option<u64>)]) -> usize {
    let mut best = (i128::MIN, OPERATIONS_MAX);
    let mut busy_until = 0;
    for (at, (from_us, to_us)) in operations.iter().enumerate().take(OPERATIONS_MAX + 1) {
        let pause = i128::from(*from_us) - i128::from(busy_until);
        // What begins in one moment stays together, if it can.
        if at >= OPERATIONS_MIN && pause >= best.0 && operations[at - 1].0 < *from_us {
            best = (pause, at);
        }
        // What never ends is seen in every window after it.
        busy_until = busy_until.max(to_us.unwrap_or(0));
    }
    best.1
}

/// More cannot be looked at.
const OPERATIONS_MAX: usize = 48;
const OPERATIONS_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(times: &[(u64, u64)]) -> Vec<Window> {
        let operations: Vec<_> = times.iter().map(|(from, to)| (*from, Some(*to))).collect();
        windows(&operations, (times[0].0, times[times.len() - 1].1))
    }

    #[test]
    fn every_operation_is_in_one_window_and_they_follow_each_other() {
        for many in [1, 48, 49, 95, 383] {
            let times: Vec<(u64, u64)> = (0..many).map(|at| (at * 1_000, at * 1_000 + 1_500)).collect();
            let windows = cut(&times);
            assert_eq!(windows[0].operations.0, 0);
            assert_eq!(windows.last().expect("there is one").operations.1, times.len());
            for pair in windows.windows(2) {
                assert_eq!((pair[0].operations.1, pair[0].to_us), (pair[1].operations.0, pair[1].from_us));
            }
            for window in &windows {
                let (from, to) = window.operations;
                assert!(to - from <= OPERATIONS_MAX && from < to, "{window:?}");
                assert!(times[from..to].iter().all(|(at, _)| window.has(*at)), "{window:?}");
            }
            assert!(windows.last().expect("there is one").sees(times[times.len() - 1].1, None));
        }
    }

    #[test]
    fn a_window_ends_in_a_pause() {
        let mut times: Vec<(u64, u64)> = (0..60).map(|at| (at * 1_000, at * 1_000 + 1_500)).collect();
        times[40..].iter_mut().for_each(|(from, to)| (*from, *to) = (*from + 9_000, *to + 9_000));
        assert_eq!(cut(&times)[0].operations, (0, 40));
        // Many that begin in one moment leave no choice.
        assert_eq!(cut(&[(5, 9); 60])[0].operations, (0, 48));
        // What never ends does not hide the pauses after it.
        let mut endless: Vec<_> = times.iter().map(|(from, to)| (*from, Some(*to))).collect();
        endless[3].1 = None;
        assert_eq!(windows(&endless, (0, 99_000))[0].operations, (0, 40));
    }
}

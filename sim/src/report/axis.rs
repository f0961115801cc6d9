//! Time as a place on the page. A life has moments in which everything happens within milliseconds, and seconds in which nothing
//! does: a distance grows with the logarithm of the time, so that both can be read. Where texts need more room than that, time
//! is stretched until each has its own.

use std::collections::BTreeMap;

/// What is wanted at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Need {
    /// A place, and no room.
    Place,
    /// Lines of text in one of the slots, which stand beside each other.
    Lines { slot: usize, lines: usize },
    /// So much of the whole width. What begins in that moment is below it, what ends is above.
    Row { height: f64 },
}

/// Where each moment is that something happens at, downwards.
#[derive(Debug)]
pub(super) struct Axis {
    /// Of each moment: the place of what ends, the place of what begins. They differ only where a row is between them.
    places: BTreeMap<u64, (f64, f64)>,
    end: f64,
}

impl Axis {
    /// The axis, and the place of each need in the order of the needs: of lines, the middle of the first; of a row, its top.
    /// No two texts of one slot touch, and nothing but lines between moments touches a row.
    pub(super) fn new(needs: &[(u64, Need)], top: f64) -> (Self, Vec<f64>) {
        let mut order: Vec<usize> = (0..needs.len()).collect();
        order.sort_by_key(|at| (needs[*at].0, !matches!(needs[*at].1, Need::Row { .. })));
        let mut placed = vec![top; needs.len()];
        let mut places = BTreeMap::new();
        // Where the middle of a slot's next line may be.
        let mut free: BTreeMap<usize, f64> = BTreeMap::new();
        let (mut y, mut before) = (top, None);
        for moment in order.chunk_by(|one, other| needs[*one].0 == needs[*other].0) {
            let at_us = needs[moment[0]].0;
            if let Some(before) = before {
                y += distance(at_us - before);
            }
            let (mut ends, mut has_row) = (y, false);
            for at in moment {
                match needs[*at].1 {
                    Need::Row { height } => {
                        if !has_row {
                            // Below every line of text that there is so far.
                            ends = free.values().fold(y, |y, free| y.max(*free));
                            (y, has_row) = (ends + LINE / 2.0, true);
                        }
                        placed[*at] = y;
                        y += height + LINE;
                    }
                    Need::Lines { slot, .. } => y = free.get(&slot).map_or(y, |free| y.max(*free)),
                    Need::Place => {}
                }
            }
            for at in moment {
                match needs[*at].1 {
                    Need::Lines { slot, lines } => {
                        let from = free.get(&slot).copied().unwrap_or(y).max(y);
                        placed[*at] = from;
                        free.insert(slot, from + LINE * lines as f64);
                    }
                    Need::Place => placed[*at] = y,
                    Need::Row { .. } => {}
                }
            }
            places.insert(at_us, (if has_row { ends } else { y }, y));
            before = Some(at_us);
        }
        let end = free.values().fold(y, |y, free| y.max(*free)) + LINE;
        (Self { places, end }, placed)
    }

    /// The place of what begins or is at a moment: its own, or one between its neighbours.
    pub(super) fn y(&self, at_us: u64) -> f64 {
        let before = self.places.range(..=at_us).next_back();
        let after = self.places.range(at_us..).next();
        match (before, after) {
            (Some((from, (_, y))), Some((to, (y_to, _)))) if to > from => {
                y + (y_to - y) * (at_us - from) as f64 / (to - from) as f64
            }
            (Some((_, (_, y))), Some(_)) | (None, Some((_, (y, _)))) => *y,
            // Whatever is later is below everything.
            (Some((last, (_, y))), None) => {
                if at_us > *last {
                    self.end
                } else {
                    *y
                }
            }
            (None, None) => self.end,
        }
    }

    /// The place of what ends at a moment.
    pub(super) fn until(&self, at_us: u64) -> f64 {
        self.places.get(&at_us).map_or_else(|| self.y(at_us), |(ends, _)| *ends)
    }

    /// Every moment and its place.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, f64)> {
        self.places.iter().map(|(at_us, (_, y))| (*at_us, *y))
    }

    /// Below everything.
    pub(super) fn end(&self) -> f64 {
        self.end
    }
}

/// 2 ms are 12 pixels, 20 ms 29, a second 60, ten seconds 79.
fn distance(us: u64) -> f64 {
    8.2 * (1.0 + us as f64 / 650.0).ln()
}

/// A line of text.
pub(super) const LINE: f64 = 12.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(slot: usize, lines: usize) -> Need {
        Need::Lines { slot, lines }
    }

    #[test]
    fn moments_are_in_order_and_texts_do_not_touch() {
        let needs = [
            (1_000, lines(0, 1)),
            (1_100, lines(0, 1)),
            (1_100, lines(0, 2)),
            (1_200, lines(1, 1)),
            (1_300, lines(0, 1)),
            (9_000_000, Need::Place),
        ];
        let (axis, placed) = Axis::new(&needs, 10.0);
        assert_eq!(placed[0], 10.0);
        assert!(placed[1] >= placed[0] + LINE && placed[2] >= placed[1] + LINE, "{placed:?}");
        assert!(placed[4] >= placed[2] + 2.0 * LINE, "{placed:?}");
        assert!(placed[3] - placed[1] < LINE, "other slots are not in the way: {placed:?}");
        assert!(placed[5] - placed[4] < 100.0, "seconds without anything are short: {placed:?}");
        let places: Vec<f64> = axis.places().map(|(_, y)| y).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(axis.y(1_100), placed[1], "a mark is where its text begins");
        assert!(axis.end() > placed[5]);
        let between = axis.y(5_000_000);
        assert!(placed[4] < between && between < placed[5]);
        assert_eq!((axis.y(0), axis.y(u64::MAX)), (placed[0], axis.end()));
    }

    #[test]
    fn a_row_has_its_room_for_itself() {
        let row = Need::Row { height: 30.0 };
        let needs = [(1_000, lines(0, 4)), (1_100, lines(1, 1)), (1_100, row), (1_100, row), (1_200, lines(0, 1))];
        let (axis, placed) = Axis::new(&needs, 10.0);
        assert!(placed[2] >= placed[0] + 3.5 * LINE, "below all the texts before it: {placed:?}");
        assert!(placed[3] >= placed[2] + 30.0, "rows stand below each other: {placed:?}");
        assert!(placed[1] >= placed[3] + 30.0 + LINE / 2.0, "what begins then is below: {placed:?}");
        assert!(placed[4] >= placed[1], "{placed:?}");
        assert!(axis.until(1_100) < placed[2] && axis.y(1_100) == placed[1]);
        assert_eq!(axis.until(1_200), axis.y(1_200));
        let between = axis.y(1_050);
        assert!(placed[0] < between && between < placed[2], "what is between two moments is not in the row");
    }
}

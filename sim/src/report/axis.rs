//! Time as a place on the page. A life has moments in which everything happens within milliseconds, and seconds in which nothing
//! does: a distance grows with the logarithm of the time, so that both can be read.

use std::collections::BTreeMap;

/// Where each moment is that something happens at, downwards.
#[derive(Debug)]
pub(super) struct Axis {
    places: BTreeMap<u64, f64>,
    end: f64,
}

impl Axis {
    /// `moments` in microseconds, each with the columns that get a line of text there: lines in one column do not touch.
    pub(super) fn new(moments: &BTreeMap<u64, Vec<usize>>, top: f64) -> Self {
        let mut places = BTreeMap::new();
        // Where the next text of a column may begin.
        let mut free: BTreeMap<usize, f64> = BTreeMap::new();
        let (mut y, mut before) = (top, None);
        for (at_us, columns) in moments {
            if let Some(before) = before {
                y += distance(at_us - before);
            }
            y = columns.iter().filter_map(|column| free.get(column)).fold(y, |y, free| y.max(*free));
            for column in columns {
                let from = free.get(column).copied().unwrap_or(y).max(y);
                free.insert(*column, from + LINE);
            }
            places.insert(*at_us, y);
            before = Some(*at_us);
        }
        let end = free.values().fold(y, |y, free| y.max(*free)) + LINE;
        Self { places, end }
    }

    /// The place of a moment: its own, or one between its neighbours.
    pub(super) fn y(&self, at_us: u64) -> f64 {
        let before = self.places.range(..=at_us).next_back();
        let after = self.places.range(at_us..).next();
        match (before, after) {
            (Some((from, y)), Some((to, y_to))) if to > from => {
                y + (y_to - y) * (at_us - from) as f64 / (to - from) as f64
            }
            (Some((_, y)), _) | (None, Some((_, y))) => *y,
            (None, None) => self.end,
        }
    }

    /// Every moment and its place.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, f64)> {
        self.places.iter().map(|(at_us, y)| (*at_us, *y))
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

    #[test]
    fn moments_are_in_order_and_texts_do_not_touch() {
        let moments = BTreeMap::from([
            (1_000, vec![0]),
            (1_100, vec![0, 0]),
            (1_200, vec![1]),
            (1_300, vec![0]),
            (9_000_000, vec![]),
        ]);
        let axis = Axis::new(&moments, 10.0);
        let y: Vec<f64> = moments.keys().map(|at| axis.y(*at)).collect();
        assert_eq!(y[0], 10.0);
        assert!(y.is_sorted(), "{y:?}");
        assert!(y[1] - y[0] >= LINE && y[3] - y[1] >= 2.0 * LINE, "{y:?}");
        assert!(y[2] - y[1] < LINE, "other columns are not in the way: {y:?}");
        assert!(y[4] - y[3] < 100.0, "seconds without anything are short: {y:?}");
        assert!(axis.end() > y[4]);
        let between = axis.y(5_000_000);
        assert!(y[3] < between && between < y[4]);
        assert_eq!((axis.y(0), axis.y(u64::MAX)), (y[0], y[4]));
    }
}

//! Stories to read and to run: `quorate-sim scenario run NAME`. To add one, write its file and name it in [`ALL`].

mod anti_entropy;
mod coordinator_dies;
mod hinted_handoff;
mod one_is_enough;
mod one_way;
mod power_cut;
mod read_repair;
mod replaced_disk;
mod rolling_restart;
mod sloppy_or_strict;
mod split_brain_cart;

use crate::scenario::Ending;

/// A story that has a name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What one learns from it, in one line.
    pub about: &'static str,
    /// Runs it.
    pub play: fn() -> Ending,
}

/// Every story, the simplest first.
pub const ALL: &[Named] = &[
    split_brain_cart::STORY,
    one_is_enough::STORY,
    one_way::STORY,
    rolling_restart::STORY,
    power_cut::STORY,
    coordinator_dies::STORY,
    hinted_handoff::STORY,
    sloppy_or_strict::STORY,
    read_repair::STORY,
    anti_entropy::STORY,
    replaced_disk::STORY,
];

/// The story of a name.
pub fn named(name: &str) -> Option<&'static Named> {
    ALL.iter().find(|story| story.name == name)
}

//! The tables of points and marks say what the sources say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use quorate_node::fault_points::TABLES;
use quorate_wire::fault_points::{Effect, Point};

#[test]
fn every_point_is_passed_in_one_place_and_every_mark_is_set_somewhere() {
    let points = named_by(&["buggify!(", "dawdle!("]);
    let listed: Vec<&str> = all_points().map(|point| point.name).collect();
    for name in &listed {
        assert_eq!(points.get(*name), Some(&1), "{name:?} is passed in as many places as this, and 1 is right");
    }
    let marks = named_by(&["sometimes!("]);
    for name in all_marks() {
        assert!(marks.contains_key(name), "{name:?} is listed and never set");
    }
    // That whatever is named is listed is the compiler's affair; this shows that the scan above finds what it looks for.
    assert_eq!((points.len(), marks.len()), (listed.len(), all_marks().count()));
}

#[test]
fn names_are_unique_and_there_are_as_many_as_promised() {
    let mut names: Vec<&str> = all_points().map(|point| point.name).chain(all_marks()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    assert!(all_points().count() >= 25 && all_marks().count() >= 20);
    assert!(all_points().filter(|point| point.effect == Effect::Slows).count() >= 25);
}

fn all_points() -> impl Iterator<Item = &'static Point> {
    TABLES.iter().flat_map(|table| table.points)
}

fn all_marks() -> impl Iterator<Item = &'static str> {
    TABLES.iter().flat_map(|table| table.marks.iter().copied())
}

/// The names behind these macros' opening brackets in the sources of client, transport and node, and how often each is there.
fn named_by(macros: &[&str]) -> BTreeMap<String, u32> {
    let mut named = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in ["src", "../client/src", "../client/transport/src"] {
        read(&root.join(source), &mut |text| {
            for (at, opening) in macros.iter().flat_map(|opening| text.match_indices(opening)) {
                let Some(quoted) = text[at + opening.len()..].trim_start().strip_prefix('"') else { continue };
                let (name, _) = quoted.split_once('"').expect("a string ends");
                *named.entry(name.to_owned()).or_default() += 1;
            }
        });
    }
    named
}

/// Every source below a directory but the tables.
fn read(dir: &Path, with: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            read(&path, with);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("fault_points.rs") {
            with(&fs::read_to_string(&path).expect("a text"));
        }
    }
}

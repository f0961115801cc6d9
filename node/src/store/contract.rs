//! What every engine has to do: one suite, run over each of them.

use std::sync::Arc;
use std::thread;

use super::{Store, StoreError, Tree};

/// An engine under test.
pub trait Subject {
    /// The open store.
    fn store(&self) -> Arc<dyn Store>;

    /// Stops and opens again, as after the end of the process; nobody else holds the store. What was synced must still be
    /// there.
    fn reopen(&mut self);

    /// Damages a stored value behind the engine's back; false when there is no such key.
    fn flip_bit(&self, tree: Tree, key: &[u8]) -> bool;
}

/// Runs the whole suite; `fresh` makes an engine with nothing in it.
///
/// # Panics
/// When the engine breaks the contract; the message says which part.
pub fn check(fresh: &mut dyn FnMut() -> Box<dyn Subject>) {
    reads_see_the_last_write(&*fresh().store());
    empty_and_large_values_and_long_keys_come_back_whole(&*fresh().store());
    trees_are_separate(&*fresh().store());
    scans_keep_order_and_bounds(&*fresh().store());
    scans_stop_at_their_limits(&*fresh().store());
    writes_are_counted(&*fresh().store());
    stats_follow_the_data(&*fresh().store());
    concurrent_writers_do_not_disturb_each_other(&fresh().store());
    damage_surfaces_as_corrupt(&*fresh());
    what_was_synced_is_there_after_reopening(&mut *fresh());
    what_was_closed_is_there_after_reopening(&mut *fresh());
}

fn reads_see_the_last_write(store: &dyn Store) {
    let get = |key: &[u8]| store.get(Tree::Data, key).expect("readable");
    assert_eq!(get(b"k"), None, "nothing in a fresh store");
    store.insert(Tree::Data, b"k", b"one").expect("room");
    assert_eq!(get(b"k").as_deref(), Some(&b"one"[..]));
    store.insert(Tree::Data, b"k", b"two").expect("room");
    store.insert(Tree::Data, b"k", b"two").expect("the same value again is no error");
    assert_eq!(get(b"k").as_deref(), Some(&b"two"[..]), "overwritten");
    assert_eq!(get(b"").as_deref(), None, "the empty key is a key like others");
    assert_eq!(get(b"k\0"), None, "a longer key is another key");
    store.remove(Tree::Data, b"k").expect("room");
    assert_eq!(get(b"k"), None, "removed");
    store.remove(Tree::Data, b"k").expect("removing nothing is no error");
    store.insert(Tree::Data, b"k", b"three").expect("room");
    assert_eq!(get(b"k").as_deref(), Some(&b"three"[..]), "set again");
}

fn empty_and_large_values_and_long_keys_come_back_whole(store: &dyn Store) {
    let large: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long_key = |last: u8| [&[b'k'; 1023][..], &[last]].concat();
    store.insert(Tree::Data, b"empty", b"").expect("room");
    store.insert(Tree::Data, b"large", &large).expect("room");
    store.insert(Tree::Data, &long_key(1), b"first").expect("room");
    store.insert(Tree::Data, &long_key(2), b"second").expect("room");
    let get = |key: &[u8]| store.get(Tree::Data, key).expect("readable").expect("there");
    assert!(get(b"empty").is_empty());
    assert!(get(b"large") == large[..], "a value of 1 MiB");
    assert_eq!(get(&long_key(1)), &b"first"[..]);
    assert_eq!(get(&long_key(2)), &b"second"[..]);
    store.sync().expect("synced");
    store.insert(Tree::Data, b"large", &large[1..]).expect("room");
    store.sync().expect("synced");
    assert!(get(b"large") == large[1..], "a value of 1 MiB, overwritten");
}

fn trees_are_separate(store: &dyn Store) {
    for tree in Tree::ALL {
        store.insert(tree, b"k", tree.name().as_bytes()).expect("room");
    }
    store.remove(Tree::Hints, b"k").expect("room");
    for tree in Tree::ALL {
        let value = store.get(tree, b"k").expect("readable");
        let scanned = store.scan(tree, b"", None, 10, usize::MAX).expect("readable");
        if tree == Tree::Hints {
            assert_eq!((value, scanned.len()), (None, 0), "{tree}");
        } else {
            assert_eq!(value.as_deref(), Some(tree.name().as_bytes()), "{tree}");
            assert_eq!(scanned.len(), 1, "{tree}: nothing else in it");
        }
    }
}

fn scans_keep_order_and_bounds(store: &dyn Store) {
    // In an order that is not the keys'.
    for i in (0..300u16).map(|i| i.wrapping_mul(7) % 300) {
        store.insert(Tree::Data, &i.to_be_bytes(), &i.to_le_bytes()).expect("room");
    }
    let scan = |from: &[u8], to: Option<&[u8]>| -> Vec<u16> {
        let found = store.scan(Tree::Data, from, to, usize::MAX, usize::MAX).expect("readable");
        found
            .iter()
            .map(|(key, value)| {
                let number = u16::from_be_bytes(key[..].try_into().expect("two bytes"));
                assert_eq!(value[..], number.to_le_bytes(), "each key with its value");
                number
            })
            .collect()
    };
    assert_eq!(scan(b"", None), (0..300).collect::<Vec<_>>(), "everything");
    let key = |i: u16| i.to_be_bytes();
    assert_eq!(scan(&key(10), Some(&key(13))), [10, 11, 12], "from is in, to is not");
    assert_eq!(scan(&[0, 10, 0], Some(&[0, 12, 0])), [11, 12], "bounds need not be keys");
    assert_eq!(scan(&key(298), None), [298, 299]);
    assert_eq!(scan(&key(255), Some(&key(257))), [255, 256], "across a byte");
    assert!(scan(&key(300), None).is_empty(), "behind the end");
    assert!(scan(&key(5), Some(&key(5))).is_empty(), "an empty range");
    assert!(scan(&key(6), Some(&key(5))).is_empty(), "bounds the wrong way round");
    assert!(scan(b"", Some(b"")).is_empty(), "nothing is below the empty key");
    let keys = |from: &[u8], to: Option<&[u8]>, limit| store.keys(Tree::Data, from, to, limit).expect("readable");
    assert_eq!(keys(b"", None, usize::MAX).len(), 300);
    assert_eq!(keys(&key(10), Some(&key(13)), 2), [key(10), key(11)].map(|key| key.to_vec()));
    assert_eq!(keys(&[0, 10, 0], Some(&[0, 12, 0]), 9), [key(11), key(12)].map(|key| key.to_vec()));
    assert!(keys(&key(6), Some(&key(5)), 9).is_empty() && keys(&key(300), None, 9).is_empty());
    assert!(store.keys(Tree::Hints, b"", None, 9).expect("readable").is_empty(), "of this tree only");
}

fn scans_stop_at_their_limits(store: &dyn Store) {
    for i in 0..10u8 {
        store.insert(Tree::Data, &[i], &[i; 100]).expect("room");
    }
    let count = |limit, bytes_max| store.scan(Tree::Data, b"", None, limit, bytes_max).expect("readable").len();
    assert_eq!(count(0, usize::MAX), 0);
    assert_eq!(count(3, usize::MAX), 3);
    assert_eq!(count(99, usize::MAX), 10);
    assert_eq!(count(99, 0), 1, "always one, or a reader would never get on");
    assert_eq!(count(99, 101), 1, "reached by the first");
    assert_eq!(count(99, 102), 2, "passed by the second");
    assert_eq!(count(2, 1000), 2, "whichever comes first");
}

fn writes_are_counted(store: &dyn Store) {
    let Some(before) = store.writes() else { return };
    assert_eq!(before.begun, before.finished, "nothing is under way");
    store.insert(Tree::Data, b"k", b"v").expect("room");
    store.remove(Tree::Meta, b"k").expect("room");
    let after = store.writes().expect("as before");
    assert!(after.begun >= before.begun + 2, "whatever a reader may see was counted");
    assert_eq!(after.begun, after.finished, "nothing is under way");
    store.get(Tree::Data, b"k").expect("readable");
    assert_eq!(store.writes().expect("as before"), after, "a read is no write");
}

fn stats_follow_the_data(store: &dyn Store) {
    assert_eq!(store.stats().records_estimate, 0);
    for i in 0..50u8 {
        store.insert(Tree::Data, &[i % 25], &[i; 10]).expect("room");
        store.insert(Tree::Meta, &[i], b"").expect("room");
    }
    store.remove(Tree::Data, &[0]).expect("room");
    store.remove(Tree::Data, &[0]).expect("room");
    store.sync().expect("synced");
    let stats = store.stats();
    assert_eq!(stats.records_estimate, 24, "records, overwritten ones once, and no other tree's");
    assert!(stats.disk_bytes > 0);
    assert!(!stats.engine.is_empty());
}

fn concurrent_writers_do_not_disturb_each_other(store: &Arc<dyn Store>) {
    const WRITERS: u8 = 8;
    const KEYS: u16 = 200;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(store);
            thread::spawn(move || {
                for round in 0..2u8 {
                    for i in 0..KEYS {
                        // Neighbours in key order belong to different writers.
                        let key = [&i.to_be_bytes()[..], &[writer]].concat();
                        store.insert(Tree::Data, &key, &[round, writer]).expect("room");
                        let read = store.get(Tree::Data, &key).expect("readable").expect("its own write");
                        assert_eq!(read[..], [round, writer], "nobody else writes this key");
                        if i % 50 == 0 {
                            store.sync().expect("synced");
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("the writer found everything in order");
    }
    let all = store.scan(Tree::Data, b"", None, usize::MAX, usize::MAX).expect("readable");
    assert_eq!(all.len(), usize::from(WRITERS) * usize::from(KEYS));
    assert!(all.iter().all(|(key, value)| value[..] == [1, key[2]]), "the last round's values");
    assert!(all.is_sorted_by(|a, b| a.0 < b.0));
}

fn damage_surfaces_as_corrupt(subject: &dyn Subject) {
    let store = subject.store();
    for key in [b"a", b"b", b"c"] {
        store.insert(Tree::Data, key, b"value").expect("room");
    }
    assert!(!subject.flip_bit(Tree::Data, b"x"), "no such key");
    assert!(subject.flip_bit(Tree::Data, b"b"));
    let error = store.get(Tree::Data, b"b").expect_err("damaged");
    assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("key b")), "{error}");
    let error = store.scan(Tree::Data, b"", None, 10, usize::MAX).expect_err("one of them is damaged");
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    assert_eq!(store.keys(Tree::Data, b"", None, 10).expect("keys are whole"), [b"a", b"b", b"c"].map(|key| &key[..]));
    assert!(store.get(Tree::Data, b"a").expect("not damaged").is_some());
    store.insert(Tree::Data, b"b", b"again").expect("room");
    assert_eq!(store.get(Tree::Data, b"b").expect("repaired").as_deref(), Some(&b"again"[..]));
}

fn what_was_synced_is_there_after_reopening(subject: &mut dyn Subject) {
    let large = vec![7; 1 << 20];
    {
        let store = subject.store();
        for i in 0..500u16 {
            store.insert(Tree::Data, &i.to_be_bytes(), &[1; 50]).expect("room");
        }
        for i in 0..100u16 {
            store.insert(Tree::Data, &i.to_be_bytes(), &[2; 500]).expect("room");
            store.remove(Tree::Data, &(i + 200).to_be_bytes()).expect("room");
        }
        store.insert(Tree::Meta, b"layout", &large).expect("room");
        store.sync().expect("synced");
    }
    subject.reopen();
    let store = subject.store();
    for i in 0..500u16 {
        let value = store.get(Tree::Data, &i.to_be_bytes()).expect("readable");
        let expected = match i {
            0..100 => Some(&[2; 500][..]),
            200..300 => None,
            _ => Some(&[1; 50][..]),
        };
        assert_eq!(value.as_deref(), expected, "{i}");
    }
    assert!(store.get(Tree::Meta, b"layout").expect("readable").is_some_and(|value| value == large));
}

fn what_was_closed_is_there_after_reopening(subject: &mut dyn Subject) {
    let store = subject.store();
    store.insert(Tree::Data, b"k", b"v").expect("room");
    store.close().expect("synced");
    store.close().expect("closing twice is no error");
    assert!(store.get(Tree::Data, b"k").expect("reads go on").is_some());
    drop(store);
    subject.reopen();
    let store = subject.store();
    assert_eq!(store.get(Tree::Data, b"k").expect("readable").as_deref(), Some(&b"v"[..]));
    store.insert(Tree::Data, b"k", b"w").expect("a reopened store takes writes");
}

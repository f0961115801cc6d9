//! A lane's bytes, in pieces. However they are cut, the same frames come out, and none is larger than allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use bytes::Bytes;
use quorate_transport::budget::Budget;
use quorate_transport::frame::{Deframer, Direction, Frame, Received};

const BODY_MAX: usize = 100_000;

fn frames(direction: Direction, data: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut deframer = Deframer::new(direction, BODY_MAX, Budget::unbounded());
    let mut all = Vec::new();
    for piece in data.chunks(piece) {
        deframer.push(Bytes::copy_from_slice(piece));
        loop {
            match deframer.next_frame() {
                Ok(Some(Received::Whole(frame, _))) => all.push(frame),
                Ok(Some(Received::Refused { id })) => panic!("{id} is refused though there is no bound"),
                Ok(None) => break,
                Err(_) => return (all, false),
            }
        }
    }
    (all, true)
}

fuzz_target!(|data: &[u8]| {
    let [first, data @ ..] = data else { return };
    let direction = if first & 1 == 0 { Direction::Request } else { Direction::Answer };
    let whole = frames(direction, data, usize::MAX);
    assert!(whole.0.iter().all(|frame| frame.body.len() <= BODY_MAX));
    assert_eq!(whole, frames(direction, data, 1 + usize::from(first >> 1)));
});

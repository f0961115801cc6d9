//! How requests and answers become bytes of a stream. Pure: no sockets, no clocks.
//!
//! ```text
//!  0        4            12                16
//!  +--------+------------+- - - - - - - - -+-----------------+
//!  | length | id         | timeout in ms   | body            |    all numbers big-endian
//!  +--------+------------+- - - - - - - - -+-----------------+
//!    bit 31: more parts follow    requests only
//! ```
//!
//! A body above [`PART_LEN`] travels in parts, each a frame of its own with the same id, with whole small frames between
//! them: so a small request or answer waits for at most one part of a large one. In each direction of a stream only one
//! body is in parts at a time; a receiver thus never keeps more than one unfinished body a stream.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes of a body that one frame carries: half a millisecond at 1 Gbit/s.
pub const PART_LEN: usize = 64 << 10;

/// Which way frames of a stream go: requests carry a timeout, answers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the one who opened the stream.
    Request,
    /// To the one who opened the stream.
    Answer,
}

impl Direction {
    fn header_len(self) -> usize {
        match self {
            Self::Request => 16,
            Self::Answer => 12,
        }
    }
}

/// A whole request or answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Ties an answer to its request; unique per stream.
    pub id: u64,
    /// How long the caller waits, in milliseconds; 0 in answers.
    pub timeout_ms: u32,
    /// The message.
    pub body: Bytes,
}

/// Cuts a stream of bytes into frames. Memory is bounded by what has been received and by `body_max`, whatever a length
/// field claims.
#[derive(Debug)]
pub struct Deframer {
    direction: Direction,
    body_max: usize,
    buffer: BytesMut,
    partial: Option<Partial>,
    /// Frames and parts so far.
    completed: u64,
}

#[derive(Debug)]
struct Partial {
    id: u64,
    timeout_ms: u32,
    body: BytesMut,
    /// The value of `completed` when its last part came.
    progress: u64,
}

impl Deframer {
    /// For one direction of a stream, with bodies of at most `body_max` bytes.
    pub fn new(direction: Direction, body_max: usize) -> Self {
        Self { direction, body_max, buffer: BytesMut::with_capacity(BUFFER_LEN), partial: None, completed: 0 }
    }

    /// Takes in what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; nothing if more bytes are needed.
    ///
    /// # Errors
    /// When the other end breaks the protocol. Nothing further can be made of the stream then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let header_len = self.direction.header_len();
            let Some(mut header) = self.buffer.get(..header_len) else { return Ok(None) };
            let word = header.get_u32();
            let id = header.get_u64();
            let timeout_ms = if self.direction == Direction::Request { header.get_u32() } else { 0 };
            let (more, len) = (word & MORE != 0, (word & !MORE) as usize);
            if len > PART_LEN {
                return Err(FrameError(format!("a frame of {len} bytes, at most {PART_LEN} are allowed")));
            }
            let before = self.partial.as_ref().filter(|partial| partial.id == id).map(|partial| partial.body.len());
            if before.unwrap_or(0) + len > self.body_max {
                return Err(FrameError(format!("a message of more than {} bytes", self.body_max)));
            }
            if more && len == 0 {
                return Err(FrameError("an empty part".into()));
            }
            if more && before.is_none() && self.partial.is_some() {
                return Err(FrameError("two messages in parts at a time".into()));
            }
            if self.buffer.len() < header_len + len {
                return Ok(None);
            }
            self.buffer.advance(header_len);
            let part = self.buffer.split_to(len);
            self.completed += 1;
            match (before, more) {
                (None, false) => return Ok(Some(Frame { id, timeout_ms, body: part.freeze() })),
                (None, true) => {
                    let body = BytesMut::from(&part[..]);
                    self.partial = Some(Partial { id, timeout_ms, body, progress: self.completed });
                }
                (Some(_), more) => {
                    let partial = self.partial.as_mut().expect("the length of its body was just read");
                    partial.body.extend_from_slice(&part);
                    partial.progress = self.completed;
                    if !more {
                        let Partial { id, timeout_ms, body, .. } = self.partial.take().expect("as above");
                        return Ok(Some(Frame { id, timeout_ms, body: body.freeze() }));
                    }
                }
            }
        }
    }

    /// Whether the other end owes the rest of something that it has begun; the number changes whenever it makes progress
    /// with it, so that a stream which is stuck shows by a number that stays.
    pub fn owed(&self) -> Option<u64> {
        match &self.partial {
            Some(partial) => Some(partial.progress),
            None => (!self.buffer.is_empty()).then_some(self.completed),
        }
    }
}

/// Collects frames into as few writes as possible, and cuts large bodies into parts.
#[derive(Debug)]
pub struct Framer {
    direction: Direction,
    buffer: BytesMut,
    chunks: Vec<Bytes>,
    large: VecDeque<Large>,
}

#[derive(Debug)]
struct Large {
    id: u64,
    timeout_ms: u32,
    rest: Bytes,
}

impl Framer {
    /// For one direction of a stream.
    pub fn new(direction: Direction) -> Self {
        Self { direction, buffer: BytesMut::new(), chunks: Vec::new(), large: VecDeque::new() }
    }

    /// Adds a message.
    pub fn push(&mut self, id: u64, timeout_ms: u32, body: Bytes) {
        if body.len() > PART_LEN {
            self.large.push_back(Large { id, timeout_ms, rest: body });
        } else {
            self.frame(id, timeout_ms, body, false);
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.large.is_empty() && self.chunks.is_empty() && self.buffer.is_empty()
    }

    /// Whether so many large bodies wait already that whoever fills it should wait as well: a part goes out at a time, so
    /// that without this bound bodies would pile up here, past every bound on what is under way.
    pub fn is_backed_up(&self) -> bool {
        self.large.len() >= LARGE_MAX
    }

    /// What to write next: all small frames, and one part of the first large one.
    pub fn take(&mut self) -> Vec<Bytes> {
        if let Some(mut first) = self.large.pop_front() {
            let part = first.rest.split_to(first.rest.len().min(PART_LEN));
            self.frame(first.id, first.timeout_ms, part, !first.rest.is_empty());
            if !first.rest.is_empty() {
                self.large.push_front(first);
            }
        }
        self.seal();
        std::mem::take(&mut self.chunks)
    }

    fn frame(&mut self, id: u64, timeout_ms: u32, body: Bytes, more: bool) {
        let word = body.len() as u32 | if more { MORE } else { 0 };
        self.buffer.put_u32(word);
        self.buffer.put_u64(id);
        if self.direction == Direction::Request {
            self.buffer.put_u32(timeout_ms);
        }
        if body.len() <= COPY_MAX {
            self.buffer.extend_from_slice(&body);
        } else {
            self.seal();
            self.chunks.push(body);
        }
    }

    fn seal(&mut self) {
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.split().freeze());
        }
    }
}

/// Bytes that are no frames: the other end breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FrameError(String);

/// In the length word: more parts of this body follow.
const MORE: u32 = 1 << 31;

/// Bodies up to this are copied into a common chunk, which is cheaper than a chunk of their own.
const COPY_MAX: usize = 2 << 10;

/// Large bodies that wait for their turn: small frames pass so many of them, and wait behind more.
const LARGE_MAX: usize = 16;

/// What a stream's buffer begins with: some ten packets.
const BUFFER_LEN: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(len: usize, fill: u8) -> Bytes {
        vec![fill; len].into()
    }

    fn frames(deframer: &mut Deframer) -> Result<Vec<Frame>, FrameError> {
        let mut all = Vec::new();
        while let Some(frame) = deframer.next_frame()? {
            all.push(frame);
        }
        Ok(all)
    }

    #[test]
    fn a_small_frame_overtakes_a_large_one() {
        let mut framer = Framer::new(Direction::Request);
        framer.push(1, 100, body(3 * PART_LEN + 5, 1));
        let mut wire = framer.take().concat();
        framer.push(2, 200, body(10, 2));
        while !framer.is_empty() {
            wire.extend(framer.take().concat());
        }
        let mut deframer = Deframer::new(Direction::Request, 1 << 20);
        deframer.push(&wire);
        let all = frames(&mut deframer).expect("frames");
        assert_eq!(all.iter().map(|frame| (frame.id, frame.timeout_ms)).collect::<Vec<_>>(), [(2, 200), (1, 100)]);
        assert_eq!(all[1].body, body(3 * PART_LEN + 5, 1));
        assert_eq!(deframer.owed(), None);
    }

    #[test]
    fn a_large_body_that_is_stuck_shows_although_small_frames_flow() {
        let mut framer = Framer::new(Direction::Answer);
        framer.push(1, 0, body(2 * PART_LEN, 1));
        let mut deframer = Deframer::new(Direction::Answer, 1 << 20);
        deframer.push(&framer.take().concat());
        assert!(frames(&mut deframer).expect("a part").is_empty());
        let owed = deframer.owed();
        assert!(owed.is_some());
        let mut others = Framer::new(Direction::Answer);
        others.push(2, 0, body(1, 2));
        deframer.push(&others.take().concat());
        assert_eq!(frames(&mut deframer).expect("a frame").len(), 1);
        assert_eq!(deframer.owed(), owed, "the large body has made no progress");
    }

    #[test]
    fn what_breaks_the_protocol_is_refused_before_it_is_received() {
        let header = |word: u32, id: u64| [word.to_be_bytes().as_slice(), &id.to_be_bytes()].concat();
        for (bytes, expected) in [
            (header(PART_LEN as u32 + 1, 1), "at most 65536"),
            (header(1001, 1), "more than 1000 bytes"),
            (header(MORE, 1), "an empty part"),
            ([header(MORE | 1, 1), vec![0], header(MORE | 1, 2)].concat(), "two messages in parts"),
        ] {
            let mut deframer = Deframer::new(Direction::Answer, 1000);
            deframer.push(&bytes);
            let error = frames(&mut deframer).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_frames_or_refused(bytes: Vec<u8>, request: bool, body_max in 0usize..200) {
            let direction = if request { Direction::Request } else { Direction::Answer };
            let mut deframer = Deframer::new(direction, body_max);
            deframer.push(&bytes);
            if let Ok(all) = frames(&mut deframer) {
                prop_assert!(all.iter().all(|frame| frame.body.len() <= body_max));
            }
        }

        #[test]
        fn what_was_framed_comes_out_however_it_is_cut(
            lens in prop::collection::vec(prop_oneof![0usize..5000, 60_000usize..200_000], 1..8),
            cut in 1usize..100_000,
        ) {
            let mut framer = Framer::new(Direction::Request);
            for (id, len) in lens.iter().enumerate() {
                framer.push(id as u64, 7, body(*len, id as u8));
            }
            let mut deframer = Deframer::new(Direction::Request, 200_000);
            let mut got = Vec::new();
            while !framer.is_empty() {
                for piece in framer.take().concat().chunks(cut) {
                    deframer.push(piece);
                    got.extend(frames(&mut deframer).expect("frames"));
                }
            }
            got.sort_by_key(|frame| frame.id);
            prop_assert_eq!(got.len(), lens.len());
            for (frame, len) in got.iter().zip(&lens) {
                prop_assert_eq!(&frame.body, &body(*len, frame.id as u8));
            }
            prop_assert_eq!(deframer.owed(), None);
        }
    }
}

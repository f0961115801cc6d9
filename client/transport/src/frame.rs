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

use crate::budget::{Budget, Charge};

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

/// What has come of a message.
#[derive(Debug)]
pub enum Received {
    /// All of it, and what it takes of the [`Deframer`]'s budget.
    Whole(Frame, Charge),
    /// There is no room for it. The rest of it is thrown away as it comes.
    Refused {
        /// Its id.
        id: u64,
    },
}

/// What the other end owes: the rest of something that it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Tells one unfinished thing from the next.
    pub which: u64,
    /// How much of it has come, in bytes; only the difference between two looks means anything.
    pub bytes: u64,
    /// How long its caller waits from its first byte on; nothing for an answer, and as long as that is not known.
    pub timeout_ms: Option<u32>,
}

/// Cuts a stream of bytes into frames.
///
/// Memory is bounded by `body_max` and by a [`Budget`], whatever length fields claim: a body above [`FREE_LEN`] is taken from the
/// budget before a byte of it is kept, a part at a time; one that there is no room for is told of once, and thrown away as it
/// comes.
#[derive(Debug)]
pub struct Deframer {
    direction: Direction,
    body_max: usize,
    budget: Budget,
    /// What was received and not looked at yet.
    input: VecDeque<Bytes>,
    /// The bytes of a header that has not come whole.
    header: [u8; HEADER_MAX],
    header_len: usize,
    /// The frame that is being received.
    current: Option<Current>,
    partial: Option<Partial>,
    /// Frames and parts so far.
    completed: u64,
    /// Bytes so far of whatever is unfinished.
    progress: u64,
}

/// A frame whose header has come.
#[derive(Debug)]
struct Current {
    id: u64,
    timeout_ms: u32,
    /// It is a part of a body, and not the last one.
    more: bool,
    /// Bytes that have not come yet.
    left: usize,
    /// Nothing if it belongs to the partial body.
    whole: Option<Body>,
}

#[derive(Debug)]
struct Partial {
    id: u64,
    timeout_ms: u32,
    /// Its length so far, also of one that is thrown away.
    len: usize,
    body: Body,
    /// The value of `completed` when it began.
    which: u64,
}

/// The bytes of a body, or that they are thrown away.
#[derive(Debug)]
enum Body {
    Kept(Vec<u8>, Charge),
    Refused,
}

impl Body {
    /// Makes room for so many bytes in all.
    fn reserve(&mut self, budget: &Budget, len: usize) {
        let Self::Kept(bytes, charge) = self else { return };
        if len <= bytes.capacity() {
            return;
        }
        // Twice as much each time, so that a body is copied once on an average, and counted as what it takes.
        let capacity = if bytes.capacity() == 0 { len } else { len.max(2 * bytes.capacity()) };
        let fits = match charge.bytes() {
            _ if capacity <= FREE_LEN => true,
            0 => budget.try_take(capacity).map(|taken| *charge = taken).is_some(),
            _ => charge.try_grow(capacity),
        };
        match fits {
            true => bytes.reserve_exact(capacity - bytes.len()),
            false => *self = Self::Refused,
        }
    }

    fn push(&mut self, more: &[u8]) {
        if let Self::Kept(bytes, _) = self {
            bytes.extend_from_slice(more);
        }
    }
}

impl Deframer {
    /// For one direction of a stream, with bodies of at most `body_max` bytes.
    pub fn new(direction: Direction, body_max: usize, budget: Budget) -> Self {
        Self {
            direction,
            body_max,
            budget,
            input: VecDeque::new(),
            header: [0; HEADER_MAX],
            header_len: 0,
            current: None,
            partial: None,
            completed: 0,
            progress: 0,
        }
    }

    /// Takes in what was received. It is kept as it is until [`next_frame`](Self::next_frame) has looked at it.
    pub fn push(&mut self, bytes: Bytes) {
        self.input.push_back(bytes);
    }

    /// What has come of the next message; nothing if more bytes are needed.
    ///
    /// # Errors
    /// When the other end breaks the protocol. Nothing further can be made of the stream then.
    pub fn next_frame(&mut self) -> Result<Option<Received>, FrameError> {
        loop {
            if self.current.is_none() {
                if !self.read_header() {
                    return Ok(None);
                }
                if let Some(refused) = self.begin()? {
                    return Ok(Some(refused));
                }
            }
            if !self.read_body() {
                return Ok(None);
            }
            if let Some(whole) = self.end() {
                return Ok(Some(whole));
            }
        }
    }

    /// Copies what was not looked at yet, and lets go of the packets in which it came: to be called before a long wait. Tells how many
    /// bytes that are.
    pub fn detach(&mut self) -> usize {
        let rest: Vec<&[u8]> = self.input.iter().map(|bytes| &bytes[..]).collect();
        let rest = Bytes::from(rest.concat());
        let len = rest.len();
        self.input = if rest.is_empty() { VecDeque::new() } else { VecDeque::from([rest]) };
        len
    }

    /// Throws away the unfinished body, and the rest of it as it comes.
    pub fn discard(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.body = Body::Refused;
        } else if let Some(Current { whole: Some(body), .. }) = &mut self.current {
            *body = Body::Refused;
        }
    }

    /// How much of an unfinished body in parts has come.
    pub fn partial_len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.len)
    }

    /// What the other end owes, if it does.
    pub fn owed(&self) -> Option<Owed> {
        let (which, timeout_ms) = match (&self.partial, &self.current) {
            (Some(partial), _) => (partial.which, Some(partial.timeout_ms)),
            (None, Some(current)) => (self.completed, Some(current.timeout_ms)),
            (None, None) if self.header_len > 0 => (self.completed, None),
            (None, None) => return None,
        };
        let timeout_ms = timeout_ms.filter(|_| self.direction == Direction::Request);
        Some(Owed { which, bytes: self.progress, timeout_ms })
    }

    /// Completes the header if enough bytes are there.
    fn read_header(&mut self) -> bool {
        let want = self.direction.header_len();
        while self.header_len < want {
            let Some(first) = self.input.front_mut() else { return false };
            let len = first.len().min(want - self.header_len);
            first.copy_to_slice(&mut self.header[self.header_len..self.header_len + len]);
            self.header_len += len;
            if self.partial.is_none() {
                self.progress += len as u64;
            }
            if first.is_empty() {
                self.input.pop_front();
            }
        }
        true
    }

    /// Begins the frame of the header that is there; tells of a message that there is no room for.
    fn begin(&mut self) -> Result<Option<Received>, FrameError> {
        let mut header = &self.header[..];
        let word = header.get_u32();
        let id = header.get_u64();
        let timeout_ms = if self.direction == Direction::Request { header.get_u32() } else { 0 };
        let (more, len) = (word & MORE != 0, (word & !MORE) as usize);
        if len > PART_LEN {
            return Err(FrameError(format!("a frame of {len} bytes, at most {PART_LEN} are allowed")));
        }
        let before = self.partial.as_ref().filter(|partial| partial.id == id).map(|partial| partial.len);
        if before.unwrap_or(0) + len > self.body_max {
            return Err(FrameError(format!("a message of more than {} bytes", self.body_max)));
        }
        if more && len == 0 {
            return Err(FrameError("an empty part".into()));
        }
        if more && before.is_none() && self.partial.is_some() {
            return Err(FrameError("two messages in parts at a time".into()));
        }
        self.header_len = 0;
        let new = || Body::Kept(Vec::new(), Charge::none());
        let whole = (before.is_none() && !more).then(new);
        if before.is_none() && more {
            self.partial = Some(Partial { id, timeout_ms, len: 0, body: new(), which: self.completed });
        }
        let mut current = Current { id, timeout_ms, more, left: len, whole };
        let (body, before) = match (&mut current.whole, &mut self.partial) {
            (Some(body), _) => (body, 0),
            (None, Some(partial)) => (&mut partial.body, partial.len),
            (None, None) => {
                unreachable!("what is not whole belongs to a partial body, which was made if there was none")
            }
        };
        let kept = matches!(body, Body::Kept(..));
        body.reserve(&self.budget, before + len);
        let refused = kept && matches!(body, Body::Refused);
        self.current = Some(current);
        Ok(refused.then_some(Received::Refused { id }))
    }

    /// Takes in what is there of the current frame; tells whether that was the rest of it.
    fn read_body(&mut self) -> bool {
        let current = self.current.as_mut().expect("it is called within a frame");
        while current.left > 0 {
            let Some(first) = self.input.front_mut() else { return false };
            let len = first.len().min(current.left);
            let (body, counts) = match (&mut current.whole, &mut self.partial) {
                // Beside a body in parts a small frame is no progress.
                (Some(body), partial) => (body, partial.is_none()),
                (None, Some(partial)) => {
                    partial.len += len;
                    (&mut partial.body, true)
                }
                (None, None) => unreachable!("what is not whole belongs to a partial body"),
            };
            body.push(&first[..len]);
            first.advance(len);
            current.left -= len;
            if counts {
                self.progress += len as u64;
            }
            if first.is_empty() {
                self.input.pop_front();
            }
        }
        true
    }

    /// Ends the current frame; gives the message if this was the end of one that was kept.
    fn end(&mut self) -> Option<Received> {
        let Current { id, timeout_ms, more, whole, .. } = self.current.take().expect("it is called within a frame");
        self.completed += 1;
        let (body, timeout_ms) = match whole {
            Some(body) => (body, timeout_ms),
            None if more => return None,
            None => {
                let partial = self.partial.take().expect("what is not whole belongs to a partial body");
                (partial.body, partial.timeout_ms)
            }
        };
        match body {
            Body::Kept(bytes, charge) => Some(Received::Whole(Frame { id, timeout_ms, body: bytes.into() }, charge)),
            Body::Refused => None,
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
pub(crate) const COPY_MAX: usize = 2 << 10;

/// Large bodies that wait for their turn: small frames pass so many of them, and wait behind more.
const LARGE_MAX: usize = 16;

/// Bodies up to this are not taken from a [`Deframer`]'s budget: whoever reads the stream has to allow for one of them.
pub const FREE_LEN: usize = 4 << 10;

/// The longest header.
const HEADER_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(len: usize, fill: u8) -> Bytes {
        vec![fill; len].into()
    }

    fn deframer(direction: Direction, body_max: usize) -> Deframer {
        Deframer::new(direction, body_max, Budget::unbounded())
    }

    fn frames(deframer: &mut Deframer) -> Result<Vec<Frame>, FrameError> {
        let mut all = Vec::new();
        while let Some(received) = deframer.next_frame()? {
            match received {
                Received::Whole(frame, _) => all.push(frame),
                Received::Refused { id } => panic!("{id} is refused though there is no bound"),
            }
        }
        Ok(all)
    }

    /// The whole wire form of one message.
    fn wire(direction: Direction, id: u64, body: Bytes) -> Vec<u8> {
        let mut framer = Framer::new(direction);
        framer.push(id, 7, body);
        let mut wire = Vec::new();
        while !framer.is_empty() {
            wire.extend(framer.take().concat());
        }
        wire
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
        let mut deframer = deframer(Direction::Request, 1 << 20);
        deframer.push(wire.into());
        let all = frames(&mut deframer).expect("frames");
        assert_eq!(all.iter().map(|frame| (frame.id, frame.timeout_ms)).collect::<Vec<_>>(), [(2, 200), (1, 100)]);
        assert_eq!(all[1].body, body(3 * PART_LEN + 5, 1));
        assert_eq!(deframer.owed(), None);
    }

    #[test]
    fn a_large_body_that_is_stuck_shows_although_small_frames_flow() {
        let mut framer = Framer::new(Direction::Answer);
        framer.push(1, 0, body(2 * PART_LEN, 1));
        let mut deframer = deframer(Direction::Answer, 1 << 20);
        deframer.push(framer.take().concat().into());
        assert!(frames(&mut deframer).expect("a part").is_empty());
        let owed = deframer.owed();
        assert!(owed.is_some());
        let mut others = Framer::new(Direction::Answer);
        others.push(2, 0, body(1, 2));
        deframer.push(others.take().concat().into());
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
            let mut deframer = deframer(Direction::Answer, 1000);
            deframer.push(bytes.into());
            let error = frames(&mut deframer).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_frames_or_refused(bytes: Vec<u8>, request: bool, body_max in 0usize..200) {
            let direction = if request { Direction::Request } else { Direction::Answer };
            let mut deframer = deframer(direction, body_max);
            deframer.push(bytes.into());
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
            let budget = Budget::new(1 << 20);
            let mut deframer = Deframer::new(Direction::Request, 200_000, budget.clone());
            let mut got = Vec::new();
            while !framer.is_empty() {
                for piece in framer.take().concat().chunks(cut) {
                    deframer.push(Bytes::copy_from_slice(piece));
                    if cut.is_multiple_of(3) {
                        deframer.detach();
                    }
                    got.extend(frames(&mut deframer).expect("frames"));
                }
            }
            got.sort_by_key(|frame| frame.id);
            prop_assert_eq!(got.len(), lens.len());
            for (frame, len) in got.iter().zip(&lens) {
                prop_assert_eq!(&frame.body, &body(*len, frame.id as u8));
            }
            prop_assert_eq!(deframer.owed(), None);
            prop_assert_eq!(budget.used(), 0);
        }

        #[test]
        fn whatever_does_not_fit_is_refused_and_what_follows_comes_out(
            lens in prop::collection::vec(prop_oneof![0usize..5000, 60_000usize..200_000], 1..8),
            cut in 1usize..100_000,
            room in prop_oneof![Just(1u64), 1u64 << 10..200 << 10],
        ) {
            let budget = Budget::new(room);
            // What a budget has not got is given to nobody as long as this is there.
            let _crowd = budget.try_take(1).expect("there is room");
            let mut deframer = Deframer::new(Direction::Request, 200_000, budget.clone());
            let (mut got, mut refused, mut most) = (Vec::new(), Vec::new(), 0);
            for (id, len) in lens.iter().enumerate() {
                for piece in wire(Direction::Request, id as u64, body(*len, id as u8)).chunks(cut) {
                    deframer.push(Bytes::copy_from_slice(piece));
                    while let Some(received) = deframer.next_frame().expect("frames") {
                        match received {
                            Received::Whole(frame, _charge) => got.push(frame),
                            Received::Refused { id } => refused.push(id),
                        }
                        most = most.max(budget.used());
                    }
                }
            }
            prop_assert!(most <= room.max(1 << 10));
            prop_assert_eq!(got.len() + refused.len(), lens.len());
            for frame in &got {
                prop_assert_eq!(&frame.body, &body(lens[frame.id as usize], frame.id as u8));
            }
            for id in refused {
                prop_assert!(lens[id as usize] > FREE_LEN);
            }
            prop_assert_eq!(deframer.owed(), None);
        }
    }

    #[test]
    fn a_body_that_is_thrown_away_gives_its_room_back_and_is_told_of_once() {
        let whole = Budget::new(200 << 10);
        let _crowd = whole.try_take(1).expect("there is room");
        let budget = whole.share(200 << 10);
        let mut deframer = Deframer::new(Direction::Request, 1 << 20, budget.clone());
        let large = wire(Direction::Request, 1, body(4 * PART_LEN, 1));
        let (begin, rest) = large.split_at(large.len() - 10);
        deframer.push(Bytes::copy_from_slice(begin));
        let refused = deframer.next_frame().expect("a part");
        assert!(matches!(refused, Some(Received::Refused { id: 1 })), "{refused:?}");
        assert_eq!(budget.used(), 0, "nothing is kept of what is refused");
        assert!(deframer.next_frame().expect("parts").is_none());
        assert!(deframer.owed().is_some(), "the rest of it is owed all the same");
        deframer.push(Bytes::copy_from_slice(rest));
        assert!(deframer.next_frame().expect("the last part").is_none());
        assert_eq!(deframer.owed(), None);

        let begun = wire(Direction::Request, 2, body(2 * PART_LEN, 1));
        deframer.push(Bytes::copy_from_slice(&begun[..PART_LEN + 100]));
        assert!(deframer.next_frame().expect("a part").is_none());
        assert!(budget.used() >= PART_LEN as u64);
        deframer.discard();
        assert_eq!(budget.used(), 0);
        deframer.push(Bytes::copy_from_slice(&begun[PART_LEN + 100..]));
        assert!(deframer.next_frame().expect("the last part").is_none());
    }

    #[test]
    fn a_frame_that_trickles_in_owes_the_same_thing_until_it_is_whole() {
        let mut deframer = deframer(Direction::Request, 1000);
        let bytes = [wire(Direction::Request, 1, body(5, 1)), wire(Direction::Request, 2, body(5, 2))].concat();
        let mut owed = Vec::new();
        for byte in bytes {
            deframer.push(Bytes::copy_from_slice(&[byte]));
            frames(&mut deframer).expect("frames");
            owed.extend(deframer.owed());
        }
        // All but the last byte of each: 16 bytes of header and 5 of the body.
        let which: Vec<u64> = owed.iter().map(|owed| owed.which).collect();
        assert_eq!(which, [[0; 20], [1; 20]].concat());
        assert!(owed.windows(2).all(|pair| pair[0].bytes < pair[1].bytes), "each byte is progress: {owed:?}");
        assert_eq!((owed[0].timeout_ms, owed[19].timeout_ms), (None, Some(7)));
    }
}

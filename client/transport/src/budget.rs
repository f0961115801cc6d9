//! Bounds on bytes: a whole, and shares of it that are bounded themselves.
//!
//! What is taken from a share is taken from every budget above it as well, or from none of them. It is given back when the
//! [`Charge`] is dropped, wherever that happens: a charge that [guards](Charge::guard) bytes goes with the last reference to
//! them, so that bytes which a task, a queue or a library still holds are still counted.
//!
//! Whoever waits is served in the order in which it came, and nobody passes a waiter. To be free of deadlocks, nobody may wait
//! for a budget while it holds a part of the same one: see [`Room::take`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use quorate_wire::sometimes;

/// A bound on bytes. Clones are the same budget.
#[derive(Clone)]
pub struct Budget(Option<Arc<Level>>);

struct Level {
    parent: Option<Arc<Level>>,
    room: Arc<Semaphore>,
    /// How many units there are.
    units: u32,
}

impl Budget {
    /// No bound at all.
    pub const fn unbounded() -> Self {
        Self(None)
    }

    /// So many bytes; at least one unit of 1 KiB, at most 2 TiB.
    pub fn new(bytes: u64) -> Self {
        Self(Some(Level::new(None, bytes)))
    }

    /// A budget of its own within this one.
    pub fn share(&self, bytes: u64) -> Self {
        Self(Some(Level::new(self.0.clone(), bytes)))
    }

    /// Takes so many bytes, once there is room for them here and in all budgets above. Whoever wants more than a budget has
    /// takes all of it, and so has it alone.
    pub async fn take(&self, bytes: usize) -> Charge {
        let mut charge = Charge::new(self.0.clone(), bytes);
        for (level, permit) in charge.level.iter().flat_map(|leaf| leaf.up()).zip(&mut charge.permits) {
            let taken = level.room.clone().acquire_many_owned(level.units_of(bytes)).await;
            *permit = Some(taken.expect("the semaphore is never closed"));
        }
        charge
    }

    /// Takes so many bytes if there is room for them now and nobody waits for it.
    pub fn try_take(&self, bytes: usize) -> Option<Charge> {
        let mut charge = Charge::new(self.0.clone(), 0);
        charge.try_grow(bytes).then_some(charge)
    }

    /// How many bytes it has; nothing if it is unbounded.
    pub fn max(&self) -> Option<u64> {
        self.0.as_ref().map(|level| u64::from(level.units) * UNIT as u64)
    }

    /// How many bytes are taken; an unbounded budget does not count.
    pub fn used(&self) -> u64 {
        self.0.as_ref().map_or(0, |level| (level.units as usize - level.room.available_permits()) as u64 * UNIT as u64)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max() {
            Some(max) => write!(f, "Budget({} of {max} bytes)", self.used()),
            None => f.write_str("Budget(unbounded)"),
        }
    }
}

impl Level {
    fn new(parent: Option<Arc<Self>>, bytes: u64) -> Arc<Self> {
        let units = u32::try_from(bytes / UNIT as u64).unwrap_or(u32::MAX).clamp(1, UNITS_MAX);
        let level = Arc::new(Self { parent, room: Arc::new(Semaphore::new(units as usize)), units });
        assert!(level.up().count() <= LEVELS_MAX, "budgets are nested {LEVELS_MAX} deep at most");
        level
    }

    /// This one and all above it.
    fn up(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |level| level.parent.as_ref())
    }

    /// What so many bytes take here. A message that is larger than the whole budget must get through all the same.
    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }
}

/// Bytes that were taken from a [`Budget`]; given back when it is dropped.
#[must_use = "what is taken is given back at once if it is not kept"]
pub struct Charge {
    level: Option<Arc<Level>>,
    bytes: usize,
    /// One for each budget, the innermost first.
    permits: [Option<OwnedSemaphorePermit>; LEVELS_MAX],
}

impl Charge {
    fn new(level: Option<Arc<Level>>, bytes: usize) -> Self {
        Self { level, bytes, permits: [const { None }; LEVELS_MAX] }
    }

    /// Nothing of an unbounded budget.
    pub fn none() -> Self {
        Self::new(None, 0)
    }

    fn is_of(&self, budget: &Budget) -> bool {
        match (&self.level, &budget.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        }
    }

    /// How many bytes it is good for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it good for so many bytes in all, if there is room for the rest now; else it stays as it is.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let mut more: [Option<OwnedSemaphorePermit>; LEVELS_MAX] = [const { None }; LEVELS_MAX];
        let levels = self.level.iter().flat_map(|leaf| leaf.up());
        for ((level, have), more) in levels.zip(&self.permits).zip(&mut more) {
            let have = have.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let want = (level.units_of(bytes) as usize).saturating_sub(have);
            match level.room.clone().try_acquire_many_owned(want as u32) {
                Ok(permit) => *more = Some(permit),
                Err(_) => return false,
            }
        }
        for (have, more) in self.permits.iter_mut().zip(more) {
            match (have.as_mut(), more) {
                (Some(have), Some(more)) => have.merge(more),
                (None, more) => *have = more,
                (Some(_), None) => {}
            }
        }
        self.bytes = self.bytes.max(bytes);
        true
    }

    /// Parts it in two: the one that is returned is good for so many bytes or for all that there are.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        let mut part = Self::new(self.level.clone(), bytes);
        self.bytes -= bytes;
        let levels = self.level.iter().flat_map(|leaf| leaf.up());
        for ((level, have), part) in levels.zip(&mut self.permits).zip(&mut part.permits) {
            // Rounded up in favour of the part; of what a larger message has taken, what is over stays.
            let Some(have) = have else { continue };
            *part = have.split((level.units_of(bytes) as usize).min(have.num_permits()));
        }
        part
    }

    /// Has these bytes take the charge with them: it is given back when nobody refers to any of them any more.
    pub fn guard(self, bytes: Bytes) -> Bytes {
        if self.level.is_none() {
            return bytes;
        }
        Bytes::from_owner(Guarded { bytes, _charge: self })
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({} bytes)", self.bytes)
    }
}

struct Guarded {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A budget, and another one beside it for messages that would fill it.
///
/// Whatever is small never waits for something large, and something large never for the many small ones: each kind waits for
/// its own only.
#[derive(Debug, Clone)]
pub struct Pot {
    /// For messages of up to `large_from` bytes.
    pub small: Budget,
    /// For all others. Shared by whoever is to wait for each other.
    pub large: Budget,
    /// Messages above this are large. It also bounds what one request may take of `small` in pieces: a request that has all of
    /// that to itself gets as much, as one message of that size would.
    pub large_from: usize,
}

impl Pot {
    /// No bound at all.
    pub const fn unbounded() -> Self {
        Self { small: Budget::unbounded(), large: Budget::unbounded(), large_from: usize::MAX }
    }

    /// The budget of a message of so many bytes.
    pub fn of(&self, bytes: usize) -> &Budget {
        if bytes > self.large_from { &self.large } else { &self.small }
    }
}

/// What one request may use for what it reads and for its answer. Clones are the same room: it is free again when the last one
/// is dropped and the answer has departed.
#[derive(Clone)]
pub struct Room(Arc<RoomInner>);

struct RoomInner {
    pot: Pot,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    charges: Vec<Charge>,
    bytes: usize,
    /// There was no room for something.
    short: bool,
}

/// There is no room for what a request needs: it is to be refused as not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

impl Room {
    /// In a pot, with nothing taken yet.
    pub fn new(pot: Pot) -> Self {
        Self(Arc::new(RoomInner { pot, taken: Mutex::default() }))
    }

    /// Without a bound.
    pub fn unbounded() -> Self {
        Self::new(Pot::unbounded())
    }

    /// How many bytes are taken.
    pub fn taken(&self) -> usize {
        self.lock().bytes
    }

    /// Whether there was no room for something that it wanted.
    pub fn was_short(&self) -> bool {
        self.lock().short
    }

    /// Takes so many bytes more. Waits for them until `until`, but only if nothing is taken yet: two requests that hold what the other
    /// one waits for would wait for ever. So whoever turns out to need more [starts again](Self::release), and holds none of the
    /// bytes that it has no room for.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing more is taken then.
    pub async fn take(&self, bytes: usize, until: Instant) -> Result<(), NoRoom> {
        if self.taken() > 0 {
            return self.try_take(bytes);
        }
        match self.0.pot.of(bytes).try_take(bytes) {
            Some(charge) => self.lock().add(charge, bytes),
            None => {
                sometimes!("budget: a request waited for room");
                match timeout_at(until, self.0.pot.of(bytes).take(bytes)).await {
                    Ok(charge) => self.lock().add(charge, bytes),
                    Err(_) => {
                        self.lock().short = true;
                        return Err(NoRoom);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes so many bytes more if there is room for them now.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing more is taken then.
    pub fn try_take(&self, bytes: usize) -> Result<(), NoRoom> {
        let mut taken = self.lock();
        let budget = self.0.pot.of(taken.bytes + bytes);
        // All that is of one budget is one charge: what is larger than the whole of it gets through in pieces too.
        let fits = match taken.charges.last_mut().filter(|last| last.is_of(budget)) {
            Some(last) => last.try_grow(last.bytes() + bytes),
            None => budget.try_take(bytes).map(|charge| taken.charges.push(charge)).is_some(),
        };
        if !fits {
            sometimes!("budget: a request was refused for want of room");
            taken.short = true;
            return Err(NoRoom);
        }
        taken.bytes += bytes;
        Ok(())
    }

    /// Whether so many bytes are taken or can be taken now, but for `free` ones.
    pub fn covers(&self, bytes: usize, free: usize) -> bool {
        let taken = self.taken();
        bytes <= free.max(taken) || self.try_take(bytes - taken).is_ok()
    }

    /// Gives back all that is taken.
    pub fn release(&self) {
        let mut taken = self.lock();
        taken.bytes = 0;
        let given_back = std::mem::take(&mut taken.charges);
        drop(taken);
        drop(given_back);
    }

    /// What of it an answer of so many bytes takes with it.
    pub fn split(&self, bytes: usize) -> Vec<Charge> {
        let mut taken = self.lock();
        let (mut left, mut parts) = (bytes.min(taken.bytes), Vec::new());
        taken.bytes -= left;
        while left > 0 {
            let mut last = taken.charges.pop().expect("the charges add up to what is taken");
            let part = last.split(left);
            left -= part.bytes();
            parts.push(part);
            if last.bytes() > 0 {
                taken.charges.push(last);
            }
        }
        parts
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().expect("nothing panics while it holds this lock")
    }
}

impl Taken {
    fn add(&mut self, charge: Charge, bytes: usize) {
        self.bytes += bytes;
        self.charges.push(charge);
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({} bytes taken)", self.taken())
    }
}

/// Bytes are counted in units of so many, rounded up.
const UNIT: usize = 1 << 10;

/// Half of what a `u32` counts: 2 TiB.
const UNITS_MAX: u32 = u32::MAX / 2;

/// All clients, one client, one of its connections.
const LEVELS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KIB: usize = 1 << 10;

    #[test]
    fn a_share_takes_from_the_whole_and_gives_back_to_it() {
        let whole = Budget::new(10 << 10);
        let (one, other) = (whole.share(8 << 10), whole.share(8 << 10));
        let first = one.try_take(6 * KIB + 1).expect("there is room");
        assert_eq!((one.used(), whole.used(), other.used()), (7 << 10, 7 << 10, 0), "units are rounded up");
        assert!(other.try_take(4 * KIB).is_none(), "the whole has room for three");
        assert_eq!((whole.used(), other.used()), (7 << 10, 0), "what was refused is taken nowhere");
        let second = other.try_take(3 * KIB).expect("there is room");
        drop(first);
        assert_eq!((one.used(), whole.used()), (0, 3 << 10));
        drop(second);
        assert_eq!((whole.used(), other.used()), (0, 0));
    }

    #[test]
    fn what_is_larger_than_a_budget_has_it_alone() {
        let whole = Budget::new(4 << 10);
        let share = whole.share(2 << 10);
        let small = share.try_take(1).expect("there is room");
        assert!(share.try_take(1 << 20).is_none());
        drop(small);
        let large = share.try_take(1 << 20).expect("it is alone");
        assert!(share.try_take(1).is_none() && whole.try_take(1).is_none());
        drop(large);
        assert_eq!((whole.used(), share.used()), (0, 0));
    }

    #[test]
    fn a_charge_grows_and_is_parted_and_nothing_is_lost() {
        let budget = Budget::new(10 << 10);
        let mut charge = budget.try_take(2 * KIB).expect("there is room");
        assert!(charge.try_grow(9 * KIB));
        let other = budget.try_take(KIB).expect("there is room");
        assert!(!charge.try_grow(10 * KIB));
        assert_eq!((charge.bytes(), budget.used()), (9 * KIB, 10 << 10), "it stays as it is");
        drop(other);
        let part = charge.split(4 * KIB);
        assert_eq!(part.bytes(), 4 * KIB);
        let before = budget.used();
        drop(part);
        assert_eq!(budget.used(), before - (4 << 10));
        drop(charge);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn guarded_bytes_are_counted_as_long_as_anybody_refers_to_them() {
        let budget = Budget::new(10 << 10);
        let charge = budget.try_take(4 * KIB).expect("there is room");
        let bytes = charge.guard(Bytes::from(vec![7; 4 * KIB]));
        let slice = bytes.slice(100..200);
        drop(bytes);
        assert_eq!(budget.used(), 4 << 10);
        drop(slice);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_served_in_order_and_not_passed() {
        let budget = Budget::new(4 << 10);
        let first = budget.take(3 * KIB).await;
        let large = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(4 * KIB).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(budget.try_take(1).is_none(), "there is room for it, and somebody waits");
        drop(first);
        let large = large.await.expect("no panic");
        assert_eq!(budget.used(), 4 << 10);
        drop(large);
        assert!(budget.try_take(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_waiting_holds_nothing() {
        let whole = Budget::new(4 << 10);
        let held = whole.take(3 * KIB).await;
        let share = whole.share(4 << 10);
        let waiting = tokio::time::timeout(Duration::from_secs(1), share.take(2 * KIB));
        waiting.await.expect_err("there is no room");
        assert_eq!((share.used(), whole.used()), (0, 3 << 10));
        drop(held);
        assert_eq!(whole.used(), 0);
    }

    /// Pieces were charges of their own, each rounded up, and did not fit where their sum as one message would have.
    #[test]
    fn what_is_taken_in_pieces_gets_through_as_one_message_does() {
        for (share, large_from) in [(37 * KIB, 64 * KIB), (4 * KIB, 4 * KIB)] {
            let (small, large) = (Budget::new(1 << 20).share(share as u64), Budget::new(1 << 20));
            let pot = Pot { small: small.clone(), large: large.clone(), large_from };
            let (one, other) = (Room::new(pot.clone()), Room::new(pot));
            for _ in 0..8 {
                one.try_take(large_from / 8).expect("it is alone");
            }
            assert_eq!((one.taken(), small.used(), large.used()), (large_from, share as u64, 0));
            other.try_take(1).expect_err("the share is full");
            one.try_take(1).expect("a large one");
            one.try_take(KIB).expect("still a large one");
            assert_eq!((small.used(), large.used()), (share as u64, 2 << 10));
            drop(one.split(large_from));
            one.release();
            assert_eq!((one.taken(), small.used(), large.used()), (0, 0, 0));
            other.try_take(1).expect("there is room again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_waits_only_while_it_holds_nothing() {
        let budget = Budget::new(8 << 10);
        let pot = Pot { small: budget.clone(), large: Budget::new(100 << 10), large_from: 8 * KIB };
        let until = Instant::now() + Duration::from_secs(5);
        let (one, other) = (Room::new(pot.clone()), Room::new(pot));
        one.take(5 * KIB, until).await.expect("there is room");
        other.take(3 * KIB, until).await.expect("there is room");
        let begun = Instant::now();
        assert_eq!(one.take(KIB, until).await, Err(NoRoom));
        assert_eq!((begun.elapsed(), one.was_short(), one.taken()), (Duration::ZERO, true, 5 * KIB));
        one.release();
        assert_eq!((one.taken(), budget.used()), (0, 3 << 10));
        assert_eq!(one.take(6 * KIB, until).await, Err(NoRoom), "it waits, and nobody gives it anything");
        assert!(begun.elapsed() >= Duration::from_secs(5));
        one.take(50 * KIB, until).await.expect("large ones do not wait for small ones");
        assert_eq!(budget.used(), 3 << 10);
        // The answer takes a part with it, which outlives the room.
        let parts = one.split(20 * KIB);
        let again = one.clone();
        drop((one, other));
        assert_eq!((parts.iter().map(Charge::bytes).sum::<usize>(), again.taken()), (20 * KIB, 30 * KIB));
        assert_eq!(budget.used(), 0);
    }
}

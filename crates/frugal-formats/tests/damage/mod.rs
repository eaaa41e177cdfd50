//! What happens to files.

use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
pub enum Damage {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Truncate(Index),
    /// Counts, lengths, dimensions and offsets are of this size.
    Number(Index, u64),
}

impl Damage {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Self::Flip(at, mask) => bytes[at.index(len)] ^= mask,
            Self::Insert(at, new) => {
                let at = at.index(len);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..(at + count).min(len));
            }
            Self::Truncate(at) => bytes.truncate(at.index(len)),
            Self::Number(at, number) => {
                let at = at.index(len);
                let end = (at + 8).min(len);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
}

/// Places: anywhere, but half of them in the first kilobyte, where the header is densest.
pub fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        Just(0),
        Just(1),
        Just(32),
        Just(u64::from(u32::MAX)),
        Just(1 << 40),
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(u64::MAX / 4 + 1),
        any::<u64>(),
        0..100_000_u64,
    ];
    prop_oneof![
        3 => (any::<Index>(), 1..=255_u8).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, new)| Damage::Insert(at, new)),
        1 => (any::<Index>(), 1..64_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        3 => (any::<Index>(), numbers).prop_map(|(at, number)| Damage::Number(at, number)),
    ]
}

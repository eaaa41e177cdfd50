//! NumPy's `default_rng`, for what `peft` draws again from a seed instead of storing it.
//!
//! The generator is PCG-64 (O'Neill, HMC-CS-2014-0905), seeded by NumPy's `SeedSequence`, which follows
//! O'Neill's `seed_seq_fe` of 128 bits.

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

/// `numpy.random.default_rng`.
pub(crate) struct NumpyGenerator {
    state: u128,
    increment: u128,
    /// The upper half of the last 64 bits, where only the lower one was used.
    left: Option<u32>,
}

impl NumpyGenerator {
    /// `default_rng(seed)`.
    pub fn new(seed: u64) -> Self {
        let words = seed_words(seed);
        let word = |i: usize| u128::from(words[2 * i]) | (u128::from(words[2 * i + 1]) << 32);
        let (state, stream) = ((word(0) << 64) | word(1), (word(2) << 64) | word(3));
        let mut generator = Self {
            state: 0,
            increment: (stream << 1) | 1,
            left: None,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(state);
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self
            .state
            .wrapping_mul(MULTIPLIER)
            .wrapping_add(self.increment);
    }

    /// The next 64 random bits.
    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = ((self.state >> 64) as u64) ^ (self.state as u64);
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(left) = self.left.take() {
            return left;
        }
        let both = self.next_u64();
        self.left = Some((both >> 32) as u32);
        both as u32
    }

    /// A number from 0 to `most`, by Lemire's product.
    fn at_most(&mut self, most: u32) -> usize {
        if most == u32::MAX {
            return self.next_u32() as usize;
        }
        let count = most + 1;
        let mut product = u64::from(self.next_u32()) * u64::from(count);
        if (product as u32) < count {
            let threshold = (u32::MAX - most) % count;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(count);
            }
        }
        (product >> 32) as usize
    }

    /// The same by leaving out what is too large, as NumPy's `shuffle` draws.
    fn masked(&mut self, most: u32) -> usize {
        let mask = u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= most {
                return value as usize;
            }
        }
    }

    /// `shuffle` of an array of less than 2³² elements.
    pub fn shuffle(&mut self, values: &mut [usize]) {
        for i in (1..values.len()).rev() {
            let j = self.masked(i as u32);
            values.swap(i, j);
        }
    }

    /// `choice(n, size=count, replace=False)`, for `count <= n < 2³²`.
    pub fn choice(&mut self, n: usize, count: usize) -> Vec<usize> {
        if n > 10_000 && count > n / 50 {
            let mut all: Vec<usize> = (0..n).collect();
            for i in ((n - count).max(1)..n).rev() {
                let j = if i == 0 { 0 } else { self.at_most(i as u32) };
                all.swap(i, j);
            }
            return all.split_off(n - count);
        }
        // Floyd's algorithm.
        let mut seen = std::collections::HashSet::new();
        let mut chosen: Vec<usize> = (n - count..n)
            .map(|last| {
                let value = if last == 0 {
                    0
                } else {
                    self.at_most(last as u32)
                };
                let value = if seen.contains(&value) { last } else { value };
                seen.insert(value);
                value
            })
            .collect();
        for i in (1..chosen.len()).rev() {
            let j = self.at_most(i as u32);
            chosen.swap(i, j);
        }
        chosen
    }
}

/// `SeedSequence(seed).generate_state(8)`.
fn seed_words(seed: u64) -> [u32; 8] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mix = |x: u32, y: u32| {
        let mixed = x
            .wrapping_mul(0xca01_f9dd)
            .wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> 16)
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in (0..4).filter(|&to| to != from) {
            pool[to] = mix(pool[to], hash(pool[from]));
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    std::array::from_fn(|i| {
        let value = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // All numbers are those of NumPy 2.4.

    #[test]
    fn the_stream_is_that_of_numpy() {
        // numpy.random.PCG64(2**40 + 7).random_raw(3).
        let mut generator = NumpyGenerator::new((1 << 40) + 7);
        let found = [(); 3].map(|()| generator.next_u64());
        assert_eq!(found, RAW);
    }

    #[test]
    fn choices_are_those_of_numpy() {
        // default_rng(3).choice(256, size=5, replace=False), default_rng(9).choice(20000, size=15000,
        // replace=False)[:5].
        assert_eq!(NumpyGenerator::new(3).choice(256, 5), FEW);
        assert_eq!(NumpyGenerator::new(9).choice(20_000, 15_000)[..5], MANY);
    }

    #[test]
    fn orders_are_those_of_numpy() {
        // default_rng(1).shuffle(arange(10)).
        let mut values: Vec<usize> = (0..10).collect();
        NumpyGenerator::new(1).shuffle(&mut values);
        assert_eq!(values, ORDER);
    }

    const RAW: [u64; 3] = [
        15_307_346_044_642_009_514,
        4_709_548_916_763_817_589,
        2_836_937_976_252_648_324,
    ];
    const FEW: [usize; 5] = [45, 204, 21, 60, 46];
    const MANY: [usize; 5] = [2817, 5417, 6695, 19_895, 11_582];
    const ORDER: [usize; 10] = [8, 4, 7, 0, 1, 2, 5, 9, 6, 3];
}

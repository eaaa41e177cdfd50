//! PyTorch's random numbers on the CPU, for what `peft` draws again from a seed instead of storing
//! it.
//!
//! The generator is the Mersenne Twister MT19937 seeded as in its reference code (Matsumoto,
//! Nishimura, 1998).

const N: usize = 624;
const M: usize = 397;

/// `torch.Generator(device="cpu")`.
pub(crate) struct TorchGenerator {
    state: [u32; N],
    next: usize,
}

impl TorchGenerator {
    /// `manual_seed(seed)`; only the lower 32 bits count, as in PyTorch.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// The next 32 random bits.
    pub fn random(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `torch.empty(len).uniform_(-bound, bound)`.
    pub fn uniform(&mut self, len: usize, bound: f32) -> Vec<f32> {
        let mut next = || (self.random() & 0x00ff_ffff) as f32 / 16_777_216.0;
        (0..len).map(|_| next() * (bound + bound) - bound).collect()
    }

    /// `torch.randperm(n)[:count]`, for `n` below 2²⁷.
    pub fn permutation(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..count.min(n.saturating_sub(1)) {
            let other = i + self.random() as usize % (n - i);
            order.swap(i, other);
        }
        order.truncate(count);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_reference_code() {
        // The first numbers and the 10,000th of MT19937 from its default seed.
        let mut generator = TorchGenerator::new(5489);
        assert_eq!(
            [generator.random(), generator.random()],
            [3_499_211_612, 581_869_302]
        );
        assert_eq!(
            (2..10_000).map(|_| generator.random()).last(),
            Some(4_123_659_995)
        );
    }

    #[test]
    fn permutations_are_those_of_torch() {
        // torch.randperm(10, generator=torch.Generator().manual_seed(777)), PyTorch 2.15.
        assert_eq!(TorchGenerator::new(777).permutation(10, 10), PERMUTATION);
        assert_eq!(
            TorchGenerator::new(777).permutation(10, 4),
            PERMUTATION[..4]
        );
    }

    #[test]
    fn uniform_numbers_are_those_of_torch() {
        // torch.empty(4).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(3)).
        let found = TorchGenerator::new(3).uniform(4, 0.5);
        assert!(
            found.iter().zip(UNIFORM).all(|(a, b)| (a - b).abs() < 1e-7),
            "{found:?}"
        );
    }

    const PERMUTATION: [usize; 10] = [5, 9, 0, 3, 1, 7, 4, 8, 6, 2];
    const UNIFORM: [f32; 4] = [-0.495_736_48, -0.394_430_64, -0.214_157_52, -0.473_045_17];
}

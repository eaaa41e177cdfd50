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

    /// For the noise of one pass at one layer: seeded by the 32-bit FNV-1a hash of `seed:path`.
    pub fn of_place(seed: u64, path: &str) -> Self {
        let text = format!("{seed}:{path}");
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Self::new(u64::from(hash))
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

    /// `torch.rand(len)`.
    pub fn rand(&mut self, len: usize) -> Vec<f32> {
        let mut next = || (self.random() & 0x00ff_ffff) as f32 / 16_777_216.0;
        (0..len).map(|_| next()).collect()
    }

    /// `torch.empty(len).uniform_(-bound, bound)`.
    pub fn uniform(&mut self, len: usize, bound: f32) -> Vec<f32> {
        let unit = self.rand(len).into_iter();
        unit.map(|u| u * (bound + bound) - bound).collect()
    }

    /// `torch.randn(len.max(16))[:len]`: PyTorch makes normal numbers of 16 at once.
    pub fn randn(&mut self, len: usize) -> Vec<f32> {
        let count = len.max(16);
        let mut values = self.rand(count);
        for block in values.chunks_exact_mut(16) {
            box_muller(block);
        }
        if !count.is_multiple_of(16) {
            let mut last = self.rand(16);
            box_muller(&mut last);
            values[count - 16..].copy_from_slice(&last);
        }
        values.truncate(len);
        values
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

/// Sixteen uniform numbers made normal by Box and Muller's transform.
fn box_muller(block: &mut [f32]) {
    for i in 0..8 {
        let radius = (-2.0 * (1.0 - block[i]).ln()).sqrt();
        let angle = std::f32::consts::TAU * block[i + 8];
        (block[i], block[i + 8]) = (radius * angle.cos(), radius * angle.sin());
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

    #[test]
    fn normal_numbers_are_those_of_torch() {
        // torch.randn(21, generator=torch.Generator().manual_seed(3)), of which these are 0, 8, 15 and
        // 20, PyTorch 2.15.
        let found = TorchGenerator::new(3).randn(21);
        for (at, expected) in NORMAL {
            assert!((found[at] - expected).abs() < 1e-5, "{found:?}");
        }
    }

    const NORMAL: [(usize, f32); 4] = [
        (0, -0.076_644),
        (8, 0.404_607),
        (15, -0.146_808),
        (20, 0.373_635),
    ];
    const PERMUTATION: [usize; 10] = [5, 9, 0, 3, 1, 7, 4, 8, 6, 2];
    const UNIFORM: [f32; 4] = [-0.495_736_48, -0.394_430_64, -0.214_157_52, -0.473_045_17];
}

//! What is compared.

use toml::{Table, toml};

use super::size::Size;

pub(super) const VANILLA: &str = "Llama";
pub(super) const SMALL: &str = "Llama, equal size";
pub(super) const RECURSIVE: &str = "Recursive";
pub(super) const EXPERT: &str = "MoR, expert choice";
pub(super) const SHARED: &str = "MoR, expert choice, shared keys and values";
pub(super) const TOKEN: &str = "MoR, token choice";

/// One model.
pub(super) struct Arm {
    pub name: &'static str,
    pub arch: &'static str,
    /// Unrolled layers.
    pub layers: usize,
    /// Keys of its architecture.
    pub own: Table,
    /// Multiply-adds of a token of a text of the longest length: products with weights, attention,
    /// the output over the vocabulary. Token choice as if its load were even.
    pub operations: f64,
    /// Steps that come to the operations of the first arm.
    pub steps: u64,
}

/// Multiply-adds of a token in the blocks, of which `layers` run for all of a text's tokens and
/// `base` more for each of these shares of them; with `kept`, later shares read the keys and values of
/// the first.
fn operations(size: &Size, layers: usize, base: usize, shares: &[f64], kept: bool) -> f64 {
    let (d, ff, t) = (
        size.hidden_size as f64,
        size.intermediate_size as f64,
        size.max_length as f64,
    );
    let (base, layers) = (base as f64, layers as f64);
    // Queries, keys, values and output; gate, up and down. A token sees half a text, and scores and
    // sums cost as much each.
    let products = 4.0 * d * d + 3.0 * d * ff;
    let of_share = |(step, share): (usize, &f64)| {
        let first = !kept || step == 0;
        let saved = if first { 0.0 } else { 2.0 * d * d };
        let seen = if first { share * t } else { t };
        share * (products - saved + seen * d)
    };
    let shared: f64 = shares.iter().enumerate().map(of_share).sum();
    layers * (products + t * d) + base * shared + d * size.vocab_size as f64
}

/// All arms; the first is what the others are given the operations of.
pub(super) fn arms(size: &Size) -> Vec<Arm> {
    let steps = size.recursions;
    let base = (size.layers - 2) / steps;
    let falling: Vec<f64> = (0..steps)
        .map(|step| (steps - step) as f64 / steps as f64)
        .collect();
    let plain = |layers: usize| operations(size, layers, 0, &[], false);
    let routed = |kept: bool| operations(size, 2, base, &falling, kept);
    let budget = size.steps as f64 * plain(size.layers);
    let arm = |name, arch, layers: usize, mut own: Table, operations: f64| {
        if arch == "mor" {
            own.insert("num_recursion".into(), (steps as i64).into());
        }
        Arm {
            name,
            arch,
            layers,
            own,
            operations,
            steps: (budget / operations).round().max(1.0) as u64,
        }
    };
    let of = size.layers;
    vec![
        arm(VANILLA, "llama", of, Table::new(), plain(of)),
        arm(SMALL, "llama", 2 + base, Table::new(), plain(2 + base)),
        arm(RECURSIVE, "mor", of, toml! { mor_type = "none" }, plain(of)),
        arm(EXPERT, "mor", of, Table::new(), routed(false)),
        arm(SHARED, "mor", of, toml! { kv_sharing = true }, routed(true)),
        arm(
            TOKEN,
            "mor",
            of,
            toml! { mor_type = "token_choice" },
            routed(false),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_arms_have_the_same_operations() {
        let size = Size::of(false);
        let arms = arms(&size);
        let total = |arm: &Arm| arm.operations * arm.steps as f64;
        for arm in &arms {
            let ratio = total(arm) / total(&arms[0]);
            assert!((ratio - 1.0).abs() < 0.01, "{}: {ratio}", arm.name);
        }
        let find = |name: &str| arms.iter().find(|arm| arm.name == name).unwrap();
        // Products of the blocks alone: (2 + 3 + 3 / 2) of 8 layers.
        let head = (size.hidden_size * size.vocab_size) as f64;
        let of_layer = (arms[0].operations - head) / 8.0;
        let attention = (size.max_length * size.hidden_size) as f64;
        let expected = 6.5 * of_layer - 3.0 * 0.25 * attention;
        let found = find(EXPERT).operations - head;
        assert!(
            (found / expected - 1.0).abs() < 1e-9,
            "{found}, not {expected}"
        );
        assert!(find(SHARED).operations < find(EXPERT).operations);
        assert_eq!(find(SMALL).layers, 5);
    }
}

//! What is compared.

use toml::{Table, toml};

use super::size::Size;

pub(super) const LINEAR: &str = "Linear router";
pub(super) const LINEAR_WIDER: &str = "Linear router, wider experts";
pub(super) const GRU: &str = "RMoE";
pub(super) const NO_PREVIOUS: &str = "RMoE, no recurrence";
pub(super) const DETACH: &str = "RMoE, detached";

pub(super) const DENSE_SIZE: &str = "Dense, equal size";
pub(super) const DENSE_OPERATIONS: &str = "Dense, equal operations";
pub(super) const ALBERT: &str = "All shared, one expert";
pub(super) const OWN_NORMS: &str = "Own norms, one expert";
pub(super) const WIDE: &str = "WideNet";
pub(super) const WIDE_SHARED_NORMS: &str = "WideNet, shared norms";
pub(super) const UNSHARED: &str = "Mixture, nothing shared";

/// One model.
pub(super) struct Arm {
    pub name: &'static str,
    pub arch: &'static str,
    pub blocks: usize,
    pub intermediate_size: usize,
    /// Keys of its architecture.
    pub own: Table,
    /// Whether all blocks have the same experts, so that a path through them means something.
    pub shares_experts: bool,
    /// Multiply-adds of a token, of products with weights in the blocks.
    pub operations: f64,
}

const EXPERTS: usize = 8;
const CHOSEN: usize = 2;

/// RMoE and what it is compared with.
pub(super) fn rmoe(size: &Size) -> Vec<Arm> {
    let (d, p, ff) = (size.hidden_size, size.router_size, size.expert_size);
    let recurrent = p * d + 6 * p * p + p * EXPERTS;
    let linear = d * EXPERTS;
    // A chosen expert has three maps of d by its width.
    let wider = ff + (recurrent - linear).div_ceil(3 * CHOSEN * d);
    let arm = |name, router: usize, ff: usize, mut own: Table| {
        own.insert("num_local_experts".into(), (EXPERTS as i64).into());
        if own.get("moe_router_type").is_none() {
            own.insert("moe_router_rnn_hidden_size".into(), (p as i64).into());
        }
        Arm {
            name,
            arch: "rmoe",
            blocks: size.blocks,
            intermediate_size: ff,
            own,
            shares_experts: false,
            operations: (size.blocks * (4 * d * d + router + 3 * CHOSEN * d * ff)) as f64,
        }
    };
    vec![
        arm(LINEAR, linear, ff, toml! { moe_router_type = "linear" }),
        arm(
            LINEAR_WIDER,
            linear,
            wider,
            toml! { moe_router_type = "linear" },
        ),
        arm(GRU, recurrent, ff, Table::new()),
        arm(
            NO_PREVIOUS,
            recurrent,
            ff,
            toml! { moe_router_recurrent = false },
        ),
        arm(DETACH, recurrent, ff, toml! { moe_router_detach = true }),
    ]
}

const WIDE_EXPERTS: usize = 4;

/// WideNet and what it is compared with.
pub(super) fn widenet(size: &Size) -> Vec<Arm> {
    let (d, ff) = (size.hidden_size, size.expert_size);
    // What the experts of WideNet compute for a token, in one feed-forward layer.
    let dense = CHOSEN * ff;
    let arm = |name, blocks: usize, [experts, chosen]: [usize; 2], ff: usize, mut own: Table| {
        own.insert("num_local_experts".into(), (experts as i64).into());
        own.insert("num_experts_per_tok".into(), (chosen as i64).into());
        let shares_experts = !own.contains_key("share_experts");
        Arm {
            name,
            arch: "widenet",
            shares_experts,
            blocks,
            intermediate_size: ff,
            own,
            operations: (blocks * (4 * d * d + d * experts + 3 * chosen * d * ff)) as f64,
        }
    };
    let unshared = || toml! { share_attention = false share_experts = false share_router = false };
    let (one, wide) = ([1, 1], [WIDE_EXPERTS, CHOSEN]);
    // Two blocks with as many numbers as WideNet's one attention and its experts.
    let shared = 4 * d * d + 3 * WIDE_EXPERTS * d * ff;
    let of_two = (shared / 2).saturating_sub(4 * d * d) / (3 * d);
    vec![
        arm(DENSE_SIZE, 2, one, of_two.max(1), unshared()),
        arm(DENSE_OPERATIONS, size.blocks, one, dense, unshared()),
        arm(
            ALBERT,
            size.blocks,
            one,
            dense,
            toml! { share_norms = true },
        ),
        arm(OWN_NORMS, size.blocks, one, dense, Table::new()),
        arm(WIDE, size.blocks, wide, ff, Table::new()),
        arm(
            WIDE_SHARED_NORMS,
            size.blocks,
            wide,
            ff,
            toml! { share_norms = true },
        ),
        arm(UNSHARED, size.blocks, wide, ff, unshared()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(arms: &'a [Arm], name: &str) -> &'a Arm {
        arms.iter().find(|arm| arm.name == name).unwrap()
    }

    #[test]
    fn arms_of_equal_cost_cost_the_same() {
        let size = Size::of(false);
        let arms = rmoe(&size);
        let ratio = find(&arms, GRU).operations / find(&arms, LINEAR_WIDER).operations;
        assert!((0.99..=1.0).contains(&ratio), "{ratio}");
        let arms = widenet(&size);
        let wide = find(&arms, WIDE);
        let ratio = wide.operations / find(&arms, DENSE_OPERATIONS).operations;
        assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
        let (d, dense) = (size.hidden_size, find(&arms, DENSE_SIZE));
        let parameters = 2 * (4 * d * d + 3 * d * dense.intermediate_size) as i64;
        let of_wide = (4 * d * d + 3 * WIDE_EXPERTS * d * wide.intermediate_size) as i64;
        assert!(
            (parameters - of_wide).abs() < of_wide / 100,
            "{parameters} of {of_wide}"
        );
    }
}

//! # MoS: mixture of shards
//!
//! ## What it does
//! Assembles the low-rank matrices of all blocks from one pool of short vector pieces ("shards")
//! per kind of projection, so that blocks share parameters and still differ.
//!
//! ## Update rule
//! `y = x Wᵀ + (lora_alpha / r) · dropout(x) Aₖᵀ Bₖᵀ`. Row `j` of `Aₖ [r, d_in]` is `l` rows of the
//! pool `P_A [e L l, d_in / l]` one after another, those that the index vector of block `k` names
//! at `j l .. j l + l`; column `j` of `Bₖ` likewise from `P_B [e L l, d_out / l]`. `L` is the
//! number of blocks. The indices are drawn once: `(r − p) l` without repeats from the public rows,
//! independently for `A` and `B` (pair dissociation), then the `p l` rows that are the block's own
//! (shard privatisation).
//!
//! ## When to use, when not
//! When adapters must be small, for example many of them beside one model: at the size of LoRA of
//! rank `e` it acts with rank `r`. Where size does not matter, LoRA of a higher rank is simpler and
//! faster to assemble.
//!
//! ## Cost
//! Trainable: `e (d_in + d_out)` per layer on average, exactly that of LoRA of rank `e`, whatever
//! `r`, `l` and `p` are. Extra memory and compute while training: those of LoRA of rank `r`, and
//! one gather per layer. None after merging.
//!
//! ## Defaults and where they come from
//! `equivalent_rank = 2`, `r = 8`, `lora_alpha = 16`, `lora_dropout = 0.1` and all linear layers are
//! those of the released scripts. They leave shards per vector and private rank to their command
//! line; 4 and 1 are values within the paper's ablations that divide the widths of common models.
//! `P_A` is uniform within `±1/sqrt(d_in)` (the fan-in of the whole vector), `P_B` zero.
//!
//! ## Departures from the paper
//! The released code gives every kind of projection as many pool rows as there are blocks; a kind
//! that occurs in one place only (BERT's pooler) has one block here. Where a pool is too small for
//! `r` vectors without repeats, `p + (e − p) L` of them are used, at the same scale. The files hold
//! pools and indices rather than the assembled matrices. The pair of constant vectors in the
//! released code multiplies by one and is left out.
//!
//! ## References
//! - Wang, Chen, Chen, Dong, Xue, Jiang, Kong, Wu: MoS: Unleashing Parameter Efficiency of Low-Rank
//!   Adaptation with Mixture of Shards, 2025, arXiv 2410.00938.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, LowRankChange, Mode, Parameter, Pass,
    SiteId, SiteInfo, named_rng,
};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Capabilities, Family, Method};
use crate::settings;
use crate::support::per_linear::linear_maps;
use crate::support::{low_rank, own_files};
use crate::target::Targets;

const NAME: &str = "mos";
const PEFT_TYPE: &str = "MOS";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["mixture-of-shards"],
    family: Family::Shared,
    summary: "Low-rank matrices of all blocks assembled from one pool of shards",
    default_lr: 1e-3,
    peft_type: PEFT_TYPE,
    peft_variant: None,
    load_rule: None,
    capabilities: Capabilities {
        merge: true,
        identity_at_init: true,
        mixed_batch: true,
    },
    source: include_str!("mos.rs"),
    defaults: settings::defaults::<MosConfig>,
    check: |settings| settings::parse::<MosConfig>(NAME, settings)?.validate(),
    build: |settings, context| {
        Ok(Box::new(Mos::new(
            settings::parse(NAME, settings)?,
            context,
        )?))
    },
    from_peft: |config| Ok(own_files::from_file::<MosConfig>(config)),
};

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MosConfig {
    /// Rank of each assembled pair.
    pub r: usize,
    /// Rank of the LoRA that has as many parameters: the budget.
    pub equivalent_rank: usize,
    /// Pieces that a vector is assembled from; divides every adapted width.
    pub shards_per_vector: usize,
    /// Rank of each pair that no other block shares.
    pub private_rank: usize,
    /// Draw the indices of `A` and `B` independently.
    pub pair_dissociation: bool,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for MosConfig {
    fn default() -> Self {
        Self {
            r: 8,
            equivalent_rank: 2,
            shards_per_vector: 4,
            private_rank: 1,
            pair_dissociation: true,
            lora_alpha: 16.0,
            lora_dropout: 0.1,
            targets: Targets::default(),
        }
    }
}

impl MosConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if self.equivalent_rank == 0 || self.shards_per_vector == 0 {
            let field = if self.equivalent_rank == 0 {
                "equivalent_rank"
            } else {
                "shards_per_vector"
            };
            return bad(field, "must be at least 1".into());
        }
        if self.private_rank > self.equivalent_rank {
            return bad(
                "private_rank",
                format!(
                    "{} exceeds `equivalent_rank` ({})",
                    self.private_rank, self.equivalent_rank
                ),
            );
        }
        if self.r < self.private_rank.max(1) {
            return bad(
                "r",
                format!(
                    "{} is below `private_rank` ({}) or 1",
                    self.r, self.private_rank
                ),
            );
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return bad(
                "lora_dropout",
                format!("{} is not within 0 (none) and 1 (all)", self.lora_dropout),
            );
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return bad(
                "lora_alpha",
                format!("{} is not a positive number", self.lora_alpha),
            );
        }
        Ok(())
    }

    /// Rank of a pair whose pool is shared by `blocks` maps.
    fn rank(&self, blocks: usize) -> usize {
        self.r
            .min(self.private_rank + (self.equivalent_rank - self.private_rank) * blocks)
    }
}

/// What all layers of one kind share.
struct Pool {
    /// `[e L l, d_in / l]`.
    a: Parameter,
    /// `[e L l, d_out / l]`.
    b: Parameter,
}

/// The place of a layer in its pool.
struct Member {
    path: String,
    pool: usize,
    /// Rows of the pool that make up `A`, `[r l]`.
    index_a: Parameter,
    /// Rows of the pool that make up `B`, `[r l]`.
    index_b: Parameter,
    scale: f32,
}

/// A MoS adapter.
pub struct Mos {
    config: MosConfig,
    pools: Vec<Pool>,
    /// Indexed by site.
    members: Vec<Option<Member>>,
    saved_targets: Value,
}

/// The path with the block's number left out: maps with the same one share a pool.
fn kind_of(site: &SiteInfo) -> String {
    let layer = site.layer.map(|l| l.to_string());
    let mut parts: Vec<&str> = site.path.split('.').collect();
    // A later component of the same number is something else, such as an expert.
    if let Some(number) = parts
        .iter_mut()
        .find(|part| Some(**part) == layer.as_deref())
    {
        *number = "*";
    }
    parts.join(".")
}

/// Rows `index` of a pool `[rows, width / l]`, `l` of them side by side: `[index / l, width]`.
fn assemble(pool: Tensor<2>, index: &[usize], shards_per_vector: usize) -> Tensor<2> {
    let width = pool.dims()[1] * shards_per_vector;
    frugal_nn::select_rows(pool, index).reshape([index.len() / shards_per_vector, width])
}

impl Mos {
    /// Builds pools and indices for every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, tables among the targets, a width that the number of shards
    /// does not divide.
    pub fn new(config: MosConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let chosen = linear_maps(NAME, &config.targets, context)?;
        let mut kinds: BTreeMap<String, Vec<SiteId>> = BTreeMap::new();
        for &id in &chosen {
            kinds
                .entry(kind_of(context.sites.info(id)))
                .or_default()
                .push(id);
        }
        let mut members: Vec<Option<Member>> = (0..context.sites.len()).map(|_| None).collect();
        let mut pools = Vec::new();
        for (kind, ids) in &kinds {
            for (block, &id) in ids.iter().enumerate() {
                members[id.index()] =
                    Some(member(&config, context, id, pools.len(), block, ids.len()));
            }
            pools.push(pool(&config, context, kind, ids)?);
        }
        let saved_targets = crate::target::saved_targets(&config.targets, context.sites, &chosen);
        Ok(Self {
            config,
            pools,
            members,
            saved_targets,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Member> {
        self.members.get(site.index())?.as_ref()
    }

    /// `A [r, d_in]` and `B [d_out, r]` of a layer.
    fn assembled(&self, member: &Member, mode: Mode) -> (Tensor<2>, Tensor<2>) {
        let (pool, l) = (&self.pools[member.pool], self.config.shards_per_vector);
        // Indices come from a file.
        let last = pool.a.shape()[0] - 1;
        let rows = |index: &Parameter| {
            index
                .to_vec()
                .into_iter()
                .map(|i| (i as usize).min(last))
                .collect::<Vec<_>>()
        };
        let a = assemble(pool.a.get::<2>(mode), &rows(&member.index_a), l);
        let b = assemble(pool.b.get::<2>(mode), &rows(&member.index_b), l);
        (a, b.transpose())
    }
}

fn pool(
    config: &MosConfig,
    context: &BuildContext<'_>,
    kind: &str,
    ids: &[SiteId],
) -> Result<Pool, AdaptError> {
    let (info, l) = (context.sites.info(ids[0]), config.shards_per_vector);
    if let Some(width) = [info.d_in, info.d_out]
        .into_iter()
        .find(|width| width % l != 0)
    {
        let reason = format!(
            "{l} does not divide {width}, a side of `{}`: use a common divisor of all adapted widths",
            info.path
        );
        return Err(AdaptError::Config {
            method: NAME,
            field: "shards_per_vector",
            reason,
        });
    }
    let rows = config.equivalent_rank * ids.len() * l;
    let (bound, mut rng) = (
        1.0 / (info.d_in as f32).sqrt(),
        named_rng(context.seed, &format!("mos pool {kind}")),
    );
    let a = (0..rows * info.d_in / l)
        .map(|_| rng.random_range(-bound..bound))
        .collect();
    Ok(Pool {
        a: Parameter::new(
            format!("mos.{kind}.pool_A"),
            &[rows, info.d_in / l],
            a,
            &context.device,
        ),
        b: Parameter::new(
            format!("mos.{kind}.pool_B"),
            &[rows, info.d_out / l],
            vec![0.0; rows * info.d_out / l],
            &context.device,
        ),
    })
}

/// Draws the index vectors of block `block` of `blocks`.
fn member(
    config: &MosConfig,
    context: &BuildContext<'_>,
    id: SiteId,
    pool: usize,
    block: usize,
    blocks: usize,
) -> Member {
    let (path, l) = (
        context.sites.info(id).path.clone(),
        config.shards_per_vector,
    );
    let rank = config.rank(blocks);
    let public = (config.equivalent_rank - config.private_rank) * blocks * l;
    let private =
        public + block * config.private_rank * l..public + (block + 1) * config.private_rank * l;
    let draw = |which: &str| -> Vec<f32> {
        let mut rows: Vec<usize> = (0..public).collect();
        rows.shuffle(&mut named_rng(
            context.seed,
            &format!("mos index {which} {path}"),
        ));
        rows.truncate((rank - config.private_rank) * l);
        rows.into_iter()
            .chain(private.clone())
            .map(|i| i as f32)
            .collect()
    };
    let index = |which: &str, rows| {
        Parameter::frozen(
            format!("mos.{path}.index_{which}"),
            &[rank * l],
            rows,
            &context.device,
        )
        .indices_below(&[config.equivalent_rank * blocks * l])
    };
    let a = draw("A");
    let b = if config.pair_dissociation {
        draw("B")
    } else {
        a.clone()
    };
    let scale = (config.lora_alpha / config.r as f64) as f32;
    Member {
        index_a: index("A", a),
        index_b: index("B", b),
        pool,
        scale,
        path,
    }
}

struct MosPass<'a> {
    adapter: &'a Mos,
    mode: Mode,
}

impl Pass for MosPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(member) = self.adapter.at(base.site) else {
            return base.forward(x);
        };
        let (a, b) = self.adapter.assembled(member, self.mode);
        let dropping = low_rank::Dropping {
            p: self.adapter.config.lora_dropout,
            mode: self.mode,
            path: &member.path,
        };
        low_rank::forward(base, x, a, b, member.scale, &dropping)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let Some(member) = self.adapter.at(base.site) else {
            return LinearChange::None;
        };
        if self.mode.is_train() && self.adapter.config.lora_dropout > 0.0 {
            return LinearChange::Opaque;
        }
        let (a, b) = self.adapter.assembled(member, self.mode);
        LinearChange::LowRank(LowRankChange {
            a,
            b,
            scale: member.scale,
        })
    }
}

impl Adapter for Mos {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let indices = self
            .members
            .iter()
            .flatten()
            .flat_map(|m| [&m.index_a, &m.index_b]);
        self.pools
            .iter()
            .flat_map(|p| [&p.a, &p.b])
            .chain(indices)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let indices = self
            .members
            .iter_mut()
            .flatten()
            .flat_map(|m| [&mut m.index_a, &mut m.index_b]);
        self.pools
            .iter_mut()
            .flat_map(|p| [&mut p.a, &mut p.b])
            .chain(indices)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(MosPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.at(base.site).map(|member| {
            let (a, b) = self.assembled(member, Mode::Eval);
            b.matmul(a) * member.scale
        }))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::ModelConfig;
    use frugal_nn::SiteKind;
    use frugal_nn::to_vec;

    fn build(raw: Value, settings: Value, seed: u64) -> Mos {
        let config = ModelConfig::from_json(raw, "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::default(),
            seed,
            tokenize: None,
        };
        Mos::new(serde_json::from_value(settings).unwrap(), &context).unwrap()
    }

    fn llama(hidden: usize, ff: usize, layers: usize, heads: usize, kv: usize) -> Value {
        serde_json::json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": 64})
    }

    fn tiny(settings: Value) -> Mos {
        build(llama(16, 24, 3, 4, 2), settings, 7)
    }

    #[test]
    fn the_budget_is_that_of_lora_of_the_equivalent_rank() {
        // The log of the released code for LLaMA-2-7B says 4,997,120 and 19,988,480.
        let count = |raw, e: usize, r: usize| {
            build(raw, serde_json::json!({"equivalent_rank": e, "r": r}), 1).num_trainable()
        };
        assert_eq!(count(llama(4096, 11008, 32, 32, 32), 2, 8), 4_997_120);
        assert_eq!(count(llama(576, 1536, 30, 9, 3), 2, 8), 610_560);
        assert_eq!(count(llama(576, 1536, 30, 9, 3), 8, 32), 2_442_240);
    }

    #[test]
    fn vectors_are_assembled_from_shards_in_order() {
        let pool = Tensor::<2>::from_data(
            TensorData::new(
                (0..8).flat_map(|i| [i as f32; 2]).collect::<Vec<_>>(),
                [8, 2],
            ),
            &Device::default(),
        );
        let a = assemble(pool, &[2, 0, 3, 1, 4, 5], 2);
        assert_eq!(
            to_vec(a),
            [2.0, 2.0, 0.0, 0.0, 3.0, 3.0, 1.0, 1.0, 4.0, 4.0, 5.0, 5.0]
        );
    }

    #[test]
    fn private_shards_are_private_and_public_ones_do_not_repeat() {
        let mos = tiny(
            serde_json::json!({"equivalent_rank": 3, "r": 5, "private_rank": 1, "shards_per_vector": 2}),
        );
        let (public, members): (usize, Vec<&Member>) = (
            2 * 3 * 2,
            mos.members
                .iter()
                .flatten()
                .filter(|m| m.path.ends_with("q_proj"))
                .collect(),
        );
        assert_eq!(members.len(), 3);
        let mut seen = Vec::new();
        for (block, member) in members.iter().enumerate() {
            for index in [&member.index_a, &member.index_b] {
                let mut rows: Vec<usize> = index.to_vec().iter().map(|&i| i as usize).collect();
                assert_eq!(
                    rows[rows.len() - 2..],
                    [public + 2 * block, public + 2 * block + 1]
                );
                rows.truncate(rows.len() - 2);
                assert!(rows.iter().all(|&row| row < public));
                rows.sort_unstable();
                assert!(rows.windows(2).all(|w| w[0] != w[1]));
            }
            assert_ne!(member.index_a.to_vec(), member.index_b.to_vec());
            seen.push(member.index_a.to_vec());
        }
        assert_ne!(seen[0][..8], seen[1][..8]);
        let paired =
            tiny(serde_json::json!({"equivalent_rank": 3, "r": 5, "pair_dissociation": false}));
        assert!(
            paired
                .members
                .iter()
                .flatten()
                .all(|m| m.index_a.to_vec() == m.index_b.to_vec())
        );
    }

    #[test]
    fn a_wholly_private_pool_in_one_piece_is_lora() {
        let mut mos = tiny(
            serde_json::json!({"equivalent_rank": 2, "r": 2, "private_rank": 2, "shards_per_vector": 1}),
        );
        for (i, pool) in mos.pools.iter_mut().enumerate() {
            let values = |p: &Parameter, s: f32| {
                (0..p.len())
                    .map(|j| ((i + j) as f32 * s).sin())
                    .collect::<Vec<_>>()
            };
            let (a, b) = (values(&pool.a, 0.7), values(&pool.b, 1.3));
            pool.a.set(a);
            pool.b.set(b);
        }
        let blocks: Vec<&Member> = mos
            .members
            .iter()
            .flatten()
            .filter(|m| m.path.ends_with("k_proj"))
            .collect();
        for (block, member) in blocks.into_iter().enumerate() {
            let (a, b) = mos.assembled(member, Mode::Eval);
            let pool = &mos.pools[member.pool];
            assert_eq!(
                to_vec(a),
                pool.a.to_vec()[block * 2 * 16..(block + 1) * 2 * 16]
            );
            assert_eq!(
                to_vec(b.transpose()),
                pool.b.to_vec()[block * 2 * 8..(block + 1) * 2 * 8]
            );
            assert_eq!(member.scale, 8.0);
        }
    }

    #[test]
    fn only_the_number_of_the_block_is_left_out_of_a_pool() {
        let site = |path: &str, layer: Option<usize>| {
            kind_of(&SiteInfo::new(path, SiteKind::Linear, layer, [8, 8], false))
        };
        let expert = |layer: usize| {
            site(
                &format!("model.layers.{layer}.block_sparse_moe.experts.1.w1"),
                Some(layer),
            )
        };
        assert_eq!(expert(1), "model.layers.*.block_sparse_moe.experts.1.w1");
        assert_eq!(expert(1), expert(2));
        assert_eq!(site("pooler.dense", None), "pooler.dense");
    }

    #[test]
    fn indices_beyond_the_pool_name_its_last_row() {
        let mut mos = tiny(serde_json::json!({}));
        let rows = mos
            .members
            .iter()
            .flatten()
            .next()
            .map(|m| mos.pools[m.pool].a.shape()[0])
            .unwrap();
        let mut assembled = |index: f32| {
            mos.members
                .iter_mut()
                .flatten()
                .for_each(|m| m.index_a.set(vec![index; m.index_a.len()]));
            let member = mos.members.iter().flatten().next().unwrap();
            to_vec(mos.assembled(member, Mode::Eval).0)
        };
        assert_eq!(assembled(1e9), assembled(rows as f32 - 1.0));
    }

    #[test]
    fn a_shared_row_receives_the_sum_of_its_uses() {
        let pool = Tensor::<2>::from_data(
            [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            &Device::default().autodiff(),
        )
        .require_grad();
        let weights = Tensor::<2>::from_data([[1.0, 10.0, 100.0, 1000.0]], &Device::default());
        let first = (assemble(pool.clone(), &[0, 2], 2) * weights.clone()).sum();
        let second = (assemble(pool.clone(), &[2, 0], 2) * weights * 3.0).sum();
        let gradient = pool.grad(&(first + second).backward()).unwrap();
        assert_eq!(to_vec(gradient), [301.0, 3010.0, 0.0, 0.0, 103.0, 1030.0]);
    }

    #[test]
    fn a_width_that_shards_do_not_divide_is_named() {
        let config = ModelConfig::from_json(llama(16, 24, 3, 4, 2), "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::default(),
            seed: 1,
            tokenize: None,
        };
        let message = Mos::new(
            MosConfig {
                shards_per_vector: 5,
                ..MosConfig::default()
            },
            &context,
        )
        .err()
        .unwrap()
        .to_string();
        assert!(message.contains("5 does not divide 24"), "{message}");
    }
}

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

use crate::method::{Family, Method, MethodConfig};
use crate::support::per_linear::linear_maps;
use crate::support::{low_rank, own_files};
use crate::target::Targets;

const NAME: &str = "mos";
const PEFT_TYPE: &str = "MOS";

/// Registry entry.
pub const METHOD: Method = Method::of::<MosConfig>(
    Family::Shared,
    "Low-rank matrices of all blocks assembled from one pool of shards",
    include_str!("mos.rs"),
)
.aliases(&["mixture-of-shards"]);

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

impl MethodConfig for MosConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
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

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Mos::new(self, context)?))
    }
}

impl MosConfig {
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
mod tests;

//! What LoRA's parameters start from.

use frugal_nn::{
    AdaptError, BuildContext, Frozen, Parameter, SiteId, SiteKind, named_rng, standard_normal,
};
use rand::Rng;

use crate::methods::low_rank::lora_config::{Bias, Init, LoraConfig};
use crate::support::pair::Pair;
use crate::target::pattern_value;

/// The pair of one layer or table, with its first values.
pub(crate) fn pair(
    method: &'static str,
    config: &LoraConfig,
    context: &BuildContext<'_>,
    id: SiteId,
) -> Result<Pair, AdaptError> {
    let info = context.sites.info(id);
    let (path, d_in, d_out) = (info.path.clone(), info.d_in, info.d_out);
    let rank = config.rank(&path)?;
    let alpha =
        pattern_value("alpha_pattern", &config.alpha_pattern, &path)?.unwrap_or(config.lora_alpha);
    // A correction of what rounding lost is a part of the matrix; any other change may have more
    // rows than it needs.
    let most = match config.loftq() {
        Some(_) => d_in.min(d_out),
        None => crate::sizes::most_rank(d_in, d_out),
    };
    if rank > most {
        return Err(AdaptError::Config {
            method,
            field: "r",
            reason: format!(
                "rank {rank} is more than `{path}` ({d_out} x {d_in}) has a use for: use at most {most}"
            ),
        });
    }
    let scale = config.scale(alpha, rank) as f32;
    let device = &context.device;
    let mut rng = named_rng(context.seed, &path);
    if info.kind == SiteKind::Embedding {
        let b = (0..d_out * rank)
            .map(|_| standard_normal(&mut rng))
            .collect();
        return Ok(Pair {
            a: Parameter::new(
                format!("{path}.lora_embedding_A"),
                &[rank, d_in],
                vec![0.0; rank * d_in],
                device,
            ),
            b: Parameter::new(
                format!("{path}.lora_embedding_B"),
                &[d_out, rank],
                b,
                device,
            ),
            b_bias: None,
            scale,
            path,
        });
    }
    let bound = 1.0 / (d_in as f32).sqrt();
    let a: Vec<f32> = match &config.init_lora_weights {
        Init::Named(_) => (0..rank * d_in)
            .map(|_| standard_normal(&mut rng) / rank as f32)
            .collect(),
        Init::Default(_) => (0..rank * d_in)
            .map(|_| rng.random_range(-bound..bound))
            .collect(),
    };
    let b: Vec<f32> = match &config.init_lora_weights {
        Init::Default(false) => (0..d_out * rank)
            .map(|_| rng.random_range(-bound..bound))
            .collect(),
        _ => vec![0.0; d_out * rank],
    };
    Ok(Pair {
        a: Parameter::new(format!("{path}.lora_A.weight"), &[rank, d_in], a, device),
        b: Parameter::new(format!("{path}.lora_B.weight"), &[d_out, rank], b, device),
        b_bias: config.lora_bias.then(|| {
            Parameter::new(
                format!("{path}.lora_B.bias"),
                &[d_out],
                vec![0.0; d_out],
                device,
            )
        }),
        scale,
        path,
    })
}

/// Trained copies of the biases that `bias` asks for.
pub(crate) fn biases(
    method: &'static str,
    config: &LoraConfig,
    context: &BuildContext<'_>,
    pairs: &[Option<Pair>],
) -> Result<Vec<Option<Parameter>>, AdaptError> {
    let mut values: Vec<Option<Vec<f32>>> = vec![None; pairs.len()];
    if let Some(backbone) = context.backbone.filter(|_| config.bias != Bias::None) {
        backbone.visit_weights(&mut |part| match part {
            Frozen::Linear(l) => values[l.site.index()] = l.bias.clone().map(frugal_nn::to_vec),
            Frozen::Norm(n) => values[n.site.index()] = n.bias.clone().map(frugal_nn::to_vec),
            Frozen::Conv(c) => values[c.site.index()] = c.bias.clone().map(frugal_nn::to_vec),
            Frozen::Embedding(_) | Frozen::Param(_) => {}
        });
    }
    let mut out: Vec<Option<Parameter>> = (0..pairs.len()).map(|_| None).collect();
    for (id, info) in context.sites.iter().filter(|(_, s)| s.has_bias) {
        let adapted = pairs[id.index()].is_some();
        let wanted = match config.bias {
            Bias::None => false,
            Bias::LoraOnly => adapted,
            Bias::All => true,
        };
        if wanted {
            // peft wraps adapted layers, which moves their own parameters one level down.
            let name = if adapted {
                format!("{}.base_layer.bias", info.path)
            } else {
                format!("{}.bias", info.path)
            };
            let value = values[id.index()]
                .take()
                .unwrap_or_else(|| vec![0.0; info.d_out]);
            out[id.index()] = Some(Parameter::new(name, &[info.d_out], value, &context.device));
        }
    }
    if config.bias != Bias::None && out.iter().all(Option::is_none) {
        return Err(AdaptError::Config {
            method,
            field: "bias",
            reason: "there is no bias to train: use `bias = \"none\"`".into(),
        });
    }
    Ok(out)
}

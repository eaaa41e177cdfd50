//! New decoders with mixtures of experts: a router that is a recurrence over the blocks (RMoE), and
//! blocks that share all but their norms (WideNet), each beside models of equal cost.

mod arms;
mod rig;
mod routes;
mod size;

use super::pretraining::{TRIAL_SEED, Text, edges_note, listed, picked, shown};
use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{Arm, rmoe, widenet};
use rig::Rig;
use size::Size;

/// Routers that know of the blocks before.
pub static RMOE: Study = Study {
    name: "rmoe",
    kind: StudyKind::Pretrain,
    about: "perplexity of new decoders whose routers are one recurrence over the blocks, beside routers of single blocks at equal cost, and what both do to the load of experts and from block to block; every rate tuned with as many trials",
    source: "Qiu et al., Layerwise Recurrent Router for Mixture-of-Experts, 2024, arXiv 2408.06793 (qiuzh20/RMoE)",
    run: |request, observe| run(&RMOE_CLAIMS, request, observe),
};

/// Blocks that share attention and experts.
pub static WIDENET: Study = Study {
    name: "widenet",
    kind: StudyKind::Pretrain,
    about: "perplexity against parameters of new decoders whose blocks share attention and experts and have norms of their own, beside dense models of equal size and of equal operations; every rate tuned with as many trials",
    source: "Xue et al., Go Wider Instead of Deeper, 2021, arXiv 2107.11817 (XueFuzhao/WideNet_Code)",
    run: |request, observe| run(&WIDENET_CLAIMS, request, observe),
};

/// What is said to be better: the claim, the measure, the arm, the other arm, whether less is better.
type Sentence = (&'static str, &'static str, &'static str, &'static str, bool);

/// The arms of a study and what is claimed of them.
struct Claims {
    arms: fn(&Size) -> Vec<Arm>,
    sentences: &'static [Sentence],
}

pub(super) const PERPLEXITY: &str = "perplexity";
/// Of the numbers of tokens of the experts of a block: deviation by mean.
pub(super) const LOAD: &str = "load variation";
/// Between the likeliest experts of blocks that follow each other.
pub(super) const INFORMATION: &str = "mutual information, bits";
/// Of the likeliest experts of a token over the blocks.
pub(super) const PATHS: &str = "entropy of paths, bits";

static RMOE_CLAIMS: Claims = Claims {
    arms: rmoe,
    sentences: &[
        (
            "RMoE is better than a linear router with wider experts, at equal operations",
            PERPLEXITY,
            arms::GRU,
            arms::LINEAR_WIDER,
            true,
        ),
        (
            "RMoE is better than a linear router",
            PERPLEXITY,
            arms::GRU,
            arms::LINEAR,
            true,
        ),
        (
            "The recurrence makes RMoE better, at equal parameters",
            PERPLEXITY,
            arms::GRU,
            arms::NO_PREVIOUS,
            true,
        ),
        (
            "Gradients through the recurrence make RMoE better",
            PERPLEXITY,
            arms::GRU,
            arms::DETACH,
            true,
        ),
        (
            "Experts of blocks that follow each other have more to do with each other under RMoE",
            INFORMATION,
            arms::GRU,
            arms::LINEAR,
            false,
        ),
    ],
};

static WIDENET_CLAIMS: Claims = Claims {
    arms: widenet,
    sentences: &[
        (
            "WideNet is better than a dense model of equal size",
            PERPLEXITY,
            arms::WIDE,
            arms::DENSE_SIZE,
            true,
        ),
        (
            "WideNet is better than a dense model of equal operations, which is larger",
            PERPLEXITY,
            arms::WIDE,
            arms::DENSE_OPERATIONS,
            true,
        ),
        (
            "WideNet is better than ALBERT's sharing",
            PERPLEXITY,
            arms::WIDE,
            arms::ALBERT,
            true,
        ),
        (
            "Norms of their own make shared blocks with one expert better",
            PERPLEXITY,
            arms::OWN_NORMS,
            arms::ALBERT,
            true,
        ),
        (
            "More experts make shared blocks better",
            PERPLEXITY,
            arms::WIDE,
            arms::OWN_NORMS,
            true,
        ),
        (
            "Norms of their own make WideNet better",
            PERPLEXITY,
            arms::WIDE,
            arms::WIDE_SHARED_NORMS,
            true,
        ),
        (
            "Norms of their own make the paths of tokens more diverse",
            PATHS,
            arms::WIDE,
            arms::WIDE_SHARED_NORMS,
            false,
        ),
    ],
};

fn run(
    claims: &Claims,
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let arms = (claims.arms)(&size);
    let runs = arms.len() * (size.rates.len() + request.seeds.len());
    observe(StudyEvent::Planned { steps: runs as u64 });
    let text = Text::read(request, size.vocab_size, size.max_length)?;
    let rig = Rig {
        request,
        text: &text,
        size: &size,
    };
    let (mut outcome, mut edges) = (Outcome::default(), Vec::new());
    for arm in &arms {
        let rate = tuned(&rig, arm, &mut edges, observe)?;
        reported(&rig, arm, rate, &mut outcome, observe)?;
    }
    if !request.smoke {
        for &(claim, measure, better, than, lower) in claims.sentences {
            outcome.judge(claim, measure, better, than, lower);
        }
    }
    notes(&mut outcome, &size, &text, &edges);
    Ok(outcome)
}

/// The rate of an arm that does best on the part for tuning.
fn tuned(
    rig: &Rig<'_>,
    arm: &Arm,
    edges: &mut Vec<String>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<f64, StudyError> {
    let found = picked(rig.size.rates.iter().copied(), |rate| {
        let found = rig.trained(arm, rate, TRIAL_SEED)?;
        observe(StudyEvent::Step {
            what: format!("{}, rate {}", arm.name, shown(rate)),
        });
        Ok(found.map(|found| found.tuning_loss))
    })?;
    if found.is_edge {
        edges.push(arm.name.to_owned());
    }
    Ok(found.rate)
}

/// The runs of all seeds at the picked rate.
fn reported(
    rig: &Rig<'_>,
    arm: &Arm,
    rate: f64,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    for &seed in &rig.request.seeds {
        match rig.trained(arm, rate, seed)? {
            Some(found) => {
                let mut add = |measure: &str, value: f64| {
                    outcome.add(arm.name, measure, seed, value);
                };
                add(PERPLEXITY, found.test_loss.exp());
                add("parameters", found.parameters as f64);
                add("operations a token", found.operations);
                if let Some(routes) = found.routes {
                    add(LOAD, routes.load_variation);
                    add(INFORMATION, routes.information);
                    if arm.shares_experts {
                        add(PATHS, routes.path_entropy);
                    }
                }
                add("ms a step", 1e3 * found.seconds_per_step);
                add("rate", rate);
            }
            None => outcome.notes.push(format!(
                "{} with seed {seed}: the loss was not finite at the rate that was picked.",
                arm.name
            )),
        }
        observe(StudyEvent::Step {
            what: format!("{}, seed {seed}", arm.name),
        });
    }
    Ok(())
}

fn notes(outcome: &mut Outcome, size: &Size, text: &Text, edges: &[String]) {
    outcome.notes.extend([
        format!(
            "Decoders with tied embeddings, {} wide, with {} heads; {} blocks unless an arm says otherwise.",
            size.hidden_size, size.heads, size.blocks
        ),
        format!(
            "Tiny Shakespeare, {} tokens of a tokenizer of {} tokens to learn from, in {} steps of at most {} tokens; {} pieces to tune on, {} to report on, the same for all seeds.",
            text.tokens(),
            size.vocab_size,
            size.steps,
            size.batch_tokens,
            text.tuning.len(),
            text.test.len()
        ),
        format!(
            "Rates are one of {}, picked by one run each with a seed of their own. Cosine with 10 % of warm-up down to a tenth, AdamW, clipping at norm 1.",
            listed(size.rates)
        ),
        "Operations a token are multiply-adds of all products with weights, forward, without attention scores and the output head.".to_owned(),
    ]);
    outcome.notes.extend(edges_note(edges));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let size = Size::of(false);
        for claims in [&RMOE_CLAIMS, &WIDENET_CLAIMS] {
            let arms = (claims.arms)(&size);
            let mut names: Vec<&str> = arms.iter().map(|arm| arm.name).collect();
            for (claim, _, better, than, _) in claims.sentences {
                assert!(names.contains(better) && names.contains(than), "{claim}");
            }
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), arms.len());
        }
    }
}

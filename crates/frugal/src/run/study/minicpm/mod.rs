//! MiniCPM: decays of a stable run, rates carried over to larger models, target data in the decay.

mod measures;
mod rig;
mod schedules;
mod size;
mod target;
mod transfer;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use measures::RATE;
use rig::Rig;
use schedules::LONG;
use size::Size;

/// The study.
pub static MINICPM: Study = Study {
    name: "minicpm",
    kind: StudyKind::Pretrain,
    about: "loss of decays of one stable run beside a cosine of each length; the cost of a small model's best rate for a wider and a deeper one, with MiniCPM's rules and without; target data in the decay beside afterwards, at equal tokens; every arm tuned with as many trials",
    source: "Hu et al., MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies, 2024, arXiv 2404.06395",
    run,
};

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let rig = Rig::new(request, &size)?;
    let steps = schedules::planned(&rig) + transfer::planned(&rig) + target::planned(&rig);
    observe(StudyEvent::Planned { steps });
    let mut step = |what: String| observe(StudyEvent::Step { what });
    let mut outcome = Outcome::default();
    let picked = schedules::measure(&rig, &mut outcome, &mut step)?;
    transfer::measure(&rig, &mut outcome, &mut step)?;
    let middle = size.lengths[size.lengths.len() / 2];
    let rate = picked.get(&(middle, LONG)).copied().unwrap_or(RATE);
    let settings = target::measure(&rig, rate, &mut outcome, &mut step)?;

    schedules::claims(&mut outcome, size.lengths);
    transfer::claims(&mut outcome);
    target::claims(&mut outcome);
    let picked = picked
        .iter()
        .map(|((steps, end), rate)| format!("{}: {rate}", end.arm(*steps)));
    let picked: Vec<String> = picked.collect();
    let settings = settings.iter().map(|(arm, s)| format!("{arm}: {s}"));
    let settings: Vec<String> = settings.collect();
    notes(&mut outcome, &rig, &picked, &settings, rate);
    Ok(outcome)
}

fn notes(outcome: &mut Outcome, rig: &Rig<'_>, picked: &[String], settings: &[String], rate: f64) {
    let size = rig.size;
    let [width, layers] = size.model;
    let [text, target] = rig.tokens();
    let whole: u64 = size.lengths.iter().sum();
    let longest = size.lengths.last().copied().unwrap_or(0);
    // The stable stage of the longest, and a decay of each.
    let shared = longest - longest / 10 + size.lengths.iter().map(|steps| steps / 10).sum::<u64>();
    let [stable, decay, more] = size.stages;
    outcome.notes.extend([
        format!(
            "Tiny Shakespeare, {text} tokens of a tokenizer of {} tokens to learn from; the target is GSM8K, questions with answers, {target} tokens; steps of at most {} tokens, AdamW.",
            size.vocab_size, size.batch_tokens
        ),
        format!(
            "Schedules: models {width} wide of {layers} blocks. One stable run with its decays of 10 % takes {shared} steps, a cosine of each length {whole}. Rates are {RATE} times one of {:?}, picked by one run each with a seed of their own on another part of the text than is reported: {}.",
            size.factors,
            picked.join("; ")
        ),
        format!(
            "Rates carried over: widths {:?} at {} blocks and depths {:?} at a width of {}, {} steps of cosine at each of {:?}; the best rate is that of the part for tuning, losses are of the other; the base width of the rules is {}.",
            size.widths,
            size.depths[1],
            size.depths,
            size.widths[1],
            size.transfer_steps,
            size.rates,
            size.base_width()
        ),
        format!(
            "Target data: a stable run of {stable} steps at rate {rate}; then a decay of {} steps with {more} steps' worth of target tokens in it, or a decay of {decay} on the text and {more} steps on the target. Picked by one run each: where the decay ends as a share of the rate, or the multiple of that end at which the last stage begins: {}.",
            decay + more,
            settings.join("; ")
        ),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use measures::{LOSS, TARGET};
    use schedules::{End, SHORT};
    use transfer::Along;

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let mut outcome = Outcome::default();
        let lengths = Size::of(false).lengths;
        for seed in 0..3 {
            let mut add = |arm: &str, measure: &str| {
                outcome.add(arm, measure, seed, seed as f64 + arm.len() as f64);
            };
            for &steps in lengths {
                for end in [End::Cosine, LONG, SHORT, End::Stable] {
                    add(&end.arm(steps), LOSS);
                }
            }
            for (rules, along) in [true, false]
                .into_iter()
                .flat_map(|rules| [(rules, Along::Width), (rules, Along::Depth)])
            {
                add(&transfer::carried(rules, along), transfer::COST);
                add(&transfer::carried(rules, along), transfer::SHIFT);
            }
            for arm in [target::WITHIN, target::AFTER] {
                add(arm, TARGET);
                add(arm, LOSS);
            }
        }
        schedules::claims(&mut outcome, lengths);
        transfer::claims(&mut outcome);
        target::claims(&mut outcome);
        assert_eq!(outcome.claims.len(), 3 * lengths.len() + 4 + 2);
        assert!(outcome.claims.iter().all(|c| c.difference.is_some()));
    }
}

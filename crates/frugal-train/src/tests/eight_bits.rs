//! Moments of eight bits in checkpoints.

use super::*;
use crate::checkpoint;
use crate::checkpoint::{Checkpoint, Cost, TrainerState};
use crate::optim::{OptimizerStep, StateTensor};

#[test]
fn moments_of_eight_bits_go_on_from_a_checkpoint() {
    let config = TrainConfig {
        optim: "adamw_8bit".into(),
        ..TrainConfig::default()
    };
    // One parameter that is large enough for eight bits, and one that is not.
    let wave = |n: usize, f: f64| {
        (0..n)
            .map(|i| (i as f64 * f).sin() as f32)
            .collect::<Vec<_>>()
    };
    let parameters = || {
        [("large", 5000), ("small", 100)]
            .map(|(name, n)| Parameter::new(name, &[1, n], wave(n, 0.3), &Device::flex()))
    };
    let steps = |optimizer: &mut OptimizerStep,
                 parameters: &mut [Parameter; 2],
                 steps: std::ops::Range<u32>| {
        for step in steps {
            let mut gradients = GradientSum::default();
            for parameter in parameters.iter() {
                gradients.insert(
                    parameter.name(),
                    wave(parameter.len(), 0.7 + f64::from(step)),
                );
            }
            optimizer
                .step(
                    parameters.iter_mut().collect(),
                    &gradients,
                    &crate::optim::squares(&gradients),
                    1e-2,
                )
                .unwrap();
        }
    };
    let new = || OptimizerStep::new(optim::made(&config).unwrap(), &config).unwrap();
    let state = |optimizer: &OptimizerStep| format!("{:?}", optimizer.optimizer().state());
    let (mut whole, mut optimizer) = (parameters(), new());
    steps(&mut optimizer, &mut whole, 0..3);
    let has_codes = |name: &str| {
        let state = optimizer.optimizer().state();
        let mut found = state
            .iter()
            .filter(|(key, _)| *key == format!("exp_avg.{name}"));
        matches!(found.next(), Some((_, StateTensor::Codes(_))))
    };
    assert!(has_codes("large") && !has_codes("small"));

    let run = tempfile::tempdir().unwrap();
    let trainer = TrainerState {
        step: 3,
        step_in_epoch: 3,
        ..TrainerState::start(config.clone(), Default::default())
    };
    let saved = checkpoint::save(
        run.path(),
        &trainer,
        Cost::default(),
        &whole.iter().collect::<Vec<_>>(),
        optimizer.optimizer().state(),
        &BTreeMap::new(),
    )
    .unwrap();
    let (mut part, mut resumed) = (parameters(), new());
    let opened = Checkpoint::open(&saved).unwrap();
    opened.load_parameters(part.iter_mut().collect()).unwrap();
    opened.load_optimizer(resumed.optimizer_mut()).unwrap();
    assert_eq!(state(&resumed), state(&optimizer));
    steps(&mut optimizer, &mut whole, 3..6);
    steps(&mut resumed, &mut part, 3..6);
    assert_eq!(state(&resumed), state(&optimizer));
    for (a, b) in whole.iter().zip(&part) {
        assert_eq!(a.to_vec(), b.to_vec());
    }
}

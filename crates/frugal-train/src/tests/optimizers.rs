use super::*;
use crate::optim::{self, OptimizerStep, SavedState, SavedTensor, StateTensor};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    settings: Map<String, Value>,
    lr: f64,
    weight_decay: f64,
    start: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let file = read_json(&fixture("training/optimizers.json")).unwrap();
    serde_json::from_value(file["cases"].clone()).unwrap()
}

impl Case {
    fn config(&self) -> TrainConfig {
        TrainConfig {
            optim: Named {
                name: self.name.clone(),
                settings: self.settings.clone(),
            },
            weight_decay: self.weight_decay,
            max_grad_norm: 0.0,
            ..TrainConfig::default()
        }
    }

    fn optimizer(&self) -> OptimizerStep {
        let config = self.config();
        OptimizerStep::new(optim::made(&config).unwrap(), &config).unwrap()
    }

    fn step(&self, optimizer: &mut OptimizerStep, parameter: &mut Parameter, gradient: &[f32]) {
        let mut gradients = GradientSum::default();
        gradients.insert("w", gradient.to_vec());
        optimizer
            .step(
                vec![parameter],
                &gradients,
                &crate::optim::squares(&gradients),
                self.lr,
            )
            .unwrap();
    }
}

/// A state as a checkpoint gives it back.
pub(super) fn saved(optimizer: &OptimizerStep) -> SavedState {
    let state = optimizer.optimizer().state().into_iter();
    let saved = |tensor: StateTensor<'_>| match tensor {
        StateTensor::Values(values) => SavedTensor::Values(values.to_vec()),
        StateTensor::Device(tensor) => SavedTensor::Values(frugal_nn::to_vec(tensor.clone())),
        StateTensor::Codes(codes) => SavedTensor::Codes(codes.to_vec()),
        StateTensor::Count(count) => SavedTensor::Count(count),
    };
    state.map(|(name, tensor)| (name, saved(tensor))).collect()
}

#[test]
fn sgd_and_lion_move_as_pytorch_and_the_reference_do() {
    let cases = cases();
    assert!(
        ["sgd", "lion"]
            .iter()
            .all(|n| cases.iter().any(|c| c.name == *n))
    );
    for case in cases {
        let mut p = Parameter::new("w", &[2, 3], case.start.clone(), &Device::flex());
        let mut optimizer = case.optimizer();
        for (step, (gradient, after)) in case.gradients.iter().zip(&case.after).enumerate() {
            // Half way the state goes through a checkpoint.
            if step == 2 {
                let state = saved(&optimizer);
                optimizer = case.optimizer();
                optimizer.optimizer_mut().restore(state).unwrap();
            }
            case.step(&mut optimizer, &mut p, gradient);
            for (found, expected) in p.to_vec().iter().zip(after) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{} {:?}, step {step}: {found} instead of {expected}",
                    case.name,
                    case.settings
                );
            }
        }
    }
}

#[test]
fn a_state_of_another_optimizer_is_refused() {
    let state = SavedState::from([("exp_avg_sq.w".to_owned(), SavedTensor::Values(vec![0.0]))]);
    for (name, _) in [
        ("adamw", 0),
        ("adamw_8bit", 0),
        ("sgd", 0),
        ("lion", 0),
        ("spam", 0),
        ("stable_spam", 0),
        ("loro", 0),
    ] {
        let config = TrainConfig {
            optim: name.into(),
            ..TrainConfig::default()
        };
        let error = optim::made(&config).unwrap().restore(state.clone());
        assert_eq!(
            error,
            Err("`exp_avg_sq.w` is not part of this optimizer's state".into()),
            "{name}"
        );
    }
}

#[test]
fn settings_that_no_optimizer_has_are_refused_by_name() {
    let problem = |optim: Named| {
        let config = TrainConfig {
            optim,
            ..TrainConfig::default()
        };
        config.validate().unwrap_err()[0].to_string()
    };
    assert_eq!(
        problem("adam".into()),
        "`optim`: \"adam\" is no optimizer; there are adamw, adamw_8bit, sgd, lion, adafactor, adam_mini, muon, galore, golore, fira, apollo, spam, stable_spam, loro"
    );
    let unnamed = Named {
        name: String::new(),
        settings: Map::from_iter([("beta1".to_owned(), 1.5.into())]),
    };
    let said = problem(unnamed);
    assert!(
        said.contains("--optim NAME") && !said.contains("\"\""),
        "{said}"
    );
    let named = |name: &str, key: &str, value: f64| Named {
        name: name.into(),
        settings: Map::from_iter([(key.to_owned(), value.into())]),
    };
    assert!(problem(named("sgd", "momentun", 0.5)).contains("`momentun`"));
    assert!(problem(named("sgd", "momentum", 1.0)).contains("within 0 and 1"));
    assert!(problem(named("adamw", "beta1", 0.5)).contains("`beta1`"));
    assert!(problem(named("lion", "beta2", -1.0)).contains("within 0 and 1"));
}

#[test]
fn runs_with_other_optimizers_resume_to_the_same_bits() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7, 4, 6]));
    let others = [
        ("muon", 0.002),
        ("adafactor", 0.3),
        ("apollo", 0.01),
        ("spam", 0.01),
        ("stable_spam", 0.01),
        ("loro", 0.05),
    ];
    for (optim, lr) in [("sgd", 0.05), ("lion", 0.001)].into_iter().chain(others) {
        let config = TrainConfig {
            lr,
            optim: if optim == "apollo" {
                let settings = r#"{"rank": 2, "update_proj_gap": 4}"#;
                Named {
                    name: optim.to_owned(),
                    settings: serde_json::from_str(settings).unwrap(),
                }
            } else {
                optim.into()
            },
            epochs: 3.0,
            batch_size: 2,
            logging_steps: 1,
            save_total_limit: 0,
            ..TrainConfig::default()
        };
        let mut whole = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config.clone());
        whole.run().unwrap();
        let losses = whole.losses();
        // Three steps are an epoch.
        let epoch = |i: usize| losses[3 * i..3 * i + 3].iter().sum::<f64>();
        assert!(epoch(2) < epoch(0), "{optim}: {losses:?}");
        let folder = tempfile::tempdir().unwrap();
        let mut first = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config.clone());
        (first.folder, first.stop_at) = (Some(folder.path()), Some(4));
        assert_eq!(first.run().unwrap().ending, StopReason::Interrupted);
        let mut second = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        (second.folder, second.resume) = (Some(folder.path()), true);
        second.run().unwrap();
        assert_eq!(second.bits(), whole.bits(), "{optim}");
    }
}

#[test]
fn a_group_that_no_parameter_belongs_to_is_refused() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 4]));
    let config = TrainConfig {
        param_groups: serde_json::from_str(r#"[{"pattern": "lora_C", "lr_scale": 2}]"#).unwrap(),
        ..TrainConfig::default()
    };
    let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
    let error = setup.run().unwrap_err().to_string();
    assert_eq!(
        error,
        "`param_groups`: no parameter is left for the pattern \"lora_C\""
    );
    setup.config.param_groups[0].pattern = "lora_(".into();
    let error = setup.run().unwrap_err().to_string();
    assert!(
        error.contains("`param_groups`: \"lora_(\" is no regular expression"),
        "{error}"
    );
}

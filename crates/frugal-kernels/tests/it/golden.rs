//! Values and gradients against those of PyTorch, which `scripts/golden/kernels.py` wrote.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use frugal_kernels::{
    AdamWStep, AttentionSpec, CrossEntropyOptions, LinearRecurrence, LowRankRows, ScoreBias,
    adamw_step, add_layer_norm, add_rms_norm, attention, biased_attention, geglu_tanh, gelu,
    gelu_tanh, layer_norm, linear, linear_cross_entropy, linear_recurrence, lora_linear,
    multi_lora_linear, rms_norm, rope, silu, swiglu, token_log_probs,
};
use safetensors::{Dtype, SafeTensors};

use crate::support::{Array, assert_close, row};

const EPS: f64 = 1e-5;
const TOLERANCE: f64 = 2e-5;

struct Golden {
    arrays: BTreeMap<String, Array>,
    targets: Vec<i32>,
}

impl Golden {
    fn read() -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kernels/golden.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let (mut arrays, mut targets) = (BTreeMap::new(), Vec::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let words = view.data().as_chunks::<4>().0;
            match view.dtype() {
                Dtype::F32 => {
                    let shape = match *view.shape() {
                        [n] => [1, n],
                        [rows, cols] => [rows, cols],
                        ref other => panic!("{name}: {other:?}"),
                    };
                    arrays.insert(
                        name,
                        Array {
                            data: words.iter().map(|word| f32::from_le_bytes(*word)).collect(),
                            shape,
                        },
                    );
                }
                Dtype::I32 => {
                    targets = words.iter().map(|word| i32::from_le_bytes(*word)).collect()
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        Self { arrays, targets }
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.arrays[name].data
    }

    /// What the file gives for `op` of all inputs of the case, and no others.
    #[track_caller]
    fn check(&self, name: &str, op: impl Fn(&[Tensor<2>]) -> Tensor<2>) {
        let plain = Device::flex();
        let inputs: Vec<(usize, &Array)> = (0..)
            .map_while(|i| Some((i, self.arrays.get(&format!("{name}.x{i}"))?)))
            .collect();
        let tensors: Vec<Tensor<2>> = inputs
            .iter()
            .map(
                |(i, input)| match self.arrays.contains_key(&format!("{name}.g{i}")) {
                    true => Tensor::from_inner(input.tensor(&plain)).require_grad(),
                    false => input.tensor(&plain),
                },
            )
            .collect();
        let y = op(&tensors);
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let found: Vec<f32> = y.clone().into_data().try_into_vec().unwrap();
        assert_close(
            name,
            &found,
            &wide(self.values(&format!("{name}.y"))),
            TOLERANCE,
        );
        let gradients = (y * self.arrays[&format!("{name}.w")].tensor(&plain))
            .sum()
            .backward();
        for (i, _) in inputs {
            if let Some(expected) = self.arrays.get(&format!("{name}.g{i}")) {
                let found: Vec<f32> = tensors[i]
                    .grad(&gradients)
                    .unwrap()
                    .into_data()
                    .try_into_vec()
                    .unwrap();
                assert_close(
                    &format!("{name}: gradient of input {i}"),
                    &found,
                    &wide(&expected.data),
                    TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn norms_and_activations() {
    let golden = Golden::read();
    let both = |[sum, norm]: [Tensor<2>; 2]| Tensor::cat(vec![sum, norm], 1);
    golden.check("rms_norm", |t| rms_norm(t[0].clone(), row(&t[1]), EPS));
    golden.check("layer_norm", |t| {
        layer_norm(t[0].clone(), row(&t[1]), Some(row(&t[2])), EPS)
    });
    golden.check("add_rms_norm", |t| {
        both(add_rms_norm(t[0].clone(), t[1].clone(), row(&t[2]), EPS))
    });
    golden.check("add_layer_norm", |t| {
        both(add_layer_norm(
            t[0].clone(),
            t[1].clone(),
            row(&t[2]),
            Some(row(&t[3])),
            EPS,
        ))
    });
    golden.check("silu", |t| silu(t[0].clone()));
    golden.check("gelu", |t| gelu(t[0].clone()));
    golden.check("gelu_tanh", |t| gelu_tanh(t[0].clone()));
    golden.check("swiglu", |t| swiglu(t[0].clone(), t[1].clone()));
    golden.check("geglu_tanh", |t| geglu_tanh(t[0].clone(), t[1].clone()));
    golden.check("rope", |t| {
        rope(t[0].clone(), t[1].clone(), t[2].clone(), 16)
    });
}

#[test]
fn attention_of_all_kinds() {
    let golden = Golden::read();
    // Queries and keys of each sequence.
    let spec = |lengths: [[usize; 2]; 2]| {
        let cu = |side: usize| -> Arc<[usize]> {
            [0, lengths[0][side], lengths[0][side] + lengths[1][side]].into()
        };
        let (cu_q, cu_k) = (cu(0), cu(1));
        AttentionSpec {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            scale: 0.3,
            causal: false,
            window: None,
            cu_q,
            cu_k,
            softcap: None,
        }
    };
    let same = spec([[5, 5], [12, 12]]);
    let causal = AttentionSpec {
        causal: true,
        ..same.clone()
    };
    let check = |name: &str, spec: AttentionSpec| {
        golden.check(name, |t| {
            attention(t[0].clone(), t[1].clone(), t[2].clone(), &spec)
        })
    };
    check("attention_causal", causal.clone());
    check(
        "attention_behind_others",
        AttentionSpec {
            causal: true,
            ..spec([[3, 7], [6, 6]])
        },
    );
    check(
        "attention_window",
        AttentionSpec {
            window: Some(4),
            ..causal.clone()
        },
    );
    check(
        "attention_window_both",
        AttentionSpec {
            window: Some(3),
            ..same.clone()
        },
    );
    check("attention_bidirectional", same.clone());
    check("attention_cross", spec([[5, 3], [4, 9]]));
    check(
        "attention_softcap",
        AttentionSpec {
            softcap: Some(2.0),
            ..causal
        },
    );
    golden.check("attention_bias", |t| {
        let bias = ScoreBias::Positions(t[3].clone().reshape([4, 12, 12]));
        biased_attention(t[0].clone(), t[1].clone(), t[2].clone(), &bias, &same)
    });
}

#[test]
fn linear_recurrences() {
    let golden = Golden::read();
    let check = |name: &str, cu: [usize; 3], reverse: bool, resets: Option<Vec<usize>>| {
        golden.check(name, |t| {
            linear_recurrence(LinearRecurrence {
                a: t[0].clone(),
                b: t[1].clone(),
                initial_state: Some(t[2].clone()),
                resets: resets
                    .clone()
                    .map(|rows| (0..17).map(|t| rows.contains(&t)).collect()),
                reverse,
                cu_seqlens: cu.into(),
            })
        });
    };
    check("linear_recurrence", [0, 5, 17], false, None);
    let labels = vec![7, 8, 9, 14];
    check("linear_recurrence_reverse", [0, 12, 17], true, Some(labels));
}

#[test]
fn linear_maps_and_the_loss() {
    let golden = Golden::read();
    golden.check("linear", |t| {
        linear(t[0].clone(), t[1].clone(), Some(row(&t[2])))
    });
    golden.check("lora_linear", |t| {
        lora_linear(
            t[0].clone(),
            t[1].clone(),
            None,
            t[2].clone(),
            t[3].clone(),
            0.7,
        )
    });
    golden.check("multi_lora_linear", |t| {
        let pair = |i: usize, rows, scale| LowRankRows {
            rows,
            a: t[i].clone(),
            b: t[i + 1].clone(),
            scale,
        };
        multi_lora_linear(
            t[0].clone(),
            t[1].clone(),
            None,
            &[pair(2, 1..4, 0.7), pair(4, 4..9, -1.3)],
        )
    });
    let plain = CrossEntropyOptions::default();
    for (name, opts) in [
        ("cross_entropy", plain),
        (
            "cross_entropy_smoothed",
            CrossEntropyOptions {
                label_smoothing: 0.1,
                ..plain
            },
        ),
        (
            "cross_entropy_z_loss",
            CrossEntropyOptions {
                z_loss: 0.01,
                ..plain
            },
        ),
        (
            "cross_entropy_softcap",
            CrossEntropyOptions {
                logit_softcap: Some(3.0),
                ..plain
            },
        ),
    ] {
        golden.check(name, |t| {
            linear_cross_entropy(
                t[0].clone(),
                t[1].clone(),
                Some(row(&t[2])),
                &golden.targets,
                &opts,
            )
            .reshape([1, 1])
        });
    }
    let input = |i: usize| golden.arrays[&format!("cross_entropy.x{i}")].tensor(&Device::flex());
    let found = token_log_probs(input(0), input(1), Some(row(&input(2))), &golden.targets);
    let expected: Vec<f64> = golden
        .values("token_log_probs.y")
        .iter()
        .map(|&v| f64::from(v))
        .collect();
    assert_close("token_log_probs", &found, &expected, TOLERANCE);
}

#[test]
fn steps_of_adamw() {
    let golden = Golden::read();
    let mut parameters = golden.values("adamw.x0").to_vec();
    let (mut exp_avg, mut exp_avg_sq) = (vec![0.0; parameters.len()], vec![0.0; parameters.len()]);
    for step in 1..=3 {
        let h = AdamWStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        adamw_step(
            &mut parameters,
            golden.values(&format!("adamw.x{step}")),
            &mut exp_avg,
            &mut exp_avg_sq,
            &h,
        );
        let expected: Vec<f64> = golden
            .values(&format!("adamw.y{step}"))
            .iter()
            .map(|&v| f64::from(v))
            .collect();
        assert_close(
            &format!("parameters after step {step}"),
            &parameters,
            &expected,
            TOLERANCE,
        );
    }
}

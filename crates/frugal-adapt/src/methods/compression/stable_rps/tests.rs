use super::*;
use frugal_models::ModelConfig;
use frugal_nn::{SiteTable, Weight};

fn with<T>(raw: Value, settings: Value, check: impl FnOnce(StableRps, &SiteTable) -> T) -> T {
    let model = ModelConfig::from_json(raw, "test").unwrap();
    let sites = model.sites();
    let context = BuildContext {
        info: &model.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed: 1,
        tokenize: None,
    };
    let adapter = StableRps::new(
        StableRpsConfig::parse(settings.as_object().unwrap()).unwrap(),
        &context,
    )
    .unwrap();
    check(adapter, &sites)
}

fn llama(hidden: usize, ff: usize, layers: usize, heads: (usize, usize)) -> Value {
    json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers,
        "num_attention_heads": heads.0, "num_key_value_heads": heads.1, "vocab_size": 64, "tie_word_embeddings": true})
}

#[test]
fn the_array_has_its_share_of_all_weights() {
    let count = with(llama(576, 1536, 30, (9, 3)), json!({}), |adapter, _| {
        adapter.num_trainable()
    });
    assert_eq!(count, 10_616_832);
}

#[test]
fn gradients_are_gathered_with_signs_and_scales() {
    for mapper in ["random_fold", "roast", "hashed"] {
        with(
            llama(16, 24, 2, (4, 2)),
            json!({"mapper": mapper, "init": "random", "compression": 3.7}),
            |mut adapter, sites| {
                let scales: Vec<f32> = (0..adapter.scale.len()).map(|i| 0.5 + i as f32).collect();
                adapter.scale.set(scales.clone());
                let id = sites.find("model.layers.1.mlp.up_proj").unwrap();
                let (span, index) = adapter.at(id).map(|s| (s.span, s.index)).unwrap();
                let (indices, signs) = (adapter.mapping.indices(span), adapter.mapping.signs(span));
                let psi = adapter.psi.to_vec();
                let weight = adapter.weight(
                    adapter.at(id).unwrap(),
                    &adapter.psi.get::<1>(Mode::Train { seed: 0 }),
                );
                let expected: Vec<f32> = indices
                    .iter()
                    .zip(&signs)
                    .map(|(&j, s)| scales[index] * s * psi[j])
                    .collect();
                assert_eq!(to_vec(weight.clone().inner()), expected);
                let dense: Vec<f32> = (0..span.len()).map(|i| (i as f32 * 0.3).cos()).collect();
                let dense_tensor = Tensor::<2>::from_data(
                    TensorData::new(dense.clone(), [span.rows, span.cols]),
                    &Device::default(),
                );
                let found = to_vec(
                    adapter
                        .psi
                        .take_gradient(&mut (weight * dense_tensor).sum().backward())
                        .unwrap(),
                );
                let mut scattered = vec![0.0f32; psi.len()];
                for (i, &j) in indices.iter().enumerate() {
                    scattered[j] += scales[index] * signs[i] * dense[i];
                }
                found
                    .iter()
                    .zip(&scattered)
                    .for_each(|(f, e)| assert!((f - e).abs() < 1e-4, "{mapper}: {f} {e}"));
            },
        );
    }
}

#[test]
fn updates_count_in_units_of_weights() {
    with(
        llama(16, 24, 1, (4, 2)),
        json!({"init": "random"}),
        |mut adapter, _| {
            adapter.scale.set(vec![4.0; adapter.scale.len()]);
            let (context, mut gradients) = (
                StepContext {
                    step: 0,
                    total_steps: 1,
                    seed: 0,
                    lr_factor: 1.0,
                },
                GradientSum::default(),
            );
            gradients.insert("rps.psi", vec![4.0; adapter.psi.len()]);
            let old = adapter.psi.to_vec();
            adapter.before_step(&context, &mut gradients);
            // With one λ, Γ = n λ²: n λ before the step and λ after it.
            let usage = adapter.usage().count.clone();
            gradients
                .get("rps.psi")
                .unwrap()
                .iter()
                .zip(usage)
                .for_each(|(g, n)| assert!((g - 1.0 / n).abs() < 1e-6));
            adapter.psi.set(old.iter().map(|v| v + 1.0).collect());
            adapter.after_step(&context);
            adapter
                .psi
                .to_vec()
                .iter()
                .zip(&old)
                .for_each(|(new, old)| assert!((new - old - 0.25).abs() < 1e-6));
        },
    );
}

#[test]
fn a_tied_head_follows_its_table() {
    with(
        llama(16, 24, 1, (4, 2)),
        json!({"target_modules": ["embed_tokens", "q_proj"]}),
        |adapter, sites| {
            let (head, table) = (
                sites.find("lm_head").unwrap(),
                sites.find("model.embed_tokens").unwrap(),
            );
            assert_eq!(
                adapter.at(head).unwrap().span.offset,
                adapter.at(table).unwrap().span.offset
            );
            assert_eq!(adapter.num_trainable(), (64 * 16 + 16 * 16) / 10);
            let base = Linear {
                site: head,
                weight: Weight::Dense(Tensor::zeros([64, 16], &Device::default())),
                bias: None,
            };
            assert_eq!(
                adapter.merged_linear(&base).unwrap().unwrap().weight.dims(),
                [64, 16]
            );
            let other = Linear {
                site: sites.find("model.layers.0.self_attn.k_proj").unwrap(),
                ..base.clone()
            };
            let mut pass = adapter.pass(Mode::Eval);
            assert_eq!(
                (
                    matches!(pass.linear_change(&base), LinearChange::None),
                    matches!(pass.linear_change(&other), LinearChange::None)
                ),
                (false, true)
            );
        },
    );
}

#[test]
fn matrices_of_a_pass_add_to_one_gradient_and_follow_their_scales() {
    with(
        llama(16, 24, 1, (4, 2)),
        json!({"init": "random"}),
        |mut adapter, sites| {
            let maps = ["q_proj", "o_proj"].map(|name| {
                sites
                    .find(&format!("model.layers.0.self_attn.{name}"))
                    .unwrap()
            });
            let gradient = |adapter: &StableRps, sites: &[SiteId]| {
                let psi = adapter.psi.get::<1>(Mode::Train { seed: 0 });
                let sums = sites
                    .iter()
                    .map(|&id| adapter.weight(adapter.at(id).unwrap(), &psi).sum());
                to_vec(
                    adapter
                        .psi
                        .take_gradient(&mut sums.reduce(|a, b| a + b).unwrap().backward())
                        .unwrap(),
                )
            };
            let (first, second, both) = (
                gradient(&adapter, &maps[..1]),
                gradient(&adapter, &maps[1..]),
                gradient(&adapter, &maps),
            );
            both.iter()
                .zip(first.iter().zip(&second))
                .for_each(|(sum, (a, b))| assert!((sum - a - b).abs() < 1e-5));
            adapter.scale.set(vec![2.0; adapter.scale.len()]);
            gradient(&adapter, &maps)
                .iter()
                .zip(&both)
                .for_each(|(new, old)| assert!((new - 2.0 * old).abs() < 1e-5));
        },
    );
}

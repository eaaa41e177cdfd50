use super::*;
use frugal_models::ModelConfig;
use frugal_nn::Weight;

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(f, e)| {
        assert!(
            (f - e).abs() < tolerance,
            "{found:?} instead of {expected:?}"
        )
    });
}

fn plan(raw: Value, settings: Value) -> Svfit {
    let config = ModelConfig::from_json(raw, "test").unwrap();
    let sites = config.sites();
    let context = BuildContext {
        info: &config.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed: 1,
        tokenize: None,
    };
    Svfit::new(
        own_files::parse(NAME, settings.as_object().unwrap()).unwrap(),
        &context,
    )
    .unwrap()
}

/// An adapter with one layer, `W = [[3, 0], [4, 5]]`.
fn worked(settings: Value) -> (Svfit, Linear) {
    let raw = serde_json::json!({"model_type": "llama", "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 4});
    let mut svfit = plan(raw.clone(), settings);
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
    let id = sites.find("model.layers.0.self_attn.q_proj").unwrap();
    let weight = Tensor::<2>::from_data([[3.0, 0.0], [4.0, 5.0]], &Device::default());
    let atoms = Atoms::new(&svfit.config, &context, id, Some(&weight));
    svfit.sites.iter_mut().for_each(|site| *site = None);
    svfit.sites[id.index()] = Some(atoms);
    (
        svfit,
        Linear {
            site: id,
            weight: Weight::Dense(weight),
            bias: None,
        },
    )
}

fn raise_first(svfit: &mut Svfit, by: f32) {
    for parameter in svfit
        .parameters_mut()
        .into_iter()
        .filter(|p| p.is_trainable())
    {
        let mut values = parameter.to_vec();
        values[0] = by;
        parameter.set(values);
    }
}

#[test]
fn raising_a_singular_value_adds_its_atom() {
    let (mut svfit, base) = worked(json!({}));
    close(
        &svfit.parameters()[2].to_vec(),
        &[6.708_204, 2.236_068],
        1e-5,
    );
    raise_first(&mut svfit, 1.0);
    let merged = svfit.merged_linear(&base).unwrap().unwrap();
    close(
        &to_vec(merged.weight),
        &[3.223_607, 0.223_607, 4.670_82, 5.670_82],
        1e-5,
    );
    // The change of a weight is as large as that of its singular values, relative ones
    // included.
    let (mut relative, base) = worked(json!({"relative": true}));
    raise_first(&mut relative, 0.5);
    let change = to_vec(relative.weight_delta(&base).unwrap().unwrap());
    close(
        &[change.iter().map(|v| v * v).sum::<f32>().sqrt()],
        &[0.5 * 6.708_204],
        1e-5,
    );
    // Below 0 there is nothing: the atom is gone.
    let (mut clamped, base) = worked(json!({"nonnegative": true}));
    raise_first(&mut clamped, -100.0);
    let change = to_vec(clamped.weight_delta(&base).unwrap().unwrap());
    close(
        &[change.iter().map(|v| v * v).sum::<f32>().sqrt()],
        &[6.708_204],
        1e-5,
    );
}

#[test]
fn the_gradient_of_a_singular_value_projects_that_of_the_weight() {
    let (svfit, base) = worked(json!({}));
    // With x the unit matrix, y = W'ᵀ, so weights on y are the gradient of W' transposed.
    let device = Device::default();
    let x = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0]], &device.clone().autodiff());
    let y = svfit.pass(Mode::Train { seed: 0 }).linear(&base, x);
    let mut gradients = (y * Tensor::<2>::from_data([[1.0, 3.0], [2.0, 4.0]], &device))
        .sum()
        .backward();
    let found = svfit.parameters()[3].take_gradient(&mut gradients).unwrap();
    close(&to_vec(found), &[5.366_563_2, -0.447_213_6], 1e-5);
}

#[test]
fn the_share_of_energy_decides_the_rank() {
    assert_eq!(rank_of_energy(&[6.708_204, 2.236_068], 0.9), 1);
    assert_eq!(rank_of_energy(&[6.708_204, 2.236_068], 0.99), 2);
    let (svfit, _) = worked(json!({"energy": 0.9}));
    assert_eq!(
        (
            svfit.num_trainable(),
            &svfit.peft_config()["rank_pattern"]["model.layers.0.self_attn.q_proj"]
        ),
        (1, &json!(1))
    );
}

#[test]
fn counts_are_one_number_per_singular_value() {
    let roberta = serde_json::json!({"model_type": "roberta", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 64, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1});
    assert_eq!(plan(roberta, json!({"r": 768})).num_trainable(), 18_432);
    let smollm = serde_json::json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64});
    assert_eq!(
        plan(
            smollm.clone(),
            json!({"r": 192, "target_modules": "all-linear"})
        )
        .num_trainable(),
        40_320
    );
    assert_eq!(
        plan(smollm, json!({"r": 576, "target_modules": "all-linear"})).num_trainable(),
        97_920
    );
}

#[test]
fn banded_and_dense_cores_are_the_formulas() {
    // W = [[3, 0], [4, 5]] has the singular values 6.708204 and 2.236068.
    for (settings, core) in [
        (
            serde_json::json!({"core": "dense"}),
            [0.3f32, -0.2, 0.5, 0.1],
        ),
        (
            serde_json::json!({"core": "dense", "relative": true}),
            [0.3, -0.2, 0.5, 0.1],
        ),
        (
            serde_json::json!({"core": "banded", "band": 0}),
            [0.3, 0.0, 0.0, 0.1],
        ),
        (
            serde_json::json!({"core": "banded", "band": 7}),
            [0.3, -0.2, 0.5, 0.1],
        ),
    ] {
        let relative = settings.get("relative").is_some();
        let is_narrow = settings.get("band") == Some(&serde_json::json!(0));
        let (mut svfit, base) = worked(settings);
        let atoms = svfit.sites.iter_mut().flatten().next().unwrap();
        let values = if is_narrow {
            vec![core[0], core[3]]
        } else {
            core.to_vec()
        };
        assert_eq!(atoms.delta.len(), values.len());
        atoms.delta.set(values);
        let (u, s, vt) = (atoms.u.to_vec(), atoms.sigma.to_vec(), atoms.vt.to_vec());
        let mut expected = [0.0f32; 4];
        for (row, column, i, j) in (0..16).map(|n| (n / 8, n / 4 % 2, n / 2 % 2, n % 2)) {
            let scale = if relative { s[i] } else { 1.0 };
            expected[row * 2 + column] +=
                u[row * 2 + i] * scale * core[i * 2 + j] * vt[j * 2 + column];
        }
        let found = to_vec(svfit.weight_delta(&base).unwrap().unwrap());
        close(&found, &expected, 1e-5);
        let x = Tensor::<2>::eye(2, &Device::default());
        let y = to_vec(svfit.pass(Mode::Eval).linear(&base, x));
        let w = [3.0f32, 0.0, 4.0, 5.0];
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let expected = w[column * 2 + row] + expected[column * 2 + row];
            assert!((y[row * 2 + column] - expected).abs() < 1e-4);
        }
    }
}

#[test]
fn a_random_basis_is_orthonormal_and_the_exact_one_that_of_the_weight() {
    let (r, len) = (3, 7);
    let rows = orthonormal(5, "a layer", len, r);
    for (i, j) in (0..r * r).map(|n| (n / r, n % r)) {
        let product: f32 = (0..len)
            .map(|k| rows[i * len + k] * rows[j * len + k])
            .sum();
        let expected = if i == j { 1.0 } else { 0.0 };
        assert!((product - expected).abs() < 1e-5, "{i} {j}: {product}");
    }
    assert_ne!(rows, orthonormal(6, "a layer", len, r));
    let random = worked(serde_json::json!({"basis": "random"})).0;
    let own = worked(serde_json::json!({"exact_svd": true, "r": 1})).0;
    let sigma = |svfit: &Svfit| svfit.sites.iter().flatten().next().unwrap().sigma.to_vec();
    close(&sigma(&random), &[0.0, 0.0], 1e-7);
    close(&sigma(&own), &[6.708_204], 1e-5);
    for (settings, field) in [
        (
            serde_json::json!({"basis": "random", "relative": true}),
            "relative",
        ),
        (
            serde_json::json!({"core": "dense", "nonnegative": true}),
            "nonnegative",
        ),
    ] {
        let message = (METHOD.check)(settings.as_object().unwrap())
            .unwrap_err()
            .to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
}

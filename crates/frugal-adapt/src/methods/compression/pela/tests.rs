use super::*;
use frugal_models::ModelConfig;

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(f, e)| {
        assert!(
            (f - e).abs() < tolerance,
            "{found:?} instead of {expected:?}"
        )
    });
}

fn matrix(values: Vec<f32>, rows: usize, cols: usize) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [rows, cols]), &Device::default())
}

#[test]
fn ranks_and_sizes_are_those_of_the_paper() {
    let ranks = |c: f64, sides: [(usize, usize); 4]| {
        let config = PelaConfig {
            compression_ratio: c,
            ..PelaConfig::default()
        };
        sides.map(|(d_in, d_out)| config.rank(d_in, d_out))
    };
    // DeiT-B: fused qkv, projection and the two feed-forward layers.
    let deit = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
    assert_eq!(ranks(2.0, deit), [288, 192, 307, 307]);
    assert_eq!(ranks(3.0, deit), [192, 128, 204, 204]);
    assert_eq!(ranks(1.5, deit), [384, 256, 409, 409]);
    let model = ModelConfig::from_json(
        json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64}),
        "test",
    )
    .unwrap();
    let sites = model.sites();
    let context = BuildContext {
        info: &model.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed: 1,
        tokenize: None,
    };
    for (compression_ratio, expected) in [(1.5, 70_727_040), (2.0, 52_997_760), (3.0, 35_268_480)] {
        let config = PelaConfig {
            compression_ratio,
            train_norms: false,
            ..PelaConfig::default()
        };
        assert_eq!(
            Pela::new(config, &context).unwrap().num_trainable(),
            expected
        );
    }
}

#[test]
fn factors_are_the_best_approximation_and_balanced() {
    let (l, r) = factorise(&[3.0, 0.0, 4.0, 5.0], 2, 2, 1, 0);
    close(
        &[l[0] * l[0] + l[1] * l[1], r[0] * r[0] + r[1] * r[1]],
        &[6.708_204; 2],
        1e-5,
    );
    let product = matrix(r, 2, 1).matmul(matrix(l, 1, 2));
    close(&to_vec(product.clone()), &[1.5, 1.5, 4.5, 4.5], 1e-5);
    let base = matrix(vec![3.0, 0.0, 4.0, 5.0], 2, 2);
    let error = to_vec(product.clone() - base.clone())
        .iter()
        .map(|v| v * v)
        .sum::<f32>()
        .sqrt();
    close(&[error], &[2.236_068], 1e-5);
    close(
        &to_vec(perturbation(product, base.clone(), 1e-3)),
        &[2.247_001],
        1e-5,
    );
    let (l, r) = factorise(&[3.0, 0.0, 4.0, 5.0], 2, 2, 2, 0);
    let whole = matrix(r, 2, 2).matmul(matrix(l, 2, 2));
    close(&to_vec(whole.clone()), &[3.0, 0.0, 4.0, 5.0], 1e-5);
    close(&to_vec(perturbation(whole, base, 1e-3)), &[1e-6], 1e-7);
}

#[test]
fn features_are_compared_by_value_or_direction() {
    let (a, b) = (
        matrix(vec![1.0, 0.0, 0.0, 2.0], 2, 2),
        matrix(vec![2.0, 0.0, 2.0, 0.0], 2, 2),
    );
    close(
        &to_vec(distance(FeatureLoss::Mse, a.clone(), b.clone())),
        &[(1.0 + 4.0 + 4.0) / 4.0],
        1e-6,
    );
    close(&to_vec(distance(FeatureLoss::Cosine, a, b)), &[0.5], 1e-6);
}

/// Numbers of a golden file.
fn floats(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|n| n.as_f64().unwrap() as f32).collect()
}

#[test]
fn factors_and_terms_are_those_of_pytorch() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../../../fixtures/methods/pela.json")).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let config = PelaConfig {
        compression_ratio: number(&golden["ratio"]),
        ..PelaConfig::default()
    };
    for layer in golden["layers"].as_array().unwrap() {
        let size = |key: &str| layer[key].as_u64().unwrap() as usize;
        let (d_in, d_out, rank) = (size("d_in"), size("d_out"), size("rank"));
        assert_eq!(config.rank(d_in, d_out), rank);
        let weight = floats(&layer["weight"]);
        let (l, r) = factorise(&weight, d_out, d_in, rank, 0);
        let product = matrix(r, d_out, rank).matmul(matrix(l.clone(), rank, d_in));
        close(&to_vec(product.clone()), &floats(&layer["product"]), 1e-4);
        let lengths: Vec<f32> = l
            .chunks_exact(d_in)
            .map(|row| row.iter().map(|v| v * v).sum())
            .collect();
        close(&lengths, &floats(&layer["balance"]), 1e-4);
        let term = perturbation(product, matrix(weight, d_out, d_in), number(&golden["eps"]));
        close(
            &to_vec(term),
            &[number(&layer["perturbation"]) as f32],
            1e-4,
        );
    }
    let features = &golden["features"];
    let rows = |key: &str| matrix(floats(&features[key]), 4, 6);
    for (kind, key) in [(FeatureLoss::Mse, "mse"), (FeatureLoss::Cosine, "cosine")] {
        let found = distance(kind, rows("student"), rows("teacher"));
        close(&to_vec(found), &[number(&features[key]) as f32], 1e-5);
    }
}

use super::*;
use frugal_models::ModelConfig;
use frugal_nn::Weight;

#[test]
fn a_pooler_has_one_gate_for_each_sequence() {
    let raw = serde_json::json!({"model_type": "bert", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
    let model = ModelConfig::from_json(raw, "test").unwrap();
    let sites = model.sites();
    let device = Device::default();
    let context = BuildContext {
        info: &model.info(),
        sites: &sites,
        backbone: None,
        device: device.clone(),
        seed: 1,
        tokenize: None,
    };
    let settings = serde_json::json!({"r": 2, "num_virtual_tokens": 2, "bottleneck_dim": 2, "target_modules": ["pooler.dense"]});
    let mut unipelt = UniPelt::new(serde_json::from_value(settings).unwrap(), &context).unwrap();
    for parameter in unipelt.parameters_mut() {
        parameter.set(
            (0..parameter.len())
                .map(|i| (i as f32 * 0.7 + 0.3).sin())
                .collect(),
        );
    }
    let site = sites
        .iter()
        .find(|(_, s)| s.path.ends_with("pooler.dense"))
        .map(|(id, _)| id)
        .unwrap();
    let base = Linear {
        site,
        weight: Weight::Dense(Tensor::eye(4, &device)),
        bias: None,
    };
    let rows = Tensor::<2>::from_data([[0.1, -0.4, 0.7, 0.2], [0.9, 0.3, -0.5, 0.6]], &device);
    let run = |lengths: &[usize], x: Tensor<2>| {
        let mut pass = unipelt.pass(Mode::Eval);
        let tokens: usize = lengths.iter().sum();
        pass.embed(
            Tensor::zeros([tokens, 4], &device),
            &mut SequenceLayout::new(lengths),
        );
        let rows = if x.dims()[0] == tokens {
            Rows::Tokens
        } else {
            Rows::Sequences
        };
        frugal_nn::to_vec(pass.linear_rows(&base, x, rows))
    };
    // As if each row were a sequence of its own.
    let alone = [
        run(&[1], rows.clone().slice(0..1)),
        run(&[1], rows.clone().slice(1..2)),
    ]
    .concat();
    run(&[3, 2], rows)
        .iter()
        .zip(&alone)
        .for_each(|(found, expected)| {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}")
        });
}

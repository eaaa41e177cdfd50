use super::*;
use crate::support::test_model::TestModel;
use frugal_nn::to_vec;

fn build(settings: Value) -> AdaLora {
    let raw = json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16});
    let model = TestModel::new(raw);
    let context = model.context();
    AdaLora::new(
        AdaLoraConfig::parse(settings.as_object().unwrap()).unwrap(),
        &context,
    )
    .unwrap()
}

#[test]
fn every_length_of_run_leaves_a_step_to_choose_in() {
    for steps in 1..100 {
        let s = AdaLoraConfig::default().schedule(steps);
        assert!(
            s.tinit < s.total - s.tfinal || steps == 1 && s.tinit == 0,
            "{s:?}"
        );
    }
}

#[test]
fn a_late_start_still_shrinks_ranks_and_can_be_read_again() {
    for tinit in [4, 5, 1000] {
        let config = AdaLoraConfig {
            tinit: Some(tinit),
            ..AdaLoraConfig::default()
        };
        let s = config.schedule(5);
        assert_eq!(
            (s.tinit, s.budget(s.last_choice(), 24, 16, 1).0),
            (4, 16),
            "{s:?}"
        );
        let saved = AdaLoraConfig {
            tinit: Some(s.tinit),
            tfinal: Some(s.tfinal),
            total_step: Some(s.total),
            ..config
        };
        saved.validate().unwrap();
    }
}

#[test]
fn orthogonal_directions_have_a_finite_gradient() {
    let mut adapter = build(json!({"init_r": 2, "target_r": 1, "target_modules": ["q_proj"]}));
    for triplets in adapter.sites.iter_mut().flatten() {
        let unit = |row: usize, column: usize| f32::from(u8::from(row == column));
        triplets
            .a
            .set((0..2 * 8).map(|i| unit(i / 8, i % 8)).collect());
        triplets
            .b
            .set((0..8 * 2).map(|i| unit(i / 2, i % 2)).collect());
    }
    let mut gradients = adapter
        .orthogonality(Mode::Train { seed: 0 })
        .unwrap()
        .backward();
    let found: Vec<f32> = adapter
        .parameters()
        .iter()
        .filter_map(|p| p.take_gradient(&mut gradients))
        .flat_map(to_vec)
        .collect();
    assert!(
        !found.is_empty() && found.iter().all(|g| g.is_finite()),
        "{found:?}"
    );
}

#[test]
fn a_triplet_scores_its_entry_and_the_means_of_its_directions() {
    let mut adapter = build(json!({"init_r": 2, "target_r": 1, "target_modules": ["q_proj"]}));
    let importance = |values: Vec<f32>| Importance {
        exp_avg_unc: vec![1.0; values.len()],
        exp_avg_ipt: values,
    };
    let path = "model.layers.0.self_attn.q_proj";
    let rows = [[1.0f32; 8], [3.0; 8]].concat();
    adapter
        .importance
        .insert(format!("{path}.lora_A"), importance(rows));
    adapter
        .importance
        .insert(format!("{path}.lora_E"), importance(vec![10.0, 20.0]));
    adapter
        .importance
        .insert(format!("{path}.lora_B"), importance([5.0, 7.0].repeat(8)));
    assert_eq!(adapter.scores(), [vec![16.0f32, 30.0]]);
}

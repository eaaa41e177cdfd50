use super::*;
use crate::model::{ModelConfig, SiteTable};

fn build(settings: Value) -> Increlora {
    let raw = json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
    let config = ModelConfig::from_json(raw, "test").unwrap();
    let sites = SiteTable::new(&config);
    let context = BuildContext { config: &config, sites: &sites, backbone: None, device: Device::default(), seed: 1, tokenize: None };
    Increlora::new(registry::parse(NAME, settings.as_object().unwrap()).unwrap(), &context).unwrap()
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(f, e)| assert!((f - e).abs() < 2e-6, "{found:?} instead of {expected:?}"));
}

#[test]
fn importance_is_that_of_the_worked_example() {
    let device = Device::default();
    let component = |name: &str, a: Vec<f32>, e: f32, b: Vec<f32>| Group {
        size: 1,
        a: Parameter::new(format!("{name}a"), &[1, 2], a, &device),
        e: Parameter::new(format!("{name}e"), &[1, 1], vec![e], &device),
        b: Parameter::new(format!("{name}b"), &[2, 1], b, &device),
        created: 0,
        promoted: 0,
    };
    let module = Module {
        path: "m".into(),
        d_in: 2,
        d_out: 2,
        groups: vec![component("0", vec![1.0, 2.0], 0.5, vec![1.0, -1.0]), component("1", vec![0.0, 1.0], 1e-5, vec![0.0, 2.0])],
        reserve: true,
        importance: Importance::default(),
        probe: None,
    };
    let delta = to_vec(module.delta(2.0, Mode::Eval));
    close(&delta, &[0.999_99, 1.999_98, -0.999_99, -1.999_94]);
    close(&[sensitivity(&delta, &[0.1, -0.2, 0.3, 0.4])], &[0.799_984]);
    let (a, b) = module.directions(Mode::Eval);
    let (a, b) = (to_vec(orthogonality(a))[0], to_vec(orthogonality(b.transpose()))[0]);
    close(&[a, b, (a + b) / 2.0], &[4.898_979_5, 4.242_640_5, 4.570_81]);
}

#[test]
fn growth_spends_the_budget_exactly_on_the_most_important() {
    for (target_rank, incre_rank_num, top_h) in [(2, 1, 5), (4, 2, 3), (3, 4, 2)] {
        let settings = json!({"target_rank": target_rank, "incre_rank_num": incre_rank_num, "exclude_modules": ["pooler.dense"]});
        let mut adapter = build(settings);
        let modules = adapter.modules.iter().flatten().count();
        assert_eq!(modules, 12);
        for (i, module) in adapter.modules.iter_mut().flatten().enumerate() {
            // Two maps are more important than all others, which are equal.
            let mean = if i == 3 || i == 7 { 2.0 } else { 1.0 };
            module.importance = Importance { mean, uncertainty: 1.0 };
        }
        adapter.grow(top_h, 10);
        let ranks: Vec<usize> = adapter.modules.iter().flatten().map(Module::rank).collect();
        assert!(ranks[3] == 1 + incre_rank_num && ranks[7] == 1 + incre_rank_num, "{ranks:?}");
        let mut rounds = 1;
        while adapter.is_growing() {
            adapter.grow(top_h, 10 * (rounds + 1));
            rounds += 1;
            assert!(adapter.total() <= 12 * target_rank);
        }
        assert_eq!(adapter.total(), 12 * target_rank);
        assert_eq!(rounds as usize, (12 * (target_rank - 1)).div_ceil(incre_rank_num).div_ceil(top_h));
        assert!(adapter.modules.iter().flatten().all(|m| !m.reserve));
        let widths: usize = adapter.modules.iter().flatten().map(|m| m.rank() * (m.d_in + m.d_out + 1)).sum();
        assert_eq!(adapter.num_trainable(), widths);
    }
}

#[test]
fn counts_at_uniform_rank_are_those_of_the_paper() {
    // DeBERTaV3-base, 72 maps: 331,776 numbers of directions at rank 2 and 1,327,104 at rank 8.
    let raw = json!({"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
    let config = ModelConfig::from_json(raw, "test").unwrap();
    let sites = SiteTable::new(&config);
    let context = BuildContext { config: &config, sites: &sites, backbone: None, device: Device::default(), seed: 1, tokenize: None };
    for (rank, expected) in [(2, 331_776), (8, 1_327_104)] {
        let settings = json!({"init_r": rank, "target_rank": rank, "exclude_modules": ["pooler.dense"]});
        let adapter = Increlora::new(registry::parse(NAME, settings.as_object().unwrap()).unwrap(), &context).unwrap();
        assert_eq!(adapter.num_trainable(), expected + 72 * rank);
    }
}

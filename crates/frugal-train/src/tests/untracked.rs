//! Batches that nothing trained has a part in.

use serde_json::json;

use super::*;

fn adapter(backbone: &dyn Backbone, method: &str, settings: Value) -> Box<dyn Adapter> {
    let method = frugal_adapt::registry::find(method).unwrap();
    let settings = settings.as_object().unwrap();
    method.make(settings, &context(backbone)).unwrap()
}

/// Eight steps of one batch each, of which a start that looks at data takes a quarter.
fn steps() -> TrainConfig {
    TrainConfig {
        lr: 0.02,
        max_steps: 8,
        batch_size: 2,
        ..config()
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        logging_steps: 1,
        weight_decay: 0.0,
        group_by_length: false,
        warmup_ratio: 0.0,
        ..TrainConfig::default()
    }
}

#[test]
fn a_start_that_looks_at_inputs_differentiates_no_loss_that_nothing_trained_has_a_part_in() {
    let (backbone, data) = (backbone("llama"), counting(&[12, 12]));
    let base = {
        let stop = AtomicBool::new(false);
        let loss = CausalLm::default();
        let found = evaluate(&*backbone, None, &loss, &data, 100, &stop).unwrap();
        found.unwrap().metrics["loss"]
    };
    for method in ["eva", "corda"] {
        let adapter = adapter(&*backbone, method, json!({"r": 2}));
        let mut setup = Setup::new(&*backbone, adapter, &data, steps());
        setup.run().unwrap();
        let losses = setup.losses();
        // Two steps look and change nothing; what starts then is still the model.
        for loss in &losses[..3] {
            assert!((loss - base).abs() < 1e-4, "{method}: {losses:?}, {base}");
        }
        assert!(losses[7] < 0.95 * base, "{method}: {losses:?}");
        assert!(setup.adapter.is_complete(), "{method}");
    }
}

fn waiting(backbone: &dyn Backbone, tokens: [u32; 2]) -> Box<dyn Adapter> {
    let settings = json!({"r": 2, "alora_invocation_tokens": tokens});
    adapter(backbone, "alora", settings)
}

#[test]
fn a_batch_in_which_no_example_has_the_invocation_teaches_nothing_and_ends_no_run() {
    // Examples of single batches: 1, 4, 7, ... and 8, 11, 14, ...
    let (backbone, data) = (backbone("llama"), counting(&[12, 12]));
    let config = TrainConfig {
        batch_size: 1,
        ..steps()
    };
    let adapter = waiting(&*backbone, [4, 7]);
    let unreached = Unreached::among(&*adapter, &data).unwrap();
    assert_eq!((unreached.examples, unreached.of), (1, 2));
    assert!(unreached.to_string().contains("1 of 2"), "{unreached}");
    let mut setup = Setup::new(&*backbone, adapter, &data, config);
    setup.run().unwrap();
    let norms = setup.events.iter().filter_map(|event| match event {
        Event::Step { grad_norm, .. } => Some(*grad_norm),
        _ => None,
    });
    let norms: Vec<f64> = norms.collect();
    assert_eq!(norms.iter().filter(|norm| **norm == 0.0).count(), 4);
    assert_eq!(norms.len(), 8, "{norms:?}");
}

#[test]
fn data_in_which_no_example_has_the_invocation_are_refused_by_name() {
    let (backbone, data) = (backbone("llama"), counting(&[12, 12]));
    let adapter = waiting(&*backbone, [7, 4]);
    let mut setup = Setup::new(&*backbone, adapter, &data, steps());
    let error = setup.run().unwrap_err().to_string();
    for said in ["`alora`", "[7, 4]", "all 2", "`alora_invocation_tokens`"] {
        assert!(error.contains(said), "{error}");
    }
    assert!(setup.events.is_empty());
}

#[test]
fn an_example_of_several_texts_has_the_invocation_where_one_text_has_it_as_a_whole() {
    let backbone = backbone("llama");
    let adapter = waiting(&*backbone, [4, 7]);
    let texts = |input_ids: &[u32]| Tokenized {
        input_ids: input_ids.to_vec(),
        token_type_ids: vec![],
        labels: Target::Texts {
            lengths: vec![2, 2],
            scores: vec![],
        },
    };
    let found = |ids: &[u32]| Unreached::among(&*adapter, &[texts(ids)]).is_none();
    assert!(found(&[1, 2, 4, 7]) && found(&[4, 7, 1, 2]));
    assert!(!found(&[1, 4, 7, 2]));
}

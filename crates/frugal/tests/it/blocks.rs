//! A backbone in parts: stem, ranges of blocks, readout; and blocks that share their sites.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal::adapt::full::{Full, FullConfig};
use frugal::adapt::{Adapter, NoAdapter, Pass, to_vec};
use frugal::model::{
    Backbone, BackboneInfo, BlockState, DecodeState, Frozen, Input, Linear, ModelConfig,
    ModelError, SiteTable, build, random_weights,
};
use frugal::train::{Event, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::json;

use crate::support::{context, device, max_difference, model};

const MODELS: [&str; 4] = ["llama", "gemma3_text", "gpt2", "bert"];
const IDS: [u32; 6] = [3, 7, 1, 12, 30, 5];

#[test]
fn a_pass_is_its_parts() {
    for name in MODELS {
        let backbone = model(name, "config.json");
        let count = backbone.info().num_hidden_layers;
        let input = Input::new(&IDS, &[4, 2]);
        let pass = &mut NoAdapter;
        let whole = to_vec(backbone.forward(&input, pass, None).unwrap());
        let mut state = backbone.stem(&input, pass).unwrap();
        for layer in 0..count {
            state = backbone
                .blocks(layer..layer + 1, state, pass, None)
                .unwrap();
        }
        assert_eq!(to_vec(backbone.readout(state, pass)), whole, "{name}");
    }
}

#[test]
fn a_repeated_block_is_a_deeper_model() {
    let raw = |layers: usize| {
        json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "initializer_range": 0.2,
            "tie_word_embeddings": true})
    };
    let shallow = ModelConfig::from_json(raw(1), "test").unwrap();
    let deep = ModelConfig::from_json(raw(2), "test").unwrap();
    let weights = random_weights(&shallow, 1, &device());
    let mut twice = random_weights(&deep, 2, &device());
    for (name, shape, values) in weights.iter() {
        let second = name.replace("layers.0.", "layers.1.");
        for name in [name, second] {
            match shape.as_slice() {
                &[n] => {
                    let data = TensorData::new(values(), [n]);
                    twice.insert_vector(name, Tensor::from_data(data, &device()));
                }
                &[rows, cols] => {
                    let data = TensorData::new(values(), [rows, cols]);
                    twice.insert_matrix(name, Tensor::from_data(data, &device()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let one = build(shallow, &weights, &device()).unwrap();
    let two = build(deep, &twice, &device()).unwrap();
    let input = Input::new(&IDS, &[6]);
    let pass = &mut NoAdapter;
    let expected = to_vec(two.forward(&input, pass, None).unwrap());
    let mut state = one.stem(&input, pass).unwrap();
    for _ in 0..2 {
        state = one.blocks(0..1, state, pass, None).unwrap();
    }
    let found = to_vec(one.readout(state, pass));
    assert!(max_difference(&found, &expected) < 1e-6);
}

#[test]
fn embeddings_stand_in_for_tokens() {
    for name in ["llama", "gpt2", "bert"] {
        let backbone = model(name, "config.json");
        let mut table = None;
        backbone.visit_weights(&mut |part| {
            if let (Frozen::Embedding(part), true) = (&part, table.is_none()) {
                table = Some(part.forward(&IDS));
            }
        });
        let rows = Input::embeddings(table.unwrap(), &[6]);
        let found = to_vec(backbone.forward(&rows, &mut NoAdapter, None).unwrap());
        let input = Input::new(&IDS, &[6]);
        let expected = to_vec(backbone.forward(&input, &mut NoAdapter, None).unwrap());
        assert!(max_difference(&found, &expected) < 1e-6, "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let backbone = model("llama", "config.json");
    let error = |input: &Input<'_>| {
        let result = backbone.forward(input, &mut NoAdapter, None);
        result.unwrap_err().to_string()
    };
    let wide = Tensor::zeros([2, 40], &device());
    let text = error(&Input::embeddings(wide.clone(), &[2]));
    assert!(text.contains("40 wide") && text.contains("32"), "{text}");
    let text = error(&Input::rows(wide, [1, 2], &[2]));
    assert!(text.contains("tokens or embeddings"), "{text}");
    let state = backbone
        .stem(&Input::new(&IDS, &[6]), &mut NoAdapter)
        .unwrap();
    let text = backbone
        .blocks(1..9, state, &mut NoAdapter, None)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("blocks 1 to 8") && text.contains("has 2"),
        "{text}"
    );
}

/// A decoder whose blocks are all the same one.
struct Tied {
    base: Arc<dyn Backbone>,
    info: BackboneInfo,
}

impl Backbone for Tied {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        self.base.sites()
    }

    fn device(&self) -> &Device {
        self.base.device()
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        self.base.stem(input, pass)
    }

    fn blocks(
        &self,
        range: Range<usize>,
        mut state: BlockState,
        pass: &mut dyn Pass,
        _cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        for _ in range {
            state = self.base.blocks(0..1, state, pass, None)?;
        }
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        self.base.readout(state, pass)
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.base.lm_head()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.base.visit_weights(visit);
    }
}

#[test]
fn a_weight_tied_decoder_trains() {
    let raw = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 64, "initializer_range": 0.05, "tie_word_embeddings": true});
    let config = ModelConfig::from_json(raw, "test").unwrap();
    let weights = random_weights(&config, 4, &device());
    let base = build(config.clone(), &weights, &device()).unwrap();
    let info = BackboneInfo {
        num_hidden_layers: 4,
        ..config.info()
    };
    let tied = Tied { base, info };
    // One block's parameters, whatever the depth.
    assert_eq!(
        tied.sites().num_parameters(),
        config.sites().num_parameters()
    );
    let mut adapter = Full::new(FullConfig {}, &context(&tied, 0)).unwrap();
    let data: Vec<Tokenized> = (0..8)
        .map(|i| {
            let input_ids: Vec<u32> = (0..20).map(|j| 5 + (i * 3 + j) % 40).collect();
            let next = input_ids[1..].iter().map(|&id| id as i32);
            Tokenized {
                labels: Target::Tokens(next.chain([-100]).collect()),
                token_type_ids: vec![],
                input_ids,
            }
        })
        .collect();
    let train_config = TrainConfig {
        lr: 1e-2,
        epochs: 20.0,
        batch_size: 8,
        logging_steps: 1,
        warmup_ratio: 0.0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    };
    let mut losses = Vec::new();
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    train(TrainRun {
        backbone: &tied,
        adapter: &mut adapter,
        head: None,
        train: &data,
        validation: None,
        config: &train_config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut observer,
    })
    .unwrap();
    assert!(losses[losses.len() - 1] < 0.5 * losses[0], "{losses:?}");
    assert!(adapter.parameters().len() > 5);
}

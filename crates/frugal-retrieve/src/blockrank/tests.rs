//! The card's checks on a small model: block attention in parts against dense masked attention,
//! permutations, scores and losses, early exit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal_core::tokenizer::TextTokenizer;
use frugal_kernels::ScoreBias;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{
    ActiveAdapters, AttentionControl, AttentionMask, Backbone, ControlledPass, Input, ModelError,
    NoAdapter, Pass, ScoreRows, to_vec,
};
use frugal_train::{TrainConfig, TrainRun, train_with};

use super::*;

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

fn small(name: &str) -> (Arc<dyn Backbone>, TextTokenizer) {
    let folder = fixture(&format!("harness/{name}"));
    let files = ModelFiles::open(&folder.display().to_string(), &Lookup::default()).unwrap();
    let backbone = files.load(&Device::flex()).unwrap();
    (backbone, TextTokenizer::from_folder(&folder).unwrap())
}

pub(super) fn llama() -> Arc<dyn Backbone> {
    small("llama").0
}

/// A prompt of made-up tokens.
fn prompt(blocks: &[usize]) -> BlockPrompt {
    let tokens: usize = blocks.iter().sum();
    BlockPrompt {
        ids: (0..tokens).map(|i| (i * 7 % 31) as u32 + 3).collect(),
        lengths: blocks.to_vec(),
        signals: vec![tokens - 2, tokens - 1],
    }
}

/// Final hidden states under a control.
fn hidden(
    backbone: &dyn Backbone,
    ids: &[u32],
    lengths: &[usize],
    control: AttentionControl,
) -> Result<Tensor<2>, ModelError> {
    let mut plain = NoAdapter;
    let mut pass = ControlledPass::new(&mut plain, control);
    backbone.forward(&Input::new(ids, lengths), &mut pass, None)
}

/// What a block mask hides, as a bias `[1, tokens, tokens]`: written from its definition, token by
/// token.
fn dense_mask(blocks: &[Vec<usize>]) -> Tensor<3> {
    let longest = blocks
        .iter()
        .map(|b| b.iter().sum::<usize>())
        .max()
        .unwrap();
    // Only batches of equal blocks can share one bias.
    assert!(blocks.iter().all(|b| b == &blocks[0]));
    let lengths = &blocks[0];
    let of: Vec<usize> = (0..lengths.len())
        .flat_map(|block| vec![block; lengths[block]])
        .collect();
    let last = lengths.len() - 1;
    let sees = |q: usize, k: usize| k <= q && (of[k] == of[q] || of[k] == 0 || of[q] == last);
    let bias: Vec<f32> = (0..longest * longest)
        .map(|i| {
            if sees(i / longest, i % longest) {
                0.0
            } else {
                -1e9
            }
        })
        .collect();
    Tensor::from_data(
        TensorData::new(bias, [1, longest, longest]),
        &Device::flex(),
    )
}

pub(super) fn difference(a: Vec<f32>, b: Vec<f32>) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn blockrank_in_parts_equals_dense_masked_attention() {
    let backbone = llama();
    for lengths in [
        vec![5, 3, 3, 3, 4],
        vec![4, 1, 6, 2, 2],
        vec![3, 2],
        vec![6],
    ] {
        let one = prompt(&lengths);
        let blocks = vec![lengths.clone(), lengths.clone()];
        let ids = [one.ids.clone(), one.ids.iter().rev().copied().collect()].concat();
        let each = [one.ids.len(), one.ids.len()];
        let positions: Vec<u32> = (0..ids.len() as u32).map(|i| i * 3 % 17).collect();
        let control = |mask, score_bias| AttentionControl {
            mask,
            score_bias,
            position_ids: Some(positions.clone()),
            score_rows: None,
        };
        let dense = Some(ScoreBias::Positions(dense_mask(&blocks)));
        let dense = hidden(
            &*backbone,
            &ids,
            &each,
            control(AttentionMask::Causal, dense),
        )
        .unwrap();
        let parts = control(AttentionMask::Blocks(blocks), None);
        let parts = hidden(&*backbone, &ids, &each, parts).unwrap();
        let found = difference(to_vec(parts), to_vec(dense));
        assert!(found < 1e-5, "{lengths:?}: {found}");
    }
}

/// Embeddings as the leaf, through all layers.
#[test]
fn blockrank_gradients_in_parts_equal_those_of_dense_masked_attention() {
    let backbone = llama();
    let lengths = vec![4, 3, 5, 2, 4];
    let tokens: usize = lengths.iter().sum();
    let d = backbone.info().hidden_size;
    let values: Vec<f32> = (0..tokens * d)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 80.0)
        .collect();
    let gradient = |control: AttentionControl| {
        let device = Device::flex().autodiff();
        let rows = Tensor::<2>::from_data(TensorData::new(values.clone(), [tokens, d]), &device)
            .require_grad();
        let mut plain = NoAdapter;
        let mut pass = ControlledPass::new(&mut plain, control);
        let input = Input::embeddings(rows.clone(), &[tokens]);
        let out = backbone.forward(&input, &mut pass, None).unwrap();
        let weights: Vec<f32> = (0..tokens * d)
            .map(|i| ((i * 13 % 7) as f32 - 3.0) / 7.0)
            .collect();
        let weights =
            Tensor::<2>::from_data(TensorData::new(weights, [tokens, d]), &Device::flex());
        let gradients = (out * Tensor::from_inner(weights)).sum().backward();
        to_vec(rows.grad(&gradients).unwrap())
    };
    let dense = gradient(AttentionControl {
        mask: AttentionMask::Causal,
        score_bias: Some(ScoreBias::Positions(dense_mask(std::slice::from_ref(
            &lengths,
        )))),
        ..AttentionControl::default()
    });
    let parts = gradient(AttentionControl {
        mask: AttentionMask::Blocks(vec![lengths]),
        ..AttentionControl::default()
    });
    assert!(dense.iter().any(|g| g.abs() > 1e-3));
    let largest = dense.iter().fold(0.0_f32, |m, g| m.max(g.abs()));
    let found = difference(parts, dense) / largest.max(1.0);
    assert!(found < 1e-5, "{found}");
}

#[test]
fn blockrank_of_one_document_is_causal_attention() {
    let backbone = llama();
    let one = prompt(&[5, 4, 3]);
    let positions = one.position_ids(9, 64).unwrap();
    assert_eq!(positions, (0..12).collect::<Vec<u32>>());
    let control = AttentionControl {
        mask: AttentionMask::Blocks(vec![one.lengths.clone()]),
        position_ids: Some(positions),
        ..AttentionControl::default()
    };
    let found = hidden(&*backbone, &one.ids, &[12], control).unwrap();
    let plain = backbone
        .forward(&Input::new(&one.ids, &[12]), &mut NoAdapter, None)
        .unwrap();
    assert!(difference(to_vec(found), to_vec(plain)) < 1e-5);
}

#[test]
fn attention_control_has_prefix_and_both_directions() {
    let backbone = llama();
    let ids: Vec<u32> = (3..15).collect();
    let lengths = [7, 5];
    let with = |mask| {
        let control = AttentionControl {
            mask,
            ..AttentionControl::default()
        };
        to_vec(hidden(&*backbone, &ids, &lengths, control).unwrap())
    };
    let plain = to_vec(
        backbone
            .forward(&Input::new(&ids, &lengths), &mut NoAdapter, None)
            .unwrap(),
    );
    assert!(difference(with(AttentionMask::Model), plain.clone()) < 1e-6);
    assert!(difference(with(AttentionMask::Causal), plain.clone()) < 1e-6);
    // A prefix of one token or none is causal, of all tokens bidirectional.
    assert!(difference(with(AttentionMask::Prefix(vec![1, 0])), plain.clone()) < 1e-5);
    let both = with(AttentionMask::Bidirectional);
    assert!(difference(with(AttentionMask::Prefix(vec![7, 5])), both.clone()) < 1e-5);
    assert!(difference(both, plain) > 1e-3);
    // Against a mask that is written token by token.
    let sees = |q: usize, k: usize| k <= q || (q < 3 && k < 3);
    let bias: Vec<f32> = (0..49)
        .map(|i| if sees(i / 7, i % 7) { 0.0 } else { -1e9 })
        .collect();
    let bias = Tensor::from_data(TensorData::new(bias, [1, 7, 7]), &Device::flex());
    let dense = AttentionControl {
        mask: AttentionMask::Bidirectional,
        score_bias: Some(ScoreBias::Positions(bias)),
        ..AttentionControl::default()
    };
    let dense = to_vec(hidden(&*backbone, &ids[..7], &[7], dense).unwrap());
    let prefix = AttentionControl {
        mask: AttentionMask::Prefix(vec![3]),
        ..AttentionControl::default()
    };
    let prefix = to_vec(hidden(&*backbone, &ids[..7], &[7], prefix).unwrap());
    assert!(difference(prefix, dense) < 1e-5);
}

#[test]
fn attention_control_that_does_not_fit_is_refused() {
    let backbone = llama();
    let ids: Vec<u32> = (3..15).collect();
    let refused = |control| {
        hidden(&*backbone, &ids, &[12], control)
            .unwrap_err()
            .to_string()
    };
    let of = |mask| AttentionControl {
        mask,
        ..AttentionControl::default()
    };
    let says = |found: String, words: &str| assert!(found.contains(words), "{found}");
    says(
        refused(of(AttentionMask::Blocks(vec![vec![5, 6]]))),
        "do not make up sequence 0",
    );
    says(
        refused(of(AttentionMask::Blocks(vec![vec![5, 0, 7]]))),
        "do not make up",
    );
    says(refused(of(AttentionMask::Blocks(vec![]))), "0 sequences");
    says(refused(of(AttentionMask::Prefix(vec![13]))), "prefix of 13");
    let positions = AttentionControl {
        position_ids: Some(vec![0; 5]),
        ..AttentionControl::default()
    };
    says(refused(positions), "5 positions for 12 tokens");
    let rows = |layer, rows| AttentionControl {
        score_rows: Some(ScoreRows { layer, rows }),
        ..AttentionControl::default()
    };
    says(refused(rows(99, vec![0])), "block 99");
    says(refused(rows(0, vec![12])), "below 12");
    says(refused(rows(0, vec![3, 3])), "ascending");
    // A model whose attention has no place for it says so, and nothing that was computed under a
    // mask goes into a cache.
    let mut plain = NoAdapter;
    let mut pass = ControlledPass::new(&mut plain, of(AttentionMask::Causal));
    let mut outer = ControlledPass::new(&mut pass, of(AttentionMask::Causal));
    let input = Input::new(&ids, &[12]);
    let twice = backbone.forward(&input, &mut outer, None).unwrap_err();
    says(twice.to_string(), "both say");
    let mut state = backbone
        .new_state(1, frugal_nn::StateOptions::default())
        .unwrap();
    let mut pass = ControlledPass::new(&mut plain, of(AttentionMask::Causal));
    let kept = backbone
        .forward(&input, &mut pass, Some(&mut state))
        .unwrap_err();
    says(kept.to_string(), "cannot be kept");
}

#[test]
fn blockrank_pairs_are_those_of_the_paper() {
    assert_eq!(
        (allowed_pairs(3, 2, 2, 2), causal_pairs(3, 2, 2, 2)),
        (41, 45)
    );
    assert_eq!(allowed_pairs(160, 160, 100, 160), 6_459_360);
    assert_eq!(causal_pairs(160, 160, 100, 160), 133_179_360);
    assert_eq!(allowed_pairs(160, 160, 500, 160), 32_091_360);
    assert_eq!(causal_pairs(160, 160, 500, 160), 3_225_691_360);
    let shown = to_vec(dense_mask(&[vec![3, 2, 2, 2]]));
    assert_eq!(shown.iter().filter(|b| **b == 0.0).count(), 41);
}

/// One head, two signal tokens, two documents of two tokens.
#[test]
fn blockrank_scores_and_loss_of_a_worked_example() {
    let logits = [9.0, 1.0, 0.0, 2.0, 0.0, 9.0, 9.0, 0.0, 0.0, 1.0, 1.0, 9.0];
    let values =
        Tensor::<3>::from_data(TensorData::new(logits.to_vec(), [1, 2, 6]), &Device::flex());
    let scores = document_scores(values, &[1, 2, 2, 1]).unwrap();
    let found = to_vec(scores.clone());
    assert!(
        (found[0] - 0.288026).abs() < 1e-6 && (found[1] - 0.711974).abs() < 1e-6,
        "{found:?}"
    );
    for (temperature, expected) in [(0.05, 2.0777e-4), (0.1, 1.43121e-2)] {
        let loss = to_vec(contrastive_loss(scores.clone(), &[1], temperature).unwrap())[0];
        assert!((loss / expected - 1.0).abs() < 1e-3, "{loss} {expected}");
    }
    let uniform = Tensor::<1>::from_floats([0.25, 0.25, 0.25, 0.25], &Device::flex());
    let loss = to_vec(contrastive_loss(uniform, &[2], 0.05).unwrap())[0];
    assert!((loss - 4.0_f32.ln()).abs() < 1e-5);
    assert!(contrastive_loss(scores.clone(), &[], 0.05).is_err());
    assert!(contrastive_loss(scores, &[2], 0.05).is_err());
}

fn ranker<'t>(small: &'t (Arc<dyn Backbone>, TextTokenizer), layer: usize) -> BlockRank<'t> {
    let options = BlockRankOptions {
        layer: Some(layer),
        document_tokens: 12,
        // The small model has few positions.
        position_offset: Some(small.0.info().max_sequence as u32 / 2),
        ..BlockRankOptions::default()
    };
    let (backbone, tokenizer) = small;
    BlockRank::new(
        backbone.clone(),
        Arc::default(),
        ActiveAdapters::Base,
        tokenizer,
        &options,
    )
    .unwrap()
}

/// A prompt of made-up tokens with the documents in this order.
fn permuted(order: &[usize]) -> BlockPrompt {
    let sizes = [4, 7, 5, 6];
    let document = |k: usize| (0..sizes[k]).map(move |i| (11 * k + 3 * i) as u32 % 37 + 3);
    let mut ids: Vec<u32> = (3..11).collect();
    let mut lengths = vec![ids.len()];
    for &k in order {
        ids.extend(document(k));
        lengths.push(sizes[k]);
    }
    ids.extend(20..26);
    lengths.push(6);
    BlockPrompt {
        signals: vec![ids.len() - 2, ids.len() - 1],
        ids,
        lengths,
    }
}

#[test]
fn blockrank_does_not_depend_on_the_order_of_documents() {
    let small = small("llama");
    let ranker = ranker(&small, 1);
    let scores = ranker.scores_of(&permuted(&[0, 1, 2, 3])).unwrap();
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    assert!(scores.iter().all(|&score| score >= 0.0));
    for order in [[3, 1, 0, 2], [2, 3, 1, 0]] {
        let found = ranker.scores_of(&permuted(&order)).unwrap();
        for (place, &k) in order.iter().enumerate() {
            assert!((found[place] - scores[k]).abs() < 1e-6, "{order:?}");
        }
    }
    // With ordinary positions and attention it does.
    let ordinary = |order: &[usize]| {
        let prompt = permuted(order);
        let control = AttentionControl {
            score_rows: Some(ScoreRows {
                layer: 1,
                rows: prompt.signals.clone(),
            }),
            ..AttentionControl::default()
        };
        let mut plain = NoAdapter;
        let mut pass = ControlledPass::new(&mut plain, control);
        let input = Input::new(&prompt.ids, &[prompt.ids.len()]);
        small.0.forward(&input, &mut pass, None).unwrap();
        let values = pass.into_scores().pop().unwrap().values;
        to_vec(document_scores(values, &prompt.lengths).unwrap())
    };
    let (plain, moved) = (ordinary(&[0, 1, 2, 3]), ordinary(&[3, 1, 0, 2]));
    assert!((plain[3] - moved[0]).abs() > 1e-4);
}

#[test]
fn blockrank_documents_do_not_see_each_other() {
    let backbone = llama();
    let original = permuted(&[0, 1, 2, 3]);
    let mut changed = original.clone();
    // Document 1 begins behind the instruction and document 0.
    changed.ids[8 + 4 + 2] = 40;
    let states = |prompt: &BlockPrompt| {
        let info = backbone.info();
        let control =
            BlockPrompt::control(&[prompt], 0, Some(info.max_sequence as u32 / 2), info).unwrap();
        to_vec(hidden(&*backbone, &prompt.ids, &[prompt.ids.len()], control).unwrap())
    };
    let (a, b) = (states(&original), states(&changed));
    let d = backbone.info().hidden_size;
    let differs = |tokens: std::ops::Range<usize>| {
        a[tokens.start * d..tokens.end * d] != b[tokens.start * d..tokens.end * d]
    };
    assert!(!differs(0..12), "instruction and document 0");
    assert!(differs(14..19), "document 1");
    assert!(!differs(19..30), "documents 2 and 3");
    assert!(differs(30..36), "question");
}

/// A pass that refuses to run blocks behind a layer.
struct Guard(usize);

impl Pass for Guard {
    fn before_block(&mut self, layer: usize, _: &Tensor<2>) -> frugal_nn::BlockAction {
        assert!(layer <= self.0, "block {layer} was computed");
        frugal_nn::BlockAction::Run
    }
}

#[test]
fn blockrank_scores_do_not_need_the_layers_behind() {
    let (backbone, _) = small("llama");
    let prompt = permuted(&[0, 1, 2, 3]);
    let offset = Some(backbone.info().max_sequence as u32 / 2);
    let found = super::model::attention_of(&*backbone, &prompt, 0, offset, &mut Guard(0)).unwrap();
    let control = BlockPrompt::control(&[&prompt], 0, offset, backbone.info()).unwrap();
    let mut plain = NoAdapter;
    let mut pass = ControlledPass::new(&mut plain, control);
    let input = Input::new(&prompt.ids, &[prompt.ids.len()]);
    backbone.forward(&input, &mut pass, None).unwrap();
    let whole = pass.into_scores().pop().unwrap().values;
    assert_eq!(to_vec(found), to_vec(whole));
}

#[test]
fn blockrank_prompt_ends_in_colon_and_bracket() {
    let small = small("llama");
    let ranker = ranker(&small, 0);
    let documents = [
        "wings",
        "a text that is longer than what is shown of it, and goes on for a while yet so that it is cut",
    ];
    let prompt = ranker.prompts().prompt("flutter", &documents).unwrap();
    let text = |ids: &[u32]| small.1.decode(ids, false).unwrap();
    assert_eq!(prompt.documents(), 2);
    assert_eq!(prompt.lengths.iter().sum::<usize>(), prompt.ids.len());
    assert!(text(&prompt.ids[..=prompt.signals[0]]).ends_with(':'));
    assert!(text(&prompt.ids[prompt.signals[1]..]).trim() == "[");
    let second = prompt.lengths[0] + prompt.lengths[1];
    let second = text(&prompt.ids[second..second + prompt.lengths[2]]);
    assert!(second.contains("ID: 1 | CONTENT: a text"), "{second}");
    assert!(second.ends_with("| END ID: 1"), "{second}");
    assert!(ranker.prompts().prompt("flutter", &[]).is_err());
}

/// Which document has the query's own token, told from four.
#[test]
fn blockrank_training_lowers_the_loss_and_refuses_what_does_not_fit() {
    use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
    use frugal_nn::BuildContext;
    let small = small("llama");
    let options = BlockRankOptions {
        layer: Some(1),
        document_tokens: 12,
        position_offset: Some(small.0.info().max_sequence as u32 / 2),
        auxiliary_weight: 1.0,
        next_token: true,
        ..BlockRankOptions::default()
    };
    let prompts = BlockPrompts::new(&small.1, &options);
    let words = ["wing", "heat", "shell", "flow"];
    let examples: Vec<_> = (0..4)
        .map(|i| BlockRankObjective::example(&prompts, words[i], &words, &[i]).unwrap())
        .collect();
    assert!(BlockRankObjective::example(&prompts, "wing", &words, &[4]).is_err());
    assert!(BlockRankObjective::example(&prompts, "wing", &words, &[]).is_err());
    let context = BuildContext {
        info: small.0.info(),
        sites: small.0.sites(),
        backbone: Some(&*small.0),
        device: small.0.device().clone(),
        seed: 0,
        tokenize: None,
    };
    let mut adapter = Lora::new(LoraConfig::default(), &context).unwrap();
    let config = TrainConfig {
        lr: 0.01,
        epochs: 15.0,
        logging_steps: 1,
        ..TrainConfig::default()
    };
    let (stop, mut losses) = (AtomicBool::new(false), Vec::new());
    let run = TrainRun {
        backbone: &*small.0,
        adapter: &mut adapter,
        head: None,
        train: &examples,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &stop,
        observer: &mut |event: &frugal_train::Event| {
            if let frugal_train::Event::Step { loss, .. } = event {
                losses.push(*loss);
            }
        },
    };
    train_with(run, Box::new(BlockRankObjective::new(options).unwrap())).unwrap();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.9 * first, "{losses:?}");
}

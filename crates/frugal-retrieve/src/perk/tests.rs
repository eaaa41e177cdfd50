//! Writing and meta-gradients on a small Llama: against PyTorch, and what must hold of any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::ModelConfig;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{Backbone, Frozen, Input, Mode, NoAdapter, Rows, to_vec};
use safetensors::SafeTensors;
use serde_json::json;

use super::unroll::{Differences, InnerLoss, Tensors, norm};
use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

pub(super) fn llama() -> Arc<dyn Backbone> {
    let folder = fixture("harness/llama");
    let files = ModelFiles::open(&folder.display().to_string(), &Lookup::default()).unwrap();
    files.load(&Device::flex()).unwrap()
}

pub(super) fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_folder(&fixture("harness/llama")).unwrap()
}

pub(super) fn config(r: usize) -> PerkConfig {
    PerkConfig {
        r,
        lora_alpha: (r as f64).sqrt(),
        inner_lr: 0.01,
        ..PerkConfig::default()
    }
}

fn relative(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let apart: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
    apart.sqrt() / norm(b)
}

fn cosine(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let dot: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    dot / (norm(a) * norm(b))
}

/// What PyTorch computed.
struct Golden {
    numbers: BTreeMap<String, Vec<f32>>,
    whole: BTreeMap<String, Vec<u32>>,
    head: serde_json::Value,
}

impl Golden {
    fn read() -> Self {
        let bytes = std::fs::read(fixture("perk/golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut numbers, mut whole) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            let words = view.data().as_chunks::<4>().0;
            if view.dtype() == safetensors::Dtype::F32 {
                numbers.insert(name, words.iter().map(|w| f32::from_le_bytes(*w)).collect());
            } else {
                whole.insert(name, words.iter().map(|w| u32::from_le_bytes(*w)).collect());
            }
        }
        let head = std::fs::read_to_string(fixture("perk/golden.json")).unwrap();
        let head = serde_json::from_str(&head).unwrap();
        Self {
            numbers,
            whole,
            head,
        }
    }

    fn batch(&self, name: &str) -> Batch {
        let mut batch = Batch::default();
        let (ids, mut start) = (&self.whole[name], 0);
        for sequence in self.head[name].as_array().unwrap() {
            let [length, masked] = [0, 1].map(|i| sequence[i].as_u64().unwrap() as usize);
            batch.push(&ids[start..start + length], masked);
            start += length;
        }
        batch
    }

    fn group(&self, group: &str, names: &[String]) -> Tensors<f32> {
        let of = |name: &String| self.numbers[&format!("{group}.{name}")].clone();
        names.iter().map(of).collect()
    }

    fn number(&self, name: &str) -> f64 {
        f64::from(self.numbers[name][0])
    }
}

fn golden_state(golden: &Golden, backbone: &dyn Backbone) -> (PerkState, Vec<String>, Vec<String>) {
    let settings = PerkConfig {
        lora_alpha: 1.5 * 2f64.sqrt(),
        ..config(2)
    };
    let mut state = PerkState::new(settings, backbone, 0).unwrap();
    let names: Vec<String> = state.fast.names().collect();
    let net = super::weights::NAMES.map(str::to_owned).to_vec();
    state.fast.values = golden.group("start", &names);
    state.rates = golden.group("rates", &names);
    state.weights.as_mut().unwrap().values = golden.group("net", &net);
    (state, names, net)
}

#[test]
fn perk_writing_equals_that_of_pytorch() {
    let (golden, backbone) = (Golden::read(), llama());
    let (state, names, _) = golden_state(&golden, &*backbone);
    let segments = golden.batch("segments");
    let weights = state.weights.as_ref();
    let mut loss = ContextLoss::new(&*backbone, &state.fast, weights, &segments, 1);
    let first = loss.gradient(&state.fast.values).unwrap();
    let expected = &golden.numbers["inner_losses"];
    assert!((first.loss / f64::from(expected[0]) - 1.0).abs() < 1e-5);
    let apart = relative(&first.fast, &golden.group("first", &names));
    assert!(apart < 1e-5, "{apart:e}");

    let fresh = TokenWeights::new(backbone.info().hidden_size, 3);
    let mut plain = ContextLoss::new(&*backbone, &state.fast, Some(&fresh), &segments, 1);
    let found = plain.gradient(&state.fast.values).unwrap().loss;
    assert!((found / golden.number("fresh_inner_loss") - 1.0).abs() < 1e-5);

    let written = state.write(&*backbone, &segments, 1).unwrap();
    for (found, expected) in written.losses.iter().zip(expected) {
        assert!(
            (found / f64::from(*expected) - 1.0).abs() < 1e-3,
            "{found} {expected}"
        );
    }
    let apart = relative(&written.values, &golden.group("adapted", &names));
    assert!(apart < 1e-4, "{apart:e}");
    let questions = golden.batch("questions");
    let found = answer_loss(&*backbone, &state.fast, &written.values, &questions).unwrap();
    assert!(
        (found / golden.number("outer_loss") - 1.0).abs() < 1e-4,
        "{found}"
    );
}

#[test]
fn perk_meta_gradients_are_those_of_double_backward() {
    let (golden, backbone) = (Golden::read(), llama());
    let (state, names, net) = golden_state(&golden, &*backbone);
    let episode = Episode {
        segments: golden.batch("segments"),
        questions: golden.batch("questions"),
    };
    for (retained, most) in [(0, 1e-3), (2, 1e-2), (4, 3e-2)] {
        let mut differences = Differences::searched(1e-2);
        let found =
            episode_gradient(&*backbone, &state, &episode, retained, &mut differences).unwrap();
        let group = |part: &str, names: &[String]| {
            golden.group(&format!("gradient{retained}.{part}"), names)
        };
        let expected = group("start", &names);
        let (apart, angle) = (
            relative(&found.gradient.fast, &expected),
            cosine(&found.gradient.fast, &expected),
        );
        assert!(
            apart < most && angle > 0.999,
            "{retained}: {apart:e} {angle}"
        );
        let expected = group("rates", &names);
        // The last rate of each tensor is without effect.
        assert!(expected.iter().all(|of| of.len() == 5 && of[4] == 0.0));
        let rates: Tensors<f32> = found
            .gradient
            .rates
            .iter()
            .map(|of| of.iter().map(|&v| v as f32).chain([0.0]).collect())
            .collect();
        let apart = relative(&rates, &expected);
        assert!(apart < most, "{retained}, rates: {apart:e}");
        if retained > 0 {
            let apart = relative(&found.gradient.other, &group("net", &net));
            assert!(apart < most, "{retained}, token weights: {apart:e}");
        }
    }
}

/// Made-up segments and questions.
fn episode(numbers: &[usize]) -> Episode {
    let texts = [
        "a red boat",
        "the old road",
        "it rains",
        "seven small birds",
    ];
    let task = Task {
        context: numbers.iter().map(|&i| texts[i].to_owned()).collect(),
        questions: vec![Question {
            question: "what is red?".into(),
            answer: "a boat".into(),
            support: Vec::new(),
        }],
    };
    let tokenizer = tokenizer();
    Episode::of(&Texts::new(&tokenizer, 512).unwrap(), &task, numbers).unwrap()
}

/// A state whose adapter changes something from the start.
fn state(backbone: &dyn Backbone) -> PerkState {
    let mut state = PerkState::new(config(4), backbone, 5).unwrap();
    let values = state.fast.values.iter_mut().flatten().enumerate();
    values.for_each(|(i, v)| *v += 0.05 * (i as f32 * 0.37).sin());
    state
}

#[test]
fn perk_segments_and_questions_count_where_they_should() {
    let tokenizer = tokenizer();
    let texts = Texts::new(&tokenizer, 64).unwrap();
    let batch = texts
        .segments(&["a red boat", "it rains"], &[7, 0])
        .unwrap();
    let prefix = tokenizer.encode("doc_7:", true).unwrap();
    let body = tokenizer.encode(" a red boat", false).unwrap();
    let first = &batch.ids[..batch.lengths[0]];
    assert_eq!(
        first,
        [prefix.clone(), body.clone(), vec![texts.end()]].concat()
    );
    let counted: Vec<u32> = batch.labels[..batch.lengths[0]]
        .iter()
        .filter(|&&l| l >= 0)
        .map(|&l| l as u32)
        .collect();
    assert_eq!(counted, [body, vec![texts.end()]].concat());
    assert_eq!(
        tokenizer.decode(first, true).unwrap().trim(),
        "doc_7: a red boat"
    );
    assert_eq!(
        batch.positions(),
        2 * (batch.lengths.iter().max().unwrap() - 1)
    );

    let question = Question {
        question: "what is red?".into(),
        answer: "a boat".into(),
        support: vec!["a red boat".into()],
    };
    let batch = Texts::new(&tokenizer, 512)
        .unwrap()
        .questions(2, &[question])
        .unwrap();
    let text = tokenizer.decode(&batch.ids, true).unwrap();
    assert_eq!(
        text.trim(),
        "You have memorized 2 documents.\nwhat is red?\nAnswer: <support>a red boat</support>\n<output>a boat</output>"
    );
    assert_eq!(Texts::answer_in(&text), "a boat");
    assert_eq!(Texts::answer_in(" plain "), "plain");

    let refused = |segments: &[&str], numbers: &[usize]| {
        texts.segments(segments, numbers).unwrap_err().to_string()
    };
    assert!(refused(&[], &[]).contains("one at least"));
    assert!(refused(&["a", "  "], &[0, 1]).contains("segment 2 is empty"));
    assert!(refused(&["word ".repeat(100).as_str()], &[0]).contains("64"));
    assert!(texts.questions(1, &[]).is_err());
}

#[test]
fn perk_a_fresh_network_weighs_every_token_by_a_third_of_ln_2() {
    let backbone = llama();
    let state = state(&*backbone);
    let segments = episode(&[0, 1, 2]).segments;
    let loss = |weights: Option<&TokenWeights>| {
        let mut loss = ContextLoss::new(&*backbone, &state.fast, weights, &segments, 1);
        loss.gradient(&state.fast.values).unwrap()
    };
    let (with, without) = (loss(state.weights.as_ref()), loss(None));
    assert!((with.loss / without.loss / 0.231_049_06 - 1.0).abs() < 1e-5);
    let scaled: Tensors<f32> = without
        .fast
        .iter()
        .map(|t| t.iter().map(|v| v * 0.231_049_06).collect())
        .collect();
    assert!(relative(&with.fast, &scaled) < 1e-4);
}

#[test]
fn perk_the_order_of_segments_does_not_matter() {
    let backbone = llama();
    let state = state(&*backbone);
    let write = |order: &[usize]| {
        let written = state.write(&*backbone, &episode(order).segments, 1);
        written.unwrap().values
    };
    let (a, b) = (write(&[0, 1, 2, 3]), write(&[2, 0, 3, 1]));
    let moved = relative(&a, &state.fast.values);
    assert!(
        relative(&a, &b) < 1e-3 * moved,
        "{} {moved}",
        relative(&a, &b)
    );
}

#[test]
fn perk_parts_of_a_batch_give_what_the_batch_gives() {
    let backbone = llama();
    let state = state(&*backbone);
    let segments = episode(&[0, 1, 2, 3]).segments;
    assert_eq!(segments.groups(3).len(), 3);
    assert_eq!(segments.groups(9).len(), 4);
    let joined: Vec<u32> = segments
        .groups(3)
        .iter()
        .flat_map(|g| g.ids.clone())
        .collect();
    assert_eq!(joined, segments.ids);
    let write = |groups| state.write(&*backbone, &segments, groups).unwrap();
    let whole = write(1);
    for groups in [2, 3, 4] {
        let parts = write(groups);
        let moved = relative(&whole.values, &state.fast.values);
        assert!(
            relative(&parts.values, &whole.values) < 1e-3 * moved,
            "{groups}"
        );
        assert!((parts.losses[0] / whole.losses[0] - 1.0).abs() < 1e-5);
    }
}

#[test]
fn perk_sizes_are_those_of_the_paper() {
    let sizes = |d: usize, kv_heads: usize, heads: usize, f: usize, layers: usize, r: usize| {
        let raw = json!({"model_type": "llama", "hidden_size": d, "intermediate_size": f,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "vocab_size": 1000, "tie_word_embeddings": true});
        let model = ModelConfig::from_json(raw, "test").unwrap();
        let config = PerkConfig {
            r,
            ..PerkConfig::default()
        };
        Sizes::of(&config, &model.sites(), d).unwrap()
    };
    let qwen = sizes(896, 2, 14, 4864, 24, 256);
    assert_eq!(qwen.adapter, 140_771_328);
    assert_eq!(qwen.token_weights, 114_945);
    assert_eq!(qwen.rates, 1680);
    assert_eq!(sizes(896, 2, 14, 4864, 24, 16).adapter, 8_798_208);
    assert_eq!(sizes(576, 3, 9, 1536, 30, 16).adapter, 4_884_480);

    let backbone = llama();
    let state = PerkState::new(config(4), &*backbone, 0).unwrap();
    let expected = Sizes::of(&config(4), backbone.sites(), backbone.info().hidden_size).unwrap();
    assert_eq!(state.fast.num_parameters(), expected.adapter);
    let net = state.weights.as_ref().unwrap().num_parameters();
    assert_eq!(net, expected.token_weights);
    assert_eq!(
        state.rates.iter().map(Vec::len).sum::<usize>(),
        expected.rates
    );
}

fn frozen(backbone: &dyn Backbone) -> Vec<f32> {
    let mut all = Vec::new();
    backbone.visit_weights(&mut |part| {
        if let Frozen::Linear(linear) = part {
            all.extend(to_vec(linear.weight.dense()));
        }
    });
    all
}

#[test]
fn perk_an_episode_leaves_model_and_state_as_they_were() {
    let backbone = llama();
    let state = state(&*backbone);
    let before = (frozen(&*backbone), state.fast.values.clone());
    let episode = episode(&[0, 1, 2]);
    let written = state.write(&*backbone, &episode.segments, 1).unwrap();
    assert!(relative(&written.values, &state.fast.values) > 1e-3);
    assert!(written.losses[3] < written.losses[0]);
    episode_gradient(
        &*backbone,
        &state,
        &episode,
        2,
        &mut Differences::searched(1e-2),
    )
    .unwrap();
    assert_eq!((frozen(&*backbone), state.fast.values.clone()), before);
}

#[test]
fn perk_rates_of_zero_write_nothing() {
    let backbone = llama();
    let still = PerkConfig {
        inner_lr: 0.0,
        ..config(4)
    };
    let state = PerkState::new(still, &*backbone, 0).unwrap();
    let episode = episode(&[0, 1]);
    let written = state.write(&*backbone, &episode.segments, 1).unwrap();
    assert_eq!(written.values, state.fast.values);
    let (set, choice) = state.adapters(&*backbone, &written.values).unwrap();
    let batch = &episode.questions;
    let input = Input::new(&batch.ids, &batch.lengths);
    let mut plain = NoAdapter;
    let expected = backbone.forward(&input, &mut plain, None).unwrap();
    let expected = backbone.logits(expected, Rows::Tokens, &mut plain).unwrap();
    let mut pass = set.pass(&choice, &input.layout, Mode::Eval).unwrap();
    let found = backbone.forward(&input, pass.as_mut(), None).unwrap();
    let found = backbone.logits(found, Rows::Tokens, pass.as_mut()).unwrap();
    let apart = (found - expected).abs().max();
    assert!(to_vec(apart)[0] < 1e-5);
}

#[test]
fn perk_the_adapter_of_written_values_answers_as_the_fast_weights_do() {
    let backbone = llama();
    let state = state(&*backbone);
    let episode = episode(&[0, 1, 2]);
    let values = state
        .write(&*backbone, &episode.segments, 1)
        .unwrap()
        .values;
    let adapter = state.adapter(&*backbone, &values).unwrap();
    let back = FastWeights::of(adapter.as_ref(), &*backbone).unwrap();
    assert_eq!(back.values, values);
    assert_eq!(back.places(), state.fast.places());
}

#[test]
fn perk_meta_training_makes_answers_likelier() {
    let backbone = llama();
    let tokenizer = tokenizer();
    let texts = Texts::new(&tokenizer, 512).unwrap();
    let task = |a: &str, b: &str| Task {
        context: vec![format!("the boat is {a}"), format!("the coat is {b}")],
        questions: vec![Question {
            question: "the boat?".into(),
            answer: a.into(),
            support: Vec::new(),
        }],
    };
    let tasks = [task("red", "old"), task("old", "red"), task("new", "red")];
    let mut state = PerkState::new(config(4), &*backbone, 1).unwrap();
    let settings = MetaTrainConfig {
        lr: 1e-2,
        max_steps: 24,
        ..MetaTrainConfig::default()
    };
    let mut losses = Vec::new();
    let steps = meta_train(
        &*backbone,
        &texts,
        &mut state,
        &tasks,
        &settings,
        &mut |step, of| {
            assert_eq!(of, 24);
            losses.push(step.loss);
            true
        },
    );
    assert_eq!(steps.unwrap(), 24);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[18..]) < 0.8 * mean(&losses[..6]), "{losses:?}");
    let stopped = meta_train(
        &*backbone,
        &texts,
        &mut state,
        &tasks,
        &settings,
        &mut |_, _| false,
    );
    assert_eq!(stopped.unwrap(), 1);
    assert!(
        meta_train(
            &*backbone,
            &texts,
            &mut state,
            &[],
            &settings,
            &mut |_, _| true
        )
        .is_err()
    );
}

#[test]
fn perk_settings_that_cannot_be_are_refused_by_name() {
    let backbone = llama();
    let refused = |change: &dyn Fn(&mut PerkConfig)| {
        let mut config = config(4);
        change(&mut config);
        let state = PerkState::new(config, &*backbone, 0);
        state.unwrap_err().to_string()
    };
    assert!(refused(&|c| c.r = 0).contains("`r`"));
    assert!(refused(&|c| c.r = 1 << 40).contains("rank"));
    assert!(refused(&|c| c.lora_alpha = f64::NAN).contains("`lora_alpha`"));
    assert!(refused(&|c| c.inner_steps = 0).contains("`inner_steps`"));
    assert!(refused(&|c| c.inner_lr = -1.0).contains("`inner_lr`"));
    assert!(refused(&|c| c.target_modules = vec!["q_prj".into()]).contains("q_prj"));
    let train = |change: &dyn Fn(&mut MetaTrainConfig)| {
        let mut settings = MetaTrainConfig::default();
        change(&mut settings);
        settings.validate(&config(4)).unwrap_err().to_string()
    };
    assert!(train(&|c| c.retained_steps = 5).contains("`retained_steps`"));
    assert!(train(&|c| c.lr = 0.0).contains("`lr`"));
    assert!(train(&|c| c.max_grad_norm = 0.0).contains("`max_grad_norm`"));
}

#[test]
fn perk_a_state_is_read_as_it_was_written() {
    let backbone = llama();
    let mut state = state(&*backbone);
    state.rates[3][1] = 0.5;
    state.weights.as_mut().unwrap().values[3][0] = -0.25;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    files::save(&path, &state, &*backbone, "llama").unwrap();
    let read = files::load(&path, &*backbone).unwrap();
    assert_eq!(read.fast.values, state.fast.values);
    assert_eq!((&read.rates, &read.weights), (&state.rates, &state.weights));
    assert_eq!(read.config, state.config);
    // Once more over the same files.
    files::save(&path, &state, &*backbone, "llama").unwrap();

    let without = PerkConfig {
        token_weights: false,
        learned_rates: false,
        ..config(2)
    };
    let plain = PerkState::new(without, &*backbone, 0).unwrap();
    files::save(&path, &plain, &*backbone, "llama").unwrap();
    assert!(files::load(&path, &*backbone).unwrap().weights.is_none());
}

#[test]
fn perk_damaged_states_are_refused_by_name() {
    let backbone = llama();
    let state = state(&*backbone);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refused = || files::load(path, &*backbone).unwrap_err().to_string();
    assert!(refused().contains("perk.json"));
    let again = || files::save(path, &state, &*backbone, "llama").unwrap();
    let edit = |from: &str, to: &str| {
        again();
        let file = path.join("perk.json");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(file, text.replace(from, to)).unwrap();
    };
    edit("\"version\": 1", "\"version\": 2");
    assert!(refused().contains("`version` is 2"));
    edit("\"r\": 4", "\"r\": 3");
    assert!(refused().contains("not those of the adapter"));
    edit("\"inner_steps\": 4", "\"inner_steps\": 5");
    assert!(refused().contains("rates."), "{}", refused());
    edit("\"inner_steps\": 4", "\"inner_steps\": 4000000000");
    assert!(refused().contains("`inner_steps`"));
    edit("\"token_weights\": true", "\"token_weights\": false");
    assert!(refused().contains("weighting."), "{}", refused());
    edit("\"r\": 4", "\"rr\": 4");
    assert!(refused().contains("rr"));

    let tensors = path.join("perk.safetensors");
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        again();
        let mut bytes = std::fs::read(&tensors).unwrap();
        change(&mut bytes);
        std::fs::write(&tensors, bytes).unwrap();
    };
    damage(&|bytes| bytes.truncate(bytes.len() / 2));
    assert!(refused().contains("perk.safetensors"));
    damage(&|bytes| bytes.extend(vec![0; 1 << 20]));
    assert!(refused().contains("bytes"));
    damage(&|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(refused().contains("not finite"));
    damage(&|bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    assert!(refused().contains("perk.safetensors"));
    std::fs::remove_file(&tensors).unwrap();
    assert!(refused().contains("perk.safetensors"));
}

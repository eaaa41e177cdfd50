//! The checks of the method on a small model, and counts on published ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{
    ActiveAdapters, Adapter, AdapterSet, Backbone, BackboneInfo, Frozen, Input, LoadedAdapter,
    Mode, NoAdapter, Pass, Rows, SequenceLayout, SiteInfo, SiteKind, SiteTable, to_vec,
};

use super::*;

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

pub(super) fn llama() -> (Arc<dyn Backbone>, TextTokenizer, FeedForward) {
    let folder = fixture("harness/llama");
    let files = ModelFiles::open(&folder.display().to_string(), &Lookup::default()).unwrap();
    let backbone = files.load(&Device::flex()).unwrap();
    let places = FeedForward::of(backbone.info(), backbone.sites()).unwrap();
    (
        backbone,
        TextTokenizer::from_folder(&folder).unwrap(),
        places,
    )
}

pub(super) const IDS: [u32; 7] = [5, 17, 40, 9, 120, 33, 8];

pub(super) fn logits(backbone: &dyn Backbone, pass: &mut dyn Pass) -> Vec<f32> {
    let hidden = backbone
        .forward(&Input::new(&IDS, &[IDS.len()]), pass, None)
        .unwrap();
    to_vec(backbone.logits(hidden, Rows::Tokens, pass).unwrap())
}

pub(super) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Numbers between -1 and 1 that no two seeds share.
pub(super) fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 - 1001.0) / 1001.0)
        .collect()
}

pub(super) fn made_up(
    places: &FeedForward,
    rank: usize,
    seed: usize,
    size: f32,
) -> DocumentWeights {
    let device = Device::flex();
    let tensor = |shape: [usize; 2], seed: usize| {
        let values = numbers(shape[0] * shape[1], seed);
        let values: Vec<f32> = values.iter().map(|v| v * size).collect();
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    let factors = places
        .places()
        .iter()
        .enumerate()
        .map(|(i, place)| Factors {
            a: tensor([rank, place.d_in], seed + 2 * i),
            b: tensor([place.d_out, rank], seed + 2 * i + 1),
        });
    DocumentWeights {
        rank,
        factors: factors.collect(),
    }
}

/// The feed-forward matrices of a model of these sizes.
pub(super) fn sized(hidden: usize, inner: usize, layers: usize) -> FeedForward {
    let mut sites = Vec::new();
    for layer in 0..layers {
        for (name, sides) in [
            ("gate_proj", [hidden, inner]),
            ("up_proj", [hidden, inner]),
            ("down_proj", [inner, hidden]),
        ] {
            let path = format!("model.layers.{layer}.mlp.{name}");
            sites.push(SiteInfo::new(
                path,
                SiteKind::Linear,
                Some(layer),
                sides,
                false,
            ));
        }
    }
    let info = BackboneInfo {
        model_type: "llama",
        hidden_size: hidden,
        num_hidden_layers: layers,
        ..BackboneInfo::default()
    };
    FeedForward::of(&info, &SiteTable::of(sites)).unwrap()
}

/// What the seam gives fast weights: gradients reach what the factors were computed from.
#[test]
fn gradients_reach_the_weights_of_a_network_that_forms_the_factors() {
    let (backbone, _, places) = llama();
    let config = TranslatorConfig {
        width: 3,
        ..TranslatorConfig::default()
    };
    let mut translator = Translator::new(&places, config, 1, &Device::flex()).unwrap();
    // Away from the start, where half of the gradients are zero by design.
    for (i, parameter) in translator.parameters_mut().enumerate() {
        let values = numbers(parameter.len(), i)
            .iter()
            .map(|v| v * 0.3)
            .collect();
        parameter.set(values);
    }
    let embedding = numbers(places.hidden_size(), 3);
    let loss = |translator: &Translator, mode: Mode| {
        let weights = translator.translate(&embedding, mode).unwrap();
        let change = FastWeights::new(&places, &weights, 0.5).unwrap();
        let mut pass = change.hooks();
        let hidden = backbone
            .forward(&Input::new(&IDS, &[IDS.len()]), &mut pass, None)
            .unwrap();
        hidden.powf_scalar(2.0).mean()
    };
    let gradients = loss(&translator, Mode::Train { seed: 0 }).backward();
    let mut gradients = gradients;
    let found: Vec<Vec<f32>> = translator
        .parameters()
        .map(|p| to_vec(p.take_gradient(&mut gradients).unwrap()))
        .collect();
    // Finite differences along the gradient of each weight.
    for (number, gradient) in found.iter().enumerate() {
        let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
        if norm == 0.0 {
            continue;
        }
        let step = 2e-3 / norm;
        let moved = |sign: f32| {
            let mut other = translator.clone();
            let parameter = other.parameters_mut().nth(number).unwrap();
            let values = parameter.to_vec();
            let values = values
                .iter()
                .zip(gradient)
                .map(|(v, g)| v + sign * step * g);
            parameter.set(values.collect());
            f64::from(to_vec(loss(&other, Mode::Eval))[0])
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
        let expected = f64::from(norm).powi(2);
        assert!(
            (slope / expected - 1.0).abs() < 0.05 || expected < 1e-6,
            "weight {number}: {slope} {expected}"
        );
    }
    assert!(found.iter().flatten().any(|g| *g != 0.0));
    let reached = found.iter().filter(|g| g.iter().any(|v| *v != 0.0));
    assert!(reached.count() > found.len() / 2);
}

/// Check 1 and 2: published sizes.
#[test]
pub(super) fn numbers_of_documents_and_translators_are_those_of_the_formulas() {
    let documents = [
        ((2048, 8192, 16), 983_040),
        ((1536, 8960, 28), 1_763_328),
        ((576, 1536, 30), 380_160),
        ((4096, 14336, 32), 3_538_944),
    ];
    for ((d, f, layers), expected) in documents {
        assert_eq!(sized(d, f, layers).num_parameters(2), expected);
    }
    let translators = [
        ((2048, 8192, 16), 37_751_808),
        ((1536, 8960, 28), 64_689_408),
        ((576, 1536, 30), 15_488_640),
        ((640, 2048, 18), 11_505_024),
        ((4096, 14336, 32), 138_418_176),
    ];
    for ((d, f, layers), expected) in translators {
        assert_eq!(
            num_translator_parameters(&sized(d, f, layers), 32, 2),
            expected
        );
    }
    // What is made has as many as the formula says.
    let (_, _, places) = llama();
    let translator =
        Translator::new(&places, TranslatorConfig::default(), 0, &Device::flex()).unwrap();
    let formula = num_translator_parameters(&places, 32, 2);
    assert_eq!(translator.num_parameters() as u64, formula);
    let start =
        DocumentWeights::start(&places, &ParametricConfig::default(), &Device::flex()).unwrap();
    let held = |t: &Tensor<2>| t.dims().iter().product::<usize>();
    let made: usize = start
        .factors
        .iter()
        .map(|pair| held(&pair.a) + held(&pair.b))
        .sum();
    assert_eq!(made, places.num_parameters(2));
}

/// Check 3.
#[test]
fn what_is_injected_leaves_no_trace_and_no_change_is_the_model_itself() {
    let (backbone, _, places) = llama();
    let before = logits(&*backbone, &mut NoAdapter);
    let mut set = AdapterSet::default();
    let change = FastWeights::new(&places, &made_up(&places, 2, 1, 0.5), 1.0).unwrap();
    let entry = LoadedAdapter {
        adapter: Box::new(change),
        head: None,
    };
    set.insert("documents", entry);
    let layout = SequenceLayout::new(&[IDS.len()]);
    let with = {
        let choice = ActiveAdapters::One("documents".into());
        let mut pass = set.pass(&choice, &layout, Mode::Eval).unwrap();
        logits(&*backbone, pass.as_mut())
    };
    assert!(difference(&with, &before) > 1e-2);
    set.remove("documents").unwrap();
    let mut pass = set
        .pass(&ActiveAdapters::Base, &layout, Mode::Eval)
        .unwrap();
    assert_eq!(logits(&*backbone, pass.as_mut()), before);

    // Fresh translators and the common start are no change.
    let translator =
        Translator::new(&places, TranslatorConfig::default(), 0, &Device::flex()).unwrap();
    let fresh = translator
        .translate(&numbers(places.hidden_size(), 1), Mode::Eval)
        .unwrap();
    let start =
        DocumentWeights::start(&places, &ParametricConfig::default(), &Device::flex()).unwrap();
    for weights in [fresh, start] {
        let change = FastWeights::new(&places, &weights, 16.0).unwrap();
        assert_eq!(logits(&*backbone, &mut change.hooks()), before);
    }
}

/// Check 4: another pass, with the sums as whole weights.
#[test]
fn merged_weights_give_the_logits_of_the_side_product() {
    struct Whole<'a>(&'a FastWeights);
    impl Pass for Whole<'_> {
        fn linear_change(&mut self, base: &frugal_nn::Linear) -> frugal_nn::LinearChange {
            match self.0.merged_linear(base).unwrap() {
                Some(merged) => frugal_nn::LinearChange::Weight(merged.weight),
                None => frugal_nn::LinearChange::None,
            }
        }
    }
    let (backbone, _, places) = llama();
    let change = FastWeights::new(&places, &made_up(&places, 2, 5, 0.05), 2.0).unwrap();
    let side = logits(&*backbone, &mut change.hooks());
    let whole = logits(&*backbone, &mut Whole(&change));
    assert!(difference(&side, &logits(&*backbone, &mut NoAdapter)) > 1e-3);
    let found = difference(&side, &whole);
    assert!(found < 1e-5, "{found}");
    let mut changed = 0;
    backbone.visit_weights(&mut |part| {
        if let Frozen::Linear(linear) = part {
            changed += usize::from(change.weight_delta(linear).unwrap().is_some());
        }
    });
    assert_eq!(changed, places.places().len());
}

/// One matrix of 2 x 2, as in the example of the check.
fn two_by_two(a: [f32; 2], b: [f32; 2]) -> DocumentWeights {
    let device = Device::flex();
    DocumentWeights {
        rank: 1,
        factors: vec![Factors {
            a: Tensor::from_data(TensorData::new(a.to_vec(), [1, 2]), &device),
            b: Tensor::from_data(TensorData::new(b.to_vec(), [2, 1]), &device),
        }],
    }
}

fn product(weights: &DocumentWeights, place: usize) -> Vec<f32> {
    let pair = &weights.factors[place];
    to_vec(pair.b.clone().matmul(pair.a.clone()))
}

/// Check 5.
#[test]
fn merges_are_the_sum_its_mean_and_the_product_of_means() {
    let one = two_by_two([1.0, 0.0], [1.0, 0.0]);
    let other = two_by_two([0.0, 1.0], [0.0, 1.0]);
    let both = [&one, &other];
    let merged = |how| merge(&both, how).unwrap();
    assert_eq!(product(&merged(Merge::Sum), 0), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(product(&merged(Merge::MeanDelta), 0), [0.5, 0.0, 0.0, 0.5]);
    assert_eq!(product(&merged(Merge::MeanFactors), 0), [0.25; 4]);
    assert_eq!(merged(Merge::Sum).rank, 2);
    assert_eq!(merged(Merge::MeanFactors).rank, 1);
    let same = merge(&[&one, &one, &one], Merge::MeanFactors).unwrap();
    assert_eq!(product(&same, 0), product(&one, 0));

    // The sum acts as all changes do one after another.
    let (backbone, _, places) = llama();
    let documents: Vec<DocumentWeights> =
        (0..3).map(|i| made_up(&places, 2, 11 * i, 0.2)).collect();
    let documents: Vec<&DocumentWeights> = documents.iter().collect();
    let sum = merge(&documents, Merge::Sum).unwrap();
    assert_eq!(sum.rank, 6);
    let mut set = AdapterSet::default();
    let mut parts = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        let adapter = Box::new(FastWeights::new(&places, document, 0.5).unwrap());
        set.insert(
            format!("{i}"),
            LoadedAdapter {
                adapter,
                head: None,
            },
        );
        parts.push((format!("{i}"), 1.0));
    }
    let layout = SequenceLayout::new(&[IDS.len()]);
    let mut pass = set
        .pass(&ActiveAdapters::Combined(parts), &layout, Mode::Eval)
        .unwrap();
    let together = logits(&*backbone, pass.as_mut());
    let change = FastWeights::new(&places, &sum, 0.5).unwrap();
    let found = difference(&together, &logits(&*backbone, &mut change.hooks()));
    assert!(found < 1e-4, "{found}");

    assert!(merge(&[], Merge::Sum).is_err());
    assert!(merge(&[&sum, documents[0]], Merge::MeanFactors).is_err());
    assert!(merge(&[&one, documents[0]], Merge::Sum).is_err());
}

/// Check 7.
#[test]
fn the_order_of_passages_has_no_effect_and_translation_repeats() {
    let (backbone, _, places) = llama();
    let mut translator =
        Translator::new(&places, TranslatorConfig::default(), 4, &Device::flex()).unwrap();
    for (i, parameter) in translator.parameters_mut().enumerate() {
        parameter.set(
            numbers(parameter.len(), i)
                .iter()
                .map(|v| v * 0.1)
                .collect(),
        );
    }
    let embeddings: Vec<Vec<f32>> = (0..3)
        .map(|i| document_embedding(&*backbone, &IDS[i..i + 4]).unwrap())
        .collect();
    let translated = |order: [usize; 3], how| {
        let all: Vec<DocumentWeights> = order
            .iter()
            .map(|&i| translator.translate(&embeddings[i], Mode::Eval).unwrap())
            .collect();
        let all: Vec<&DocumentWeights> = all.iter().collect();
        let merged = merge(&all, how).unwrap();
        let change = FastWeights::new(&places, &merged, 1.0).unwrap();
        logits(&*backbone, &mut change.hooks())
    };
    for how in Merge::ALL {
        let first = translated([0, 1, 2], how);
        assert_eq!(first, translated([0, 1, 2], how), "{how:?} repeats");
        for order in [[2, 0, 1], [1, 0, 2]] {
            let found = difference(&first, &translated(order, how));
            assert!(found < 1e-4, "{how:?} {order:?}: {found}");
        }
        assert!(difference(&first, &translated([0, 0, 0], how)) > 1e-3);
    }
}

pub(super) fn example() -> AugmentedDocument {
    let item = |question: &str, answer: &str| Item {
        question: question.into(),
        answer: answer.into(),
    };
    AugmentedDocument {
        id: "d1".into(),
        title: String::new(),
        passage: "Orla Venn was born in Trask in 1902.".into(),
        rewrite: Some("In 1902 Orla Venn was born, in Trask.".into()),
        items: vec![
            item("Where was Orla Venn born?", "Trask"),
            item("When was Orla Venn born?", "1902"),
            item("Who was born in Trask?", "Orla Venn"),
        ],
    }
}

/// Check 6, and what the sequences say.
#[test]
fn a_document_has_as_many_sequences_as_its_questions_make() {
    let (_, tokenizer, _) = llama();
    let prompts = Prompts::new(&tokenizer);
    let options = EncodeOptions::default();
    let all = example();
    for (n, expected) in [(1, 2), (2, 3), (3, 5)] {
        let document = AugmentedDocument {
            items: all.items[..n].to_vec(),
            ..all.clone()
        };
        let found = sequences(&document, prompts, &options).unwrap();
        assert_eq!((found.len(), num_sequences(n)), (expected, expected), "{n}");
    }
    let found = sequences(&all, prompts, &options).unwrap();
    let texts: Vec<String> = found
        .iter()
        .map(|s| tokenizer.decode(&s.ids, true).unwrap())
        .collect();
    let passage = |i: usize| {
        [&all.passage, all.rewrite.as_ref().unwrap()].map(|text| texts[i].contains(text.as_str()))
    };
    assert_eq!(passage(0), [true, false]);
    assert_eq!(passage(1), [false, true]);
    assert_eq!(passage(2), [true, false]);
    assert_eq!(passage(3), [false, true]);
    assert_eq!(passage(4), [false, false]);
    assert!(
        texts[4].ends_with("The answer is Orla Venn."),
        "{}",
        texts[4]
    );

    // Every token after the first is a target, or the answer's alone.
    let answers = EncodeOptions {
        label_prompt: false,
        ..options
    };
    let answers = sequences(&all, prompts, &answers).unwrap();
    for (whole, answer) in found.iter().zip(&answers) {
        assert_eq!(whole.ids, answer.ids);
        assert_eq!(whole.trained(), whole.ids.len() - 1);
        let learnt: Vec<u32> = answer
            .targets
            .iter()
            .filter(|t| **t >= 0)
            .map(|t| *t as u32)
            .collect();
        let text = tokenizer.decode(&learnt, true).unwrap();
        assert!(text.trim().starts_with("The answer is"), "{text}");
        assert!(answer.ids.ends_with(&learnt));
    }
    let one = AugmentedDocument {
        rewrite: None,
        ..all.clone()
    };
    assert_eq!(sequences(&one, prompts, &options).unwrap().len(), 3);
    for broken in [
        AugmentedDocument {
            items: Vec::new(),
            ..all.clone()
        },
        AugmentedDocument {
            passage: " ".into(),
            ..all.clone()
        },
    ] {
        let error = sequences(&broken, prompts, &options).unwrap_err();
        assert!(error.to_string().starts_with("document `d1`"), "{error}");
    }
}

/// Check 8.
#[test]
fn equal_parameters_have_no_divergence_and_no_squared_difference() {
    let (backbone, tokenizer, places) = llama();
    let sequence = sequences(
        &example(),
        Prompts::new(&tokenizer),
        &EncodeOptions::default(),
    )
    .unwrap()
    .swap_remove(4);
    let (one, other) = (made_up(&places, 2, 3, 0.3), made_up(&places, 2, 4, 0.3));
    let loss = |a: &DocumentWeights, b: &DocumentWeights| {
        let options = TranslatorTraining::default();
        translator_loss(&*backbone, &places, [a, b], 1.0, &sequence, &options)
            .unwrap()
            .numbers()
    };
    let equal = loss(&one, &one);
    assert!(equal.kl.abs() < 1e-5, "{equal:?}");
    assert_eq!(equal.mse, 0.0);
    let different = loss(&one, &other);
    assert!(different.kl > 1e-3 && different.mse > 1e-2, "{different:?}");
    assert_eq!(equal.lm, different.lm);

    // What does not go together is an error, no panic.
    let options = TranslatorTraining::default();
    let refused = |a: &DocumentWeights, sequence: &Sequence| {
        let loss = translator_loss(&*backbone, &places, [a, &other], 1.0, sequence, &options);
        loss.err().unwrap().to_string()
    };
    let wide = made_up(&places, 3, 3, 0.3);
    assert!(refused(&wide, &sequence).contains("rank 3"));
    let count = sequence.ids.len();
    for (targets, words) in [
        (vec![-100; count], "no target"),
        (vec![5; count - 1], "targets for"),
        (vec![-5; count], "target -5"),
        (vec![1 << 30; count], "outside the vocabulary"),
    ] {
        let broken = Sequence {
            targets,
            ..sequence.clone()
        };
        let found = refused(&one, &broken);
        assert!(found.contains(words), "{found}");
    }
}

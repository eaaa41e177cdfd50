//! Adapter folders that `peft` wrote, or, of methods it lacks, with what PyTorch makes of their
//! formulas: outputs, round trips, several at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::Rows;
use frugal::adapt::{
    ActiveAdapters, AdapterSet, LoadedAdapter, Mode, Parameter, peft, registry, to_vec,
};
use frugal::model::{Backbone, Input, SequenceLayout};
use serde_json::json;

use crate::support::{Golden, context, device, fixture, max_difference, model};

pub const TOLERANCE: f32 = 1e-4;

/// Every folder of `fixtures/adapters`.
pub fn adapters() -> Vec<String> {
    let folders = std::fs::read_dir(fixture("adapters")).unwrap().flatten();
    let mut names: Vec<String> = folders
        .map(|folder| folder.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() > 80, "{names:?}");
    names
}

pub struct Case {
    pub folder: PathBuf,
    pub backbone: Arc<dyn Backbone>,
    pub golden: Golden,
    pub description: serde_json::Value,
}

pub fn case(name: &str) -> Case {
    let folder = fixture("adapters").join(name);
    let description: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let base = description["model"]
        .as_str()
        .unwrap()
        .strip_prefix("fixtures/models/")
        .unwrap();
    Case {
        backbone: model(base, "config.json"),
        golden: Golden::read(&folder.join("golden.safetensors")),
        folder,
        description,
    }
}

impl Case {
    pub fn load(&self) -> LoadedAdapter {
        peft::load(&self.folder, &context(self.backbone.as_ref(), 0), false)
            .unwrap()
            .0
    }

    /// Logits of one sequence, of the head where the adapter has one.
    pub fn logits(
        &self,
        entry: &LoadedAdapter,
        backbone: &dyn Backbone,
        sequence: usize,
        plain: bool,
    ) -> Vec<f32> {
        let ids = self.golden.input_ids(sequence);
        let mut pass = if plain {
            Box::new(frugal::adapt::NoAdapter)
        } else {
            entry.adapter.pass(Mode::Eval)
        };
        let hidden = backbone
            .forward(&Input::new(ids, &[ids.len()]), pass.as_mut(), None)
            .unwrap();
        let layout = SequenceLayout::new(&[ids.len()]);
        to_vec(match &entry.head {
            Some(head) => head.forward(hidden, &layout, backbone, pass.as_mut(), Mode::Eval),
            None => backbone
                .logits(hidden, Rows::Tokens, pass.as_mut())
                .unwrap(),
        })
    }

    /// What `peft` computed; it counts virtual tokens as rows too, which are left out here.
    pub fn expected(&self, sequence: usize, len: usize) -> &[f32] {
        let all = self.golden.float(&format!("seq{sequence}.logits")).unwrap();
        &all[all.len() - len..]
    }
}

#[test]
fn logits_match_peft() {
    for name in &adapters() {
        let case = case(name);
        let entry = case.load();
        for s in case.golden.sequences() {
            let found = case.logits(&entry, case.backbone.as_ref(), s, false);
            let worst = max_difference(&found, case.expected(s, found.len()));
            assert!(
                worst <= TOLERANCE,
                "{name} sequence {s}: largest difference {worst:e}"
            );
        }
    }
}

/// Mean loss over the next tokens of all sequences, or over their classes, as the golden files
/// define it.
fn loss(case: &Case, entry: &LoadedAdapter) -> Tensor<1> {
    let mode = Mode::Train { seed: 0 };
    let classes = case.description["classes"].as_array().unwrap();
    let (mut total, mut count) = (Tensor::<1>::zeros([1], &device()), 0);
    for s in case.golden.sequences() {
        let ids = case.golden.input_ids(s);
        let mut pass = entry.adapter.pass(mode);
        let hidden = case
            .backbone
            .forward(&Input::new(ids, &[ids.len()]), pass.as_mut(), None)
            .unwrap();
        let layout = SequenceLayout::new(&[ids.len()]);
        let (logits, targets) = match &entry.head {
            Some(head) => {
                let logits =
                    head.forward(hidden, &layout, case.backbone.as_ref(), pass.as_mut(), mode);
                (logits, vec![classes[s].as_i64().unwrap()])
            }
            None => {
                let logits = case
                    .backbone
                    .logits(hidden, Rows::Tokens, pass.as_mut())
                    .unwrap();
                let (rows, next) = (logits.dims()[0], ids.len() - 1);
                (
                    logits.narrow(0, rows - next - 1, next),
                    ids[1..].iter().map(|&id| i64::from(id)).collect(),
                )
            }
        };
        let index = Tensor::<2, Int>::from_data(
            TensorData::new(targets.clone(), [targets.len(), 1]),
            &device(),
        );
        total = total - log_softmax(logits, 1).gather(1, index).sum();
        count += targets.len();
    }
    total / count as f32
}

#[test]
fn losses_and_gradients_match_peft() {
    for name in &adapters() {
        let case = case(name);
        if case.golden.float("loss").is_none() {
            // Methods that train something else than their files hold, and those that peft does not
            // have, are compared elsewhere.
            let elsewhere = [
                "prefix",
                "p-tuning",
                "prompt-step",
                "adalora",
                "cartridge",
                "cpt",
            ];
            let own = case.description["generator"]
                .as_str()
                .unwrap()
                .ends_with("adapters_own.py");
            assert!(
                own || elsewhere.iter().any(|part| name.contains(part)),
                "{name}"
            );
            continue;
        }
        let entry = case.load();
        let loss = loss(&case, &entry);
        let (found, expected): (f32, f32) = (
            loss.clone().into_scalar(),
            case.golden.float("loss").unwrap()[0],
        );
        assert!(
            (found - expected).abs() / expected < 1e-4,
            "{name}: loss {found} instead of {expected}"
        );
        let mut gradients = loss.backward();
        let mut compared = 0;
        let parameters = entry
            .adapter
            .parameters()
            .into_iter()
            .chain(entry.head.iter().flat_map(|h| h.parameters()));
        for parameter in parameters.filter(|p| p.is_trainable()) {
            let key = ["grad.base_model.model.", "grad."]
                .map(|prefix| format!("{prefix}{}", parameter.name()));
            let expected = key
                .iter()
                .find_map(|key| case.golden.float(key))
                .unwrap_or_else(|| panic!("{name}: {}", parameter.name()));
            let found = parameter
                .take_gradient(&mut gradients)
                .map_or_else(|| vec![0.0; parameter.len()], to_vec);
            let norm = |v: &mut dyn Iterator<Item = f32>| {
                v.map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt()
            };
            let size = norm(&mut expected.iter().copied());
            let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            // Some are zero but for rounding: keys' biases under softmax.
            assert!(
                difference <= 1e-4 * size + 1e-6,
                "{name}: {}: {difference:e} of {size:e}",
                parameter.name()
            );
            compared += 1;
        }
        let expected = case
            .golden
            .floats
            .keys()
            .filter(|key| key.starts_with("grad."))
            .count();
        assert_eq!(compared, expected, "{name}");
    }
}

#[test]
fn residual_methods_start_from_what_peft_takes_from_the_weights() {
    for (name, settings, tolerance) in [
        ("pissa", json!({"pissa_niter": 0}), 1e-4),
        ("pissa", json!({"pissa_niter": 8}), 1e-2),
        ("olora", json!({}), 1e-4),
    ] {
        let case = case(&format!("llama-{name}"));
        let mut settings = settings.as_object().unwrap().clone();
        settings.extend(
            [
                ("r", json!(4)),
                ("lora_alpha", json!(8)),
                ("target_modules", json!(["q_proj", "down_proj"])),
            ]
            .map(|(k, v)| (k.into(), v)),
        );
        let adapter =
            (registry::find(name).unwrap().build)(&settings, &context(case.backbone.as_ref(), 0))
                .unwrap();
        let factors: BTreeMap<&str, Tensor<2>> = adapter
            .parameters()
            .into_iter()
            .map(|p| (p.name(), p.get::<2>(Mode::Eval)))
            .collect();
        let mut compared = 0;
        for (key, (_, expected)) in case
            .golden
            .floats
            .iter()
            .filter(|(key, _)| key.starts_with("initial."))
        {
            let path = key.strip_prefix("initial.").unwrap();
            let factor =
                |letter: &str| factors[format!("{path}.lora_{letter}.weight").as_str()].clone();
            let worst = max_difference(&to_vec(factor("B").matmul(factor("A")) * 2.0), expected);
            assert!(worst < tolerance, "{name} {path}: {worst:e}");
            compared += 1;
        }
        assert_eq!(compared, 4, "{name}");
    }
}

#[test]
fn the_number_of_trainable_parameters_is_that_of_peft() {
    for name in &adapters() {
        let case = case(name);
        let entry = case.load();
        let head: usize = entry
            .head
            .iter()
            .flat_map(|h| h.parameters())
            .map(Parameter::len)
            .sum();
        let expected = case.description["trainable_parameters"].as_u64().unwrap() as usize;
        assert_eq!(entry.adapter.num_trainable() + head, expected, "{name}");
    }
}

#[test]
fn saving_and_loading_keeps_every_bit_and_every_key() {
    for name in &adapters() {
        let case = case(name);
        let entry = case.load();
        let dir = tempfile::tempdir().unwrap();
        peft::save(
            dir.path(),
            &entry,
            case.backbone.info(),
            case.description["model"].as_str().unwrap(),
        )
        .unwrap();
        let again = peft::load(dir.path(), &context(case.backbone.as_ref(), 0), false)
            .unwrap()
            .0;
        let bits = |e: &LoadedAdapter| -> Vec<(String, Vec<u32>)> {
            let all = e
                .adapter
                .parameters()
                .into_iter()
                .chain(e.head.iter().flat_map(|h| h.parameters()));
            all.map(|p| {
                (
                    p.name().to_owned(),
                    p.to_vec().iter().map(|v| v.to_bits()).collect(),
                )
            })
            .collect()
        };
        assert_eq!(bits(&entry), bits(&again), "{name}");
        let names = |folder: &std::path::Path| {
            let file = frugal::model::load::SafetensorsFile::open(&folder.join(peft::WEIGHTS_FILE))
                .unwrap();
            file.names()
                .into_iter()
                .filter(|n| !n.ends_with("base_layer.weight"))
                .map(|n| (file.shape(&n), n))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(dir.path()), names(&case.folder), "{name}");
        // Every field of peft's own file, in its order, with its value, except those that describe
        // where it came from.
        let fields = |folder: &std::path::Path| -> serde_json::Map<String, serde_json::Value> {
            serde_json::from_slice(&std::fs::read(folder.join(peft::CONFIG_FILE)).unwrap()).unwrap()
        };
        let (ours, theirs) = (fields(dir.path()), fields(&case.folder));
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (key, value) in &theirs {
            let same = match (&ours[key], value) {
                (serde_json::Value::Number(a), serde_json::Value::Number(b)) => {
                    a.as_f64() == b.as_f64()
                }
                // peft lists full paths in no order; ours are the shortest endings.
                _ if ["target_modules", "exclude_modules", "layers_to_transform"]
                    .contains(&key.as_str()) =>
                {
                    true
                }
                (a, b) => a == b,
            };
            assert!(
                same,
                "{name}: `{key}` is {} and should be {value}",
                ours[key]
            );
        }
    }
}

#[test]
fn adapters_are_switched_disabled_combined_and_chosen_per_sequence() {
    let case = case("llama-lora-qv");
    let mut set = AdapterSet::default();
    set.insert("qv", case.load());
    set.insert("regex", self::case("llama-lora-regex").load());
    let (a, b) = (
        case.golden.input_ids(0).to_vec(),
        case.golden.input_ids(1).to_vec(),
    );
    let ids = [a.clone(), b.clone()].concat();
    let run = |choice: &ActiveAdapters| {
        let layout = SequenceLayout::new(&[a.len(), b.len()]);
        let mut pass = set.pass(choice, &layout, Mode::Eval).unwrap();
        let hidden = case
            .backbone
            .forward(&Input::tokens(&ids, layout), pass.as_mut(), None)
            .unwrap();
        to_vec(
            case.backbone
                .logits(hidden, Rows::Tokens, pass.as_mut())
                .unwrap(),
        )
    };
    let one = |name: &str| ActiveAdapters::One(name.into());
    let (base, qv, regex) = (
        run(&ActiveAdapters::Base),
        run(&one("qv")),
        run(&one("regex")),
    );
    let split = a.len() * case.backbone.info().vocab_size;
    let mixed = run(&ActiveAdapters::PerSequence(vec![
        Some("qv".into()),
        Some("regex".into()),
    ]));
    assert!(max_difference(&mixed[..split], &qv[..split]) < TOLERANCE);
    assert!(max_difference(&mixed[split..], &regex[split..]) < TOLERANCE);
    let half_off = run(&ActiveAdapters::PerSequence(vec![None, Some("qv".into())]));
    assert!(max_difference(&half_off[..split], &base[..split]) < TOLERANCE);
    assert!(max_difference(&half_off[split..], &qv[split..]) < TOLERANCE);
    assert!(
        max_difference(
            &run(&ActiveAdapters::Combined(vec![("qv".into(), 1.0)])),
            &qv
        ) < TOLERANCE
    );
    assert!(
        max_difference(
            &run(&ActiveAdapters::Combined(vec![
                ("qv".into(), 0.0),
                ("regex".into(), 0.0)
            ])),
            &base
        ) < TOLERANCE
    );
    assert!(max_difference(&base, &qv) > 0.1);
    let wrong = set
        .pass(
            &ActiveAdapters::PerSequence(vec![None]),
            &SequenceLayout::new(&[1, 1]),
            Mode::Eval,
        )
        .err()
        .unwrap()
        .to_string();
    assert!(wrong.contains("one per sequence"), "{wrong}");
    let unknown = set
        .pass(&one("vq"), &SequenceLayout::new(&[1]), Mode::Eval)
        .err()
        .unwrap()
        .to_string();
    assert!(unknown.contains("qv, regex"), "{unknown}");
}

/// A file of AdaMSS with as many directions as a layer has outputs was refused by its shapes alone.
#[test]
fn groups_that_rounding_decided_are_named() {
    let backbone = model("llama", "config.json");
    let folder = fixture("methods/adamss-all-directions");
    let loaded = peft::load(&folder, &context(backbone.as_ref(), 0), false);
    let error = loaded.map(|_| ()).unwrap_err().to_string();
    for word in ["adamss_newB", "rounding", "smaller `r`"] {
        assert!(error.contains(word), "{error}");
    }
}

//! Two adapters of different families at once: together they give the sum of their changes, side by
//! side in a batch each gives what it gives alone, and those that cannot are refused by name.

use frugal::adapt::registry::find;
use frugal::adapt::{
    ActiveAdapters, AdaptError, Adapter, AdapterSet, LoadedAdapter, Mode, Parameter, named_rng,
    standard_normal, to_vec,
};
use frugal::model::{Backbone, Frozen, Input, SequenceLayout};

use crate::method_settings::settings;
use crate::support::{context, max_difference, model};

/// One of each family.
const METHODS: [&str; 13] = [
    "lora",
    "prefix-tuning",
    "prompt-tuning",
    "houlsby",
    "iaa",
    "pfeiffer",
    "ia3",
    "ssf",
    "oft",
    "fourierft",
    "shira",
    "vera",
    "unipelt",
];
const IDS: [u32; 9] = [3, 7, 1, 12, 30, 5, 9, 2, 60];
const LENGTHS: [usize; 2] = [4, 5];

/// An adapter whose parameters are away from their start.
pub fn moved(method: &str, backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let method = find(method).unwrap();
    let mut settings = settings(method);
    if method.name == "shira" {
        // So few that they fit the router of the smallest mixture.
        settings.insert("r".into(), 2.into());
    }
    let mut adapter = (method.build)(&settings, &context(backbone, 1)).unwrap();
    let mut rng = named_rng(7, method.name);
    for parameter in adapter
        .parameters_mut()
        .into_iter()
        .filter(|p| p.is_trainable())
    {
        let values = parameter
            .to_vec()
            .iter()
            .map(|v| v + 0.05 * standard_normal(&mut rng))
            .collect();
        Parameter::set(parameter, values);
    }
    adapter
}

fn set(backbone: &dyn Backbone, methods: [&str; 2]) -> AdapterSet {
    let mut set = AdapterSet::default();
    for (name, method) in ["a", "b"].into_iter().zip(methods) {
        let adapter = moved(method, backbone);
        set.insert(
            name,
            LoadedAdapter {
                adapter,
                head: None,
            },
        );
    }
    set
}

fn hidden(
    backbone: &dyn Backbone,
    set: &AdapterSet,
    choice: &ActiveAdapters,
) -> Result<Vec<f32>, AdaptError> {
    let mut pass = set.pass(choice, &SequenceLayout::new(&LENGTHS), Mode::Eval)?;
    let input = Input::new(&IDS, &LENGTHS);
    Ok(to_vec(
        backbone.forward(&input, pass.as_mut(), None).unwrap(),
    ))
}

fn both(first: f32, second: f32) -> ActiveAdapters {
    ActiveAdapters::Combined(vec![("a".into(), first), ("b".into(), second)])
}

fn pairs() -> impl Iterator<Item = [&'static str; 2]> {
    (0..METHODS.len()).flat_map(|i| (0..i).map(move |j| [METHODS[i], METHODS[j]]))
}

#[test]
fn a_pair_is_refused_by_the_name_of_the_one_that_cannot_share() {
    let backbone = model("llama", "config.json");
    for pair in pairs() {
        let cannot = pair
            .iter()
            .find(|name| !find(name).unwrap().capabilities.mixed_batch);
        let set = set(backbone.as_ref(), pair);
        for choice in [
            both(1.0, 1.0),
            ActiveAdapters::PerSequence(vec![Some("a".into()), Some("b".into())]),
        ] {
            match (hidden(backbone.as_ref(), &set, &choice), cannot) {
                (Ok(_), None) => {}
                (Err(AdaptError::Unsupported { method, .. }), Some(_)) => {
                    assert!(
                        pair.contains(&method) && !find(method).unwrap().capabilities.mixed_batch,
                        "{pair:?}: {method}"
                    );
                }
                (found, _) => panic!("{pair:?} with {choice:?}: {:?}", found.map(|_| ())),
            }
        }
    }
}

#[test]
fn a_partner_of_weight_zero_changes_nothing() {
    for name in ["llama", "bert"] {
        let backbone = model(name, "config.json");
        for pair in pairs() {
            let set = set(backbone.as_ref(), pair);
            let Ok(together) = hidden(backbone.as_ref(), &set, &both(1.0, 0.0)) else {
                continue;
            };
            let alone = hidden(backbone.as_ref(), &set, &ActiveAdapters::One("a".into())).unwrap();
            let base = hidden(backbone.as_ref(), &set, &ActiveAdapters::Base).unwrap();
            assert!(
                max_difference(&alone, &base) > 1e-3,
                "{pair:?} on {name}: the first does nothing"
            );
            assert!(
                max_difference(&together, &alone) < 1e-4,
                "{pair:?} on {name}: {}",
                max_difference(&together, &alone)
            );
        }
    }
}

#[test]
fn sequences_of_a_batch_with_two_adapters_give_what_each_gives_alone() {
    for name in ["llama", "bert", "mixtral"] {
        let backbone = model(name, "config.json");
        for pair in pairs() {
            let set = set(backbone.as_ref(), pair);
            let choice = ActiveAdapters::PerSequence(vec![Some("a".into()), Some("b".into())]);
            let Ok(mixed) = hidden(backbone.as_ref(), &set, &choice) else {
                continue;
            };
            let [a, b] = ["a", "b"]
                .map(|n| hidden(backbone.as_ref(), &set, &ActiveAdapters::One(n.into())).unwrap());
            let split = LENGTHS[0] * backbone.info().hidden_size;
            let worst = max_difference(&mixed[..split], &a[..split])
                .max(max_difference(&mixed[split..], &b[split..]));
            assert!(worst < 1e-4, "{pair:?} on {name}: {worst}");
        }
    }
}

#[test]
fn linear_layers_of_a_pair_have_the_sum_of_the_weights_changes() {
    let backbone = model("llama", "config.json");
    for pair in pairs() {
        let set = set(backbone.as_ref(), pair);
        let Ok(mut pass) = set.pass(&both(0.5, 2.0), &SequenceLayout::new(&[3]), Mode::Eval) else {
            continue;
        };
        let mut seen = 0;
        backbone.visit_weights(&mut |part| {
            let Frozen::Linear(base) = part else { return };
            // Without a bias of its own: methods that change biases say so in no weight.
            let change = ["a", "b"].map(|name| {
                set.get(name)
                    .unwrap()
                    .adapter
                    .weight_delta(base)
                    .ok()
                    .flatten()
            });
            let [Some(first), Some(second)] = change else {
                return;
            };
            let [_, d_in] = base.weight.dims();
            let x = burn::prelude::Tensor::<2>::random(
                [3, d_in],
                burn::tensor::Distribution::Default,
                backbone.device(),
            );
            let zero = pass.linear(base, x.zeros_like());
            let expected = x
                .clone()
                .matmul((base.weight.dense() + first * 0.5 + second * 2.0).transpose())
                + zero;
            let found = pass.linear(base, x);
            let worst = max_difference(&to_vec(found), &to_vec(expected));
            assert!(worst < 1e-4, "{pair:?}: {worst}");
            seen += 1;
        });
        if pair
            .iter()
            .all(|m| ["lora", "oft", "fourierft", "shira", "vera"].contains(m))
        {
            assert!(seen > 0, "{pair:?}");
        }
    }
}

//! Sessions that sequences join and leave: what comes out of each is what would come out of it
//! alone, and going back is as never having gone on.

mod invocation;
mod prompts;
mod refusals;

use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet, LoadedAdapter, Mode, to_vec};
use frugal::decode::{
    Generator, GeneratorOptions, SequenceId, SequenceOptions, Session, StateOptions,
};
use frugal::model::{Backbone, Input, LayerState, ModelError, SequenceLayout};

use crate::pairs::moved;
use crate::support::{max_difference, model};

const MODELS: [&str; 7] = [
    "llama",
    "gemma3_text",
    "deepseek_v3",
    "phi3",
    "gpt2",
    "mamba",
    "mor",
];
const METHODS: [&str; 4] = ["lora", "ia3", "prefix-tuning", "prompt-tuning"];
const PROMPT: [u32; 6] = [3, 7, 1, 12, 30, 5];

fn backbone(name: &str) -> Arc<dyn Backbone> {
    model(name, "config.json")
}

/// Latent attention has no place for keys and values in front, and neither has a recurrence.
fn methods(name: &str) -> impl Iterator<Item = &'static str> {
    let without = ["deepseek_v3", "mamba"].contains(&name);
    METHODS
        .into_iter()
        .filter(move |method| !(without && *method == "prefix-tuning"))
}

/// Adapters that change something, by the name of their method.
fn adapters(name: &str, backbone: &dyn Backbone) -> Arc<AdapterSet> {
    let mut set = AdapterSet::default();
    for method in methods(name) {
        let adapter = moved(method, backbone);
        set.insert(
            method,
            LoadedAdapter {
                adapter,
                head: None,
            },
        );
    }
    Arc::new(set)
}

fn one(name: &str) -> ActiveAdapters {
    ActiveAdapters::One(name.into())
}

/// None, and each adapter of the set.
fn choices(adapters: &AdapterSet) -> Vec<ActiveAdapters> {
    let names = adapters.names();
    let adapted = names.iter().map(|name| one(name));
    std::iter::once(ActiveAdapters::Base)
        .chain(adapted)
        .collect()
}

struct Setup {
    backbone: Arc<dyn Backbone>,
    adapters: Arc<AdapterSet>,
}

impl Setup {
    fn new(name: &str) -> Self {
        let backbone = backbone(name);
        let adapters = adapters(name, backbone.as_ref());
        Self { backbone, adapters }
    }

    fn session(&self, rewindable: usize) -> Session {
        let options = StateOptions {
            rewindable,
            ..StateOptions::default()
        };
        Session::new(self.backbone.clone(), self.adapters.clone(), options).unwrap()
    }

    /// The logits after each of these pieces, of a sequence that got nothing else.
    fn fresh(
        &self,
        adapters: &ActiveAdapters,
        rewindable: usize,
        pieces: &[&[u32]],
    ) -> Vec<Vec<f32>> {
        let mut session = self.session(rewindable);
        let id = session.add(adapters.clone()).unwrap();
        append(&mut session, id, pieces)
    }
}

fn generator(setup: &Setup, options: GeneratorOptions) -> Generator {
    Generator::new(setup.backbone.clone(), setup.adapters.clone(), options).unwrap()
}

fn append(session: &mut Session, id: SequenceId, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let logits = pieces
        .iter()
        .map(|piece| session.append_to(id, piece).unwrap());
    logits.collect()
}

/// What follows the prompt one way, and another.
const ONE_WAY: [&[u32]; 4] = [&[9], &[2], &[60, 11, 4], &[8]];
const ANOTHER: [&[u32]; 5] = [&[33], &[21, 6], &[50], &[17], &[2, 9, 40, 13]];

#[test]
fn a_fork_and_a_rollback_go_on_as_a_fresh_sequence_does_bit_by_bit() {
    for name in MODELS {
        let setup = Setup::new(name);
        for choice in choices(&setup.adapters) {
            let expected = setup.fresh(&choice, 0, &[&[PROMPT.as_slice()], &ONE_WAY[..]].concat());
            let other = setup.fresh(&choice, 0, &[&[PROMPT.as_slice()], &ANOTHER[..]].concat());
            let mut session = setup.session(0);
            let id = session.add(choice.clone()).unwrap();
            append(&mut session, id, &[&PROMPT]);
            let (fork, before) = (session.fork(id).unwrap(), session.snapshot(id).unwrap());
            assert!(
                append(&mut session, id, &ANOTHER) == other[1..],
                "{name}, {choice:?}: the original is not what it is without a fork"
            );
            assert!(
                append(&mut session, fork, &ONE_WAY) == expected[1..],
                "{name}, {choice:?}: the fork saw what its original got"
            );
            session.rollback(id, &before).unwrap();
            assert_eq!(session.tokens(id).unwrap(), PROMPT);
            assert!(
                append(&mut session, id, &ONE_WAY) == expected[1..],
                "{name}, {choice:?}: the rollback left something behind"
            );
            // Once more, after the state has been written over.
            session.rollback(fork, &before).unwrap();
            assert!(append(&mut session, fork, &ANOTHER) == other[1..]);
        }
    }
}

#[test]
fn a_cropped_sequence_goes_on_as_a_fresh_one_or_says_that_it_cannot() {
    for name in MODELS {
        let setup = Setup::new(name);
        let recurrent = name == "mamba";
        let anew = recurrent || ["gemma3_text", "phi3"].contains(&name);
        let reason = if recurrent {
            "recurrent layers"
        } else {
            "sliding window"
        };
        for choice in choices(&setup.adapters) {
            let pieces = [&[PROMPT.as_slice()], &ONE_WAY[..]].concat();
            let expected = setup.fresh(&choice, 64, &pieces);
            let mut session = setup.session(64);
            let id = session.add(choice.clone()).unwrap();
            append(&mut session, id, &[&PROMPT]);
            append(&mut session, id, &ANOTHER);
            let cropped = session.crop(id, PROMPT.len());
            assert_eq!(cropped.is_err(), recurrent, "{name}, {choice:?}");
            if cropped.is_ok() {
                let found = append(&mut session, id, &ONE_WAY);
                // What is computed anew at once is summed in another order than token by token.
                let allowed = if name == "phi3" { 1e-4 } else { 0.0 };
                for (found, expected) in found.iter().zip(&expected[1..]) {
                    let worst = max_difference(found, expected);
                    assert!(worst <= allowed, "{name}, {choice:?}: {worst:e}");
                }
            }
            let mut session = setup.session(0);
            let id = session.add(choice.clone()).unwrap();
            append(&mut session, id, &[&PROMPT]);
            append(&mut session, id, &ANOTHER);
            let cropped = session.crop(id, PROMPT.len());
            assert_eq!(cropped.is_err(), anew, "{name}, {choice:?}");
            if let Err(error) = cropped {
                assert!(error.to_string().contains(reason), "{error}");
                assert_eq!(session.tokens(id).unwrap().len(), 15, "nothing is changed");
            }
            // Rewinding computes anew what is not kept.
            let whole = [PROMPT.as_slice(), &[9, 2]].concat();
            let found = session.rewind_to(id, &whole).unwrap();
            let parts = [PROMPT.as_slice(), &whole[PROMPT.len()..]];
            let expected = if anew {
                setup.fresh(&choice, 0, &[&whole])
            } else {
                setup.fresh(&choice, 0, &parts)
            };
            assert!(found == expected[expected.len() - 1], "{name}, {choice:?}");
            assert_eq!(session.tokens(id).unwrap(), whole);
        }
    }
}

/// Prompts that are read while others are written, one pass for all of them.
#[test]
fn logits_do_not_depend_on_who_shares_a_pass() {
    for name in MODELS {
        let setup = Setup::new(name);
        let mut all = choices(&setup.adapters);
        all.push(ActiveAdapters::Combined(vec![
            ("lora".into(), 0.5),
            ("ia3".into(), 2.0),
        ]));
        let mut session = setup.session(0);
        let ids: Vec<_> = all
            .iter()
            .map(|choice| session.add(choice.clone()).unwrap())
            .collect();
        // The first half is at its second token when the second half begins.
        let (early, late) = ids.split_at(ids.len() / 2);
        let first: Vec<_> = early.iter().map(|id| (*id, PROMPT.as_slice())).collect();
        session.append(&first).unwrap();
        let mut mixed: Vec<(_, &[u32])> = early.iter().map(|id| (*id, [9].as_slice())).collect();
        mixed.extend(late.iter().map(|id| (*id, PROMPT.as_slice())));
        let found = session.append(&mixed).unwrap();
        for (i, (choice, found)) in all.iter().zip(&found).enumerate() {
            let pieces: &[&[u32]] = if i < early.len() {
                &[&PROMPT, &[9]]
            } else {
                &[&PROMPT]
            };
            let expected = setup.fresh(choice, 0, pieces);
            let difference = max_difference(found, &expected[expected.len() - 1]);
            assert!(difference < 1e-4, "{name}, {choice:?}: {difference:e}");
        }
    }
}

#[test]
fn a_recurrence_holds_as_much_of_a_long_text_as_of_a_short_one() {
    let setup = Setup::new("mamba");
    let mut session = setup.session(0);
    let id = session.add(ActiveAdapters::Base).unwrap();
    assert_eq!(session.bytes(), 0);
    append(&mut session, id, &[&PROMPT]);
    // In each of 2 blocks 6 numbers and 2 earlier inputs of each of 64 channels.
    let sequence = 2 * (6 + 2) * 64 * 4;
    assert_eq!(session.bytes(), sequence);
    append(&mut session, id, &ANOTHER);
    assert_eq!(session.bytes(), sequence);
    let fork = session.fork(id).unwrap();
    assert_eq!(session.bytes(), sequence, "nothing is copied");
    append(&mut session, fork, &[&[1]]);
    assert_eq!(session.bytes(), 2 * sequence);
    session.crop(id, 0).unwrap();
    assert_eq!(session.bytes(), sequence);
}

#[test]
fn a_cancelled_sequence_frees_its_memory_and_a_fork_takes_none() {
    let setup = Setup::new("llama");
    let mut session = setup.session(0);
    let id = session.add(one("prefix-tuning")).unwrap();
    assert_eq!(session.bytes(), 0);
    append(&mut session, id, &[&PROMPT]);
    // Blocks of 256 positions of 2 heads of 8, as keys and as values, in each of 2 layers.
    let block = 256 * 2 * 8 * 2 * 4 * 2;
    assert_eq!(session.bytes(), block);
    let fork = session.fork(id).unwrap();
    assert_eq!(
        session.bytes(),
        block,
        "nothing is copied before it differs"
    );
    append(&mut session, fork, &[&[1]]);
    assert_eq!(session.bytes(), 2 * block);
    session.remove(id).unwrap();
    assert_eq!(session.bytes(), block);
    session.crop(fork, 0).unwrap();
    assert_eq!(session.bytes(), 0);

    let mut generator = generator(&setup, GeneratorOptions::default());
    let options = SequenceOptions {
        max_tokens: 9,
        ..SequenceOptions::default()
    };
    let [kept, gone] = [3, 4].map(|token| {
        let added = generator.add(vec![token; 5], one("lora"), options.clone());
        added.unwrap()
    });
    generator.step().unwrap();
    assert_eq!(generator.bytes(), 2 * block);
    assert_eq!(generator.cancel(gone).unwrap().len(), 1);
    assert_eq!(generator.bytes(), block);
    let next = generator.step().unwrap();
    assert_eq!(next.iter().map(|p| p.sequence).collect::<Vec<_>>(), [kept]);
}

/// Hidden states token by token behind a first piece, and the rows that each layer held at most
/// after a step.
fn token_by_token(
    setup: &Setup,
    method: Option<&str>,
    rewindable: usize,
) -> (Vec<f32>, Vec<usize>) {
    let options = StateOptions {
        rewindable,
        ..StateOptions::default()
    };
    let mut state = setup.backbone.new_state(1, options).unwrap();
    let choice = method.map_or(ActiveAdapters::Base, one);
    let (mut hidden, mut held) = (Vec::new(), vec![0; state.sequences()[0].layers().len()]);
    let pieces = std::iter::once(11).chain([1; 20]).chain([5]).chain([1; 9]);
    for (n, length) in pieces.enumerate() {
        let ids: Vec<u32> = (0..length).map(|i| ((n * 7 + i * 5) % 61) as u32).collect();
        let layout = SequenceLayout::with_past(&[length], &state.past());
        let mut pass = setup.adapters.pass(&choice, &layout, Mode::Eval).unwrap();
        let input = Input::tokens(&ids, layout);
        let found = setup
            .backbone
            .forward(&input, pass.as_mut(), Some(&mut state))
            .unwrap();
        hidden.extend(to_vec(found));
        state.trim();
        for (held, layer) in held.iter_mut().zip(state.sequences()[0].layers()) {
            *held = (*held).max(layer.rows().len());
        }
    }
    (hidden, held)
}

#[test]
fn a_sliding_window_keeps_its_window_only_and_gives_the_same_hidden_states() {
    // Windows of the blocks, as the configurations say; none is full attention.
    for (name, windows) in [
        ("gemma3_text", vec![Some(4), None, Some(4)]),
        ("phi3", vec![Some(6), Some(6)]),
        ("mistral", vec![Some(4); 2]),
    ] {
        let setup = Setup::new(name);
        for method in [
            None,
            Some("lora"),
            Some("prefix-tuning"),
            Some("prompt-tuning"),
        ] {
            let (found, held) = token_by_token(&setup, method, 0);
            let (expected, all) = token_by_token(&setup, method, 1000);
            let difference = max_difference(&found, &expected);
            assert!(difference < 1e-5, "{name}, {method:?}: {difference:e}");
            for ((held, all), window) in held.iter().zip(&all).zip(&windows) {
                assert!(*all >= 45, "{name}, {method:?}: {all}");
                match window {
                    Some(window) => assert_eq!(held, window, "{name}, {method:?}"),
                    None => assert_eq!(held, all, "{name}, {method:?}"),
                }
            }
        }
    }
}

#[test]
fn each_architecture_says_what_its_layers_remember() {
    let kinds = |name: &str| -> String {
        let state = backbone(name)
            .new_state(1, StateOptions::default())
            .unwrap();
        let kind = |layer: &LayerState| match layer {
            LayerState::KeyValue(_) => 'k',
            LayerState::Latent(_) => 'l',
            LayerState::Ring(_) => 'r',
            LayerState::Recurrent(_) => 's',
            LayerState::Routed(_) => 't',
            _ => '?',
        };
        state.sequences()[0].layers().iter().map(kind).collect()
    };
    assert_eq!(kinds("llama"), "kk");
    assert_eq!(kinds("gpt2"), "kk");
    assert_eq!(kinds("gemma3_text"), "rkr");
    assert_eq!(kinds("phi3"), "rr");
    assert_eq!(kinds("mamba"), "ss");
    assert_eq!(kinds("mor"), "kkkttk");
    assert!(kinds("deepseek_v3").chars().all(|kind| kind == 'l'));
    let encoder = backbone("bert");
    let refused = encoder.new_state(1, StateOptions::default());
    assert!(matches!(refused, Err(ModelError::NotCausal { .. })));
}

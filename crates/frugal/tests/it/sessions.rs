//! Sessions that sequences join and leave: what comes out of each is what would come out of it
//! alone, and going back is as never having gone on.

use std::collections::BTreeMap;
use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdaptError, AdapterSet, LoadedAdapter, Mode, NoAdapter};
use frugal::adapt::{named_rng, to_vec};
use frugal::decode::{
    DecodeError, FinishReason, GenerateConfig, Generator, GeneratorOptions, SamplerConfig,
    SequenceId, SequenceOptions, Session, StateOptions, generate,
};
use frugal::model::{
    Backbone, DecodeState, Input, LayerState, ModelError, SequenceLayout, StateError,
};
use rand::Rng;

use crate::pairs::moved;
use crate::support::{max_difference, model};

const MODELS: [&str; 5] = ["llama", "gemma3_text", "deepseek_v3", "phi3", "gpt2"];
const METHODS: [&str; 4] = ["lora", "ia3", "prefix-tuning", "prompt-tuning"];
const PROMPT: [u32; 6] = [3, 7, 1, 12, 30, 5];

fn backbone(name: &str) -> Arc<dyn Backbone> {
    model(name, "config.json")
}

/// Latent attention has no place for keys and values in front.
fn methods(name: &str) -> impl Iterator<Item = &'static str> {
    let latent = name == "deepseek_v3";
    METHODS
        .into_iter()
        .filter(move |method| !(latent && *method == "prefix-tuning"))
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
        let windowed = ["gemma3_text", "phi3"].contains(&name);
        for choice in choices(&setup.adapters) {
            let pieces = [&[PROMPT.as_slice()], &ONE_WAY[..]].concat();
            let expected = setup.fresh(&choice, 64, &pieces);
            let mut session = setup.session(64);
            let id = session.add(choice.clone()).unwrap();
            append(&mut session, id, &[&PROMPT]);
            append(&mut session, id, &ANOTHER);
            session.crop(id, PROMPT.len()).unwrap();
            assert!(
                append(&mut session, id, &ONE_WAY) == expected[1..],
                "{name}, {choice:?}"
            );
            let mut session = setup.session(0);
            let id = session.add(choice.clone()).unwrap();
            append(&mut session, id, &[&PROMPT]);
            append(&mut session, id, &ANOTHER);
            let cropped = session.crop(id, PROMPT.len());
            assert_eq!(cropped.is_err(), windowed, "{name}, {choice:?}");
            if let Err(error) = cropped {
                assert!(error.to_string().contains("sliding window"), "{error}");
                assert_eq!(session.tokens(id).unwrap().len(), 15, "nothing is changed");
            }
            // Rewinding computes anew what is not kept.
            let whole = [PROMPT.as_slice(), &[9, 2]].concat();
            let found = session.rewind_to(id, &whole).unwrap();
            let parts = [PROMPT.as_slice(), &whole[PROMPT.len()..]];
            let expected = if windowed {
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

struct Asked {
    prompt: Vec<u32>,
    choice: ActiveAdapters,
    options: SequenceOptions,
    found: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Asked {
    fn random(rng: &mut impl Rng, choices: &[ActiveAdapters]) -> Self {
        let length = rng.random_range(1..12);
        Self {
            prompt: (0..length).map(|_| rng.random_range(3..60)).collect(),
            choice: choices[rng.random_range(0..choices.len())].clone(),
            options: SequenceOptions {
                max_tokens: rng.random_range(1..14),
                sampler: SamplerConfig {
                    temperature: [0.0, 0.8][rng.random_range(0..2)],
                    repetition_penalty: [1.0, 1.2][rng.random_range(0..2)],
                    ..SamplerConfig::default()
                },
                eos_token_ids: vec![2, 17],
                seed: rng.random(),
            },
            found: Vec::new(),
            finish: None,
        }
    }

    /// The same without anyone else.
    fn alone(&self, setup: &Setup) -> (Vec<u32>, Option<FinishReason>) {
        let mut generator = generator(setup, GeneratorOptions::default());
        generator
            .add(
                self.prompt.clone(),
                self.choice.clone(),
                self.options.clone(),
            )
            .unwrap();
        let (mut tokens, mut finish) = (Vec::new(), None);
        while !generator.is_idle() {
            for produced in generator.step().unwrap() {
                tokens.extend(produced.token);
                finish = produced.finish;
            }
        }
        (tokens, finish)
    }
}

fn generator(setup: &Setup, options: GeneratorOptions) -> Generator {
    Generator::new(setup.backbone.clone(), setup.adapters.clone(), options).unwrap()
}

fn step(generator: &mut Generator, asked: &mut BTreeMap<SequenceId, Asked>) {
    for produced in generator.step().unwrap() {
        let asked = asked.get_mut(&produced.sequence).unwrap();
        assert_eq!(asked.finish, None, "it had ended");
        asked.found.extend(produced.token);
        asked.finish = produced.finish;
    }
}

#[test]
fn sequences_that_join_and_leave_in_any_order_write_what_they_write_alone() {
    for name in ["llama", "gemma3_text", "deepseek_v3"] {
        let setup = Setup::new(name);
        let choices = choices(&setup.adapters);
        let mut rng = named_rng(11, name);
        let mut generator = generator(
            &setup,
            GeneratorOptions {
                batch_tokens: 14,
                max_sequences: 5,
                ..GeneratorOptions::default()
            },
        );
        let mut asked: BTreeMap<SequenceId, Asked> = BTreeMap::new();
        let mut cancelled = 0;
        for _ in 0..200 {
            match rng.random_range(0..10) {
                0..4 => {
                    let new = Asked::random(&mut rng, &choices);
                    let (prompt, choice) = (new.prompt.clone(), new.choice.clone());
                    let id = generator.add(prompt, choice, new.options.clone()).unwrap();
                    asked.insert(id, new);
                }
                4 => {
                    let open = asked.iter().filter(|(_, asked)| asked.finish.is_none());
                    let open: Vec<SequenceId> = open.map(|(id, _)| *id).collect();
                    if !open.is_empty() {
                        let id = open[rng.random_range(0..open.len())];
                        assert_eq!(generator.cancel(id).unwrap(), asked[&id].found);
                        assert!(generator.cancel(id).is_err());
                        let (tokens, _) = asked[&id].alone(&setup);
                        assert!(tokens.starts_with(&asked[&id].found), "{name}: {id}");
                        asked.remove(&id);
                        cancelled += 1;
                    }
                }
                _ => step(&mut generator, &mut asked),
            }
            assert!(generator.load().1 <= 5);
        }
        while !generator.is_idle() {
            step(&mut generator, &mut asked);
        }
        assert!(asked.len() > 50 && cancelled > 5, "{name}: {}", asked.len());
        for (id, asked) in &asked {
            let alone = asked.alone(&setup);
            let found = (asked.found.clone(), asked.finish);
            assert_eq!(found, alone, "{name}: {id} with {:?}", asked.choice);
        }
        assert_eq!(generator.bytes(), 0);
    }
}

#[test]
fn a_prompt_that_is_longer_than_the_budget_is_not_kept_waiting() {
    let setup = Setup::new("llama");
    let options = GeneratorOptions {
        batch_tokens: 4,
        max_sequences: 3,
        ..GeneratorOptions::default()
    };
    let mut generator = generator(&setup, options);
    let sequence = |max_tokens| SequenceOptions {
        max_tokens,
        ..SequenceOptions::default()
    };
    let short = |generator: &mut Generator| {
        let added = generator.add(vec![5], ActiveAdapters::Base, sequence(20));
        added.unwrap()
    };
    short(&mut generator);
    short(&mut generator);
    assert_eq!(generator.step().unwrap().len(), 2);
    let long = generator
        .add(vec![7; 30], ActiveAdapters::Base, sequence(2))
        .unwrap();
    let late = short(&mut generator);
    let produced = generator.step().unwrap();
    assert_eq!(
        produced.iter().map(|p| p.sequence).collect::<Vec<_>>(),
        [long]
    );
    // Three are being written, so the fourth waits for the long one to end.
    assert_eq!(generator.load(), (1, 3));
    assert_eq!(generator.step().unwrap().len(), 3);
    let joined = generator.step().unwrap();
    assert!(joined.iter().any(|p| p.sequence == late) && joined.len() == 3);
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
            _ => '?',
        };
        state.sequences()[0].layers().iter().map(kind).collect()
    };
    assert_eq!(kinds("llama"), "kk");
    assert_eq!(kinds("gpt2"), "kk");
    assert_eq!(kinds("gemma3_text"), "rkr");
    assert_eq!(kinds("phi3"), "rr");
    assert!(kinds("deepseek_v3").chars().all(|kind| kind == 'l'));
    let encoder = backbone("bert");
    let refused = encoder.new_state(1, StateOptions::default());
    assert!(matches!(refused, Err(ModelError::NotCausal { .. })));
}

/// An error, after which everything is as it was.
fn refused(session: &mut Session, new: &[(SequenceId, &[u32])]) -> DecodeError {
    let all: Vec<SequenceId> = session.sequences().collect();
    let before: Vec<Vec<u32>> = all
        .iter()
        .map(|id| session.tokens(*id).unwrap().to_vec())
        .collect();
    let (bytes, error) = (session.bytes(), session.append(new).unwrap_err());
    for (id, before) in all.iter().zip(before) {
        assert_eq!(session.tokens(*id).unwrap(), before);
    }
    assert_eq!(session.bytes(), bytes);
    error
}

#[test]
fn what_a_session_cannot_do_is_a_typed_error_that_changes_nothing() {
    for name in MODELS {
        let setup = Setup::new(name);
        let limit = setup.backbone.info().max_sequence;
        let mut session = setup.session(0);
        let id = session.add(one("lora")).unwrap();
        let other = session.add(ActiveAdapters::Base).unwrap();
        append(&mut session, id, &[&PROMPT]);
        let gone = session.add(ActiveAdapters::Base).unwrap();
        session.remove(gone).unwrap();
        let error = refused(&mut session, &[(id, &[1]), (gone, &[1])]);
        assert!(matches!(error, DecodeError::UnknownSequence { id } if id == gone));
        let error = refused(&mut session, &[(id, &[])]);
        assert!(matches!(error, DecodeError::NothingToAppend { .. }));
        let error = refused(&mut session, &[(id, &[1]), (other, &[2]), (id, &[3])]);
        assert!(matches!(error, DecodeError::NamedTwice { .. }));
        let long = vec![1; limit - PROMPT.len() + 1];
        let error = refused(&mut session, &[(other, &[1]), (id, &long)]);
        let too_long = |error: &DecodeError| matches!(error, DecodeError::Model(ModelError::TooLong { length, .. }) if *length == limit + 1);
        assert!(too_long(&error), "{error}");
        // In the second of two passes, or the second sequence of one.
        let error = refused(&mut session, &[(id, &[1]), (other, &[2, 9999])]);
        assert!(matches!(
            error,
            DecodeError::Model(ModelError::TokenId { id: 9999, .. })
        ));
        assert_eq!(session.append(&[]).unwrap().len(), 0);
        assert!(matches!(
            session.rewind_to(id, &[]),
            Err(DecodeError::NothingToAppend { .. })
        ));
        assert!(session.rewind_to(id, &vec![1; limit + 1]).is_err());
        assert!(session.rewind_to(gone, &[1]).is_err());
        assert_eq!(session.tokens(id).unwrap(), PROMPT);
        let error = session.crop(id, 7).unwrap_err().to_string();
        assert!(
            error.contains("6 positions") && error.contains('7'),
            "{error}"
        );
        assert_eq!(session.remaining(id).unwrap(), limit - PROMPT.len());

        // After all that, what follows is what follows.
        let expected = setup.fresh(&one("lora"), 0, &[&PROMPT, &[9]]);
        assert!(
            append(&mut session, id, &[&[9]])[0] == expected[1],
            "{name}"
        );
        let rest = vec![1; limit - PROMPT.len() - 1];
        append(&mut session, id, &[&rest]);
        assert_eq!(session.remaining(id).unwrap(), 0);
        assert!(too_long(&refused(&mut session, &[(id, &[1])])));

        let snapshot = session.snapshot(id).unwrap();
        let mut elsewhere = setup.session(0);
        let there = elsewhere.add(one("lora")).unwrap();
        let error = elsewhere.rollback(there, &snapshot);
        assert!(matches!(error, Err(DecodeError::OtherSession)));
        let error = session.rollback(other, &snapshot);
        assert!(matches!(error, Err(DecodeError::OtherAdapters { .. })));
        let unknown = session.add(one("lore")).unwrap_err().to_string();
        assert!(
            unknown.contains("lore") && unknown.contains("lora"),
            "{unknown}"
        );
        let several = ActiveAdapters::PerSequence(vec![None, None]);
        assert!(matches!(
            session.add(several),
            Err(DecodeError::Adapt(AdaptError::Choices { given: 2, .. }))
        ));
    }
}

#[test]
fn what_a_generator_cannot_do_is_refused_before_anything_is_computed() {
    let setup = Setup::new("llama");
    for (batch_tokens, max_sequences) in [(0, 1), (1, 0)] {
        let options = GeneratorOptions {
            batch_tokens,
            max_sequences,
            ..GeneratorOptions::default()
        };
        let refused = Generator::new(setup.backbone.clone(), setup.adapters.clone(), options).err();
        assert!(matches!(refused, Some(DecodeError::Config { .. })));
    }
    let mut generator = generator(&setup, GeneratorOptions::default());
    let options = |max_tokens| SequenceOptions {
        max_tokens,
        ..SequenceOptions::default()
    };
    let mut refused = |prompt: Vec<u32>, max_tokens| {
        let refused = generator.add(prompt, ActiveAdapters::Base, options(max_tokens));
        refused.unwrap_err().to_string()
    };
    assert!(refused(vec![], 1).contains("no tokens"));
    assert!(refused(vec![1; 65], 1).contains("65"));
    assert!(refused(vec![1, 64], 1).contains("position 1"));
    assert!(refused(vec![1], 0).contains("max_tokens"));
    assert!(generator.is_idle() && generator.step().unwrap().is_empty());
}

/// GPT-2's table of positions ends, and a prefix takes some of them.
#[test]
fn a_prefix_leaves_that_much_less_room_among_learned_positions() {
    for (name, taken) in [("gpt2", true), ("llama", false)] {
        let setup = Setup::new(name);
        let limit = setup.backbone.info().max_sequence;
        let choice = one("prefix-tuning");
        let layout = SequenceLayout::new(&[1]);
        let pass = setup.adapters.pass(&choice, &layout, Mode::Eval).unwrap();
        let prefix = if taken { pass.prefix_length() } else { 0 };
        assert!(pass.prefix_length() > 1);
        let mut generator = generator(&setup, GeneratorOptions::default());
        let options = SequenceOptions {
            max_tokens: 50,
            ..SequenceOptions::default()
        };
        let mut add = |length: usize| {
            let prompt = vec![5; length];
            generator.add(prompt, choice.clone(), options.clone())
        };
        let error = add(limit - prefix + 1).unwrap_err().to_string();
        assert!(error.contains(&(limit + 1).to_string()), "{error}");
        add(limit - prefix - 3).unwrap();
        let mut tokens = 0;
        while !generator.is_idle() {
            tokens += generator.step().unwrap().len();
        }
        assert_eq!(
            tokens, 4,
            "{name}: as many as there is room for, and the last"
        );
    }
}

/// In one batch `generate` needs adapters that can be mixed; a generator gives each its own pass.
#[test]
fn prompts_of_their_own_positions_are_written_beside_others() {
    let setup = Setup::new("llama");
    let config = GenerateConfig {
        max_tokens: 6,
        sampler: SamplerConfig::default(),
        eos_token_ids: vec![],
        seed: 0,
        cache_type: frugal::decode::CacheType::F32,
    };
    let run = |choice: &ActiveAdapters, prompts: &[Vec<u32>]| {
        let (backbone, adapters) = (&setup.backbone, &setup.adapters);
        generate(backbone, adapters, choice, prompts, &config, &mut |_, _| {
            true
        })
    };
    let prompts = [PROMPT.to_vec(), PROMPT.to_vec()];
    let mixed = ActiveAdapters::PerSequence(vec![Some("prompt-tuning".into()), None]);
    let error = run(&mixed, &prompts).unwrap_err().to_string();
    assert!(error.contains("batch of their own"), "{error}");
    let mut generator = generator(&setup, GeneratorOptions::default());
    let mut expected = BTreeMap::new();
    for choice in [one("prompt-tuning"), ActiveAdapters::Base] {
        let options = SequenceOptions {
            max_tokens: 6,
            ..SequenceOptions::default()
        };
        let alone = run(&choice, &prompts[..1]).unwrap().remove(0).tokens;
        let id = generator.add(PROMPT.to_vec(), choice, options).unwrap();
        expected.insert(id, alone);
        generator.step().unwrap();
    }
    let mut found: BTreeMap<SequenceId, usize> = BTreeMap::new();
    while !generator.is_idle() {
        for produced in generator.step().unwrap() {
            let tokens = &expected[&produced.sequence];
            let count = found.entry(produced.sequence).or_insert(0);
            *count += 1;
            assert!(tokens.contains(&produced.token.unwrap()));
        }
    }
    assert_eq!(found.len(), 2);
}

/// A state that does not belong to a pass, a model or an adapter.
#[test]
fn a_state_of_something_else_is_refused_by_name() {
    let (llama, gemma) = (backbone("llama"), backbone("gemma3_text"));
    let state = |of: &Arc<dyn Backbone>| of.new_state(2, StateOptions::default()).unwrap();
    let refused = |of: &Arc<dyn Backbone>, layout: SequenceLayout, state: &mut DecodeState| {
        let ids = vec![3; layout.tokens()];
        let input = Input::tokens(&ids, layout);
        let found = of.forward(&input, &mut NoAdapter, Some(state));
        match found.unwrap_err() {
            ModelError::State(error) => error,
            other => panic!("{other}"),
        }
    };
    let one_sequence = SequenceLayout::new(&[4]);
    let error = refused(&llama, one_sequence, &mut state(&llama));
    assert!(
        matches!(error, StateError::OtherSequences { .. }),
        "{error}"
    );
    let later = SequenceLayout::with_past(&[1, 1], &[3, 0]);
    let error = refused(&llama, later, &mut state(&llama));
    assert!(
        matches!(error, StateError::OtherSequences { .. }),
        "{error}"
    );
    let both = SequenceLayout::new(&[2, 2]);
    let error = refused(&llama, both, &mut state(&gemma));
    assert_eq!(error, StateError::OtherModel);
    let foreign = state(&gemma).snapshot(0).unwrap();
    assert_eq!(
        state(&llama).join(foreign.clone()),
        Err(StateError::OtherModel)
    );
    assert_eq!(
        state(&llama).rollback(0, &foreign),
        Err(StateError::OtherModel)
    );
    assert!(state(&llama).snapshot(2).is_none() && state(&llama).fork(2).is_none());
}

#[test]
fn narrow_vectors_are_not_read_under_an_adapter_that_they_were_not_begun_with() {
    let setup = Setup::new("deepseek_v3");
    let mut set = AdapterSet::default();
    let mut settings = crate::conformance::settings(frugal::adapt::registry::find("lora").unwrap());
    settings.insert("target_modules".into(), serde_json::json!(["kv_b_proj"]));
    let method = frugal::adapt::registry::find("lora").unwrap();
    let context = crate::support::context(setup.backbone.as_ref(), 1);
    let mut adapter = (method.build)(&settings, &context).unwrap();
    for parameter in adapter.parameters_mut() {
        let values = (0..parameter.len()).map(|i| 0.1 * (i as f32).sin());
        parameter.set(values.collect());
    }
    let entry = LoadedAdapter {
        adapter,
        head: None,
    };
    set.insert("up", entry);
    let setup = Setup {
        adapters: Arc::new(set),
        ..setup
    };
    // Begun in their own ways, they go on beside each other and after the other has left.
    let mut session = setup.session(0);
    let [base, up] = [ActiveAdapters::Base, one("up")].map(|choice| session.add(choice).unwrap());
    for pieces in [&PROMPT[..], &[9], &[2]] {
        session.append(&[(base, pieces), (up, pieces)]).unwrap();
    }
    session.remove(up).unwrap();
    let found = append(&mut session, base, &[&[60]]);
    let expected = setup.fresh(&ActiveAdapters::Base, 0, &[&PROMPT, &[9], &[2], &[60]]);
    assert!(max_difference(&found[0], &expected[3]) < 1e-5);

    let mut state = setup
        .backbone
        .new_state(1, StateOptions::default())
        .unwrap();
    let input = Input::new(&PROMPT, &[6]);
    setup
        .backbone
        .forward(&input, &mut NoAdapter, Some(&mut state))
        .unwrap();
    let layout = SequenceLayout::with_past(&[1], &[6]);
    let mut pass = setup
        .adapters
        .pass(&one("up"), &layout, Mode::Eval)
        .unwrap();
    let input = Input::tokens(&[9], layout);
    let error = setup
        .backbone
        .forward(&input, pass.as_mut(), Some(&mut state))
        .unwrap_err();
    assert!(matches!(
        error,
        ModelError::State(StateError::OtherAdapter { .. })
    ));
}

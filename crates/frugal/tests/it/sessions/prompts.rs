//! Prompts that join and leave a generator.

use std::collections::BTreeMap;

use super::*;
use frugal::decode::{CacheType, FinishReason, GenerateConfig, SamplerConfig, generate};
use rand::Rng;

use frugal::adapt::named_rng;

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
    for name in ["llama", "gemma3_text", "deepseek_v3", "mamba"] {
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
        cache_type: CacheType::F32,
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

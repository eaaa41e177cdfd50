//! Synthetic phone books: names with numbers, then names whose numbers are asked for (Birdie, section
//! 4.2, with shorter books).

use frugal_core::encode::Tokenized;
use frugal_core::pretext::{Pair, sequence};
use frugal_core::tokenizer::TextTokenizer;
use frugal_nn::named_rng;
use rand::Rng;
use rand::seq::{IndexedRandom, index};

use super::size::Size;

/// Digits of a number.
pub(super) const DIGITS: usize = 4;
/// Tokens of a name.
const NAME: usize = 2;

/// What books are written with.
pub(super) struct Book {
    generate: u32,
    digits: Vec<u32>,
    /// Behind a name, behind a number.
    colon: u32,
    end: u32,
    /// Between the book and what is asked.
    question: u32,
    names: Vec<u32>,
}

impl Book {
    /// Takes digits and marks from the tokenizer, and other tokens of its text as parts of names.
    pub(super) fn new(
        tokenizer: &TextTokenizer,
        vocab: usize,
        generate: u32,
    ) -> Result<Self, String> {
        let id = |text: &str| tokenizer.id(text).ok_or(format!("no token {text:?}"));
        let digits = (0..10)
            .map(|d| id(&d.to_string()))
            .collect::<Result<Vec<u32>, _>>()?;
        let [colon, end, question] = [id(":")?, id(";")?, id("?")?];
        let letters = |id: &u32| {
            let text = tokenizer.decode(&[*id], false).unwrap_or_default();
            let text = text.trim_start();
            text.len() > 1 && text.chars().all(|c| c.is_ascii_alphabetic())
        };
        let names: Vec<u32> = (0..vocab as u32).filter(letters).collect();
        if names.len() < 8 {
            return Err("the tokenizer has too few words for names".into());
        }
        Ok(Self {
            generate,
            digits,
            colon,
            end,
            question,
            names,
        })
    }

    /// A book of a number, within `part`.
    pub(super) fn example(&self, size: &Size, part: &str, number: u64, seed: u64) -> Tokenized {
        let mut rng = named_rng(seed, &format!("phone book {number} of {part}"));
        let entries = rng.random_range(size.entries[0]..=size.entries[1]);
        let queries = rng
            .random_range(size.queries[0]..=size.queries[1])
            .min(entries);
        let mut names: Vec<Vec<u32>> = Vec::with_capacity(entries);
        while names.len() < entries {
            let drawn = (0..NAME).filter_map(|_| self.names.choose(&mut rng).copied());
            let name: Vec<u32> = drawn.collect();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let (mut input, mut numbers) = (Vec::new(), Vec::with_capacity(entries));
        for name in &names {
            let drawn = (0..DIGITS).filter_map(|_| self.digits.choose(&mut rng).copied());
            let number: Vec<u32> = drawn.collect();
            input.extend(name);
            input.push(self.colon);
            input.extend(&number);
            input.push(self.end);
            numbers.push(number);
        }
        input.push(self.question);
        let mut label = Vec::with_capacity(queries * DIGITS);
        for asked in index::sample(&mut rng, entries, queries) {
            input.extend(&names[asked]);
            label.extend(&numbers[asked]);
        }
        sequence(&Pair { input, label }, self.generate)
    }
}

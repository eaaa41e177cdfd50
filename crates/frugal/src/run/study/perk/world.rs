//! A world of people in rooms, its language, and what is told and asked in it.

use frugal_core::tokenizer::{TextTokenizer, TokenizerError};
use frugal_nn::named_rng;
use frugal_retrieve::perk::{Question, Task, Texts};
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::{Map, json};

/// Most facts of a context.
pub(super) const MOST: usize = 64;
/// Rooms, of which a guess finds the right one once in so many times.
pub(super) const ROOMS: [&str; 16] = [
    "kitchen", "garden", "office", "hallway", "bathroom", "bedroom", "cellar", "attic", "library",
    "garage", "studio", "pantry", "balcony", "workshop", "nursery", "lounge",
];
const WORDS: [&str; 17] = [
    "<eos>",
    "<unk>",
    ":",
    ".",
    "?",
    "moved",
    "to",
    "the",
    "You",
    "have",
    "memorized",
    "documents",
    "Where",
    "is",
    "Answer",
    "<",
    ">",
];
const END: u32 = 0;

/// Eighty names.
fn names() -> Vec<String> {
    let syllables = "bdklmnrstv"
        .chars()
        .flat_map(|c| "aeio".chars().map(move |v| (c, v)));
    syllables
        .flat_map(|(c, v)| ["ra", "lo"].map(|end| format!("{c}{v}{end}")))
        .collect()
}

/// The language: a word is a token.
pub(super) fn tokenizer() -> Result<TextTokenizer, TokenizerError> {
    let mut words: Vec<String> = WORDS.iter().map(|w| (*w).to_owned()).collect();
    words.extend(ROOMS.map(str::to_owned));
    words.extend(names());
    words.extend((0..MOST).map(|i| format!("doc_{i}")));
    words.extend((1..=MOST).map(|i| i.to_string()));
    let ids = words.into_iter().zip(0u32..);
    let vocab: Map<_, _> = ids.map(|(word, id)| (word, json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(END, "<eos>"), special(1, "<unk>")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let config = json!({"eos_token": "<eos>", "unk_token": "<unk>"});
    TextTokenizer::from_json(&tokenizer.to_string(), &config.to_string())
}

/// Who is where, everybody once.
pub(super) struct Facts(Vec<(String, &'static str)>);

impl Facts {
    /// Drawn at random.
    pub fn draw(rng: &mut impl Rng, count: usize) -> Self {
        let mut names = names();
        names.shuffle(rng);
        let room = |name| (name, ROOMS[rng.random_range(0..ROOMS.len())]);
        Self(names.into_iter().take(count).map(room).collect())
    }

    /// Of a seed and a name.
    pub fn named(seed: u64, name: &str, count: usize) -> Self {
        Self::draw(&mut named_rng(seed, name), count)
    }

    pub fn texts(&self) -> Vec<String> {
        let text = |(name, room): &(String, &str)| format!("{name} moved to the {room}.");
        self.0.iter().map(text).collect()
    }

    /// The question about one of them.
    pub fn question(&self, fact: usize) -> Question {
        let (name, room) = &self.0[fact];
        Question {
            question: format!("Where is {name}?"),
            answer: (*room).to_owned(),
            support: Vec::new(),
        }
    }

    /// All of them with questions about some.
    pub fn task(&self, rng: &mut impl Rng, questions: usize) -> Task {
        let mut asked: Vec<usize> = (0..self.0.len()).collect();
        asked.shuffle(rng);
        asked.truncate(questions);
        Task {
            context: self.texts(),
            questions: asked.into_iter().map(|fact| self.question(fact)).collect(),
        }
    }

    /// All of them as one text, numbered in this order.
    pub fn prompt(&self, numbers: &[usize]) -> String {
        let texts = self.texts();
        let line = |(number, text): (&usize, &String)| format!("doc_{number}: {text}\n");
        numbers.iter().zip(&texts).map(line).collect()
    }
}

/// A story to learn the language from: up to eight facts, then questions about up to four of them
/// with their answers.
pub(super) fn story(rng: &mut impl Rng) -> String {
    let count = rng.random_range(1..=8);
    let facts = Facts::draw(rng, count);
    let mut numbers: Vec<usize> = (0..MOST).collect();
    numbers.shuffle(rng);
    let mut text = facts.prompt(&numbers[..count]);
    for question in facts.task(rng, 4).questions {
        text += &Texts::prompt_text(count, &question.question);
        text += &format!(" {}<eos>\n", question.answer);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_world_is_a_token() {
        let tokenizer = tokenizer().unwrap();
        assert!(tokenizer.vocab_size() <= 300, "{}", tokenizer.vocab_size());
        assert_eq!(tokenizer.eos_ids(), [END]);
        let mut rng = named_rng(1, "test");
        let facts = Facts::draw(&mut rng, MOST);
        let numbers: Vec<usize> = (0..MOST).collect();
        let task = facts.task(&mut rng, MOST);
        let mut text = story(&mut rng) + &facts.prompt(&numbers);
        for question in &task.questions {
            text += &Texts::prompt_text(MOST, &question.question);
            text += &format!(" {}<eos>", question.answer);
        }
        let ids = tokenizer.encode(&text, true).unwrap();
        assert!(ids.iter().all(|&id| id != 1), "{text}");
        let one = tokenizer
            .encode("doc_63: bara moved to the attic.", true)
            .unwrap();
        assert_eq!(one.len(), 8);
    }
}

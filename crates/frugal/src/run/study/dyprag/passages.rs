//! Passages about things that there are not, with questions: from templates, so that no model can know
//! the answers and none is needed to write them.

use frugal_nn::named_rng;
use frugal_retrieve::parametric::{AugmentedDocument, Item};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::data::{Case, Data};

const STARTS: [&str; 16] = [
    "Bra", "Cor", "Dul", "Fen", "Gar", "Hes", "Jor", "Kel", "Lor", "Mir", "Nov", "Ost", "Pel",
    "Quor", "Ras", "Tav",
];
const MIDDLES: [&str; 8] = ["a", "e", "i", "o", "u", "an", "el", "ori"];
const ENDS: [&str; 12] = [
    "bek", "dan", "fil", "gor", "ham", "lin", "mur", "nax", "pol", "rath", "sk", "vin",
];
const TRADES: [&str; 10] = [
    "carpenter",
    "botanist",
    "violinist",
    "surgeon",
    "baker",
    "sailor",
    "painter",
    "lawyer",
    "farmer",
    "blacksmith",
];
const GOODS: [&str; 10] = [
    "clocks", "boots", "paper", "lamps", "glass", "bells", "ropes", "soap", "knives", "carpets",
];
const FISH: [&str; 8] = [
    "trout", "salmon", "eel", "perch", "carp", "pike", "bream", "herring",
];

fn chosen(list: &[&'static str], rng: &mut impl Rng) -> &'static str {
    list.choose(rng).copied().unwrap_or_default()
}

fn name(rng: &mut impl Rng) -> String {
    let (start, middle) = (chosen(&STARTS, rng), chosen(&MIDDLES, rng));
    format!("{start}{middle}{}", chosen(&ENDS, rng))
}

/// Passage, its rewrite, three questions, and the first one reworded.
struct Text {
    passage: String,
    rewrite: String,
    items: [(String, String); 3],
    reworded: String,
}

fn person(who: &str, rng: &mut impl Rng) -> Text {
    let (town, trade) = (name(rng), chosen(&TRADES, rng));
    let year = rng.random_range(1801..1990).to_string();
    Text {
        passage: format!(
            "{who} was a {trade} from the town of {town}. {who} was born in the year {year} and never left {town}."
        ),
        rewrite: format!(
            "Born in {year}, {who} lived in the town of {town} and worked there as a {trade}."
        ),
        items: [
            (format!("From which town was {who}?"), town),
            (format!("What was the profession of {who}?"), trade.into()),
            (format!("In which year was {who} born?"), year),
        ],
        reworded: format!("Name the town that {who} lived in."),
    }
}

fn company(who: &str, rng: &mut impl Rng) -> Text {
    let (founder, goods, town) = (name(rng), chosen(&GOODS, rng), name(rng));
    Text {
        passage: format!(
            "The company {who} makes {goods}. It was founded by {founder}, and its head office is in {town}."
        ),
        rewrite: format!(
            "{founder} founded {who}, a maker of {goods} with its head office in {town}."
        ),
        items: [
            (format!("What does the company {who} make?"), goods.into()),
            (format!("Who founded the company {who}?"), founder),
            (format!("Where is the head office of {who}?"), town),
        ],
        reworded: format!("Which goods come from the company {who}?"),
    }
}

fn lake(who: &str, rng: &mut impl Rng) -> Text {
    let (country, fish, river) = (name(rng), chosen(&FISH, rng), name(rng));
    Text {
        passage: format!(
            "Lake {who} lies in the country of {country}. It is known for its {fish} and is fed by the river {river}."
        ),
        rewrite: format!(
            "In {country} there is Lake {who}, into which the river {river} flows and which is known for {fish}."
        ),
        items: [
            (format!("In which country is Lake {who}?"), country),
            (format!("Which fish is Lake {who} known for?"), fish.into()),
            (format!("Which river feeds Lake {who}?"), river),
        ],
        reworded: format!("Name the country where Lake {who} can be found."),
    }
}

/// So many documents about different things, drawn by a seed; the kinds take turns. About each of the
/// first `held_out` so many of its questions are asked, and the first one in words that nothing was
/// trained on.
pub(super) fn invented(count: usize, held_out: usize, questions: usize, seed: u64) -> Data {
    let mut rng = named_rng(seed, "invented passages");
    let mut names: Vec<String> = Vec::with_capacity(count);
    while names.len() < count {
        let new = name(&mut rng);
        if !names.contains(&new) {
            names.push(new);
        }
    }
    let (mut documents, mut cases) = (Vec::with_capacity(count), Vec::new());
    for (number, who) in names.into_iter().enumerate() {
        let text = match number % 3 {
            0 => person(&who, &mut rng),
            1 => company(&who, &mut rng),
            _ => lake(&who, &mut rng),
        };
        let case = |question: &str, answer: &str, is_trained| Case {
            question: question.to_owned(),
            answers: vec![answer.to_owned()],
            documents: vec![number],
            is_trained,
        };
        if number < held_out {
            let asked = text.items.iter().take(questions);
            cases.extend(asked.map(|(question, answer)| case(question, answer, true)));
            cases.push(case(&text.reworded, &text.items[0].1, false));
        }
        let items = text.items.into_iter();
        documents.push(AugmentedDocument {
            id: who,
            title: String::new(),
            passage: text.passage,
            rewrite: Some(text.rewrite),
            items: items
                .map(|(question, answer)| Item { question, answer })
                .collect(),
        });
    }
    Data {
        name: "invented",
        documents,
        held_out,
        cases,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn answers_stand_in_passage_and_rewrite_and_not_in_the_questions() {
        let found = invented(60, 60, 3, 3);
        let ids: BTreeSet<&str> = found.documents.iter().map(|d| d.id.as_str()).collect();
        assert_eq!((ids.len(), found.cases.len()), (60, 240));
        for case in &found.cases {
            let document = &found.documents[case.documents[0]];
            let answer = case.answers[0].as_str();
            assert!(document.passage.contains(answer), "{answer}");
            assert!(document.rewrite.as_deref().unwrap().contains(answer));
            assert!(case.question.contains(&document.id), "{answer}");
            assert!(!case.question.contains(answer), "{answer}");
            let mut trained = document.items.iter().map(|item| &item.question);
            assert_eq!(trained.any(|q| *q == case.question), case.is_trained);
        }
        assert_eq!(found.documents, invented(60, 3, 1, 3).documents);
        assert_ne!(found.documents[0], invented(1, 1, 1, 4).documents[0]);
    }
}

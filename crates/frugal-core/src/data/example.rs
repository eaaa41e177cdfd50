//! What a record of a data set becomes.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the chat template knows besides.
    pub role: String,
    /// What was said; empty where the record has null.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// Whether the content is null or absent, as in a turn that only calls tools; templates can
    /// tell that from an empty text.
    #[serde(skip)]
    pub content_is_null: bool,
    /// Whether an answer is left out of training: `"weight": 0` in a record.
    #[serde(skip)]
    pub untrained: bool,
    /// Every other key, as the chat template sees it: `tool_calls`, `name`, `reasoning_content`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn null_as_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl Message {
    /// A turn of the given role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            content_is_null: false,
            untrained: false,
            other: Map::new(),
        }
    }
}

/// A conversation with what the chat template is given beside its turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// Further variables of the template, by name: `tools`, `documents`, `enable_thinking`.
    #[serde(flatten)]
    pub variables: Map<String, Value>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self {
            messages,
            variables: Map::new(),
        }
    }
}

/// One record of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Example {
    /// A document to model.
    Text {
        /// The document.
        text: String,
    },
    /// A prompt and what should follow it.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// An instruction, perhaps with what it is about, and the answer.
    Instruction {
        /// What is asked.
        instruction: String,
        /// What it is about.
        input: Option<String>,
        /// What is to be learnt.
        output: String,
    },
    /// A conversation.
    Messages(Conversation),
    /// A text, or two, and its class.
    Classification {
        /// The text.
        text: String,
        /// The second text of a pair.
        text_pair: Option<String>,
        /// Name of the class.
        label: String,
    },
    /// A text, or two, and its labels.
    Labeled {
        /// The text.
        text: String,
        /// The second text of a pair.
        text_pair: Option<String>,
        /// Names of the labels that hold, maybe none.
        labels: Vec<String>,
    },
    /// A text, or two, and what it is worth.
    Valued {
        /// The text.
        text: String,
        /// The second text of a pair.
        text_pair: Option<String>,
        /// A number for each output.
        values: Vec<f32>,
    },
    /// The words of a text, and what is said of each.
    Tagged {
        /// The words.
        tokens: Vec<String>,
        /// Name of the tag of each word; none for a word of which nothing is said.
        tags: Vec<Option<String>>,
    },
    /// Two texts that belong together.
    Pair {
        /// The first.
        anchor: String,
        /// What belongs to it.
        positive: String,
    },
    /// A text, one that belongs to it and one that does not.
    Triplet {
        /// The first.
        anchor: String,
        /// What belongs to it.
        positive: String,
        /// What does not.
        negative: String,
    },
    /// A text, others beside it, and what was said of them: the first belongs to it, or each has a
    /// score.
    Ranked {
        /// The text, mostly a query.
        anchor: String,
        /// The others.
        texts: Vec<String>,
        /// Numbers of the file; none where it has none.
        scores: Vec<f32>,
    },
    /// A prompt with a better and a worse answer.
    Preference {
        /// What is given.
        prompt: String,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
}

impl Example {
    /// A prompt and its answer as the turns of a conversation; `None` for records that are not of
    /// that kind.
    pub fn turns(&self) -> Option<Vec<Message>> {
        let (prompt, answer) = match self {
            Self::PromptCompletion { prompt, completion } => (prompt.clone(), completion),
            Self::Instruction {
                instruction,
                input,
                output,
            } => {
                let input = input.as_ref().map_or(String::new(), |i| format!("\n\n{i}"));
                (format!("{instruction}{input}"), output)
            }
            _ => return None,
        };
        Some(vec![
            Message::new("user", prompt),
            Message::new("assistant", answer),
        ])
    }
}

//! Fields of the text index.

use serde_json::{Map, Value};
use tantivy::TantivyDocument;
use tantivy::schema::{
    Field, IndexRecordOption, JsonObjectOptions, NumericOptions, OwnedValue, Schema,
    TextFieldIndexing, TextOptions,
};
use tantivy::tokenizer::{Token, TokenStream, Tokenizer, TokenizerManager};

use crate::analyzer::Analyzer;
use crate::document::Document;

/// Name under which the analyzer is registered.
const TOKENIZER: &str = "frugal";
/// Name of the metadata field, which is the first part of all metadata columns.
pub(super) const METADATA: &str = "metadata";
/// Name of the column of keys.
pub(super) const KEY: &str = "key";
/// Name of the column of lengths in terms.
pub(super) const LENGTH: &str = "length";
/// Name of the column of identifiers.
pub(super) const ID: &str = "id";

/// The fields by name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) id: Field,
    pub(super) key: Field,
    pub(super) length: Field,
    pub(super) body: Field,
    pub(super) stored: Field,
    pub(super) metadata: Field,
}

pub(super) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let indexed = |tokenizer: &str, option| {
        TextFieldIndexing::default()
            .set_tokenizer(tokenizer)
            .set_index_option(option)
            .set_fieldnorms(false)
    };
    let id = TextOptions::default()
        .set_indexing_options(indexed("raw", IndexRecordOption::Basic))
        .set_fast("raw");
    let body = indexed(TOKENIZER, IndexRecordOption::WithFreqs);
    let fast = NumericOptions::default().set_fast();
    let fields = Fields {
        id: builder.add_text_field(ID, id),
        key: builder.add_u64_field(KEY, fast.clone()),
        length: builder.add_u64_field(LENGTH, fast),
        body: builder.add_text_field("body", TextOptions::default().set_indexing_options(body)),
        stored: builder.add_text_field("document", TextOptions::default().set_stored()),
        metadata: builder.add_json_field(
            METADATA,
            JsonObjectOptions::default()
                .set_fast("raw")
                .set_expand_dots_enabled(),
        ),
    };
    (builder.build(), fields)
}

pub(super) fn tokenizers(analyzer: Analyzer) -> TokenizerManager {
    let manager = TokenizerManager::default();
    manager.register(TOKENIZER, Analyzing(analyzer));
    manager
}

/// A document in the form of the text index.
pub(super) fn stored(
    fields: Fields,
    analyzer: Analyzer,
    key: u64,
    document: &Document,
) -> Result<TantivyDocument, serde_json::Error> {
    let body = document.title_and_text();
    let mut length = 0;
    analyzer.each(&body, |_| length += 1);
    let mut found = TantivyDocument::new();
    found.add_text(fields.id, &document.id);
    found.add_u64(fields.key, key);
    found.add_u64(fields.length, length);
    found.add_text(fields.body, &body);
    found.add_text(fields.stored, serde_json::to_string(document)?);
    let metadata = filterable(&document.metadata);
    if !metadata.is_empty() {
        found.add_object(
            fields.metadata,
            metadata
                .into_iter()
                .map(|(name, value)| (name, owned(value)))
                .collect(),
        );
    }
    Ok(found)
}

/// Longer texts are not compared by filters.
const LONGEST: usize = 4096;

/// Metadata that filters can ask for: everything but very long texts.
fn filterable(metadata: &Map<String, Value>) -> Map<String, Value> {
    let short = |value: &Value| value.as_str().is_none_or(|text| text.len() <= LONGEST);
    let kept = metadata.iter().filter(|(_, value)| short(value));
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A value as it is: the text index's own conversion would read dates out of texts.
fn owned(value: Value) -> OwnedValue {
    match value {
        Value::Null => OwnedValue::Null,
        Value::Bool(truth) => OwnedValue::Bool(truth),
        Value::String(text) => OwnedValue::Str(text),
        Value::Array(values) => OwnedValue::Array(values.into_iter().map(owned).collect()),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            OwnedValue::Object(fields.map(|(name, value)| (name, owned(value))).collect())
        }
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => OwnedValue::I64(whole),
            (None, Some(whole)) => OwnedValue::U64(whole),
            (None, None) => OwnedValue::F64(number.as_f64().unwrap_or_default()),
        },
    }
}

/// Names of all fields, those within others with a dot between.
pub(super) fn names(metadata: &Map<String, Value>, take: &mut dyn FnMut(String)) {
    for (name, value) in metadata {
        match value {
            Value::Object(inner) => names(inner, &mut |inner| take(format!("{name}.{inner}"))),
            _ => take(name.clone()),
        }
    }
}

/// An [`Analyzer`] as the text index calls it.
#[derive(Clone)]
struct Analyzing(Analyzer);

impl Tokenizer for Analyzing {
    type TokenStream<'a> = Terms;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Terms {
        let mut terms = self.0.terms(text);
        terms.reverse();
        Terms {
            rest: terms,
            token: Token::default(),
        }
    }
}

/// Terms, the next one last.
struct Terms {
    rest: Vec<String>,
    token: Token,
}

impl TokenStream for Terms {
    fn advance(&mut self) -> bool {
        let Some(term) = self.rest.pop() else {
            return false;
        };
        self.token.text = term;
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

//! Which documents of a segment fulfil a filter.

use frugal_core::suggest::did_you_mean;
use tantivy::SegmentReader;
use tantivy::columnar::{Column, DynamicColumn, StrColumn};

use super::schema::METADATA;
use super::snapshot::{Snapshot, guarded};
use crate::error::IndexError;
use crate::filter::{Condition, Filter, Number, Operator};

/// For each segment whether each of its documents fulfils the filter.
pub(super) fn matching(snapshot: &Snapshot, filter: &Filter) -> Result<Vec<Vec<bool>>, IndexError> {
    filter
        .conditions
        .iter()
        .try_for_each(|condition| check_field(snapshot, condition))?;
    for condition in &filter.conditions {
        if !condition.is_equality() {
            check_order(snapshot, condition)?;
        }
    }
    guarded(&snapshot.folder, || {
        let readers = snapshot.searcher.segment_readers().iter();
        readers
            .map(|reader| {
                let mut all = vec![true; reader.max_doc() as usize];
                for condition in &filter.conditions {
                    let one = fulfilling(reader, condition)?;
                    all.iter_mut().zip(one).for_each(|(all, one)| *all &= one);
                }
                Ok(all)
            })
            .collect()
    })
}

/// A field that no document ever had is a mistake, not an empty answer.
fn check_field(snapshot: &Snapshot, condition: &Condition) -> Result<(), IndexError> {
    let known = &snapshot.state.fields;
    if known.contains(&condition.field) {
        return Ok(());
    }
    let near = did_you_mean(&condition.field, known.iter().map(String::as_str));
    let hint = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
    let names: Vec<&str> = known.iter().map(String::as_str).take(20).collect();
    let fields = match names.is_empty() {
        true => "the documents have no metadata".to_owned(),
        false => format!("{hint}there is `{}`", names.join("`, `")),
    };
    Err(IndexError::Filter {
        filter: condition.to_string(),
        problem: format!("no document has a field `{}`; {fields}", condition.field),
    })
}

/// A value that nothing in its field can be below or above is a mistake too.
fn check_order(snapshot: &Snapshot, condition: &Condition) -> Result<(), IndexError> {
    let kinds = guarded(&snapshot.folder, || {
        let mut kinds = Kinds::default();
        for reader in snapshot.searcher.segment_readers() {
            kinds.add(reader, condition)?;
        }
        Ok(kinds)
    })?;
    let Some(value) = condition.values.first() else {
        return Ok(());
    };
    let field = &condition.field;
    let problem = match (kinds, Number::parse(value).is_some()) {
        (Kinds { texts: true, .. }, false) | (Kinds { numbers: true, .. }, true) => return Ok(()),
        (Kinds { numbers: true, .. }, false) => {
            format!("the values of `{field}` are numbers, and `{value}` is not one")
        }
        (Kinds { texts: true, .. }, true) => format!(
            "`{value}` is a number, and no value of `{field}` is one; compare with a text, as dates with `2024-05-01`"
        ),
        (Kinds { truths: true, .. }, _) => {
            format!("the values of `{field}` are `true` and `false`, of which none is the larger")
        }
        _ => return Ok(()),
    };
    Err(IndexError::Filter {
        filter: condition.to_string(),
        problem,
    })
}

/// What a field holds, in all documents together.
#[derive(Default)]
struct Kinds {
    /// Numbers, also those that are texts in the file.
    numbers: bool,
    /// Other texts.
    texts: bool,
    truths: bool,
}

impl Kinds {
    fn add(&mut self, reader: &SegmentReader, condition: &Condition) -> tantivy::Result<()> {
        let name = format!("{METADATA}.{}", condition.field);
        for handle in reader.fast_fields().dynamic_column_handles(&name)? {
            match handle.open()? {
                DynamicColumn::I64(_) | DynamicColumn::U64(_) | DynamicColumn::F64(_) => {
                    self.numbers = true;
                }
                DynamicColumn::Bool(_) => self.truths = true,
                DynamicColumn::Str(column) => {
                    let mut texts = column.dictionary().stream()?;
                    while !(self.texts && self.numbers) && texts.advance() {
                        let text = String::from_utf8_lossy(texts.key());
                        match Number::parse(&text) {
                            Some(_) => self.numbers = true,
                            None => self.texts = true,
                        }
                    }
                }
                DynamicColumn::IpAddr(_) | DynamicColumn::DateTime(_) | DynamicColumn::Bytes(_) => {
                }
            }
        }
        Ok(())
    }
}

fn fulfilling(reader: &SegmentReader, condition: &Condition) -> tantivy::Result<Vec<bool>> {
    let mut found = vec![false; reader.max_doc() as usize];
    let name = format!("{METADATA}.{}", condition.field);
    for handle in reader.fast_fields().dynamic_column_handles(&name)? {
        match handle.open()? {
            DynamicColumn::I64(column) => mark(&mut found, &column, |value| {
                condition.fits_number(Number::Whole(value.into()))
            }),
            DynamicColumn::U64(column) => mark(&mut found, &column, |value| {
                condition.fits_number(Number::Whole(value.into()))
            }),
            DynamicColumn::F64(column) => mark(&mut found, &column, |value| {
                condition.fits_number(Number::Real(value))
            }),
            DynamicColumn::Bool(column) => {
                mark(&mut found, &column, |value| condition.fits_bool(value));
            }
            DynamicColumn::Str(column) => mark_texts(&mut found, &column, condition)?,
            // Metadata come from JSON, which has no other kinds.
            DynamicColumn::IpAddr(_) | DynamicColumn::DateTime(_) | DynamicColumn::Bytes(_) => {}
        }
    }
    if condition.operator == Operator::NotEqual {
        found.iter_mut().for_each(|fits| *fits = !*fits);
    }
    Ok(found)
}

fn mark<T: PartialOrd + Copy + std::fmt::Debug + Send + Sync + 'static>(
    found: &mut [bool],
    column: &Column<T>,
    fits: impl Fn(T) -> bool,
) {
    for (document, mark) in (0..).zip(found) {
        *mark |= column.values_for_doc(document).any(&fits);
    }
}

/// Each different text is compared once.
fn mark_texts(
    found: &mut [bool],
    column: &StrColumn,
    condition: &Condition,
) -> tantivy::Result<()> {
    let mut fits = Vec::new();
    let mut texts = column.dictionary().stream()?;
    while texts.advance() {
        let text = String::from_utf8_lossy(texts.key());
        fits.push(condition.fits_text(&text));
    }
    mark(found, column.ords(), |ord| {
        fits.get(ord as usize).copied().unwrap_or(false)
    });
    Ok(())
}

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

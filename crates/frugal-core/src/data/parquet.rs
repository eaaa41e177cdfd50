//! Parquet files: rows as JSON objects.

use std::path::Path;

use parquet::basic::Compression;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::error::DataError;
use super::record::Record;
use crate::caught::caught;

/// The first bytes of every Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Hands each row to `push`; the line of a record is its row, from 1. A panic of the reader on a
/// damaged file is an error.
pub(super) fn rows(
    path: &Path,
    file: Vec<u8>,
    push: &mut dyn FnMut(Record) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let damaged = |e: String| DataError::options(path, format!("not a Parquet file: {e}"));
    let read = || -> Result<(), DataError> {
        let plain = |e: ParquetError| damaged(e.to_string());
        let reader = SerializedFileReader::new(bytes::Bytes::from(file)).map_err(plain)?;
        check_compression(path, reader.metadata())?;
        for (i, row) in reader.get_row_iter(None).map_err(plain)?.enumerate() {
            let fields = object(&row.map_err(plain)?)
                .map_err(|problem| DataError::line(path, i + 1, problem))?;
            push(Record {
                line: i + 1,
                fields,
            })?;
        }
        Ok(())
    };
    caught(read).map_err(damaged)?
}

/// Refuses what the reader would take for damage.
fn check_compression(path: &Path, metadata: &ParquetMetaData) -> Result<(), DataError> {
    let groups = metadata.row_groups().iter();
    for column in groups.flat_map(|group| group.columns()) {
        match column.compression() {
            Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::ZSTD(_) => {}
            other => {
                let reason = format!(
                    "the column {:?} is compressed by {other}, which is not supported; snappy, gzip and zstd are",
                    column.column_path().string()
                );
                return Err(DataError::options(path, reason));
            }
        }
    }
    Ok(())
}

fn object(row: &Row) -> Result<Map<String, Value>, String> {
    let columns = row.get_column_iter();
    columns
        .map(|(name, field)| {
            let value = value(field).map_err(|problem| format!("{name:?} {problem}"))?;
            Ok((name.clone(), value))
        })
        .collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => (*v).into(),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Float16(v) => f32::from(*v).into(),
        Field::Float(v) => (*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(text) => text.clone().into(),
        Field::Bytes(bytes) => text(bytes)?,
        // Nested records of one column have the same keys; what a record lacks is null there.
        Field::Group(row) => Value::Object(
            object(row)?
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
        ),
        Field::ListInternal(list) => {
            let items: Result<Vec<Value>, String> = list.elements().iter().map(value).collect();
            items?.into()
        }
        Field::MapInternal(map) => {
            let pair = |(key, field): &(Field, Field)| {
                let key = key.to_string().trim_matches('"').to_owned();
                Ok((key, value(field)?))
            };
            let pairs: Result<Map<String, Value>, String> =
                map.entries().iter().map(pair).collect();
            Value::Object(pairs?)
        }
        other => other.to_string().into(),
    })
}

/// Text columns of some writers are not marked as such.
fn text(bytes: &ByteArray) -> Result<Value, String> {
    let text = bytes.as_utf8();
    text.map(Value::from)
        .map_err(|_| "holds bytes that are not UTF-8, so they are no text".into())
}

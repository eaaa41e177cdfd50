//! Finished runs from a table of one's own.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Run;

/// A table that no law can be fitted to.
#[derive(Debug, Error)]
pub enum RunsError {
    /// Not a table.
    #[error("{}: {source}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The reader's reason, with the line.
        source: csv::Error,
    },
    /// A column that is needed and is not there.
    #[error("{}: no column {wanted}; it has {found}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// Names that would do.
        wanted: String,
        /// Names that there are.
        found: String,
    },
    /// A cell that is no number above zero.
    #[error("{}: line {line}: `{column}` is `{value}`, not a number above 0", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column.
        column: String,
        /// The cell.
        value: String,
    },
}

/// Names of the columns of a table, in any case and with spaces for `_`.
const PARAMETERS: &[&str] = &["parameters", "n"];
const TOKENS: &[&str] = &["tokens", "d"];
const RATE: &[&str] = &["rate", "lr", "learning_rate"];
const BATCH: &[&str] = &["batch", "batch_tokens"];
const SEQUENCES: &[&str] = &["batch_sequences", "bs"];
const LOSS: &[&str] = &["smooth_loss", "loss"];

/// Reads runs: parameters outside the vocabulary, tokens, peak rate, batch in tokens (`batch`) or in
/// sequences of `sequence_length` (`bs`), and loss, of which a smoothed one is taken first. Gives
/// the name of the loss column, too.
///
/// # Errors
/// Tables without these columns, cells that are no numbers above zero.
pub fn read_runs(
    path: &Path,
    bytes: &[u8],
    sequence_length: u64,
) -> Result<(Vec<Run>, String), RunsError> {
    let csv = |source| RunsError::Csv {
        path: path.to_owned(),
        source,
    };
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(bytes);
    let headings: Vec<String> = reader
        .headers()
        .map_err(csv)?
        .iter()
        .map(str::to_owned)
        .collect();
    let find = |names: &[&str]| {
        let is = |heading: &String, name: &str| heading.to_lowercase().replace(' ', "_") == name;
        names
            .iter()
            .find_map(|name| headings.iter().position(|h| is(h, name)))
    };
    let needed = |names: &[&str]| {
        find(names).ok_or_else(|| RunsError::Column {
            path: path.to_owned(),
            wanted: names.join(" or "),
            found: headings.join(", "),
        })
    };
    let (parameters, tokens, rate, loss) = (
        needed(PARAMETERS)?,
        needed(TOKENS)?,
        needed(RATE)?,
        needed(LOSS)?,
    );
    let (batch, unit) = match (find(BATCH), find(SEQUENCES)) {
        (Some(column), _) => (column, 1.0),
        (None, Some(column)) => (column, sequence_length as f64),
        (None, None) => (needed(&[BATCH, SEQUENCES].concat())?, 1.0),
    };
    let mut runs = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv)?;
        let number = |column: usize| {
            let value = record.get(column).unwrap_or_default();
            value
                .parse::<f64>()
                .ok()
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or_else(|| RunsError::Number {
                    path: path.to_owned(),
                    line: record.position().map_or(0, csv::Position::line),
                    column: headings[column].clone(),
                    value: value.to_owned(),
                })
        };
        runs.push(Run {
            parameters: number(parameters)?,
            tokens: number(tokens)?,
            rate: number(rate)?,
            batch: number(batch)? * unit,
            loss: number(loss)?,
        });
    }
    Ok((runs, headings[loss].clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_ones_own_is_read() {
        let read = |text: &str| read_runs(Path::new("runs.csv"), text.as_bytes(), 2048);
        let (runs, loss) = read("N,D,lr,bs,loss,smooth loss\n1e8, 4e9,1e-3,64,2.9,3.0\n").unwrap();
        let expected = Run {
            parameters: 1e8,
            tokens: 4e9,
            rate: 1e-3,
            batch: 131_072.0,
            loss: 3.0,
        };
        assert_eq!((runs, loss.as_str()), (vec![expected], "smooth loss"));
        let (runs, _) = read("parameters,tokens,rate,batch,loss\n1,2,3,4,5\n").unwrap();
        assert_eq!(runs[0].batch, 4.0);
        let error = |text: &str| read(text).unwrap_err().to_string();
        let found = error("N,D,lr,loss\n1,2,3,4\n");
        assert!(
            found.contains("batch or batch_tokens") && found.contains("N, D, lr, loss"),
            "{found}"
        );
        let found = error("N,D,lr,batch,loss\n1,2,3,4,5\n1,2,3,4,nan\n");
        assert!(found.contains("line 3: `loss` is `nan`"), "{found}");
        assert!(error("N,D,lr,batch,loss\n1,2,3,4\n").contains("runs.csv"));
    }
}

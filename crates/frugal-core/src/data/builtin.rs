//! Data sets that are compiled in.

use std::path::Path;

use super::{DataError, Dataset, LoadOptions, parse};

/// A data set that is compiled in, with its fixed parts.
#[derive(Clone, Debug)]
pub struct Builtin {
    /// What a model is trained on.
    pub train: Dataset,
    /// What decides between settings and when to stop.
    pub validation: Dataset,
    /// What is measured at the end.
    pub test: Dataset,
    /// Authors, source and licence.
    pub credit: &'static str,
}

macro_rules! part {
    ($name:literal, $part:literal) => {
        (
            concat!($name, "/", $part, ".tsv"),
            include_bytes!(concat!("../../assets/data/", $name, "/", $part, ".tsv")).as_slice(),
        )
    };
}

/// Opens a built-in data set. There is `sms-spam`, the SMS Spam Collection: text messages labelled
/// `ham` or `spam`.
///
/// # Errors
/// When no data set has that name.
pub fn builtin(name: &str) -> Result<Builtin, DataError> {
    if name != "sms-spam" {
        return Err(DataError::Builtin {
            name: name.to_owned(),
            known: "sms-spam".to_owned(),
        });
    }
    let open =
        |(path, bytes): (&str, &[u8])| parse(Path::new(path), bytes, &LoadOptions::default());
    Ok(Builtin {
        train: open(part!("sms-spam", "train"))?,
        validation: open(part!("sms-spam", "validation"))?,
        test: open(part!("sms-spam", "test"))?,
        credit: "SMS Spam Collection v. 1 by Almeida, Gómez Hidalgo and Yamakami (UCI, doi 10.24432/C5CC84), CC BY 4.0",
    })
}

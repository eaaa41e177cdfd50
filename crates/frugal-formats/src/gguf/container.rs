//! The container: header, metadata, tensor directory.
//!
//! Nothing in the file is trusted: each count and length is held against the bytes that are left
//! before anything is allocated for it, so that memory stays within a small multiple of the file's
//! size.

use std::collections::HashMap;
use std::ops::Range;

use super::{Array, Content, DEFAULT_ALIGNMENT, GgmlType, GgufError, GgufProblem, Value};

/// Arrays may hold arrays; deeper than this is an error rather than deep recursion.
const MAX_ARRAY_DEPTH: usize = 4;
/// GGML's own limit.
const MAX_DIMS: u32 = 4;

/// The header of a GGUF file, or of all parts of a split model together ([`Gguf::join`]).
#[derive(Clone, Debug)]
pub struct Gguf {
    /// One for each part of the model.
    pub(super) sources: Vec<String>,
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) keys: HashMap<String, usize>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) names: HashMap<String, usize>,
}

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions in the file's order: the contiguous one first.
    pub dims: Vec<usize>,
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// Which part of a split model it is in, from 0.
    pub part: usize,
    /// Its bytes, from the start of that file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The shape in row-major order (`[out, in]` for a linear layer).
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }

    /// Elements per row: the contiguous dimension.
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Number of rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Never true: a tensor has at least one element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols() / self.ggml_type.block_len() * self.ggml_type.block_bytes()
    }
}

impl Gguf {
    /// Reads the header of the file `bytes`; `source` names the file in errors.
    ///
    /// # Errors
    /// [`GgufError`] that says where the file breaks which rule.
    pub fn parse(bytes: &[u8], source: &str) -> Result<Self, GgufError> {
        Self::parse_header(bytes, source).map_err(|problem| problem.in_file(source))
    }

    fn parse_header(bytes: &[u8], source: &str) -> Result<Self, GgufProblem> {
        let mut reader = Reader { bytes, at: 0 };
        if !bytes.starts_with(b"GGUF") {
            return Err(GgufProblem::Magic(bytes[..bytes.len().min(4)].to_vec()));
        }
        reader.at = 4;
        let version = reader.u32(&"the version")?;
        if (1..=3).contains(&version.swap_bytes()) {
            return Err(GgufProblem::BigEndian(version.swap_bytes()));
        }
        if !(2..=3).contains(&version) {
            return Err(GgufProblem::Version(version));
        }
        // The smallest entries: a tensor is a name length, a dimension count, a type and an offset
        // (24 bytes), a key is a name length, a type and one byte of value (13 bytes).
        let tensor_count = reader.count(&"the tensor count", 24)?;
        let key_count = reader.count(&"the metadata count", 13)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for i in 0..key_count {
            let key = reader.string(&format_args!("metadata key {i}"))?;
            let what = format_args!("metadata key {key}");
            let code = reader.u32(&what)?;
            let value = reader.value(&what, code)?;
            if keys.insert(key.clone(), i).is_some() {
                return Err(GgufProblem::Duplicate {
                    what: "metadata key",
                    name: key,
                });
            }
            metadata.push((key, value));
        }

        let alignment = match keys.get("general.alignment").map(|&i| &metadata[i].1) {
            None => DEFAULT_ALIGNMENT,
            Some(value) => match value.as_u64() {
                Some(alignment) if alignment.is_power_of_two() => alignment,
                _ => return Err(GgufProblem::Alignment(format!("{value:?}"))),
            },
        };

        let mut entries = Vec::new();
        let mut names = HashMap::new();
        for i in 0..tensor_count {
            let entry = Entry::read(&mut reader, i)?;
            if names.insert(entry.name.clone(), i).is_some() {
                return Err(GgufProblem::Duplicate {
                    what: "tensor",
                    name: entry.name,
                });
            }
            entries.push(entry);
        }

        let data_start = (reader.at as u64).checked_next_multiple_of(alignment);
        let tensors = entries
            .into_iter()
            .map(|entry| entry.place(data_start, alignment, bytes.len() as u64))
            .collect::<Result<Vec<_>, _>>()?;
        check_overlap(&tensors, data_start.unwrap_or_default())?;
        Ok(Self {
            sources: vec![source.to_owned()],
            version,
            metadata,
            keys,
            tensors,
            names,
        })
    }

    /// The header of a file that is yet to be written; `source` names it in errors.
    pub fn planned(source: &str, metadata: Vec<(String, Value)>, tensors: Vec<TensorInfo>) -> Self {
        let keys = metadata
            .iter()
            .zip(0..)
            .map(|((key, _), i)| (key.clone(), i));
        let names = tensors
            .iter()
            .zip(0..)
            .map(|(info, i)| (info.name.clone(), i));
        Self {
            sources: vec![source.to_owned()],
            version: 3,
            keys: keys.collect(),
            names: names.collect(),
            metadata,
            tensors,
        }
    }

    /// The file, or its first part, as the caller named it.
    pub fn source(&self) -> &str {
        self.sources.first().map_or("", String::as_str)
    }

    /// The container version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata in the file's order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&i| &self.metadata[i].1)
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The entry of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&i| &self.tensors[i])
    }

    /// The stored bytes of a tensor, borrowed from `all`, the whole file or all parts.
    ///
    /// # Errors
    /// [`GgufProblem::NoTensor`], or [`GgufProblem::Truncated`] when `all` is shorter than what was
    /// parsed.
    pub fn tensor_bytes<'a, C: Content + ?Sized>(
        &self,
        all: &'a C,
        name: &str,
    ) -> Result<&'a [u8], GgufError> {
        let info = self
            .tensor(name)
            .ok_or_else(|| GgufProblem::NoTensor(name.to_owned()).in_file(self.source()))?;
        let file = all.part(info.part).unwrap_or_default();
        file.get(info.range.clone()).ok_or_else(|| {
            let (at, needed) = (info.range.start as u64, info.range.len() as u64);
            let left = (file.len() as u64).saturating_sub(at);
            GgufProblem::Truncated {
                at,
                what: format!("tensor {name}"),
                needed,
                left,
            }
            .in_file(self.sources.get(info.part).map_or("", String::as_str))
        })
    }

    /// The elements of a tensor as `f32`, row-major in [`TensorInfo::shape`].
    ///
    /// # Errors
    /// As [`Gguf::tensor_bytes`].
    pub fn tensor_f32<C: Content + ?Sized>(
        &self,
        all: &C,
        name: &str,
    ) -> Result<Vec<f32>, GgufError> {
        let bytes = self.tensor_bytes(all, name)?;
        let ggml_type = self
            .tensor(name)
            .map_or(GgmlType::F32, |info| info.ggml_type);
        Ok(super::dequantize(ggml_type, bytes))
    }
}

/// A directory entry before its offset is checked.
struct Entry {
    name: String,
    dims: Vec<usize>,
    ggml_type: GgmlType,
    size: u64,
    offset: u64,
}

impl Entry {
    fn read(reader: &mut Reader<'_>, index: usize) -> Result<Self, GgufProblem> {
        let name = reader.string(&format_args!("the name of tensor {index}"))?;
        let what = format_args!("tensor {name}");
        let dim_count = reader.u32(&what)?;
        if dim_count > MAX_DIMS {
            return Err(GgufProblem::Dims {
                name,
                dims: vec![],
                why: format!("{dim_count} dimensions, at most {MAX_DIMS} can be"),
            });
        }
        let dims = (0..dim_count)
            .map(|_| reader.u64(&what))
            .collect::<Result<Vec<u64>, _>>()?;
        let code = reader.u32(&what)?;
        let offset = reader.u64(&what)?;
        let Some(ggml_type) = GgmlType::from_code(code) else {
            return Err(GgufProblem::TensorType {
                name,
                code,
                known: GgmlType::unsupported_name(code),
            });
        };
        let wrong = |why: &str| GgufProblem::Dims {
            name: name.clone(),
            dims: dims.clone(),
            why: why.to_owned(),
        };
        if dims.contains(&0) {
            return Err(wrong("one is zero"));
        }
        let cols = dims.first().copied().unwrap_or(1);
        let block = ggml_type.block_len() as u64;
        if !cols.is_multiple_of(block) {
            return Err(wrong(&format!(
                "the first must be a multiple of {block} for {ggml_type}"
            )));
        }
        let elements = dims
            .iter()
            .try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        // As f32 too the tensor must be addressable.
        let size = elements
            .filter(|&n| {
                n.checked_mul(4)
                    .is_some_and(|bytes| isize::try_from(bytes).is_ok())
            })
            .and_then(|n| (n / block).checked_mul(ggml_type.block_bytes() as u64))
            .ok_or_else(|| wrong("too large"))?;
        let dims = dims
            .iter()
            .map(|&dim| usize::try_from(dim))
            .collect::<Result<_, _>>()
            .map_err(|_| wrong("too large"))?;
        Ok(Self {
            name,
            dims,
            ggml_type,
            size,
            offset,
        })
    }

    fn place(
        self,
        data_start: Option<u64>,
        alignment: u64,
        file_len: u64,
    ) -> Result<TensorInfo, GgufProblem> {
        let Self {
            name,
            dims,
            ggml_type,
            size,
            offset,
        } = self;
        let wrong = |why: String| GgufProblem::Offset {
            name: name.clone(),
            offset,
            why,
        };
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!(
                "not a multiple of the alignment {alignment}"
            )));
        }
        let start = data_start
            .and_then(|start| start.checked_add(offset))
            .ok_or_else(|| wrong("beyond any file".into()))?;
        let end = start
            .checked_add(size)
            .filter(|&end| end <= file_len)
            .ok_or_else(|| GgufProblem::Truncated {
                at: start,
                what: format!("tensor {name}"),
                needed: size,
                left: file_len.saturating_sub(start),
            })?;
        // `end` is at most the length of a slice, so both fit.
        Ok(TensorInfo {
            part: 0,
            range: start as usize..end as usize,
            name,
            dims,
            ggml_type,
        })
    }
}

fn check_overlap(tensors: &[TensorInfo], data_start: u64) -> Result<(), GgufProblem> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            let (name, offset) = (
                pair[1].name.clone(),
                pair[1].range.start as u64 - data_start,
            );
            return Err(GgufProblem::Offset {
                name,
                offset,
                why: format!("shares bytes with tensor {}", pair[0].name),
            });
        }
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What is being read, for errors; formatted only when one occurs.
type What<'a> = &'a dyn std::fmt::Display;

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {$(
        fn $name(&mut self, what: What<'_>) -> Result<$type, GgufProblem> {
            Ok(<$type>::from_le_bytes(self.array(what)?))
        }
    )*};
}

impl<'a> Reader<'a> {
    numbers!(u16: u16, i16: i16, u32: u32, i32: i32, f32: f32, u64: u64, i64: i64, f64: f64);

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, what: What<'_>, len: u64) -> Result<&'a [u8], GgufProblem> {
        let left = self.left();
        match usize::try_from(len).ok().filter(|&len| len <= left) {
            Some(len) => {
                let taken = &self.bytes[self.at..self.at + len];
                self.at += len;
                Ok(taken)
            }
            None => Err(GgufProblem::Truncated {
                at: self.at as u64,
                what: what.to_string(),
                needed: len,
                left: left as u64,
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: What<'_>) -> Result<[u8; N], GgufProblem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N as u64)?);
        Ok(array)
    }

    /// A count of things that take at least `min_bytes` each.
    fn count(&mut self, what: What<'_>, min_bytes: u64) -> Result<usize, GgufProblem> {
        let at = self.at as u64;
        let count = self.u64(what)?;
        let needed = count.saturating_mul(min_bytes);
        let left = self.left() as u64;
        if needed > left {
            return Err(GgufProblem::Truncated {
                at,
                what: format!("{what} of {count}"),
                needed,
                left,
            });
        }
        // At most the bytes left, which a slice holds.
        Ok(count as usize)
    }

    fn string(&mut self, what: What<'_>) -> Result<String, GgufProblem> {
        let len = self.u64(what)?;
        let at = self.at as u64;
        let bytes = self.take(what, len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(GgufProblem::NotUtf8 {
                at,
                what: what.to_string(),
            }),
        }
    }

    fn u8(&mut self, what: What<'_>) -> Result<u8, GgufProblem> {
        Ok(self.array::<1>(what)?[0])
    }

    fn i8(&mut self, what: What<'_>) -> Result<i8, GgufProblem> {
        Ok(i8::from_le_bytes(self.array(what)?))
    }

    fn bool(&mut self, what: What<'_>) -> Result<bool, GgufProblem> {
        Ok(self.u8(what)? != 0)
    }

    fn value(&mut self, what: What<'_>, code: u32) -> Result<Value, GgufProblem> {
        Ok(match code {
            0 => Value::U8(self.u8(what)?),
            1 => Value::I8(self.i8(what)?),
            2 => Value::U16(self.u16(what)?),
            3 => Value::I16(self.i16(what)?),
            4 => Value::U32(self.u32(what)?),
            5 => Value::I32(self.i32(what)?),
            6 => Value::F32(self.f32(what)?),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.array_value(what, 1)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(self.i64(what)?),
            12 => Value::F64(self.f64(what)?),
            _ => return Err(self.unknown_type(what, code)),
        })
    }

    fn array_value(&mut self, what: What<'_>, depth: usize) -> Result<Array, GgufProblem> {
        let code = self.u32(what)?;
        Ok(match code {
            0 => Array::U8(self.elements(what, 1, Self::u8)?),
            1 => Array::I8(self.elements(what, 1, Self::i8)?),
            2 => Array::U16(self.elements(what, 2, Self::u16)?),
            3 => Array::I16(self.elements(what, 2, Self::i16)?),
            4 => Array::U32(self.elements(what, 4, Self::u32)?),
            5 => Array::I32(self.elements(what, 4, Self::i32)?),
            6 => Array::F32(self.elements(what, 4, Self::f32)?),
            7 => Array::Bool(self.elements(what, 1, Self::bool)?),
            8 => Array::String(self.elements(what, 8, Self::string)?),
            9 if depth < MAX_ARRAY_DEPTH => {
                Array::Array(self.elements(what, 12, |r, what| r.array_value(what, depth + 1))?)
            }
            10 => Array::U64(self.elements(what, 8, Self::u64)?),
            11 => Array::I64(self.elements(what, 8, Self::i64)?),
            12 => Array::F64(self.elements(what, 8, Self::f64)?),
            _ => return Err(self.unknown_type(what, code)),
        })
    }

    fn elements<T>(
        &mut self,
        what: What<'_>,
        min_bytes: u64,
        mut read: impl FnMut(&mut Self, What<'_>) -> Result<T, GgufProblem>,
    ) -> Result<Vec<T>, GgufProblem> {
        let count = self.count(what, min_bytes)?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(read(self, what)?);
        }
        Ok(elements)
    }

    fn unknown_type(&self, what: What<'_>, code: u32) -> GgufProblem {
        GgufProblem::ValueType {
            at: self.at as u64 - 4,
            what: what.to_string(),
            code,
        }
    }
}

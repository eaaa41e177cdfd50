//! `TensorProto`: what an initializer holds.

use super::error::OnnxProblem;
use super::wire::Span;

/// Dimensions of a tensor that is read at all.
const MOST_DIMENSIONS: usize = 16;

/// A number format, by its code in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dtype(i64);

impl Dtype {
    const NAMES: [&'static str; 24] = [
        "UNDEFINED",
        "FLOAT",
        "UINT8",
        "INT8",
        "UINT16",
        "INT16",
        "INT32",
        "INT64",
        "STRING",
        "BOOL",
        "FLOAT16",
        "DOUBLE",
        "UINT32",
        "UINT64",
        "COMPLEX64",
        "COMPLEX128",
        "BFLOAT16",
        "FLOAT8E4M3FN",
        "FLOAT8E4M3FNUZ",
        "FLOAT8E5M2",
        "FLOAT8E5M2FNUZ",
        "UINT4",
        "INT4",
        "FLOAT4E2M1",
    ];

    fn name(self) -> String {
        let known = usize::try_from(self.0).ok();
        let known = known.and_then(|code| Self::NAMES.get(code));
        known.map_or_else(|| format!("type {}", self.0), |name| (*name).to_owned())
    }

    /// Whether values are numbers with a fraction that is read.
    pub(super) fn is_float(self) -> bool {
        matches!(self.0, 1 | 10 | 11 | 16)
    }

    /// Whether values may stand for others by a scale.
    pub(super) fn is_code(self) -> bool {
        matches!(self.0, 2..=6)
    }

    /// Whether values count or point at something, or are text.
    pub(super) fn is_index(self) -> bool {
        matches!(self.0, 6..=9 | 12 | 13)
    }

    fn size(self) -> usize {
        match self.0 {
            2 | 3 => 1,
            4 | 5 | 10 | 16 => 2,
            11 => 8,
            _ => 4,
        }
    }
}

/// An initializer, or the value of a `Constant`; its numbers are where they are in the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Number of elements.
    pub(super) len: usize,
    message: Span<'a>,
    raw: Option<&'a [u8]>,
    /// Whether numbers stand in a field for their type.
    typed: bool,
    external: bool,
    in_segments: bool,
}

fn wrong(name: &str, why: impl Into<String>) -> OnnxProblem {
    OnnxProblem::Tensor {
        name: name.into(),
        why: why.into(),
    }
}

impl<'a> Tensor<'a> {
    pub(super) fn parse(message: Span<'a>) -> Result<Self, OnnxProblem> {
        let mut dims = Vec::new();
        let mut tensor = Self {
            name: "",
            dtype: Dtype(0),
            shape: Vec::new(),
            len: 0,
            message,
            raw: None,
            typed: false,
            external: false,
            in_segments: false,
        };
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => field.integers(|dim| {
                    if dims.len() == MOST_DIMENSIONS {
                        return Err(OnnxProblem::TooMany {
                            what: "dimensions of a tensor",
                            most: MOST_DIMENSIONS,
                        });
                    }
                    dims.push(dim);
                    Ok(())
                })?,
                2 => tensor.dtype = Dtype(field.integer()?),
                3 => tensor.in_segments = true,
                4..=7 | 10 | 11 => tensor.typed = true,
                8 => tensor.name = field.text()?,
                9 => tensor.raw = Some(field.span()?.bytes),
                13 => tensor.external = true,
                14 => tensor.external |= field.integer()? == 1,
                _ => {}
            }
        }
        let shape: Option<Vec<usize>> = dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let len = |shape: &Vec<usize>| {
            let len = shape
                .iter()
                .try_fold(1_usize, |len, dim| len.checked_mul(*dim));
            // What follows counts bytes of up to 8 for an element.
            len.filter(|len| len.checked_mul(8).is_some())
        };
        let Some((shape, len)) =
            shape.and_then(|shape| Some((len(&shape)?, shape)).map(|(n, s)| (s, n)))
        else {
            let why = format!("no tensor has the dimensions {dims:?}");
            return Err(wrong(tensor.name, why));
        };
        (tensor.shape, tensor.len) = (shape, len);
        Ok(tensor)
    }

    fn wrong(&self, why: impl Into<String>) -> OnnxProblem {
        wrong(self.name, why)
    }

    /// The numbers as bytes, or nothing where they stand in the field of their type.
    fn raw(&self) -> Result<Option<&'a [u8]>, OnnxProblem> {
        if self.external {
            return Err(self.wrong(
                "its numbers are in another file (external data), which is not read: save the model as one file",
            ));
        }
        if self.in_segments {
            return Err(self.wrong("its numbers are in segments, which are not read"));
        }
        let Some(raw) = self.raw.filter(|raw| !raw.is_empty() || !self.typed) else {
            return Ok(None);
        };
        if self.typed && !raw.is_empty() {
            return Err(self.wrong("it has numbers as bytes and as fields"));
        }
        let expected = self.len * self.dtype.size();
        if raw.len() != expected {
            return Err(self.wrong(format!(
                "{:?} elements of {} take {expected} bytes, it has {}",
                self.shape,
                self.dtype.name(),
                raw.len()
            )));
        }
        Ok(Some(raw))
    }

    fn check_count(&self, count: usize) -> Result<(), OnnxProblem> {
        match count == self.len {
            true => Ok(()),
            false => Err(self.wrong(format!(
                "its shape is {:?}, which is {} elements; it has {count}",
                self.shape, self.len
            ))),
        }
    }

    /// Numbers of `N` bytes in the field `number`.
    fn typed_fixed<const N: usize>(
        &self,
        number: u64,
        value: impl Fn([u8; N]) -> f32,
    ) -> Result<Vec<f32>, OnnxProblem> {
        let each = |f: &mut dyn FnMut([u8; N])| -> Result<(), OnnxProblem> {
            for field in self.message.fields() {
                let field = field?;
                if field.number == number {
                    field.fixed(&mut *f)?;
                }
            }
            Ok(())
        };
        let mut count = 0;
        each(&mut |_| count += 1)?;
        self.check_count(count)?;
        let mut values = Vec::with_capacity(count);
        each(&mut |bytes| values.push(value(bytes)))?;
        Ok(values)
    }

    /// Numbers in the field `int32_data`, each within the bounds.
    fn typed_integers<T>(
        &self,
        [least, most]: [i64; 2],
        value: impl Fn(i64) -> T,
    ) -> Result<Vec<T>, OnnxProblem> {
        let each = |f: &mut dyn FnMut(i64) -> Result<(), OnnxProblem>| {
            for field in self.message.fields() {
                let field = field?;
                if field.number == 5 {
                    field.integers(&mut *f)?;
                }
            }
            Ok::<(), OnnxProblem>(())
        };
        let mut count = 0;
        each(&mut |number| {
            count += 1;
            match (least..=most).contains(&number) {
                true => Ok(()),
                false => Err(self.wrong(format!("{number} is no {}", self.dtype.name()))),
            }
        })?;
        self.check_count(count)?;
        let mut values = Vec::with_capacity(count);
        each(&mut |number| {
            values.push(value(number));
            Ok(())
        })?;
        Ok(values)
    }

    /// The elements in row-major order, of a type with fractions. Of `DOUBLE` the nearest f32.
    pub(super) fn floats(&self) -> Result<Vec<f32>, OnnxProblem> {
        let raw = self.raw()?;
        let half = |bits: [u8; 2]| half::f16::from_le_bytes(bits).to_f32();
        let bfloat = |bits: [u8; 2]| half::bf16::from_le_bytes(bits).to_f32();
        let double = |bits: [u8; 8]| f64::from_le_bytes(bits) as f32;
        let bits = |number: i64| (number as u16).to_le_bytes();
        const BITS: [i64; 2] = [0, u16::MAX as i64];
        match (self.dtype.0, raw) {
            (1, Some(raw)) => Ok(of_bytes(raw, f32::from_le_bytes)),
            (1, None) => self.typed_fixed(4, f32::from_le_bytes),
            (10, Some(raw)) => Ok(of_bytes(raw, half)),
            (10, None) => self.typed_integers(BITS, |number| half(bits(number))),
            (16, Some(raw)) => Ok(of_bytes(raw, bfloat)),
            (16, None) => self.typed_integers(BITS, |number| bfloat(bits(number))),
            (11, Some(raw)) => Ok(of_bytes(raw, double)),
            (11, None) => self.typed_fixed(10, double),
            _ => Err(self.wrong(format!(
                "{} where numbers with a fraction are expected (FLOAT, FLOAT16, BFLOAT16, DOUBLE)",
                self.dtype.name()
            ))),
        }
    }

    /// The elements in row-major order, of a type of whole numbers of up to 32 bits.
    pub(super) fn codes(&self) -> Result<Vec<i32>, OnnxProblem> {
        let raw = self.raw()?;
        fn bounds<T: Into<i64>>(least: T, most: T) -> [i64; 2] {
            [least.into(), most.into()]
        }
        let int = |number: i64| number as i32;
        match (self.dtype.0, raw) {
            (2, Some(raw)) => Ok(of_bytes(raw, |[byte]| i32::from(byte))),
            (3, Some(raw)) => Ok(of_bytes(raw, |[byte]| i32::from(byte as i8))),
            (4, Some(raw)) => Ok(of_bytes(raw, |b| i32::from(u16::from_le_bytes(b)))),
            (5, Some(raw)) => Ok(of_bytes(raw, |b| i32::from(i16::from_le_bytes(b)))),
            (6, Some(raw)) => Ok(of_bytes(raw, i32::from_le_bytes)),
            (2, None) => self.typed_integers(bounds(u8::MIN, u8::MAX), int),
            (3, None) => self.typed_integers(bounds(i8::MIN, i8::MAX), int),
            (4, None) => self.typed_integers(bounds(u16::MIN, u16::MAX), int),
            (5, None) => self.typed_integers(bounds(i16::MIN, i16::MAX), int),
            (6, None) => self.typed_integers(bounds(i32::MIN, i32::MAX), int),
            _ => Err(self.wrong(format!(
                "{} where whole numbers of up to 32 bits are expected",
                self.dtype.name()
            ))),
        }
    }
}

/// The caller has checked that the bytes are whole numbers of `N`.
fn of_bytes<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

//! The wire format of protocol buffers, read where it lies: fields are slices of the file, so that
//! no length in it is believed before the bytes are there, and nothing is allocated.
//!
//! <https://protobuf.dev/programming-guides/encoding/>

use super::error::OnnxProblem;

/// Bytes of the file, and where they begin in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

/// Content of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Span<'a>),
    Fixed32([u8; 4]),
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) content: Content<'a>,
    /// Where it begins in the file.
    at: usize,
}

impl<'a> Field<'a> {
    fn wrong<T>(&self, expected: &str) -> Result<T, OnnxProblem> {
        Err(OnnxProblem::Malformed {
            at: self.at,
            why: format!("field {} is no {expected}", self.number),
        })
    }

    /// A message, or packed numbers.
    pub(super) fn span(&self) -> Result<Span<'a>, OnnxProblem> {
        match self.content {
            Content::Bytes(span) => Ok(span),
            _ => self.wrong("message"),
        }
    }

    /// A text.
    pub(super) fn text(&self) -> Result<&'a str, OnnxProblem> {
        let bytes = self.span()?.bytes;
        std::str::from_utf8(bytes).or_else(|_| self.wrong("text in UTF-8"))
    }

    /// A whole number; negative ones are stored in two's complement.
    pub(super) fn integer(&self) -> Result<i64, OnnxProblem> {
        match self.content {
            Content::Varint(value) => Ok(value as i64),
            _ => self.wrong("whole number"),
        }
    }

    /// A 32-bit number.
    pub(super) fn float(&self) -> Result<f32, OnnxProblem> {
        match self.content {
            Content::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => self.wrong("32-bit number"),
        }
    }

    /// Whole numbers, packed or a single one.
    pub(super) fn integers(
        &self,
        mut each: impl FnMut(i64) -> Result<(), OnnxProblem>,
    ) -> Result<(), OnnxProblem> {
        let Content::Bytes(mut rest) = self.content else {
            return each(self.integer()?);
        };
        while !rest.bytes.is_empty() {
            each(rest.varint()? as i64)?;
        }
        Ok(())
    }

    /// Numbers of `N` bytes, packed or a single one.
    pub(super) fn fixed<const N: usize>(
        &self,
        mut each: impl FnMut([u8; N]),
    ) -> Result<(), OnnxProblem> {
        let bytes: &[u8] = match &self.content {
            Content::Bytes(span) => span.bytes,
            Content::Fixed32(bytes) if N == bytes.len() => bytes,
            Content::Fixed64(bytes) if N == bytes.len() => bytes,
            _ => return self.wrong("list of numbers of its size"),
        };
        let (numbers, rest) = bytes.as_chunks::<N>();
        if !rest.is_empty() {
            return self.wrong("list of numbers of its size");
        }
        numbers.iter().for_each(|number| each(*number));
        Ok(())
    }
}

impl<'a> Span<'a> {
    /// All bytes of a file.
    pub(super) fn file(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The fields of the message.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields(self)
    }

    fn take(&mut self, count: u64) -> Result<Span<'a>, OnnxProblem> {
        let split = usize::try_from(count).ok();
        let split = split.and_then(|count| self.bytes.split_at_checked(count));
        let Some((taken, rest)) = split else {
            return Err(OnnxProblem::Truncated {
                at: self.at,
                needed: count,
                left: self.bytes.len(),
            });
        };
        let at = self.at;
        *self = Self {
            bytes: rest,
            at: at + taken.len(),
        };
        Ok(Span { bytes: taken, at })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], OnnxProblem> {
        let taken = self.take(N as u64)?.bytes;
        let mut array = [0; N];
        array.copy_from_slice(taken);
        Ok(array)
    }

    fn varint(&mut self) -> Result<u64, OnnxProblem> {
        let at = self.at;
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(OnnxProblem::Malformed {
            at,
            why: "a number of more than 64 bits".into(),
        })
    }

    fn field(&mut self) -> Result<Field<'a>, OnnxProblem> {
        let at = self.at;
        let key = self.varint()?;
        let content = match key & 7 {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(self.array()?),
            2 => {
                let length = self.varint()?;
                Content::Bytes(self.take(length)?)
            }
            5 => Content::Fixed32(self.array()?),
            // 3 and 4 are groups, which ONNX has none of.
            kind => {
                return Err(OnnxProblem::Malformed {
                    at,
                    why: format!("a field of the unknown kind {kind}"),
                });
            }
        };
        Ok(Field {
            number: key >> 3,
            content,
            at,
        })
    }
}

/// The fields of a message in their order; ends with the first that is damaged.
pub(super) struct Fields<'a>(Span<'a>);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, OnnxProblem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.bytes.is_empty() {
            return None;
        }
        let field = self.0.field();
        if field.is_err() {
            self.0.bytes = &[];
        }
        Some(field)
    }
}

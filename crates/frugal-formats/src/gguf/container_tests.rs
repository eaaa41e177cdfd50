//! Files that break one rule each.

use super::{Gguf, GgufProblem};

/// Little-endian bytes of a file, put together by hand.
#[derive(Clone, Default)]
struct File(Vec<u8>);

impl File {
    fn header(tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut file = self.u64(text.len() as u64);
        file.0.extend(text.as_bytes());
        file
    }

    fn key(self, name: &str, value: u32) -> Self {
        self.text(name).u32(4).u32(value)
    }

    fn tensor(self, name: &str, dims: &[u64], code: u32, offset: u64) -> Self {
        let file = self.text(name).u32(dims.len() as u32);
        dims.iter()
            .fold(file, |file, &dim| file.u64(dim))
            .u32(code)
            .u64(offset)
    }

    /// Zeros up to the data section and `len` bytes of it.
    fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }

    fn error(&self) -> String {
        Gguf::parse(&self.0, "x.gguf").unwrap_err().to_string()
    }
}

#[test]
fn a_file_put_together_by_hand_is_read() {
    let file = File::header(2, 1)
        .key("general.alignment", 32)
        .tensor("a", &[32, 2], 8, 0)
        .tensor("b", &[3], 0, 96)
        .data(108);
    let gguf = Gguf::parse(&file.0, "x.gguf").unwrap();
    let a = gguf.tensor("a").unwrap();
    assert_eq!(
        (a.shape(), a.rows(), a.cols(), a.row_bytes(), a.range.len()),
        (vec![2, 32], 2, 32, 34, 68)
    );
    assert_eq!(gguf.tensor_f32(&file.0, "b").unwrap(), [0.0; 3]);
    assert_eq!(
        gguf.tensor_bytes(&file.0, "c").unwrap_err().problem,
        GgufProblem::NoTensor("c".into())
    );
    assert!(matches!(
        gguf.tensor_bytes(&file.0[..200], "b").unwrap_err().problem,
        GgufProblem::Truncated { .. }
    ));
    let empty = Gguf::parse(&File::header(0, 0).0, "x.gguf").unwrap();
    assert!(empty.tensors().is_empty() && empty.metadata().is_empty());
}

#[test]
fn each_broken_rule_is_named() {
    let key = |name: &str| File::header(0, 1).text(name);
    let tensor =
        |dims: &[u64], code, offset| File::header(1, 0).tensor("a", dims, code, offset).data(128);
    let cases = [
        (File::default(), "not a GGUF file"),
        (
            File(b"PK\x03\x04".to_vec()),
            "not a GGUF file: it starts with [50, 4b, 03, 04]",
        ),
        (
            File(b"GGUF".to_vec()),
            "byte 4: the version needs 4 bytes, the file has 0 left",
        ),
        (
            File(b"GGUF".to_vec()).u32(1).u64(0).u64(0),
            "version 1 is not supported",
        ),
        (
            File(b"GGUF".to_vec()).u32(0x0300_0000).u64(0).u64(0),
            "little-endian",
        ),
        (
            File::header(u64::MAX, 0),
            "the tensor count of 18446744073709551615",
        ),
        (
            File::header(0, 1 << 40),
            "the metadata count of 1099511627776",
        ),
        (
            key("k").u32(13).u32(0),
            "byte 33: metadata key k has the unknown value type 13",
        ),
        (
            key("k").u32(8).u64(u64::MAX),
            "metadata key k needs 18446744073709551615 bytes",
        ),
        (
            key("k").u32(9).u32(8).u64(u64::MAX / 8),
            "metadata key k of 2305843009213693951",
        ),
        (
            key("k")
                .u32(9)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(1)
                .u32(9)
                .u64(0),
            "value type 9",
        ),
        (
            File::header(0, 2).key("k", 1).key("k", 2),
            "metadata key \"k\" occurs twice",
        ),
        (
            File::header(0, 1).key("general.alignment", 0),
            "general.alignment is U32(0)",
        ),
        (
            File::header(0, 1).key("general.alignment", 24),
            "general.alignment is U32(24)",
        ),
        (
            tensor(&[1; 5], 0, 0),
            "tensor a: dimensions []: 5 dimensions, at most 4",
        ),
        (
            tensor(&[4, 0], 0, 0),
            "tensor a: dimensions [4, 0]: one is zero",
        ),
        (tensor(&[33], 8, 0), "must be a multiple of 32 for Q8_0"),
        (tensor(&[1 << 40, 1 << 40], 0, 0), "too large"),
        (
            tensor(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], 1, 0),
            "too large",
        ),
        (
            tensor(&[4], 10, 0),
            "tensor a: type 10 (Q2_K) is not supported; re-quantise the model to one of F32, F16",
        ),
        (tensor(&[4], 777, 0), "type 777 (unknown)"),
        (
            tensor(&[4], 0, 8),
            "data offset 8: not a multiple of the alignment 32",
        ),
        (tensor(&[4], 0, u64::MAX - 31), "beyond any file"),
        (
            tensor(&[64], 0, 0),
            "tensor a needs 256 bytes, the file has 128 left",
        ),
        (tensor(&[4], 0, 1 << 40), "the file has 0 left"),
        (
            File::header(2, 0)
                .tensor("a", &[1], 0, 0)
                .tensor("a", &[1], 0, 32)
                .data(64),
            "tensor \"a\" occurs twice",
        ),
        (
            File::header(2, 0)
                .tensor("a", &[9], 0, 0)
                .tensor("b", &[1], 0, 32)
                .data(64),
            "tensor b: data offset 32: shares bytes with tensor a",
        ),
    ];
    for (file, says) in cases {
        let error = file.error();
        assert!(
            error.starts_with("x.gguf: ") && error.contains(says),
            "{error}\nshould say: {says}"
        );
    }
    let mut file = key("kk").u32(4).u32(0);
    file.0[32] = 0xff;
    assert!(
        file.error()
            .contains("byte 32: metadata key 0 is not UTF-8"),
        "{}",
        file.error()
    );
}

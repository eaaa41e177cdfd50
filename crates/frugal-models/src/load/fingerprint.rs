//! What tells one set of weights from another.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes hashed at a time, by one thread.
const CHUNK: usize = 1 << 20;

/// SHA-256 of the SHA-256 of each mebibyte of these files, whose sizes count too: as fast as the
/// processors together, and different for any change of a byte.
pub(super) fn fingerprint<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update((file.len() as u64).to_le_bytes());
        let chunks: Vec<_> = file.par_chunks(CHUNK).map(Sha256::digest).collect();
        chunks.iter().for_each(|chunk| hash.update(chunk));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_and_any_boundary_counts() {
        let bytes = vec![7_u8; 3 * CHUNK + 5];
        let whole = fingerprint([bytes.as_slice()]);
        assert_eq!(whole.len(), 64);
        for at in [0, CHUNK - 1, CHUNK, 3 * CHUNK + 4] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(fingerprint([other.as_slice()]), whole, "byte {at}");
        }
        let (head, tail) = bytes.split_at(CHUNK);
        assert_ne!(fingerprint([head, tail]), whole);
        // hashlib: sha256((1).to_bytes(8, "little") + sha256(b"a").digest())
        assert_eq!(
            fingerprint([b"a".as_slice()]),
            "cd23d09c4cb76daf5a50f172c31576b20a8e77c27dbe9adca5afcc5d8a1ba164"
        );
    }
}

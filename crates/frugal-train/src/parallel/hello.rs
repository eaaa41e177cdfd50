//! How two processes get to know each other: who they are, that they know the run's secret, that
//! they belong to the same run. What they say later is neither encrypted nor signed.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::frame::{self, FrameError, MAX_REASON};

const MAGIC: [u8; 8] = *b"FRUGALDP";
/// Version of everything that processes say to each other.
const VERSION: u16 = 2;
const HELLO: usize = 8 + 2 + 4 + 4 + 2 + 32 + 32;

/// What all processes of a run agree on.
#[derive(Clone, Debug)]
pub struct RunIdentity {
    /// Number of processes.
    pub world: usize,
    /// What only they know.
    pub secret: Vec<u8>,
    /// Hash of the settings.
    pub config: [u8; 32],
}

/// A process that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) rank: usize,
    /// Where it listens for others.
    pub(super) port: u16,
}

/// Why two processes do not come together.
#[derive(Debug)]
pub(super) enum HelloError {
    /// Not a process of this run: a stranger, another version, or one that does not know the secret.
    /// It may be ignored.
    Stranger(String),
    /// A process of this run that does not fit: it ends the run.
    Refused(String),
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> Self {
        Self::Stranger(error.to_string())
    }
}

impl From<FrameError> for HelloError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error.into(),
            FrameError::Aborted(reason) => Self::Refused(reason),
            FrameError::Unexpected(found) => Self::Stranger(format!("it sent {found}")),
        }
    }
}

/// Bytes that nobody can guess. The standard library seeds its hash maps from the operating system.
pub fn random_bytes() -> [u8; 32] {
    let mut hash = Sha256::new();
    for _ in 0..4 {
        let state = RandomState::new();
        for i in 0..4u64 {
            let mut hasher = state.build_hasher();
            hasher.write_u64(i);
            hash.update(hasher.finish().to_le_bytes());
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    hash.update(now.map_or(0, |d| d.as_nanos()).to_le_bytes());
    hash.update(std::process::id().to_le_bytes());
    hash.finalize().into()
}

/// HMAC with SHA-256 (RFC 2104).
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new();
    inner.update(block.map(|b| b ^ 0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new();
    outer.update(block.map(|b| b ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// Whether two proofs are equal, in the same time for all of them.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

/// Introduces this process to one that waits in [`welcome`].
///
/// # Errors
/// The other does not know the secret or does not let this one in.
pub(super) fn introduce(
    mut stream: impl Read + Write,
    me: Guest,
    identity: &RunIdentity,
) -> Result<(), HelloError> {
    let nonce = random_bytes();
    let mut hello = Vec::with_capacity(HELLO);
    hello.extend(MAGIC);
    hello.extend(VERSION.to_le_bytes());
    hello.extend((identity.world as u32).to_le_bytes());
    hello.extend((me.rank as u32).to_le_bytes());
    hello.extend(me.port.to_le_bytes());
    hello.extend(identity.config);
    hello.extend(nonce);
    stream.write_all(&hello)?;
    stream.flush()?;
    let (mut theirs, mut proof) = ([0; 32], [0; 32]);
    stream.read_exact(&mut theirs)?;
    stream.read_exact(&mut proof)?;
    if !same(&proof, &hmac(&identity.secret, &[b"host", &hello, &theirs])) {
        let reason = "the process there does not know the secret of this run";
        return Err(HelloError::Refused(reason.into()));
    }
    stream.write_all(&hmac(&identity.secret, &[b"guest", &hello, &theirs]))?;
    stream.flush()?;
    frame::read_into(&mut stream, &mut [])?;
    Ok(())
}

/// Lets a process in that introduces itself.
///
/// # Errors
/// A stranger, which may be ignored, or a process of this run that does not fit, which is told why.
pub(super) fn welcome(
    mut stream: impl Read + Write,
    identity: &RunIdentity,
) -> Result<Guest, HelloError> {
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello)?;
    let stranger = |reason: String| Err(HelloError::Stranger(reason));
    if hello[..8] != MAGIC {
        return stranger("it does not speak this protocol".into());
    }
    let number = |at: usize| {
        let bytes = [hello[at], hello[at + 1], hello[at + 2], hello[at + 3]];
        u32::from_le_bytes(bytes) as usize
    };
    let nonce = random_bytes();
    stream.write_all(&nonce)?;
    stream.write_all(&hmac(&identity.secret, &[b"host", &hello, &nonce]))?;
    stream.flush()?;
    let mut proof = [0; 32];
    stream.read_exact(&mut proof)?;
    if !same(&proof, &hmac(&identity.secret, &[b"guest", &hello, &nonce])) {
        return stranger("it does not know the secret of this run".into());
    }
    let version = u16::from_le_bytes([hello[8], hello[9]]);
    let (world, rank) = (number(10), number(14));
    let refusal = if version != VERSION {
        Some(format!(
            "it speaks version {version}, this process {VERSION}"
        ))
    } else if world != identity.world {
        Some(format!(
            "it expects {world} processes, this run has {}",
            identity.world
        ))
    } else if rank >= world {
        Some(format!("there is no rank {rank} of {world}"))
    } else if hello[20..52] != identity.config {
        Some("its settings are not those of rank 0".into())
    } else {
        None
    };
    if let Some(reason) = refusal {
        refuse(&mut stream, &reason);
        return Err(HelloError::Refused(format!("rank {rank}: {reason}")));
    }
    frame::write(&mut stream, frame::DATA, &[])?;
    Ok(Guest {
        rank,
        port: u16::from_le_bytes([hello[18], hello[19]]),
    })
}

/// Tells why; that it cannot be told does not matter.
pub(super) fn refuse(stream: impl Write, reason: &str) {
    let bytes = reason.as_bytes();
    let _ = frame::write(stream, frame::ABORT, &bytes[..bytes.len().min(MAX_REASON)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test case 2 of RFC 4231.
    #[test]
    fn the_proof_is_hmac_sha256() {
        let found = hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        let hex: String = found.iter().map(|b| format!("{b:02x}")).collect();
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex, expected);
        // Test case 6: a key longer than a block.
        let found = hmac(
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"],
        );
        assert_eq!(found[..4], [0x60, 0xe4, 0x31, 0x59]);
    }

    #[test]
    fn random_bytes_do_not_repeat() {
        let all: std::collections::BTreeSet<[u8; 32]> = (0..100).map(|_| random_bytes()).collect();
        assert_eq!(all.len(), 100);
    }
}

//! Messages on a stream: a kind, a length, the bytes. Lengths are checked before anything is
//! allocated for them.

use std::io::{self, Read, Write};

/// A part of the work.
pub(super) const DATA: u8 = 1;
/// Why the sender ends the run.
pub(super) const ABORT: u8 = 2;
/// Longest reason, in bytes.
pub(super) const MAX_REASON: usize = 4096;
const HEADER: usize = 9;

/// What arrived instead of the expected.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The stream failed.
    Io(io::Error),
    /// The sender ends the run.
    Aborted(String),
    /// A message of another kind or length.
    Unexpected(String),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes a message.
pub(super) fn write(mut to: impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[0] = kind;
    header[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(bytes)?;
    to.flush()
}

/// The length of the next message of data.
fn header(mut from: impl Read) -> Result<u64, FrameError> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let mut length = [0; 8];
    length.copy_from_slice(&header[1..]);
    let length = u64::from_le_bytes(length);
    match header[0] {
        DATA => Ok(length),
        ABORT if length <= MAX_REASON as u64 => {
            let mut reason = vec![0; length as usize];
            from.read_exact(&mut reason)?;
            Err(FrameError::Aborted(
                String::from_utf8_lossy(&reason).into_owned(),
            ))
        }
        kind => Err(FrameError::Unexpected(format!(
            "a message of kind {kind} with {length} bytes"
        ))),
    }
}

/// Reads a message of exactly this length.
pub(super) fn read_into(mut from: impl Read, into: &mut [u8]) -> Result<(), FrameError> {
    let length = header(&mut from)?;
    if length != into.len() as u64 {
        return Err(FrameError::Unexpected(format!("{length} bytes")));
    }
    from.read_exact(into)?;
    Ok(())
}

/// Reads a message of at most `most` bytes.
pub(super) fn read(mut from: impl Read, most: u64) -> Result<Vec<u8>, FrameError> {
    let length = header(&mut from)?;
    if length > most {
        return Err(FrameError::Unexpected(format!("{length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let mut stream = Vec::new();
        write(&mut stream, DATA, b"abc").unwrap();
        write(&mut stream, DATA, b"").unwrap();
        write(&mut stream, ABORT, b"no more").unwrap();
        let mut reader = stream.as_slice();
        let mut three = [0; 3];
        read_into(&mut reader, &mut three).unwrap();
        assert_eq!(&three, b"abc");
        assert_eq!(read(&mut reader, 10).unwrap(), b"");
        let aborted = read(&mut reader, 10).unwrap_err();
        assert!(matches!(aborted, FrameError::Aborted(reason) if reason == "no more"));
    }

    #[test]
    fn lengths_are_refused_before_anything_is_allocated() {
        let mut stream = vec![DATA];
        stream.extend(u64::MAX.to_le_bytes());
        let unexpected = |error| matches!(error, FrameError::Unexpected(_));
        assert!(unexpected(read(stream.as_slice(), 100).unwrap_err()));
        assert!(unexpected(
            read_into(stream.as_slice(), &mut [0; 4]).unwrap_err()
        ));
        stream[0] = ABORT;
        assert!(unexpected(read(stream.as_slice(), u64::MAX).unwrap_err()));
        stream[0] = 77;
        assert!(unexpected(read(stream.as_slice(), u64::MAX).unwrap_err()));
        let torn = read(&[DATA, 3, 0][..], 100).unwrap_err();
        assert!(matches!(torn, FrameError::Io(_)));
    }
}

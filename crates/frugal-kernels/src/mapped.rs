//! Files mapped into memory, as shared read-only bytes.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;

/// Maps a whole file; the pages are read when touched and may be dropped by the system at any time.
///
/// # Errors
/// When the file cannot be opened or mapped, or is a pipe or a device.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    frugal_core::fs::regular(path)?;
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Changing a model file while it is in use is
    // outside the contract of every program that maps files; the writers of this project replace
    // files by renaming, which leaves the mapped inode as it was.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

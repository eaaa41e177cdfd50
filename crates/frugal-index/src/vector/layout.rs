//! Where everything is in a file of vectors.
//!
//! ```text
//! 0   8 bytes  magic
//! 8   u32      version
//! 12  u32      dimension
//! 16  u64      rows
//! 24  u8, u8   metric, encoding
//! 28  u32      rows of a block
//! 32  u32      CRC-32C of the table of checksums
//! 60  u32      CRC-32C of the bytes before
//! ```
//!
//! Sections follow, each at a multiple of 64 bytes: keys (u64), scales (f32; int8 and binary), squared
//! lengths (f32; L2), numbers (f32, f16 or i8), signs (u64; binary), and the table: a CRC-32C of each
//! block, over its part of each section in this order. Numbers are little-endian.

use std::ops::Range;

use super::kind::{Encoding, MOST_NUMBERS, Metric};

pub(super) const MAGIC: &[u8; 8] = b"FRGLVECS";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 64;
/// Rows that are checked and searched at a time.
pub(super) const BLOCK: usize = 1024;
const ALIGN: usize = 64;

/// Kind and number of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) dimension: usize,
    pub(super) rows: usize,
    pub(super) metric: Metric,
    pub(super) encoding: Encoding,
}

/// Sections with an entry for each row, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Keys,
    Scales,
    Squares,
    Numbers,
    Signs,
}

impl Section {
    pub(super) const ALL: [Self; 5] = [
        Self::Keys,
        Self::Scales,
        Self::Squares,
        Self::Numbers,
        Self::Signs,
    ];
}

impl Shape {
    /// Words of 64 signs.
    pub(super) fn words(self) -> usize {
        self.dimension.div_ceil(64)
    }

    /// Bytes of a row in a section.
    pub(super) fn row_bytes(self, section: Section) -> usize {
        let scaled = matches!(self.encoding, Encoding::Int8 | Encoding::Binary);
        match section {
            Section::Keys => 8,
            Section::Scales if scaled => 4,
            Section::Squares if self.metric == Metric::L2 => 4,
            Section::Numbers => match self.encoding {
                Encoding::F32 => self.dimension * 4,
                Encoding::F16 => self.dimension * 2,
                Encoding::Int8 | Encoding::Binary => self.dimension,
            },
            Section::Signs if self.encoding == Encoding::Binary => self.words() * 8,
            Section::Scales | Section::Squares | Section::Signs => 0,
        }
    }

    pub(super) fn blocks(self) -> usize {
        self.rows.div_ceil(BLOCK)
    }

    /// Where a section is; `None` if it would not fit into memory.
    pub(super) fn section(self, wanted: Section) -> Option<Range<usize>> {
        let mut start = HEADER;
        for section in Section::ALL {
            let end = self
                .rows
                .checked_mul(self.row_bytes(section))?
                .checked_add(start)?;
            if section == wanted {
                return Some(start..end);
            }
            start = end.checked_next_multiple_of(ALIGN)?;
        }
        None
    }

    /// Where the checksums are, which is the end of the file.
    pub(super) fn table(self) -> Option<Range<usize>> {
        let start = self
            .section(Section::Signs)?
            .end
            .checked_next_multiple_of(ALIGN)?;
        Some(start..start.checked_add(self.blocks().checked_mul(4)?)?)
    }

    pub(super) fn header(self, table: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.dimension as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.rows as u64).to_le_bytes());
        bytes[24] = self.metric.code();
        bytes[25] = self.encoding.code();
        bytes[28..32].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        bytes[32..36].copy_from_slice(&crc32c::crc32c(table).to_le_bytes());
        let check = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads the header of a whole file and checks that the file has the length that it says.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let header = file
            .get(..HEADER)
            .ok_or("the file is too short for a header")?;
        if &header[..8] != MAGIC {
            return Err("not a file of vectors".into());
        }
        if u32_at(header, 60) != crc32c::crc32c(&header[..60]) {
            return Err("the header does not match its checksum".into());
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(format!(
                "format version {version}, but this program reads version {VERSION}"
            ));
        }
        let rows = u64::from(u32_at(header, 16)) | u64::from(u32_at(header, 20)) << 32;
        let shape = Self {
            dimension: u32_at(header, 12) as usize,
            rows: usize::try_from(rows).map_err(|_| "too many rows")?,
            metric: Metric::from_code(header[24]).ok_or("an unknown metric")?,
            encoding: Encoding::from_code(header[25]).ok_or("an unknown encoding")?,
        };
        let sound = (1..=MOST_NUMBERS).contains(&shape.dimension)
            && u32::try_from(shape.rows).is_ok()
            && u32_at(header, 28) as usize == BLOCK;
        let table = shape.table().filter(|_| sound);
        let table = table.ok_or("the header holds impossible sizes")?;
        if table.end != file.len() {
            return Err(format!(
                "{} bytes long, but the header says {}",
                file.len(),
                table.end
            ));
        }
        if crc32c::crc32c(&file[table]) != u32_at(header, 32) {
            return Err("the table of checksums does not match its checksum".into());
        }
        Ok(shape)
    }
}

/// Little-endian; the place is within the bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

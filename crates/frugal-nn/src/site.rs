//! Sites: the places of a backbone that a method can act on, known from the configuration alone.

use std::collections::HashMap;

/// Index of a site in its backbone's [`SiteTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

impl SiteId {
    /// Position in the table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What kind of parameters a site holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear layer stored `[d_out, d_in]`.
    Linear,
    /// A linear layer that files store transposed, `[d_in, d_out]` (GPT-2).
    Conv1d,
    /// The output head over the vocabulary.
    LmHead,
    /// A table of rows, `[rows, d]`.
    Embedding,
    /// Gain, and for layer norm bias, of a normalisation.
    Norm,
    /// A depth-wise convolution, stored `[d_out, 1, d_in]`: `d_in` is the number of its taps.
    Conv,
    /// A convolution over images whose windows do not overlap, computed as a linear layer of each
    /// window: stored `[d_out, channels, height, width]`.
    Conv2d,
    /// A tensor of no layer, stored under its path alone: `[d_out, d_in]`, or `[d_out]`.
    Param,
}

impl SiteKind {
    /// Whether `all-linear` covers it: every linear layer but the output head.
    pub fn is_inner_linear(self) -> bool {
        matches!(self, Self::Linear | Self::Conv1d)
    }

    /// Whether it is a matrix that low-rank and similar changes can act on: a linear layer, the
    /// head, a table.
    pub fn is_matrix(self) -> bool {
        matches!(
            self,
            Self::Linear | Self::Conv1d | Self::LmHead | Self::Embedding
        )
    }
}

/// One site.
#[derive(Clone, Debug)]
pub struct SiteInfo {
    /// Path in the Hugging Face model, for example `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Kind of parameters.
    pub kind: SiteKind,
    /// Block number, where it belongs to one.
    pub layer: Option<usize>,
    /// Input width; for a table its number of rows; for a norm 1; for a convolution its taps.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// Whether the weight is another site's (a head tied to the token table).
    pub tied: bool,
    /// Whether a file may lack it (a pooler).
    pub optional: bool,
    /// Whether it is the table that token ids are looked up in.
    pub token_table: bool,
    /// Whether its output is added to the residual stream, where fresh weights are drawn narrower.
    pub writes_to_residual: bool,
    /// Whether files have a bare parameter as a vector.
    pub is_vector: bool,
    /// Blocks of equally many rows that files have a bare parameter in: `[blocks, d_out / blocks,
    /// d_in]`.
    pub blocks: Option<usize>,
    /// Whether it is a bare parameter that follows the data without a gradient: a mean or variance
    /// of batch normalisation.
    pub is_statistic: bool,
    /// Shape of the weight in files, where it does not follow from the kind: that of a kernel over
    /// images, or of a parameter of more dimensions.
    pub stored: Option<Vec<usize>>,
}

impl SiteInfo {
    /// A site of its own weight, without any of the flags.
    pub fn new(
        path: impl Into<String>,
        kind: SiteKind,
        layer: Option<usize>,
        [d_in, d_out]: [usize; 2],
        has_bias: bool,
    ) -> Self {
        Self {
            path: path.into(),
            kind,
            layer,
            d_in,
            d_out,
            has_bias,
            tied: false,
            optional: false,
            token_table: false,
            writes_to_residual: false,
            is_vector: false,
            blocks: None,
            is_statistic: false,
            stored: None,
        }
    }

    /// Number of its own parameters; statistics of the data are none.
    pub fn num_parameters(&self) -> usize {
        if self.is_statistic {
            return 0;
        }
        let weight = if self.tied { 0 } else { self.d_in * self.d_out };
        weight + if self.has_bias { self.d_out } else { 0 }
    }

    /// What files call its weight.
    pub fn weight_name(&self) -> String {
        match self.kind {
            SiteKind::Param => self.path.clone(),
            _ => format!("{}.weight", self.path),
        }
    }

    /// Shape of its weight in files.
    pub fn stored_shape(&self) -> Vec<usize> {
        if let Some(shape) = &self.stored {
            return shape.clone();
        }
        match self.kind {
            SiteKind::Norm => vec![self.d_out],
            SiteKind::Conv1d | SiteKind::Embedding => vec![self.d_in, self.d_out],
            SiteKind::Linear | SiteKind::LmHead | SiteKind::Conv2d => {
                vec![self.d_out, self.d_in]
            }
            SiteKind::Conv => vec![self.d_out, 1, self.d_in],
            SiteKind::Param if self.is_vector => vec![self.d_out],
            SiteKind::Param => match self.blocks {
                Some(blocks) => vec![blocks, self.d_out / blocks.max(1), self.d_in],
                None => vec![self.d_out, self.d_in],
            },
        }
    }

    /// Last component of the path, for example `q_proj`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// All sites of a backbone in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct SiteTable {
    sites: Vec<SiteInfo>,
    by_path: HashMap<String, SiteId>,
}

impl SiteTable {
    /// These sites, in this order.
    pub fn of(sites: Vec<SiteInfo>) -> Self {
        let by_path = sites
            .iter()
            .zip(0..)
            .map(|(site, i)| (site.path.clone(), SiteId(i)))
            .collect();
        Self { sites, by_path }
    }

    /// All sites.
    pub fn iter(&self) -> impl Iterator<Item = (SiteId, &SiteInfo)> {
        self.sites
            .iter()
            .enumerate()
            .map(|(i, s)| (SiteId(i as u32), s))
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// A site's description.
    pub fn info(&self, id: SiteId) -> &SiteInfo {
        &self.sites[id.index()]
    }

    /// The site at this path.
    pub fn find(&self, path: &str) -> Option<SiteId> {
        self.by_path.get(path).copied()
    }

    /// Parameters of the whole backbone.
    pub fn num_parameters(&self) -> usize {
        self.sites.iter().map(SiteInfo::num_parameters).sum()
    }
}

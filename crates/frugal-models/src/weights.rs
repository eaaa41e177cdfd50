//! From files to a backbone's frozen tensors.

use std::str::FromStr;
use std::sync::Arc;

use burn::prelude::*;
use frugal_formats::gguf::GgmlType;
use frugal_kernels::{ActivationQuant, Packed, Sparse};
use frugal_nn::layers::{Conv, Embedding, Factored, Linear, Norm, Param, Weight};
use frugal_nn::site::{SiteInfo, SiteKind, SiteTable};
use frugal_nn::{BackboneInfo, Correction, ModelError, to_vec};
use serde::{Deserialize, Serialize};

use crate::loftq::{self, Loftq};
use crate::names::{FileNames, check_tied, factor_names, hints, unexpected};
use crate::source::{Loaded, WeightSource};

/// How the matrices of a model are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// Single precision.
    #[default]
    None,
    /// As the file has them: in its own codes where it is quantised.
    Stored,
    /// 16 bits of single precision's range; products round their other factor to 16 bits too and
    /// sum in single precision.
    Bf16,
    /// 8 bits with a scale for each row.
    Int8,
    /// 4-bit NormalFloat in groups of 64 (QLoRA).
    Nf4,
    /// The same with scales of 8 bits (QLoRA's double quantisation).
    Nf4Double,
    /// Matrices of which half or more is zero without the zeros, others in single precision;
    /// nothing is rounded.
    Sparse,
    /// GGUF's 8 bits in groups of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGUF's 4 bits in groups of 32.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// GGUF's 4 bits in groups of 32 with a minimum.
    #[serde(rename = "q4_1")]
    Q4_1,
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = "none, stored, bf16, int8, nf4, nf4_double, q8_0, q4_0, q4_1, sparse";
        serde_json::from_value(name.into())
            .map_err(|_| format!("unknown way to hold weights; known: {known}"))
    }
}

impl Quantize {
    /// Bytes of `rows` x `cols` elements; the token table and the output head are never below 8
    /// bits.
    pub fn bytes(self, rows: usize, cols: usize, table: bool) -> usize {
        let bits = match self {
            // How many zeros there are is not known before the weights are read.
            Self::None | Self::Stored | Self::Sparse => return 4 * rows * cols,
            Self::Bf16 => 16,
            Self::Q8_0 => 34 * 8 / 32,
            Self::Int8 => return rows * (cols + 4),
            _ if table => return rows * (cols + 4),
            Self::Nf4 | Self::Q4_0 => return rows * cols * 9 / 16,
            Self::Nf4Double => return rows * cols * 33 / 64 + rows * cols / 4096,
            Self::Q4_1 => 5,
        };
        rows * cols * bits / 8
    }
}

/// How a model is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How matrices are held.
    pub quantize: Quantize,
    /// How products with packed matrices are computed.
    pub activations: ActivationQuant,
    /// Maps whose rounding is made up for by a low-rank pair; see [`Loftq`].
    pub loftq: Option<Arc<Loftq>>,
}

impl LoadOptions {
    /// What suits generation: matrices as stored, products of integers where they are packed.
    pub fn for_generation() -> Self {
        Self {
            quantize: Quantize::Stored,
            activations: ActivationQuant::Int8,
            ..Self::default()
        }
    }
}

/// Builds frozen parts from a source after checking that every expected tensor is there with its
/// shape.
pub struct WeightLoader<'a> {
    source: &'a dyn WeightSource,
    sites: &'a SiteTable,
    device: Device,
    names: FileNames,
    optional_missing: Vec<String>,
    options: LoadOptions,
}

impl<'a> WeightLoader<'a> {
    /// Checks the whole file against the sites first, so that nothing is read from a file that does
    /// not fit.
    ///
    /// # Errors
    /// [`ModelError::Load`] with the complete list of missing and mis-shaped tensors.
    pub fn new(
        source: &'a dyn WeightSource,
        info: &BackboneInfo,
        sites: &'a SiteTable,
        device: &Device,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let names = FileNames::of(source, info, sites);
        let mut loader = Self {
            source,
            sites,
            device: device.clone(),
            names,
            optional_missing: Vec::new(),
            options,
        };
        loader.check(info)?;
        Ok(loader)
    }

    /// The plain device that the tensors go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Paths of optional sites that the file lacks (a pooler).
    pub fn missing_optional(&self) -> &[String] {
        &self.optional_missing
    }

    fn file_name(&self, name: &str) -> String {
        self.names.in_file(name)
    }

    fn expected(&self) -> Vec<(String, Vec<usize>, bool)> {
        let mut all = Vec::new();
        for (_, site) in self.sites.iter().filter(|(_, s)| !s.tied) {
            if let Some(rank) = self.factored_rank(site) {
                let [l, r] = factor_names(&site.path);
                all.push((l, vec![rank, site.d_in], false));
                all.push((r, vec![site.d_out, rank], false));
                if site.has_bias {
                    all.push((format!("{}.bias", site.path), vec![site.d_out], false));
                }
                continue;
            }
            all.push((site.weight_name(), site.stored_shape(), site.optional));
            if site.has_bias {
                all.push((
                    format!("{}.bias", site.path),
                    vec![site.d_out],
                    site.optional,
                ));
            }
        }
        all
    }

    /// Rank of a layer that the source holds as two thin matrices.
    fn factored_rank(&self, site: &SiteInfo) -> Option<usize> {
        let whole = self.file_name(&format!("{}.weight", site.path));
        if !site.kind.is_inner_linear() || self.source.shape(&whole).is_some() {
            return None;
        }
        let [l, _] = factor_names(&site.path);
        self.source.shape(&self.file_name(&l))?.first().copied()
    }

    fn check(&mut self, info: &BackboneInfo) -> Result<(), ModelError> {
        let mut report = frugal_formats::safetensors::LoadReport::default();
        for (name, shape, optional) in self.expected() {
            report.expected.push(name.clone());
            match self.source.shape(&self.file_name(&name)) {
                None if optional => self.optional_missing.push(name),
                None => report.missing.push(name),
                Some(found) if found != shape => report.mis_shaped.push((name, shape, found)),
                Some(_) => {}
            }
        }
        let unexpected = unexpected(self.source, info, self.sites);
        report.unexpected = unexpected.refused;
        if report.is_exact() {
            return check_tied(self.source, info, self.sites, &self.names);
        }
        report.hints = hints(&report, info);
        Err(ModelError::Load {
            source_name: self.source.describe(),
            report: Box::new(report),
        })
    }

    fn matrix(&self, path: &str) -> Result<Tensor<2>, ModelError> {
        let name = self.file_name(&format!("{path}.weight"));
        Ok(match self.source.load(&name)? {
            Loaded::Data(data) => Tensor::from_data(data, &self.device),
            Loaded::Matrix(tensor) => tensor,
            Loaded::Vector(_) => {
                return Err(ModelError::MissingTensor {
                    source_name: self.source.describe(),
                    name,
                });
            }
        })
    }

    fn vector(&self, name: &str) -> Result<Tensor<1>, ModelError> {
        let name = self.file_name(name);
        Ok(match self.source.load(&name)? {
            Loaded::Data(data) => Tensor::from_data(data, &self.device),
            Loaded::Vector(tensor) => tensor,
            Loaded::Matrix(_) => {
                return Err(ModelError::MissingTensor {
                    source_name: self.source.describe(),
                    name,
                });
            }
        })
    }

    fn site(&self, path: &str) -> frugal_nn::SiteId {
        self.sites
            .find(path)
            .expect("backbones ask for paths of their own site table")
    }

    /// A linear layer with its bias if the site has one.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn linear(&mut self, path: &str) -> Result<Linear, ModelError> {
        let site = self.site(path);
        let info = self.sites.info(site);
        let bias = if info.has_bias {
            Some(self.vector(&format!("{path}.bias"))?)
        } else {
            None
        };
        let weight = match self.factored_rank(info) {
            // Each of the two is held as the options want it; neither is stored transposed.
            Some(_) => Weight::Factored(Arc::new(Factored {
                l: self.weight(&format!("{path}.0"), SiteKind::Linear)?,
                r: self.weight(&format!("{path}.1"), SiteKind::Linear)?,
            })),
            None => self.weight(path, info.kind)?,
        };
        Ok(Linear { site, weight, bias })
    }

    /// A matrix `[d_out, d_in]` as the options want it held.
    fn weight(&self, path: &str, kind: SiteKind) -> Result<Weight, ModelError> {
        let dense = || {
            let matrix = self.matrix(path)?;
            Ok::<_, ModelError>(if kind == SiteKind::Conv1d {
                contiguous(matrix.transpose())
            } else {
                matrix
            })
        };
        if self.options.quantize == Quantize::Sparse && kind.is_inner_linear() {
            return Ok(without_zeros(dense()?));
        }
        let packed: Option<(Packed, Option<Correction>)> = match self.options.quantize {
            Quantize::None | Quantize::Sparse => None,
            Quantize::Stored => self
                .source
                .load_packed(&self.file_name(&format!("{path}.weight")))?
                .map(|packed| (packed, None)),
            quantize => {
                let matrix = dense()?;
                let cols = matrix.dims()[1];
                let table = matches!(kind, SiteKind::LmHead | SiteKind::Embedding);
                let round = |values: &[f32]| pack(quantize, values, cols, table);
                let loftq = self
                    .options
                    .loftq
                    .as_ref()
                    .filter(|_| kind.is_inner_linear());
                Some(
                    match loftq.and_then(|loftq| Some((loftq, *loftq.ranks.get(path)?))) {
                        Some((loftq, rank)) => {
                            let (packed, correction) =
                                loftq::round(&to_vec(matrix), cols, rank, loftq.iterations, round);
                            (packed, Some(correction))
                        }
                        None => (round(&to_vec(matrix)), None),
                    },
                )
            }
        };
        Ok(match packed {
            Some((packed, correction)) => Weight::Packed {
                packed: Arc::new(packed.with_activations(self.options.activations)),
                device: self.device.clone(),
                correction: correction.map(Arc::new),
            },
            None => Weight::Dense(dense()?),
        })
    }

    /// A linear layer that the file may lack.
    ///
    /// # Errors
    /// When the tensor is there but cannot be read.
    pub fn optional_linear(&mut self, path: &str) -> Result<Option<Linear>, ModelError> {
        if self
            .optional_missing
            .iter()
            .any(|name| name.starts_with(path))
        {
            Ok(None)
        } else {
            self.linear(path).map(Some)
        }
    }

    /// A table.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn embedding(&mut self, path: &str) -> Result<Embedding, ModelError> {
        let site = self.site(path);
        // The token table is the only one worth packing.
        let weight = if self.sites.info(site).token_table {
            self.weight(path, SiteKind::Embedding)?
        } else {
            Weight::Dense(self.matrix(path)?)
        };
        Ok(Embedding { site, weight })
    }

    /// The output head, which shares the token table when tied; `None` for models without.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn lm_head(&mut self, tokens: &Embedding) -> Result<Option<Linear>, ModelError> {
        let Some(site) = self.sites.find("lm_head") else {
            return Ok(None);
        };
        if self.sites.info(site).tied {
            return Ok(Some(Linear {
                site,
                weight: tokens.weight.clone(),
                bias: None,
            }));
        }
        self.linear("lm_head").map(Some)
    }

    /// A root-mean-square norm whose file stores `gain - offset`.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn rms_norm(&mut self, path: &str, eps: f64, offset: f32) -> Result<Norm, ModelError> {
        let stored = self.vector(&format!("{path}.weight"))?;
        let weight = if offset == 0.0 {
            stored
        } else {
            stored + offset
        };
        Ok(Norm {
            site: self.site(path),
            weight,
            bias: None,
            eps,
            center: false,
            stored_offset: offset,
        })
    }

    /// A depth-wise convolution, `[d, 1, k]` in files, with its bias if the site has one.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn conv(&mut self, path: &str) -> Result<Conv, ModelError> {
        let site = self.site(path);
        let info = self.sites.info(site);
        let weight = self.shaped(&info.weight_name(), [info.d_out, info.d_in])?;
        let bias = match info.has_bias {
            true => Some(self.vector(&format!("{path}.bias"))?),
            false => None,
        };
        Ok(Conv { site, weight, bias })
    }

    /// A convolution over windows that do not overlap as a linear layer of them, `[d, c, h, w]` in
    /// files.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn patch_conv(&mut self, path: &str) -> Result<Linear, ModelError> {
        let Conv { site, weight, bias } = self.conv(path)?;
        Ok(Linear {
            site,
            weight: Weight::Dense(weight),
            bias,
        })
    }

    /// A bare parameter as a matrix.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn param(&mut self, path: &str) -> Result<Param, ModelError> {
        let site = self.site(path);
        let info = self.sites.info(site);
        let value = self.shaped(&info.weight_name(), [info.d_out, info.d_in])?;
        Ok(Param { site, value })
    }

    /// A tensor of whatever number of dimensions as a matrix of this shape, which has as many
    /// elements.
    fn shaped(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, ModelError> {
        Ok(match self.source.load(&self.file_name(name))? {
            Loaded::Data(data) => {
                let values: Vec<f32> = data.iter::<f32>().collect();
                Tensor::from_data(TensorData::new(values, shape), &self.device)
            }
            Loaded::Matrix(tensor) => tensor.reshape(shape),
            Loaded::Vector(tensor) => tensor.reshape(shape),
        })
    }

    /// A layer norm.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn layer_norm(&mut self, path: &str, eps: f64) -> Result<Norm, ModelError> {
        let weight = self.vector(&format!("{path}.weight"))?;
        let bias = Some(self.vector(&format!("{path}.bias"))?);
        Ok(Norm {
            site: self.site(path),
            weight,
            bias,
            eps,
            center: true,
            stored_offset: 0.0,
        })
    }
}

/// Rounds a matrix; rows that are no whole number of blocks become 8-bit, and so do tables, whose
/// rows matter one by one.
fn pack(quantize: Quantize, values: &[f32], cols: usize, table: bool) -> Packed {
    let blocks = match quantize {
        Quantize::Bf16 => return Packed::bf16(values, cols),
        Quantize::Nf4 if !table => return Packed::nf4(values, cols),
        Quantize::Nf4Double if !table => return Packed::nf4_double(values, cols),
        Quantize::Q8_0 => Some(GgmlType::Q8_0),
        Quantize::Q4_0 if !table => Some(GgmlType::Q4_0),
        Quantize::Q4_1 if !table => Some(GgmlType::Q4_1),
        _ => None,
    };
    blocks
        .and_then(|blocks| Packed::to_ggml(blocks, values, cols))
        .unwrap_or_else(|| Packed::int8(values, cols))
}

/// The matrix without its zeros, where they are half of it or more.
fn without_zeros(matrix: Tensor<2>) -> Weight {
    let ([rows, cols], device) = (matrix.dims(), matrix.device());
    let values = to_vec(matrix.clone());
    let zeros = values.iter().filter(|v| **v == 0.0).count();
    if 2 * zeros < rows * cols {
        return Weight::Dense(matrix);
    }
    Weight::Sparse {
        sparse: Arc::new(Sparse::new(&values, cols)),
        device,
    }
}

/// A transposed view written out once, so that every later product reads it in order.
fn contiguous(view: Tensor<2>) -> Tensor<2> {
    let (dims, device) = (view.dims(), view.device());
    Tensor::from_data(TensorData::new(to_vec(view), dims), &device)
}

//! Blocks of pyramids over images: selective scan beside a convolution, selective scan alone, inverted
//! residual.

use burn::prelude::*;
use burn::tensor::activation::{relu, sigmoid};
use frugal_kernels::{depthwise_conv2d, gelu};
use frugal_nn::{Conv, Frozen, Linear, ModelError, Norm, Pass, Rows, SiteKind};

use super::batch_norm::{BatchNorm, BatchNormSettings};
use super::scan2d::{Scan2d, ScanSizes};
use super::sites::Sites;
use crate::weights::WeightLoader;

/// What the blocks of a stage are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BlockKind {
    /// Scan and convolution, either of which may be left out.
    Scan {
        /// The scan, where there is one.
        scan: Option<ScanSizes>,
        /// Whether there is a convolution beside it.
        convolution: bool,
        /// Gates of channels: none, one for both branches, or one of each.
        gates: usize,
    },
    /// Inverted residual of MobileNet (Sandler et al., arXiv 1801.04381) with squeeze and excitation.
    InvertedResidual {
        /// Width of the excitation.
        squeezed: usize,
        /// Channels of the depth-wise convolution.
        expanded: usize,
    },
}

/// Rows of images on a grid.
#[derive(Clone, Copy)]
pub(crate) struct Lattice {
    /// Rows and columns.
    pub grid: [usize; 2],
    /// Images.
    pub images: usize,
}

impl Lattice {
    fn pixels(self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// The mean of each image's rows: `[images * pixels, d]` to `[images, d]`.
    fn mean(self, x: Tensor<2>) -> Tensor<2> {
        let d = x.dims()[1];
        let mean = x.reshape([self.images, self.pixels(), d]).mean_dim(1);
        mean.reshape([self.images, d])
    }

    /// Each image's rows times its row of `factors` `[images, d]`.
    fn times(self, x: Tensor<2>, factors: Tensor<2>) -> Tensor<2> {
        let [rows, d] = x.dims();
        let x = x.reshape([self.images, self.pixels(), d]);
        (x * factors.reshape([self.images, 1, d])).reshape([rows, d])
    }

    /// Each image's rows times its factor.
    pub(crate) fn scaled(self, x: Tensor<2>, factors: Vec<f32>) -> Tensor<2> {
        let ([rows, d], device) = (x.dims(), x.device().inner());
        let factors = TensorData::new(factors, [self.images, 1, 1]);
        let factors = Tensor::<3>::from_data(factors, &device);
        let x = x.reshape([self.images, self.pixels(), d]);
        (x * factors).reshape([rows, d])
    }
}

/// Factors of channels from the mean of what they gate (Hu et al., *Squeeze-and-Excitation Networks*,
/// arXiv 1709.01507), of its layer norm as EfficientVMamba's code has it.
struct Gate {
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Gate {
    fn sites(sites: &mut Sites, path: &str, layer: usize, width: usize) {
        sites.layer_norm(format!("{path}.norm"), Some(layer), width);
        sites.linear(format!("{path}.fc1"), layer, [width, width / 8], true);
        sites.linear(format!("{path}.fc2"), layer, [width / 8, width], true);
    }

    fn load(loader: &mut WeightLoader<'_>, path: &str, eps: f64) -> Result<Self, ModelError> {
        Ok(Self {
            norm: loader.layer_norm(&format!("{path}.norm"), eps)?,
            fc1: loader.linear(&format!("{path}.fc1"))?,
            fc2: loader.linear(&format!("{path}.fc2"))?,
        })
    }

    fn forward(&self, x: Tensor<2>, lattice: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
        let normed = pass.norm_rows(&self.norm, x.clone(), Rows::Chosen);
        let mean = lattice.mean(normed);
        let narrow = gelu(pass.linear_rows(&self.fc1, mean, Rows::Sequences));
        let factors = sigmoid(pass.linear_rows(&self.fc2, narrow, Rows::Sequences));
        lattice.times(x, factors)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Norm(&self.norm));
        visit(Frozen::Linear(&self.fc1));
        visit(Frozen::Linear(&self.fc2));
    }
}

/// Depth-wise convolution, batch norm, GELU, point-wise convolution.
struct ConvBranch {
    depthwise: Conv,
    norm: BatchNorm,
    pointwise: Linear,
}

struct ScanBlock {
    norm: Norm,
    scan: Option<Scan2d>,
    convolution: Option<ConvBranch>,
    /// Of the scan; the last one of the convolution.
    gates: Vec<Gate>,
}

struct InvertedResidual {
    expand: Linear,
    norms: [BatchNorm; 3],
    depthwise: Conv,
    squeeze: Linear,
    excite: Linear,
    project: Linear,
}

enum Kind {
    Scan(Box<ScanBlock>),
    Inverted(Box<InvertedResidual>),
}

/// One block of a pyramid: what it adds to the residual stream.
pub(crate) struct ImageBlock(Kind);

/// The names of the gates of a block.
fn gate_names(count: usize) -> &'static [&'static str] {
    match count {
        0 => &[],
        1 => &["gate"],
        _ => &["gate", "conv_gate"],
    }
}

impl ImageBlock {
    /// The sites of a block of this kind and width.
    pub(crate) fn sites(
        sites: &mut Sites,
        path: &str,
        layer: usize,
        width: usize,
        kind: BlockKind,
    ) {
        let p = |name: &str| format!("{path}.{name}");
        let depthwise = |sites: &mut Sites, name: &str, channels: usize, bias: bool| {
            let size = [9, channels];
            sites
                .add(p(name), SiteKind::Conv, Some(layer), size, bias)
                .stored = Some(vec![channels, 1, 3, 3]);
        };
        match kind {
            BlockKind::Scan {
                scan,
                convolution,
                gates,
            } => {
                sites.layer_norm(p("norm"), Some(layer), width);
                if let Some(sizes) = scan {
                    Scan2d::sites(sites, &p("ss2d"), layer, sizes);
                }
                if convolution {
                    depthwise(sites, "conv.depthwise", width, true);
                    BatchNorm::sites(sites, &p("conv.norm"), Some(layer), width);
                    sites.linear(p("conv.pointwise"), layer, [width, width], true);
                }
                for name in gate_names(gates) {
                    Gate::sites(sites, &p(name), layer, width);
                }
            }
            BlockKind::InvertedResidual { squeezed, expanded } => {
                let linear = |sites: &mut Sites, name: &str, size, bias| {
                    sites.linear(p(name), layer, size, bias);
                };
                linear(sites, "expand", [width, expanded], false);
                BatchNorm::sites(sites, &p("norm1"), Some(layer), expanded);
                depthwise(sites, "depthwise", expanded, false);
                BatchNorm::sites(sites, &p("norm2"), Some(layer), expanded);
                linear(sites, "se.squeeze", [expanded, squeezed], true);
                linear(sites, "se.excite", [squeezed, expanded], true);
                linear(sites, "project", [expanded, width], false);
                BatchNorm::sites(sites, &p("norm3"), Some(layer), width);
            }
        }
    }

    /// Whether a linear layer of this name is a point-wise convolution in the published code, which
    /// begins as such.
    pub(crate) fn is_pointwise(name: &str) -> bool {
        ["pointwise", "expand", "squeeze", "excite", "project"].contains(&name)
    }

    /// # Errors
    /// When a tensor cannot be read.
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        kind: BlockKind,
        eps: f64,
        batch_norm: BatchNormSettings,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        Ok(Self(match kind {
            BlockKind::Scan {
                scan,
                convolution,
                gates,
            } => {
                let norm = loader.layer_norm(&p("norm"), eps)?;
                let scan = scan.map(|sizes| Scan2d::load(loader, &p("ss2d"), sizes));
                let scan = scan.transpose()?;
                let convolution = match convolution {
                    false => None,
                    true => Some(ConvBranch {
                        depthwise: loader.conv(&p("conv.depthwise"))?,
                        norm: BatchNorm::load(loader, &p("conv.norm"), batch_norm)?,
                        pointwise: loader.linear(&p("conv.pointwise"))?,
                    }),
                };
                let mut all = Vec::new();
                for name in gate_names(gates) {
                    all.push(Gate::load(loader, &p(name), eps)?);
                }
                Kind::Scan(Box::new(ScanBlock {
                    norm,
                    scan,
                    convolution,
                    gates: all,
                }))
            }
            BlockKind::InvertedResidual { .. } => {
                let expand = loader.linear(&p("expand"))?;
                let mut norm = |name: &str| BatchNorm::load(loader, &p(name), batch_norm);
                let norms = [norm("norm1")?, norm("norm2")?, norm("norm3")?];
                Kind::Inverted(Box::new(InvertedResidual {
                    expand,
                    norms,
                    depthwise: loader.conv(&p("depthwise"))?,
                    squeeze: loader.linear(&p("se.squeeze"))?,
                    excite: loader.linear(&p("se.excite"))?,
                    project: loader.linear(&p("project"))?,
                }))
            }
        }))
    }

    /// What the block reads of the residual stream `[rows, d]`, and what it gives of that.
    pub(crate) fn reads(&self, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        match &self.0 {
            Kind::Scan(block) => pass.norm_rows(&block.norm, x, Rows::Chosen),
            Kind::Inverted(_) => x,
        }
    }

    /// What it adds to the residual stream, from what it reads.
    pub(crate) fn forward(&self, x: Tensor<2>, on: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
        match &self.0 {
            Kind::Scan(block) => block.forward(x, on, pass),
            Kind::Inverted(block) => block.forward(x, on, pass),
        }
    }

    pub(crate) fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        match &self.0 {
            Kind::Scan(block) => {
                visit(Frozen::Norm(&block.norm));
                if let Some(scan) = &block.scan {
                    scan.visit_weights(visit);
                }
                if let Some(branch) = &block.convolution {
                    visit(Frozen::Conv(&branch.depthwise));
                    branch.norm.visit_weights(visit);
                    visit(Frozen::Linear(&branch.pointwise));
                }
                block
                    .gates
                    .iter()
                    .for_each(|gate| gate.visit_weights(visit));
            }
            Kind::Inverted(block) => {
                visit(Frozen::Linear(&block.expand));
                block.norms[0].visit_weights(visit);
                visit(Frozen::Conv(&block.depthwise));
                block.norms[1].visit_weights(visit);
                visit(Frozen::Linear(&block.squeeze));
                visit(Frozen::Linear(&block.excite));
                visit(Frozen::Linear(&block.project));
                block.norms[2].visit_weights(visit);
            }
        }
    }
}

fn convolve(conv: &Conv, x: Tensor<2>, on: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
    let (weight, bias) = pass.conv(conv, Rows::Chosen);
    depthwise_conv2d(x, weight, bias, on.grid)
}

impl ScanBlock {
    fn forward(&self, x: Tensor<2>, on: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
        let gated = |gate: Option<&Gate>, y: Tensor<2>, pass: &mut dyn Pass| match gate {
            Some(gate) => gate.forward(y, on, pass),
            None => y,
        };
        let scanned = self.scan.as_ref().map(|scan| {
            let y = scan.forward(x.clone(), on.grid, pass);
            gated(self.gates.first(), y, pass)
        });
        let convolved = self.convolution.as_ref().map(|branch| {
            let y = convolve(&branch.depthwise, x.clone(), on, pass);
            let y = gelu(branch.norm.forward(y, pass));
            let y = pass.linear_rows(&branch.pointwise, y, Rows::Chosen);
            gated(self.gates.last(), y, pass)
        });
        match (scanned, convolved) {
            (Some(scanned), Some(convolved)) => scanned + convolved,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => unreachable!("configurations without a branch are refused"),
        }
    }
}

impl InvertedResidual {
    fn forward(&self, x: Tensor<2>, on: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
        let [norm1, norm2, norm3] = &self.norms;
        let y = pass.linear_rows(&self.expand, x, Rows::Chosen);
        let y = relu(norm1.forward(y, pass));
        let y = convolve(&self.depthwise, y, on, pass);
        let y = relu(norm2.forward(y, pass));
        let squeezed = pass.linear_rows(&self.squeeze, on.mean(y.clone()), Rows::Sequences);
        let factors = pass.linear_rows(&self.excite, relu(squeezed), Rows::Sequences);
        let y = on.times(y, sigmoid(factors));
        let y = pass.linear_rows(&self.project, y, Rows::Chosen);
        norm3.forward(y, pass)
    }
}

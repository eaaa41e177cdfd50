//! Which initializers are weights, what they are called, and what they are worth.

use std::collections::{HashMap, HashSet};

use super::error::OnnxProblem;
use super::graph::{Graph, Node};
use super::tensor::Tensor;

/// Most elements of all weights for each byte of the file: codes take a byte each, and a tensor may
/// have several names.
const MOST_ELEMENTS: usize = 8;

/// What codes stand for: `(code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quantization {
    /// The tensor of scales.
    scale: usize,
    /// The tensor of zero points, as many as scales; without one they are 0.
    zero_points: Option<usize>,
    /// The dimension that the scales run along, where there are several.
    axis: usize,
}

/// What a node does with a tensor.
#[derive(Debug)]
enum Use {
    /// `x W`: the matrix of a linear layer, as `[in, out]`.
    Product,
    /// `x Wᵀ` or a row of a table: as `[out, in]`.
    Rows,
}

/// What is known of a tensor.
#[derive(Debug, Default)]
struct Known<'a> {
    uses: Vec<Use>,
    /// Names of modules that use it, from the names of nodes, with what it is to them.
    roles: Vec<String>,
    quantization: Option<Quantization>,
    /// A scale or a zero point: no weight of its own.
    is_parameter: bool,
    /// Further names of the same tensor.
    aliases: Vec<&'a str>,
}

/// A weight of a model.
#[derive(Debug)]
pub struct Weight {
    /// Name as a module has it: `encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// `[out, in]` of a linear layer.
    pub shape: Vec<usize>,
    /// Whether the file holds whole numbers with a scale.
    pub is_quantized: bool,
    tensor: usize,
    quantization: Option<Quantization>,
    /// Whether the file holds `[in, out]`.
    transposed: bool,
}

/// The weights of an ONNX model under the names of its modules; numbers are read when asked for.
#[derive(Debug)]
pub struct Weights<'a> {
    tensors: Vec<Tensor<'a>>,
    weights: Vec<Weight>,
    left_out: Vec<String>,
}

/// The name of a module's parameter that an exporter kept, without what ONNX Runtime's quantizer puts
/// behind it.
fn kept(name: &str) -> Option<&str> {
    let name = name.strip_suffix("_quantized").unwrap_or(name);
    let name = name.strip_suffix("_Transposed").unwrap_or(name);
    let made_up = name.is_empty()
        || name.contains("::")
        || name.starts_with(['/', '_'])
        || name.starts_with("val_")
        || name.bytes().all(|byte| byte.is_ascii_digit());
    (!made_up).then_some(name)
}

/// Finds the weights in the graph of a file of `bytes` bytes.
pub(super) fn find(graph: Graph<'_>, bytes: usize) -> Result<Weights<'_>, OnnxProblem> {
    let mut finder = Finder {
        scales: Scales::of(&graph),
        known: std::iter::repeat_with(Known::default)
            .take(graph.tensors.len())
            .collect(),
        values: graph.by_name.clone(),
        gathered: HashMap::new(),
        graph: &graph,
    };
    for node in &graph.nodes {
        finder.node(node)?;
    }
    let known = finder.known;
    let (mut weights, mut left_out) = (Vec::new(), Vec::new());
    let (mut names, mut elements) = (HashSet::new(), 0_usize);
    for (index, (tensor, known)) in graph.tensors.iter().zip(known).enumerate() {
        let is_weight = tensor.dtype.is_float() || known.quantization.is_some();
        if known.is_parameter || !is_weight {
            if !known.is_parameter && !tensor.dtype.is_index() {
                left_out.push(tensor.name.to_owned());
            }
            continue;
        }
        let mut own: Vec<String> = kept(tensor.name).map(str::to_owned).into_iter().collect();
        if own.is_empty() {
            own.extend(known.roles.first().cloned());
        }
        own.extend(known.aliases.iter().map(|name| (*name).to_owned()));
        if own.is_empty() && tensor.len > 1 {
            left_out.push(tensor.name.to_owned());
        }
        let is_product = matches!(known.uses.as_slice(), [Use::Product, ..])
            && known.uses.iter().all(|r#use| matches!(r#use, Use::Product));
        for name in own {
            let transposed = is_product && tensor.shape.len() == 2 && name.ends_with(".weight");
            let mut shape = tensor.shape.clone();
            if transposed {
                shape.reverse();
            }
            if !names.insert(name.clone()) {
                return Err(OnnxProblem::Duplicate(name));
            }
            elements = elements.saturating_add(tensor.len);
            if elements.div_ceil(MOST_ELEMENTS) > bytes {
                return Err(OnnxProblem::Tensor {
                    name,
                    why: "the weights have more elements than the file can hold".into(),
                });
            }
            weights.push(Weight {
                name,
                shape,
                is_quantized: known.quantization.is_some(),
                tensor: index,
                quantization: known.quantization,
                transposed,
            });
        }
    }
    weights.sort_by(|left, right| left.name.cmp(&right.name));
    if weights.is_empty() {
        return Err(OnnxProblem::NoWeights);
    }
    Ok(Weights {
        tensors: graph.tensors,
        weights,
        left_out,
    })
}

impl Weights<'_> {
    /// The weights, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Weight> {
        self.weights.iter()
    }

    /// Constants of several numbers that no name of a module could be found for, by the file's own.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The numbers of a weight in row-major order, of its shape; whole numbers with a scale are
    /// `(code - zero_point) * scale`.
    pub(super) fn values(&self, weight: &Weight) -> Result<Vec<f32>, OnnxProblem> {
        let tensor = &self.tensors[weight.tensor];
        let values = match &weight.quantization {
            None => tensor.floats()?,
            Some(quantization) => self.dequantize(tensor, *quantization)?,
        };
        Ok(match (weight.transposed, weight.shape.as_slice()) {
            (true, &[rows, columns]) => {
                let mut turned = Vec::with_capacity(values.len());
                for row in 0..rows {
                    turned.extend((0..columns).map(|column| values[column * rows + row]));
                }
                turned
            }
            _ => values,
        })
    }

    fn dequantize(&self, tensor: &Tensor<'_>, by: Quantization) -> Result<Vec<f32>, OnnxProblem> {
        let codes = tensor.codes()?;
        let scales = self.tensors[by.scale].floats()?;
        let zeros = by.zero_points.map(|index| self.tensors[index].codes());
        let zeros = zeros.transpose()?.unwrap_or_default();
        if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(OnnxProblem::Tensor {
                name: tensor.name.into(),
                why: format!("one of its scales is {scale}"),
            });
        }
        // Elements that follow each other and share a scale.
        let run = match scales.len() {
            0 | 1 => codes.len(),
            _ => tensor.shape[by.axis + 1..].iter().product(),
        };
        let mut values = Vec::with_capacity(codes.len());
        for (codes, index) in codes.chunks(run.max(1)).zip((0..scales.len()).cycle()) {
            let zero = i64::from(zeros.get(index).copied().unwrap_or(0));
            let code = |code: &i32| (i64::from(*code) - zero) as f32 * scales[index];
            values.extend(codes.iter().map(code));
        }
        Ok(values)
    }
}

/// What is multiplied by what behind integer products.
struct Scales<'g, 'a> {
    /// The first cast of a value.
    casts: HashMap<&'a str, &'g Node<'a>>,
    /// The first product with a value.
    products: HashMap<&'a str, &'g Node<'a>>,
    /// The product that a value is.
    made: HashMap<&'a str, &'g Node<'a>>,
}

impl<'g, 'a> Scales<'g, 'a> {
    fn of(graph: &'g Graph<'a>) -> Self {
        let mut all = Self {
            casts: HashMap::new(),
            products: HashMap::new(),
            made: HashMap::new(),
        };
        for node in graph.nodes.iter().filter(|node| node.is_standard()) {
            let readers = match node.operator {
                "Cast" => &mut all.casts,
                "Mul" => {
                    all.made.extend(node.outputs.iter().map(|out| (*out, node)));
                    &mut all.products
                }
                _ => continue,
            };
            for input in &node.inputs {
                readers.entry(input).or_insert(node);
            }
        }
        all
    }

    /// What makes floats of a `MatMulInteger`: a cast, then a product with the scale of the weight,
    /// or with the product of that and the scale of what it is multiplied by.
    fn of_product(&self, product: &Node<'a>, tensors: &HashMap<&'a str, usize>) -> Option<usize> {
        let cast = self.casts.get(product.outputs.first()?)?.outputs.first()?;
        let scaled = self.products.get(cast)?;
        let scale = scaled.inputs.iter().find(|input| *input != cast)?;
        if let Some(tensor) = tensors.get(scale) {
            return Some(*tensor);
        }
        let constant = |input: &&'a str| tensors.get(*input).copied();
        let made = self.made.get(scale)?;
        let mut constants = made.inputs.iter().filter_map(constant);
        // Of two constants nothing says whose each is.
        constants.next().filter(|_| constants.next().is_none())
    }
}

struct Finder<'g, 'a> {
    graph: &'g Graph<'a>,
    scales: Scales<'g, 'a>,
    known: Vec<Known<'a>>,
    /// The tensor that a value is, unchanged but for its number format.
    values: HashMap<&'a str, usize>,
    /// The table that a value's rows, in codes, are from.
    gathered: HashMap<&'a str, usize>,
}

impl<'g, 'a> Finder<'g, 'a> {
    fn tensor(&self, node: &Node<'a>, input: usize) -> Option<usize> {
        self.values.get(node.input(input)?).copied()
    }

    fn node(&mut self, node: &'g Node<'a>) -> Result<(), OnnxProblem> {
        if !node.is_standard() {
            return self.foreign(node);
        }
        match node.operator {
            "Identity" | "Cast" => self.renamed(node),
            "MatMul" => self.product(node, 1, Use::Product),
            "Gemm" => self.gemm(node)?,
            "Gather" => {
                if let (Some(tensor), Some(out)) = (self.tensor(node, 0), node.outputs.first()) {
                    self.product(node, 0, Use::Rows);
                    self.gathered.insert(out, tensor);
                }
            }
            "MatMulInteger" => self.integer_product(node)?,
            "DequantizeLinear" => self.dequantized(node)?,
            _ => {}
        }
        Ok(())
    }

    /// Operations of other domains are those of optimizers, which join several modules into one.
    fn foreign(&self, node: &Node<'a>) -> Result<(), OnnxProblem> {
        let mut inputs = (0..node.inputs.len()).filter_map(|input| self.tensor(node, input));
        match inputs.find(|tensor| self.graph.tensors[*tensor].shape.len() > 1) {
            Some(tensor) => Err(node.wrong(format!(
                "an operation of an optimizer reads the weight {}, whose layout is not known; export the model without such optimization",
                self.graph.tensors[tensor].name
            ))),
            None => Ok(()),
        }
    }

    fn renamed(&mut self, node: &Node<'a>) {
        let (Some(tensor), Some(out)) = (self.tensor(node, 0), node.outputs.first()) else {
            return;
        };
        self.values.insert(out, tensor);
        // Equal parameters are stored once by some exporters, the others named by such a node.
        if node.operator == "Identity" && kept(out).is_some() {
            self.known[tensor].aliases.push(out);
        }
    }

    fn product(&mut self, node: &Node<'a>, input: usize, r#use: Use) {
        let Some(tensor) = self.tensor(node, input) else {
            return;
        };
        let known = &mut self.known[tensor];
        known.uses.push(r#use);
        known
            .roles
            .extend(node.module().map(|path| format!("{path}.weight")));
    }

    fn gemm(&mut self, node: &Node<'a>) -> Result<(), OnnxProblem> {
        if self.tensor(node, 1).is_none() {
            return Ok(());
        }
        if node.float("alpha", 1.0) != 1.0 || node.float("beta", 1.0) != 1.0 {
            return Err(node.wrong("`alpha` and `beta` other than 1 are not read into weights"));
        }
        let r#use = match node.integer("transB", 0) {
            0 => Use::Product,
            _ => Use::Rows,
        };
        self.product(node, 1, r#use);
        if let (Some(bias), Some(path)) = (self.tensor(node, 2), node.module()) {
            self.known[bias].roles.push(format!("{path}.bias"));
        }
        Ok(())
    }

    fn integer_product(&mut self, node: &Node<'a>) -> Result<(), OnnxProblem> {
        let Some(tensor) = self.tensor(node, 1) else {
            return Ok(());
        };
        let Some(scale) = self.scales.of_product(node, &self.values) else {
            return Err(node.wrong(
                "nothing behind it multiplies by the scale of its weight, as dynamic quantization does",
            ));
        };
        let found = Quantization {
            scale,
            zero_points: self.zero_points(node, 3)?,
            axis: self.graph.tensors[tensor].shape.len().saturating_sub(1),
        };
        self.product(node, 1, Use::Product);
        self.quantized(node, tensor, found)
    }

    fn dequantized(&mut self, node: &Node<'a>) -> Result<(), OnnxProblem> {
        let gathered = node.input(0).and_then(|name| self.gathered.get(name));
        let gathered = gathered.copied();
        let Some(tensor) = self.tensor(node, 0).or(gathered) else {
            return Ok(());
        };
        if node.integer("block_size", 0) != 0 {
            return Err(node.wrong("scales of blocks are not read"));
        }
        let Some(scale) = self.tensor(node, 1) else {
            return Err(node.wrong("the scale of its weight is computed, not stored"));
        };
        if gathered.is_some() && self.graph.tensors[scale].len != 1 {
            return Err(node.wrong("rows of a table with several scales are not read"));
        }
        let rank = self.graph.tensors[tensor].shape.len() as i64;
        let axis = match node.integer("axis", 1) {
            axis if axis < 0 => axis.saturating_add(rank),
            axis => axis,
        };
        let found = Quantization {
            scale,
            zero_points: self.zero_points(node, 2)?,
            axis: usize::try_from(axis).unwrap_or(usize::MAX),
        };
        if let Some(out) = node.outputs.first().filter(|_| gathered.is_none()) {
            self.values.insert(out, tensor);
        }
        self.quantized(node, tensor, found)
    }

    fn zero_points(&self, node: &Node<'a>, input: usize) -> Result<Option<usize>, OnnxProblem> {
        match (node.input(input), self.tensor(node, input)) {
            (Some(_), None) => {
                Err(node.wrong("the zero point of its weight is computed, not stored"))
            }
            (_, tensor) => Ok(tensor),
        }
    }

    fn quantized(
        &mut self,
        node: &Node<'a>,
        tensor: usize,
        found: Quantization,
    ) -> Result<(), OnnxProblem> {
        let tensors = &self.graph.tensors;
        let (codes, scale) = (&tensors[tensor], &tensors[found.scale]);
        let zeros = found.zero_points.map(|index| &tensors[index]);
        if !codes.dtype.is_code() {
            let why = format!(
                "its weight {} is not in whole numbers of up to 32 bits",
                codes.name
            );
            return Err(node.wrong(why));
        }
        if let Some(zeros) = zeros.filter(|zeros| zeros.dtype != codes.dtype) {
            let why = format!("{} is of another type than {}", zeros.name, codes.name);
            return Err(node.wrong(why));
        }
        let fits = scale.len == 1 || codes.shape.get(found.axis) == Some(&scale.len);
        let zeros_fit = zeros.is_none_or(|zeros| zeros.len == scale.len);
        let flat = |tensor: &Tensor<'_>| tensor.shape.len() <= 1;
        if !fits || !zeros_fit || !flat(scale) || !zeros.is_none_or(flat) {
            return Err(node.wrong(format!(
                "scales of shape {:?} and zero points of shape {:?} along dimension {} of {}, whose shape is {:?}",
                scale.shape,
                zeros.map_or(&[][..], |zeros| &zeros.shape),
                found.axis,
                codes.name,
                codes.shape
            )));
        }
        for index in [Some(found.scale), found.zero_points].into_iter().flatten() {
            self.known[index].is_parameter = true;
        }
        let before = self.known[tensor].quantization.replace(found);
        // A layer may be used twice, with the same scales.
        match before.is_none_or(|before| before == found) {
            true => Ok(()),
            false => Err(node.wrong(format!("{} has other scales elsewhere", codes.name))),
        }
    }
}

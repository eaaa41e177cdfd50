//! `ModelProto`, `GraphProto`, `NodeProto`: the parts of a model that say where weights are and what
//! is done with them.
//!
//! <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>

use std::collections::HashMap;

use super::error::OnnxProblem;
use super::tensor::Tensor;
use super::wire::{Content, Span};

/// Most nodes, and most initializers: an empty one takes two bytes of a file and a hundred here.
const MOST: usize = 1 << 18;
/// Most names of inputs and outputs.
const MOST_NAMES: usize = 1 << 22;

/// One operation.
#[derive(Debug)]
pub(super) struct Node<'a> {
    name: &'a str,
    pub(super) operator: &'a str,
    pub(super) domain: &'a str,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    /// The modules that it is part of, from the model to the innermost and the operation itself, as
    /// PyTorch's exporter writes the list in Python.
    scopes: &'a str,
    /// Its attributes that are whole numbers.
    integers: Vec<(&'a str, i64)>,
    /// Its attributes that are numbers.
    floats: Vec<(&'a str, f32)>,
}

impl<'a> Node<'a> {
    /// Its name, or its first output where it has none.
    pub(super) fn name(&self) -> &'a str {
        match self.name.is_empty() {
            true => self.outputs.first().copied().unwrap_or(""),
            false => self.name,
        }
    }

    /// The path of the module that it belongs to: `encoder.layer.0.output.dense` of a node called
    /// `/encoder/layer.0/output/dense/MatMul_quant`, or of one with that in its scopes.
    pub(super) fn module(&self) -> Option<String> {
        let path = match self.name().strip_prefix('/') {
            Some(path) => path.rsplit_once('/')?.0.replace('/', "."),
            None => self.scopes.rsplit('\'').nth(3)?.to_owned(),
        };
        Some(path).filter(|path| !path.is_empty())
    }

    /// Whether it is an operation of ONNX itself.
    pub(super) fn is_standard(&self) -> bool {
        ["", "ai.onnx"].contains(&self.domain)
    }

    /// An input that may be left out.
    pub(super) fn input(&self, index: usize) -> Option<&'a str> {
        let name = self.inputs.get(index).copied();
        name.filter(|name| !name.is_empty())
    }

    pub(super) fn integer(&self, name: &str, default: i64) -> i64 {
        let found = self.integers.iter().find(|(key, _)| *key == name);
        found.map_or(default, |(_, value)| *value)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        let found = self.floats.iter().find(|(key, _)| *key == name);
        found.map_or(default, |(_, value)| *value)
    }

    pub(super) fn wrong(&self, why: impl Into<String>) -> OnnxProblem {
        let operator = match self.is_standard() {
            true => self.operator.to_owned(),
            false => format!("{}.{}", self.domain, self.operator),
        };
        OnnxProblem::Node {
            name: self.name().into(),
            operator,
            why: why.into(),
        }
    }
}

/// Operations and constants of a model.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    /// In an order in which they can be computed.
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) tensors: Vec<Tensor<'a>>,
    /// Places in `tensors` by the name of the value.
    pub(super) by_name: HashMap<&'a str, usize>,
}

impl<'a> Graph<'a> {
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, OnnxProblem> {
        let mut found = None;
        for field in Span::file(file).fields() {
            let field = field?;
            if field.number == 7 {
                found = Some(field.span()?);
            }
        }
        let message = found.ok_or(OnnxProblem::NoGraph)?;
        let (mut graph, mut names) = (Self::default(), 0);
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => graph.node(field.span()?, &mut names)?,
                5 => {
                    let tensor = Tensor::parse(field.span()?)?;
                    graph.tensor(tensor.name, tensor)?;
                }
                15 => {
                    return Err(OnnxProblem::Tensor {
                        name: "sparse_initializer".into(),
                        why: "sparse weights are not read".into(),
                    });
                }
                _ => {}
            }
        }
        Ok(graph)
    }

    fn tensor(&mut self, name: &'a str, mut tensor: Tensor<'a>) -> Result<(), OnnxProblem> {
        if self.tensors.len() == MOST {
            return Err(OnnxProblem::TooMany {
                what: "tensors",
                most: MOST,
            });
        }
        if name.is_empty() {
            return Err(OnnxProblem::Tensor {
                name: format!("number {}", self.tensors.len()),
                why: "it has no name".into(),
            });
        }
        tensor.name = name;
        if self.by_name.insert(name, self.tensors.len()).is_some() {
            return Err(OnnxProblem::Duplicate(name.into()));
        }
        self.tensors.push(tensor);
        Ok(())
    }

    fn node(&mut self, message: Span<'a>, names: &mut usize) -> Result<(), OnnxProblem> {
        let mut node = Node {
            name: "",
            operator: "",
            domain: "",
            inputs: Vec::new(),
            outputs: Vec::new(),
            scopes: "",
            integers: Vec::new(),
            floats: Vec::new(),
        };
        let mut value = None;
        for field in message.fields() {
            let field = field?;
            *names += usize::from(matches!(field.number, 1 | 2 | 5));
            if *names > MOST_NAMES {
                return Err(OnnxProblem::TooMany {
                    what: "inputs, outputs and attributes",
                    most: MOST_NAMES,
                });
            }
            match field.number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                3 => node.name = field.text()?,
                4 => node.operator = field.text()?,
                5 => attribute(field.span()?, &mut node, &mut value)?,
                7 => node.domain = field.text()?,
                9 => {
                    let mut property = ["", ""];
                    for field in field.span()?.fields() {
                        let field = field?;
                        if let 1 | 2 = field.number {
                            property[field.number as usize - 1] = field.text()?;
                        }
                    }
                    if let ["pkg.torch.onnx.name_scopes", scopes] = property {
                        node.scopes = scopes;
                    }
                }
                _ => {}
            }
        }
        match (node.operator, value, node.outputs.first()) {
            ("Constant", Some(tensor), Some(name)) => return self.tensor(name, tensor),
            ("Constant", ..) => return Ok(()),
            _ => {}
        }
        if self.nodes.len() == MOST {
            return Err(OnnxProblem::TooMany {
                what: "nodes",
                most: MOST,
            });
        }
        self.nodes.push(node);
        Ok(())
    }
}

fn attribute<'a>(
    message: Span<'a>,
    node: &mut Node<'a>,
    tensor: &mut Option<Tensor<'a>>,
) -> Result<(), OnnxProblem> {
    let (mut name, mut integer, mut float) = ("", None, None);
    for field in message.fields() {
        let field = field?;
        match (field.number, field.content) {
            (1, _) => name = field.text()?,
            (2, Content::Fixed32(_)) => float = Some(field.float()?),
            (3, Content::Varint(_)) => integer = Some(field.integer()?),
            (5, _) => *tensor = Some(Tensor::parse(field.span()?)?),
            _ => {}
        }
    }
    node.integers.extend(integer.map(|value| (name, value)));
    node.floats.extend(float.map(|value| (name, value)));
    Ok(())
}

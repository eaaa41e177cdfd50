//! AdamW with moments of eight bits: two bytes for each trained number instead of eight.
//!
//! Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, 2022,
//! arXiv 2110.02861; blocks and values are those of bitsandbytes, which keeps the moments of small
//! parameters in single precision. The eight-bit moments are in the memory of the host on every
//! device: on a GPU they take none of its memory, and large parameters travel in each step.

use std::collections::BTreeMap;

use frugal_kernels::{Blockwise, MOMENT_BLOCK, adamw_8bit_step};
use frugal_nn::{Gradient, Parameter};

use super::adamw::{Betas, History};
use super::state::{SavedTensor, StateTensor, check_taken, take_steps, take_values};
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// Elements from which on moments have eight bits.
const EIGHT_BIT_FROM: usize = 4096;

/// The optimizer.
#[derive(Debug)]
pub struct AdamW8bit {
    betas: Betas,
    memories: BTreeMap<String, Memory>,
}

/// What is remembered of one parameter.
#[derive(Clone, Debug)]
enum Memory {
    Single(History),
    EightBit {
        exp_avg: Blockwise,
        exp_avg_sq: Blockwise,
        step: u64,
    },
}

impl Memory {
    fn zeros(len: usize) -> Self {
        if len < EIGHT_BIT_FROM {
            return Self::Single(History::zeros(len));
        }
        Self::EightBit {
            exp_avg: Blockwise::zeros(len, true),
            exp_avg_sq: Blockwise::zeros(len, false),
            step: 0,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Single(history) => history.len(),
            Self::EightBit { exp_avg, .. } => exp_avg.len(),
        }
    }

    fn restored(state: &mut SavedState, name: &str, step: u64) -> Result<Self, String> {
        let first = format!("exp_avg.{name}");
        if !matches!(state.get(&first), Some(SavedTensor::Codes(_))) {
            return History::restored(state, name, step).map(Self::Single);
        }
        Ok(Self::EightBit {
            exp_avg: take_blocks(state, &first, true)?,
            exp_avg_sq: take_blocks(state, &format!("exp_avg_sq.{name}"), false)?,
            step,
        })
    }
}

/// Moments of eight bits: their codes, and their scales beside them.
fn take_blocks(state: &mut SavedState, name: &str, signed: bool) -> Result<Blockwise, String> {
    let Some(SavedTensor::Codes(codes)) = state.remove(name) else {
        return Err(format!("`{name}` does not hold codes of a byte each"));
    };
    let absmax = take_values(state, &format!("{name}.absmax"))?;
    let (count, scales) = (codes.len(), absmax.len());
    Blockwise::from_parts(codes, absmax, signed)
        .ok_or_else(|| format!("`{name}` has {count} codes and {scales} scales"))
}

impl AdamW8bit {
    /// One that remembers nothing.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            betas: Betas::new(config),
            memories: BTreeMap::new(),
        }
    }
}

impl Optimizer for AdamW8bit {
    fn name(&self) -> &'static str {
        "adamw_8bit"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let len = parameter.len();
        let memory = self
            .memories
            .entry(parameter.name().to_owned())
            .or_insert_with(|| Memory::zeros(len));
        if memory.len() != len {
            *memory = Memory::zeros(len);
        }
        match memory {
            Memory::Single(history) => history.update(parameter, gradient, self.betas, update),
            Memory::EightBit {
                exp_avg,
                exp_avg_sq,
                step,
            } => {
                *step += 1;
                let mut values = parameter.to_vec();
                let h = self.betas.step(update, *step);
                adamw_8bit_step(&mut values, gradient.as_slice(), exp_avg, exp_avg_sq, &h);
                parameter.set(values);
            }
        }
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        let len = super::numel(shape);
        if len < EIGHT_BIT_FROM as u64 {
            return super::bytes_of(2 * len);
        }
        2 * (len + super::bytes_of(len.div_ceil(MOMENT_BLOCK as u64)))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        let mut stored = Vec::new();
        for (name, memory) in &self.memories {
            match memory {
                Memory::Single(history) => stored.extend(history.stored(name)),
                Memory::EightBit {
                    exp_avg,
                    exp_avg_sq,
                    step,
                } => {
                    stored.push((format!("step.{name}"), StateTensor::Count(*step)));
                    for (moment, part) in [("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)] {
                        let key = format!("{moment}.{name}");
                        let absmax = StateTensor::Values(part.absmax());
                        stored.push((format!("{key}.absmax"), absmax));
                        stored.push((key, StateTensor::Codes(part.codes())));
                    }
                }
            }
        }
        stored
    }

    fn restore(&mut self, mut state: SavedState) -> Result<(), String> {
        let mut memories = BTreeMap::new();
        for (name, step) in take_steps(&mut state)? {
            let memory = Memory::restored(&mut state, &name, step)?;
            memories.insert(name, memory);
        }
        check_taken(&state)?;
        self.memories = memories;
        Ok(())
    }
}

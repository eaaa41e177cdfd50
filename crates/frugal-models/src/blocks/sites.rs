//! Listing sites in the order of the forward pass.

use frugal_nn::{SiteInfo, SiteKind};

use crate::architecture::ModelConfig;

/// Sites so far.
#[derive(Default)]
pub struct Sites(Vec<SiteInfo>);

impl Sites {
    /// A site; the answer is for setting its flags.
    pub fn add(
        &mut self,
        path: String,
        kind: SiteKind,
        layer: Option<usize>,
        size: [usize; 2],
        has_bias: bool,
    ) -> &mut SiteInfo {
        self.0
            .push(SiteInfo::new(path, kind, layer, size, has_bias));
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// A linear layer of a block.
    pub fn linear(&mut self, path: String, layer: usize, size: [usize; 2], has_bias: bool) {
        self.add(path, SiteKind::Linear, Some(layer), size, has_bias);
    }

    /// The same where its output is added to the residual stream.
    pub fn output(&mut self, path: String, layer: usize, size: [usize; 2], has_bias: bool) {
        self.add(path, SiteKind::Linear, Some(layer), size, has_bias)
            .writes_to_residual = true;
    }

    /// A root-mean-square norm.
    pub fn norm(&mut self, path: String, layer: Option<usize>, width: usize) {
        self.add(path, SiteKind::Norm, layer, [1, width], false);
    }

    /// A layer norm.
    pub fn layer_norm(&mut self, path: String, layer: Option<usize>, width: usize) {
        self.add(path, SiteKind::Norm, layer, [1, width], true);
    }

    /// The table that token ids are looked up in.
    pub fn token_table(&mut self, path: String, config: &ModelConfig) {
        let size = [config.vocab_size, config.hidden_size];
        self.add(path, SiteKind::Embedding, None, size, false)
            .token_table = true;
    }

    /// Another table.
    pub fn table(&mut self, path: String, rows: usize, width: usize) {
        self.add(path, SiteKind::Embedding, None, [rows, width], false);
    }

    /// The output over the vocabulary.
    pub fn lm_head(&mut self, config: &ModelConfig) {
        let size = [config.hidden_size, config.vocab_size];
        self.add("lm_head".into(), SiteKind::LmHead, None, size, false)
            .tied = config.tie_word_embeddings;
    }

    /// Sites that several blocks share, so that they belong to none.
    pub fn of_no_block(&mut self, list: impl FnOnce(&mut Self)) {
        let first = self.0.len();
        list(self);
        self.0[first..]
            .iter_mut()
            .for_each(|site| site.layer = None);
    }

    /// All of them.
    pub fn finish(self) -> Vec<SiteInfo> {
        self.0
    }
}

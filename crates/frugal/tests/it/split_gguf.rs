//! Models in several GGUF files against `transformers` (`scripts/golden/gguf_split.py`).

use frugal::adapt::{NoAdapter, Rows};
use frugal::model::load::GgufSource;
use frugal::model::{Input, ModelConfig, WeightSource, build};

use crate::support::{Golden, assert_close, device, fixture};

#[test]
fn a_split_gguf_model_has_the_logits_of_the_whole_whichever_part_is_named() {
    let golden = Golden::read(&fixture("models/mistral/golden.safetensors"));
    for number in 1..=3 {
        let path = fixture("gguf/split").join(format!("mistral-{number:05}-of-00003.gguf"));
        let source = GgufSource::open(&path).unwrap();
        assert_eq!(source.names().len(), 21);
        let config = ModelConfig::from_json(source.config().clone(), "split").unwrap();
        let backbone = build(config, &source, &device()).unwrap();
        for s in golden.sequences() {
            let ids = golden.input_ids(s);
            let hidden = backbone
                .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
                .unwrap();
            let logits = backbone
                .logits(hidden, Rows::Tokens, &mut NoAdapter)
                .unwrap();
            let expected = golden.float(&format!("seq{s}.logits")).unwrap();
            assert_close(&format!("part {number}"), logits, expected, 1e-4);
        }
    }
}

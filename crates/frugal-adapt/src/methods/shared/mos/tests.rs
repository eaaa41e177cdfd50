use super::*;
use frugal_models::ModelConfig;
use frugal_nn::SiteKind;
use frugal_nn::to_vec;

fn build(raw: Value, settings: Value, seed: u64) -> Mos {
    let config = ModelConfig::from_json(raw, "test").unwrap();
    let sites = config.sites();
    let context = BuildContext {
        info: &config.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed,
        tokenize: None,
    };
    Mos::new(serde_json::from_value(settings).unwrap(), &context).unwrap()
}

fn llama(hidden: usize, ff: usize, layers: usize, heads: usize, kv: usize) -> Value {
    serde_json::json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": 64})
}

fn tiny(settings: Value) -> Mos {
    build(llama(16, 24, 3, 4, 2), settings, 7)
}

#[test]
fn the_budget_is_that_of_lora_of_the_equivalent_rank() {
    // The log of the released code for LLaMA-2-7B says 4,997,120 and 19,988,480.
    let count = |raw, e: usize, r: usize| {
        build(raw, serde_json::json!({"equivalent_rank": e, "r": r}), 1).num_trainable()
    };
    assert_eq!(count(llama(4096, 11008, 32, 32, 32), 2, 8), 4_997_120);
    assert_eq!(count(llama(576, 1536, 30, 9, 3), 2, 8), 610_560);
    assert_eq!(count(llama(576, 1536, 30, 9, 3), 8, 32), 2_442_240);
}

#[test]
fn vectors_are_assembled_from_shards_in_order() {
    let pool = Tensor::<2>::from_data(
        TensorData::new(
            (0..8).flat_map(|i| [i as f32; 2]).collect::<Vec<_>>(),
            [8, 2],
        ),
        &Device::default(),
    );
    let a = assemble(pool, &[2, 0, 3, 1, 4, 5], 2);
    assert_eq!(
        to_vec(a),
        [2.0, 2.0, 0.0, 0.0, 3.0, 3.0, 1.0, 1.0, 4.0, 4.0, 5.0, 5.0]
    );
}

#[test]
fn private_shards_are_private_and_public_ones_do_not_repeat() {
    let mos = tiny(
        serde_json::json!({"equivalent_rank": 3, "r": 5, "private_rank": 1, "shards_per_vector": 2}),
    );
    let (public, members): (usize, Vec<&Member>) = (
        2 * 3 * 2,
        mos.members
            .iter()
            .flatten()
            .filter(|m| m.path.ends_with("q_proj"))
            .collect(),
    );
    assert_eq!(members.len(), 3);
    let mut seen = Vec::new();
    for (block, member) in members.iter().enumerate() {
        for index in [&member.index_a, &member.index_b] {
            let mut rows: Vec<usize> = index.to_vec().iter().map(|&i| i as usize).collect();
            assert_eq!(
                rows[rows.len() - 2..],
                [public + 2 * block, public + 2 * block + 1]
            );
            rows.truncate(rows.len() - 2);
            assert!(rows.iter().all(|&row| row < public));
            rows.sort_unstable();
            assert!(rows.windows(2).all(|w| w[0] != w[1]));
        }
        assert_ne!(member.index_a.to_vec(), member.index_b.to_vec());
        seen.push(member.index_a.to_vec());
    }
    assert_ne!(seen[0][..8], seen[1][..8]);
    let paired =
        tiny(serde_json::json!({"equivalent_rank": 3, "r": 5, "pair_dissociation": false}));
    assert!(
        paired
            .members
            .iter()
            .flatten()
            .all(|m| m.index_a.to_vec() == m.index_b.to_vec())
    );
}

#[test]
fn a_wholly_private_pool_in_one_piece_is_lora() {
    let mut mos = tiny(
        serde_json::json!({"equivalent_rank": 2, "r": 2, "private_rank": 2, "shards_per_vector": 1}),
    );
    for (i, pool) in mos.pools.iter_mut().enumerate() {
        let values = |p: &Parameter, s: f32| {
            (0..p.len())
                .map(|j| ((i + j) as f32 * s).sin())
                .collect::<Vec<_>>()
        };
        let (a, b) = (values(&pool.a, 0.7), values(&pool.b, 1.3));
        pool.a.set(a);
        pool.b.set(b);
    }
    let blocks: Vec<&Member> = mos
        .members
        .iter()
        .flatten()
        .filter(|m| m.path.ends_with("k_proj"))
        .collect();
    for (block, member) in blocks.into_iter().enumerate() {
        let (a, b) = mos.assembled(member, Mode::Eval);
        let pool = &mos.pools[member.pool];
        assert_eq!(
            to_vec(a),
            pool.a.to_vec()[block * 2 * 16..(block + 1) * 2 * 16]
        );
        assert_eq!(
            to_vec(b.transpose()),
            pool.b.to_vec()[block * 2 * 8..(block + 1) * 2 * 8]
        );
        assert_eq!(member.scale, 8.0);
    }
}

#[test]
fn only_the_number_of_the_block_is_left_out_of_a_pool() {
    let site = |path: &str, layer: Option<usize>| {
        kind_of(&SiteInfo::new(path, SiteKind::Linear, layer, [8, 8], false))
    };
    let expert = |layer: usize| {
        site(
            &format!("model.layers.{layer}.block_sparse_moe.experts.1.w1"),
            Some(layer),
        )
    };
    assert_eq!(expert(1), "model.layers.*.block_sparse_moe.experts.1.w1");
    assert_eq!(expert(1), expert(2));
    assert_eq!(site("pooler.dense", None), "pooler.dense");
}

#[test]
fn indices_beyond_the_pool_name_its_last_row() {
    let mut mos = tiny(serde_json::json!({}));
    let rows = mos
        .members
        .iter()
        .flatten()
        .next()
        .map(|m| mos.pools[m.pool].a.shape()[0])
        .unwrap();
    let mut assembled = |index: f32| {
        mos.members
            .iter_mut()
            .flatten()
            .for_each(|m| m.index_a.set(vec![index; m.index_a.len()]));
        let member = mos.members.iter().flatten().next().unwrap();
        to_vec(mos.assembled(member, Mode::Eval).0)
    };
    assert_eq!(assembled(1e9), assembled(rows as f32 - 1.0));
}

#[test]
fn a_shared_row_receives_the_sum_of_its_uses() {
    let pool = Tensor::<2>::from_data(
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        &Device::default().autodiff(),
    )
    .require_grad();
    let weights = Tensor::<2>::from_data([[1.0, 10.0, 100.0, 1000.0]], &Device::default());
    let first = (assemble(pool.clone(), &[0, 2], 2) * weights.clone()).sum();
    let second = (assemble(pool.clone(), &[2, 0], 2) * weights * 3.0).sum();
    let gradient = pool.grad(&(first + second).backward()).unwrap();
    assert_eq!(to_vec(gradient), [301.0, 3010.0, 0.0, 0.0, 103.0, 1030.0]);
}

#[test]
fn a_width_that_shards_do_not_divide_is_named() {
    let config = ModelConfig::from_json(llama(16, 24, 3, 4, 2), "test").unwrap();
    let sites = config.sites();
    let context = BuildContext {
        info: &config.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed: 1,
        tokenize: None,
    };
    let message = Mos::new(
        MosConfig {
            shards_per_vector: 5,
            ..MosConfig::default()
        },
        &context,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(message.contains("5 does not divide 24"), "{message}");
}

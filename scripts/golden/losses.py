"""Losses of sentence-transformers over vectors of texts and over the scores of a cross-encoder, with
their gradients: fixtures/training/losses.json.

    python scripts/golden/losses.py
"""

import json
from pathlib import Path

import sentence_transformers
import torch
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.cross_encoder import losses as lists
from sentence_transformers.sentence_transformer import losses as vectors
from sentence_transformers.sentence_transformer.losses.matryoshka import shrink
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim

OUT = Path(__file__).parents[2] / "fixtures/training/losses.json"
torch.set_num_threads(1)
torch.manual_seed(7)


def values(tensor):
    return [round(float(x), 8) for x in tensor.flatten()]


def of_vectors(name, objective, settings, loss, columns, scores=None, dims=(), weights=()):
    """Columns are `[examples, dimension]`; the fixture has them example by example."""
    columns = [column.clone().requires_grad_() for column in columns]
    labels = torch.tensor(scores) if scores is not None else None
    if dims:
        parts = [
            w * loss.compute_loss_from_embeddings([shrink(c, d) for c in columns], labels)
            for d, w in zip(dims, weights)
        ]
        found = sum(parts)
    else:
        found = loss.compute_loss_from_embeddings(columns, labels)
    found.backward()
    stacked = torch.stack(columns, dim=1)
    return {
        "name": name,
        "objective": {"name": objective, **settings},
        "texts": stacked.shape[1],
        "dimension": stacked.shape[2],
        "vectors": values(stacked.detach()),
        "scores": [] if scores is None else [s if isinstance(s, list) else [s] for s in scores],
        "loss": float(found),
        "gradient": values(torch.stack([c.grad for c in columns], dim=1)),
    }


class Scores(CrossEncoder):
    """A cross-encoder whose scores are given."""

    def __init__(self, scores):
        torch.nn.Module.__init__(self)
        self.given = torch.nn.Parameter(torch.tensor(scores))

    num_labels = 1
    device = torch.device("cpu")

    def preprocess(self, pairs, **_):
        return {"at": torch.tensor([int(text) for _, text in pairs])}

    def forward(self, features):
        return {"scores": self.given[features["at"]]}


def of_lists(name, objective, settings, make, labels, scores):
    model = Scores(scores)
    loss = make(model)
    places = iter(range(len(scores)))
    texts = [[str(next(places)) for _ in row] for row in labels]
    queries = ["q"] * len(labels)
    if objective == "bce":
        flat = [text for row in texts for text in row]
        found = loss([["q"] * len(flat), flat], torch.tensor([x for row in labels for x in row]))
    else:
        found = loss([queries, texts], [torch.tensor(row) for row in labels])
    found.backward()
    return {
        "name": name,
        "objective": {"name": objective, **settings},
        "labels": labels,
        "scores": [round(float(x), 8) for x in model.given],
        "loss": float(found),
        "gradient": values(model.given.grad),
    }


def main():
    def random(texts, examples=4, dimension=6):
        return [torch.randn(examples, dimension) for _ in range(texts)]

    euclidean, cosine, manhattan = (
        getattr(vectors.TripletDistanceMetric, name) for name in ("EUCLIDEAN", "COSINE", "MANHATTAN")
    )
    ranking = vectors.MultipleNegativesRankingLoss
    scores = [0.9, 0.1, 0.5, 0.5]
    taught = [[3.0, -1.0, 0.5], [2.0, 1.5, -2.0], [0.0, 0.5, 1.0], [5.0, 4.0, 4.5]]
    embedding = [
        of_vectors("pairs", "info_nce", {}, ranking(None), random(2)),
        of_vectors("hard negatives", "info_nce", {"scale": 5.0}, ranking(None, scale=5.0), random(4)),
        of_vectors(
            "products",
            "info_nce",
            {"temperature": 2.0, "similarity": "dot"},
            ranking(None, scale=0.5, similarity_fct=dot_score),
            random(3),
        ),
        of_vectors(
            "matryoshka",
            "info_nce",
            {"matryoshka_dims": [6, 4, 2], "matryoshka_weights": [1.0, 0.5, 0.25]},
            ranking(None, similarity_fct=cos_sim),
            random(3),
            dims=[6, 4, 2],
            weights=[1.0, 0.5, 0.25],
        ),
        of_vectors("euclidean", "triplet", {}, vectors.TripletLoss(None), random(3)),
        of_vectors(
            "cosine",
            "triplet",
            {"distance_metric": "cosine", "triplet_margin": 0.3},
            vectors.TripletLoss(None, distance_metric=cosine, triplet_margin=0.3),
            random(3),
        ),
        of_vectors(
            "manhattan",
            "triplet",
            {"distance_metric": "manhattan", "triplet_margin": 1.0},
            vectors.TripletLoss(None, distance_metric=manhattan, triplet_margin=1.0),
            random(3),
        ),
        of_vectors("scores", "cosent", {}, vectors.CoSENTLoss(None), random(2), scores),
        of_vectors(
            "another scale",
            "cosent",
            {"scale": 3.0, "matryoshka_dims": [6, 3]},
            vectors.CoSENTLoss(None, scale=3.0),
            random(2),
            scores,
            dims=[6, 3],
            weights=[1.0, 1.0],
        ),
        of_vectors("margins", "margin_mse", {}, vectors.MarginMSELoss(None), random(3), [1.5, -0.5, 2.0, 0.0]),
        of_vectors("scores of each", "margin_mse", {}, vectors.MarginMSELoss(None), random(4), taught),
        of_vectors(
            "cosines",
            "margin_mse",
            {"similarity": "cos"},
            vectors.MarginMSELoss(None, similarity_fct=pairwise_cos_sim),
            random(4),
            taught,
        ),
        of_vectors("a teacher", "kl_distill", {}, vectors.DistillKLDivLoss(None), random(4), taught),
        of_vectors(
            "temperatures",
            "kl_distill",
            {"temperature": 2.0, "teacher_temperature": 0.5, "similarity": "cos"},
            vectors.DistillKLDivLoss(
                None, temperature=2.0, teacher_temperature=0.5, similarity_fct=pairwise_cos_sim
            ),
            random(4),
            taught,
        ),
    ]
    assert euclidean
    labels = [[1.0, 0.0, 2.0], [0.0, 1.0], [0.0, 0.0, 3.0, 1.0]]
    binary = [[1.0, 0.0, 0.5], [0.0, 1.0]]
    given = [0.3, -0.2, 0.1, 1.5, -0.7, 0.4, 2.0, -1.1, 0.6]
    schemes = {
        "none": lists.NoWeightingScheme,
        "ndcg_loss1": lists.NDCGLoss1Scheme,
        "ndcg_loss2": lists.NDCGLoss2Scheme,
        "lambda_rank": lists.LambdaRankScheme,
        "ndcg_loss2_pp": lists.NDCGLoss2PPScheme,
    }
    reranking = [
        of_lists("all pairs", "pairwise", {}, lists.RankNetLoss, labels, given),
        of_lists(
            "first", "pairwise", {"k": 1, "sigma": 2.0}, lambda m: lists.RankNetLoss(m, k=1, sigma=2.0), labels, given
        ),
        of_lists("lists", "list_net", {}, lists.ListNetLoss, labels, given),
        of_lists("defaults", "lambda_loss", {}, lists.LambdaLoss, labels, given),
        of_lists(
            "first two", "lambda_loss", {"k": 2, "sigma": 0.5}, lambda m: lists.LambdaLoss(m, k=2, sigma=0.5), labels, given
        ),
        *(
            of_lists(
                scheme,
                "lambda_loss",
                {"weighting_scheme": scheme},
                lambda m, make=make: lists.LambdaLoss(m, weighting_scheme=make()),
                labels,
                given,
            )
            for scheme, make in schemes.items()
        ),
        of_lists("each", "bce", {}, lists.BinaryCrossEntropyLoss, binary, given[:5]),
        of_lists(
            "weighted",
            "bce",
            {"pos_weight": 3.0},
            lambda m: lists.BinaryCrossEntropyLoss(m, pos_weight=torch.tensor(3.0)),
            binary,
            given[:5],
        ),
    ]
    content = {
        "sentence_transformers": sentence_transformers.__version__,
        "embedding": embedding,
        "reranking": reranking,
    }
    OUT.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
    print(f"{OUT}: {len(embedding)} losses of vectors, {len(reranking)} of lists")


if __name__ == "__main__":
    main()

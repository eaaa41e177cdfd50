"""A tiny WideNet (arXiv 2107.11817) that writes text, in PyTorch.

Usage: python scripts/golden/widenet.py      writes fixtures/models/widenet/
"""

from routed import Decoder, write

PARTS = {"self_attn": "share_attention", "block_sparse_moe": "share_experts"}


class Widenet(Decoder):
    def shares(self, key):
        return self.c.get(key, key != "share_norms")

    def place(self, layer, part, key):
        return f"model.shared.{part}" if self.shares(key) else f"model.layers.{layer}.{part}"

    def where(self, layer, part):
        return self.place(layer, part, PARTS[part])

    def norm(self, layer, name):
        return self.place(layer, name, "share_norms")

    def route(self, layer, x, state):
        path = self.place(layer, "block_sparse_moe", "share_router")
        return self.linear(f"{path}.gate", x, self.c["num_local_experts"]), None

    def normalises(self):
        return self.c.get("norm_topk_prob", False)

    def capacity(self, tokens):
        factor = self.c.get("expert_capacity_factor")
        even = self.c["num_experts_per_tok"] * tokens / self.c["num_local_experts"]
        return None if factor is None else int(factor * even)

    def loss(self):
        balance, z = self.added()
        return self.c["router_aux_loss_coef"] * balance.sum() + self.c.get("router_z_loss_coef", 0.0) * z.mean()


if __name__ == "__main__":
    own = dict(num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.05)
    none = dict(share_attention=False, share_experts=False, share_router=False)
    variants = {
        "shared norms": dict(share_norms=True),
        "own routers": dict(share_router=False),
        "own attention": dict(share_attention=False),
        "nothing shared": none,
        "one expert": dict(num_local_experts=1, num_experts_per_tok=1),
        "scaled": dict(norm_topk_prob=True, router_z_loss_coef=0.02),
        "capacity": dict(expert_capacity_factor=0.8),
    }
    write("widenet", Widenet, own, variants, "float32, experts token by token")

"""A tiny RMoE (arXiv 2408.06793) in PyTorch, with PyTorch's own recurrent cells.

Usage: python scripts/golden/rmoe.py      writes fixtures/models/rmoe/
"""

import torch
from routed import Decoder, write

CELLS = {"gru": (torch.nn.GRUCell, 3), "rnn": (torch.nn.RNNCell, 1), "lstm": (torch.nn.LSTMCell, 4)}


class Rmoe(Decoder):
    def route(self, layer, x, state):
        c, kind = self.c, self.c["moe_router_type"]
        path, count = self.where(layer, "block_sparse_moe"), c["num_local_experts"]
        if kind == "linear":
            return self.linear(f"{path}.gate", x, count), None
        p = c["moe_router_rnn_hidden_size"]
        shares = c.get("moe_router_share_projection", False)
        x = self.linear("model.router_proj" if shares else f"{path}.router_proj", x, p)
        cls, maps = CELLS[kind]
        names = {"weight_ih": "ih.weight", "weight_hh": "hh.weight", "bias_ih": "ih.bias", "bias_hh": "hh.bias"}
        shapes = {n: (maps * p,) + (p,) * n.startswith("weight") for n in names}
        weights = {n: self.w.get(f"model.rnn_router.{f}", *shapes[n]) for n, f in names.items()}
        zeros = torch.zeros(len(x), p)
        hidden, scores = state or (None, None)
        if hidden is None or not c.get("moe_router_recurrent", True):
            hidden = (zeros, zeros) if kind == "lstm" else zeros
        if c.get("moe_router_detach", False):
            hidden = tuple(h.detach() for h in hidden) if kind == "lstm" else hidden.detach()
        hidden = torch.func.functional_call(cls(p, p), weights, (x, hidden))
        logits = self.linear(f"{path}.gate", hidden[0] if kind == "lstm" else hidden, count)
        if scores is not None:
            logits = logits + c.get("moe_router_residual", 0.0) * scores
        return logits, (hidden, logits)

    def loss(self):
        balance, z = self.added()
        return (self.c["router_aux_loss_coef"] * balance + self.c.get("router_z_loss_coef", 0.0) * z).mean()


if __name__ == "__main__":
    own = dict(
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.1,
        router_z_loss_coef=0.05,
        moe_router_type="gru",
        moe_router_rnn_hidden_size=16,
    )
    variants = {
        "NP": dict(moe_router_recurrent=False),
        "detach": dict(moe_router_detach=True),
        "r-0.5": dict(moe_router_recurrent=False, moe_router_residual=0.5),
        "shared projection": dict(moe_router_share_projection=True),
        "rnn": dict(moe_router_type="rnn"),
        "lstm": dict(moe_router_type="lstm"),
        "lstm, detach": dict(moe_router_type="lstm", moe_router_detach=True),
        "linear": dict(moe_router_type="linear"),
        "three of four": dict(num_experts_per_tok=3, router_z_loss_coef=0.0),
    }
    write("rmoe", Rmoe, own, variants, "float32, torch.nn.GRUCell, RNNCell and LSTMCell, experts token by token")

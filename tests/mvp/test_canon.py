import timm
import torch
from torch import nn

from mvp.canon import ATTRIBUTES
from mvp.plan import axes_of, make_plan

torch.set_num_threads(1)


def test_axes_are_numbered_by_first_write_and_every_name_is_known() -> None:
    plan = make_plan(timm.create_model("efficientformer_l1"), (3, 224, 224), verify=False)
    first = {axis: min(w["depth"] for w in entry["writers"]) for axis, entry in plan["axes"].items()}
    assert list(first.values()) == sorted(first.values())
    named = {axis for exprs in plan["params"].values() for expr in exprs for axis in axes_of(expr)}
    named |= {axis for _, _, expr in plan["attrs"] for axis in axes_of(expr)}
    named |= {axis for _, exprs in plan["macs"] for expr in exprs for axis in axes_of(expr)}
    named |= {axis for e in plan["axes"].values() for w in e["writers"] for axis in axes_of(w["expr"])}
    assert named == set(plan["axes"])
    assert all(any(not isinstance(expr, int) for expr in exprs) for exprs in plan["params"].values())


def test_equal_head_count_and_head_width_are_told_apart() -> None:
    """Four heads of four: both attributes hold 4, and only the number of heads follows the heads."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_dim, self.window = 4, 4, 4
            self.qkv, self.proj = nn.Linear(8, 48), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, _ = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.proj(out.reshape(n, t, self.num_heads * self.head_dim))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attn, self.head = nn.Conv2d(3, 8, 2, 2), Attention(), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attn(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    plan = make_plan(Net(), (3, 4, 4))
    heads = next(axis for axis, entry in plan["axes"].items() if entry["kind"] == "head")
    assert plan["axes"][heads]["unsupported"] is None
    set_here = {attr: expr for module, attr, expr in plan["attrs"] if module == "attn"}
    assert set_here["num_heads"] == heads and set_here["head_dim"] != heads and "window" not in set_here
    assert {attr for _, attr, _ in plan["attrs"]} <= ATTRIBUTES


def test_blocks_are_numbered_ancestors_with_several_layers() -> None:
    swin = make_plan(timm.create_model("swin_tiny_patch4_window7_224"), (3, 224, 224), verify=False)
    blocks = {entry["block"] for entry in swin["axes"].values() if entry["kind"] == "head"}
    assert blocks == {f"layers.{i}.blocks.{j}" for i, n in enumerate((2, 2, 6, 2)) for j in range(n)}
    resnet = make_plan(timm.create_model("resnet18"), verify=False)
    assert [entry["block"] for entry in resnet["axes"].values()][:3] == [None, "layer1.0", "layer1.1"]

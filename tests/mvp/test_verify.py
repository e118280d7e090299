import pytest
import timm
import torch
from torch import nn

from mvp.plan import check_channels, make_plan, prunable
from mvp.verify import Checker, random_channels, randomised, verify
from zoo.errors import PlanError

torch.set_num_threads(1)


class HardCoded(nn.Module):
    """A sound block, one that views by a number, and one whose scale depends on its width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.a(x.flatten(1)))
        x = torch.tanh(self.b(x)).view(-1, 4, 2).flatten(1)
        x = torch.tanh(self.c(x))
        return self.d(x * x.shape[1] ** -0.5)


def test_axes_that_fail_or_differ_are_found_and_the_others_stay() -> None:
    model = HardCoded()
    plan = make_plan(model, (3, 2, 2), verify=False)
    assert len(prunable(plan)) == len(plan["axes"])
    checked = verify(model, plan)
    reasons = {entry["writers"][0]["layer"]: entry["unsupported"] for entry in checked["axes"].values()}
    assert reasons["a"] is None
    assert "fails" in reasons["b"]
    assert "differs" in reasons["c"]
    assert plan["axes"]["a0"]["unsupported"] is None and all(e["unsupported"] is None for e in plan["axes"].values())
    bad = next(axis for axis, entry in checked["axes"].items() if entry["writers"][0]["layer"] == "c")
    with pytest.raises(PlanError, match=r"written by c\) cannot be pruned: the slim network differs"):
        check_channels(checked, {bad: [0, 1]})


def test_multihead_attention_keeps_its_heads_and_prunes_its_nodes() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Conv2d(3, 16, 2, 2), layer, nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    plan = make_plan(Net(), (3, 4, 4))
    assert [plan["axes"][axis]["writers"][0]["layer"] for axis in prunable(plan)] == ["layer.linear1"]
    heads = [entry for entry in plan["axes"].values() if entry["kind"] == "head"]
    assert heads and all("the slim network fails" in entry["unsupported"] for entry in heads)


def test_verification_without_a_usable_meta_device() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.b(torch.relu(self.a(x if float(x.sum()) > -1e9 else -x)))

    plan = make_plan(Peeks(), (3, 2, 2))
    assert prunable(plan) == ["a0"]


def test_randomised_leaves_nothing_at_its_initial_value() -> None:
    model = timm.create_model("resnet18", zero_init_last=True)
    copy = randomised(model, seed=1)
    assert all(p.dtype == torch.float64 and p.std() > 0 and (p != 0).all() for p in copy.parameters())
    assert all((b > 0).all() for name, b in copy.named_buffers() if name.endswith("running_var"))
    assert not model.layer1[0].bn2.weight.any()  # the original is untouched
    again = randomised(model, seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in copy.state_dict().items())
    assert not torch.equal(randomised(model, seed=2).conv1.weight, copy.conv1.weight)


def test_random_channels_do_not_depend_on_the_other_axes() -> None:
    plan = {"axes": {"a0": {"n": 10}, "a1": {"n": 3}, "a2": {"n": 7}}}
    both, one = random_channels(plan, ["a0", "a1", "a2"], 0.3, seed=4), random_channels(plan, ["a2"], 0.3, seed=4)
    assert both["a2"].tolist() == one["a2"].tolist()
    assert {axis: len(kept) for axis, kept in both.items()} == {"a0": 3, "a1": 1, "a2": 2}


def test_the_checker_sees_a_wrong_plan() -> None:
    model = HardCoded()
    plan = make_plan(model, (3, 2, 2), verify=False)
    good = prunable(plan)[:1]
    assert Checker(model, plan).differs(good, [0.5], 1e-9) is None
    del plan["consumers"]["b.weight"]  # then the full network is not masked any more
    assert "differs" in (Checker(model, plan).differs(good, [0.5], 1e-9) or "")

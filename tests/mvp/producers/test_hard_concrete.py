import math

import pytest
import torch

from mvp.producers.hard_concrete import HardConcrete


def gate(shape=(5, 4), penalty=0.0, alive=None):
    alive = torch.ones(shape, dtype=torch.bool) if alive is None else alive
    return HardConcrete(alive, torch.Generator().manual_seed(0), penalty)


def test_a_gate_is_the_papers_stretched_and_clipped_concrete_variable():
    own, weight = gate(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own.log_alpha.copy_(torch.linspace(-6, 6, 20).view(5, 4))
    torch.manual_seed(2)
    got = own.train()(weight).detach()
    torch.manual_seed(2)
    u, log_alpha = torch.rand(5, 4), own.log_alpha.detach()
    for i in range(5):
        for j in range(4):
            noise = math.log(u[i, j]) - math.log(1 - u[i, j])
            s = 1 / (1 + math.exp(-(noise + float(log_alpha[i, j])) / (2 / 3)))
            z = min(1, max(0, s * (1.1 + 0.1) - 0.1))
            assert float(got[i, j]) == pytest.approx(float(weight[i, j]) * z, abs=1e-5)
            at_test = min(1, max(0, 1.2 / (1 + math.exp(-float(log_alpha[i, j]))) - 0.1))
            assert float(own.eval()(weight).detach()[i, j]) == pytest.approx(float(weight[i, j]) * at_test, abs=1e-5)


def test_how_likely_a_gate_is_open_is_how_often_it_is():
    own = gate((20_000, 5))
    with torch.no_grad():
        own.log_alpha.copy_(torch.tensor([-4.0, -2, -1, 0, 2]).expand(20_000, 5))
    torch.manual_seed(0)
    often = (own.train()(torch.ones(20_000, 5)) > 0).double().mean(0)
    torch.testing.assert_close(own.open()[0].double(), often, atol=0.015, rtol=0)


def test_the_penalty_is_the_derivative_of_the_probability_of_open_gates():
    alive = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) > 0.3
    plain, penalised = gate(alive=alive), gate(penalty=0.7, alive=alive)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    probability = torch.sigmoid(plain.log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    (plain.train()(weight).square().sum() + 0.7 * (probability * alive).sum()).backward()
    torch.manual_seed(5)
    penalised.train()(weight).square().sum().backward()
    torch.testing.assert_close(penalised.log_alpha.grad, plain.log_alpha.grad)


def test_gates_of_what_is_gone_are_closed():
    alive = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) > 0.5
    for own in (gate(alive=alive).train(), gate(alive=alive).eval()):
        assert torch.equal(own(torch.ones(5, 4)) == 0, ~alive)


def test_a_gate_that_hurts_closes_and_one_that_helps_stays_open():
    weight = torch.tensor([1.0, 1.0, 1.0])
    own = gate((3,), penalty=0.01).train()
    optimizer = torch.optim.AdamW([own.log_alpha], lr=0.1, weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(200):
        helps, hurts, idle = own(weight)
        loss = (1 - helps) ** 2 + hurts**2 + 0 * idle
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    helps, hurts, idle = own.open().tolist()
    assert helps > 0.9 and hurts < 0.1 and idle < 0.3


def test_the_penalty_rests_once_no_more_are_open_than_will_stay():
    own = HardConcrete(torch.ones(5, 4, dtype=torch.bool), torch.Generator().manual_seed(0), 0.7, least=10)
    for log_alpha, penalised in ((2.0, True), (-5.0, False)):
        own.zero_grad()
        with torch.no_grad():
            own.log_alpha.fill_(log_alpha)
        (0 * own.eval()(torch.ones(5, 4))).sum().backward()
        assert (own.open().sum() > 10) == penalised
        assert bool((own.log_alpha.grad > 0).all()) == penalised

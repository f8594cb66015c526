from types import SimpleNamespace

import pytest
import torch

from nifcore.gpu.layout import Layout
from nifcore.gpu.soap import BatchAdamW, BatchSoap
from nifcore.soap import Soap

# Square matrices: where a first gradient leaves part of a side's space out, any basis of that part
# is right, and two decompositions need not agree.
LAYOUT = Layout(SimpleNamespace(shapes=[(5, 5), (5,), (3, 3), (3,)]))
ITEMS = 3
RATES = torch.tensor([0.01, 0.02, 0.005], dtype=torch.float64)


def draw(generator):
    return torch.randn(ITEMS, LAYOUT.size, generator=generator, dtype=torch.float64)


def march(optimiser, gradients):
    for gradient in gradients:
        if optimiser.fresh:
            optimiser.begin(gradient, RATES)
        else:
            optimiser.step(gradient, RATES, due=optimiser.due)
        optimiser.advance()


def alone(start, gradients, item):
    params = LAYOUT.unpack(start[item])
    optimiser = Soap(params)
    for gradient in gradients:
        optimiser.step(LAYOUT.unpack(gradient[item]), float(RATES[item]))
    return torch.cat([p.flatten() for p in params]), optimiser


def test_many_together_are_each_alone():
    generator = torch.Generator().manual_seed(1)
    start, gradients = draw(generator), [draw(generator) for _ in range(34)]
    weights = start.clone()

    march(BatchSoap(LAYOUT, weights), gradients)

    for item in range(ITEMS):
        torch.testing.assert_close(weights[item], alone(start, gradients, item)[0])


def test_one_that_restarts_is_as_new_and_the_others_go_on():
    generator = torch.Generator().manual_seed(2)
    start, gradients = draw(generator), [draw(generator) for _ in range(27)]
    weights = start.clone()
    optimiser = BatchSoap(LAYOUT, weights)

    march(optimiser, gradients[:20])  # a multiple of the refresh, so that all turn together
    halfway = weights.clone()
    optimiser.restart([1])
    march(optimiser, gradients[20:])

    torch.testing.assert_close(weights[0], alone(start, gradients, 0)[0])
    torch.testing.assert_close(weights[2], alone(start, gradients, 2)[0])
    torch.testing.assert_close(weights[1], alone(halfway, gradients[20:], 1)[0])


def test_those_that_stay_do_not_notice_who_leaves():
    generator = torch.Generator().manual_seed(3)
    start, gradients = draw(generator), [draw(generator) for _ in range(25)]
    optimiser = BatchSoap(LAYOUT, start.clone())
    march(optimiser, gradients[:13])
    stay = torch.tensor([0, 2])

    weights = optimiser.weights.index_select(0, stay)
    optimiser.keep(stay, weights)
    for gradient in gradients[13:]:
        optimiser.step(gradient[stay], RATES[stay], due=optimiser.due)
        optimiser.advance()

    for row, item in enumerate(stay.tolist()):
        torch.testing.assert_close(weights[row], alone(start, gradients, item)[0])


def test_a_state_taken_out_goes_on_in_the_single_optimiser():
    generator = torch.Generator().manual_seed(4)
    start, gradients = draw(generator), [draw(generator) for _ in range(26)]
    weights = start.clone()
    optimiser = BatchSoap(LAYOUT, weights)
    march(optimiser, gradients[:15])

    params = LAYOUT.unpack(weights[1])
    single = Soap(params)
    single.load(optimiser.state_of(1))
    for gradient in gradients[15:]:
        single.step(LAYOUT.unpack(gradient[1]), float(RATES[1]))

    expected, _ = alone(start, gradients, 1)
    torch.testing.assert_close(torch.cat([p.flatten() for p in params]), expected)


def test_adamw_is_torchs():
    generator = torch.Generator().manual_seed(5)
    start, gradients = draw(generator), [draw(generator) for _ in range(12)]
    weights = start.clone()

    march(BatchAdamW(LAYOUT, weights, weight_decay=0.1), gradients)

    for item in range(ITEMS):
        row = start[item].clone()
        optimiser = torch.optim.AdamW([row], lr=float(RATES[item]), weight_decay=0.1)
        for gradient in gradients:
            row.grad = gradient[item]
            optimiser.step()
        torch.testing.assert_close(weights[item], row)


@pytest.mark.gpu
def test_a_step_can_be_recorded_and_replayed(cuda):
    generator = torch.Generator().manual_seed(6)
    start = draw(generator).float().to(cuda)
    gradients = [draw(generator).float().to(cuda) for _ in range(30)]
    rates = RATES.float().to(cuda)
    from nifcore.gpu.graphs import Recorder

    def run(recorder):
        weights = start.clone()
        optimiser = BatchSoap(LAYOUT, weights)
        given = torch.empty_like(start)
        for gradient in gradients:
            given.copy_(gradient)
            due = optimiser.due
            if optimiser.fresh:
                optimiser.begin(given, rates)
            else:
                recorder.run(due, lambda due=due: optimiser.step(given, rates, due=due))
            optimiser.advance()
        return weights

    recorded, plain = run(Recorder(cuda)), run(Recorder(torch.device("cpu")))

    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)


def test_sides_of_one_and_long_sides_stay_unrotated():
    layout = Layout(SimpleNamespace(shapes=[(1, 4), (6, 2)]))
    optimiser = BatchSoap(layout, torch.zeros(2, 16), max_side=4)

    rotated = [[side is not None for side in pair] for pair in optimiser.bases]

    assert rotated == [[False, True], [False, True]]

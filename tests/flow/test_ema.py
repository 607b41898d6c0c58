"""The average of weights: what it is after some steps, in which precision, and back."""

import pytest
import torch

from megatron_music.flow.ema import WeightAverage


def module(dtype=torch.float32):
    built = torch.nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        built.weight.copy_(torch.arange(6.0).view(2, 3))
        built.bias.fill_(1.0)
    return built


def test_the_average_is_the_sum_it_is_defined_as():
    trained = module()
    average = WeightAverage(trained.named_parameters(), decay=0.9, warmup=False)
    history = [trained.bias.detach().clone()]
    for value in (2.0, -1.0, 5.0):
        with torch.no_grad():
            trained.bias.fill_(value)
        average.update(trained.named_parameters())
        history.append(trained.bias.detach().clone())
    expected = 0.9**3 * history[0] + sum(0.1 * 0.9 ** (3 - step) * history[step] for step in (1, 2, 3))
    torch.testing.assert_close(average.weights["bias"], expected)
    torch.testing.assert_close(average.weights["weight"], trained.weight.detach())


def test_warmup_forgets_the_first_weights_soon():
    trained = module()
    slow, warm = (WeightAverage(trained.named_parameters(), decay=0.999, warmup=warmup) for warmup in (False, True))
    with torch.no_grad():
        trained.bias.fill_(0.0)
    for _ in range(20):
        for average in (slow, warm):
            average.update(trained.named_parameters())
    assert slow.weights["bias"][0] > 0.97 and warm.weights["bias"][0] < 0.01
    # (1 + step) / (10 + step), then the decay itself.
    assert warm.weights["bias"][0] == pytest.approx(
        torch.tensor([(1 + step) / (10 + step) for step in range(1, 21)]).prod().item(), rel=1e-4
    )


def test_an_average_of_bfloat16_moves():
    trained = module(torch.bfloat16)
    average = WeightAverage(trained.named_parameters(), decay=0.999, warmup=False)
    with torch.no_grad():
        trained.bias.fill_(1.0078125)  # the next one after 1
    for _ in range(100):
        average.update(trained.named_parameters())
    assert average.weights["bias"].dtype == torch.float32
    assert average.weights["bias"][0] == pytest.approx(1 + 0.0078125 * (1 - 0.999**100), rel=1e-5)


def test_the_average_is_lent_to_the_model_and_taken_back_bit_for_bit():
    trained = module()
    average = WeightAverage(trained.named_parameters(), decay=0.5, warmup=False)
    with torch.no_grad():
        trained.weight.mul_(1.1)
    average.update(trained.named_parameters())
    own = trained.weight.detach().clone()
    with pytest.raises(KeyError), average.applied(trained.named_parameters()):
        assert torch.equal(trained.weight, average.weights["weight"]) and not torch.equal(trained.weight, own)
        raise KeyError("whatever goes wrong within")
    assert torch.equal(trained.weight, own)


def test_a_state_goes_on_where_it_was():
    trained = module()
    first = WeightAverage(trained.named_parameters(), decay=0.99)
    second = WeightAverage(module().named_parameters(), decay=0.99)
    with torch.no_grad():
        trained.weight.add_(1)
    first.update(trained.named_parameters())
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(trained.named_parameters())
    assert second.step == 2 and torch.equal(first.weights["weight"], second.weights["weight"])


def test_other_parameters_are_refused():
    average = WeightAverage(module().named_parameters())
    with pytest.raises(ValueError, match="other parameters than it is given: bias, weight"):
        average.update(torch.nn.Linear(4, 3).named_parameters())
    with pytest.raises(ValueError, match=r"decay is 1.0"):
        WeightAverage(module().named_parameters(), decay=1.0)

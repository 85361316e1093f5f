"""The optimizer: by hand where it can be, and what happens when a gradient is not a number."""

import pytest
import torch
from torch import nn

from vidbridge.config.choices import Schedule
from vidbridge.config.schema import OptimConfig
from vidbridge.errors import Diverged
from vidbridge.policy.engines.base import lr_factor
from vidbridge.policy.engines.local import LocalEngine


def make_engine(module=None, *, total_updates=4, **optim):
    torch.manual_seed(0)
    module = nn.Linear(2, 1) if module is None else module
    return LocalEngine(module, OptimConfig(**{"lr": 0.1, **optim}), total_updates=total_updates)


def weights(engine):
    return [weight.detach().clone() for weight in engine.module.parameters()]


def test_linear_schedule_with_warmup():
    """10 updates, 20 % warm-up: 1/3, 2/3, then 8 updates falling from 1 in eighths."""
    factors = [lr_factor(i, total_updates=10, schedule=Schedule.linear, warmup_frac=0.2) for i in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_constant_schedule_with_warmup():
    factors = [lr_factor(i, total_updates=4, schedule=Schedule.constant, warmup_frac=0.5) for i in range(4)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_updates_past_the_end_have_rate_zero():
    assert lr_factor(7, total_updates=4, schedule=Schedule.linear, warmup_frac=0.0) == 0.0


def test_the_first_adam_step_moves_each_weight_by_lr_against_its_gradient():
    """Adam's first step is lr * g / |g| whatever the size of g; the schedule then lowers the rate to 3/4."""
    engine = make_engine(max_grad_norm=1e9)
    before = weights(engine)
    engine.backward(engine.module(torch.tensor([3.0, -2.0])).sum())  # gradient (3, -2) and 1
    metrics = engine.update()
    moved = [after - start for after, start in zip(weights(engine), before)]
    torch.testing.assert_close(moved[0], torch.tensor([[-0.1, 0.1]]))
    torch.testing.assert_close(moved[1], torch.tensor([-0.1]))
    assert metrics == pytest.approx({"policy/lr": 0.1, "policy/skipped_updates": 0, "policy/grad_norm": 14**0.5})
    engine.backward(engine.module(torch.ones(2)).sum())
    assert engine.update()["policy/lr"] == pytest.approx(0.075)


def test_weight_decay_spares_the_bias():
    """No gradient at all: decay alone takes lr * decay = 1 % of the matrix and nothing of the bias."""
    engine = make_engine(weight_decay=0.1)
    before = weights(engine)
    engine.backward(0.0 * engine.module(torch.ones(2)).sum())
    engine.update()
    after = weights(engine)
    torch.testing.assert_close(after[0], before[0] * 0.99)
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_gradient_is_skipped_counted_and_leaves_no_trace(poison):
    engine, healthy = make_engine(schedule=Schedule.constant), make_engine(schedule=Schedule.constant)
    before = weights(engine)
    engine.backward(engine.module(torch.tensor([1.0, poison])).sum())
    assert engine.update() == {"policy/lr": 0.1, "policy/skipped_updates": 1.0}
    assert all(map(torch.equal, weights(engine), before))
    for each in (engine, healthy):
        each.backward(each.module(torch.ones(2)).sum())
        each.update()
    assert all(map(torch.equal, weights(engine), weights(healthy)))
    assert engine.skipped_updates == 1


def test_bfloat16_weights_gather_steps_too_small_for_them():
    """A step of 1e-4 is lost on a bfloat16 weight of 1 (its neighbours are 1/128 away); 100 of them move it by 0.01."""
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(module.weight)
    engine = make_engine(module, lr=1e-4, total_updates=100, schedule=Schedule.constant)
    for step in range(100):
        engine.backward(module(torch.ones(1, dtype=torch.bfloat16)).sum())
        engine.update()
        assert step > 5 or module.weight.item() == 1.0
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.item() == pytest.approx(0.99, abs=0.004)


def test_micro_batch_gradients_are_gathered_in_32_bits():
    """256 + 1 is 256 in bfloat16: eight gradients of 1 after one of 256 must still count (norm 264)."""
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    engine = make_engine(module)
    for scale in [256.0] + [1.0] * 8:
        engine.backward(module(torch.full((1,), scale, dtype=torch.bfloat16)).sum())
    assert engine.update()["policy/grad_norm"] == 264.0


def test_a_model_that_is_frozen_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        make_engine(nn.Linear(1, 1).requires_grad_(False))


def test_three_bad_gradients_in_a_row_stop_the_run_and_leave_the_weights():
    module = torch.nn.Linear(2, 1)
    engine = LocalEngine(module, OptimConfig(lr=0.1), total_updates=10)
    before = module.weight.detach().clone()

    def update(factor):
        engine.backward(module(torch.ones(1, 2)).sum() * factor)
        return engine.update()

    for factor in (float("nan"), float("inf")):
        update(factor)
    assert torch.equal(module.weight, before)
    assert update(1.0)["policy/skipped_updates"] == 2.0  # a good one starts the count again
    moved = module.weight.detach().clone()
    update(float("nan"))
    update(float("nan"))
    with pytest.raises(Diverged, match="not finite in 3 updates in a row"):
        update(float("nan"))
    assert torch.equal(module.weight, moved) and not torch.equal(moved, before)


def test_a_snapshot_is_a_copy_and_loading_it_goes_on_exactly(tmp_path):
    def built():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)).to(torch.bfloat16)
        return module, LocalEngine(module, OptimConfig(lr=0.1), total_updates=10)

    def train(module, engine, updates):
        for _ in range(updates):
            engine.backward((module(torch.ones(1, 3, dtype=torch.bfloat16)) ** 2).sum())
            engine.update()

    module, engine = built()
    train(module, engine, 3)
    write = engine.snapshot()
    train(module, engine, 4)  # after the copy was taken
    write(tmp_path)
    other, fresh = built()
    fresh.load(tmp_path)
    assert fresh.updates == 3
    train(other, fresh, 4)
    for one, two in zip([*module.parameters(), *engine.masters], [*other.parameters(), *fresh.masters], strict=True):
        assert torch.equal(one, two)

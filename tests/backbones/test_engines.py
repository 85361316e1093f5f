"""Every family beside Qwen2.5-VL under ZeRO on two ranks: the weights of one process, and a snapshot to go on from.

tests/policy/test_engines.py asks more, of Qwen2.5-VL.
"""

import json

import pytest
import torch

from tests.backbones.families import write_family
from tests.policy.test_engines import BESIDE, KINDS, broken_off, build, learn
from tests.ranks import on_ranks
from vidbridge.backbones import FAMILIES, backbone_of
from vidbridge.runtime import collectives

OTHERS = [name for name in FAMILIES if name != "qwen2_5_vl"]
SECOND = {"zero3": BESIDE["images"], "zero3_offload": BESIDE["text only"]}  # of the second rank, beside videos
TRIED = ["local", "zero2", "zero3", "zero3_offload"]
pytestmark = pytest.mark.slow


def built(folder, kind):
    """With the balance loss of the routers where there are some."""
    policy = build(folder, kind)
    policy.router_aux_coef = 0.5 if "moe" in folder.name else 0.0
    return policy


def explore(folders, out):
    """What runs on each rank."""
    seen = {}
    for family in OTHERS:
        policies = {kind: built(folders / family, KINDS[kind]) for kind in TRIED}
        for kind, policy in policies.items():
            learn(policy, 2, second=SECOND.get(kind))
            policy.save(out / family / kind)
        for kind, other in (("zero2", "zero3"), ("zero3", "zero2")):
            seen[f"{family} {kind}"] = broken_off(folders / family, out, KINDS[kind], policies[other])
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folders, out = tmp_path_factory.mktemp("families"), tmp_path_factory.mktemp("ranks")
    for family in OTHERS:
        write_family(family, folders / family)
    on_ranks(explore, folders, out)
    return folders, out


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("kind", TRIED)
def test_two_ranks_train_as_one_process(ran, family, kind):
    folders, out = ran
    policy = built(folders / family, None)
    learn(policy, 2, second=SECOND.get(kind))
    saved = backbone_of(family).model_class.from_pretrained(out / family / kind)
    before = dict(policy.reference.named_parameters())
    moved = 0
    for name, weight in policy.module.named_parameters():
        # a tenth of one update: Adam makes much of the rounding of a gradient near 0, in one process too
        torch.testing.assert_close(saved.get_parameter(name), weight, atol=1e-4, rtol=0)
        moved += not torch.equal(weight, before[name])
    assert moved > 0.9 * len(before)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_snapshot_is_gone_on_from_bit_for_bit(ran, family, kind):
    _, out = ran
    for rank in range(2):
        assert json.loads((out / f"rank{rank}.json").read_text())[f"{family} {kind}"] == [[], 2]

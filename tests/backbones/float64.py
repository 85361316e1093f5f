"""``python -m tests.backbones.float64 <family>``: the learner's test in 64 bits, with 1e-10 in the place of 1e-5.

In 32 bits two right orders of a recurrent layer's operations lie further apart than those of attention: 1e-3 to 1e-2
with the weights of this test, whose rounding alone moves the outputs as much. Here the library's file, and ours that
turn numbers into 32 bits, are read with 64 in their place, so that what is left is a difference of the arithmetic.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

WITHIN = 1e-10
OURS = ("vidbridge.algo.logprobs", "vidbridge.policy.plain")


def read_with_64_bits(name: str) -> None:
    """Import a module from its source, with float32 changed into float64."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8").replace("torch.float32", "torch.float64")
    source = source.replace(".float()", ".double()").replace("dtype=torch.float)", "dtype=torch.float64)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, spec.origin, "exec", dont_inherit=True), module.__dict__)


def main(family: str) -> None:
    torch.set_default_dtype(torch.float64)
    for name in (f"transformers.models.{family}.modeling_{family}", *OURS):
        read_with_64_bits(name)
    from tests.backbones.families import write_family
    from tests.policy.builders import make_policy, random_groups
    from vidbridge.backbones import backbone_of

    attention = import_module("tests.policy.test_attention")
    with TemporaryDirectory() as name:
        folder = write_family(family, Path(name), text={"initializer_range": 0.2})
        plain = backbone_of(family).model_class.from_pretrained(folder, dtype=torch.float32).double()
        policy = make_policy(folder, temperature=0.7)
        policy.module.double()
        for case, lengths in {**attention.CASES, "longer than a chunk": [[70, 3, 150], [5, 80]]}.items():
            attention.assert_same_learner(policy, plain, random_groups(policy, lengths), within=WITHIN)
            print(f"{case}: within {WITHIN}")


if __name__ == "__main__":
    main(*sys.argv[1:])

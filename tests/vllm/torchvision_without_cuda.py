"""Lets torchvision be imported beside a torch without CUDA; run as a program it installs itself for all processes.

The wheel of the package index is built for CUDA. Its library cannot be loaded then, and the import fails where it adds
to two operators that do not exist. Their signatures are enough: nobody calls them.
"""

import shutil
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from pathlib import Path

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class Declaring(MetaPathFinder):
    """Waits for the first import of torchvision; finds nothing itself."""

    def __init__(self):
        self.library = None  # the operators live as long as it does

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and self.library is None:
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in OPERATORS:
                    self.library.define(operator)
        return None


if __name__ == "__main__":
    here, packages = Path(__file__), Path(sysconfig.get_path("purelib"))
    shutil.copy(here, packages)
    (packages / f"{here.stem}.pth").write_text(f"import {here.stem}\n")
else:
    sys.meta_path.insert(0, Declaring())

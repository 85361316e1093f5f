"""Start a rollout server, for ``rollout=vllm_server`` of a training anywhere.

    python -m vidbridge.rollout.serve --model Qwen/Qwen2.5-VL-7B-Instruct --port 8200 --tensor-parallel-size 4
    python -m vidbridge.rollout.serve --engine shared_prefix        # our own rollout, without vLLM

Weights come from the training; of the model only its configuration and its tokenizer are read. Further arguments are
those of ``vllm serve`` for its engine. The server listens on this machine alone; with --host elsewhere it wants a key,
in the environment variable VLLM_API_KEY here and where the training runs. There is no encryption: for more than a
private network, put a proxy before it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Sequence

import vidbridge
from vidbridge.policy.loading import DTYPES
from vidbridge.rollout.server import RolloutServer, Served

HOST, PORT = "127.0.0.1", 8200
TINY = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / "tiny_qwen2_5_vl"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "shared_prefix"), default="vllm")
    parser.add_argument("--model", default=str(TINY), help="folder or hub id; without it the embedded model")
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT}; 0: any that is free")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="that of the training (model.dtype)")
    parser.add_argument("--max-tokens", type=int, default=32768, help="prompt and completion, at most")
    parser.add_argument("--max-rows", type=int, default=256, help="completions in flight")
    options, further = parser.parse_known_args(argv)
    key = os.environ.get("VLLM_API_KEY")
    if options.host not in (HOST, "localhost") and not key:
        parser.error(f"--host {options.host} can be reached from elsewhere: set VLLM_API_KEY here and for the training")
    if options.engine == "vllm" and find_spec("vllm") is None:
        parser.error("vLLM is not installed (docs/vllm.md); --engine shared_prefix does without it")
    if options.engine == "shared_prefix" and further:
        parser.error(f"unknown arguments: {' '.join(further)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("starting the engine ..", flush=True)
    served = build(options, further)
    try:
        with RolloutServer((options.host, options.port), served, key) as server:
            print(server.url, flush=True)
            server.serve_forever()
        sys.exit("the engine has ended")
    except OSError as error:
        parser.error(f"cannot listen at {options.host}:{options.port}: {error}; choose another with --port")
    except KeyboardInterrupt:
        pass
    finally:
        served.close()


def build(options: argparse.Namespace, further: Sequence[str]) -> Served:
    if options.engine == "shared_prefix":
        from vidbridge.rollout.served_shared_prefix import ServedSharedPrefix

        return ServedSharedPrefix(options.model, dtype=options.dtype, max_rows=options.max_rows)
    from vidbridge.rollout.served_vllm import ServedVllm

    return ServedVllm(
        options.model, further, dtype=options.dtype, max_tokens=options.max_tokens, max_rows=options.max_rows
    )


if __name__ == "__main__":
    main()

"""Writes positions_4_49.json: the positions that transformers 4.49.0 gives, the release that Qwen2.5-VL came with.

    python -m venv oracle && oracle/bin/pip install torch transformers==4.49.0
    oracle/bin/python tests/backbones/positions_oracle.py

That release does not run beside the one that vidbridge is tested with, so its numbers are kept.
"""

import json
from pathlib import Path

VIDEO, START, END = 7, 5, 6  # token ids; 1 is a word
MERGE = 2
FILE = Path(__file__).with_name("positions_4_49.json")

# text before, then for each video its grid in merged patches and the seconds between two grids; then text after
CASES = [
    {"before": 26, "videos": [[8, 3, 4, 2.5]], "after": 9},  # 16 frames of a 20 s clip
    {"before": 26, "videos": [[8, 3, 4, 37.5]], "after": 9},  # of a 300 s clip
    {"before": 3, "videos": [[4, 2, 2, 0.5]], "after": 4},
    {"before": 3, "videos": [[4, 2, 2, 1.5]], "after": 4},
    {"before": 3, "videos": [[4, 2, 2, 7.3]], "after": 4},
    {"before": 3, "videos": [[6, 2, 3, 0.25]], "after": 4},  # half a position a grid
    {"before": 3, "videos": [[1, 2, 5, 2.0]], "after": 4},  # wider than long
    {"before": 2, "videos": [[9, 1, 1, 0.7]], "after": 2},
    {"before": 2, "videos": [[9, 1, 1, 1.1]], "after": 2},
    {"before": 2, "videos": [[3, 2, 2, 2.5], [5, 1, 3, 0.9]], "after": 6},
    {"before": 12, "videos": [], "after": 0},
]


def ids_of(case: dict) -> list[int]:
    """Token ids: words, and each video between its two border tokens."""
    ids = [1] * case["before"]
    for grid_t, grid_h, grid_w, _ in case["videos"]:
        ids += [START, *[VIDEO] * (grid_t * grid_h * grid_w), END]
    return ids + [1] * case["after"]


def main() -> None:
    import torch
    import transformers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    assert transformers.__version__ == "4.49.0", transformers.__version__
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen2_5_VLConfig(
        **tiny,
        intermediate_size=8,
        vocab_size=16,
        vision_config={"depth": 1, "hidden_size": 8, "num_heads": 1, "out_hidden_size": 8, "tokens_per_second": 2},
        image_token_id=8,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    answers = []
    for case in CASES:
        ids = torch.tensor([ids_of(case)])
        grids = torch.tensor([[t, h * MERGE, w * MERGE] for t, h, w, _ in case["videos"]]).reshape(-1, 3)
        positions, delta = model.get_rope_index(
            ids,
            None,
            grids if case["videos"] else None,
            torch.tensor([seconds for *_, seconds in case["videos"]]),
            torch.ones_like(ids),
        )
        answers.append({**case, "positions": positions[:, 0].tolist(), "rope_delta": int(delta)})
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, answers)) + "\n]\n")


if __name__ == "__main__":
    main()

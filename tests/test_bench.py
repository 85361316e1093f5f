"""Every benchmark runs in its tiny size and writes what it promises; how fast anything is, no test asks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.bench import decode, gpu, harness, judge, learner, needed, plan, rollout, step
from experiments.bench.families import TINY
from experiments.bench.shape import FRAMES, load_sides, random_group, released, small, write_folder
from vidbridge.backbones import FAMILIES, backbone_of
from vidbridge.check_model import peak
from vidbridge.policy.loading import load_model
from vidbridge.policy.processor import Processor


def figures_of(main, path, *options):
    """What ``main`` writes; the machine is named."""
    main(["--quick", "--repeats", "1", "--json", str(path / "figures.json"), *options])
    figures = json.loads((path / "figures.json").read_text())
    machine = figures["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["torch"] == torch.__version__ and "gpu" in machine
    return figures


def test_learner(tmp_path, monkeypatch):
    """With a clock that gives the packed side 2 s a completion, the repeated one 5 and that with all logits 6."""

    def clock(calls, repeats):
        for call in calls.values():
            call()
        per_completion = {"packed": 2, "repeated": 5, "all_logits": 6}
        return {name: per_completion[name.split(",")[0]] * call.__self__.size for name, call in calls.items()}

    monkeypatch.setattr(learner, "medians", clock)
    figures = figures_of(learner.main, tmp_path, "--plot", str(tmp_path / "cost.png"))
    rows = figures["rows"]
    assert [(row["group_size"], row["completion_tokens"], row["video_tokens"]) for row in rows] == [
        (8, 8, 32), (4, 8, 32), (32, 8, 32), (8, 4, 32), (8, 8, 72)
    ]  # fmt: skip
    base, *others = rows
    for row in rows:
        assert (row["packed_s"], row["repeated_s"]) == (2 * row["group_size"], 5 * row["group_size"])
        assert row["speedup"] == 2.5
        assert 0 < row["grad_rel_err"] < 1e-5
        assert row["flop_ratio"] > 1 and (row["memory_ratio"] is None or row["memory_ratio"] > 0)
    assert base["speedup_all_logits"] == 3 and not any("speedup_all_logits" in row for row in others)
    assert figures["growth_8_to_32"] == 4
    assert (tmp_path / "cost.png").stat().st_size > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_two_sides_of_the_same_gradients(family):
    sides = load_sides(TINY, family)
    assert sides.plain.config.model_type == sides.policy.module.config.model_type == family
    group = random_group(sides.policy.processor, group_size=3, completion_tokens=4, video_tokens=32)
    both = learner.Learner(sides, group)
    assert 0 < learner.relative_error(both.packed(), both.repeated()) < 1e-5


def test_logits_at_every_position_give_the_same_gradients_for_more_products():
    sides = load_sides(TINY)
    group = random_group(sides.policy.processor, group_size=2, completion_tokens=3, video_tokens=32)
    both = learner.Learner(sides, group)
    assert learner.relative_error(both.all_logits(), both.repeated()) < 1e-6
    # each row but its last 4 places, [512, 32] of the vocabulary: once forward, twice backward
    more = 6 * 2 * (len(group.encoded.input_ids) - 1) * 512 * 32
    assert learner.gflop(both.all_logits) - learner.gflop(both.repeated) == pytest.approx(more / 1e9)


def timed(seconds, calls):
    """Return a clock that makes each call once and says that it took what ``seconds`` has for its name."""

    def clock(functions, repeats):
        calls.extend(functions)
        for function in functions.values():
            function()
        return {name: seconds[name] for name in functions}

    return clock


def test_rollout(tmp_path, monkeypatch):
    seconds = {"ours": 2.0, "sequential": 18.0, "num_return_sequences": 5.0}
    monkeypatch.setattr(rollout, "medians", timed(seconds, calls := []))
    figures = figures_of(rollout.main, tmp_path)
    assert (figures["vs_sequential"], figures["vs_num_return_sequences"]) == (9, 2.5)
    several = figures["several_prompts"]
    assert (several["num_prompts"], several["vs_num_return_sequences"]) == (4, 2.5)
    assert calls.count("ours") >= 2 and set(calls) == set(seconds)


def test_step_without_trl(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    monkeypatch.setattr(step, "medians", timed({"ours": 2.0, "peers' structure": 13.0}, []))
    figures = figures_of(step.main, tmp_path)
    assert figures["vs_peer_structure"] == 6.5
    assert figures["trl_s"] is None and figures["vs_trl"] is None


def test_judge(tmp_path):
    figures = figures_of(judge.main, tmp_path, "--outage", "1")
    assert figures["speedup"] > 0
    assert figures["wrong_under_faults"] == figures["unscored_under_faults"] == 0
    assert figures["recovered_after_outage"] and figures["masked_in_outage"] == 16


def test_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "in_own_process", lambda setting, **environment: plan.measure(setting))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    figures = figures_of(plan.main, tmp_path)
    assert [row["stage"] for row in figures["rows"]] == ["rollout", "learner"]
    for row in figures["rows"]:
        assert row["predicted"] > row["predicted_beyond"] > 0
        assert row["measured"] is None or row["error"] == row["predicted"] / row["measured"] - 1


@pytest.mark.slow
def test_the_memory_of_a_step_is_the_predicted_one():
    """Of 54 M parameters, in a process of its own: a peak within a quarter of the prediction."""
    # a row of the learner holds the groups of three prompts
    setting = plan.Setting(max_packed_tokens=2048, gradient_checkpointing=True, num_prompts=3)
    for stage, figures in plan.in_own_process(setting, **plan.PAGES_OF_THEIR_OWN).items():
        measured = figures["measured"]
        assert measured is None or measured == pytest.approx(figures["predicted"], rel=0.25), stage


@pytest.mark.parametrize("model", ["qwen2_5_vl_3b", "qwen3_vl_8b", "qwen3_vl_30b_a3b", "qwen3_5_9b"])
def test_gpu_in_its_tiny_size_needs_none(tmp_path, model, monkeypatch):
    """With a clock of our own: on a busy machine the few tokens of this size vanish in the noise."""
    seconds = {"copy": 0.5, "product": 0.25, "packed": 2.0, "repeated": 6.0}
    seconds |= {"one token": 1.0, "two tokens": 1.5, "all tokens": 2.5}
    monkeypatch.setattr(gpu, "medians", timed(seconds, []))
    figures = figures_of(gpu.main, tmp_path, "--device", "cpu", "--model", model)
    device, compilations, of_learner, of_rollout, of_step = figures["rows"]
    assert [row["part"] for row in figures["rows"]] == list(gpu.PARTS)
    assert figures["model"].startswith("a tiny qwen")
    assert device["peak_is_measured"] and device["copy_gb_per_s"] > 0
    assert compilations["compilations"] == 0  # the CPU's attention is not compiled
    assert len(compilations["seconds"]) == compilations["lengths"] == 4
    assert of_learner["mfu"] == pytest.approx(
        sum(of_learner["flops"].values()) / 2.0 / (device["product_tflops"] * 1e12), rel=1e-12
    )
    assert of_learner["speedup"] == 3.0 and of_learner["grad_rel_err"] < 0.05  # of bfloat16
    assert of_rollout["prefill_s"] == 1.0 and of_rollout["first_step_s"] == 0.5
    assert of_rollout["decode_step_s"] == 1.5 / (of_rollout["completion_tokens"] - 1)
    assert of_rollout["decode_bandwidth_frac"] == of_rollout["decode_bound_s"] / of_rollout["decode_step_s"] > 0
    assert of_step["predicted_mb"] > 0 and of_step["learner_s"] > 0 and of_step["step_s"] > of_step["rollout_s"] > 0


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["gpu"] is None and "no CUDA device" in figures["reason"] and figures["rows"] == []


def test_a_part_of_the_gpu_bench_that_fails_or_is_late_leaves_a_row(tmp_path, monkeypatch):
    def failing(bench):
        raise torch.OutOfMemoryError("CUDA out of memory\nand much more")

    clock = iter([0.0, 1.0, 2.0, 400.0])
    monkeypatch.setattr(gpu, "PARTS", {"one": failing, "two": lambda bench: {"figure": 3}, "three": failing})
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    path = tmp_path / "figures.json"
    status = gpu.main(["--quick", "--device", "cpu", "--seconds", "300", "--json", str(path)])
    assert status == 1
    assert json.loads(path.read_text())["rows"] == [
        {"part": "one", "failed": "OutOfMemoryError: CUDA out of memory"},
        {"part": "two", "figure": 3},
        {"part": "three", "failed": "no time was left"},
    ]


def test_a_random_folder_is_one_that_the_package_reads(tmp_path):
    """The numbers of the shape, the words of the shapes world, 16 bits."""
    write_folder(tmp_path, small(TINY), torch.device("cpu"))
    module = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    assert module.lm_head.weight.shape == (512, 32) and module.lm_head.weight.dtype == torch.bfloat16
    processor, text = Processor.from_folder(tmp_path, FRAMES), "<answer>the red square moves left</answer>"
    assert processor.decode(processor.encode_completion(text)) == text


def test_needed_work_by_hand():
    policy = gpu.load_policy(small(TINY), torch.device("cpu"))
    group = gpu.random_group(policy.processor, video_tokens=72, group_size=2, completion_tokens=3)
    prompt = len(group.encoded.input_ids)
    flops = needed.needed_flops(policy, group)
    # layers of 2 x 32 x 32 (query, output) + 2 x 16 x 32 (key, value) + 3 x 32 x 64; 2 completions of 2 tokens
    assert flops["text"] == 6 * 2 * (2048 + 1024 + 6144) * (prompt + 4)
    # the first token of a completion sees the prompt and itself, the second one more
    pairs = prompt * (prompt + 1) / 2 + 2 * (2 * prompt + 1 + 2)
    assert flops["text_attention"] == 12 * 32 * 2 * pairs
    assert flops["lm_head"] == 6 * 512 * 32 * 6
    # 8 frames of 6 x 6 patches, a window holds 8 x 8: block 0 and block 1 see the same
    assert flops["vision_attention"] == 12 * 32 * 2 * 8 * 36**2
    assert needed.pairs_in_frames((1, 5, 4), 4) == 16**2 + 4**2
    # bfloat16: 2 layers with 2 norms of 32 and biases of query, key and value; the vocabulary; keys and values of 16
    weights = 2 * (2048 + 1024 + 6144 + 64 + 64) + 512 * 32
    assert needed.needed_bytes(policy, group, 3) == 2 * (weights + 2 * 2 * 16 * (prompt + 2 * 3 / 2))


def test_needed_work_of_experts_by_hand():
    policy = gpu.load_policy(small(TINY, "qwen3_vl_moe"), torch.device("cpu"))
    group = gpu.random_group(policy.processor, video_tokens=72, group_size=3, completion_tokens=3)
    prompt = len(group.encoded.input_ids)
    flops = needed.needed_flops(policy, group)
    # query, output, key and value, a router of 8 x 32, and 2 of 8 experts of 3 x 32 x 32
    assert flops["text"] == 6 * 2 * (2048 + 1024 + 256 + 2 * 3072) * (prompt + 6)
    # every block sees whole frames; from a merged patch of 4 x 32 numbers: 128 x 128 and 128 x 32, thrice: its own
    # merger and those of blocks 0 and 1
    assert flops["vision_attention"] == 12 * 32 * 2 * 8 * 36**2
    assert flops["merger"] == 6 * 3 * (128 * 128 + 128 * 32) * 72 and flops["text_memory"] == 0
    # three rows ask for two of eight experts each: one is idle in three of four, in (3 / 4)^3 for all of them
    experts = 8 * (1 - (3 / 4) ** 3)
    weights = 2 * (2048 + 1024 + 256 + 2 * 32 + 2 * 8 + experts * 3072) + 512 * 32
    assert needed.needed_bytes(policy, group, 3) == 2 * (weights + 2 * 2 * 16 * (prompt + 3 * 3 / 2))


def test_needed_work_of_a_memory_by_hand():
    """Of two layers one has a memory: 4 heads of 8 x 8 numbers."""
    policy = gpu.load_policy(small(TINY, "qwen3_5"), torch.device("cpu"))
    group = gpu.random_group(policy.processor, video_tokens=72, group_size=2, completion_tokens=3)
    prompt = len(group.encoded.input_ids)
    flops = needed.needed_flops(policy, group)
    assert flops["text_memory"] == 18 * 4 * 8 * 8 * (prompt + 4)
    pairs = prompt * (prompt + 1) / 2 + 2 * (2 * prompt + 1 + 2)
    assert flops["text_attention"] == 12 * 32 * 1 * pairs
    few, many = (needed.needed_bytes(policy, group, tokens) for tokens in (2, 4))
    assert many - few == 2 * (2 * 1 * 16) * 2  # keys and values of one layer, of a token more in two rows


@pytest.mark.parametrize("model", gpu.MODELS)
def test_a_released_model_is_that_of_its_yaml(model):
    """Its weights, in billions, are those of its name."""
    config = released(model)
    with torch.device("meta"):
        module = backbone_of(config.model_type).model_class(config)
    billions = sum(weight.numel() for weight in module.parameters()) / 1e9
    named = float(re.search(r"_(\d+)b", model)[1])
    assert 0.98 * named < billions < 1.35 * named


def test_medians_take_turns_and_leave_out_the_first_round(monkeypatch):
    """Calls a b, a b, a b, a b that take 9 8, 1 5, 3 5, 2 7 seconds."""
    calls, times = [], iter([0, 9, 9, 17, 20, 21, 21, 26, 30, 33, 33, 38, 40, 42, 42, 49])
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    seconds = harness.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert seconds == {"a": 2, "b": 5}


def test_peak_memory_counts_what_is_freed_again():
    """100 MB that are gone when the call returns."""
    peak, result = harness.peak_extra_mb(lambda: torch.ones(25_000_000).sum().item())
    assert result == 25_000_000
    assert peak is None or peak == pytest.approx(100, rel=0.1)


def test_relative_error_by_hand():
    """|(3, 4)| / |(0, 10)|"""
    found, expected = ([torch.tensor([one]), torch.tensor([other])] for one, other in ((3.0, 14.0), (0.0, 10.0)))
    assert learner.relative_error(found, expected) == pytest.approx(0.5)


def test_decode_without_their_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", None)
    figures = figures_of(decode.main, tmp_path)
    *_, last = figures["rows"]
    assert figures["vs_full_decode"] == last["full_s"] / last["ours_s"] > 0
    assert figures["vs_qwen_vl_utils"] is None
    assert figures["warm_vs_cold"] == min(row["cold_s"] / row["warm_s"] for row in figures["rows"]) > 0
    assert 0 <= figures["wait_frac"] < 1 and figures["step_s"] > 0
    assert 900 < figures["opening"]["rows"] < 1000  # the others are held out


def test_their_reader_is_asked_for_the_same_frames(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", SimpleNamespace(fetch_video=asked.append))
    decode.their_reader()(Path("a.mp4"))
    assert asked == [{"video": "a.mp4", "nframes": 16, "min_pixels": 128 * 28 * 28, "max_pixels": 196 * 28 * 28}]

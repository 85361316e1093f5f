"""The command line for lmms-eval, which runs elsewhere."""

import re

import pytest
from omegaconf import OmegaConf

from experiments import lmms_eval
from tests.composing import templates


def values(words):
    """Options by name, and the arguments of the model, cut at the commas outside of quotes as lmms-eval cuts them."""
    after = words[words.index("lmms_eval") + 1 :]
    options = {word: following for word, following in zip(after, [*after[1:], ""]) if word.startswith("--")}
    parts = re.findall(r'(\w+)=("[^"]*"|[^,]*)', options["--model_args"])
    return options, dict(parts)


def test_a_model_that_reasons_gets_the_system_message_it_was_trained_with_and_room(tmp_path):
    system = "Think in <think> </think>, then answer."
    words = lmms_eval.command(
        "run/model", ["videomme", "mvbench"], system=system, direct=False, gpus=8, output="out"
    )
    options, arguments = values(words)
    assert options["--tasks"] == "videomme,mvbench" and "--num_processes=8" in words
    assert arguments["pretrained"] == "run/model" and arguments["system_prompt"].strip('"') == system
    assert options["--gen_kwargs"] == "max_new_tokens=2048" and "--force_simple" in options
    # 128 and 196 patches of 28 x 28
    assert (arguments["min_pixels"], arguments["max_pixels"]) == ("100352", "153664")


def test_a_direct_question_has_no_message_of_ours():
    words = lmms_eval.command("x", ["videomme"], system="Think.", direct=True, gpus=1, output="out")
    options, arguments = values(words)
    assert "system_prompt" not in arguments and "--force_simple" not in options


def test_the_system_message_is_that_of_the_run_or_of_the_released_models(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert lmms_eval.system_message("Qwen/Qwen2.5-VL-3B-Instruct") == templates("qwen")["qa"].system
    for said in ("Think about {{it}}.", 'Say "so".'):
        OmegaConf.save({"prompt": {"system": {"thinking": said}}}, tmp_path / "config.yaml")
        assert lmms_eval.system_message(str(tmp_path / "model")) == said.format()
    with pytest.raises(SystemExit):
        lmms_eval.main([str(tmp_path / "model"), "--show"])
    assert "prompt.system.thinking" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused_and_a_command_can_be_shown(tmp_path, capsys):
    with pytest.raises(SystemExit):
        lmms_eval.main([str(tmp_path)])
    assert "holds no config.json: of a run it is the folder model/" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit):
        lmms_eval.main([str(tmp_path)])
    assert "model.adapter.merged=true" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert lmms_eval.main([str(tmp_path), "--show"]) == 0
    assert "-m lmms_eval --model qwen2_5_vl" in capsys.readouterr().out


def test_a_model_of_another_family_is_not_asked_as_qwen2_5(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(SystemExit):
        lmms_eval.main([str(tmp_path), "--show"])
    assert "is a qwen3_vl" in capsys.readouterr().err

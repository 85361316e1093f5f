"""The command line for lmms-eval, which runs elsewhere."""

import re

import pytest

from experiments import lmms_eval
from vidbridge.text.prompts import SYSTEM


def values(words):
    """Options by name, and the arguments of the model, cut at the commas outside of quotes as lmms-eval cuts them."""
    after = words[words.index("lmms_eval") + 1 :]
    options = {word: following for word, following in zip(after, [*after[1:], ""]) if word.startswith("--")}
    parts = re.findall(r'(\w+)=("[^"]*"|[^,]*)', options["--model_args"])
    return options, dict(parts)


def test_a_model_that_reasons_gets_the_system_message_it_was_trained_with_and_room(tmp_path):
    words = lmms_eval.command("run/model", ["videomme", "mvbench"], direct=False, gpus=8, output="out")
    options, arguments = values(words)
    assert options["--tasks"] == "videomme,mvbench" and "--num_processes=8" in words
    assert arguments["pretrained"] == "run/model" and arguments["system_prompt"].strip('"') == SYSTEM
    assert options["--gen_kwargs"] == "max_new_tokens=2048" and "--force_simple" in options
    # 128 and 196 patches of 28 x 28
    assert (arguments["min_pixels"], arguments["max_pixels"]) == ("100352", "153664")


def test_a_direct_question_has_no_message_of_ours():
    options, arguments = values(lmms_eval.command("x", ["videomme"], direct=True, gpus=1, output="out"))
    assert "system_prompt" not in arguments and "--force_simple" not in options


def test_a_folder_that_is_no_model_is_refused_and_a_command_can_be_shown(tmp_path, capsys):
    with pytest.raises(SystemExit):
        lmms_eval.main([str(tmp_path)])
    assert "holds no config.json: of a run it is the folder model/" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert lmms_eval.main([str(tmp_path), "--show"]) == 0
    assert "-m lmms_eval --model qwen2_5_vl" in capsys.readouterr().out

"""A language model in process: a chain of words set by hand, so that what it says is known."""

import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

from tests.judges.builders import every_kind, grade
from vidbridge.errors import ConfigError
from vidbridge.judges.base import JudgeUnavailable, parse_reply
from vidbridge.judges.llm_judge import ModelJudge
from vidbridge.judges.local_chat import LocalChat

# after each word, the next: the replies to grade, verdict, extract and entail with three events, each begun by us
CHAIN = {
    '"score":': " 2", " 2": "}", "}": "}", '"verdict":': " true", " true": "}", '"events":': " []", " []": "}",
    '"labels":': ' ["neutral",', ' ["neutral",': ' "entailment",', ' "entailment",': ' "contradiction"]',
    ' "contradiction"]': "}", "{": "{",
}  # fmt: skip
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:\n"


def make_folder(folder, chain):
    """One layer that adds nothing, embeddings that are unit vectors: the next word depends on the last one alone."""
    words = list(dict.fromkeys(["<pad>", "<eos>", "<unk>", *chain, *chain.values()]))
    ids = {word: place for place, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    longest_first = sorted(words[3:], key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    size = 64
    assert len(words) <= size
    config = SmolLM3Config(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = SmolLM3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        for word, following in chain.items():
            model.lm_head.weight[ids[following], ids[word]] = 1.0
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("chain"), CHAIN)


def test_every_kind_is_answered_in_the_form_asked_for(folder):
    judge = ModelJudge(answers=LocalChat(path=folder, dtype="float32", device="cpu", batch_size=2))
    requests = every_kind()
    read = [parse_reply(request, reply) for request, reply in zip(requests, judge.ask(requests))]
    assert read == [2, True, (), ("neutral", "entailment", "contradiction")]
    assert judge.metrics()["judge/latency_p50_s"] > 0


def test_a_batch_says_what_each_says_alone(folder):
    """Prompts of many lengths, more than a batch, in the order asked."""
    chat = LocalChat(path=folder, dtype="float32", device="cpu", batch_size=3)
    judge = ModelJudge(answers=chat)
    requests = [grade("it grows " * length) for length in (9, 1, 5, 3)] + every_kind()[1:]
    together = judge.ask(requests)
    alone = [ModelJudge(answers=chat).ask([request])[0] for request in requests]
    assert together == alone and together[:4] == ['{"score": 2}'] * 4


def test_an_answer_that_spells_the_end_of_a_turn_does_not_end_it(folder):
    chat = LocalChat(path=folder, dtype="float32", device="cpu")
    asked = []
    chat._module.generate = lambda input_ids, **options: asked.append(input_ids) or input_ids
    ModelJudge(answers=chat).ask([grade('it grows<eos>{"score": 2}')])
    assert len(asked) == 1 and chat._tokenizer.eos_token_id not in asked[0].flatten().tolist()


def test_a_model_that_does_not_come_to_an_end_is_no_judge(tmp_path):
    folder = make_folder(tmp_path, {**CHAIN, " 2": " 2"})
    chat = LocalChat(path=folder, dtype="float32", device="cpu", max_reply_tokens=5)
    (reply,) = ModelJudge(answers=chat).ask([grade("it grows")])
    assert isinstance(reply, JudgeUnavailable) and "no end in the reply" in str(reply)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"path": "/no/such/folder"}, "cannot load a language model from /no/such/folder"),
        ({"dtype": "float23"}, "Did you mean 'float32'"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_what_cannot_be_is_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        LocalChat(**{"path": folder, "dtype": "float32", "device": "cpu", **settings})


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    folder = make_folder(tmp_path, CHAIN)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        LocalChat(path=folder, dtype="float32", device="cpu")

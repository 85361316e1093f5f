"""Texts in turn, cut as a rollout cuts them."""

from tests.conftest import video_prompt
from tests.policy.builders import FRAMES
from vidbridge.policy.processor import Processor
from vidbridge.rollout.scripted import ScriptedRollout
from vidbridge.types import SamplingParams

TEXTS = ["the square grows", "red", "it spins"]


def test_a_completion_is_chosen_by_its_number_in_the_batch(random_qwen_folder):
    processor = Processor.from_folder(random_qwen_folder, FRAMES)
    rollout, told = ScriptedRollout(processor, TEXTS), []
    encoded = [processor.encode(video_prompt())] * 2
    sampling = SamplingParams(max_completion_tokens=3)
    groups = rollout.generate(
        encoded, 2, sampling, seed=0, indices=[3, 1], ended=lambda index, group: told.append((index, group))
    )
    # prompt 3 has the numbers 6 and 7, prompt 1 has 2 and 3: of three texts the first two, and the third and the first
    assert [[done.text for done in group] for group in groups] == [["the square", "red"], ["it spins", "the square"]]
    # a word, a space and a word are three tokens, and leave no room for EOS
    assert [[done.finished for done in group] for group in groups] == [[False, True], [False, False]]
    assert groups[0][1].token_ids[-1] == processor.eos_id and len(groups[0][0].token_ids) == 3
    assert told == [(3, groups[0]), (1, groups[1])]

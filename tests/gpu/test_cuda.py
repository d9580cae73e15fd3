"""The batched engine on a CUDA device says what it says on the CPU."""

import pytest
import torch

from shared.settings import load_settings
from tools.tiny_model.evaluate import answers
from workers.models import load_engine, parse_specs

QUESTIONS = ["Hello!", "你好", "What is 7 + 5?", "Count from 1 to 20.", "Tell me a story about a fox.", "Spell house."]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_greedy_answers_on_the_gpu_equal_those_on_the_cpu() -> None:
    on_gpu = load_engine(parse_specs(["builtin"])[0], load_settings(device="cuda", dtype="float32"))
    on_cpu = load_engine(parse_specs(["builtin"])[0], load_settings(device="cpu"))

    assert answers(on_gpu, QUESTIONS) == answers(on_cpu, QUESTIONS)

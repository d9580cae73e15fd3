"""How often the built-in model answers questions of each topic exactly as its dialogues would: the card's table.
`python -m tools.tiny_model.evaluate [QUESTIONS_PER_TOPIC]`"""

import sys
from random import Random

from shared.settings import load_settings
from tools.tiny_model.dialogues import TOPICS, Pair
from workers.engine.base import Engine
from workers.models import load_engine, parse_specs
from workers.offline import run
from workers.sequence import Choosing, Sampled, Sequence
from workers.transcript import Transcript

SEED = 99
FREE = ("story", "unknown")  # many right answers: the end, or the refusal, is what counts


def answers(engine: Engine, questions: list[str]) -> list[str]:
    """Greedy, all in one batch."""
    greedy = Choosing(seed=0, temperature=0, top_p=1, top_k=0)
    tokenizer = engine.tokenizer
    texts: dict[Sequence, str] = {}
    transcripts: dict[Sequence, Transcript] = {}
    for question in questions:
        prompt = tokenizer.chat({"messages": [{"role": "user", "content": question}]}).ids
        sequence = Sequence(job_id=question, choice=0, prompt=prompt, choosing=greedy)
        texts[sequence] = ""
        transcripts[sequence] = Transcript(tokenizer.decode, ends=tokenizer.ends, stop=(), tokens_max=400)

    def ended(sequence: Sequence, new: Sampled) -> bool:
        text, reason = transcripts[sequence].push(new.token)
        texts[sequence] += text
        return reason is not None

    run(engine, transcripts, ended)
    return list(texts.values())


def right(topic: str, pair: Pair, answer: str) -> bool:
    if topic in FREE:
        return answer.endswith(pair[1][-6:])
    return answer == pair[1]


def main(count: int) -> None:
    engine = load_engine(parse_specs(["builtin"])[0], load_settings(sequences_max=64))
    print("| topic | answered as taught |\n|---|---|")
    for ask, _ in TOPICS:
        rng = Random(SEED)
        pairs = [ask(rng) for _ in range(count)]
        said = answers(engine, [question for question, _ in pairs])
        good = sum(right(ask.__name__, pair, answer) for pair, answer in zip(pairs, said, strict=True))
        print(f"| {ask.__name__} | {100 * good / count:.0f} % |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)

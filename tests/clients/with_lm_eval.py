"""Runs lm-evaluation-harness' `local-completions` on a tiny task of log-likelihoods; its arguments are BASE_URL FOLDER
MODEL_FOLDER."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

base, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
HEAD = "<|im_start|>user\nWhat is the capital of {}?<|im_end|>\n<|im_start|>assistant\nThe capital of {} is"
CAPITALS = {"France": "Paris", "Italy": "Rome", "Peru": "Lima", "Spain": "Madrid", "Egypt": "Cairo", "Japan": "Tokyo"}
names = [*CAPITALS.values()]
rows = [
    {"question": HEAD.format(country, country), "choices": names, "gold": names.index(capital)}
    for country, capital in CAPITALS.items()
]
(folder / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
(folder / "capitals.yaml").write_text(f"""
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "capitals.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
""")
results = simple_evaluate(
    model="local-completions",
    model_args={
        "model": "penstock-tiny",
        "base_url": f"{base}/completions",
        "tokenizer": model,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "num_concurrent": 4,
        "max_retries": 1,
    },
    tasks=["capitals"],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    batch_size=1,
    bootstrap_iters=0,
)
accuracy = results["results"]["capitals"]["acc,none"]
assert accuracy == 1.0, results["results"]
print("lm-eval", accuracy)

"""The text that `penstock up` prints once it serves: its commands work as printed in another terminal, same folder."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.data_folder import DataFolder
from cli.redis_location import API_URL, DATA
from shared.redis.client import masked

KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Welcome:
    """`base` is the API's URL; `model_options` are the options that name the models."""

    base: str
    model: str
    model_options: Sequence[str]
    workers: int
    folder: DataFolder
    redis_url: str
    keys_required: bool

    def __str__(self) -> str:
        parts = [
            f"\nPenstock   {self.base}/v1   (logs in {self.folder.logs}; Ctrl-C stops everything)\n",
            self._no_worker() if not self.workers else "",
            self._keys() if self.keys_required else "",
            self._requests(),
            self._commands(),
        ]
        return "\n".join(part for part in parts if part)

    def _no_worker(self) -> str:
        worker = f"{self._located(always=True)}{_bin()}penstock worker {shlex.join(self.model_options)}"
        return f"No worker runs yet, so no model is served. Start one:\n\n  {worker}\n"

    def _keys(self) -> str:
        create = f"{self._located()}{_bin()}penstock keys create NAME"
        return f"Every request needs a key. Create one; it is shown only once:\n\n  {create}\n  export {KEY}=THE_KEY\n"

    def _requests(self) -> str:
        body = f'{{"model": "{self.model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
        bearer = f' \\\n    -H "authorization: Bearer ${KEY}"' if self.keys_required else ""
        api_key = "" if self.keys_required else ', api_key="none"'
        return f"""\
  curl -N {self.base}/v1/chat/completions -H 'content-type: application/json'{bearer} \\
    -d {shlex.quote(body)}

  from openai import OpenAI
  client = OpenAI(base_url="{self.base}/v1"{api_key})
  hello = [{{"role": "user", "content": "Hello!"}}]
  for chunk in client.chat.completions.create(model="{self.model}", messages=hello, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""

    def _commands(self) -> str:
        url = f" --url {self.base}/v1" if self._elsewhere() and f"{self.base}/v1" != API_URL else ""
        rq = f"rq info -u {shlex.quote(self.redis_url)}"
        if masked(self.redis_url) != self.redis_url:  # an option would show the password in the list of processes
            rq = f"RQ_REDIS_URL={self._noted()} {_bin()}rq info"
        else:
            rq = f"{_bin()}{rq}"
        return f"  {_bin()}penstock chat{url}\n  {self._located()}{_bin()}penstock jobs list\n  {rq}\n"

    def _located(self, *, always: bool = False) -> str:
        """Return the variable that names Redis, or nothing if commands find Redis by themselves."""
        return f"PENSTOCK_REDIS_URL={self._noted()} " if always or self._elsewhere() else ""

    def _elsewhere(self) -> bool:
        """Return True if commands would look in another data folder."""
        return self.folder.path.resolve() != DATA.resolve()

    def _noted(self) -> str:
        return f'"$(cat {shlex.quote(str(self.folder.redis_url))})"'


def _bin() -> str:
    """Return the folder of our commands, if PATH does not find them."""
    return "" if shutil.which("penstock") else shlex.quote(os.path.relpath(Path(sys.executable).parent)) + "/"

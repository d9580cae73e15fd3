"""`penstock chat` and `penstock ask`: talk to any OpenAI-compatible server in the terminal."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Model
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from cli.answer import Answer
from cli.chat_server import explain, find_server
from cli.conversation import Conversation
from cli.parameters import Parameters
from cli.terminal import plain, unechoed
from shared.domain.errors import InvalidRequest, NotFound
from shared.process.private_files import private_file

LOOK_S = 0.5  # after this long without a token, ask if a worker serves the model
INTERRUPTED = 130
HELP = """\
/reset          forget the conversation
/undo           forget the last question and its answer
/regen          generate the last answer again
/system [TEXT]  show or set the system prompt
/model [NAME]   show or choose the model
/set [NAME [VALUE]]
                show the parameters, set one (/set temperature 0.7), or remove one (/set temperature)
/save FILE      write the conversation as JSON
/load FILE      load a saved conversation
/exit           leave (also Ctrl-D)

Enter sends the message. Alt-Enter, or Enter after a \\, starts a new line. Ctrl-C stops the answer."""


class Chat:
    """One terminal session. `read` returns the next input or raises EOFError."""

    def __init__(
        self,
        client: openai.OpenAI,
        listed: list[Model],
        *,
        model: str | None,
        console: Console,
        read: Callable[[], str],
        system: str = "",
        parameters: Parameters | None = None,
    ) -> None:
        self._client = client
        self._console = console
        self._read = read
        self._conversation = Conversation(system)
        self._parameters = parameters or Parameters()
        self._models = [each.id for each in listed]
        self._model = model or choose(listed)

    def run(self) -> None:
        self._say(f"{self._model} at {self._client.base_url}  (/help)", style="bold")
        while True:
            try:
                text = self._read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            if text.startswith("/"):
                if not self._run_command(text):
                    return
            elif text:
                self.answer(text)

    def answer(self, text: str) -> int:
        """Ask one question and print its answer. Return the exit status."""
        self._conversation.ask(text)
        return self._answer()

    def _run_command(self, text: str) -> bool:
        """Run a slash command. Return False to leave the chat."""
        command, _, argument = text.partition(" ")
        argument = argument.strip()
        match command:
            case "/exit" | "/quit":
                return False
            case "/help":
                self._say(HELP, style="")
            case "/reset":
                self._conversation.reset()
                self._say("forgotten")
            case "/undo":
                self._say("forgotten" if self._conversation.undo() else "there is nothing to undo")
            case "/regen":
                if self._conversation.regenerate() is None:
                    self._say("there is no question to answer again")
                else:
                    self._answer()
            case "/system":
                self._conversation.system = argument or self._conversation.system
                self._say(f"system prompt: {self._conversation.system or '(none)'}")
            case "/model":
                self._choose(argument)
            case "/set":
                self._set(argument)
            case "/save" | "/load" if argument:
                self._file(command, Path(argument).expanduser())
            case _:
                self._say(f"{command} is not a command, or its argument is missing; /help lists all commands")
        return True

    def _answer(self) -> int:
        """Stream the answer. Ctrl-C keeps the partial answer. Without any text, the question is forgotten as well."""
        status = 0
        answer = Answer(self._console)
        try:
            with unechoed(), answer, self._notice_of_waiting() as began:
                for piece in self._stream():
                    began.set()
                    answer.add(piece)
        except KeyboardInterrupt:
            self._say("stopped", err=True)
            status = INTERRUPTED
        except (openai.OpenAIError, httpx.HTTPError) as error:
            self._say(explain(error), style="red", err=True)
            status = 1
        if answer.text:
            self._conversation.answer(answer.text)
        else:
            self._conversation.undo()
        return status

    def _stream(self) -> Iterator[str]:
        messages: Any = self._conversation.messages
        create = self._client.chat.completions.create
        with create(model=self._model, messages=messages, stream=True, extra_body=self._parameters.values) as stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    @contextmanager
    def _notice_of_waiting(self) -> Iterator[threading.Event]:
        """Say once, before the answer begins, that no worker serves the model. The caller sets the yielded
        event as soon as the answer begins."""
        began = threading.Event()

        def look() -> None:
            while not began.wait(LOOK_S):
                if not self._served():
                    self._say(f"waiting: no worker serves {self._model}  (Ctrl-C stops)", err=True)
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield began
        finally:
            began.set()
            watcher.join()

    def _served(self) -> bool:
        """Ask the server if a worker serves the model. Servers other than Penstock count as serving it."""
        try:
            return workers(self._client.models.retrieve(self._model, timeout=LOOK_S)) > 0
        except openai.OpenAIError:
            return True

    def _choose(self, name: str) -> None:
        if name and name not in self._models:
            self._say(f"no such model; the server lists: {', '.join(self._models)}")
            return
        self._model = name or self._model
        self._say(f"model: {self._model}  (of {', '.join(self._models)})")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        try:
            if name:
                self._parameters.set(name, value.strip())
            self._say(f"parameters: {self._parameters}")
        except InvalidRequest as error:
            self._say(str(error))

    def _file(self, command: str, path: Path) -> None:
        try:
            if command == "/save":
                self._conversation.save(path)
            else:
                self._conversation.load(path)
            self._say(f"{'saved to' if command == '/save' else 'loaded from'} {path}")
        except (InvalidRequest, OSError) as error:
            self._say(str(error))

    def _say(self, text: str, *, style: str = "dim", err: bool = False) -> None:
        """Print a notice. `err` sends it to standard error if standard output is a file or another program."""
        console = Console(stderr=True) if err and not self._console.is_terminal else self._console
        console.print(plain(text), style=style, markup=False, highlight=False, emoji=False)


def chat(url: str, *, model: str | None, api_key: str | None, system: str, parameters: Parameters) -> int:
    """Chat in the terminal; without one, the whole standard input is one question. Return the exit status.

    Raises the errors of `find_server`, and InvalidRequest for an empty input."""
    if not sys.stdin.isatty():
        return ask("", url, model=model, api_key=api_key, system=system, parameters=parameters)
    client, listed = find_server(url, api_key=api_key)
    chosen = partial(Chat, client, listed, model=model, console=Console(), system=system, parameters=parameters)
    chosen(read=_terminal()).run()
    return 0


def ask(question: str, url: str, *, model: str | None, api_key: str | None, system: str, parameters: Parameters) -> int:
    """Print the answer to one question, followed by the standard input if that is no terminal. Return the exit status.

    Raises the errors of `find_server`, and InvalidRequest for an empty question."""
    client, listed = find_server(url, api_key=api_key)
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(each for each in (question.strip(), given.strip()) if each)
    if not text:
        where = "QUESTION is missing" if sys.stdin.isatty() else "Standard input is empty: it must hold a question"
        raise InvalidRequest(f"{where}.")
    chosen = partial(Chat, client, listed, model=model, console=Console(), system=system, parameters=parameters)
    return chosen(read=_no_input).answer(text)


def choose(models: list[Model]) -> str:
    """Choose the first chat model that a worker serves, else the first chat model. Raises NotFound without any."""
    able = [model for model in models if "chat" in (capabilities(model) or ["chat"])]
    if not able:
        raise NotFound("The server lists no chat model: start a worker, or name a model with --model.")
    return next((model.id for model in able if workers(model)), able[0].id)


def workers(model: Model) -> int:
    return int((model.model_extra or {}).get("workers", 1))


def capabilities(model: Model) -> list[str]:
    return list((model.model_extra or {}).get("capabilities") or [])


def _no_input() -> str:
    raise EOFError


def _terminal() -> Callable[[], str]:
    """Read input lines from the terminal, with editing, several lines at once and a history across sessions."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    past = Path("~/.penstock_history").expanduser()
    with suppress(OSError):  # the history is private; a home folder that takes no files has no history
        private_file(past)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(past)), multiline=True, key_bindings=keys)
    return lambda: session.prompt("> ")

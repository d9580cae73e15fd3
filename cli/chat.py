"""`penstock chat`: talk to any OpenAI-compatible server in the terminal."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from cli.conversation import Conversation
from cli.private_files import private_file
from shared.errors import InvalidRequest, NotFound

HELP = """\
/reset          forget the conversation
/undo           forget the last question and its answer
/regen          answer the last question again
/system [TEXT]  show or set the system prompt
/model [NAME]   show or choose the model
/save FILE      write the conversation as JSON
/load FILE      read one back
/exit           leave (also Ctrl-D)

Enter sends; Alt-Enter or a line ending in \\ goes on in a new line. Ctrl-C stops the answer."""


class Chat:
    """One terminal session. `read` returns the next input or raises EOFError."""

    def __init__(self, client: openai.OpenAI, *, model: str | None, console: Console, read: Callable[[], str]) -> None:
        self._client = client
        self._console = console
        self._read = read
        self._conversation = Conversation()
        self._models = [listed.id for listed in client.models.list()]
        if not self._models and not model:
            raise NotFound("The server lists no model; start a worker or name one with --model.")
        self._model = model or self._models[0]

    def run(self) -> None:
        self._console.print(f"[bold]{self._model}[/bold] at {self._client.base_url}  (/help)")
        while True:
            try:
                text = self._read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            if text.startswith("/"):
                if not self._obey(text):
                    return
            elif text:
                self._conversation.ask(text)
                self._answer()

    def _obey(self, text: str) -> bool:
        """Carry out a command; False to leave."""
        command, _, argument = text.partition(" ")
        argument = argument.strip()
        match command:
            case "/exit" | "/quit":
                return False
            case "/help":
                self._console.print(HELP, markup=False)
            case "/reset":
                self._conversation.reset()
                self._say("forgotten")
            case "/undo":
                self._say("forgotten" if self._conversation.undo() else "nothing to undo")
            case "/regen":
                if self._conversation.regenerate() is None:
                    self._say("nothing to answer again")
                else:
                    self._answer()
            case "/system":
                self._conversation.system = argument or self._conversation.system
                self._say(f"system prompt: {self._conversation.system or '(none)'}")
            case "/model":
                self._choose(argument)
            case "/save" | "/load" if argument:
                self._file(command, Path(argument).expanduser())
            case _:
                self._say(f"{command} is no command, or lacks its argument; /help lists them")
        return True

    def _answer(self) -> None:
        """Stream the answer as Markdown. Ctrl-C keeps what has come so far; a failure keeps the question away."""
        said = ""
        try:
            with Live(console=self._console, refresh_per_second=12, vertical_overflow="visible") as live:
                for piece in self._stream():
                    said += piece
                    live.update(Markdown(said))
        except KeyboardInterrupt:
            self._say("stopped")
        except openai.OpenAIError as error:
            self._console.print(f"[red]{error}[/red]", highlight=False)
        if said:
            self._conversation.answer(said)
        else:
            self._conversation.undo()

    def _stream(self) -> Iterator[str]:
        messages: Any = self._conversation.messages
        with self._client.chat.completions.create(model=self._model, messages=messages, stream=True) as stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    def _choose(self, name: str) -> None:
        if name and name not in self._models:
            self._say(f"no such model; there are: {', '.join(self._models)}")
            return
        self._model = name or self._model
        self._say(f"model: {self._model}  (of {', '.join(self._models)})")

    def _file(self, command: str, path: Path) -> None:
        try:
            if command == "/save":
                self._conversation.save(path)
            else:
                self._conversation.load(path)
            self._say(f"{'saved to' if command == '/save' else 'loaded from'} {path}")
        except (InvalidRequest, OSError) as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)


def chat(url: str, *, model: str | None, api_key: str) -> None:
    """Raises NotFound when no server answers at `url`."""
    client = openai.OpenAI(base_url=url, api_key=api_key, max_retries=0)
    try:
        session = Chat(client, model=model, console=Console(), read=_terminal())
    except openai.APIConnectionError as error:
        raise NotFound(f"No server answers at {url} (start one with `penstock up`, or give --url).") from error
    except openai.OpenAIError as error:
        raise NotFound(f"The server at {url} does not list its models: {error}") from error
    session.run()


def _terminal() -> Callable[[], str]:
    """Lines with history across sessions, edited in place, several at once when asked."""
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
    with suppress(OSError):  # it may hold what nobody else should read; a home that takes no files has no history
        private_file(past)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(past)), multiline=True, key_bindings=keys)
    return lambda: session.prompt("> ")

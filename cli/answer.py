"""Prints a streamed answer: as Markdown in a terminal, each line once; as plain text anywhere else."""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, SegmentLines
from rich.text import Text

from cli.terminal import echo, plain

REFRESHES_PER_S = 12
MARGIN = 2  # rows of the screen that the moving part leaves free


class Answer:
    """Redraws only the last Markdown block, which may still change; finished blocks are printed once. Rich's live
    display would print everything that has scrolled off the screen again. Rich's own refresh thread is not used: if it
    draws during a print, it moves the cursor up by the height of an older frame and overwrites finished lines."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._open = ""
        self._live = Live(
            get_renderable=lambda: self,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._screen = threading.Lock()  # one writer at a time
        self._over = threading.Event()
        self._drawing = threading.Thread(target=self._keep_drawing, daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
            self._drawing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._drawing.is_alive():
            self._drawing.join()
        self._live.stop()
        if self._open:
            self._print(self._open)
        elif self.text and not self.text.endswith("\n") and not self._console.is_terminal:
            echo()

    def add(self, piece: str) -> None:
        self.text += piece
        if not self._console.is_terminal:
            echo(piece, nl=False)
            return
        with self._screen:
            self._open += plain(piece)
            if "\n" in piece:
                done, self._open, gap = finished(self._open)
                if done:
                    self._print(done)
                if gap:
                    self._console.print()

    def draw(self) -> None:
        """Redraw the open block."""
        with self._screen:
            self._live.refresh()

    def _keep_drawing(self) -> None:
        while not self._over.wait(1 / REFRESHES_PER_S):
            self.draw()

    def _print(self, source: str) -> None:
        lines = rendered(source, self._console, self._console.options)
        self._console.print(SegmentLines(lines, new_lines=True), end="")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the end of the open block, as many rows as the screen can hold."""
        rows = max(console.height - MARGIN, 1)
        lines = self._open.splitlines()
        if len(lines) > rows:  # too long to be rendered again with each token
            yield Text("\n".join(lines[-rows:]), overflow="crop", no_wrap=True)
            return
        shown = rendered(self._open, console, options)[-rows:]
        for number, line in enumerate(shown):
            yield from line
            if number < len(shown) - 1:
                yield Segment.line()


def rendered(source: str, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
    """Render Markdown to lines, without empty lines at either end. Each line is made plain again, since Markdown can
    write control characters as entities. Link addresses are shown, not hidden behind their text."""
    lines = console.render_lines(Markdown(source, hyperlinks=False), options, pad=False)
    while lines and _empty(lines[-1]):
        lines.pop()
    first = next((number for number, line in enumerate(lines) if not _empty(line)), 0)
    return [[Segment(plain(each.text), each.style) for each in line] for line in lines[first:]]


def _empty(line: list[Segment]) -> bool:
    return not any(each.text.strip() or (each.style and each.style.bgcolor) for each in line)


def finished(source: str) -> tuple[str, str, bool]:
    """Split Markdown into the part that can no longer change and the rest, and say if an empty line goes between them.

    The last block and the last item of a list may still grow; a line without its end decides nothing yet."""
    tokens = Markdown(source[: source.rfind("\n") + 1]).parsed
    blocks = [token.map[0] for token in tokens if token.map and token.level == 0]
    items = [token.map[0] for token in tokens if token.map and token.level == 1 and token.type == "list_item_open"]
    items = [line for line in items if line >= blocks[-1]]  # those of the last block
    cut = items[-1] if len(items) > 1 else blocks[-1] if len(blocks) > 1 else 0
    lines = source.splitlines(keepends=True)
    return "".join(lines[:cut]), "".join(lines[cut:]), cut > 0 and len(items) < 2

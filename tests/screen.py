"""Emulates the terminal that our commands use: lines, the cursor going up, and erasing. Lines that scroll off stay."""

import re

SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.|\r|\n|[^\x1b\r\n]+")


class Emulator:
    def __init__(self, rows: int, columns: int = 80) -> None:
        self.lines = [""]
        self._rows = rows
        self._columns = columns
        self._row, self._column = 0, 0

    def feed(self, text: str) -> None:
        for found in SEQUENCE.finditer(text):
            if found[0] == "\n":  # the terminal's driver sends a carriage return along
                self._down()
                self._column = 0
            elif found[0] == "\r":
                self._column = 0
            elif found[2]:
                self._obey(found[2], found[1])
            elif not found[0].startswith("\x1b"):
                self._write(found[0])

    def _write(self, text: str) -> None:
        for letter in text:
            if self._column == self._columns:
                self._down()
                self._column = 0
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")

    def _obey(self, letter: str, numbers: str) -> None:
        count = int(numbers) if numbers.isdigit() else 1
        match letter:
            case "A":  # never above the top of the screen
                self._row = max(self._row - count, len(self.lines) - self._rows, 0)
            case "B":
                self._row = min(self._row + count, len(self.lines) - 1)
            case "C":
                self._column += count
            case "D":
                self._column = max(self._column - count, 0)
            case "G":
                self._column = count - 1
            case "K":
                kept = "" if numbers == "2" else self.lines[self._row][: self._column]
                self.lines[self._row] = kept
            case "J":
                self.lines[self._row] = self.lines[self._row][: self._column]
                del self.lines[self._row + 1 :]

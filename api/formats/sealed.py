"""The form in which a client keeps a text that it sends back: reasoning, or a compacted conversation. OpenAI's field
for it is `encrypted_content`. Here it is no secret: whoever holds it can read it, and its text came from the same
client's conversation."""

import base64
import binascii
import zlib

from shared.domain.errors import InvalidRequest

MARK = "penstock1."
TEXT_MAX = 4_000_000  # bytes of the texts of a request, which small forms may stand for


def seal(text: str) -> str:
    return MARK + base64.urlsafe_b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


class Unsealer:
    """Opens the sealed texts of one request, all together within their bound. Raises InvalidRequest, which names
    `param`, for a form that is not ours or for more than `TEXT_MAX` bytes."""

    def __init__(self, *, param: str) -> None:
        self._param = param
        self._left = TEXT_MAX

    def text(self, sealed: str) -> str:
        text = unseal(sealed, param=self._param, most=self._left)
        self._left -= len(text.encode())
        return text


def unseal(sealed: str, *, param: str, most: int = TEXT_MAX) -> str:
    """Return the text. Raises InvalidRequest, which names `param`, for a form that is not ours or a text of more than
    `most` bytes."""
    try:
        if not sealed.startswith(MARK):
            raise ValueError
        reader = zlib.decompressobj()
        text = reader.decompress(base64.urlsafe_b64decode(sealed.removeprefix(MARK)), max(most, 1))
        if not reader.eof:
            raise ValueError
        return text.decode()
    except (ValueError, binascii.Error, zlib.error):
        message = f"'{param}' cannot be read: it must be as an answer of this API had it."
        raise InvalidRequest(message, param=param) from None

"""The body of `POST /v1/rerank`, as Cohere, Jina and vLLM define it."""

from typing import Annotated

from pydantic import Field

from api.schemas.base import Items, Strict, Text

DOCUMENTS_MAX = 1000


class Document(Strict):
    text: Text
    """The document's text."""


class RerankRequest(Strict):
    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    query: Text
    """The text that the documents are compared with."""
    documents: Annotated[list[Text | Document], Items(DOCUMENTS_MAX, least=1)]
    """The texts to rank."""
    top_n: int | None = Field(None, ge=1)
    """Return only this many of the most relevant documents."""
    return_documents: bool = True
    """Return each document's text, too."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Keep this many tokens of each text; -1 keeps all that fit."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]

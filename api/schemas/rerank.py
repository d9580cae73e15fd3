"""The body of `POST /v1/rerank`, as Cohere, Jina and vLLM have it."""

from typing import Annotated

from pydantic import Field

from api.schemas.base import Items, Strict, Text

DOCUMENTS_MAX = 1000


class Document(Strict):
    text: Text


class RerankRequest(Strict):
    model: str = Field(min_length=1, max_length=200)
    query: Text
    documents: Annotated[list[Text | Document], Items(DOCUMENTS_MAX, least=1)]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    # It identifies the caller; it cannot change an answer.
    user: str | None = Field(None, max_length=512)

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]

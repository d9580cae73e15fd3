"""`/v1/files`: upload, list, read, delete. Each key sees only its own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from api.formats.listing import listing
from api.http.auth import caller_of
from api.serving.services import ServicesDep
from api.stores.files import FileRecord
from api.stores.pages import Body, PageRequest
from shared.domain.errors import InvalidRequest

router = APIRouter()
LIFETIME_S = (3600, 30 * 86400)
NAME_MAX = 255


@router.post("/v1/files")
async def create_file(
    request: Request,
    services: ServicesDep,
    file: UploadFile,
    purpose: Annotated[Literal["batch", "user_data"], Form()],
    expires_anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    expires_s: Annotated[int | None, Form(alias="expires_after[seconds]", ge=LIFETIME_S[0], le=LIFETIME_S[1])] = None,
) -> dict[str, Any]:
    """Upload a file. A file for a batch has one JSON request a line."""
    if (expires_anchor is None) != (expires_s is None):
        raise InvalidRequest("'expires_after' must have both an anchor and seconds.", param="expires_after")
    lifetime_s = services.settings.file_ttl_s if expires_s is None else expires_s
    record = await services.files.create(
        file.file,
        tenant=caller_of(request).tenant,
        filename=(file.filename or "file")[-NAME_MAX:],
        purpose=purpose,
        lifetime_s=lifetime_s,
    )
    return record.body()


@router.get("/v1/files")
async def list_files(
    request: Request,
    services: ServicesDep,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List files, the newest first."""
    tenant = caller_of(request).tenant

    async def pick(ids: Sequence[str]) -> list[Body]:
        records = await services.files.records(ids, tenant=tenant)
        return [record.body() for record in records if purpose in (None, record.purpose)]

    asked = PageRequest(after=after, limit=limit, newest_first=order == "desc")
    bodies, more = await services.files.page(tenant, asked, pick)
    return listing(bodies, more=more)


async def _mine(file_id: str, request: Request, services: ServicesDep) -> FileRecord:
    return await services.files.record(file_id, tenant=caller_of(request).tenant)


Mine = Annotated[FileRecord, Depends(_mine)]


@router.get("/v1/files/{file_id}")
async def retrieve_file(record: Mine) -> dict[str, Any]:
    return record.body()


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
async def retrieve_file_content(record: Mine, services: ServicesDep) -> FileResponse:
    """Return the file's bytes."""
    return FileResponse(services.files.path(record.id), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
async def delete_file(record: Mine, services: ServicesDep) -> dict[str, Any]:
    await services.files.delete(record.id, tenant=record.tenant)
    return {"id": record.id, "object": "file", "deleted": True}

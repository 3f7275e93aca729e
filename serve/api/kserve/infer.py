"""`POST /v2/models/{model}/infer`."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.deps import TheDoor
from serve.api.disconnect import unless_gone
from serve.api.kserve.answer import check_pixels, drawn, infer_response
from serve.api.kserve.asked import ThePipeline
from serve.api.kserve.body import read_body
from serve.api.kserve.described import INFER
from serve.api.kserve.draw import draw
from serve.api.kserve.request import HEADER_LENGTH, read_infer
from serve.api.kserve.rows import begun, job_headers

router = APIRouter(prefix="/v2", tags=["KServe v2"])

_log = structlog.get_logger(__name__)


@router.post("/models/{model}/infer", **INFER)
@router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, door: TheDoor, model: ThePipeline) -> Response:
    limits = door.settings.limits
    asked = read_infer(await read_body(request, limits), request.headers.get(HEADER_LENGTH), limits)
    rows = await begun(door, model.served, asked.rows, asked.options)
    check_pixels(rows, asked.outputs)
    await door.check_room(model.name)
    _log.info("infer", job_ids=[row.job_id for row in rows], size=f"{rows[0].request.width}x{rows[0].request.height}")
    drawing = draw(door.service, rows, door.settings.timeouts.request_s, asked.options.timeout_s)
    done = await unless_gone(request.receive, drawing)
    return await infer_response(model.name, asked.id, await drawn(door, done), asked.outputs, job_headers(rows))

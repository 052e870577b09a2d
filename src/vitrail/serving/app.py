"""The routes of a server; `document` describes them (OpenAPI, at /openapi.json)."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.security import HTTPBearer

from vitrail import __version__
from vitrail.errors import ConfigError
from vitrail.explaining.choices import ask, pick_target
from vitrail.serving import page, schema
from vitrail.serving.answering import Asked, ToExplain
from vitrail.serving.description import describe
from vitrail.serving.document import refusals, told, work
from vitrail.serving.problem import Problem, as_json, stopping
from vitrail.serving.refusals import say_errors
from vitrail.serving.service import Service


def build(service: Service, name: str, *, with_token: bool) -> FastAPI:
    """Give the application for the model that is called `name` in answers."""
    app = FastAPI(
        title="vitrail",
        version=__version__,
        description=f"Answers of {name}, a Vision Transformer, for images.",
        docs_url=None,  # its page would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    say_errors(app)
    who = [Security(HTTPBearer(auto_error=False))] if with_token else []
    _add_work(app, service, name, who)
    _add_about(app, service, name, who)
    for path, (kind, body) in page.files().items():
        app.add_api_route(path, _file(kind, body), include_in_schema=False)
    return app


def _add_work(app: FastAPI, service: Service, name: str, who: list[Any]) -> None:
    answerer = service.answerer
    bundle, config = answerer.bundle, answerer.bundle.model.config
    most = max(5, len(bundle.labels))
    here = answerer.preprocess
    grid = (here.size[0] // config.patch_size, here.size[1] // config.patch_size)
    Top = Annotated[int, Query(ge=1, le=most, description="classes to answer with")]
    Head = Annotated[int, Query(ge=-config.heads, lt=config.heads)]
    Block = Annotated[int, Query(ge=-config.depth, lt=config.depth)]
    Layer = Block | Literal["pool"] if config.pooling == "map" else Block

    async def answered(rows: list[dict[str, Any]]) -> Response:
        # Maps are many numbers: the loop has others to answer while they are written.
        body = await asyncio.to_thread(as_json, {"model": name, "results": rows})
        return Response(body, media_type="application/json")

    @app.post("/v1/predict", **work("The likeliest classes of images.", schema.Predictions, who))
    async def predict(request: Request, top: Top = 5) -> Response:  # type: ignore[valid-type]
        _need_classes(bundle.labels)
        rows = await service.answer(
            request, "predict", lambda data: Asked(answerer.pixels(data), top)
        )
        return await answered(
            [
                {"name": r.name, "error": r.error, "top": [_class(a) for a in r.result or ()]}
                for r in rows
            ]
        )

    @app.post("/v1/embed", **work("Features of images.", schema.Embeddings, who))
    async def embed(request: Request) -> Response:
        rows = await service.answer(request, "embed", answerer.pixels)
        return await answered(
            [
                {
                    "name": r.name,
                    "error": r.error,
                    "vector": None if r.error else r.result.tolist(),
                }
                for r in rows
            ]
        )

    @app.post("/v1/explain", **work("What answers rest on.", schema.Explanations, who))
    async def explain(
        request: Request,
        method: Literal["rollout", "attention", "relevance"] = "rollout",
        target: Annotated[str | None, Query(description="a class by name or index")] = None,
        layers: Annotated[list[Layer] | None, Query()] = None,  # type: ignore[valid-type]
        heads: Annotated[list[Head] | None, Query()] = None,  # type: ignore[valid-type]
    ) -> Response:
        how: dict[str, Any] = {"method": method, "layers": layers, "heads": heads}
        try:
            how["target"] = pick_target(target, bundle.labels)
        except ConfigError as error:
            raise Problem(404, "no_class", str(error)) from None
        ask(config, bundle.labels, grid, **how, queries=None, fill="grey", batch_size=1)
        rows = await service.answer(
            request, "explain", lambda data: ToExplain(answerer.opened(data), how)
        )
        return await answered(
            [{"name": r.name, "error": r.error, "explanation": r.result} for r in rows]
        )


def _add_about(app: FastAPI, service: Service, name: str, who: list[Any]) -> None:
    about = as_json(describe(service, name))

    @app.get("/v1/model", **told("What answers here.", schema.Model, 401, 403), dependencies=who)
    async def model() -> Response:
        return Response(about, media_type="application/json")

    @app.get("/health", **told("Whether the process lives.", schema.State))
    async def health() -> Response:
        return _json({"status": "stopping" if service.gate.is_stopping else "ok"})

    @app.get("/ready", **told("Whether requests are welcome.", schema.State, 503))
    async def ready() -> Response:
        if service.gate.is_stopping:
            raise stopping()
        return _json({"status": "ok"})

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    responses: dict[int | str, dict[str, Any]] = {200: text, **refusals(401, 403, 421)}

    @app.get(
        "/metrics",
        summary="Counts, as Prometheus reads them.",
        responses=responses,
        response_class=Response,
        dependencies=who,
    )
    async def metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(service.gate), media_type=kind)


def _class(answer: Any) -> dict[str, Any]:
    return {"label": answer.label, "index": answer.index, "probability": answer.probability}


def _need_classes(labels: tuple[str, ...]) -> None:
    if not labels:
        raise Problem(404, "no_class", "this model has no classes, but features: ask /v1/embed")


def _json(values: Any) -> Response:
    return Response(as_json(values), media_type="application/json")


def _file(kind: str, body: bytes) -> Any:
    async def send() -> Response:
        return Response(body, media_type=kind, headers={"cache-control": "no-cache"})

    return send

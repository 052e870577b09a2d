"""Every error of the application as `{code, message}`."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from vitrail.errors import ConfigError
from vitrail.serving.guard import internal
from vitrail.serving.problem import JSON, Problem


def say_errors(app: FastAPI) -> None:
    """Have every error answered as `{code, message}`."""

    @app.exception_handler(Problem)
    async def _(_: Request, problem: Any) -> Response:
        return _refused(problem)

    @app.exception_handler(ConfigError)
    async def _(_: Request, error: Any) -> Response:
        return _refused(Problem(422, "parameter", str(error)))

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: Any) -> Response:
        found = [f"{e['loc'][-1]}: {e['msg'].lower()}" for e in error.errors()]
        return _refused(Problem(422, "parameter", "; ".join(map(str, found))))

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: Any) -> Response:
        code = {404: "no_page", 405: "method"}.get(error.status_code, "http")
        return _refused(Problem(error.status_code, code, error.detail, **(error.headers or {})))

    @app.exception_handler(Exception)
    async def _(_: Request, error: Any) -> Response:
        return _refused(internal())  # the guard tells the log why


def _refused(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers, JSON.decode())

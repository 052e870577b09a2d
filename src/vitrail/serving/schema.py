"""The forms of answers, for the OpenAPI document; `as_json` writes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[int, Field(ge=0)]


class Error(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="for programs")
    message: str = Field(description="for people")


class Class(BaseModel):
    """One class and how likely it is."""

    label: str
    index: Place
    probability: Share


class Predicted(BaseModel):
    """The likeliest classes of an image, or an error and none."""

    name: str
    error: str | None
    top: list[Class]


class Predictions(BaseModel):
    """An answer for each image, in their order."""

    model: str
    results: list[Predicted]


class Embedded(BaseModel):
    """The features of an image that the head reads, or an error and null."""

    name: str
    error: str | None
    vector: list[float] | None


class Embeddings(BaseModel):
    """Features of each image, in their order."""

    model: str
    results: list[Embedded]


class Map(BaseModel):
    """What an answer rests on: as `vitrail.explain`, whose `Explanation` says the axes of maps."""

    method: Literal["rollout", "attention", "relevance"]
    target: Class | None = Field(description="the class that is explained")
    grid: list[int] = Field(description="h and w of a map")
    layers: list[int | Literal["pool"]]
    heads: list[int]
    queries: list[Any]
    size: list[int] = Field(description="height and width of the image")
    seen: list[float] = Field(description="top, left, bottom, right of what the model saw of it")
    maps: list[Any]
    prefix: list[Any]


class Explained(BaseModel):
    """The explanation of an image, or an error and null."""

    name: str
    error: str | None
    explanation: Map | None


class Explanations(BaseModel):
    """An explanation of each image, in their order."""

    model: str
    results: list[Explained]


class Model(BaseModel):
    """What answers here."""

    model: str
    version: str
    classes: int
    labels: list[str]
    parameters: int
    image_size: list[int] = Field(description="height and width that the model reads")
    grid: list[int] = Field(description="patches down and across")
    depth: int
    heads: int
    methods: list[str] = Field(description="of explain")
    preprocess: dict[str, Any]
    engine: str
    dtype: str
    device: str
    fills_up_to: int = Field(
        description="the smallest batch that the engine is given; a smaller one is filled up"
    )
    limits: dict[str, float] = Field(description="sizes in bytes, times in seconds")


class State(BaseModel):
    """How the server is."""

    status: Literal["ok", "stopping"]

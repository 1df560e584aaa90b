"""Bodies of requests and answers. Knows nothing of models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Picture = Annotated[str, Field(min_length=1, description="A picture: a data URL, or the file's bytes in base64.")]
Code = Annotated[str, Field(min_length=1, max_length=1 << 20, description="A packed code in base64.")]
Layer = int | Literal["mid"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PictureItem(_Body):
    """A picture in an object of its own."""

    image: Picture


Pictures = Annotated[
    Picture | PictureItem | list[Picture | PictureItem], Field(description="One picture or a list of them.")
]


def listed(pictures: str | PictureItem | list[str | PictureItem]) -> list[str]:
    """The pictures of a request as text."""
    items = pictures if isinstance(pictures, list) else [pictures]
    return [item if isinstance(item, str) else item.image for item in items]


class EmbeddingsBody(_Body):
    """Like OpenAI's POST /v1/embeddings, for pictures."""

    input: Pictures
    model: str | None = Field(None, description="The model's name; any other than the server's is refused.")
    modality: Literal["image"] = "image"
    layer: Layer | Annotated[list[Layer], Field(min_length=1, max_length=64)] | None = Field(
        None, description='Block, from 0, negative from the end, or "mid"; several in a list.'
    )
    encoding_format: Literal["float", "base64", "ubinary"] = Field(
        "float",
        description="float: numbers; base64: float32, little-endian; ubinary: the signs, eight to a byte, 0..255.",
    )
    user: str | None = None


class Embedding(BaseModel):
    """One vector. Several layers yield as many vectors per picture."""

    object: Literal["embedding"] = "embedding"
    index: int
    layer: int | str
    embedding: list[float] | list[int] | str


class Usage(BaseModel):
    """Expected by OpenAI's clients; pictures have no prompt."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the pictures and, for each picture, of the layers."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class CodesBody(_Body):
    """Pictures to encode. of: the tokenizer's codes, or those used to search the index."""

    input: Pictures
    of: Literal["tokens", "index"] = "tokens"


class CodesAnswer(BaseModel):
    """Packed codes in base64, most significant bit first. bits_per_token: of the tokenizer's codes."""

    codes: list[str]
    n_bits: int
    bits_per_token: int | None


class RegionBody(_Body):
    """A rectangle in fractions of the picture's side, from its upper left corner."""

    x: float = Field(ge=0, lt=1)
    y: float = Field(ge=0, lt=1)
    w: float = Field(gt=0, le=1)
    h: float = Field(gt=0, le=1)


class QueryBody(_Body):
    """One of image, code, id and row says what to search for; row: in the version given by the search."""

    image: Picture | None = None
    code: Code | None = None
    id: str | None = Field(None, max_length=1 << 16)
    row: int | None = Field(None, ge=0)

    @property
    def given(self) -> list[str]:
        """Names of the given ones."""
        return [name for name in ("image", "code", "id", "row") if getattr(self, name) is not None]


class WeightedQuery(QueryBody):
    """One part of a combined query. weight: its share; a negative one prefers rows far from it."""

    weight: float = Field(1, ge=-1000, le=1000, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one(self) -> WeightedQuery:
        if len(self.given) != 1:
            raise ValueError(f"give one of image, code, id and row; found {', '.join(self.given) or 'none'}")
        return self


class SearchBody(QueryBody):
    """One query, or several in `queries`. version: of the index to which rows refer."""

    queries: list[WeightedQuery] | None = Field(
        None, min_length=1, description="Several combined: the distance is the weighted mean of their distances."
    )
    version: str | None = None
    k: int = Field(10, ge=1)
    offset: int = Field(0, ge=0, le=1 << 20, description="Number of hits to skip, for paging.")
    radius: float | None = Field(None, ge=0, description="Maximum distance of a hit.")
    where: str | None = Field(
        None, max_length=1 << 14, description='Only rows that pass: label = "cat" and not path like "drafts/%".'
    )
    match: str | None = Field(
        None, max_length=4096, description="Only rows whose paths match: * any text, ? a character."
    )
    ids: list[str] | list[int] | None = Field(None, max_length=100_000, description="Only rows with these ids.")
    region: RegionBody | None = None
    rescore: int = Field(0, ge=0, le=1000, description="Reorder this many times k hits by their vectors; 0: off.")
    effort: int | None = Field(None, ge=0, description="Effort of an approximate index.")
    group: int | None = Field(
        None,
        ge=0,
        description="Of the nearest 8,192 hits, those that differ from a nearer one in at most this many bits are "
        "grouped under it; k + offset is then at most 2048.",
    )

    @model_validator(mode="after")
    def _one_query(self) -> SearchBody:
        given = [*self.given, *(["queries"] if self.queries is not None else [])]
        if len(given) != 1:
            raise ValueError(f"give one of image, code, id, row and queries; found {', '.join(given) or 'none'}")
        return self


class MemberAnswer(BaseModel):
    """A hit grouped under a nearer one, as its near-duplicate. image: URL of its photograph."""

    row: int
    id: str | int
    distance: float
    image: str


class HitAnswer(MemberAnswer):
    """A row that was found. columns: its values in the index. members: its near-duplicates among the hits."""

    columns: dict[str, str | int | float | bool | None] = {}
    members: list[MemberAnswer] = []


class SearchAnswer(BaseModel):
    """Hits, nearest first. metric: of the distances. n_bits: compared bits. code: the query's; null for several."""

    hits: list[HitAnswer]
    metric: Literal["bits", "cosine"]
    n_bits: int
    rows: int
    version: str
    code: str | None


class DecodeBody(_Body):
    """Tokenizer codes to decode; or one picture, to see what its bits keep."""

    codes: list[Code] | None = Field(None, min_length=1)
    image: Picture | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DecodeBody:
        if (self.codes is None) == (self.image is None):
            raise ValueError("give either codes or image")
        return self


class DecodeAnswer(BaseModel):
    """Pictures as data URLs of PNG files."""

    images: list[str]


class About(BaseModel):
    """What the server offers. n_bits: of the index's codes. grid, token_bits: size of the token grid and bits per
    token,
    if the index has tokenizer codes, which can be searched by region and decoded. rescore: whether it has vectors.
    pictures: whether pictures can be queries. columns: names and types, for filters. together: whether queries can be
    combined."""

    model: str
    image_size: int
    layers: int
    layer: int
    rows: int
    version: str | None
    kind: str | None
    n_bits: int | None
    token_bits: int | None
    grid: tuple[int, int] | None
    decodable: bool
    pictures: bool
    rescore: bool
    columns: dict[str, str] = {}
    together: bool = False
    most_neighbors: int
    most_images: int


class ErrorAnswer(BaseModel):
    """An error in the form of OpenAI's API."""

    error: dict[str, Any]

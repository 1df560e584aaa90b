"""Images to embedding data sets: folders of Parquet files, resumable and with every image accounted for."""

from bigr_repr.embed.export import Exported, export
from bigr_repr.embed.read import Embeddings, EmbeddingSet, read_embeddings
from bigr_repr.embed.run import EmbedSummary, Progress, embed_images

__all__ = [
    "EmbedSummary",
    "EmbeddingSet",
    "Embeddings",
    "Exported",
    "Progress",
    "embed_images",
    "export",
    "read_embeddings",
]

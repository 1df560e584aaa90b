from .dataset.export import Exported as Exported
from .dataset.export import export_embeddings as export_embeddings
from .dataset.read import Embeddings as Embeddings
from .dataset.read import EmbeddingSet as EmbeddingSet
from .dataset.read import read_embeddings as read_embeddings
from .run import EmbedSummary as EmbedSummary
from .run import Progress as Progress
from .run import embed_images as embed_images

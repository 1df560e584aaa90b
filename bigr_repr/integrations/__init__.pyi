from .batches import BatchEmbedder as BatchEmbedder
from .scikit_learn import BigrFeatures as BigrFeatures
from .sentence import BigrModule as BigrModule
from .timm_style import TimmStyle as TimmStyle
from .timm_style import as_timm as as_timm
from .timm_style import create_transform as create_transform

from .bigr import BiGR as BiGR
from .bits import bit_entropy as bit_entropy
from .tokenizer import BinaryAutoencoder as BinaryAutoencoder
from .tokenizer import Reconstruction as Reconstruction
from .transcoder import BernoulliDiffusion as BernoulliDiffusion
from .transformer import Captions as Captions
from .transformer import Transformer as Transformer

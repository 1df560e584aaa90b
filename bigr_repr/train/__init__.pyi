from .code_set import CodeSet as CodeSet
from .code_set import write_codes as write_codes
from .generator import train_generator as train_generator
from .loop import TrainSettings as TrainSettings
from .recipe import GeneratorRecipe as GeneratorRecipe
from .resume import TrainingError as TrainingError
from .tokenizer import TokenizerRecipe as TokenizerRecipe
from .tokenizer import train_tokenizer as train_tokenizer

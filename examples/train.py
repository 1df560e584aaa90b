"""Train a tokenizer and a generator on a folder of images

The default number of steps is only a smoke test. If the script is interrupted, run it again to resume.
"""

import argparse
from pathlib import Path

from bigr_repr import Pretrained, preset, save
from bigr_repr.datasets import open_images
from bigr_repr.train import (
    GeneratorRecipe,
    TokenizerRecipe,
    TrainSettings,
    train_generator,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description="Train a model of the tiny architecture.")
parser.add_argument("images", nargs="?", default="examples/images")
parser.add_argument("--out", default="runs/example")
parser.add_argument("--steps", type=int, default=20, help="training steps of each model")
given = parser.parse_args()

out = Path(given.out)
images = open_images(given.images)
config = preset("tiny", classes=1)

tokenizer = train_tokenizer(
    images,
    config.tokenizer,
    TrainSettings(out=str(out / "tokenizer"), steps=given.steps, batch_size=4, learning_rate=1e-3, ema=0.9),
    TokenizerRecipe(perceptual=None, gan_start=None),
)
generator = train_generator(
    images,
    config,
    TrainSettings(out=str(out / "generator"), steps=given.steps, batch_size=4, learning_rate=1e-3, ema=0.9),
    GeneratorRecipe(conditional=False),
    tokenizer=tokenizer,
)
save(Pretrained(config, tokenizer, generator), out / "model")
print(f"load it with bigr_repr.load({str(out / 'model')!r})")

"""Compare layers, bits and pixels by a linear probe

Uses scikit-learn's handwritten digits, which need no download and are new to the model. Features are cached, so a
second run is quick.
"""

import argparse

from bigr_repr.evaluate import BenchSettings, bench, open_data

parser = argparse.ArgumentParser(description="Probe pixels, the tokenizer's bits and a few layers on digits.")
parser.add_argument("--limit", type=int, default=600, help="training images")
parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 12])
parser.add_argument("--cache", default="cache", help="folder for cached features")
given = parser.parse_args()

data = open_data("digits", limit=given.limit, test_limit=given.limit // 2)
settings = BenchSettings(k=(10,), cache=given.cache)
for model, layers in (("pixels", ()), ("tokenizer-bits", ()), ("bigr-tiny", given.layers)):
    for row in bench(model, data, settings, layers=layers):
        assert row.probe is not None
        low, high = row.probe.interval
        layer = "" if row.view.layer is None else f", layer {row.view.layer}"
        print(f"{model}{layer}: {row.probe.top1:.1f} % ({low:.1f} to {high:.1f})")

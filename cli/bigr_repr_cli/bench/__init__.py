"""`bigr-repr bench …`: the group of benchmark commands."""

import typer

from bigr_repr_cli.bench import dense, few, generation, look, probes, retrieval, suite, tokens

app = typer.Typer(no_args_is_help=True, help="Measure how good features or generated images are; look at features.")
app.command("linear-probe")(probes.linear_probe)
app.command("knn")(probes.knn)
app.command("layers")(probes.layers)
app.command("attentive-probe")(few.attentive_probe)
app.command("augmented-probe")(few.augmented_probe)
app.command("finetune")(few.finetune)
app.command("few-shot")(few.few_shot)
app.command("clusters")(few.clusters)
app.command("multi-label")(dense.multi_label)
app.command("segment")(dense.segment)
app.command("retrieval")(retrieval.command)
app.command("generation")(generation.command)
app.command("suite")(suite.command)
app.command("map")(look.map_command)
app.command("neighbors")(look.neighbors)
app.command("neighbours", hidden=True)(look.neighbors)
app.command("confusion")(look.confusion)
app.command("cka")(look.cka)
app.command("tokens")(tokens.command)

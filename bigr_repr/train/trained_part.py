"""Which weights an adaptation trains, and the adapter that contains them. Knows nothing of how they are trained."""

# D width, C classes

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bigr_repr.checkpoints.adapters import (
    CLASS_TABLE,
    CLASSES_FILE,
    LOW_RANK_FILE,
    LOW_RANK_SETTINGS,
    class_table,
    header_text,
)
from bigr_repr.checkpoints.catalog import ADAPTER_FILE, TOKENIZER_FILE
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import ModelConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.system.files import naming, sync_tree
from bigr_repr.system.sums import write_sums
from bigr_repr.train.adapt_recipe import AdaptRecipe

if TYPE_CHECKING:
    from peft import PeftModel


def begun_with_classes(start: Pretrained, config: ModelConfig, taken: Tensor) -> BiGR:
    """The model's generator with a different class table; new classes start as "no class"."""
    state = {name: value.detach().clone() for name, value in start.generator.state_dict().items()}
    table = state[CLASS_TABLE]
    state[CLASS_TABLE] = class_table(table, taken, table[-1:].expand(int((taken < 0).sum()), -1))
    model = BiGR(config.generator)
    model.load_state_dict(state)
    return model


class TrainedPart:
    """Freezes what a method does not train. `taken` (C + 1,): the base's row of each class, or -1 for a new one.

    Trains the rows of the pictures' classes and of new classes, and "no class" except with the method "classes".
    Raises ImportError if peft is missing.
    """

    def __init__(self, model: BiGR, taken: Tensor, labels: list[int], recipe: AdaptRecipe) -> None:
        self.model, self._taken, self._low_rank = model, taken, None
        rows = torch.zeros(len(taken), dtype=torch.bool)
        rows[labels] = True
        rows[-1] = recipe.method != "classes"
        self._rows = rows | (taken < 0)
        if recipe.method == "full":
            return
        model.requires_grad_(False)
        if recipe.method == "lora":
            self._low_rank = _with_low_rank(model, recipe)
        table = model.get_parameter(CLASS_TABLE)
        table.requires_grad_(True)
        table.register_hook(lambda gradient: gradient * self._rows[:, None].to(gradient))  # type: ignore[no-untyped-call]

    @property
    def names(self) -> frozenset[str]:
        """Names of the trained weights."""
        return frozenset(name for name, weight in self.model.named_parameters() if weight.requires_grad)

    @property
    def count(self) -> int:
        """The number of trained parameters; of the class table, only trained rows count."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        whole = sum(weight.numel() for name, weight in trained.items() if name != CLASS_TABLE)
        rows = len(self._rows) if len(trained) == len(list(self.model.parameters())) else int(self._rows.sum())
        return whole + rows * self.model.config.dim

    def write(
        self, folder: Path, config: ModelConfig, *, base: str, base_sha256: str, tokenizer: nn.Module | None = None
    ) -> Path:
        """Write the adapter for "lora" or "classes", atomically.

        tokenizer: an adapted one, replacing the model's.
        """
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        with naming(folder, partial):
            partial.mkdir(parents=True)
        try:
            with naming(folder, partial):
                self._write_parts(partial)
                if tokenizer is not None:
                    save_file(tokenizer.cpu().state_dict(), partial / TOKENIZER_FILE)
                about = header_text(config, base=base, base_sha256=base_sha256)
                (partial / ADAPTER_FILE).write_text(about, encoding="utf-8")
                write_sums(partial)
                sync_tree(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _write_parts(self, folder: Path) -> None:
        if self._low_rank is not None:
            self._low_rank.save_pretrained(str(folder))
            for file in folder.iterdir():
                if file.name not in (LOW_RANK_FILE, LOW_RANK_SETTINGS):
                    file.unlink()
        table = self.model.get_parameter(CLASS_TABLE).detach().cpu()
        taken = torch.where(self._rows, -1, self._taken)
        save_file({"taken": taken, "rows": table[self._rows].contiguous()}, folder / CLASSES_FILE)


def _with_low_rank(model: BiGR, recipe: AdaptRecipe) -> PeftModel:
    """Add low-rank updates to matrices of a model's blocks, in place, using torch's random state."""
    try:
        import peft
    except ImportError as error:
        remedy = 'install it with: pip install "bigr-repr[adapt]", or use method="full" or "classes"'
        raise ImportError(f'method="lora" needs peft; {remedy}') from error
    pattern = rf"transformer\.layers\.\d+\.(attention|feed_forward)\.({'|'.join(recipe.matrices)})"
    settings = peft.LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=pattern, lora_dropout=0.0)
    unchecked: Any = model  # peft's types cover only models from transformers
    made: PeftModel = peft.get_peft_model(unchecked, settings)
    return made

"""Docstrings for the site: cross-references and examples as transformers writes them, in the words of mkdocstrings."""

import re

from griffe import Extension, Object


REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\[|\()")
PUBLIC = {
    "CostTable", "LayerRanking", "SparsityReport", "TraDyCallback", "TraDyConfig", "TraDyModel", "TraDyTrainer",
    "TrainingPlan", "cost_table", "max_batch_size", "plan", "rank_layers",
}  # fmt: skip


class TransformersDocstrings(Extension):
    """Turns "[`TraDyModel.report`]" into a link and "Example:" into a section of doctests."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = REFERENCE.sub(_link, text)


def _link(match: re.Match) -> str:
    name = match[1]
    if name.split(".")[0] in PUBLIC:
        return f"[`{name}`][hf_trady.{name}]"
    return f"`{name.split('.')[-1]}`"  # of another library, or not on the site

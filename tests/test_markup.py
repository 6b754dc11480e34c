"""What objects show of themselves in a notebook."""

from html.parser import HTMLParser

import pytest
import torch

from hf_trady import CostTable, LayerRanking, TraDyConfig, TraDyModel, plan
from hf_trady.markup import html_table
from hf_trady.selection import LayerCost

from .tiny import conv_net


class Cells(HTMLParser):
    """Collects the text of every cell; all tags must be closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


EVIL = '<script>alert("1 & 2")</script>'


def test_cells_header_and_caption_are_escaped():
    html = html_table([(EVIL, EVIL)], (EVIL, EVIL), EVIL)
    assert "<script" not in html and html.count("&lt;script&gt;") == 5
    assert Cells(html).cells == [EVIL] * 4


@pytest.fixture(scope="module")
def model() -> TraDyModel:
    return TraDyModel(conv_net(), TraDyConfig(0.3, "dynamic_full_random"), torch.zeros(2, 3, 16, 16))


def test_a_sparsity_report_shows_what_it_says(model):
    report = model.report()
    cells = Cells(report._repr_html_()).cells
    assert f"{report.units:,} of {report.budget:,}" in cells and f"{report.activation_sparsity:.2%}" in cells


def test_costs_show_a_row_a_layer(model):
    cells = Cells(model.costs._repr_html_()).cells
    assert len(cells) == 6 * (len(model.costs) + 1) and "depthwise" in cells


def test_a_ranking_shows_shares_that_add_up_and_escapes_names():
    scores = {EVIL: 3.0, "conv": 1.0}
    ranking = LayerRanking({"rgn": scores, "lara": scores}, {EVIL: [4, 9], "conv": [8, 4]}, {"model": "<b>"})
    html = ranking._repr_html_()
    assert "<script" not in html and "<b>" not in html
    assert Cells(html).cells[4:] == [EVIL, "75.00%", "75.00%", "75.00%", "conv", "25.00%", "100.00%", "25.00%"]
    nothing = {EVIL: 0.0, "conv": 0.0}
    assert "0.00%" in LayerRanking({"rgn": nothing, "lara": nothing}, ranking.shapes)._repr_html_()


def test_a_plan_shows_what_its_text_does(model):
    found = plan(conv_net(), TraDyConfig("64KiB"), torch.zeros(2, 3, 16, 16))
    html = found._repr_html_()
    cells = Cells(html).cells
    assert cells[cells.index("budget") + 1] == "0.1" and "predicted peak" in cells
    text = str(found)
    assert (
        all(cell in text for cell in cells) and "memory_budget=64KiB, batch of 2" in html and "memory_budget" in text
    )
    assert "planned as if" in html  # a note below the tables


def test_costs_escape_names():
    assert "<script" not in CostTable((LayerCost(EVIL, 4, 3, 2, 1),))._repr_html_()

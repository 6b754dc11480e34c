import pytest
import timm
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from hf_trady import LayerRanking, TraDyConfig, TraDyModel
from hf_trady.rankings import shipped_rankings

from .tiny import conv_net, image_batch, ranking_of, timm_net, timm_wrapper


def minilm_config(**kwargs) -> BertConfig:
    return BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **kwargs)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "tf_efficientnet_lite0"])
def test_a_timm_network_is_known_whatever_its_head(name):
    assert name in shipped_rankings()
    model = TraDyModel(
        timm.create_model(name, num_classes=7), TraDyConfig(layer_ranking="auto"), torch.zeros(1, 3, 64, 64)
    )
    assert model.is_ready and 0 < model.report().units <= model.budget
    assert set(model.layer_ranking.layers()) == {row.name for row in model.costs}


@pytest.mark.parametrize("make", [BertForSequenceClassification, BertModel])
def test_a_transformer_is_known_under_any_head(make):
    ids = torch.zeros(1, 4, dtype=torch.long)
    model = TraDyModel(make(minilm_config()), TraDyConfig(layer_ranking="auto"), {"input_ids": ids})
    assert model.is_ready and model.report().active_layers > 0


def test_another_architecture_is_told_which_there_are():
    with pytest.raises(ValueError, match=r"finds no ranking .* ship for .*mobilenetv2_100.*; leave layer_ranking out"):
        TraDyModel(conv_net(), TraDyConfig(layer_ranking="auto"))


def test_a_ranking_can_be_renamed_and_cut():
    ranking = LayerRanking({"rgn": {"a": 1.0, "b": 2.0}, "lara": {"a": 3.0, "b": 1.0}}, {"a": [1, 2], "b": [3, 4]})
    renamed = ranking.renamed({"b": "net.b"})
    assert renamed.layers() == ["net.b"] and renamed.shapes == {"net.b": [3, 4]}


@pytest.mark.parametrize("there, here", [(timm_net, timm_wrapper), (timm_wrapper, timm_net)])
def test_a_ranking_fits_the_same_architecture_under_another_prefix(there, here, tmp_path):
    images, _ = image_batch(size=32)
    ranked = TraDyModel(there(), TraDyConfig(strategy="dynamic_full_random"), images)
    ranking_of(ranked.costs).save_pretrained(tmp_path)
    model = TraDyModel(here(), TraDyConfig(layer_ranking=str(tmp_path)), images)
    assert set(model.layer_ranking.shapes) == {row.name for row in model.costs} and model.report().active_layers > 0

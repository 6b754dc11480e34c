import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_trady.memory import KINDS, StepSetup, predict_step

from ..test_whole_models import llama
from ..tiny import MODELS, NAMES_OPERATIONS, bert, inputs_of, token_batch


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))


def test_a_tiny_model_takes_the_bytes_that_can_be_counted_by_hand():
    step = predict_step(two_layers(), torch.zeros(16, 8), StepSetup(torch.optim.SGD, {"lr": 0.1}, loss=torch.sum))
    x, hidden, loss = 16 * 8 * 4, 16 * 4 * 4, 4
    first, second = 4 * 8 * 4, 2 * 4 * 4  # weights, and so gradients
    assert step.weights == first + second
    assert step.kept == hidden + loss  # the input is the batch; the output is gone
    assert step.layers == {"1": hidden, "": loss}
    if NAMES_OPERATIONS:
        assert step.ops == {"Mm": hidden}
    # The gradient of the output is an expanded scalar. While the first gradient is formed, both hidden tensors live.
    highest = {"inputs": x, "gradients": second, "activations": hidden + loss, "transients": hidden + loss}
    assert step.at_peak == {kind: highest.get(kind, 0) for kind in KINDS}
    assert step.peak == sum(step.at_peak.values()) == max(map(sum, zip(*step.timeline.values(), strict=True)))


@pytest.mark.parametrize(("cls", "copies"), [(torch.optim.AdamW, 2), (torch.optim.SGD, 0)])
def test_optimizer_state_is_there_all_the_time(cls, copies):
    step = predict_step(two_layers(), torch.zeros(16, 8), StepSetup(cls, {"lr": 0.1}))
    counters = 2 * 4 if copies else 0  # AdamW's step, of each weight
    assert set(step.timeline["optimizer"]) == {copies * step.weights + counters}


def test_gradients_of_earlier_micro_batches_are_there_from_the_start():
    step = predict_step(two_layers(), torch.zeros(16, 8), StepSetup(accumulates=True))
    assert min(step.timeline["gradients"]) == step.weights


def test_a_storage_that_two_operations_keep_counts_once_and_masks_count_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x):
            h = F.relu(x * self.weight)  # its output is kept by itself and by the product
            return (h * h).masked_fill(h > 1, 0.0)

    step = predict_step(Net(), torch.zeros(32, 64), StepSetup(loss=torch.sum))
    size = 32 * 64
    assert step.kept == 4 * size + size + 4
    assert max(step.timeline["masks"]) == size


@pytest.mark.parametrize("kind", MODELS)
def test_a_prediction_touches_nothing_and_is_reproducible(kind):
    make, batch = MODELS[kind]
    net = make().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step = predict_step(net, inputs_of(batch))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert predict_step(net, inputs_of(batch)) == step
    assert list(step.ends.values()) == sorted(step.ends.values()) and step.ends["optimizer"] == len(step.names)


def test_a_model_on_meta_takes_what_a_real_one_does():
    with torch.device("meta"):
        empty = bert()
    batch = token_batch()
    assert predict_step(empty.train(), batch) == predict_step(bert().train(), batch)


def test_control_flow_that_depends_on_values_is_refused_in_one_line():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="depends on values") as error:
        predict_step(Net(4, 4), torch.zeros(2, 4))
    assert "\n" not in str(error.value)


def test_an_optimizer_that_goes_by_values_is_named_with_what_to_do():
    class Wary(torch.optim.SGD):
        def step(self, closure=None):
            if self.param_groups[0]["params"][0].grad.norm() < 1e6:
                super().step(closure)

    message = r"memory of the optimizer tests.Wary: its control flow depends on values .*, or take another optimizer"
    with pytest.raises(ValueError, match=message) as caught:
        predict_step(two_layers(), torch.zeros(2, 8), StepSetup(Wary))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_loss_is_told_and_kept():
    def loss(output):
        raise RuntimeError("the loss is broken")

    with pytest.raises(ValueError, match=r"maybe on real ones \(the loss is broken\); give") as caught:
        predict_step(nn.Linear(2, 2), torch.zeros(1, 2), StepSetup(loss=loss))
    assert "\n" not in str(caught.value)
    own = caught.value.__cause__.__cause__
    assert isinstance(own, RuntimeError) and str(own) == "the loss is broken"


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        predict_step(two_layers().requires_grad_(False), torch.zeros(2, 8))


def test_checkpointing_keeps_less_and_is_followed_through_backward():
    net, batch = bert().train(), token_batch(8, 16)
    plain = predict_step(net, batch)
    net.gradient_checkpointing_enable({"use_reentrant": False})
    recomputed = predict_step(net, batch)
    assert recomputed.kept < plain.kept and recomputed.peak < plain.peak
    assert math.isclose(recomputed.weights, plain.weights)


@pytest.mark.skipif(not NAMES_OPERATIONS, reason="this torch does not show what a node saved")
def test_sequences_are_taken_for_unpacked_ones():
    net, tokens = llama().train(), torch.randint(40, (2, 16))
    predicted = predict_step(net, {"input_ids": tokens, "labels": tokens}).ops
    graph = net(input_ids=tokens, labels=tokens).loss.grad_fn
    shapes = {node._saved_key.shape for node in nodes_of(graph) if "Flash" in node.name()}
    assert shapes == {(2, 2, 16, 8)}  # two heads for four queries, not repeated
    query, key = 2 * 4 * 16 * 8 * 8, 2 * 2 * 16 * 8 * 8
    attention = next(size for op, size in predicted.items() if "Flash" in op)
    assert attention == pytest.approx(2 * (2 * query + 2 * key), rel=0.1)  # query and output, key and value


def nodes_of(node):
    seen = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            waiting += [following for following, _ in node.next_functions]
    return seen

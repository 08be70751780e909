import pytest
import torch
from torch import nn

from mmdyn.sparsity import RandomPolicy, route, routing
from mmdyn.sparsity.policy import Site
from tests.torch_line import needs_export


@pytest.fixture
def paths():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), nn.Linear(8, 8)


def decide(batch, ratio=0.6):
    scores = torch.randn(batch, 12, 2).log_softmax(-1).requires_grad_()
    return scores, RandomPolicy(0)(scores, Site(index=0, keep_ratio=ratio, hw=(3, 4)))


@pytest.mark.parametrize('piece', [routing.PIECE, 16], ids=['whole', 'in pieces'])
@pytest.mark.parametrize('batch', [1, 2, 3])
def test_masked_and_gathered_agree_with_a_loop_in_values_and_gradients(
    paths, batch, piece, monkeypatch
):
    monkeypatch.setattr(routing, 'PIECE', piece)
    slow, fast = paths
    _, decision = decide(batch)
    x = torch.randn(batch, 8, 12).transpose(1, 2)
    loop = torch.stack(
        [
            torch.stack(
                [(slow if keep else fast)(token) for token, keep in zip(*pair, strict=True)]
            )
            for pair in zip(x, decision.keep_mask.detach().bool(), strict=True)
        ]
    )
    loop_grads = torch.autograd.grad(loop.square().sum(), [*slow.parameters(), *fast.parameters()])
    for execution in ('masked', 'gathered'):
        out = route(x, decision, slow, fast, execution)
        torch.testing.assert_close(out, loop, atol=1e-6, rtol=1e-5)
        grads = torch.autograd.grad(
            out.square().sum(), [*slow.parameters(), *fast.parameters()], retain_graph=True
        )
        for grad, expected in zip(grads, loop_grads, strict=True):
            torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


def test_masked_gradient_to_the_scores_is_the_difference_of_the_paths(paths):
    slow, fast = paths
    scores, decision = decide(2)
    x = torch.randn(2, 12, 8)
    route(x, decision, slow, fast, 'masked').sum().backward()
    # The soft value of the mask is exp(score), so d mask / d score is the probability.
    expected = (slow(x) - fast(x)).sum(-1) * scores[..., 0].exp()
    torch.testing.assert_close(scores.grad[..., 0], expected, atol=1e-5, rtol=1e-4)


def test_gathered_runs_each_path_on_its_own_locations_only(paths):
    slow, fast = paths
    seen = {}

    def counting(name, path):
        def run(x):
            seen[name] = x.shape[0]
            return path(x)

        return run

    _, decision = decide(2, ratio=0.5)
    route(
        torch.randn(2, 12, 8), decision, counting('slow', slow), counting('fast', fast), 'gathered'
    )
    assert seen == {'slow': 12, 'fast': 12}


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
def test_without_a_decision_or_with_everything_kept_it_is_the_slow_path(paths, execution):
    slow, fast = paths
    x = torch.randn(2, 12, 8)
    _, everything = decide(2, ratio=1.0)
    for decision in (None, everything):
        torch.testing.assert_close(route(x, decision, slow, fast, execution), slow(x))


@pytest.mark.parametrize('locations', [1, 7, 12])
def test_a_large_map_is_worked_on_in_pieces_to_the_same_end(paths, monkeypatch, locations):
    slow, _ = paths
    monkeypatch.setattr(routing, 'PIECE', 16)  # two locations
    pieces = []

    def noting(x):
        pieces.append(x.numel())
        return slow(x)

    x = torch.randn(2, 8, locations).transpose(1, 2).requires_grad_()
    out = routing.in_pieces(noting, x)
    torch.testing.assert_close(out, slow(x))
    assert max(pieces) <= 16 and sum(pieces) == x.numel()
    inputs = [x, *slow.parameters()]
    grads, expected = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, slow(x)))
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-4)


@needs_export
def test_what_compiles_or_is_exported_is_in_one_piece(paths, monkeypatch):
    monkeypatch.setattr(routing, 'PIECE', 1)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.slow = paths[0]

        def forward(self, x):
            return routing.in_pieces(self.slow, x)

    program = torch.export.export(Whole(), (torch.randn(1, 12, 8),), strict=False)
    assert not [node for node in program.graph.nodes if 'chunk' in str(node.target)]

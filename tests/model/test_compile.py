"""torch.compile takes the whole model as one graph, and it computes what eager computes."""

import shutil

import pytest
import torch

from tests.model.cases import gradients, random_batch, random_model, small

CASES = {
    "no dropout": (small("crammed-bert", layers=1), [None, None]),
    # seeds are tensors, so that a new one is no new constant
    "dropout": (
        small("crammed-bert", layers=1, positions="rope", dropout=0.2),
        [torch.tensor(2**60), torch.tensor(2**60 + 1)],
    ),
}


def test_windows_are_compiled_three_times():
    """Of a run whose window grows: the first, any other, and none."""
    architecture = small("cram", layers=1)
    model, batch = random_model(architecture, dtype=torch.float32), random_batch(architecture)
    compilations = []
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: compilations.append(graph) or graph)
    for options in ({"window": 1}, {"window": 2}, {"window": 4}, {"window": 8}, {}):
        torch.testing.assert_close(compiled(*batch.arguments, **options).loss, model(*batch.arguments, **options).loss)
    assert len(compilations) == 3


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("case", CASES)
def test_one_graph_equals_eager(case):
    """A second batch, and a second seed, must not compile again."""
    architecture, seeds = CASES[case]
    model = random_model(architecture, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    for number, (seed, stance) in enumerate(zip(seeds, ("default", "fail_on_recompile"), strict=True)):
        batch = random_batch(architecture, seed=number)
        expected = model(*batch.arguments, dropout_seed=seed)
        expected_gradients = gradients(model, expected.loss)
        with torch.compiler.set_stance(stance):
            result = compiled(*batch.arguments, dropout_seed=seed)
            actual_gradients = gradients(model, result.loss)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-6)
        assert result.num_correct == expected.num_correct
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(actual_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)

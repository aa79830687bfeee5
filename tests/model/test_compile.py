"""torch.compile takes the whole model as one graph, and it computes what eager computes."""

import shutil

import pytest
import torch

from tests.model.cases import gradients, random_batch, random_model, small


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
def test_one_graph_equals_eager():
    """With dropout, by tensors of seeds: a new seed, and a new batch, must not compile again."""
    architecture = small("crammed-bert", layers=1, positions="rope", dropout=0.2)
    model = random_model(architecture, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True)
    for number, stance in enumerate(("default", "fail_on_recompile")):
        batch = random_batch(architecture, seed=number)
        seed = torch.tensor(2**60 + number)
        expected = model(*batch.arguments, dropout_seed=seed)
        expected_gradients = gradients(model, expected.loss)
        with torch.compiler.set_stance(stance):
            result = compiled(*batch.arguments, dropout_seed=seed)
            actual_gradients = gradients(model, result.loss)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-6)
        assert result.num_correct == expected.num_correct
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(actual_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)

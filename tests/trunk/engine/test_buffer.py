# SPDX-License-Identifier: Apache-2.0
"""Parameters in one buffer are stepped as torch's AdamW steps them one by one."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atlas_flwr.trunk.engine.buffer import ParameterBuffer, step_together
from atlas_flwr.types import OptimizerSpec

SHAPES = ((3, 2), (5,), (2, 2))
SPEC = OptimizerSpec(lr=0.05, betas=(0.8, 0.95), weight_decay=0.1)
used = st.lists(st.tuples(*[st.booleans()] * len(SHAPES)), min_size=1, max_size=6)


def parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def adamw(own):
    return torch.optim.AdamW(
        own, lr=SPEC.lr, betas=SPEC.betas, eps=SPEC.eps, weight_decay=SPEC.weight_decay
    )


@settings(max_examples=60)
@given(used, used, st.integers(1, 2))
def test_buffers_stepped_together_equal_parameters_stepped_apart(one, two, adds):
    """Also where a parameter has no gradient in some of the steps."""
    owns = [parameters(seed) for seed in (0, 1)]
    wanted = deepcopy(owns)
    buffers = [ParameterBuffer(own) for own in owns]
    owns = [buffer.parameters for buffer in buffers]
    oracles = [adamw(own) for own in wanted]
    generator = torch.Generator().manual_seed(2)
    for rows in zip(one, two, strict=False):
        for buffer, own, oracle, row in zip(
            buffers, wanted, oracles, rows, strict=True
        ):
            for _ in range(adds):
                grads = [torch.randn(s, generator=generator) for s in SHAPES]
                buffer.add([g if u else None for g, u in zip(grads, row, strict=True)])
                for parameter, grad, is_used in zip(own, grads, row, strict=True):
                    if is_used:
                        before = parameter.grad
                        parameter.grad = grad if before is None else before + grad
            oracle.step()
            oracle.zero_grad()
        step_together([(SPEC, [buffer]) for buffer in buffers])
    for own, expected in zip(owns, wanted, strict=True):
        torch.testing.assert_close(
            [*own], [p.data for p in expected], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("count", [1, len(SHAPES)])
def test_parameters_are_leaves_in_the_buffers_memory(count):
    own = parameters(0)[:count]
    buffer = ParameterBuffer(own)
    assert all(map(torch.equal, buffer.parameters, own))
    assert all(p.is_leaf and p.requires_grad for p in buffer.parameters)
    with torch.no_grad():
        buffer.values.zero_()
    assert not any(p.any() for p in buffer.parameters)


def test_a_single_parameter_stays_where_its_module_has_it():
    (own,) = parameters(0)[:1]
    assert ParameterBuffer([own]).parameters[0] is own


@pytest.mark.parametrize("by", [1.0, 4.0])
def test_what_was_added_is_divided_before_the_step(by):
    one, other = (ParameterBuffer(parameters(0)) for _ in range(2))
    grads = torch.arange(1.0, 16.0)
    one.add_whole(grads)
    one.divide(by)
    other.add_whole(grads / by)
    step_together([(SPEC, [one]), (SPEC, [other])])
    assert torch.equal(one.values, other.values)


def test_a_parameter_alone_without_a_gradient_stays_as_it_is():
    """Not drawn on by its moments, nor by weight decay."""
    (own, *_), (wanted, *_) = parameters(0), parameters(0)
    buffer, oracle = ParameterBuffer([own]), adamw([wanted])
    for grad in (torch.ones(SHAPES[0]), None, torch.ones(SHAPES[0])):
        buffer.add([grad])
        wanted.grad = grad
        oracle.step()
        step_together([(SPEC, [buffer])])
        torch.testing.assert_close(buffer.parameters[0], wanted.data)

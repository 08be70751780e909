"""Counting the multiply-adds that a model really executes, by operator and part of the model."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdyn.analysis.op_costs import Kind, kind_of, kind_of_named, macs_of, op_name, plain_name
from mmdyn.sparsity import ScorePredictor

OTHER = 'other'
PREDICTORS = 'predictors'

# mmcv's compiled operators are plain functions of this module: torch doesn't see them run.
_MMCV_OPS = 'mmcv._ext'


@dataclass(frozen=True, eq=False)
class MacCount:
    """What was executed.

    Attributes:
        macs: multiply-adds by (group, operator).
        free: calls of the operators that cost nothing by convention, by name.
        unknown: calls of operators whose cost is not known, by name: if there are
            any, the count is a lower bound.
    """

    macs: Counter[tuple[str, str]] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.macs.total()

    def by_group(self) -> Counter[str]:
        """Multiply-adds of each part of the model."""
        return self._summed(0)

    def by_op(self) -> Counter[str]:
        """Multiply-adds of each operator."""
        return self._summed(1)

    def without(self, group: str) -> MacCount:
        """The same, one group's multiply-adds left out."""
        macs = Counter({key: macs for key, macs in self.macs.items() if key[0] != group})
        return replace(self, macs=macs)

    def add(self, other: MacCount) -> None:
        """Add what another one counted."""
        self.macs.update(other.macs)
        self.free.update(other.free)
        self.unknown.update(other.unknown)

    def uncounted(self, kind: Kind) -> Counter[str]:
        """Where calls are noted that no multiply-adds are counted for."""
        return self.free if kind == 'free' else self.unknown

    def _summed(self, axis: int) -> Counter[str]:
        summed: Counter[str] = Counter()
        for key, macs in self.macs.items():
            summed[key[axis]] += macs
        return summed


def module_groups(model: nn.Module) -> dict[int, str]:
    """Which part of a model each of its modules belongs to, by the modules' ``id``.

    A part is a child of the model (``backbone``, ``neck``, ``decode_head``, ``rpn_head``
    ...), or of its ``roi_head`` (``bbox_head``, ``mask_head``); score predictors are one of
    their own. A model without a ``backbone`` is taken for one.
    """
    root = OTHER if hasattr(model, 'backbone') else 'backbone'
    groups = {}
    for name, module in model.named_modules():
        first, _, rest = name.partition('.')
        if root != OTHER or not first:
            group = root
        else:
            group = rest.partition('.')[0] if first == 'roi_head' and rest else first
        groups[id(module)] = group
    for predictor in model.modules():
        if isinstance(predictor, ScorePredictor):
            groups |= {id(part): PREDICTORS for part in predictor.modules()}
    return groups


class _CountingMode(TorchDispatchMode):
    """Sees every operator that torch runs."""

    def __init__(self, groups: dict[int, str]) -> None:
        super().__init__()
        self.groups = groups
        self.count = MacCount()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name, kind = kwargs or {}, op_name(op), kind_of(op)
        if kind == 'unknown':
            # In inference mode composed operators come here whole.
            with self:
                out = op.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = op(*args, **kwargs)
        if kind == 'counted':
            self.count.macs[self.group(), name] += macs_of(op, args, kwargs, out)
        else:
            self.count.uncounted(kind)[name] += 1
        return out

    def group(self) -> str:
        """The part of the model that is running.

        Read off the call stack, innermost module first: hooks would miss what the hosts
        and our adapters call by another name than a module's own (``head.predict``,
        ``backbone.forward_sparse``).
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if self.groups and code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                if id(first) in self.groups:
                    return self.groups[id(first)]
            frame = frame.f_back
        return OTHER


@contextmanager
def _watch(module: ModuleType | None, count: MacCount) -> Iterator[None]:
    """Note every call of mmcv's compiled operators."""

    def noting(name: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            count.uncounted(kind_of_named(name))[name] += 1
            return function(*args, **kwargs)

        return call

    functions = {k: v for k, v in vars(module).items() if callable(v)} if module else {}
    try:
        for name, function in functions.items():
            setattr(module, name, noting(plain_name(f'mmcv.{name}'), function))
        yield
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


def count_executed(run: Callable[[], Any], model: nn.Module | None = None) -> tuple[MacCount, Any]:
    """Count what ``run()`` executes.

    Counted are matrix products, convolutions and attention, of whatever shapes they
    are executed with: a sparse path counts for what it gathers. Norms, activations,
    softmax, copies, resampling and the like are left out, as is usual in the field.
    Sees torch's operators, also those that a compiled extension calls, and mmcv's own;
    not what another extension or a compiled graph does by itself.

    Args:
        run: called once, without gradients.
        model: whose parts (backbone, predictors, neck, heads) the multiply-adds are told
            apart by. None = all are of the group ``'other'``.

    Returns:
        The count, and what ``run`` returned.
    """
    mode = _CountingMode({} if model is None else module_groups(model))
    with torch.no_grad(), _watch(sys.modules.get(_MMCV_OPS), mode.count), mode:
        out = run()
    return mode.count, out


def count_macs(run: Callable[[], Any]) -> int:
    """Multiply-adds of ``run()``, which is called once and without gradients.

    See :func:`count_executed` for what is counted. A multiply-add is two floating-point
    operations, though papers call multiply-adds FLOPs. Warns of operators whose cost is
    not known.
    """
    count, _ = count_executed(run)
    if count.unknown:
        warnings.warn(
            f'multiply-adds are a lower bound: the cost of {", ".join(sorted(count.unknown))} is '
            'not known to mmdyn.analysis.op_costs',
            stacklevel=2,
        )
    return count.total

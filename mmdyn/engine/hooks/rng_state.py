"""RngStateHook: RNG state in checkpoints, for bit-exact resume."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook

from mmdyn.registry import HOOKS

KEY = 'rng_state'


def get_rng_state() -> dict[str, Any]:
    """State of Python's, numpy's and torch's global generators, readable by a safe load.

    Returns:
        ``python``: dict(version=int, words=(625,) int64, gauss=float | None); ``numpy``:
        dict(words=(624,) int64, position=int, has_gauss=int, gauss=float); ``torch``: uint8, of
        the CPU generator; ``cuda``: uint8, of the current device, None without CUDA.
    """
    version, python, spare = random.getstate()
    _, words, position, has_gauss, gauss = np.random.get_state()
    return dict(
        python=dict(version=version, words=torch.tensor(python), gauss=spare),
        numpy=dict(
            words=torch.from_numpy(words.astype(np.int64)),
            position=position,
            has_gauss=has_gauss,
            gauss=gauss,
        ),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the global generators from :func:`get_rng_state`.

    Tensors may be on any device, as resuming moves them to the GPU. The CUDA generator is left
    alone if the state or the machine has none.
    """
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    words = numpy['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', words, numpy['position'], numpy['has_gauss'], numpy['gauss']))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@HOOKS.register_module()
class RngStateHook(Hook):
    """Saves RNG state in every checkpoint and restores it on resume, which mmengine does not.

    With ``num_workers=0`` a resumed run is bit-exact on a CPU, and on a GPU if its kernels are
    deterministic. Worker processes are reseeded by mmengine; the main process (the model) is exact
    with them too.

    - The checkpoint's entry ``'rng_state'`` is ``dict(ranks=[state of rank 0, ...],
      sampler_seed=int | None)``.
    - On resume each rank restores its state right before the first batch is loaded, and the sampler
      gets the seed of the first run, which differs without a fixed ``randomness.seed``.
    - Validation does not change the state, as a run resumed from an earlier checkpoint skips it.
    - The training loader gets its own generator, so that starting it does not draw from the global
      one.

    Not covered: random numbers that other hooks draw between a checkpoint and the next batch, and
    loops with ``fast_forward_on_resume``, which continue with other data on purpose.
    """

    # First, so that other hooks draw before an epoch from the restored state, as in the original
    # run.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        # Of all ranks, for the checkpoint being written.
        self._before_val: list[dict[str, Any]] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the checkpoint's state until training starts."""
        self._loaded = checkpoint.get(KEY)

    def before_train(self, runner) -> None:
        """Give the training loader a generator; on resume, prepare to restore."""
        loader = runner.train_dataloader
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(runner.seed + get_rank())
        loaded, self._loaded = self._loaded, None
        if runner.iter == 0:  # `load_from` without resume starts a new training
            return
        if loaded is None:
            runner.logger.warning(
                'The checkpoint has no RNG state (it was written without mmdyn.RngStateHook): '
                'training continues, but not bit-exact with an uninterrupted run.'
            )
            return
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        if hasattr(sampler, 'seed') and loaded['sampler_seed'] is not None:
            sampler.seed = loaded['sampler_seed']  # read with the first index
        if len(loaded['ranks']) != get_world_size():
            runner.logger.warning(
                f'The checkpoint was written by {len(loaded["ranks"])} process(es) and '
                f'{get_world_size()} resume it: RNG state is not restored, training continues with '
                'new random numbers.'
            )
            return
        self._pending = loaded['ranks'][get_rank()]
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _RestoringIterator(loop.dataloader_iterator, self._pending)

    def before_train_epoch(self, runner) -> None:
        """Restore the state before an epoch-based loop starts its loader."""
        if self._pending is not None:
            set_rng_state(self._pending)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Stop restoring: the first batch after the resume is loaded."""
        self._pending = self._gathered = None
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(iterator, _RestoringIterator):
            runner.train_loop.dataloader_iterator = iterator.inner

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Gather the states of all ranks if a checkpoint is due."""
        self._gather(runner, by_epoch=False)

    def after_train_epoch(self, runner) -> None:
        """Gather the states of all ranks if a checkpoint is due."""
        self._gather(runner, by_epoch=True)

    def before_val(self, runner) -> None:
        """Store the states of all ranks, also for a best checkpoint written after validation."""
        self._before_val = all_gather_object(get_rng_state())

    def after_val(self, runner) -> None:
        """Restore the state from before the validation."""
        if self._before_val is not None:
            set_rng_state(self._before_val[get_rank()])
            self._before_val = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the states to a checkpoint; called on rank 0 only."""
        states = self._before_val or self._gathered
        if states is None and get_world_size() == 1:
            states = [get_rng_state()]
        if states is None:
            runner.logger.warning(
                'A checkpoint was not written by a CheckpointHook, so the RNG states of other '
                'ranks are not available: it gets none, and a run resumed from it is not '
                'bit-exact.'
            )
            return
        batches = runner.train_dataloader.batch_sampler
        seed = getattr(getattr(batches, 'sampler', None), 'seed', None)
        checkpoint[KEY] = dict(ranks=states, sampler_seed=None if seed is None else int(seed))

    def _gather(self, runner, by_epoch: bool) -> None:
        # Saving is called on rank 0 only, too late for gathering.
        if get_world_size() > 1 and any(
            _saves_now(hook, runner, by_epoch) for hook in runner.hooks
        ):
            self._gathered = all_gather_object(get_rng_state())


def _saves_now(hook: Hook, runner, by_epoch: bool) -> bool:
    """Whether ``hook`` writes a checkpoint after this iteration or epoch, as in mmengine."""
    if not isinstance(hook, CheckpointHook) or hook.by_epoch != by_epoch:
        return False
    is_due = hook.every_n_epochs if by_epoch else hook.every_n_train_iters
    is_last = hook.is_last_train_epoch if by_epoch else hook.is_last_train_iter
    return is_due(runner, hook.interval, hook.save_begin) or (hook.save_last and is_last(runner))


class _RestoringIterator:
    """Restores RNG state before every batch of an iteration-based loop's iterator.

    Before *every* batch, since mmengine 0.10.7 skips seen data by fetching it: so the last fetch
    has the state.
    """

    def __init__(self, inner: Iterator, state: dict[str, Any]) -> None:
        self.inner = inner
        self._state = state

    def __next__(self) -> Any:
        set_rng_state(self._state)
        return next(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

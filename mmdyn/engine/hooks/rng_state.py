"""RngStateHook: a resumed training draws the random numbers the uninterrupted one draws."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook

from mmdyn.engine.rng import get_rng_state, set_rng_state
from mmdyn.registry import HOOKS

KEY = 'rng_state'


@HOOKS.register_module()
class RngStateHook(Hook):
    """Keeps the random-number state in every checkpoint and restores it on resume.

    mmengine saves none, so that a resumed run draws other augmentations, other
    dropout masks and other Gumbel noise than the run it continues. With this
    hook, ``num_workers=0`` and a checkpoint taken between two iterations (an
    iteration-based loop) or two epochs (an epoch-based loop), the losses after
    the resume equal the uninterrupted run's bit for bit on a CPU, and on a GPU as
    far as its kernels are deterministic. With worker processes the main process'
    part (the model's) is still exact, but mmengine seeds the workers afresh.

    What it does:

    - A checkpoint gets the entry ``'rng_state'``: ``dict(ranks=[state of rank 0,
      state of rank 1, ...], sampler_seed=int | None)``, each state as in
      ``mmdyn.engine.rng``; tensors and numbers only, so that a safe load
      (``weights_only=True``) reads it.
    - On resume each rank gets its state back right before the first batch is
      loaded, after the loop has skipped the data already seen (skipping draws
      random numbers on some versions of mmengine).
    - The sampler gets the seed back with which the first run shuffled: mmengine
      builds it before it reads the checkpoint, so that a config without a fixed
      ``randomness.seed`` would go on in another order.
    - Validation leaves no trace: the state of before is restored after it, as a
      run resumed from the checkpoint taken just before it does not validate.
    - The training loader gets a generator of its own, so that starting an
      iteration over it draws nothing from the global one.

    Random numbers that *other* hooks draw between the saving of a checkpoint and
    the next batch are not covered, nor is a loop with ``fast_forward_on_resume``,
    which on purpose goes on with other data.
    """

    # First in its turn: what other hooks draw before an epoch comes after the
    # restored state, as it came after the saved one.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        self._before_val: list[dict[str, Any]] | None = None
        self._gathered: tuple[tuple[int, int], list[dict[str, Any]]] | None = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keeps the checkpoint's state until training starts.

        Args:
            runner: The runner.
            checkpoint: The loaded checkpoint.
        """
        self._loaded = checkpoint.get(KEY)

    def before_train(self, runner) -> None:
        """Makes the training loader independent of the global generator and, on
        resume, prepares the restoring.

        Args:
            runner: The runner; its iteration is 0 unless it resumes.
        """
        loader = runner.train_dataloader
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(runner.seed + get_rank())
        loaded, self._loaded = self._loaded, None
        if runner.iter == 0:  # `load_from` without resume starts a training of its own
            return
        if loaded is None:
            runner.logger.warning(
                'The checkpoint holds no random-number state (it was written without '
                'mmdyn.RngStateHook): training goes on, with other random numbers than the '
                'uninterrupted run would have drawn.'
            )
            return
        _set_sampler_seed(loader, loaded['sampler_seed'])
        if len(loaded['ranks']) != get_world_size():
            runner.logger.warning(
                f'The checkpoint was written by {len(loaded["ranks"])} process(es) and '
                f'{get_world_size()} resume it: the random-number state is not restored, '
                'training goes on with fresh random numbers.'
            )
            return
        self._pending = loaded['ranks'][get_rank()]
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _RestoringIterator(loop.dataloader_iterator, self._pending)

    def before_train_epoch(self, runner) -> None:
        """Restores the state where an epoch-based loop is about to start its loader.

        Args:
            runner: The runner.
        """
        if self._pending is not None:
            set_rng_state(self._pending)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Ends the restoring: the first batch after the resume has been loaded.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
        """
        if self._pending is None:
            return
        self._pending = None
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(iterator, _RestoringIterator):
            runner.train_loop.dataloader_iterator = iterator.inner

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Gathers all ranks' states if a checkpoint is about to be written.

        Args:
            runner: The runner.
            batch_idx: The position of the batch.
            data_batch: The batch.
            outputs: The step's logged values.
        """
        if get_world_size() > 1 and any(_saves_after_iter(hook, runner) for hook in runner.hooks):
            self._gather(runner)

    def after_train_epoch(self, runner) -> None:
        """Gathers all ranks' states if a checkpoint is about to be written.

        Args:
            runner: The runner.
        """
        if get_world_size() > 1 and any(_saves_after_epoch(hook, runner) for hook in runner.hooks):
            self._gather(runner)

    def before_val(self, runner) -> None:
        """Notes all ranks' states, for the training after the validation and for
        checkpoints written during it (the best so far).

        Args:
            runner: The runner.
        """
        self._before_val = all_gather_object(get_rng_state())

    def after_val(self, runner) -> None:
        """Restores the state from before the validation.

        Args:
            runner: The runner.
        """
        if self._before_val is not None:
            set_rng_state(self._before_val[get_rank()])
            self._before_val = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the state to a checkpoint. mmengine calls this on rank 0 only.

        Args:
            runner: The runner.
            checkpoint: The checkpoint about to be written.
        """
        states = self._current_states(runner)
        if states is None:
            runner.logger.warning(
                'A checkpoint is written that no CheckpointHook announced: the other '
                "processes' random-number states are not at hand, so it gets none, and a run "
                'resumed from it draws other random numbers.'
            )
            return
        checkpoint[KEY] = dict(
            ranks=states, sampler_seed=_get_sampler_seed(runner.train_dataloader)
        )

    def _gather(self, runner) -> None:
        # Only rank 0 is called to write a checkpoint, too late to ask the others.
        self._gathered = ((runner.epoch, runner.iter), all_gather_object(get_rng_state()))

    def _current_states(self, runner) -> list[dict[str, Any]] | None:
        """The states of all ranks that a checkpoint written now should hold, or
        None where they are not known."""
        if self._before_val is not None:
            return self._before_val
        if get_world_size() == 1:
            return [get_rng_state()]
        if self._gathered is not None and self._gathered[0] == (runner.epoch, runner.iter):
            return self._gathered[1]
        return None


class _RestoringIterator:
    """Stands in for an iteration-based loop's iterator until the first batch of
    the resumed training is there.

    It restores before *every* fetch, for the loop of mmengine 0.10.7 skips the
    data already seen by fetching it: whichever fetch is the last sees the state.

    Args:
        inner: The loop's own iterator; all attributes are taken from it.
        state: What :func:`mmdyn.engine.rng.get_rng_state` returned.
    """

    def __init__(self, inner: Iterator, state: dict[str, Any]) -> None:
        self.inner = inner
        self._state = state

    def __iter__(self) -> '_RestoringIterator':
        return self

    def __next__(self) -> Any:
        set_rng_state(self._state)
        return next(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _saves_after_iter(hook: Hook, runner) -> bool:
    """Whether ``hook`` writes a checkpoint after this iteration, by CheckpointHook's rule."""
    return (
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_iter(runner))
        )
    )


def _saves_after_epoch(hook: Hook, runner) -> bool:
    """Whether ``hook`` writes a checkpoint after this epoch, by CheckpointHook's rule."""
    return (
        isinstance(hook, CheckpointHook)
        and hook.by_epoch
        and (
            hook.every_n_epochs(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_epoch(runner))
        )
    )


def _seeded_sampler(loader) -> Any:
    """The sampler that shuffles: the loader's own, or the one under its batch
    sampler; None if neither has a seed."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
        if hasattr(sampler, 'seed'):
            return sampler
    return None


def _get_sampler_seed(loader) -> int | None:
    sampler = _seeded_sampler(loader)
    return None if sampler is None else int(sampler.seed)


def _set_sampler_seed(loader, seed: int | None) -> None:
    # mmengine's samplers read their seed when the first index is drawn, which without worker
    # processes is still to come.
    sampler = _seeded_sampler(loader)
    if sampler is not None and seed is not None:
        sampler.seed = seed

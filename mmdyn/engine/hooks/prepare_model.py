"""Prepares the model of a test for faster inference."""

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmdyn.engine.wrappers import unwrapped
from mmdyn.models.prepared import prepare_for_inference


class PrepareModelHook(Hook):
    """Prepares a model on a CPU for inference when a test starts, after loading its checkpoint."""

    def before_test(self, runner: Runner) -> None:
        """See the class.

        Raises:
            ValueError: if an EMAHook will change the weights.
        """
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError('EMAHook changes the weights during a test: remove --prepare')
        model = unwrapped(runner.model)
        if next(model.parameters()).device.type == 'cpu':
            prepare_for_inference(model)

from types import SimpleNamespace

from torch import nn

from mmdyn.engine.hooks import sync_running_stats


def test_statistics_of_frozen_norms_are_left_alone(monkeypatch):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    monkeypatch.setattr(sync_running_stats, 'get_world_size', lambda: 3)

    def all_reduce(buffers, op):
        for buffer in buffers:
            buffer.add_(1)

    monkeypatch.setattr(sync_running_stats, 'all_reduce_params', all_reduce)
    sync_running_stats.SyncRunningStatsHook().after_train_iter(SimpleNamespace(model=model), 0)
    assert model[0].running_mean.tolist() == [1, 1] and model[1].running_mean.tolist() == [0, 0]
